//! Writing a stage's parts: row groups that are compressed at once where speed counts, and files that
//! appear under their name only when they are whole and on disk.

use std::path::{Path, PathBuf};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use rayon::prelude::*;

use super::sizes::row_bytes;
use super::write::{Part, ROWS_PER_GROUP, Unnamed, failed};
use crate::{Error, Result};

/// Uncompressed bytes after which a part is closed and the next one begun.
const PART_BYTES: usize = 256 << 20;

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
    InTurn(ArrowWriter<Unnamed>),
    /// Row groups that stand on their own until so many are full as are compressed at once.
    Together {
        most: usize,
        file: SerializedFileWriter<Unnamed>,
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

    fn finish(mut self) -> Result<Unnamed, ParquetError> {
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

    /// What the part that is open, or the next one, will be called.
    fn path(&self) -> PathBuf {
        self.folder.join(format!("part-{:05}.parquet", self.parts.len()))
    }

    /// Appends a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.write_where(batch, |_| true)
    }

    /// Appends those rows of a batch of which `stays` holds.
    pub fn write_where(
        &mut self,
        batch: &RecordBatch,
        stays: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let rows = batch.num_rows();
        let sizes: Vec<usize> = (0..rows).map(|row| row_bytes(batch.columns(), row)).collect();
        let stay: Vec<bool> = (0..rows).map(stays).collect();
        let kept = || sizes.iter().zip(&stay).filter(|(_, stays)| **stays).map(|(size, _)| *size);
        if 2 * kept().sum::<usize>() < sizes.iter().sum() {
            // Slices would keep all of the batch in memory until their chunk is whole.
            let sizes: Vec<usize> = kept().collect();
            let kept = filter_record_batch(batch, &BooleanArray::from(stay));
            return self.add(&kept.map_err(|e| Error::config(e.to_string()))?, &sizes);
        }
        let mut start = 0;
        for run in stay.chunk_by(|a, b| a == b) {
            if run[0] {
                let sizes = &sizes[start..start + run.len()];
                self.add(&batch.slice(start, run.len()), sizes)?;
            }
            start += run.len();
        }
        Ok(())
    }

    /// Appends rows of these sizes.
    fn add(&mut self, batch: &RecordBatch, sizes: &[usize]) -> Result<()> {
        if self.together.is_none() {
            return self.append(batch, sizes.iter().sum());
        }
        let mut start = 0;
        for (row, size) in sizes.iter().enumerate() {
            self.chunk.rows += 1;
            self.chunk.bytes += size;
            if self.chunk.rows >= CHUNK_ROWS || self.chunk.bytes >= CHUNK_BYTES {
                self.chunk.slices.push(batch.slice(start, row + 1 - start));
                start = row + 1;
                self.close_chunk()?;
            }
        }
        if start < sizes.len() {
            self.chunk.slices.push(batch.slice(start, sizes.len() - start));
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

    fn append(&mut self, batch: &RecordBatch, bytes: usize) -> Result<()> {
        let path = self.path();
        if self.writer.is_none() {
            let file = Unnamed::create(&path)?;
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
            let writer = ArrowWriter::try_new(file, self.schema.clone(), Some(properties))
                .map_err(failed(&path))?;
            self.writer = Some(if let Some(most) = self.together {
                let (file, factory) = writer.into_serialized_writer().map_err(failed(&path))?;
                let (full, open) = (Vec::new(), Vec::new());
                Open::Together { most, file, factory, written: 0, full, open, rows: 0, bytes: 0 }
            } else {
                Open::InTurn(writer)
            });
        }
        let writer = self.writer.as_mut().expect("just opened");
        writer.write(batch, bytes).map_err(failed(&path))?;
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
        let path = self.path();
        let file = writer.finish().map_err(failed(&path))?;
        self.parts.push(file.finish(self.rows)?);
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

    /// Takes back what was written, finished parts included, also those it was given to go on after.
    pub fn discard(self) {
        let open = Unnamed::temporary(&self.path());
        drop(self.writer);
        for file in self.parts.iter().map(|part| self.folder.join(&part.name)).chain([open]) {
            // Whoever discards has an error of its own to tell; no manifest names what stays here.
            let _ = std::fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Corpus;
    use super::*;
    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
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
}
