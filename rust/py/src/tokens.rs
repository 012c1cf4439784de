//! Tokenizer, packing and the packed data set.

#![allow(clippy::needless_pass_by_value)] // PyO3 hands arguments over by value

use std::path::PathBuf;

use arrow::array::{Array, ArrayRef, AsArray, LargeStringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use hornbook_core::Error;
use hornbook_core::corpus::Corpus;
use hornbook_core::pack::{self, Method, Options, PackOptions, PartFiles, SourceFiles, Width};
use hornbook_core::tokenizer::{self, MAX_U16_VOCAB, Special};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyDict};
use pyo3_arrow::input::AnyArray;

use crate::corpus::part_dict;
use crate::error::IntoPyResult;

fn special(tokens: bool) -> Special {
    if tokens { Special::Token } else { Special::Text }
}

/// Ids (uint16 or uint32) and offsets.
type Batch<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>);

#[pyclass(frozen)]
pub struct Tokenizer {
    inner: tokenizer::Tokenizer,
}

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    fn from_file(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(|| tokenizer::Tokenizer::from_file(&path)).py()?;
        Ok(Self { inner })
    }

    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        let inner = py.detach(|| tokenizer::Tokenizer::from_json(text));
        Ok(Self { inner: inner.map_err(Error::config).py()? })
    }

    #[staticmethod]
    fn gpt2(py: Python<'_>) -> Self {
        Self { inner: py.detach(tokenizer::Tokenizer::gpt2) }
    }

    #[staticmethod]
    fn codegen(py: Python<'_>) -> Self {
        Self { inner: py.detach(tokenizer::Tokenizer::codegen) }
    }

    fn to_json(&self, py: Python<'_>) -> String {
        py.detach(|| self.inner.to_json())
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// The instructions that split text on this machine.
    #[getter]
    fn instructions(&self) -> &'static str {
        self.inner.level().name()
    }

    #[getter]
    fn eot_id(&self) -> Option<u32> {
        self.inner.end_of_text()
    }

    #[getter]
    fn hash(&self, py: Python<'_>) -> String {
        py.detach(|| self.inner.hash())
    }

    /// `(content, id, special)` of each added token.
    #[getter]
    fn added_tokens(&self) -> Vec<(String, u32, bool)> {
        let added = &self.inner.vocabulary().added;
        added.iter().map(|token| (token.content.clone(), token.id, token.special)).collect()
    }

    fn encode<'py>(&self, py: Python<'py>, text: &str, tokens: bool) -> Bound<'py, PyAny> {
        if self.inner.vocab_size() <= MAX_U16_VOCAB {
            let ids = py.detach(|| encode::<u16>(&self.inner, text, special(tokens)));
            ids.into_pyarray(py).into_any()
        } else {
            let ids = py.detach(|| encode::<u32>(&self.inner, text, special(tokens)));
            ids.into_pyarray(py).into_any()
        }
    }

    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
        tokens: bool,
        threads: Option<usize>,
    ) -> PyResult<Batch<'py>> {
        if self.inner.vocab_size() <= MAX_U16_VOCAB {
            self.batch::<u16, _>(py, &texts, tokens, threads)
        } else {
            self.batch::<u32, _>(py, &texts, tokens, threads)
        }
    }

    /// The same for an Arrow array or stream of strings, read in place.
    fn encode_arrow<'py>(
        &self,
        py: Python<'py>,
        texts: AnyArray,
        tokens: bool,
        threads: Option<usize>,
    ) -> PyResult<Batch<'py>> {
        let chunks = texts.into_reader()?.collect::<Result<Vec<ArrayRef>, _>>();
        let chunks = py.detach(|| strings(chunks)).py()?;
        let texts: Vec<&str> =
            chunks.iter().flat_map(|chunk| (0..chunk.len()).map(|i| chunk.value(i))).collect();
        if self.inner.vocab_size() <= MAX_U16_VOCAB {
            self.batch::<u16, _>(py, &texts, tokens, threads)
        } else {
            self.batch::<u32, _>(py, &texts, tokens, threads)
        }
    }

    fn count(&self, py: Python<'_>, text: &str, tokens: bool) -> usize {
        py.detach(|| encode::<u32>(&self.inner, text, special(tokens)).len())
    }

    fn decode<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, u32>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let ids = ids.as_slice()?.to_vec();
        Ok(PyBytes::new(py, &py.detach(|| self.inner.decode(&ids))))
    }
}

fn encode<T: tokenizer::Id>(
    tokenizer: &tokenizer::Tokenizer,
    text: &str,
    special: Special,
) -> Vec<T> {
    let mut ids = Vec::new();
    tokenizer.encode(text, special, &mut ids);
    ids
}

fn strings(
    chunks: Result<Vec<ArrayRef>, ArrowError>,
) -> hornbook_core::Result<Vec<LargeStringArray>> {
    let bad = |message: String| Error::input("texts", message);
    let mut columns = Vec::new();
    for chunk in chunks.map_err(|e| bad(e.to_string()))? {
        let column = cast(&chunk, &DataType::LargeUtf8)
            .map_err(|_| bad(format!("an Arrow array of {}, not of strings", chunk.data_type())))?;
        if column.null_count() > 0 {
            return Err(bad("the array holds nulls; drop or fill them".to_owned()));
        }
        columns.push(column.as_string::<i64>().clone());
    }
    Ok(columns)
}

