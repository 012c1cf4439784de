//! Opening: which documents there are, under one schema. [`Batches`] reads them.

use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;

use super::find::{Format, InputFile, find};
use super::read::{Batches, changed, parquet_reader};
use super::schema::unified_schema;
use crate::{Error, Result};

/// Documents on disk, with one schema over every input.
#[derive(Debug, Clone)]
pub struct Corpus {
    files: Vec<InputFile>,
    schema: SchemaRef,
}

/// Bytes of lines by which [`Corpus::open_quickly`] judges a file.
const SAMPLE_BYTES: usize = 4 << 20;

impl Corpus {
    /// Opens files and folders as one corpus.
    ///
    /// A folder of source files is those with one of `extensions` (without the dot); any other is its
    /// Parquet and JSON-lines files. Both are found recursively, hidden folders left out. Order:
    /// inputs as given, files in a folder by path. Fails when an input is missing, holds no such
    /// file, or holds tables on top beside source files, and when one column has two types that do
    /// not fit together.
    pub fn open(inputs: &[PathBuf], extensions: &[String]) -> Result<Self> {
        let mut files = find(inputs, extensions)?;
        let schema = unified_schema(&mut files, usize::MAX)?;
        Ok(Self { files, schema })
    }

    /// As [`Corpus::open`], by the first lines of each file alone. Reading ends with
    /// [`Error::Unsettled`] where a later line does not fit; then take [`Corpus::settled`].
    pub fn open_quickly(inputs: &[PathBuf], extensions: &[String]) -> Result<Self> {
        Self::open_by(inputs, extensions, SAMPLE_BYTES)
    }

    pub(super) fn open_by(inputs: &[PathBuf], extensions: &[String], bytes: usize) -> Result<Self> {
        let mut files = find(inputs, extensions)?;
        match unified_schema(&mut files, bytes) {
            Ok(schema) => Ok(Self { files, schema }),
            // More lines could make the error another one, or none.
            Err(_) => Self::open(inputs, extensions),
        }
    }

    /// The same documents by every line's columns.
    pub fn settled(&self) -> Result<Self> {
        let mut files = self.files.clone();
        let schema = unified_schema(&mut files, usize::MAX)?;
        Ok(Self { files, schema })
    }

    /// The error of an input whose rows are not those of the pass before.
    pub fn changed(&self) -> Error {
        changed(self.files.first().map_or(Path::new(""), |file| &file.path))
    }

    /// Bytes of all text, roughly.
    pub fn bytes(&self) -> Result<u64> {
        self.files.iter().map(InputFile::text_bytes).sum()
    }

    /// Whether reading a second time costs less than keeping what was read: nothing is compressed as a
    /// whole, and there are not many small files.
    pub fn cheap_to_read_again(&self) -> bool {
        self.files.iter().all(|file| matches!(file.format, Format::Jsonl | Format::Parquet))
    }

    /// The files that [`Corpus::open`] would read, without looking into them.
    pub fn list(inputs: &[PathBuf], extensions: &[String]) -> Result<Vec<PathBuf>> {
        Ok(find(inputs, extensions)?.into_iter().map(|file| file.path).collect())
    }

    /// The schema of every batch: `id`, `text`, then the other columns in order of first appearance.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The files, in reading order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The same documents in the same order as several corpora of about `bytes` of text each.
    ///
    /// Cuts between files, and between the row groups of a Parquet file. Depends on the files' contents
    /// and `bytes` alone; sizes of compressed lines are guessed at four times the file.
    pub fn split(&self, bytes: u64) -> Result<Vec<Self>> {
        let mut units: Vec<Vec<InputFile>> = Vec::new();
        let mut size = 0;
        let mut add = |file: InputFile, more: u64| {
            let full = size > 0 && size + more > bytes;
            match units.last_mut() {
                Some(unit) if !full => {
                    match unit.last_mut() {
                        // The next row groups of the same file.
                        Some(last) if file.path == last.path && file.groups.is_some() => {
                            let start = last.groups.as_ref().map_or(0, |groups| groups.start);
                            last.groups = file.groups.map(|groups| start..groups.end);
                        }
                        _ => unit.push(file),
                    }
                    size += more;
                }
                _ => {
                    units.push(vec![file]);
                    size = more;
                }
            }
        };
        for file in &self.files {
            if file.format == Format::Parquet {
                let reader = parquet_reader(&file.path)?;
                let groups = reader.metadata().row_groups();
                if groups.is_empty() {
                    add(file.clone(), 0);
                }
                for (at, group) in groups.iter().enumerate() {
                    let one = InputFile { groups: Some(at..at + 1), ..file.clone() };
                    add(one, group.total_byte_size().max(0) as u64);
                }
            } else {
                add(file.clone(), file.text_bytes()?);
            }
        }
        let corpus = |files| Self { files, ..self.clone() };
        Ok(units.into_iter().map(corpus).collect())
    }

    /// Reads everything from the start.
    pub fn batches(&self) -> Batches {
        Batches::new(self.schema.clone(), &self.files)
    }
}
