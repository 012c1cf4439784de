//! Features, the forest, and diversity.

use std::collections::HashMap;
use std::path::PathBuf;

use hornbook_core::corpus::{Corpus, Part};
use hornbook_core::features::{self, ForestHeader, Out, Rule, Scores, SourceTrees};
use hornbook_core::{Error, diversity};
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyDict;

use crate::corpus::{Reader, part_dict};
use crate::error::IntoPyResult;
use crate::watch::watched;

fn slice<'a, T: numpy::Element>(array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| Error::config("arrays must be contiguous")).py()
}

/// Features of texts: float32 [n, dimensions + ratios].
#[pyfunction]
fn embed(
    py: Python<'_>,
    texts: Vec<PyBackedStr>,
    dimensions: usize,
) -> PyResult<Bound<'_, PyArray2<f32>>> {
    let flat = py.detach(|| features::embed(&texts, dimensions, true)).py()?;
    flat.into_pyarray(py).reshape([texts.len(), features::width(dimensions)])
}

/// The hashed columns alone, on one thread: float32 [n, dimensions].
#[pyfunction]
fn hashed(
    py: Python<'_>,
    texts: Vec<PyBackedStr>,
    dimensions: usize,
) -> PyResult<Bound<'_, PyArray2<f32>>> {
    let flat = py.detach(|| features::hashed(&texts, dimensions));
    flat.into_pyarray(py).reshape([texts.len(), dimensions])
}

/// The name of the embedding with that many hashed dimensions.
#[pyfunction]
fn embedder_id(dimensions: usize) -> String {
    features::embedder_id(dimensions)
}

/// A trained forest.
#[pyclass(frozen)]
struct Forest {
    inner: features::Forest,
}

#[pymethods]
impl Forest {
    /// Takes over trees laid end to end, and the header as JSON.
    #[staticmethod]
    #[allow(clippy::too_many_arguments)]
    fn from_trees(
        py: Python<'_>,
        sizes: Vec<usize>,
        left: PyReadonlyArray1<'_, i64>,
        right: PyReadonlyArray1<'_, i64>,
        feature: PyReadonlyArray1<'_, i64>,
        threshold: PyReadonlyArray1<'_, f64>,
        value: PyReadonlyArray1<'_, f64>,
        embedder: String,
        dimensions: usize,
        features: usize,
        kind: String,
        cut: f64,
        training: String,
        settings: String,
    ) -> PyResult<Self> {
        let trees = SourceTrees {
            sizes: &sizes,
            left: slice(&left)?,
            right: slice(&right)?,
            feature: slice(&feature)?,
            threshold: slice(&threshold)?,
            value: slice(&value)?,
        };
        let header = ForestHeader {
            embedder,
            dimensions,
            features,
            kind,
            threshold: cut,
            training,
            settings,
            trees: 0,
            nodes: 0,
            leaves: 0,
        };
        let inner = py.detach(|| features::Forest::from_trees(&trees, header)).py()?;
        Ok(Self { inner })
    }

    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(|| features::Forest::load(&path)).py()?;
        Ok(Self { inner })
    }

    /// Writes the file; returns its manifest entry.
    fn save<'py>(&self, py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyDict>> {
        let part: Part = py.detach(|| self.inner.save(&path)).py()?;
        part_dict(py, &part)
    }

    fn with_threshold(&self, threshold: f64) -> Self {
        Self { inner: self.inner.clone().with_threshold(threshold) }
    }

    #[getter]
    fn header<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let header = self.inner.header();
        let dict = PyDict::new(py);
        dict.set_item("embedder", &header.embedder)?;
        dict.set_item("dimensions", header.dimensions)?;
        dict.set_item("features", header.features)?;
        dict.set_item("kind", &header.kind)?;
        dict.set_item("threshold", header.threshold)?;
        dict.set_item("training", &header.training)?;
        dict.set_item("settings", &header.settings)?;
        dict.set_item("trees", header.trees)?;
        dict.set_item("nodes", header.nodes)?;
        dict.set_item("leaves", header.leaves)?;
        Ok(dict)
    }

    /// How many times the trees compare each feature on their way for one row.
    fn asked(&self, row: PyReadonlyArray1<'_, f32>) -> PyResult<Vec<u32>> {
        self.inner.asked(slice(&row)?).py()
    }

    /// One score for each row of float32 [n, features]; `parallel`: on all threads.
    #[pyo3(signature = (features, parallel = true))]
    fn score<'py>(
        &self,
        py: Python<'py>,
        features: PyReadonlyArray2<'_, f32>,
        parallel: bool,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let width = self.inner.header().features;
        if features.shape()[1] != width {
            let message = format!("{} columns, but the forest wants {width}", features.shape()[1]);
            return Err(Error::config(message)).py();
        }
        let rows =
            features.as_slice().map_err(|_| Error::config("features must be contiguous")).py()?;
        Ok(py.detach(|| self.inner.score(rows, parallel)).py()?.into_pyarray(py))
    }
}

/// The slots of a text's tokens and pairs of tokens: `[(token, slot), ...]`.
#[pyfunction]
fn token_slots(py: Python<'_>, text: &str, dimensions: usize) -> Vec<(String, usize)> {
    py.detach(|| features::token_slots(text, dimensions))
}

/// A corpus in units of about so many bytes of text.
#[pyclass(frozen)]
struct Units {
    units: Vec<Corpus>,
}

