//! Writing: parts appear under their final name only when they are whole and on disk.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use xxhash_rust::xxh3::Xxh3;

use super::{Corpus, PartWriter, Reject};
use crate::{Error, Result};

/// A finished part.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// File name inside the output folder.
    pub name: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// xxh3-128 of its bytes, as 32 hexadecimal digits.
    pub xxh3: String,
}

/// Most rows of a row group.
pub const ROWS_PER_GROUP: usize = 16 * 1024;

/// A file that has another name until it is whole, and is hashed as it is written. Dropped without
/// [`Unnamed::finish`], it leaves a `.tmp` file.
pub struct Unnamed {
    path: PathBuf,
    file: File,
    hash: Xxh3,
    bytes: u64,
}

impl Unnamed {
    /// What the file is called until then.
    pub fn temporary(path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!("{name}.tmp"))
    }

    /// A file that will be `path`, in a folder that is there.
    pub fn create(path: &Path) -> Result<Self> {
        let temporary = Self::temporary(path);
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        Ok(Self { path: path.to_path_buf(), file, hash: Xxh3::new(), bytes: 0 })
    }

    /// Puts the file under its name, on disk; its entry has the bare name.
    pub fn finish(self, rows: u64) -> Result<Part> {
        let temporary = Self::temporary(&self.path);
        self.file.sync_all().map_err(Error::io(&temporary))?;
        std::fs::rename(&temporary, &self.path).map_err(Error::io(&self.path))?;
        sync_folder(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(Part {
            name: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            rows,
            bytes: self.bytes,
            xxh3: format!("{:032x}", self.hash.digest128()),
        })
    }
}

impl Write for Unnamed {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The error of a Parquet file that cannot be written.
pub fn failed(path: &Path) -> impl FnOnce(ParquetError) -> Error {
    move |e| Error::Io { path: path.to_path_buf(), source: std::io::Error::other(e.to_string()) }
}

/// Writes one Parquet file of any length, under a temporary name until it is whole.
///
/// Memory: one row group, of at most [`GROUP_BYTES`].
pub struct FileWriter {
    path: PathBuf,
    writer: ArrowWriter<Unnamed>,
    rows: u64,
}

/// Bytes after which [`FileWriter`] begins a new row group.
const GROUP_BYTES: usize = 64 << 20;

impl FileWriter {
    /// A writer of the file `path`, in a folder that is there.
    pub fn create(path: &Path, schema: SchemaRef) -> Result<Self> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("a valid level")))
            .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
            .set_max_row_group_bytes(Some(GROUP_BYTES))
            .set_created_by(format!("hornbook {}", env!("CARGO_PKG_VERSION")))
            .build();
        let writer = ArrowWriter::try_new(Unnamed::create(path)?, schema, Some(properties))
            .map_err(failed(path))?;
        Ok(Self { path: path.to_path_buf(), writer, rows: 0 })
    }

    /// Appends a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.writer.write(batch).map_err(failed(&self.path))
    }

    /// Puts the file under its name, on disk; its entry has the bare name.
    pub fn finish(self) -> Result<Part> {
        self.writer.into_inner().map_err(failed(&self.path))?.finish(self.rows)
    }
}

/// Makes renames in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io(folder))?;
    }
    Ok(())
}

/// Writes a whole file under a temporary name, syncs it and renames it; returns what was written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<Part> {
    let mut file = Unnamed::create(path)?;
    file.write_all(bytes).map_err(Error::io(&Unnamed::temporary(path)))?;
    file.finish(0)
}

/// Writes rows that were set aside to `rejected/rows.jsonl`, one JSON object a line; nothing if none.
pub fn write_rejected(folder: &Path, rejects: &[Reject]) -> Result<()> {
    if rejects.is_empty() {
        return Ok(());
    }
    let folder = folder.join("rejected");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    write_rejects(&folder.join("rows.jsonl"), rejects)
}

/// Writes rows that were set aside to a file, one JSON object a line.
pub fn write_rejects(path: &Path, rejects: &[Reject]) -> Result<()> {
    let mut lines = Vec::new();
    for reject in rejects {
        serde_json::to_writer(&mut lines, reject).map_err(|e| Error::config(e.to_string()))?;
        lines.push(b'\n');
    }
    write_whole(path, &lines)?;
    Ok(())
}

/// Copies the rows for which `keep(row)` holds; `row` counts the usable rows of the corpus from 0.
///
/// Every column is carried through. Returns the parts and the rows that were set aside (also written
/// to `rejected/`).
pub fn select(
    corpus: &Corpus,
    out: &Path,
    mut keep: impl FnMut(u64) -> bool,
) -> Result<(Vec<Part>, Vec<Reject>)> {
    let mut writer = PartWriter::create(out, corpus.schema())?;
    let mut batches = corpus.batches();
    let mut rejects = Vec::new();
    let mut row = 0;
    while let Some(batch) = batches.next() {
        let batch = batch?;
        rejects.extend(batches.take_rejects());
        let mask: BooleanArray =
            (row..row + batch.num_rows() as u64).map(|i| Some(keep(i))).collect();
        row += batch.num_rows() as u64;
        let kept = filter_record_batch(&batch, &mask).map_err(|e| Error::config(e.to_string()))?;
        writer.write(&kept)?;
    }
    rejects.extend(batches.take_rejects());
    write_rejected(out, &rejects)?;
    Ok((writer.finish()?, rejects))
}
