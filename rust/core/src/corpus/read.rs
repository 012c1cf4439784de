//! Reading: batches in input order, all of one schema.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::buffer::Buffer;
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::RowGroupMetaData;
use rustc_hash::FxHashSet;

use super::columns::{Columns, Unfit};
use super::find::{Format, InputFile};
use super::lines::Lines;
use super::scanner::JsonRow;
use super::{BATCH_BYTES, BATCH_ROWS, MAX_ROW_BYTES, Reject, text_id, texts};
use crate::tokenizer::simd;
use crate::{Error, Result};

/// Opens a Parquet file.
pub fn parquet_reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    unpanicked(path, || ParquetRecordBatchReaderBuilder::try_new(file))?
        .map_err(|e| Error::input(path, format!("not a readable Parquet file: {e}")))
}

/// What reading gives. Of some damaged files the parquet crate panics.
fn unpanicked<T>(path: &Path, read: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read))
        .map_err(|_| Error::input(path, "damaged: make or fetch it again"))
}

/// Rows of a Parquet file.
pub fn parquet_rows(path: &Path) -> Result<u64> {
    Ok(parquet_reader(path)?.metadata().file_metadata().num_rows().max(0) as u64)
}

/// A file's batches, and how many of its rows come before them.
fn parquet_batches(
    file: &InputFile,
    (most_rows, most_bytes): (usize, usize),
) -> Result<(ParquetRecordBatchReader, u64)> {
    let mut reader = parquet_reader(&file.path)?;
    let groups = reader.metadata().row_groups();
    let range = file.groups.clone().unwrap_or(0..groups.len());
    let before = groups[..range.start].iter().map(RowGroupMetaData::num_rows).sum::<i64>();
    // Of long documents fewer stand in a batch.
    let rows = groups[range.clone()]
        .iter()
        .map(|group| most_bytes as i64 * group.num_rows() / group.total_byte_size().max(1))
        .min()
        .unwrap_or(1)
        .clamp(1, most_rows as i64);
    if file.groups.is_some() {
        reader = reader.with_row_groups(range.collect());
    }
    let reader = unpanicked(&file.path, || reader.with_batch_size(rows as usize).build())?
        .map_err(|e| Error::input(&file.path, e.to_string()))?;
    Ok((reader, before as u64))
}

/// Batches of which a [`Batches`] awaits the room.
const LENT: usize = 16;

enum Open {
    Parquet(InputFile, Box<ParquetRecordBatchReader>, u64),
    Json(InputFile, Lines, u64),
}

/// Iterator over the batches of a [`Corpus`]; rows set aside so far are in [`Batches::take_rejects`].
pub struct Batches {
    schema: SchemaRef,
    files: VecDeque<InputFile>,
    open: Option<Open>,
    input: usize,
    /// A batch is closed after so many rows, or bytes of strings.
    most: (usize, usize),
    /// Those of the last batch of lines: the next one will be of much the same size.
    text_bytes: usize,
    /// Where the texts of batches stand that were taken back, though others may still hold them.
    lent: VecDeque<Buffer>,
    rejects: Vec<Reject>,
    only: Option<Only>,
    hashes: Option<Vec<(PathBuf, String)>>,
}

/// Some of the rows, in a corpus that was read before.
struct Only {
    wanted: Vec<bool>,
    /// What was set aside the first time, as file and row.
    rejected: VecDeque<(PathBuf, u64)>,
    /// Usable rows passed so far.
    passed: usize,
    /// Which rows the last batch holds.
    rows: Vec<usize>,
}

impl Only {
    /// Passes over a line: whether it is a row that is wanted.
    fn line(&mut self, path: &Path, line: u64) -> Result<bool> {
        if self.rejected.front().is_some_and(|(file, row)| file == path && *row == line) {
            self.rejected.pop_front();
            return Ok(false);
        }
        let row = self.passed;
        self.passed += 1;
        match self.wanted.get(row) {
            Some(true) => self.rows.push(row),
            Some(false) => return Ok(false),
            None => return Err(changed(path)),
        }
        Ok(true)
    }

