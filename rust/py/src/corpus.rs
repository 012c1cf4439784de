//! Documents in and out, as columns of Python values.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef};
use hornbook_core::Error;
use hornbook_core::corpus::{self, Batches, Corpus, Part, PartWriter, Reject};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::error::IntoPyResult;

/// A part as a Python dict, for manifests.
pub fn part_dict<'py>(py: Python<'py>, part: &Part) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &part.name)?;
    dict.set_item("rows", part.rows)?;
    dict.set_item("bytes", part.bytes)?;
    dict.set_item("xxh3", &part.xxh3)?;
    Ok(dict)
}

fn column_list(py: Python<'_>, column: &ArrayRef) -> PyResult<Py<PyList>> {
    let list = match column.data_type() {
        DataType::Int64 => PyList::new(py, column.as_primitive::<Int64Type>().iter())?,
        DataType::Float64 => PyList::new(py, column.as_primitive::<Float64Type>().iter())?,
        DataType::Boolean => PyList::new(py, column.as_boolean().iter())?,
        _ => PyList::new(py, corpus::as_text(column).py()?.iter())?,
    };
    Ok(list.unbind())
}

/// Iterates over documents as dicts of columns.
#[pyclass]
pub struct Reader {
    corpus: Corpus,
    // A mutex only because Python may share the object; one thread reads at a time.
    batches: Mutex<Option<Batches>>,
    rejects: Vec<Reject>,
}

impl Reader {
    /// Reads a corpus from its start.
    pub fn over(corpus: Corpus) -> Self {
        Self { batches: Mutex::new(Some(corpus.batches())), corpus, rejects: Vec::new() }
    }
}

#[pymethods]
impl Reader {
    #[new]
    fn new(py: Python<'_>, paths: Vec<PathBuf>, extensions: Vec<String>) -> PyResult<Self> {
        let corpus = py.detach(|| Corpus::open(&paths, &extensions)).py()?;
        Ok(Self::over(corpus))
    }

    /// `[(name, type), ...]`.
    #[getter]
    fn schema(&self) -> Vec<(String, String)> {
        let describe = |field: &Arc<Field>| (field.name().clone(), type_name(field.data_type()));
        self.corpus.schema().fields().iter().map(describe).collect()
    }

    /// `[(path, row, reason), ...]` of the rows set aside so far.
    #[getter]
    fn rejected(&self) -> Vec<(PathBuf, u64, String)> {
        self.rejects.iter().map(|r| (r.path.clone(), r.row, r.reason.clone())).collect()
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyDict>>> {
        let slot = self.batches.get_mut().expect("no thread panicked while reading");
        let Some(batches) = slot else {
            return Ok(None);
        };
        let next = py.detach(|| batches.next());
        self.rejects.extend(batches.take_rejects());
        let Some(batch) = next else {
            *slot = None;
            return Ok(None);
        };
        let batch = batch.py()?;
        let dict = PyDict::new(py);
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            dict.set_item(field.name(), column_list(py, column)?)?;
        }
        Ok(Some(dict.unbind()))
    }
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 => "string".to_owned(),
        DataType::Int64 => "int64".to_owned(),
        DataType::Float64 => "float64".to_owned(),
        DataType::Boolean => "bool".to_owned(),
        other => other.to_string(),
    }
}

fn finished() -> Error {
    Error::config("the writer is already finished")
}

/// Writes columns of Python values as Parquet parts.
#[pyclass]
struct Writer {
    schema: SchemaRef,
    writer: Mutex<Option<Box<PartWriter>>>,
}

#[pymethods]
impl Writer {
    #[new]
    fn new(folder: PathBuf, schema: Vec<(String, String)>) -> PyResult<Self> {
        let fields: hornbook_core::Result<Vec<Field>> = schema
            .into_iter()
            .map(|(name, kind)| {
                let data_type = match kind.as_str() {
                    "string" => DataType::Utf8,
                    "int64" => DataType::Int64,
                    "float64" => DataType::Float64,
                    "bool" => DataType::Boolean,
                    other => {
                        return Err(Error::config(format!(
                            "column `{name}`: type `{other}` is not string, int64, float64 or bool"
                        )));
                    }
                };
                let nullable = name != "id" && name != "text";
                Ok(Field::new(name, data_type, nullable))
            })
            .collect();
        let schema = Arc::new(Schema::new(fields.py()?));
        let writer = Box::new(PartWriter::create(&folder, schema.clone()).py()?);
        Ok(Self { schema, writer: Mutex::new(Some(writer)) })
    }

    /// Appends rows, given as one list for each column of the schema.
    fn write(&mut self, py: Python<'_>, columns: &Bound<'_, PyDict>) -> PyResult<()> {
        let mut arrays: Vec<ArrayRef> = Vec::new();
        for field in self.schema.fields() {
            let Some(values) = columns.get_item(field.name())? else {
                return Err(Error::config(format!("column `{}` is missing", field.name()))).py();
            };
            arrays.push(match field.data_type() {
                DataType::Int64 => {
                    Arc::new(Int64Array::from(values.extract::<Vec<Option<i64>>>()?))
                }
                DataType::Float64 => {
                    Arc::new(Float64Array::from(values.extract::<Vec<Option<f64>>>()?))
                }
                DataType::Boolean => {
                    Arc::new(BooleanArray::from(values.extract::<Vec<Option<bool>>>()?))
                }
                _ => Arc::new(StringArray::from(values.extract::<Vec<Option<String>>>()?)),
            });
        }
        let batch = RecordBatch::try_new(self.schema.clone(), arrays)
            .map_err(|e| Error::config(e.to_string()))
            .py()?;
        let slot = self.writer.get_mut().expect("no thread panicked while writing");
        let writer = slot.as_mut().ok_or_else(finished).py()?;
        py.detach(|| writer.write(&batch)).py()
    }

    /// Closes the last part; returns what was written, for the manifest.
    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let slot = self.writer.get_mut().expect("no thread panicked while writing");
        let writer = slot.take().ok_or_else(finished).py()?;
        let parts = py.detach(|| writer.finish()).py()?;
        parts.iter().map(|part| part_dict(py, part)).collect()
    }
}

/// Rows of a Parquet file.
#[pyfunction]
fn parquet_rows(py: Python<'_>, path: PathBuf) -> PyResult<u64> {
    py.detach(|| corpus::parquet_rows(&path)).py()
}

/// xxh3-128 of a file's bytes, as 32 hexadecimal digits.
#[pyfunction]
fn hash_file(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    py.detach(|| corpus::hash_file(&path)).py()
}

/// xxh3-128 of bytes, as 32 hexadecimal digits.
#[pyfunction]
fn hash_bytes(data: &[u8]) -> String {
    corpus::hash_bytes(data)
}

const _: () = {
    crate::fits_python::<Reader>();
    crate::fits_python::<Writer>();
};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Reader>()?;
    module.add_class::<Writer>()?;
    module.add_function(wrap_pyfunction!(parquet_rows, module)?)?;
    module.add_function(wrap_pyfunction!(hash_file, module)?)?;
    module.add_function(wrap_pyfunction!(hash_bytes, module)?)
}
