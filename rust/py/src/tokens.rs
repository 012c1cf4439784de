//! The tokenizer.

#![allow(clippy::needless_pass_by_value)] // PyO3 hands arguments over by value

use std::borrow::Cow;
use std::path::PathBuf;

use arrow::array::{Array, ArrayRef, AsArray, LargeStringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use hornbook_core::Error;
use hornbook_core::tokenizer::{self, MAX_U16_VOCAB, Special};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyBytes;
use pyo3_arrow::input::AnyArray;

use crate::error::IntoPyResult;

fn special(tokens: bool) -> Special {
    if tokens { Special::Token } else { Special::Text }
}

/// Ids (uint16 or uint32) and offsets.
type Batch<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>);

#[pyclass(frozen)]
pub struct Tokenizer {
    pub inner: tokenizer::Tokenizer,
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
        replace: bool,
    ) -> PyResult<Batch<'py>> {
        let chunks = texts.into_reader()?.collect::<Result<Vec<ArrayRef>, _>>();
        let chunks = py.detach(|| strings(chunks, replace)).py()?;
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

/// Columns of strings, or of bytes that are UTF-8 or with `replace` made so.
fn strings(
    chunks: Result<Vec<ArrayRef>, ArrowError>,
    replace: bool,
) -> hornbook_core::Result<Vec<LargeStringArray>> {
    use DataType::{Binary, BinaryView, Dictionary, LargeBinary, LargeUtf8, Utf8, Utf8View};
    let bad = |message: String| Error::input("texts", message);
    let mut columns: Vec<LargeStringArray> = Vec::new();
    let mut before = 0;
    for chunk in chunks.map_err(|e| bad(e.to_string()))? {
        let kind = match chunk.data_type() {
            Dictionary(_, kind) => kind.as_ref(),
            kind => kind,
        };
        let to = match kind {
            Utf8 | LargeUtf8 | Utf8View => LargeUtf8,
            Binary | LargeBinary | BinaryView => LargeBinary,
            kind => return Err(bad(format!("an Arrow array of {kind}, not of strings"))),
        };
        let column = cast(&chunk, &to).map_err(|e| bad(e.to_string()))?;
        if column.null_count() > 0 {
            return Err(bad("the array holds nulls; drop or fill them".to_owned()));
        }
        columns.push(if to == LargeUtf8 {
            column.as_string::<i64>().clone()
        } else {
            let texts = column.as_binary::<i64>().iter().flatten().enumerate();
            let texts = texts.map(|(i, bytes)| match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Cow::Borrowed(text)),
                Err(_) if replace => Ok(String::from_utf8_lossy(bytes)),
                Err(e) => Err(bad(format!(
                    "text {} is not UTF-8 at byte {}; decode it, or give errors=\"replace\"",
                    before + i,
                    e.valid_up_to()
                ))),
            });
            texts.map(|text| text.map(Some)).collect::<hornbook_core::Result<_>>()?
        });
        before += chunk.len();
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

const _: () = {
    crate::fits_python::<Tokenizer>();
    crate::fits_python::<Trainer>();
};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()?;
    module.add_class::<Trainer>()
}
