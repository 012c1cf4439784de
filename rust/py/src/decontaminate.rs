//! Decontamination.

use std::path::PathBuf;
use std::sync::Mutex;

use hornbook_core::Error;
use hornbook_core::corpus::Corpus;
use hornbook_core::decontaminate::ngrams::{Gram, GramSet, Rule};
use hornbook_core::decontaminate::report::Neighbour;
use hornbook_core::decontaminate::tree::{self, Reading, Unit};
use hornbook_core::decontaminate::{
    self, Combine, Embed, Embedding, FIELDS, Functions, Index, Item, Options, Syntax, Tick,
};
use hornbook_core::words;
use numpy::{PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyList};

use crate::corpus::part_dict;
use crate::error::IntoPyResult;

/// `(name, program, entry point)`.
type PyItem = (String, String, Option<String>);
/// `(key, check, words, [(item, field)])`, hashes in hexadecimal.
type PyGram = (String, String, u32, Vec<(u32, u8)>);
/// `(characters, names, comments, docstrings, literals)`; the last four: kept.
type PyReading = (bool, bool, bool, bool, bool);
/// `(threshold, reading, min_nodes, sweep, nearest)`.
type PySyntax = (Option<f64>, PyReading, usize, Vec<f64>, usize);

fn items_of(items: Vec<PyItem>) -> Vec<Item> {
    (items.into_iter())
        .map(|(name, program, entry_point)| Item { name, program, entry_point })
        .collect()
}

fn reading_of((characters, names, comments, docstrings, literals): PyReading) -> Reading {
    let unit = if characters { Unit::Char } else { Unit::Node };
    Reading { unit, names, comments, docstrings, literals }
}

fn slices(texts: &[PyBackedStr]) -> Vec<&str> {
    texts.iter().map(|text| &**text).collect()
}

/// Calls back into Python from the core, and keeps the exception for the way back.
struct Calls {
    raised: Mutex<Option<PyErr>>,
}

impl Calls {
    fn new() -> Self {
        Self { raised: Mutex::new(None) }
    }

    fn call<T>(&self, call: impl FnOnce(Python<'_>) -> PyResult<T>) -> hornbook_core::Result<T> {
        Python::attach(call).map_err(|error| {
            *self.raised.lock().expect("no panic while it is held") = Some(error);
            Error::config("stopped by the caller")
        })
    }

    /// The exception of a call, or the error itself.
    fn finish<T>(self, result: hornbook_core::Result<T>) -> PyResult<T> {
        match self.raised.into_inner().expect("no panic while it is held") {
            Some(error) => Err(error),
            None => result.py(),
        }
    }

    /// Lets Ctrl-C through and says how far the run is.
    fn tick(&self, callback: Option<&Py<PyAny>>, tick: Tick) -> hornbook_core::Result<()> {
        self.call(|py| {
            py.check_signals()?;
            callback.map_or(Ok(()), |each| each.call1(py, (tick.rows, tick.files_left)).map(drop))
        })
    }
}

/// The benchmarks' n-grams, hashed.
#[pyclass(frozen)]
struct NgramSet {
    inner: GramSet,
}

#[pymethods]
impl NgramSet {
    /// Of texts with their `(item, field)`, and of n-grams hashed before.
    #[new]
    #[pyo3(signature = (n, texts, hashed, short, trivial, ignore))]
    fn new(
        py: Python<'_>,
        n: usize,
        texts: Vec<(u32, u8, String)>,
        hashed: Vec<PyGram>,
        short: bool,
        trivial: bool,
        ignore: Vec<String>,
    ) -> PyResult<Self> {
        let hashed = hashed.into_iter().map(|(key, check, words, owners)| {
            let bad = |_| Error::config(format!("{key} {check}: not a hashed n-gram"));
            let key = u64::from_str_radix(&key, 16).map_err(bad)?;
            let check = u128::from_str_radix(&check, 16).map_err(bad)?;
            Ok(Gram { key, check, words, owners })
        });
        let hashed = hashed.collect::<hornbook_core::Result<Vec<_>>>().py()?;
        let rule = Rule { n, short, trivial, ignore };
        let inner = py.detach(|| {
            let texts = texts.iter().map(|(item, field, text)| (*item, *field, text.as_str()));
            GramSet::new(&rule, texts, hashed)
        });
        Ok(Self { inner })
    }

