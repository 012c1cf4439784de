//! Documents to token files: one pass, memory one batch and the index of one part.
//!
//! A part is `part-00000.bin` (little-endian ids, each document followed by the end token) with
//! - `.idx`: Megatron-LM's index, version 1;
//! - `.bin.index`: datatrove's, the end of each document in tokens as u64;
//! - `.prompt`: how many leading tokens of each document are prompt, as i32; only if the documents
//!   have a column `prompt_chars`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use xxhash_rust::xxh3::Xxh3;

use super::Width;
use crate::corpus::{self, Corpus, Part, Reject, sync_folder, write_rejected, write_whole};
use crate::tokenizer::{Special, Tokenizer};
use crate::{Error, Result};

const PROMPT_COLUMN: &str = "prompt_chars";

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// How ids are stored.
    pub width: Width,
    /// Bytes a `.bin` may not exceed (unless one document does).
    pub part_bytes: u64,
    /// Threads that encode; no effect on the output.
    pub threads: Option<usize>,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Packed {
    /// Every file, for the manifest.
    pub parts: Vec<Part>,
    /// Documents in all.
    pub documents: u64,
    /// Tokens in all, end tokens included.
    pub tokens: u64,
    /// Rows set aside.
    pub rejects: Vec<Reject>,
}

/// Encodes a corpus into `out`. Special tokens in the text are taken as text.
pub fn pack(
    corpus: &Corpus,
    out: &Path,
    tokenizer: &Tokenizer,
    options: PackOptions,
) -> Result<Packed> {
    let end = tokenizer.end_of_text().ok_or_else(|| {
        Error::config("the tokenizer has no <|endoftext|>, which ends each document")
    })?;
    if tokenizer.can_come_from_text(end) {
        return Err(Error::config(
            "the tokenizer makes <|endoftext|> out of plain text, so it cannot mark document ends",
        ));
    }
    if options.width == Width::Two && tokenizer.vocab_size() > 1 << 16 {
        return Err(Error::config(format!(
            "dtype uint16 cannot hold {} tokens; use uint32",
            tokenizer.vocab_size()
        )));
    }
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let has_prompts = corpus.schema().column_with_name(PROMPT_COLUMN).is_some();
    let mut packed = Packed::default();
    let mut writer = PartWriter::new(out, options, has_prompts);
    let mut batches = corpus.batches();
    while let Some(batch) = batches.next() {
        let batch = batch?;
        packed.rejects.extend(batches.take_rejects());
        let texts: Vec<&str> =
            corpus::texts(&batch).iter().map(Option::unwrap_or_default).collect();
        let prompts = has_prompts.then(|| prompt_chars(&batch)).transpose()?;
        let (ids, ends) =
            tokenizer.encode_batch::<u32, _>(&texts, Special::Text, options.threads)?;
        let mut start = 0;
        for (row, &stop) in ends.iter().enumerate() {
            let document = &ids[start..stop as usize];
            start = stop as usize;
            let prompt = match &prompts {
                Some(column) if !column.is_null(row) => prompt_tokens(
                    tokenizer,
                    texts[row],
                    document,
                    column.value(row),
                )
                .ok_or_else(|| {
                    bad_prompt(corpus::ids(&batch).value(row), texts[row], column.value(row))
                })?,
                _ => 0,
            };
            writer.document(document, end, prompt, &mut packed)?;
        }
    }
    packed.rejects.extend(batches.take_rejects());
    writer.close(&mut packed)?;
    write_rejected(out, &packed.rejects)?;
    Ok(packed)
}

fn prompt_chars(batch: &RecordBatch) -> Result<Int64Array> {
    let column = batch.column_by_name(PROMPT_COLUMN).expect("in the schema");
    // A column of nulls alone has no type of its own.
    if *column.data_type() != DataType::Int64 && column.null_count() < column.len() {
        return Err(Error::config(format!(
            "column `{PROMPT_COLUMN}` holds {}, not whole numbers",
            column.data_type()
        )));
    }
    let column = cast(column, &DataType::Int64).map_err(|e| Error::config(e.to_string()))?;
    Ok(column.as_primitive::<Int64Type>().clone())
}

fn bad_prompt(id: &str, text: &str, chars: i64) -> Error {
    Error::config(format!(
        "document `{id}`: {PROMPT_COLUMN} = {chars}, but its text has {} characters",
        text.chars().count()
    ))
}

/// How many leading ids lie wholly within the first `chars` characters; `None` if there are fewer.
fn prompt_tokens(tokenizer: &Tokenizer, text: &str, ids: &[u32], chars: i64) -> Option<u32> {
    let chars = usize::try_from(chars).ok()?;
    let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    let mut bytes = ends.nth(chars)?;
    let mut count = 0;
    for &id in ids {
        let length = tokenizer.token_bytes(id).len();
        if length > bytes {
            break;
        }
        bytes -= length;
        count += 1;
    }
    Some(count)
}