    /// Takes the wanted rows out of a batch.
    fn of(&mut self, path: &Path, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = self.passed..self.passed + batch.num_rows();
        self.passed = rows.end;
        let wanted = self.wanted.get(rows.clone()).ok_or_else(|| changed(path))?;
        self.rows = rows.zip(wanted).filter(|(_, wanted)| **wanted).map(|(row, _)| row).collect();
        if self.rows.len() == batch.num_rows() {
            return Ok(batch.clone());
        }
        filter_record_batch(batch, &wanted.to_vec().into())
            .map_err(|e| Error::input(path, e.to_string()))
    }
}

/// The error of an input whose rows are not those of the pass before.
pub fn changed(path: &Path) -> Error {
    let message = "this input or one after it changed while it was being read; run it again";
    Error::input(path, message)
}

impl Batches {
    /// Those of some files, from the start.
    pub(super) fn new(schema: SchemaRef, files: &[InputFile]) -> Self {
        Self {
            schema,
            files: files.to_vec().into(),
            open: None,
            input: 0,
            most: (BATCH_ROWS, BATCH_BYTES),
            text_bytes: 0,
            lent: VecDeque::new(),
            rejects: Vec::new(),
            only: None,
            hashes: None,
        }
    }

    /// Rows set aside since the last call.
    pub fn take_rejects(&mut self) -> Vec<Reject> {
        std::mem::take(&mut self.rejects)
    }

    /// Which of the inputs the last batch came from; no batch spans two.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Only the rows for which `wanted` holds, in a corpus that was read before and of which `rejects`
    /// were set aside then. Lines of others are passed over without being read.
    #[must_use]
    pub fn only(mut self, wanted: Vec<bool>, rejects: &[Reject]) -> Self {
        // Other files are read whole and set the same rows aside again.
        let lines = |file: &&InputFile| !matches!(file.format, Format::Parquet | Format::Source);
        let lines: FxHashSet<&Path> =
            self.files.iter().filter(lines).map(|file| file.path.as_path()).collect();
        let rejected = rejects.iter().filter(|reject| lines.contains(reject.path.as_path()));
        let rejected = rejected.map(|reject| (reject.path.clone(), reject.row)).collect();
        self.only = Some(Only { wanted, rejected, passed: 0, rows: Vec::new() });
        self
    }

    /// Which rows of all the last batch holds, and how many were passed: with [`Batches::only`].
    pub fn rows(&self) -> (&[usize], usize) {
        self.only.as_ref().map_or((&[], 0), |only| (&only.rows, only.passed))
    }

    /// The same, hashing files on the way where that costs no reading: those of plain lines.
    #[must_use]
    pub fn hashing(self) -> Self {
        Self { hashes: Some(Vec::new()), ..self }
    }

    /// What [`hash_file`](super::hash_file) says of the files that were hashed and read to their end.
    pub fn into_hashes(self) -> Vec<(PathBuf, String)> {
        self.hashes.unwrap_or_default()
    }

    /// Makes batches of at most so many rows, closed after so many bytes of strings.
    pub fn set_size(&mut self, rows: usize, bytes: usize) {
        self.most = (rows, bytes);
    }

    /// Files that are not yet begun.
    pub fn files_left(&self) -> usize {
        self.files.len()
    }

    fn reject(&mut self, path: &Path, row: u64, reason: impl Into<String>) {
        self.rejects.push(Reject { path: path.to_path_buf(), row, reason: reason.into() });
    }

