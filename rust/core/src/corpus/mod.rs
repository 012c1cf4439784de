//! Documents in and out: Parquet, JSON lines (plain, gzip, zstd) and folders of source files in;
//! zstd Parquet parts out.
//!
//! A document is a row with `id` and `text` (both strings) and any other columns, which are carried
//! through. A row that cannot be used is set aside with its reason ([`Reject`]) and never stops a run;
//! a file that cannot be used does. Memory is one batch (at most [`BATCH_ROWS`] rows or about
//! [`BATCH_BYTES`] of text, unless told otherwise) plus one row group while writing, or with
//! [`PartWriter::quick`] one of a few MB for each thread.

mod columns;
mod find;
mod lines;
mod open;
mod parts;
mod read;
mod scanner;
mod schema;
mod sizes;
mod strings;
mod write;

pub(crate) use lines::BOM;
pub(crate) use scanner::raw_row;

pub use open::Corpus;
pub use parts::PartWriter;
pub use read::{Batches, parquet_rows};
pub use write::{
    FileWriter, Part, select, sync_folder, write_rejected, write_rejects, write_whole,
};

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::{Error, Result};

/// Most rows in one batch.
pub const BATCH_ROWS: usize = 1024;
/// Bytes of strings after which a batch is closed.
pub const BATCH_BYTES: usize = 16 << 20;
/// Longest JSON line and largest source file that is read; anything longer is set aside.
pub const MAX_ROW_BYTES: usize = 256 << 20;

/// A row that was set aside, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reject {
    /// The file it stood in.
    #[serde(serialize_with = "as_shown")]
    pub path: PathBuf,
    /// Its row (or line) in that file, from 1.
    pub row: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// A path whose name may be no UTF-8.
fn as_shown<S: serde::Serializer>(
    path: &Path,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The `text` column of a batch made by [`Corpus`].
pub fn texts(batch: &RecordBatch) -> &StringArray {
    strings(batch, "text")
}

/// The `id` column of a batch made by [`Corpus`].
pub fn ids(batch: &RecordBatch) -> &StringArray {
    strings(batch, "id")
}

fn strings<'a>(batch: &'a RecordBatch, name: &str) -> &'a StringArray {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_string_opt::<i32>())
        .expect("batches of a corpus have string columns `id` and `text`")
}

/// A column as strings. Values of other types get the text that Arrow shows of them (`[1, 2]`,
/// `2026-01-31T00:00:00`), bytes that are UTF-8 themselves, and other bytes hexadecimal digits.
pub fn as_text(column: &ArrayRef) -> Result<StringArray> {
    if let Some(text) = column.as_string_opt::<i32>() {
        return Ok(text.clone());
    }
    let formatter = ArrayFormatter::try_new(column, &FormatOptions::default())
        .map_err(|e| Error::config(e.to_string()))?;
    let bytes = |row| match column.data_type() {
        DataType::Binary => Some(column.as_binary::<i32>().value(row)),
        DataType::LargeBinary => Some(column.as_binary::<i64>().value(row)),
        DataType::BinaryView => Some(column.as_binary_view().value(row)),
        _ => None,
    };
    let text = |row| match bytes(row).map(std::str::from_utf8) {
        Some(Ok(text)) => text.to_owned(),
        _ => formatter.value(row).to_string(),
    };
    let nulls = column.logical_nulls();
    let is_null = |row| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
    Ok((0..column.len()).map(|row| (!is_null(row)).then(|| text(row))).collect())
}

/// The id of a document that has none: the hash of its text.
pub fn text_id(text: &str) -> String {
    hash_bytes(text.as_bytes())
}

/// xxh3-128 of bytes, as 32 hexadecimal digits.
pub fn hash_bytes(bytes: &[u8]) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes))
}

/// xxh3-128 of a file's bytes, as 32 hexadecimal digits; memory 128 KiB.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    // Small enough to stay in a near cache between reading and hashing.
    let mut buffer = vec![0; 1 << 17];
    loop {
        let read = file.read(&mut buffer).map_err(Error::io(path))?;
        if read == 0 {
            return Ok(format!("{:032x}", hash.digest128()));
        }
        hash.update(&buffer[..read]);
    }
}