/// One `.bin` under way.
struct Open {
    path: PathBuf,
    file: File,
    hash: Xxh3,
    lengths: Vec<u32>,
    prompts: Vec<u32>,
    /// Bytes so far, those in `buffer` included.
    bytes: u64,
    buffer: Vec<u8>,
}

struct PartWriter<'a> {
    folder: &'a Path,
    options: PackOptions,
    has_prompts: bool,
    open: Option<Open>,
    parts: usize,
}

const FLUSH_BYTES: usize = 4 << 20;

impl<'a> PartWriter<'a> {
    fn new(folder: &'a Path, options: PackOptions, has_prompts: bool) -> Self {
        Self { folder, options, has_prompts, open: None, parts: 0 }
    }

    fn document(&mut self, ids: &[u32], end: u32, prompt: u32, packed: &mut Packed) -> Result<()> {
        let width = self.options.width;
        let tokens = ids.len() as u64 + 1;
        let full = |open: &Open| open.bytes + tokens * width.bytes() > self.options.part_bytes;
        if self.open.as_ref().is_some_and(full) {
            self.close(packed)?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::create(self.folder, self.parts)?),
        };
        for id in ids.iter().copied().chain([end]) {
            match width {
                Width::Two => open.buffer.extend((id as u16).to_le_bytes()),
                Width::Four => open.buffer.extend(id.to_le_bytes()),
            }
        }
        open.bytes += tokens * width.bytes();
        open.lengths.push(u32::try_from(tokens).map_err(|_| {
            Error::input(&open.path, "a document of 2^32 tokens or more cannot be indexed")
        })?);
        open.prompts.push(prompt);
        packed.documents += 1;
        packed.tokens += tokens;
        if open.buffer.len() >= FLUSH_BYTES { open.flush() } else { Ok(()) }
    }

    fn close(&mut self, packed: &mut Packed) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        open.flush()?;
        open.file.sync_all().map_err(Error::io(&open.path))?;
        let stem = format!("part-{:05}", self.parts);
        let name = format!("{stem}.bin");
        let path = self.folder.join(&name);
        std::fs::rename(&open.path, &path).map_err(Error::io(&path))?;
        packed.parts.push(Part {
            name,
            rows: open.lengths.len() as u64,
            bytes: open.bytes,
            xxh3: format!("{:032x}", open.hash.digest128()),
        });
        let mut sidecar = |suffix: &str, bytes: &[u8]| -> Result<()> {
            let part = write_whole(&self.folder.join(format!("{stem}{suffix}")), bytes)?;
            packed.parts.push(Part { rows: open.lengths.len() as u64, ..part });
            Ok(())
        };
        sidecar(".idx", &megatron_index(&open.lengths, self.options.width))?;
        let mut ends = Vec::with_capacity(open.lengths.len() * 8);
        let mut end = 0_u64;
        for &length in &open.lengths {
            end += u64::from(length);
            ends.extend(end.to_le_bytes());
        }
        sidecar(".bin.index", &ends)?;
        if self.has_prompts {
            let bytes: Vec<u8> = open.prompts.iter().flat_map(|n| n.to_le_bytes()).collect();
            sidecar(".prompt", &bytes)?;
        }
        sync_folder(self.folder)?;
        self.parts += 1;
        Ok(())
    }
}

impl Open {
    fn create(folder: &Path, number: usize) -> Result<Self> {
        let path = folder.join(format!("part-{number:05}.bin.tmp"));
        let file = File::create(&path).map_err(Error::io(&path))?;
        Ok(Self {
            path,
            file,
            hash: Xxh3::new(),
            lengths: Vec::new(),
            prompts: Vec::new(),
            bytes: 0,
            buffer: Vec::new(),
        })
    }

    fn flush(&mut self) -> Result<()> {
        self.hash.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(Error::io(&self.path))?;
        self.buffer.clear();
        Ok(())
    }
}

/// Megatron-LM's index: magic, version, type of ids, counts, then lengths (i32), byte offsets (i64)
/// and document bounds (i64; one sequence a document).
fn megatron_index(lengths: &[u32], width: Width) -> Vec<u8> {
    let count = lengths.len() as u64;
    let mut out = Vec::with_capacity(34 + 20 * lengths.len() + 8);
    out.extend(b"MMIDIDX\0\0");
    out.extend(1_u64.to_le_bytes());
    // Megatron has no uint32; ids are small enough for its int32.
    out.push(match width {
        Width::Two => 8,
        Width::Four => 4,
    });
    out.extend(count.to_le_bytes());
    out.extend((count + 1).to_le_bytes());
    out.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
    let mut offset = 0_u64;
    for &length in lengths {
        out.extend(offset.to_le_bytes());
        offset += u64::from(length) * width.bytes();
    }
    out.extend((0..=count).flat_map(u64::to_le_bytes));
    out
}