    fn step(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            match self.open.take() {
                Some(Open::Parquet(file, mut reader, seen)) => {
                    let next = unpanicked(&file.path, || reader.next())?;
                    if let Some(batch) = next {
                        let batch = batch.map_err(|e| {
                            let e = e.to_string();
                            Error::input(
                                &file.path,
                                match e.split_once("Disabled feature at compile time: ") {
                                    Some((_, codec)) => format!(
                                        "compressed by {codec}, which is not read: write it again \
                                         with zstd, snappy, gzip or lz4"
                                    ),
                                    None => format!("damaged after row {seen}: {e}"),
                                },
                            )
                        })?;
                        let rows = seen + batch.num_rows() as u64;
                        let mut out = self.parquet_batch(&file.path, &batch, seen)?;
                        if let Some(only) = &mut self.only {
                            out = only.of(&file.path, &out)?;
                        }
                        self.open = Some(Open::Parquet(file, reader, rows));
                        if out.num_rows() > 0 {
                            return Ok(Some(out));
                        }
                    }
                }
                Some(Open::Json(file, mut lines, mut seen)) => {
                    let known = file.sampled.as_deref();
                    let batch = self.json_batch(&file.path, known, &mut lines, &mut seen)?;
                    if let Some(batch) = batch {
                        self.open = Some(Open::Json(file, lines, seen));
                        if batch.num_rows() > 0 {
                            return Ok(Some(batch));
                        }
                    } else if let (Some(hashes), Some(hash)) = (&mut self.hashes, lines.hash) {
                        hashes.push((file.path, format!("{:032x}", hash.digest128())));
                    }
                }
                None => match self.files.front().map(|file| file.format) {
                    None => return Ok(None),
                    Some(Format::Source) => {
                        let mut batch = self.source_batch()?;
                        if let Some(only) = &mut self.only {
                            batch = only.of(Path::new(""), &batch)?;
                        }
                        if batch.num_rows() > 0 {
                            return Ok(Some(batch));
                        }
                    }
                    Some(Format::Parquet) => {
                        let file = self.files.pop_front().expect("just seen");
                        self.input = file.input;
                        let (reader, before) = parquet_batches(&file, self.most)?;
                        self.open = Some(Open::Parquet(file, Box::new(reader), before));
                    }
                    Some(_) => {
                        let file = self.files.pop_front().expect("just seen");
                        self.input = file.input;
                        let mut lines = Lines::open(&file)?;
                        if self.hashes.is_some() && file.format == Format::Jsonl {
                            lines.hash = Some(Box::default());
                        }
                        self.open = Some(Open::Json(file, lines, 0));
                    }
                },
            }
        }
    }

    fn parquet_batch(
        &mut self,
        path: &Path,
        batch: &RecordBatch,
        seen: u64,
    ) -> Result<RecordBatch> {
        let broken = |e: arrow::error::ArrowError| Error::input(path, e.to_string());
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for field in self.schema.fields() {
            columns.push(match batch.column_by_name(field.name()) {
                Some(column) => cast(column, field.data_type()).map_err(broken)?,
                None => new_null_array(field.data_type(), batch.num_rows()),
            });
        }
        let loose: Vec<Field> = self
            .schema
            .fields()
            .iter()
            .map(|field| field.as_ref().clone().with_nullable(true))
            .collect();
        let mut batch =
            RecordBatch::try_new(Arc::new(Schema::new(loose)), columns).map_err(broken)?;
        if texts(&batch).null_count() > 0 {
            for row in 0..batch.num_rows() {
                if texts(&batch).is_null(row) {
                    self.reject(path, seen + row as u64 + 1, "`text` is null");
                }
            }
            let keep = arrow::compute::is_not_null(texts(&batch)).map_err(broken)?;
            batch = filter_record_batch(&batch, &keep).map_err(broken)?;
        }
        let mut columns = batch.columns().to_vec();
        let ids = super::ids(&batch);
        if ids.null_count() == 0 {
            return RecordBatch::try_new(self.schema.clone(), columns).map_err(broken);
        }
        let filled: StringArray = texts(&batch)
            .iter()
            .zip(ids)
            .map(|(text, id)| {
                Some(id.map_or_else(|| text_id(text.unwrap_or_default()), str::to_owned))
            })
            .collect();
        columns[0] = Arc::new(filled);
        RecordBatch::try_new(self.schema.clone(), columns).map_err(broken)
    }

    fn json_batch(
        &mut self,
        path: &Path,
        known: Option<&[String]>,
        lines: &mut Lines,
        seen: &mut u64,
    ) -> Result<Option<RecordBatch>> {
        let (most_rows, most_bytes) = self.most;
        let mut columns = Columns::new(self.schema.clone(), self.room());
        if let Some(known) = known {
            columns = columns.strict(known);
        }
        if let Some(only) = &mut self.only {
            only.rows.clear();
        }
        let mut bytes = 0;
        let mut ended = false;
        while columns.rows() < most_rows && bytes < most_bytes {
            let Some(line) = lines.next_line()? else {
                ended = true;
                break;
            };
            *seen += 1;
            match line {
                Ok(line) if line.iter().all(u8::is_ascii_whitespace) => {}
                line => {
                    if let Some(only) = &mut self.only
                        && !only.line(path, *seen)?
                    {
                        continue;
                    }
                    match line.map_err(Unfit::Row).and_then(|line| columns.add_line(line)) {
                        Ok(more) => bytes += more,
                        Err(Unfit::Schema) => {
                            return Err(Error::Unsettled { path: path.to_owned(), row: *seen });
                        }
                        Err(Unfit::Row(_)) if self.only.is_some() => return Err(changed(path)),
                        Err(Unfit::Row(reason)) => self.reject(path, *seen, reason),
                    }
                }
            }
        }
        if ended && columns.rows() == 0 {
            return Ok(None);
        }
        self.text_bytes = columns.text_bytes();
        columns.finish().map(Some).map_err(|e| Error::input(path, e.to_string()))
    }

    /// Where the texts of a batch of lines are to stand: where others did, as memory that is touched for
    /// the first time costs more than it does to read into it.
    fn room(&mut self) -> Vec<u8> {
        for _ in 0..self.lent.len() {
            match self.lent.pop_front().map(Buffer::into_vec) {
                Some(Ok(mut room)) if room.capacity() >= self.text_bytes => {
                    room.clear();
                    return room;
                }
                Some(Err(held)) => self.lent.push_back(held),
                _ => {}
            }
        }
        let mut room = Vec::with_capacity(self.text_bytes * 9 / 8);
        simd::advise_large_pages(&mut room);
        room
    }

    /// Takes a batch back: the texts of a later one stand where its did, once nobody else holds them.
    pub fn reuse(&mut self, batch: &RecordBatch) {
        if matches!(self.open, Some(Open::Json(..))) {
            if self.lent.len() == LENT {
                self.lent.pop_front();
            }
            self.lent.push_back(texts(batch).values().clone());
        }
    }

    fn source_batch(&mut self) -> Result<RecordBatch> {
        let mut rows: Vec<JsonRow> = Vec::new();
        let mut bytes = 0;
        while rows.len() < self.most.0 && bytes < self.most.1 {
            let next = self.files.front().filter(|file| file.format == Format::Source);
            if next.is_none_or(|file| !rows.is_empty() && file.input != self.input) {
                break;
            }
            let file = self.files.pop_front().expect("just seen");
            self.input = file.input;
            let mut content = Vec::new();
            File::open(&file.path)
                .and_then(|opened| opened.take(MAX_ROW_BYTES as u64 + 1).read_to_end(&mut content))
                .map_err(Error::io(&file.path))?;
            if content.len() > MAX_ROW_BYTES {
                self.reject(&file.path, 1, format!("longer than {MAX_ROW_BYTES} bytes"));
                continue;
            }
            match String::from_utf8(content) {
                Ok(text) => {
                    bytes += text.len();
                    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                    let mut row = JsonRow::new();
                    row.insert("text".into(), text.into());
                    row.insert("path".into(), file.label.clone().into());
                    rows.push(row);
                }
                Err(e) => {
                    let at = e.utf8_error().valid_up_to();
                    self.reject(&file.path, 1, format!("not UTF-8 at byte {at}"));
                }
            }
        }
        let mut columns = Columns::new(self.schema.clone(), Vec::with_capacity(bytes));
        for row in &rows {
            columns.add_row(row);
        }
        columns.finish().map_err(|e| Error::config(e.to_string()))
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Corpus;
    use super::*;
    use arrow::datatypes::DataType;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Rows with few columns of few kinds, some of them missing, and lines that are no rows.
    fn lines() -> impl Strategy<Value = Vec<String>> {
        let value = prop_oneof![
            4 => Just(json!(1)),
            2 => Just(json!(2.5)),
            2 => Just(Value::Null),
            1 => Just(json!("x")),
            1 => Just(json!(true)),
            1 => Just(json!([1])),
        ];
        let row = ("[a-z\\n]{0,9}", vec(prop::option::weighted(0.4, value), 3), 0..12u8);
        let line = row.prop_map(|(text, values, kind)| {
            let mut row = json!({"text": text});
            for (name, value) in ["a", "b", "id"].iter().zip(values) {
                if let Some(value) = value {
                    row[name] = value;
                }
            }
            match kind {
                0 => String::new(),
                1 => r#"{"text": 1}"#.to_owned(),
                2 => "torn {".to_owned(),
                _ => row.to_string(),
            }
        });
        vec(line, 0..30)
    }

    /// A Parquet file with a text and a null.
    fn null_text(path: &Path) {
        let schema = Schema::new(vec![Field::new("text", DataType::Utf8, true)]);
        let texts = StringArray::from(vec![Some("text"), None]);
        let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(texts)]).unwrap();
        let file = File::create(path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    fn all(corpus: &Corpus) -> Result<(Vec<RecordBatch>, Vec<Reject>)> {
        let mut batches = corpus.batches();
        let mut found = Vec::new();
        for batch in batches.by_ref() {
            found.push(batch?);
        }
        Ok((found, batches.take_rejects()))
    }

    proptest! {
        /// What is opened by its first lines alone is either read as by all of them, or refused.
        #[test]
        fn opened_quickly_is_opened(files in vec(lines(), 1..3), bytes in 0usize..300) {
            let folder = tempfile::tempdir().unwrap();
            let mut paths = Vec::new();
            for (i, lines) in files.iter().enumerate() {
                paths.push(folder.path().join(format!("{i}.jsonl")));
                std::fs::write(&paths[i], lines.join("\n")).unwrap();
            }
            let whole = Corpus::open(&paths, &[]);
            let quick = Corpus::open_by(&paths, &[], bytes);
            let read = quick.and_then(|quick| match all(&quick) {
                Err(Error::Unsettled { .. }) => all(&quick.settled()?),
                read => read,
            });
            match (whole.and_then(|whole| all(&whole)), read) {
                (Ok(whole), Ok(read)) => prop_assert_eq!(whole, read),
                (Err(whole), Err(read)) => prop_assert_eq!(whole.to_string(), read.to_string()),
                (whole, read) => prop_assert!(false, "{:?} and {:?}", whole.err(), read.err()),
            }
        }

        /// Some rows, read a second time, are those rows; in lines, in Parquet and in source files.
        #[test]
        fn only_the_wanted_rows(lines in lines(), wanted in vec(any::<bool>(), 70)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("in.jsonl");
            std::fs::write(&path, lines.join("\n")).unwrap();
            let plain = Corpus::open(&[path], &[]).unwrap();
            let schema = plain.schema();
            let mut writer = super::super::PartWriter::create(&folder.path().join("p"), schema).unwrap();
            let source = folder.path().join("s");
            std::fs::create_dir(&source).unwrap();
            for batch in plain.batches() {
                let batch = batch.unwrap();
                writer.write(&batch).unwrap();
                for (i, text) in texts(&batch).iter().enumerate() {
                    std::fs::write(source.join(format!("{i:03}.py")), text.unwrap()).unwrap();
                }
            }
            writer.finish().unwrap();
            let open = |name: &str| Corpus::open(&[folder.path().join(name)], &["py".to_owned()]);
            // Rows are set aside in each kind of file, and the kinds stand side by side.
            let bad = folder.path().join("bad.py");
            std::fs::write(&bad, [0xff]).unwrap();
            let nulls = folder.path().join("nulls.parquet");
            null_text(&nulls);
            let jsonl = folder.path().join("in.jsonl");
            let mixed = [nulls.clone(), jsonl.clone(), bad.clone(), jsonl, nulls, bad];
            let mixed = Corpus::open(&mixed, &["py".to_owned()]);
            for corpus in [Ok(plain), open("p"), open("s"), mixed].into_iter().flatten() {
                let (whole, rejects) = all(&corpus).unwrap();
                let count = whole.iter().map(RecordBatch::num_rows).sum::<usize>();
                let mut batches = corpus.batches().only(wanted[..count].to_vec(), &rejects);
                let (mut found, mut rows) = (Vec::new(), Vec::new());
                while let Some(batch) = batches.next() {
                    found.push(batch.unwrap());
                    rows.extend_from_slice(batches.rows().0);
                }
                prop_assert_eq!(batches.rows().1, count);
                let expected: Vec<usize> = (0..count).filter(|row| wanted[*row]).collect();
                prop_assert_eq!(&rows, &expected);
                let texts = |batches: &[RecordBatch]| -> Vec<String> {
                    let texts = batches.iter().flat_map(|batch| texts(batch).iter().flatten());
                    texts.map(str::to_owned).collect()
                };
                let whole = texts(&whole);
                let expected: Vec<String> = expected.iter().map(|row| whole[*row].clone()).collect();
                prop_assert_eq!(texts(&found), expected);
                // A file that has grown since is noticed.
                if count > 0 {
                    let fewer = wanted[..count - 1].to_vec();
                    prop_assert!(corpus.batches().only(fewer, &rejects).any(|batch| batch.is_err()));
                }
            }
        }
    }

    /// What others still hold of a batch that was taken back stays as it is.
    #[test]
    fn texts_stand_where_nobody_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.jsonl");
        let lengths: Vec<usize> = (0..2000).map(|row| row * row * 31 % 977).collect();
        let line = |(row, length): (usize, &usize)| {
            json!({"text": format!("{row}").repeat(*length)}).to_string() + "\n"
        };
        std::fs::write(&path, lengths.iter().enumerate().map(line).collect::<String>()).unwrap();
        let corpus = Corpus::open(&[path], &[]).unwrap();
        let mut batches = corpus.batches();
        batches.set_size(7, usize::MAX);
        let (mut held, mut places) = (Vec::new(), FxHashSet::default());
        let mut number = 0;
        while let Some(batch) = batches.next() {
            let batch = batch.unwrap();
            places.insert(texts(&batch).values().as_ptr());
            batches.reuse(&batch);
            // Most are let go at once; some are held for long, some in part.
            if number % 5 == 0 {
                held.push((7 * number, batch.clone()));
            }
            if number % 7 == 0 {
                held.push((7 * number + 3, batch.slice(3, batch.num_rows() - 3)));
            }
            number += 1;
        }
        assert!(places.len() < number / 2, "{} of {number}", places.len());
        for (start, batch) in held {
            for (row, text) in texts(&batch).iter().enumerate() {
                let row = start + row;
                assert_eq!(text.unwrap(), format!("{row}").repeat(lengths[row]));
            }
        }
    }

    #[test]
    fn files_are_hashed_on_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.jsonl");
        std::fs::write(&path, "{\"text\": \"a\"}\n".repeat(40_000)).unwrap();
        let mut batches =
            Corpus::open(std::slice::from_ref(&path), &[]).unwrap().batches().hashing();
        assert!(batches.all(|batch| batch.is_ok()));
        let hash = super::super::hash_file(&path).unwrap();
        assert_eq!(batches.into_hashes(), [(path, hash)]);
    }
}