    fn __len__(&self) -> usize {
        self.inner.grams().len()
    }

    /// `[(key, check, words, [(item, field)])]`.
    fn grams(&self) -> Vec<PyGram> {
        let one = |gram: &Gram| {
            let (key, check) = (format!("{:016x}", gram.key), format!("{:032x}", gram.check));
            (key, check, gram.words, gram.owners.clone())
        };
        self.inner.grams().iter().map(one).collect()
    }

    /// N-grams of each of the first `count` items.
    fn of_items(&self, count: usize) -> Vec<u32> {
        self.inner.of_items(count)
    }

    /// For each text a dict an item that it shares an n-gram with.
    #[pyo3(signature = (texts, threads))]
    fn scan<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyList>> {
        let texts = slices(&texts);
        let found = py.detach(|| decontaminate::scan_texts(&self.inner, &texts, threads)).py()?;
        let all = PyList::empty(py);
        for hits in found {
            let list = PyList::empty(py);
            for (hit, shown) in hits {
                let dict = PyDict::new(py);
                dict.set_item("item", hit.item)?;
                dict.set_item("field", FIELDS[usize::from(hit.field)])?;
                dict.set_item("ngram", shown.ngram)?;
                dict.set_item("words", shown.words)?;
                dict.set_item("grams", hit.grams)?;
                dict.set_item("line", shown.line)?;
                dict.set_item("context", shown.context)?;
                list.append(dict)?;
            }
            all.append(list)?;
        }
        Ok(all)
    }

    /// Scans files: rows, contaminated, `by_item`, evidence (JSON lines), rejected.
    #[pyo3(signature = (paths, extensions, names, most, threads, tick))]
    #[allow(clippy::too_many_arguments)]
    fn scan_files<'py>(
        &self,
        py: Python<'py>,
        paths: Vec<PathBuf>,
        extensions: Vec<String>,
        names: Vec<String>,
        most: usize,
        threads: Option<usize>,
        tick: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let calls = Calls::new();
        let scan = py.detach(|| {
            let tick = &mut |at| calls.tick(tick.as_ref(), at);
            decontaminate::scan_files(&paths, &extensions, &names, &self.inner, most, threads, tick)
        });
        let scan = calls.finish(scan)?;
        let rejected: Vec<_> = scan
            .rejects
            .into_iter()
            .map(|reject| (reject.path, reject.row, reject.reason))
            .collect();
        let dict = PyDict::new(py);
        dict.set_item("rows", scan.rows)?;
        dict.set_item("contaminated", scan.contaminated)?;
        dict.set_item("by_item", scan.by_item)?;
        dict.set_item("evidence", String::from_utf8_lossy(&scan.evidence))?;
        dict.set_item("rejected", rejected)?;
        Ok(dict)
    }
}

/// Reference functions, prepared for comparison.
#[pyclass(frozen)]
struct SyntaxIndex {
    inner: Index,
}

/// The functions of some texts, prepared for one index.
#[pyclass(frozen)]
struct PreparedFunctions {
    texts: Vec<Functions>,
}

#[pymethods]
impl PreparedFunctions {
    fn __len__(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }
}

/// Text, item, rate, function, line.
type PyMatch = (usize, u32, f64, String, usize);

#[pymethods]
impl SyntaxIndex {
    #[new]
    fn new(
        py: Python<'_>,
        items: Vec<PyItem>,
        reading: PyReading,
        min_nodes: usize,
    ) -> PyResult<Self> {
        let items = items_of(items);
        let inner = py.detach(|| Index::new(&items, reading_of(reading), min_nodes)).py()?;
        Ok(Self { inner })
    }