#[pymethods]
impl Units {
    #[new]
    fn new(
        py: Python<'_>,
        paths: Vec<PathBuf>,
        extensions: Vec<String>,
        bytes: u64,
    ) -> PyResult<Self> {
        let units = py.detach(|| Corpus::open(&paths, &extensions)?.split(bytes)).py()?;
        Ok(Self { units })
    }

    fn __len__(&self) -> usize {
        self.units.len()
    }

    /// The documents of a unit.
    fn read(&self, unit: usize) -> PyResult<Reader> {
        Ok(Reader::over(self.unit(unit)?.clone()))
    }

    /// Row and beginning of some documents of a unit.
    fn excerpts(
        &self,
        py: Python<'_>,
        unit: usize,
        rows: Vec<u64>,
        longest: usize,
    ) -> PyResult<Vec<(u64, String)>> {
        let corpus = self.unit(unit)?;
        py.detach(|| features::excerpts(corpus, &rows, longest)).py()
    }

    /// Scores a unit and, with a rule (threshold, threshold of each source), writes what it keeps.
    ///
    /// Scores: a forest, an array, or None for those of the earlier pass. Gives rows, kept, parts.
    #[allow(clippy::too_many_arguments)]
    fn filter<'py>(
        &self,
        py: Python<'py>,
        unit: usize,
        out: PathBuf,
        forest: Option<&Forest>,
        scores: Option<PyReadonlyArray1<'_, f64>>,
        rule: Option<(f64, HashMap<String, f64>)>,
        parallel: bool,
    ) -> PyResult<(u64, u64, Vec<Bound<'py, PyDict>>)> {
        let corpus = self.unit(unit)?;
        let rule = rule.map(|(threshold, by_source)| Rule { threshold, by_source });
        let given = scores.as_ref().map(slice).transpose()?;
        let scores = match (forest, given) {
            (Some(forest), _) => Scores::Forest(&forest.inner),
            (None, Some(scores)) => Scores::Given(scores),
            (None, None) => Scores::Pass,
        };
        let done = py
            .detach(|| {
                let out = Out { folder: &out, unit };
                features::filter_unit(corpus, &scores, rule.as_ref(), &out, parallel)
            })
            .py()?;
        let parts: PyResult<Vec<_>> = done.parts.iter().map(|part| part_dict(py, part)).collect();
        Ok((done.rows, done.kept, parts?))
    }
}

impl Units {
    fn unit(&self, unit: usize) -> PyResult<&Corpus> {
        let message = || Error::config(format!("there are only {} units", self.units.len()));
        self.units.get(unit).ok_or_else(message).py()
    }
}

type Histogram<'py> =
    (Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<f64>>);
type Examples = Vec<(f64, usize, u64, String)>;
type Sample<'py> =
    (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f32>>);

/// What scores files say together: histograms by source, counts by group, highest and lowest, a sample.
#[pyfunction]
#[allow(clippy::type_complexity)]
fn tally(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    examples: usize,
) -> PyResult<(
    HashMap<String, Histogram<'_>>,
    HashMap<String, HashMap<String, [u64; 4]>>,
    Examples,
    Examples,
    Sample<'_>,
)> {
    let found = py.detach(|| features::tally(&paths, examples)).py()?;
    let histograms = found.histograms.into_iter().map(|(source, h)| {
        let arrays =
            (h.documents.into_pyarray(py), h.bytes.into_pyarray(py), h.lowest.into_pyarray(py));
        (source, arrays)
    });
    let groups =
        found.groups.into_iter().map(|(column, values)| (column, values.into_iter().collect()));
    let listed = |examples: Vec<features::Example>| {
        examples.into_iter().map(|e| (e.score, e.unit, e.row, e.id)).collect()
    };
    let sample = (
        found.sample.iter().map(|row| row.0).collect::<Vec<_>>().into_pyarray(py),
        found.sample.iter().map(|row| row.1).collect::<Vec<_>>().into_pyarray(py),
        found.sample.iter().map(|row| row.2).collect::<Vec<_>>().into_pyarray(py),
    );
    Ok((
        histograms.collect(),
        groups.collect(),
        listed(found.highest),
        listed(found.lowest),
        sample,
    ))
}

/// Diversity of a corpus, as JSON.
#[pyfunction]
fn diversity_json(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    metrics: Vec<String>,
    top: usize,
    progress: Py<PyAny>,
) -> PyResult<String> {
    let measured = watched(py, None, &progress, |progress| {
        diversity::measure(&Corpus::open(&paths, &extensions)?, &metrics, top, progress)
    })?;
    Ok(measured.to_json())
}

/// The structural signature of a text's first function.
#[pyfunction]
fn signature(py: Python<'_>, text: &str) -> PyResult<String> {
    py.detach(|| diversity::signature(text)).py()
}

const _: () = {
    crate::fits_python::<Forest>();
    crate::fits_python::<Units>();
};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("RATIO_NAMES", features::RATIO_NAMES.to_vec())?;
    module.add("DIVERSITY_METRICS", diversity::METRICS.to_vec())?;
    module.add_class::<Forest>()?;
    module.add_function(wrap_pyfunction!(embed, module)?)?;
    module.add_function(wrap_pyfunction!(hashed, module)?)?;
    module.add_function(wrap_pyfunction!(embedder_id, module)?)?;
    module.add("SCORE_BINS", features::BINS)?;
    module.add_class::<Units>()?;
    module.add_function(wrap_pyfunction!(token_slots, module)?)?;
    module.add_function(wrap_pyfunction!(tally, module)?)?;
    module.add_function(wrap_pyfunction!(diversity_json, module)?)?;
    module.add_function(wrap_pyfunction!(signature, module)?)
}
