//! A corpus to token files, batch by batch.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};

use super::write::{PackOptions, Packed, Writer};
use super::{Count, Width};
use crate::corpus::{self, Batches, Corpus, Reject, write_rejected};
use crate::tokenizer::{Special, Tokenizer};
use crate::{Error, Result};

const PROMPT_COLUMN: &str = "prompt_chars";

/// Packing under way.
pub struct Documents {
    batches: Batches,
    writer: Writer,
    rejects: Vec<Reject>,
    /// Documents of finished parts that are still to be passed over.
    skip: u64,
    has_prompts: bool,
    threads: Option<usize>,
    folder: PathBuf,
}

impl Documents {
    /// Opens the folder, going on after the parts that an interrupted run finished. Documents are
    /// counted by the input they came from. `threads` has no effect on the output.
    pub fn open(
        corpus: &Corpus,
        inputs: usize,
        out: &Path,
        tokenizer: &Tokenizer,
        (width, part_bytes): (Width, u64),
        threads: Option<usize>,
    ) -> Result<Self> {
        let has_prompts = corpus.schema().column_with_name(PROMPT_COLUMN).is_some();
        let options = PackOptions {
            width,
            part_bytes,
            end_of_text: end_of_text(tokenizer)?,
            vocab_size: tokenizer.vocab_size() as u32,
            prompts: has_prompts,
            sources: inputs,
        };
        let writer = Writer::create(out, options)?;
        Ok(Self {
            batches: corpus.batches(),
            skip: writer.finished().documents,
            writer,
            rejects: Vec::new(),
            has_prompts,
            threads,
            folder: out.to_path_buf(),
        })
    }

    /// Encodes and writes one batch, always with the tokenizer it was opened for; false when there is
    /// none left. Special tokens in the text are taken as text.
    pub fn step(&mut self, tokenizer: &Tokenizer) -> Result<bool> {
        let Some(batch) = self.batches.next() else {
            self.rejects.extend(self.batches.take_rejects());
            return Ok(false);
        };
        let mut batch = batch?;
        self.rejects.extend(self.batches.take_rejects());
        let passed = self.skip.min(batch.num_rows() as u64);
        self.skip -= passed;
        batch = batch.slice(passed as usize, batch.num_rows() - passed as usize);
        let source = self.batches.input();
        let texts: Vec<&str> =
            corpus::texts(&batch).iter().map(Option::unwrap_or_default).collect();
        let prompts = self.has_prompts.then(|| prompt_chars(&batch)).transpose()?;
        let (ids, ends) = tokenizer.encode_batch::<u32, _>(&texts, Special::Text, self.threads)?;
        let mut start = 0;
        for (row, &stop) in ends.iter().enumerate() {
            let document = &ids[start..stop as usize];
            start = stop as usize;
            let prompt = match &prompts {
                Some(column) if !column.is_null(row) => {
                    let chars = column.value(row);
                    prompt_tokens(tokenizer, texts[row], document, chars).ok_or_else(|| {
                        bad_prompt(corpus::ids(&batch).value(row), texts[row], chars)
                    })?
                }
                _ => 0,
            };
            self.writer.document(document, prompt, source)?;
        }
        Ok(true)
    }

    /// Documents and tokens so far, then files that are not yet begun.
    pub fn progress(&self) -> (Count, usize) {
        (self.writer.written(), self.batches.files_left())
    }

    /// Closes the last part; what was written and the rows set aside.
    pub fn finish(&mut self) -> Result<(Packed, usize)> {
        if self.skip > 0 {
            let message = format!("{} documents fewer than when it was interrupted", self.skip);
            return Err(Error::Resume { path: self.folder.clone(), message });
        }
        write_rejected(&self.folder, &self.rejects)?;
        Ok((self.writer.finish()?, self.rejects.len()))
    }
}

/// The id that ends documents, if text can never make it.
pub fn end_of_text(tokenizer: &Tokenizer) -> Result<u32> {
    let end = tokenizer.end_of_text().ok_or_else(|| {
        Error::config("the tokenizer has no <|endoftext|>, which ends each document")
    })?;
    if tokenizer.can_come_from_text(end) {
        return Err(Error::config(
            "the tokenizer makes <|endoftext|> out of plain text, so it cannot mark document ends",
        ));
    }
    Ok(end)
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