    /// Symbols of each item's largest reference; 0 if none is used.
    fn nodes(&self) -> Vec<usize> {
        self.inner.nodes.clone()
    }

    /// Parses texts.
    #[pyo3(signature = (texts, threads))]
    fn functions(
        &self,
        py: Python<'_>,
        texts: Vec<PyBackedStr>,
        threads: Option<usize>,
    ) -> PyResult<PreparedFunctions> {
        let texts = slices(&texts);
        let texts = py.detach(|| self.inner.functions_of(&texts, threads)).py()?;
        Ok(PreparedFunctions { texts })
    }

    /// The best match of each text with each item at a rate of `floor` or above.
    #[pyo3(signature = (functions, floor, threads))]
    fn matches(
        &self,
        py: Python<'_>,
        functions: PyRef<'_, PreparedFunctions>,
        floor: f64,
        threads: Option<usize>,
    ) -> PyResult<Vec<PyMatch>> {
        let texts = &functions.texts;
        let found = py.detach(|| self.inner.matches_of(texts, floor, threads)).py()?;
        Ok((found.into_iter().enumerate())
            .flat_map(|(text, found): (usize, Vec<decontaminate::Match>)| {
                let one = move |m: decontaminate::Match| {
                    (text, m.item, m.rate, m.function.0, m.function.1)
                };
                found.into_iter().map(one)
            })
            .collect())
    }
}

fn neighbours<'py>(
    py: Python<'py>,
    list: &[Neighbour],
    value: &str,
) -> PyResult<Bound<'py, PyList>> {
    let all = PyList::empty(py);
    for neighbour in list {
        let dict = PyDict::new(py);
        dict.set_item("id", &neighbour.id)?;
        dict.set_item("row", neighbour.row)?;
        dict.set_item(value, neighbour.value)?;
        if let Some((function, line)) = &neighbour.function {
            dict.set_item("function", function)?;
            dict.set_item("line", line)?;
        }
        dict.set_item("removed", neighbour.removed)?;
        all.append(dict)?;
    }
    Ok(all)
}