impl Tokenizer {
    fn batch<'py, T: tokenizer::Id + numpy::Element, S: AsRef<str> + Sync>(
        &self,
        py: Python<'py>,
        texts: &[S],
        tokens: bool,
        threads: Option<usize>,
    ) -> PyResult<Batch<'py>> {
        let encode = || self.inner.encode_batch::<T, _>(texts, special(tokens), threads);
        let (ids, ends) = py.detach(encode).py()?;
        let mut offsets = vec![0];
        offsets.extend(ends);
        Ok((ids.into_pyarray(py).into_any(), offsets.into_pyarray(py)))
    }
}

/// Counts words, then learns a tokenizer.
#[pyclass]
struct Trainer {
    inner: tokenizer::Trainer,
}

#[pymethods]
impl Trainer {
    #[new]
    fn new() -> Self {
        Self { inner: tokenizer::Trainer::default() }
    }

    fn feed(&mut self, py: Python<'_>, texts: Vec<PyBackedStr>) -> PyResult<()> {
        let inner = &mut self.inner;
        py.detach(|| inner.feed(&texts)).py()
    }

    fn finish(
        &mut self,
        py: Python<'_>,
        vocab_size: usize,
        special_tokens: Vec<String>,
    ) -> PyResult<Tokenizer> {
        let trainer = std::mem::take(&mut self.inner);
        let inner = py.detach(|| {
            let vocabulary = trainer.finish(vocab_size, &special_tokens)?;
            tokenizer::Tokenizer::new(vocabulary).map_err(Error::config)
        });
        Ok(Tokenizer { inner: inner.py()? })
    }
}

fn width(dtype: &str) -> hornbook_core::Result<Width> {
    match dtype {
        "uint16" => Ok(Width::Two),
        "uint32" => Ok(Width::Four),
        other => Err(Error::config(format!("dtype = {other}: give uint16 or uint32"))),
    }
}

/// Encodes documents into token files; the parts and counts for the manifest.
#[pyfunction]
#[pyo3(signature = (inputs, extensions, out, tokenizer, *, dtype, part_bytes, threads))]
#[expect(clippy::too_many_arguments)]
fn pack_documents<'py>(
    py: Python<'py>,
    inputs: Vec<PathBuf>,
    extensions: Vec<String>,
    out: PathBuf,
    tokenizer: &Tokenizer,
    dtype: &str,
    part_bytes: u64,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyDict>> {
    let packed = py.detach(|| {
        let options = PackOptions { width: width(dtype)?, part_bytes, threads };
        let corpus = Corpus::open(&inputs, &extensions)?;
        pack::pack(&corpus, &out, &tokenizer.inner, options)
    });
    let packed = packed.py()?;
    let parts: PyResult<Vec<_>> = packed.parts.iter().map(|part| part_dict(py, part)).collect();
    let dict = PyDict::new(py);
    dict.set_item("parts", parts?)?;
    dict.set_item("documents", packed.documents)?;
    dict.set_item("tokens", packed.tokens)?;
    dict.set_item("rejected", packed.rejects.len())?;
    Ok(dict)
}

/// `(bin, index, prompts, documents, bytes, dtype)` of one part.
type PartTuple = (PathBuf, PathBuf, Option<PathBuf>, u64, u64, String);

#[pyclass(frozen)]
struct PackedFiles {
    inner: pack::Dataset,
    length: usize,
}

#[pymethods]
impl PackedFiles {
    #[new]
    #[pyo3(signature = (sources, *, length, best_fit, seed, eot_id, vocab_size))]
    fn new(
        py: Python<'_>,
        sources: Vec<(Vec<PartTuple>, u64)>,
        length: u32,
        best_fit: bool,
        seed: u64,
        eot_id: u32,
        vocab_size: u32,
    ) -> PyResult<Self> {
        let part = |(tokens, index, prompts, documents, bytes, dtype): PartTuple| {
            Ok((PartFiles { tokens, index, prompts, documents, bytes }, width(&dtype)?))
        };
        let source = |(parts, weight): (Vec<PartTuple>, u64)| {
            let parts: hornbook_core::Result<_> = parts.into_iter().map(part).collect();
            Ok(SourceFiles { parts: parts?, weight })
        };
        let inner = py.detach(|| {
            let sources: hornbook_core::Result<Vec<_>> = sources.into_iter().map(source).collect();
            let method = if best_fit { Method::BestFit } else { Method::Concat };
            let options = Options { length, method, seed, end_of_text: eot_id, vocab_size };
            pack::Dataset::open(&sources?, options)
        });
        Ok(Self { inner: inner.py()?, length: length as usize })
    }

    #[getter]
    fn samples_per_epoch(&self) -> u64 {
        self.inner.samples_per_epoch()
    }

    #[getter]
    fn tokens(&self) -> u64 {
        self.inner.tokens()
    }

    /// `(input_ids, labels, prompt_mask, cu_seqlens)` of samples `first..first + count`.
    fn batch<'py>(&self, py: Python<'py>, first: u64, count: usize) -> PyResult<Samples<'py>> {
        let batch = py.detach(|| self.inner.batch(first, count)).py()?;
        let shape = [count, self.length];
        Ok((
            batch.inputs.into_pyarray(py).reshape(shape)?,
            batch.labels.into_pyarray(py).reshape(shape)?,
            batch.prompts.into_pyarray(py).reshape(shape)?,
            batch.bounds.into_iter().map(|bounds| bounds.into_pyarray(py)).collect(),
        ))
    }
}

type Samples<'py> = (
    Bound<'py, PyArray2<i64>>,
    Bound<'py, PyArray2<i64>>,
    Bound<'py, PyArray2<bool>>,
    Vec<Bound<'py, PyArray1<i32>>>,
);

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()?;
    module.add_class::<Trainer>()?;
    module.add_class::<PackedFiles>()?;
    module.add_function(wrap_pyfunction!(pack_documents, module)?)
}
