//! Token files: writing them, and samples out of them.

use std::path::PathBuf;
use std::sync::Mutex;

use hornbook_core::Error;
use hornbook_core::corpus::{Corpus, Part};
use hornbook_core::pack::{
    self, Count, Fields, Method, Number, Options, PackOptions, PartFiles, SourceFiles, Token,
    Width, Writer,
};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::corpus::part_dict;
use crate::error::IntoPyResult;
use crate::tokens::Tokenizer;

fn width(dtype: &str) -> hornbook_core::Result<Width> {
    match dtype {
        "uint16" => Ok(Width::Two),
        "uint32" => Ok(Width::Four),
        other => Err(Error::config(format!("dtype = {other}: give uint16 or uint32"))),
    }
}

fn pair(count: Count) -> (u64, u64) {
    (count.documents, count.tokens)
}

/// The parts and counts, for the manifest.
fn packed_dict(py: Python<'_>, packed: pack::Packed, rejected: usize) -> PyResult<Py<PyDict>> {
    let parts: PyResult<Vec<_>> =
        packed.parts.iter().map(|part: &Part| part_dict(py, part)).collect();
    let dict = PyDict::new(py);
    dict.set_item("parts", parts?)?;
    dict.set_item("documents", packed.total.documents)?;
    dict.set_item("tokens", packed.total.tokens)?;
    dict.set_item("sources", packed.sources.into_iter().map(pair).collect::<Vec<_>>())?;
    dict.set_item("rejected", rejected)?;
    Ok(dict.unbind())
}

fn poisoned() -> Error {
    Error::config("an earlier call failed; begin again")
}

/// Encodes documents into token files, batch by batch.
#[pyclass(frozen)]
struct DocumentPacker {
    inner: Mutex<Box<pack::Documents>>,
    tokenizer: Py<Tokenizer>,
}

#[pymethods]
impl DocumentPacker {
    #[new]
    #[pyo3(signature = (inputs, extensions, out, tokenizer, *, dtype, part_bytes, threads))]
    #[expect(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        inputs: Vec<PathBuf>,
        extensions: Vec<String>,
        out: PathBuf,
        tokenizer: Py<Tokenizer>,
        dtype: &str,
        part_bytes: u64,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let core = &tokenizer.get().inner;
        let open = || {
            let width = width(dtype)?;
            let corpus = Corpus::open(&inputs, &extensions)?;
            let form = (width, part_bytes);
            pack::Documents::open(&corpus, inputs.len(), &out, core, form, threads)
        };
        let inner = Mutex::new(Box::new(py.detach(open).py()?));
        Ok(Self { inner, tokenizer })
    }

    /// Packs one batch; false when there is none left.
    fn step(&self, py: Python<'_>) -> PyResult<bool> {
        let tokenizer = &self.tokenizer.get().inner;
        let step = || self.inner.lock().map_err(|_| poisoned())?.step(tokenizer);
        py.detach(step).py()
    }

    /// `(documents, tokens, files not yet begun)`.
    #[getter]
    fn progress(&self) -> PyResult<(u64, u64, usize)> {
        let (count, files) = self.inner.lock().map_err(|_| poisoned()).py()?.progress();
        Ok((count.documents, count.tokens, files))
    }

    /// Closes the last part.
    fn finish(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        let finish = || self.inner.lock().map_err(|_| poisoned())?.finish();
        let (packed, rejected) = py.detach(finish).py()?;
        packed_dict(py, packed, rejected)
    }
}

/// Writes documents that are tokens already.
#[pyclass(frozen)]
struct TokenPacker {
    inner: Mutex<Box<Writer>>,
}

#[pymethods]
impl TokenPacker {
    #[new]
    #[pyo3(signature = (out, tokenizer, *, dtype, part_bytes, prompts))]
    fn new(
        py: Python<'_>,
        out: PathBuf,
        tokenizer: &Tokenizer,
        dtype: &str,
        part_bytes: u64,
        prompts: bool,
    ) -> PyResult<Self> {
        let open = || {
            let options = PackOptions {
                width: width(dtype)?,
                part_bytes,
                end_of_text: pack::end_of_text(&tokenizer.inner)?,
                vocab_size: tokenizer.inner.vocab_size() as u32,
                prompts,
                sources: 1,
            };
            Writer::create(&out, options)
        };
        Ok(Self { inner: Mutex::new(Box::new(py.detach(open).py()?)) })
    }

    /// `(documents, tokens)` of parts that an earlier run finished.
    #[getter]
    fn finished(&self) -> PyResult<(u64, u64)> {
        Ok(pair(self.inner.lock().map_err(|_| poisoned()).py()?.finished()))
    }

    /// Documents `ids[offsets[i]..offsets[i + 1]]`, uint16 or uint32.
    fn write(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        offsets: PyReadonlyArray1<'_, i64>,
        prompts: Option<PyReadonlyArray1<'_, u32>>,
    ) -> PyResult<()> {
        let offsets = offsets.as_slice()?;
        let prompts = prompts.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
        if let Ok(ids) = ids.extract::<PyReadonlyArray1<'_, u16>>() {
            let ids = ids.as_slice()?;
            return py.detach(|| self.documents(ids, offsets, prompts)).py();
        }
        let ids = ids.extract::<PyReadonlyArray1<'_, u32>>()?;
        let ids = ids.as_slice()?;
        py.detach(|| self.documents(ids, offsets, prompts)).py()
    }

    /// Closes the last part.
    fn finish(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        let finish = || self.inner.lock().map_err(|_| poisoned())?.finish();
        let packed = py.detach(finish).py()?;
        packed_dict(py, packed, 0)
    }
}

