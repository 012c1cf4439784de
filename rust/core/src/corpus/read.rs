//! Reading: one schema over all inputs, then batches in input order.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::RowGroupMetaData;

use memchr::memchr;

use super::json::{self, Columns, JsonRow, Unfit, json_row};
use super::{BATCH_BYTES, BATCH_ROWS, MAX_ROW_BYTES, Reject, text_id, texts};
use crate::tokenizer::simd::Level;
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Parquet,
    Jsonl,
    JsonlGzip,
    JsonlZstd,
    /// A source file: the whole file is one document.
    Source,
}

impl Format {
    fn of(path: &Path) -> Self {
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase());
        let name = name.unwrap_or_default();
        let ends = |suffixes: &[&str]| suffixes.iter().any(|s| name.ends_with(s));
        if ends(&[".parquet"]) {
            Self::Parquet
        } else if ends(&[".jsonl", ".ndjson"]) {
            Self::Jsonl
        } else if ends(&[".jsonl.gz", ".ndjson.gz"]) {
            Self::JsonlGzip
        } else if ends(&[".jsonl.zst", ".ndjson.zst"]) {
            Self::JsonlZstd
        } else {
            Self::Source
        }
    }
}

#[derive(Debug, Clone)]
struct InputFile {
    path: PathBuf,
    format: Format,
    /// What the document's `path` column says: relative to the folder that was named.
    label: String,
    /// Which of the inputs it belongs to.
    input: usize,
    /// Only these of a Parquet file's row groups; none for all of them.
    groups: Option<Range<usize>>,
}

/// Documents on disk, with one schema over every input.
#[derive(Debug, Clone)]
pub struct Corpus {
    files: Vec<InputFile>,
    schema: SchemaRef,
    /// Whether the schema is that of the first lines of each file.
    provisional: bool,
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
        let files = find(inputs, extensions)?;
        let (schema, _) = unified_schema(&files, usize::MAX)?;
        Ok(Self { files, schema, provisional: false })
    }

    /// As [`Corpus::open`], by the first lines of each file alone. Reading ends with
    /// [`Error::Unsettled`] where a later line does not fit; then take [`Corpus::settled`].
    pub fn open_quickly(inputs: &[PathBuf], extensions: &[String]) -> Result<Self> {
        let files = find(inputs, extensions)?;
        match unified_schema(&files, SAMPLE_BYTES) {
            Ok((schema, provisional)) => Ok(Self { files, schema, provisional }),
            // More lines could make the error another one, or none.
            Err(_) => Self::open(inputs, extensions),
        }
    }

    /// The same documents by every line's columns.
    pub fn settled(&self) -> Result<Self> {
        let (schema, _) = unified_schema(&self.files, usize::MAX)?;
        Ok(Self { files: self.files.clone(), schema, provisional: false })
    }

    /// The error of an input whose rows are not those of the pass before.
    pub fn changed(&self) -> Error {
        changed(self.files.first().map_or(Path::new(""), |file| &file.path))
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
                let disk = std::fs::metadata(&file.path).map_err(Error::io(&file.path))?.len();
                let packed = matches!(file.format, Format::JsonlGzip | Format::JsonlZstd);
                add(file.clone(), if packed { 4 * disk } else { disk });
            }
        }
        let corpus = |files| Self { files, ..self.clone() };
        Ok(units.into_iter().map(corpus).collect())
    }

    /// Reads everything from the start.
    pub fn batches(&self) -> Batches {
        Batches {
            schema: self.schema.clone(),
            files: self.files.clone().into(),
            open: None,
            input: 0,
            text_bytes: 0,
            rejects: Vec::new(),
            provisional: self.provisional,
            only: None,
        }
    }
}

fn find(inputs: &[PathBuf], extensions: &[String]) -> Result<Vec<InputFile>> {
    let mut files = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let meta = std::fs::metadata(input).map_err(Error::io(input))?;
        if meta.is_dir() {
            files.extend(files_of_folder(input, number, extensions)?);
        } else {
            let name = input.file_name().unwrap_or(input.as_os_str());
            files.push(InputFile {
                path: input.clone(),
                format: Format::of(input),
                label: name.to_string_lossy().into_owned(),
                input: number,
                groups: None,
            });
        }
    }
    if files.is_empty() {
        return Err(Error::config("no input given: name at least one file or folder"));
    }
    Ok(files)
}

