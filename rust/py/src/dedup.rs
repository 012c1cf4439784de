//! Dedup.

use std::path::PathBuf;

use hornbook_core::corpus::{Corpus, Part};
use hornbook_core::dedup::{self, Keep, Near, on_threads};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::corpus::part_dict;
use crate::error::IntoPyResult;

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

/// `near` is `(threshold, ngram, keep_longest, bands, rows, seed)`; without it, exact copies only.
#[pyfunction]
#[pyo3(signature = (paths, extensions, out, near, threads))]
#[allow(clippy::type_complexity)]
fn dedup_corpus(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    out: PathBuf,
    near: Option<(f64, usize, bool, usize, usize, u64)>,
    threads: Option<usize>,
) -> PyResult<Bound<'_, PyDict>> {
    let near = near.map(|(threshold, ngram, longest, bands, rows, seed)| Near {
        threshold,
        ngram,
        keep: if longest { Keep::Longest } else { Keep::First },
        bands,
        rows,
        seed,
    });
    let summary = py
        .detach(|| {
            on_threads(threads, || {
                let corpus = Corpus::open(&paths, &extensions)?;
                dedup::run(&corpus, &out, near.as_ref())
            })
        })
        .py()?;
    let dict = stage_dict(py, &summary.parts, &summary.evidence, summary.rows)?;
    dict.set_item("exact", summary.exact)?;
    dict.set_item("near", summary.near)?;
    dict.set_item("short", summary.short)?;
    dict.set_item("compared", summary.compared)?;
    dict.set_item("rejected", summary.rejects.len())?;
    dict.set_item("expected_recall", near.as_ref().map(dedup::expected_recall))?;
    dict.set_item("token_rule", dedup::words::TOKEN_RULE)?;
    Ok(dict)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(dedup_corpus, module)?)
}