impl TokenPacker {
    fn documents<T: Token>(
        &self,
        ids: &[T],
        offsets: &[i64],
        prompts: Option<&[u32]>,
    ) -> hornbook_core::Result<()> {
        let mut writer = self.inner.lock().map_err(|_| poisoned())?;
        for (number, bounds) in offsets.windows(2).enumerate() {
            let document = usize::try_from(bounds[0])
                .ok()
                .and_then(|start| ids.get(start..usize::try_from(bounds[1]).ok()?))
                .ok_or_else(|| {
                    let [start, end] = [bounds[0], bounds[1]];
                    Error::config(format!("offsets {start} to {end} of {} ids", ids.len()))
                })?;
            let prompt = prompts.and_then(|prompts| prompts.get(number)).copied();
            writer.document(document, prompt.unwrap_or(0), 0)?;
        }
        Ok(())
    }
}

/// `(bin, index, prompts, hashes, xxh3 of the hashes, documents, bytes, dtype)` of one part.
type PartTuple = (PathBuf, PathBuf, Option<PathBuf>, PathBuf, String, u64, u64, String);
/// `(parts, identity, folder of plans, weight)` of one source.
type SourceTuple = (Vec<PartTuple>, String, PathBuf, u64);

fn part(files: PartTuple) -> hornbook_core::Result<PartFiles> {
    let (tokens, index, prompts, hashes, hashes_xxh3, documents, bytes, dtype) = files;
    let width = width(&dtype)?;
    Ok(PartFiles { tokens, index, prompts, hashes, hashes_xxh3, documents, bytes, width })
}

#[pyclass(frozen)]
struct PackedFiles {
    inner: pack::Dataset,
    length: usize,
}

#[pymethods]
impl PackedFiles {
    #[new]
    #[pyo3(signature = (sources, *, length, best_fit, seed, eot_id))]
    fn new(
        py: Python<'_>,
        sources: Vec<SourceTuple>,
        length: u32,
        best_fit: bool,
        seed: u64,
        eot_id: u32,
    ) -> PyResult<Self> {
        let source = |(parts, identity, plans, weight): SourceTuple| {
            let parts: hornbook_core::Result<_> = parts.into_iter().map(part).collect();
            Ok(SourceFiles { parts: parts?, identity, plans, weight })
        };
        let inner = py.detach(|| {
            let sources: hornbook_core::Result<Vec<_>> = sources.into_iter().map(source).collect();
            let method = if best_fit { Method::BestFit } else { Method::Concat };
            let options = Options { length, method, seed, end_of_text: eot_id };
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

    /// For each source: samples of an epoch, and samples among the first `number`.
    fn counts(&self, number: u64) -> Vec<(u64, u64)> {
        self.inner.counts(number)
    }

    /// Writes samples `first..first + count` into flat arrays (int64 or int32, and bool); where
    /// documents begin in them, from 0 to `count * length`.
    #[expect(clippy::too_many_arguments)]
    fn fill<'py>(
        &self,
        py: Python<'py>,
        first: u64,
        count: usize,
        inputs: &Bound<'py, PyAny>,
        labels: Option<&Bound<'py, PyAny>>,
        positions: Option<&Bound<'py, PyAny>>,
        prompts: Option<PyReadwriteArray1<'py, bool>>,
        threads: usize,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let arrays = (inputs, labels, positions, prompts);
        let bounds = if inputs.cast::<PyArray1<i32>>().is_ok() {
            self.write::<i32>(py, first, count, arrays, threads)?
        } else {
            self.write::<i64>(py, first, count, arrays, threads)?
        };
        Ok(bounds.into_pyarray(py))
    }
}

type Arrays<'a, 'py> = (
    &'a Bound<'py, PyAny>,
    Option<&'a Bound<'py, PyAny>>,
    Option<&'a Bound<'py, PyAny>>,
    Option<PyReadwriteArray1<'py, bool>>,
);

impl PackedFiles {
    fn write<N: Number + numpy::Element>(
        &self,
        py: Python<'_>,
        first: u64,
        count: usize,
        (inputs, labels, positions, mut prompts): Arrays<'_, '_>,
        threads: usize,
    ) -> PyResult<Vec<i32>> {
        let mut inputs = inputs.extract::<PyReadwriteArray1<'_, N>>()?;
        let mut labels = labels.map(PyAnyMethods::extract).transpose()?;
        let mut positions = positions.map(PyAnyMethods::extract).transpose()?;
        let labels = labels.as_mut().map(PyReadwriteArray1::<N>::as_slice_mut).transpose()?;
        let positions = positions.as_mut().map(PyReadwriteArray1::<N>::as_slice_mut).transpose()?;
        let prompts = prompts.as_mut().map(PyReadwriteArray1::as_slice_mut).transpose()?;
        let fields = Fields { inputs: inputs.as_slice_mut()?, labels, positions, prompts };
        let whole = count * self.length;
        let sizes = [
            Some(fields.inputs.len()),
            fields.labels.as_ref().map(|labels| labels.len()),
            fields.positions.as_ref().map(|positions| positions.len()),
            fields.prompts.as_ref().map(|prompts| prompts.len()),
        ];
        if sizes.into_iter().flatten().any(|size| size != whole) {
            return Err(Error::config(format!("buffers must hold {whole} entries"))).py();
        }
        py.detach(|| self.inner.fill(first, count, fields, threads)).py()
    }
}

const _: () = {
    crate::fits_python::<DocumentPacker>();
    crate::fits_python::<TokenPacker>();
    crate::fits_python::<PackedFiles>();
};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DocumentPacker>()?;
    module.add_class::<TokenPacker>()?;
    module.add_class::<PackedFiles>()
}
