//! Features, the forest, and diversity.

use std::path::PathBuf;

use hornbook_core::corpus::{Corpus, Part};
use hornbook_core::features::{self, ForestHeader, SourceTrees};
use hornbook_core::{Error, diversity};
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyDict;

use crate::corpus::part_dict;
use crate::error::IntoPyResult;

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
    let flat = py.detach(|| features::embed(&texts, dimensions)).py()?;
    flat.into_pyarray(py).reshape([texts.len(), features::width(dimensions)])
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
        dict.set_item("trees", header.trees)?;
        dict.set_item("nodes", header.nodes)?;
        dict.set_item("leaves", header.leaves)?;
        Ok(dict)
    }

    /// One score for each row of float32 [n, features].
    fn score<'py>(
        &self,
        py: Python<'py>,
        features: PyReadonlyArray2<'_, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let width = self.inner.header().features;
        if features.shape()[1] != width {
            let message = format!("{} columns, but the forest wants {width}", features.shape()[1]);
            return Err(Error::config(message)).py();
        }
        let rows =
            features.as_slice().map_err(|_| Error::config("features must be contiguous")).py()?;
        Ok(py.detach(|| self.inner.score(rows)).py()?.into_pyarray(py))
    }
}

type Scores<'py> =
    (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f32>>);

/// Score, bytes and docstring share of every document.
#[pyfunction]
fn score_corpus<'py>(
    py: Python<'py>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    forest: &Forest,
) -> PyResult<Scores<'py>> {
    let scored = py
        .detach(|| {
            let corpus = Corpus::open(&paths, &extensions)?;
            features::score_corpus(&corpus, &forest.inner)
        })
        .py()?;
    Ok((
        scored.scores.into_pyarray(py),
        scored.bytes.into_pyarray(py),
        scored.docstring_share.into_pyarray(py),
    ))
}

/// Writes documents whose score is high enough; returns the parts, and how many were set aside and kept.
#[pyfunction]
fn write_scored<'py>(
    py: Python<'py>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    out: PathBuf,
    scores: PyReadonlyArray1<'_, f64>,
    threshold: f64,
) -> PyResult<(Vec<Bound<'py, PyDict>>, usize, u64)> {
    let scores = slice(&scores)?;
    let (parts, rejects, kept) = py
        .detach(|| {
            let corpus = Corpus::open(&paths, &extensions)?;
            features::write_scored(&corpus, &out, scores, threshold)
        })
        .py()?;
    let parts: PyResult<Vec<_>> = parts.iter().map(|part| part_dict(py, part)).collect();
    Ok((parts?, rejects.len(), kept))
}

/// Diversity of a corpus, as JSON.
#[pyfunction]
fn diversity_json(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    metrics: Vec<String>,
    top: usize,
) -> PyResult<String> {
    let measured = py
        .detach(|| diversity::measure(&Corpus::open(&paths, &extensions)?, &metrics, top))
        .py()?;
    Ok(measured.to_json())
}

/// The structural signature of a text's first function.
#[pyfunction]
fn signature(py: Python<'_>, text: &str) -> PyResult<String> {
    py.detach(|| diversity::signature(text)).py()
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("RATIO_NAMES", features::RATIO_NAMES.to_vec())?;
    module.add("DIVERSITY_METRICS", diversity::METRICS.to_vec())?;
    module.add_class::<Forest>()?;
    module.add_function(wrap_pyfunction!(embed, module)?)?;
    module.add_function(wrap_pyfunction!(embedder_id, module)?)?;
    module.add_function(wrap_pyfunction!(score_corpus, module)?)?;
    module.add_function(wrap_pyfunction!(write_scored, module)?)?;
    module.add_function(wrap_pyfunction!(diversity_json, module)?)?;
    module.add_function(wrap_pyfunction!(signature, module)?)
}
