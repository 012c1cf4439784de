//! Dedup and decontamination.

use std::path::PathBuf;

use hornbook_core::corpus::{Corpus, Part};
use hornbook_core::decontaminate::{self, Item, Options};
use hornbook_core::dedup::{self, Keep, Near, on_threads};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::corpus::part_dict;
use crate::error::IntoPyResult;

/// Problem, rate, document (if any), nodes of the reference.
type Match = (String, f64, Option<String>, usize);

/// What both stages tell: files of kept rows, the evidence file, rows read.
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

/// `(name, texts, program, entry point)`.
type PyItem = (String, Vec<String>, String, Option<String>);

fn items_of(items: Vec<PyItem>) -> Vec<Item> {
    items
        .into_iter()
        .map(|(name, texts, program, entry_point)| Item { name, texts, program, entry_point })
        .collect()
}

/// `rules` is `(ngram, ast_threshold, min_nodes, ignore)`.
#[pyfunction]
#[pyo3(signature = (paths, extensions, out, items, rules, threads))]
fn decontaminate_corpus(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    out: PathBuf,
    items: Vec<PyItem>,
    rules: (usize, Option<f64>, usize, Vec<String>),
    threads: Option<usize>,
) -> PyResult<Bound<'_, PyDict>> {
    let items = items_of(items);
    let (ngram, ast_threshold, min_nodes, ignore) = rules;
    let options = Options { ngram, ast_threshold, min_nodes, ignore };
    let summary = py
        .detach(|| {
            on_threads(threads, || {
                let corpus = Corpus::open(&paths, &extensions)?;
                decontaminate::run(&corpus, &out, &items, &options)
            })
        })
        .py()?;
    let dict = stage_dict(py, &summary.parts, &summary.evidence, summary.rows)?;
    dict.set_item("ngram", summary.ngram)?;
    dict.set_item("ast", summary.ast)?;
    dict.set_item("rejected", summary.rejects.len())?;
    dict.set_item("ngrams", summary.ngrams)?;
    dict.set_item("items_without_ngram", summary.items_without_ngram)?;
    dict.set_item("items_without_reference", summary.items_without_reference)?;
    dict.set_item("token_rule", dedup::words::TOKEN_RULE)?;
    Ok(dict)
}

/// For every item: `(name, best match rate, document id or None, nodes of its reference)`.
#[pyfunction]
#[pyo3(signature = (paths, extensions, items, threads))]
fn benchmark_similarity(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    items: Vec<PyItem>,
    threads: Option<usize>,
) -> PyResult<Vec<Match>> {
    let items = items_of(items);
    let found = py
        .detach(|| {
            on_threads(threads, || {
                let corpus = Corpus::open(&paths, &extensions)?;
                decontaminate::similarity(&corpus, &items)
            })
        })
        .py()?;
    Ok(found.into_iter().map(|found| (found.name, found.rate, found.id, found.nodes)).collect())
}

/// The match rate of two sources' syntax trees, from 0 to 1.
#[pyfunction]
fn ast_match(py: Python<'_>, a: &str, b: &str) -> f64 {
    py.detach(|| decontaminate::ast_match(a, b))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(dedup_corpus, module)?)?;
    module.add_function(wrap_pyfunction!(decontaminate_corpus, module)?)?;
    module.add_function(wrap_pyfunction!(benchmark_similarity, module)?)?;
    module.add_function(wrap_pyfunction!(ast_match, module)?)
}
