//! Writing: parts appear under their final name only when they are whole and on disk.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::array::{ArrayRef, AsArray, BooleanArray, OffsetSizeTrait, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::{Corpus, Reject};
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

/// Uncompressed bytes after which a part is closed and the next one begun.
const PART_BYTES: usize = 256 << 20;
const ROWS_PER_GROUP: usize = 16 * 1024;

struct Hashing {
    file: File,
    hash: Xxh3,
    bytes: u64,
}

impl Write for Hashing {
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

/// Writes `part-00000.parquet`, `part-00001.parquet`, ... into a folder.
///
/// The same batches give the same bytes, and with [`PartWriter::quick`] the same rows do. Each part is written under a temporary name, synced and renamed;
/// a writer that is dropped without [`PartWriter::finish`] leaves at most one `.tmp` file.
pub struct PartWriter {
    folder: PathBuf,
    schema: SchemaRef,
    writer: Option<Open>,
    rows: u64,
    bytes: usize,
    parts: Vec<Part>,
    /// Row groups that are compressed at once, quickly; none: in turn, and well.
    together: Option<usize>,
    /// Where they are compressed together: rows that are not yet a whole chunk.
    chunk: Chunk,
}

/// Rows that are encoded as one batch. Where one ends depends on the rows alone, so that the file does
/// not depend on the batches that they came in.
#[derive(Default)]
struct Chunk {
    slices: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

/// Of a chunk, at most; a row that exceeds it is the chunk's last.
const CHUNK_ROWS: usize = 256;
const CHUNK_BYTES: usize = 4 << 20;

/// A part that is being written.
enum Open {
    InTurn(ArrowWriter<Hashing>),
    /// Row groups that stand on their own until so many are full as are compressed at once.
    Together {
        most: usize,
        file: SerializedFileWriter<Hashing>,
        factory: ArrowRowGroupWriterFactory,
        /// Row groups in the file.
        written: usize,
        full: Vec<Vec<RecordBatch>>,
        open: Vec<RecordBatch>,
        /// Of the open one.
        rows: usize,
        bytes: usize,
    },
}

impl Open {
    fn write(&mut self, batch: &RecordBatch, more: usize) -> Result<(), ParquetError> {
        match self {
            Self::InTurn(writer) => writer.write(batch)?,
            Self::Together { .. } if batch.num_rows() == 0 => {}
            Self::Together { most, full, open, rows, bytes, .. } => {
                open.push(batch.clone());
                *rows += batch.num_rows();
                *bytes += more;
                if *rows >= ROWS_PER_GROUP || *bytes >= TOGETHER_BYTES {
                    full.push(std::mem::take(open));
                    (*rows, *bytes) = (0, 0);
                }
                if full.len() >= *most {
                    self.write_full()?;
                }
            }
        }
        Ok(())
    }