fn files_of_folder(folder: &Path, input: usize, extensions: &[String]) -> Result<Vec<InputFile>> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(current) = pending.pop() {
        for entry in std::fs::read_dir(&current).map_err(Error::io(&current))? {
            let path = entry.map_err(Error::io(&current))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // Links are not followed: a folder can then neither loop nor reach outside itself.
            let kind = std::fs::symlink_metadata(&path).map_err(Error::io(&path))?;
            if name.starts_with('.') || kind.is_symlink() {
                continue;
            }
            if kind.is_dir() {
                // What a stage set aside is not part of its output.
                if !matches!(&*name, "rejected" | "__pycache__" | "__scores__") {
                    pending.push(path);
                }
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    let is_table = |path: &Path| Format::of(path) != Format::Source;
    let is_source = |path: &Path| {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        extensions.iter().any(|wanted| *wanted == extension)
    };
    // Tables at the top are what the folder is for; deeper ones among source files are somebody's
    // test data, which must not hide a folder of repositories.
    let table_on_top = found.iter().find(|p| p.parent() == Some(folder) && is_table(p));
    let source = found.iter().find(|path| is_source(path));
    if let (Some(table), Some(source)) = (table_on_top, source) {
        let message = format!(
            "holds both tables ({}) and source files ({}): name the files or a folder of one kind",
            table.strip_prefix(folder).unwrap_or(table).display(),
            source.strip_prefix(folder).unwrap_or(source).display(),
        );
        return Err(Error::input(folder, message));
    }
    let tables = source.is_none();
    found.retain(|path| if tables { is_table(path) } else { is_source(path) });
    if found.is_empty() {
        return Err(Error::input(
            folder,
            format!(
                "no .parquet, .jsonl, .jsonl.gz or .jsonl.zst file in it, and no source file ending in {}",
                extensions.iter().map(|e| format!(".{e}")).collect::<Vec<_>>().join(", ")
            ),
        ));
    }
    let file = |path: PathBuf| InputFile {
        format: Format::of(&path),
        label: path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned(),
        input,
        groups: None,
        path,
    };
    Ok(found.into_iter().map(file).collect())
}

fn base_fields() -> Vec<Field> {
    vec![Field::new("id", DataType::Utf8, false), Field::new("text", DataType::Utf8, false)]
}

/// The schema over all files by at most so many bytes of lines of each, and whether there are more.
fn unified_schema(files: &[InputFile], bytes: usize) -> Result<(SchemaRef, bool)> {
    let mut fields = base_fields();
    let mut provisional = false;
    for file in files {
        let found = match file.format {
            Format::Parquet => parquet_fields(&file.path)?,
            Format::Source => vec![Field::new("path", DataType::Utf8, true)],
            _ => {
                let (found, all) = json_fields(file, bytes)?;
                provisional |= !all;
                found
            }
        };
        for field in found {
            if field.name() == "id" || field.name() == "text" {
                continue;
            }
            let Some(known) = fields.iter_mut().find(|known| known.name() == field.name()) else {
                fields.push(field.with_nullable(true));
                continue;
            };
            let joined = join_types(known.data_type(), field.data_type()).ok_or_else(|| {
                let message = format!(
                    "column `{}` is {} here and {} in an earlier input: make them one type",
                    field.name(),
                    field.data_type(),
                    known.data_type()
                );
                Error::input(&file.path, message)
            })?;
            *known = Field::new(known.name(), joined, true);
        }
    }
    Ok((Arc::new(Schema::new(fields)), provisional))
}

/// The type that holds both, or none.
fn join_types(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{Float64, Int64, Null};
    match (a, b) {
        _ if a == b => Some(a.clone()),
        (Null, other) | (other, Null) => Some(other.clone()),
        (Int64, Float64) | (Float64, Int64) => Some(Float64),
        _ => None,
    }
}

/// One type for each kind of value, whatever width or encoding the file chose.
fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Dictionary(_, value) => plain_type(value),
        t if t.is_integer() && *t != DataType::UInt64 => DataType::Int64,
        t if t.is_floating() => DataType::Float64,
        other => other.clone(),
    }
}

fn parquet_reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|e| Error::input(path, format!("not a readable Parquet file: {e}")))
}