/// Judges a corpus; with `out`, writes what is clean and the evidence into it.
///
/// `embed(texts)` gives float32 [texts, items]; `tick(rows, files_left)` is called after each batch.
#[pyfunction]
#[pyo3(signature = (paths, extensions, out, items, grams, syntax, embedding, both, embed, tick, threads))]
#[allow(clippy::too_many_arguments)]
fn decontaminate_corpus<'py>(
    py: Python<'py>,
    paths: Vec<PathBuf>,
    extensions: Vec<String>,
    out: Option<PathBuf>,
    items: Vec<PyItem>,
    grams: PyRef<'_, NgramSet>,
    syntax: Option<PySyntax>,
    embedding: Option<(f64, usize)>,
    both: bool,
    embed: Option<Py<PyAny>>,
    tick: Option<Py<PyAny>>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyDict>> {
    let items = items_of(items);
    let options = Options {
        syntax: syntax.map(|(threshold, reading, min_nodes, sweep, nearest)| Syntax {
            threshold,
            reading: reading_of(reading),
            min_nodes,
            sweep,
            nearest,
        }),
        embedding: embedding.map(|(threshold, nearest)| Embedding { threshold, nearest }),
        combine: if both { Combine::And } else { Combine::Or },
    };
    let calls = Calls::new();
    let inner = &grams.inner;
    let width = items.len();
    let result = py.detach(|| {
        let corpus = Corpus::open(&paths, &extensions)?;
        let mut distances = |texts: &[&str]| {
            calls.call(|py| {
                let embed = embed.as_ref().expect("asked for with an embedding only");
                let found = embed.call1(py, (texts.to_vec(),))?;
                let found: PyReadonlyArray2<'_, f32> = found.extract(py)?;
                if found.shape() != [texts.len(), width] {
                    let message = format!("distances of shape {:?}", found.shape());
                    return Err(Error::config(message)).py();
                }
                found.to_vec().map_err(|_| Error::config("distances must be contiguous")).py()
            })
        };
        let distances: Option<&mut Embed<'_>> = match &embed {
            Some(_) => Some(&mut distances),
            None => None,
        };
        let tick = &mut |at| calls.tick(tick.as_ref(), at);
        let out = out.as_deref();
        decontaminate::run(&corpus, out, &items, inner, &options, threads, distances, tick)
    });
    let summary = calls.finish(result)?;
    let parts = |parts: &[_]| parts.iter().map(|p| part_dict(py, p)).collect::<PyResult<Vec<_>>>();
    let items = PyList::empty(py);
    for item in &summary.items {
        let dict = PyDict::new(py);
        dict.set_item("item", &item.item)?;
        dict.set_item("ngrams", item.ngrams)?;
        dict.set_item("nodes", item.nodes)?;
        dict.set_item("by_ngram", item.by_ngram)?;
        dict.set_item("by_ast", item.by_ast)?;
        dict.set_item("by_embedding", item.by_embedding)?;
        dict.set_item("removed", item.removed)?;
        dict.set_item("nearest", neighbours(py, &item.nearest, "rate")?)?;
        dict.set_item("nearest_embedding", neighbours(py, &item.nearest_embedding, "distance")?)?;
        dict.set_item("similar", item.similar.clone())?;
        items.append(dict)?;
    }
    let sweep = PyList::empty(py);
    for row in &summary.sweep {
        let dict = PyDict::new(py);
        dict.set_item("tau", row.tau)?;
        dict.set_item("similar", row.similar)?;
        dict.set_item("non_similar", row.non_similar)?;
        dict.set_item("documents", row.documents)?;
        sweep.append(dict)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("parts", parts(&summary.parts)?)?;
    dict.set_item("evidence", parts(&summary.evidence)?)?;
    dict.set_item("rows", summary.rows)?;
    dict.set_item("ngram", summary.dropped.ngram)?;
    dict.set_item("ast", summary.dropped.ast)?;
    dict.set_item("embedding", summary.dropped.embedding)?;
    dict.set_item("rejected", summary.rejects.len())?;
    dict.set_item("items", items)?;
    dict.set_item("sweep", sweep)?;
    Ok(dict)
}

/// The match rate of two sources' syntax trees, from 0 to 1.
#[pyfunction]
fn ast_match(py: Python<'_>, a: &str, b: &str, reading: PyReading) -> PyResult<f64> {
    py.detach(|| decontaminate::ast_match(a, b, reading_of(reading))).py()
}

/// A source's symbols, and the name, line, start and end of each function in them.
#[pyfunction]
#[allow(clippy::type_complexity)]
fn syntax_symbols(
    py: Python<'_>,
    source: &str,
    reading: PyReading,
) -> (Vec<u64>, Vec<(String, usize, usize, usize)>) {
    let found = py.detach(|| tree::read(source, reading_of(reading)));
    let functions = found.functions.into_iter();
    let functions = functions.map(|f| (f.name, f.line, f.range.start, f.range.end)).collect();
    (found.symbols, functions)
}

const _: () = {
    crate::fits_python::<NgramSet>();
    crate::fits_python::<SyntaxIndex>();
    crate::fits_python::<PreparedFunctions>();
};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NGRAM_TOKEN_RULE", words::TOKEN_RULE)?;
    module.add_class::<NgramSet>()?;
    module.add_class::<SyntaxIndex>()?;
    module.add_class::<PreparedFunctions>()?;
    module.add_function(wrap_pyfunction!(decontaminate_corpus, module)?)?;
    module.add_function(wrap_pyfunction!(ast_match, module)?)?;
    module.add_function(wrap_pyfunction!(syntax_symbols, module)?)
}
