//! Dedup.

use std::path::PathBuf;

use hornbook_core::corpus::{Corpus, Part};
use hornbook_core::dedup::{
    self, Index, Job, Keep, Near, Options, Progress, Reference, Stamp, Summary,
};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3_arrow::PyRecordBatch;

use crate::corpus::part_dict;
use crate::watch::watched;

/// What the stage tells: files of kept rows, the evidence file, rows read.
fn stage_dict<'py>(
    py: Python<'py>,
    parts: &[Part],
    evidence: &Part,
    rows: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let parts: PyResult<Vec<_>> = parts.iter().map(|part| part_dict(py, part)).collect();
    let dict = PyDict::new(py);
    dict.set_item("parts", parts?)?;
    dict.set_item("evidence", part_dict(py, evidence)?)?;
    dict.set_item("rows", rows)?;
    Ok(dict)
}

/// The options of `hornbook.dedup.DedupConfig` that decide what goes, and where things are.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct DedupJob {
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    out: PathBuf,
    method: String,
    threshold: f64,
    ngram: usize,
    keep: String,
    column: Option<String>,
    bands: usize,
    rows: usize,
    seed: u64,
    normalize: bool,
    source: Option<String>,
    components: bool,
    against: Vec<PathBuf>,
    /// The folder and the name of the segment to add.
    index: Option<(PathBuf, String)>,
    /// Bytes.
    memory: Option<usize>,
}

impl DedupJob {
    fn options(&self) -> Options {
        let Self { bands, rows, seed, .. } = *self;
        Options {
            near: match self.method.as_str() {
                "exact" => None,
                "exact-join" => Some(Near::Join),
                _ => Some(Near::Bands { bands, rows, seed }),
            },
            threshold: self.threshold,
            ngram: self.ngram,
            keep: match (self.keep.as_str(), &self.column) {
                ("highest", Some(column)) => Keep::Highest(column.clone()),
                ("first", _) => Keep::First,
                _ => Keep::Longest,
            },
            normalize: self.normalize,
            source: self.source.clone(),
            components: self.components,
        }
    }

    fn run(&self, progress: Progress<'_>) -> hornbook_core::Result<Summary> {
        let corpus = Corpus::open_quickly(&self.paths, &self.extensions)?;
        let stamp = Stamp::new(self.ngram, self.bands, self.rows, self.seed, self.normalize);
        let open = |path| dedup::reference(path, &self.extensions, &stamp);
        let mut against: Vec<Reference> =
            self.against.iter().map(open).collect::<hornbook_core::Result<_>>()?;
        let index = match &self.index {
            Some((folder, segment)) => Some(Index::open_to_add(folder, &stamp, segment)?),
            None => None,
        };
        against.extend(index.iter().map(|index| Reference::Index(index.clone())));
        let segment = self.index.as_ref().map_or("", |(_, segment)| segment);
        let inputs: Vec<String> = self.paths.iter().map(|p| p.display().to_string()).collect();
        let job = Job {
            corpus: &corpus,
            inputs: &inputs,
            out: &self.out,
            against: &against,
            index: index.as_ref().map(|index| (index, segment)),
            memory: self.memory,
            progress,
        };
        dedup::run(&job, &self.options())
    }
}