    /// Encodes the full row groups at once and appends them in order.
    fn write_full(&mut self) -> Result<(), ParquetError> {
        let Self::Together { file, factory, written, full, .. } = self else {
            return Ok(());
        };
        let encode = |(i, batches): (usize, Vec<RecordBatch>)| {
            let mut columns = factory.create_column_writers(*written + i)?;
            for batch in batches {
                let mut next = columns.iter_mut();
                for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                    for leaf in compute_leaves(field, column)? {
                        next.next().expect("a writer for each leaf").write(&leaf)?;
                    }
                }
            }
            columns.into_iter().map(ArrowColumnWriter::close).collect()
        };
        let groups: Vec<Result<Vec<ArrowColumnChunk>, ParquetError>> =
            std::mem::take(full).into_par_iter().enumerate().map(encode).collect();
        for group in groups {
            let mut out = file.next_row_group()?;
            for chunk in group? {
                chunk.append_to_row_group(&mut out)?;
            }
            out.close()?;
            *written += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Hashing, ParquetError> {
        if let Self::Together { full, open, .. } = &mut self
            && !open.is_empty()
        {
            full.push(std::mem::take(open));
        }
        self.write_full()?;
        match self {
            Self::InTurn(writer) => writer.into_inner(),
            Self::Together { file, .. } => file.into_inner(),
        }
    }
}

/// Bytes of a batch's values, however much room they stand in.
fn bytes_of(batch: &RecordBatch) -> usize {
    (0..batch.num_rows()).map(|row| row_bytes(batch.columns(), row)).sum()
}

/// Bytes of a row's values.
fn row_bytes(columns: &[ArrayRef], row: usize) -> usize {
    columns.iter().map(|column| value_bytes(column, row)).sum()
}

/// Bytes of a value; a guess for rare types without offsets.
fn value_bytes(column: &ArrayRef, row: usize) -> usize {
    let all = |values: &ArrayRef, rows: Range<usize>| -> usize {
        match values.data_type().primitive_width() {
            Some(width) => width * rows.len(),
            None => rows.map(|row| value_bytes(values, row)).sum(),
        }
    };
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value_length(row) as usize,
        DataType::LargeUtf8 => column.as_string::<i64>().value_length(row) as usize,
        // The low half of a view is a length.
        DataType::Utf8View => column.as_string_view().views()[row] as u32 as usize,
        DataType::BinaryView => column.as_binary_view().views()[row] as u32 as usize,
        DataType::Binary => column.as_binary::<i32>().value_length(row) as usize,
        DataType::LargeBinary => column.as_binary::<i64>().value_length(row) as usize,
        DataType::FixedSizeBinary(width) => *width as usize,
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            all(list.values(), span(list.value_offsets(), row))
        }
        DataType::LargeList(_) => {
            let list = column.as_list::<i64>();
            all(list.values(), span(list.value_offsets(), row))
        }
        DataType::FixedSizeList(_, length) => {
            let list = column.as_fixed_size_list();
            let start = list.value_offset(row) as usize;
            all(list.values(), start..start + *length as usize)
        }
        DataType::Map(..) => {
            let map = column.as_map();
            let rows = span(map.value_offsets(), row);
            map.entries().columns().iter().map(|values| all(values, rows.clone())).sum()
        }
        DataType::Struct(_) => row_bytes(column.as_struct().columns(), row),
        kind => kind.primitive_width().unwrap_or(16),
    }
}

/// Where the items of a list's row are.
fn span<O: OffsetSizeTrait>(offsets: &[O], row: usize) -> Range<usize> {
    offsets[row].as_usize()..offsets[row + 1].as_usize()
}

/// Bytes of batches in a row group where several are encoded at once.
const TOGETHER_BYTES: usize = 4 << 20;

impl PartWriter {
    /// A writer into `folder`, which is made if need be.
    pub fn create(folder: &Path, schema: SchemaRef) -> Result<Self> {
        Self::resume(folder, schema, Vec::new())
    }