/// Rows of a Parquet file.
pub fn parquet_rows(path: &Path) -> Result<u64> {
    Ok(parquet_reader(path)?.metadata().file_metadata().num_rows().max(0) as u64)
}

/// A file's batches, and how many of its rows come before them.
fn parquet_batches(file: &InputFile) -> Result<(ParquetRecordBatchReader, u64)> {
    let mut reader = parquet_reader(&file.path)?;
    let groups = reader.metadata().row_groups();
    let range = file.groups.clone().unwrap_or(0..groups.len());
    let before = groups[..range.start].iter().map(RowGroupMetaData::num_rows).sum::<i64>();
    // Of long documents fewer stand in a batch.
    let rows = groups[range.clone()]
        .iter()
        .map(|group| BATCH_BYTES as i64 * group.num_rows() / group.total_byte_size().max(1))
        .min()
        .unwrap_or(1)
        .clamp(1, BATCH_ROWS as i64);
    if file.groups.is_some() {
        reader = reader.with_row_groups(range.collect());
    }
    let reader = reader
        .with_batch_size(rows as usize)
        .build()
        .map_err(|e| Error::input(&file.path, e.to_string()))?;
    Ok((reader, before as u64))
}

fn parquet_fields(path: &Path) -> Result<Vec<Field>> {
    let reader = parquet_reader(path)?;
    let fields = reader.schema().fields();
    let plain: Vec<Field> = fields
        .iter()
        .map(|field| Field::new(field.name(), plain_type(field.data_type()), true))
        .collect();
    let has_text = plain.iter().any(|f| f.name() == "text" && *f.data_type() == DataType::Utf8);
    if !has_text {
        let names: Vec<&str> = fields.iter().map(|f| f.name().as_str()).collect();
        return Err(Error::input(
            path,
            format!("no string column `text`; it has: {}", names.join(", ")),
        ));
    }
    Ok(plain)
}

/// The columns by at most so many bytes of lines, and whether those are all.
fn json_fields(file: &InputFile, bytes: usize) -> Result<(Vec<Field>, bool)> {
    let mut fields: Vec<Field> = Vec::new();
    let mut lines = Lines::open(file)?;
    let level = Level::best();
    let (mut seen, mut most) = (0, bytes);
    let mut all = true;
    while let Some(line) = lines.next_line()? {
        let Ok(line) = line else {
            continue; // set aside when it is read in earnest
        };
        if seen > most {
            // What was null so far may yet become anything.
            if fields.iter().any(|field| *field.data_type() == DataType::Null) {
                most = usize::MAX;
            } else {
                all = false;
                break;
            }
        }
        seen += line.len();
        // A line that could add nothing, usable or not, is not looked at any closer.
        let known = |name: &str, kind: &DataType| {
            fields.iter().find(|field| field.name() == name).is_some_and(|field| {
                let joined = join_types(field.data_type(), kind).unwrap_or(DataType::Utf8);
                joined == *field.data_type()
            })
        };
        if json::all_known(line, level, known) {
            continue;
        }
        let Ok(row) = json_row(line) else {
            continue;
        };
        for (name, value) in &row {
            let found = json::kind_of(value);
            match fields.iter_mut().find(|field| field.name() == name) {
                None => fields.push(Field::new(name, found, true)),
                Some(field) => {
                    // Two kinds in one file: keep both, as their JSON text.
                    let joined = join_types(field.data_type(), &found).unwrap_or(DataType::Utf8);
                    *field = Field::new(name, joined, true);
                }
            }
        }
    }
    for field in &mut fields {
        if *field.data_type() == DataType::Null {
            *field = Field::new(field.name(), DataType::Utf8, true);
        }
    }
    Ok((fields, all))
}