/// Exact and near dedup of a corpus; `progress(label, done, total)` is called now and then.
#[pyfunction]
fn dedup_corpus(
    py: Python<'_>,
    job: DedupJob,
    threads: Option<usize>,
    progress: Py<PyAny>,
) -> PyResult<Bound<'_, PyDict>> {
    let summary = watched(py, threads, &progress, |progress| job.run(progress))?;
    let dict = PyDict::new(py);
    dict.set_item("parts", part_dicts(py, &summary.parts)?)?;
    dict.set_item("evidence", part_dicts(py, &summary.evidence)?)?;
    dict.set_item("rows", summary.rows)?;
    dict.set_item("exact", summary.exact)?;
    dict.set_item("near", summary.near)?;
    dict.set_item("against", summary.against)?;
    dict.set_item("short", summary.short)?;
    dict.set_item("compared", summary.compared)?;
    dict.set_item("rejected", summary.rejects.len())?;
    let sources = summary.sources.into_iter().map(|one| (one.name, one.rows, one.removed));
    dict.set_item("sources", sources.collect::<Vec<_>>())?;
    let recall = summary.recall.map(|one| (one.documents, one.pairs, one.found, one.estimate));
    dict.set_item("recall", recall)?;
    dict.set_item("hashes", summary.hashes)?;
    dict.set_item("token_rule", hornbook_core::words::TOKEN_RULE)?;
    Ok(dict)
}

/// Whether the index in a folder has all of a segment.
#[pyfunction]
fn dedup_index_lists(folder: PathBuf, segment: &str) -> bool {
    Index::lists(&folder, segment)
}

fn part_dicts<'py>(py: Python<'py>, parts: &[Part]) -> PyResult<Vec<Bound<'py, PyDict>>> {
    parts.iter().map(|part| part_dict(py, part)).collect()
}

/// Cuts repeated runs of `length` words.
#[pyfunction]
fn dedup_substring(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    out: PathBuf,
    length: usize,
    threads: Option<usize>,
    progress: Py<PyAny>,
) -> PyResult<Bound<'_, PyDict>> {
    let done = watched(py, threads, &progress, |progress| {
        dedup::substring(&Corpus::open(&paths, &extensions)?, &out, length, progress)
    })?;
    let dict = stage_dict(py, &done.parts, &done.evidence, done.rows)?;
    dict.set_item("emptied", done.emptied)?;
    dict.set_item("shortened", done.shortened)?;
    dict.set_item("cuts", done.cuts)?;
    dict.set_item("bytes", done.bytes)?;
    dict.set_item("rejected", done.rejects.len())?;
    dict.set_item("token_rule", hornbook_core::words::TOKEN_RULE)?;
    Ok(dict)
}

/// The chance that a pair of similarity `jaccard` shares one of `bands` bands of `rows` rows.
#[pyfunction]
fn band_recall(jaccard: f64, bands: usize, rows: usize) -> f64 {
    dedup::recall(jaccard, bands, rows)
}

/// The bands and rows that find a pair of similarity `jaccard` with probability `recall`.
#[pyfunction]
fn choose_bands(jaccard: f64, recall: f64, most: usize) -> Option<(usize, usize)> {
    dedup::choose_bands(jaccard, recall, most)
}

/// Signatures of lists of hashes, `count` slots each, one list after another.
#[pyfunction]
fn signatures<'py>(
    py: Python<'py>,
    hashes: PyReadonlyArray1<'py, u64>,
    offsets: PyReadonlyArray1<'py, i64>,
    count: usize,
    seed: u64,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let (hashes, offsets) = (hashes.as_slice()?, offsets.as_slice()?);
    let rising = offsets.windows(2).all(|pair| 0 <= pair[0] && pair[0] <= pair[1]);
    if !rising || offsets.last().is_some_and(|end| *end as usize > hashes.len()) {
        return Err(PyValueError::new_err("offsets must rise and stay within the hashes"));
    }
    let values = py.detach(|| {
        let lists = offsets.windows(2).map(|pair| &hashes[pair[0] as usize..pair[1] as usize]);
        dedup::signatures(lists, count, seed)
    });
    Ok(values.into_pyarray(py))
}

/// Signs a batch with string columns `id` and `text`; see `hornbook.dedup_pieces.sign`.
#[pyfunction]
fn dedup_sign(
    py: Python<'_>,
    batch: PyRecordBatch,
    ngram: usize,
    bands: usize,
    rows: usize,
    seed: u64,
    normalize: bool,
) -> PyResult<Bound<'_, PyAny>> {
    let batch = batch.into_inner();
    let signed =
        py.detach(|| dedup::sign_batch(&batch, &Stamp::new(ngram, bands, rows, seed, normalize)));
    PyRecordBatch::new(signed).into_pyarrow(py)
}