    /// A writer that goes on after `parts`, which stand in `folder` already.
    pub fn resume(folder: &Path, schema: SchemaRef, parts: Vec<Part>) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            schema,
            writer: None,
            rows: 0,
            bytes: 0,
            parts,
            together: None,
            chunk: Chunk::default(),
        })
    }

    /// The parts that are finished so far.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The same with quick compression, and as many row groups at once as there are threads in the
    /// current rayon pool, or one where memory is short. The file is the same for any number.
    #[must_use]
    pub fn quick(self, short_of_memory: bool) -> Self {
        let most = if short_of_memory { 1 } else { rayon::current_num_threads() };
        Self { together: Some(most), ..self }
    }

    fn name(&self) -> String {
        format!("part-{:05}.parquet", self.parts.len())
    }

    fn failed(&self) -> impl FnOnce(ParquetError) -> Error + use<> {
        let path = self.folder.join(self.name());
        move |e| Error::Io { path, source: std::io::Error::other(e.to_string()) }
    }

    /// Appends a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if self.together.is_none() {
            return self.append(batch, bytes_of(batch));
        }
        let mut start = 0;
        for row in 0..batch.num_rows() {
            self.chunk.rows += 1;
            self.chunk.bytes += row_bytes(batch.columns(), row);
            if self.chunk.rows >= CHUNK_ROWS || self.chunk.bytes >= CHUNK_BYTES {
                self.chunk.slices.push(batch.slice(start, row + 1 - start));
                start = row + 1;
                self.close_chunk()?;
            }
        }
        if start < batch.num_rows() {
            self.chunk.slices.push(batch.slice(start, batch.num_rows() - start));
        }
        Ok(())
    }

    fn close_chunk(&mut self) -> Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        match chunk.slices.as_slice() {
            [] => Ok(()),
            [one] => self.append(one, chunk.bytes),
            many => {
                let one = concat_batches(&self.schema, many);
                self.append(&one.map_err(|e| Error::config(e.to_string()))?, chunk.bytes)
            }
        }
    }

    /// Appends those rows of a batch of which `stays` holds.
    pub fn write_where(
        &mut self,
        batch: &RecordBatch,
        stays: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let bytes = |row| row_bytes(batch.columns(), row);
        let rows = 0..batch.num_rows();
        let kept: usize = rows.clone().filter(|row| stays(*row)).map(bytes).sum();
        if 2 * kept < rows.clone().map(bytes).sum() {
            // Slices would keep all of the batch in memory until their chunk is whole.
            let mask: BooleanArray = rows.map(|row| Some(stays(row))).collect();
            let kept = filter_record_batch(batch, &mask);
            return self.write(&kept.map_err(|e| Error::config(e.to_string()))?);
        }
        let mut row = 0;
        while row < rows.end {
            let end = (row..rows.end).find(|row| !stays(*row)).unwrap_or(rows.end);
            if end > row {
                self.write(&batch.slice(row, end - row))?;
            }
            row = end + 1;
        }
        Ok(())
    }

    fn append(&mut self, batch: &RecordBatch, bytes: usize) -> Result<()> {
        if self.writer.is_none() {
            let path = self.folder.join(format!("{}.tmp", self.name()));
            let file = File::create(&path).map_err(Error::io(&path))?;
            let sink = Hashing { file, hash: Xxh3::new(), bytes: 0 };
            // Level 1 is nearly twice as fast as 3, for a tenth more bytes.
            let level = if self.together.is_some() { 1 } else { 3 };
            let mut properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(
                    ZstdLevel::try_new(level).expect("a valid level"),
                ))
                .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
                .set_created_by(format!("hornbook {}", env!("CARGO_PKG_VERSION")));
            if self.together.is_some() {
                // Texts and ids hardly repeat: a dictionary is made for nothing.
                properties = properties
                    .set_column_dictionary_enabled("text".into(), false)
                    .set_column_dictionary_enabled("id".into(), false)
                    .set_column_statistics_enabled("text".into(), EnabledStatistics::None)
                    // A chunk is looked at as a whole, whether nulls are marked in it or not: pages end
                    // at the same rows then.
                    .set_write_batch_size(CHUNK_ROWS);
            }
            let properties = properties.build();
            let writer = ArrowWriter::try_new(sink, self.schema.clone(), Some(properties))
                .map_err(self.failed())?;
            self.writer = Some(if let Some(most) = self.together {
                let (file, factory) = writer.into_serialized_writer().map_err(self.failed())?;
                let (full, open) = (Vec::new(), Vec::new());
                Open::Together { most, file, factory, written: 0, full, open, rows: 0, bytes: 0 }
            } else {
                Open::InTurn(writer)
            });
        }
        let failed = self.failed();
        let writer = self.writer.as_mut().expect("just opened");
        writer.write(batch, bytes).map_err(failed)?;
        self.rows += batch.num_rows() as u64;
        self.bytes += bytes;
        if self.bytes >= PART_BYTES {
            self.close_part()?;
        }
        Ok(())
    }

    fn close_part(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let name = self.name();
        let sink = writer.finish().map_err(self.failed())?;
        let temporary = self.folder.join(format!("{name}.tmp"));
        sink.file.sync_all().map_err(Error::io(&temporary))?;
        let path = self.folder.join(&name);
        std::fs::rename(&temporary, &path).map_err(Error::io(&path))?;
        sync_folder(&self.folder)?;
        self.parts.push(Part {
            name,
            rows: self.rows,
            bytes: sink.bytes,
            xxh3: format!("{:032x}", sink.hash.digest128()),
        });
        self.rows = 0;
        self.bytes = 0;
        Ok(())
    }

    /// Closes the last part and returns them all. Without a row, one empty part is written, so that
    /// the output still says its schema.
    pub fn finish(mut self) -> Result<Vec<Part>> {
        self.close_chunk()?;
        if self.parts.is_empty() && self.writer.is_none() {
            self.append(&RecordBatch::new_empty(self.schema.clone()), 0)?;
        }
        self.close_part()?;
        Ok(self.parts)
    }
}