/// Lines of a possibly compressed file, each at most [`MAX_ROW_BYTES`].
struct Lines {
    path: PathBuf,
    reader: Box<dyn Read + Send>,
    /// What was read and not yet given out stands from `start` to `end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// Read at a time: it must stay in a near cache while its lines are looked at.
const READ_BYTES: usize = 256 << 10;

impl Lines {
    fn open(file: &InputFile) -> Result<Self> {
        let path = file.path.clone();
        let opened = File::open(&path).map_err(Error::io(&path))?;
        let reader: Box<dyn Read + Send> = match file.format {
            Format::JsonlGzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(opened)))
            }
            Format::JsonlZstd => Box::new(zstd::Decoder::new(opened).map_err(Error::io(&path))?),
            _ => Box::new(opened),
        };
        Ok(Self { path, reader, buffer: vec![0; READ_BYTES], start: 0, end: 0 })
    }

    /// The next line without its end, or why it is set aside; `None` at the end of the file.
    fn next_line(&mut self) -> Result<Option<std::result::Result<&[u8], String>>> {
        let mut too_long = false;
        let mut searched = 0;
        let (line, next) = loop {
            let from = self.start + searched;
            if let Some(length) = memchr(b'\n', &self.buffer[from..self.end]) {
                break (self.start..from + length, from + length + 1);
            }
            searched = self.end - self.start;
            if searched > MAX_ROW_BYTES {
                too_long = true;
                (self.start, searched) = (self.end, 0);
            }
            if self.fill()? == 0 {
                if searched == 0 && !too_long {
                    return Ok(None);
                }
                break (self.start..self.end, self.end);
            }
        };
        self.start = next;
        if too_long || line.len() > MAX_ROW_BYTES {
            return Ok(Some(Err(format!("longer than {MAX_ROW_BYTES} bytes"))));
        }
        let line = &self.buffer[line];
        let ends = line.iter().rev().take_while(|byte| **byte == b'\r').count();
        Ok(Some(Ok(&line[..line.len() - ends])))
    }

    /// Reads on; returns how many bytes came.
    fn fill(&mut self) -> Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        // Room for a long line, which is not kept for short ones.
        let room = (2 * self.end).max(READ_BYTES);
        if self.buffer.len() != room {
            self.buffer.resize(room, 0);
            self.buffer.shrink_to(room);
        }
        loop {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(&self.path)(e)),
            }
        }
    }
}

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
    /// A guess at those of the next batch of lines.
    text_bytes: usize,
    rejects: Vec<Reject>,
    provisional: bool,
    only: Option<Only>,
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
fn changed(path: &Path) -> Error {
    let message = "this input or one after it changed while it was being read; run it again";
    Error::input(path, message)
}

impl Batches {
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
        let rejected = rejects.iter().map(|reject| (reject.path.clone(), reject.row)).collect();
        self.only = Some(Only { wanted, rejected, passed: 0, rows: Vec::new() });
        self
    }

    /// Which rows of all the last batch holds, and how many were passed: with [`Batches::only`].
    pub fn rows(&self) -> (&[usize], usize) {
        self.only.as_ref().map_or((&[], 0), |only| (&only.rows, only.passed))
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
                Some(Open::Parquet(file, mut reader, seen)) => match reader.next() {
                    None => {}
                    Some(batch) => {
                        let batch = batch.map_err(|e| {
                            Error::input(&file.path, format!("damaged after row {seen}: {e}"))
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
                },
                Some(Open::Json(file, mut lines, mut seen)) => {
                    let batch = self.json_batch(&file.path, &mut lines, &mut seen)?;
                    if let Some(batch) = batch {
                        self.open = Some(Open::Json(file, lines, seen));
                        if batch.num_rows() > 0 {
                            return Ok(Some(batch));
                        }
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
                        let (reader, before) = parquet_batches(&file)?;
                        self.open = Some(Open::Parquet(file, Box::new(reader), before));
                    }
                    Some(_) => {
                        let file = self.files.pop_front().expect("just seen");
                        self.input = file.input;
                        let lines = Lines::open(&file)?;
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
        lines: &mut Lines,
        seen: &mut u64,
    ) -> Result<Option<RecordBatch>> {
        let mut columns = Columns::new(self.schema.clone(), self.text_bytes);
        if self.provisional {
            columns = columns.strict();
        }
        if let Some(only) = &mut self.only {
            only.rows.clear();
        }
        let mut bytes = 0;
        let mut ended = false;
        while columns.rows() < BATCH_ROWS && bytes < BATCH_BYTES {
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
        // The next batch will be of much the same size.
        self.text_bytes = columns.text_bytes() * 17 / 16;
        columns.finish().map(Some).map_err(|e| Error::input(path, e.to_string()))
    }

    fn source_batch(&mut self) -> Result<RecordBatch> {
        let mut rows: Vec<JsonRow> = Vec::new();
        let mut bytes = 0;
        while rows.len() < BATCH_ROWS && bytes < BATCH_BYTES {
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
        let mut columns = Columns::new(self.schema.clone(), bytes);
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