/// The two sides of pairs.
type NumberPairs<'py> = (Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<u64>>);

/// Distinct pairs of documents that share a key, as two arrays.
#[pyfunction]
fn dedup_candidate_pairs<'py>(
    py: Python<'py>,
    keys: PyReadonlyArray1<'py, u64>,
    documents: PyReadonlyArray1<'py, u64>,
) -> PyResult<NumberPairs<'py>> {
    let (keys, documents) = (keys.as_slice()?, documents.as_slice()?);
    let pairs = py.detach(|| dedup::candidate_pairs(keys, documents));
    let (a, b): (Vec<u64>, Vec<u64>) = pairs.into_iter().unzip();
    Ok((a.into_pyarray(py), b.into_pyarray(py)))
}

/// The Jaccard similarity of lists `a[i]` and `b[i]` of one flat array; NaN below the threshold.
#[pyfunction]
fn dedup_verify<'py>(
    py: Python<'py>,
    grams: PyReadonlyArray1<'py, u64>,
    offsets: PyReadonlyArray1<'py, i64>,
    a: PyReadonlyArray1<'py, i64>,
    b: PyReadonlyArray1<'py, i64>,
    threshold: f64,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (grams, offsets) = (grams.as_slice()?, offsets.as_slice()?);
    let (a, b) = (a.as_slice()?, b.as_slice()?);
    let sets = offsets.len().saturating_sub(1);
    let known = |i: &i64| usize::try_from(*i).is_ok_and(|i| i < sets);
    let rising = offsets.windows(2).all(|pair| 0 <= pair[0] && pair[0] <= pair[1]);
    if a.len() != b.len() || !a.iter().chain(b).all(known) || !rising {
        return Err(PyValueError::new_err("pairs must be places of lists, as many of a as of b"));
    }
    if offsets.last().is_some_and(|end| *end as usize > grams.len()) {
        return Err(PyValueError::new_err("offsets go beyond the values"));
    }
    let set = |i: i64| &grams[offsets[i as usize] as usize..offsets[i as usize + 1] as usize];
    let found = py.detach(|| dedup::verify_pairs(a.len(), |i| (set(a[i]), set(b[i])), threshold));
    let values: Vec<f64> = found.into_iter().map(|j| j.unwrap_or(f64::NAN)).collect();
    Ok(values.into_pyarray(py))
}

/// (document, document, Jaccard) of verified pairs.
type Edges = Vec<(u64, u64, f64)>;

/// What goes, given every verified pair.
#[pyfunction]
fn dedup_choose(py: Python<'_>, edges: Edges) -> Edges {
    py.detach(|| dedup::choose_removals(&edges))
}

/// Connected components of pairs.
#[pyfunction]
fn dedup_components(py: Python<'_>, edges: Edges) -> Vec<Vec<u64>> {
    py.detach(|| dedup::components(&edges))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(dedup_corpus, module)?)?;
    module.add_function(wrap_pyfunction!(dedup_index_lists, module)?)?;
    module.add_function(wrap_pyfunction!(dedup_substring, module)?)?;
    module.add_function(wrap_pyfunction!(band_recall, module)?)?;
    module.add_function(wrap_pyfunction!(choose_bands, module)?)?;
    module.add_function(wrap_pyfunction!(signatures, module)?)?;
    module.add_function(wrap_pyfunction!(dedup_sign, module)?)?;
    module.add_function(wrap_pyfunction!(dedup_candidate_pairs, module)?)?;
    module.add_function(wrap_pyfunction!(dedup_verify, module)?)?;
    module.add_function(wrap_pyfunction!(dedup_choose, module)?)?;
    module.add_function(wrap_pyfunction!(dedup_components, module)?)
}