impl PartWriter {
    /// Takes back what was written, finished parts included, also those it was given to go on after.
    pub fn discard(self) {
        let open = format!("{}.tmp", self.name());
        drop(self.writer);
        for name in self.parts.into_iter().map(|part| part.name).chain([open]) {
            // Whoever discards has an error of its own to tell; no manifest names what stays here.
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }
}

/// Writes one Parquet file of any length, under a temporary name until it is whole.
///
/// Memory: one row group, of at most [`GROUP_BYTES`]. Dropped without [`FileWriter::finish`], it leaves
/// a `.tmp` file.
pub struct FileWriter {
    path: PathBuf,
    writer: ArrowWriter<Hashing>,
    rows: u64,
}

/// Bytes after which [`FileWriter`] begins a new row group.
const GROUP_BYTES: usize = 64 << 20;

impl FileWriter {
    /// A writer of the file `path`, in a folder that is there.
    pub fn create(path: &Path, schema: SchemaRef) -> Result<Self> {
        let temporary = Self::temporary(path);
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        let sink = Hashing { file, hash: Xxh3::new(), bytes: 0 };
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("a valid level")))
            .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
            .set_max_row_group_bytes(Some(GROUP_BYTES))
            .set_created_by(format!("hornbook {}", env!("CARGO_PKG_VERSION")))
            .build();
        let writer = ArrowWriter::try_new(sink, schema, Some(properties))
            .map_err(|e| Self::failed(path, &e))?;
        Ok(Self { path: path.to_path_buf(), writer, rows: 0 })
    }

    fn temporary(path: &Path) -> PathBuf {
        path.with_file_name(format!(
            "{}.tmp",
            path.file_name().unwrap_or_default().to_string_lossy()
        ))
    }

    fn failed(path: &Path, e: &parquet::errors::ParquetError) -> Error {
        Error::Io { path: path.to_path_buf(), source: std::io::Error::other(e.to_string()) }
    }

    /// Appends a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.writer.write(batch).map_err(|e| Self::failed(&self.path, &e))
    }

    /// Puts the file under its name, on disk; its entry has the bare name.
    pub fn finish(self) -> Result<Part> {
        let temporary = Self::temporary(&self.path);
        let sink = self.writer.into_inner().map_err(|e| Self::failed(&self.path, &e))?;
        sink.file.sync_all().map_err(Error::io(&temporary))?;
        std::fs::rename(&temporary, &self.path).map_err(Error::io(&self.path))?;
        sync_folder(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(Part {
            name: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            rows: self.rows,
            bytes: sink.bytes,
            xxh3: format!("{:032x}", sink.hash.digest128()),
        })
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
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temporary = path.with_file_name(format!("{name}.tmp"));
    let mut file = File::create(&temporary).map_err(Error::io(&temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io(&temporary))?;
    std::fs::rename(&temporary, path).map_err(Error::io(path))?;
    Ok(Part { name, rows: 0, bytes: bytes.len() as u64, xxh3: super::hash_bytes(bytes) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;
    use arrow::datatypes::{Field, Schema};
    use std::sync::Arc;

    /// Rows stay in order, and neither the threads nor the batches change a byte.
    #[test]
    fn threads_and_batches_do_not_change_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let field = |name| Field::new(name, DataType::Utf8, name == "note");
        let schema = Arc::new(Schema::new(vec![field("id"), field("text"), field("note")]));
        // Of 40,000 rows; every 5,000th is longer than a chunk may be.
        let ids = (0..40_000).map(|row| Some(format!("{row}"))).collect::<StringArray>();
        let text = |row: usize| {
            format!("text {row} ").repeat(if row % 5000 == 77 { 400_000 } else { row % 80 })
        };
        let texts = (0..40_000).map(|row| Some(text(row))).collect::<StringArray>();
        // Long strings that do not repeat, with nulls in some chunks alone.
        let note = |row: usize| {
            (row % 1100 != 5).then(|| format!("{:08x}", row * 40_503).repeat(row % 30))
        };
        let notes = (0..40_000).map(note).collect::<StringArray>();
        let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(texts), Arc::new(notes)];
        let all = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let write = |name: &str, how: fn(PartWriter) -> PartWriter, threads: usize, rows: usize| {
            let out = folder.path().join(name);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let parts = pool.install(|| {
                let mut writer = how(PartWriter::create(&out, schema.clone())?);
                for start in (0..40_000).step_by(rows) {
                    writer.write(&all.slice(start, rows.min(40_000 - start)))?;
                }
                writer.finish()
            });
            let corpus = Corpus::open(&[out], &[]).unwrap();
            let ids = corpus.batches().flat_map(|batch| {
                let batch = batch.unwrap();
                super::super::ids(&batch).iter().flatten().map(str::to_owned).collect::<Vec<_>>()
            });
            assert!(ids.eq((0..40_000).map(|row| row.to_string())), "{name}");
            parts.unwrap()
        };
        write("small", |writer| writer, 2, 1000);
        let alone = write("alone", |writer| writer.quick(false), 1, 256);
        assert_eq!(alone, write("three", |writer| writer.quick(false), 3, 40_000));
        assert_eq!(alone, write("lean", |writer| writer.quick(true), 3, 1000));
        assert_eq!(alone, write("single", |writer| writer.quick(true), 1, 1));
        assert_eq!(alone.iter().map(|part| part.rows).sum::<u64>(), 40_000);
    }

    fn texts(schema: &SchemaRef, texts: &[&str]) -> RecordBatch {
        let ids: ArrayRef = Arc::new(StringArray::from(vec!["1"; texts.len()]));
        let texts: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        RecordBatch::try_new(schema.clone(), vec![ids, texts]).unwrap()
    }

    fn id_and_text() -> SchemaRef {
        let field = |name| Field::new(name, DataType::Utf8, false);
        Arc::new(Schema::new(vec![field("id"), field("text")]))
    }

    #[test]
    fn what_goes_is_not_kept_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let schema = id_and_text();
        let long = "x".repeat(1 << 20);
        let mut writer =
            PartWriter::create(&folder.path().join("o"), schema.clone()).unwrap().quick(true);
        for _ in 0..5 {
            let batch = texts(&schema, &[long.as_str(), "short", long.as_str()]);
            writer.write_where(&batch, |row| row == 1).unwrap();
        }
        let held: usize = writer.chunk.slices.iter().map(RecordBatch::get_array_memory_size).sum();
        assert_eq!(writer.chunk.rows, 5);
        assert!(held < 1 << 20, "{held}");
        assert_eq!(writer.finish().unwrap()[0].rows, 5);
    }

    #[test]
    fn discarded_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let schema = id_and_text();
        let batch = texts(&schema, &["a"; 1000]);
        let mut writer = PartWriter::create(folder.path(), schema.clone()).unwrap().quick(true);
        for _ in 0..2 {
            writer.write(&batch).unwrap();
            writer.close_part().unwrap();
        }
        writer.write(&batch).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        writer.discard();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn nested_values_count() {
        use arrow::array::{BinaryArray, ListArray, StructArray};
        use arrow::buffer::OffsetBuffer;
        let role: ArrayRef = Arc::new(StringArray::from(vec!["user", "ai", "user"]));
        let said: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"hello", b"", b"!"]));
        let fields = [("role", role), ("said", said)].map(|(name, values)| {
            (Arc::new(Field::new(name, values.data_type().clone(), false)), values)
        });
        let turn: ArrayRef = Arc::new(StructArray::from(fields.to_vec()));
        let item = Arc::new(Field::new("item", turn.data_type().clone(), false));
        let offsets = OffsetBuffer::from_lengths([2, 0, 1]);
        let talks: ArrayRef = Arc::new(ListArray::new(item, offsets, turn, None));
        let numbers: ArrayRef = Arc::new(arrow::array::Int32Array::from(vec![1, 2, 3]));
        let bytes = [4 + 5 + 2 + 4, 4, 4 + 1 + 4];
        assert_eq!([0, 1, 2].map(|row| row_bytes(&[talks.clone(), numbers.clone()], row)), bytes);
        assert_eq!(row_bytes(&[talks.slice(2, 1)], 0), 5);
    }
}
