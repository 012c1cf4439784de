//! Documents to token files: one pass, memory one batch and the index of one part.
//!
//! A part is `part-00000.bin` (little-endian ids, each document followed by the end token) with
//! - `.idx`: Megatron-LM's index, version 1;
//! - `.bin.index`: datatrove's, the end of each document in tokens as u64;
//! - `.ds` and `.ds.index`: the two under the names that nanotron looks for (hard links, where the file
//!   system has them);
//! - `.prompt`: how many leading tokens of each document are prompt, as u32; only if the documents
//!   have a column `prompt_chars`;
//! - `.xxh3`: the hashes of the blocks of `.bin`, `.bin.index` and `.prompt`, in this order.
//!
//! `journal.jsonl` has one line for each finished part, so that an interrupted run goes on after it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::Width;
use super::blocks::{BLOCK, block_hashes, hash_bytes_le};
use crate::corpus::{Part, sync_folder, write_whole};
use crate::{Error, Result};

const JOURNAL: &str = "journal.jsonl";
/// Documents of one part at most: closing it takes about 50 bytes for each.
const PART_DOCUMENTS: usize = 1 << 23;

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// How ids are stored.
    pub width: Width,
    /// Bytes a `.bin` may not exceed (unless one document does).
    pub part_bytes: u64,
    /// The id that ends each document, and stands nowhere else.
    pub end_of_text: u32,
    /// Ids at or above are refused.
    pub vocab_size: u32,
    /// Whether documents say how much of them is prompt.
    pub prompts: bool,
    /// How many sources the documents are counted by.
    pub sources: usize,
}

/// Documents and tokens.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Documents.
    pub documents: u64,
    /// Tokens, end tokens included.
    pub tokens: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.documents += other.documents;
        self.tokens += other.tokens;
    }
}

/// What was written.
#[derive(Debug, Default)]
pub struct Packed {
    /// Every file, for the manifest.
    pub parts: Vec<Part>,
    /// All of it.
    pub total: Count,
    /// By source.
    pub sources: Vec<Count>,
}

/// One line of the journal.
#[derive(Serialize, Deserialize)]
struct Finished {
    parts: Vec<Part>,
    sources: Vec<Count>,
}

/// An id in memory.
pub trait Token: Copy {
    /// As a number.
    fn value(self) -> u32;
}

impl Token for u16 {
    fn value(self) -> u32 {
        u32::from(self)
    }
}

impl Token for u32 {
    fn value(self) -> u32 {
        self
    }
}

/// One `.bin` under way.
struct Open {
    path: PathBuf,
    file: File,
    hash: Xxh3,
    blocks: Vec<u64>,
    lengths: Vec<i32>,
    prompts: Vec<u32>,
    sources: Vec<Count>,
    /// Bytes so far, those in `buffer` included.
    bytes: u64,
    buffer: Vec<u8>,
}

/// Writes parts into a folder, going on after those that an earlier run finished.
pub struct Writer {
    folder: PathBuf,
    options: PackOptions,
    open: Option<Open>,
    finished: usize,
    packed: Packed,
}

const FLUSH_BYTES: usize = 32 * BLOCK;

impl Writer {
    /// Reads the journal of an interrupted run, if there is one.
    pub fn create(folder: &Path, options: PackOptions) -> Result<Self> {
        if options.width == Width::Two && options.vocab_size > 1 << 16 {
            return Err(Error::config(format!(
                "dtype uint16 cannot hold {} tokens; use uint32",
                options.vocab_size
            )));
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let packed =
            Packed { sources: vec![Count::default(); options.sources], ..Packed::default() };
        let mut writer =
            Self { folder: folder.to_path_buf(), options, open: None, finished: 0, packed };
        let journal = folder.join(JOURNAL);
        let lines = match std::fs::read_to_string(&journal) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            lines => lines.map_err(Error::io(&journal))?,
        };
        let mut sound = 0;
        for line in lines.split_inclusive('\n') {
            // A torn line, or a part that has gone since: what follows is made again.
            let Ok(part) = serde_json::from_str::<Finished>(line) else { break };
            let whole = |part: &Part| {
                std::fs::metadata(folder.join(&part.name)).is_ok_and(|m| m.len() == part.bytes)
            };
            if !line.ends_with('\n')
                || part.sources.len() != options.sources
                || !part.parts.iter().all(whole)
            {
                break;
            }
            sound += line.len();
            writer.finished += 1;
            writer.count(&part);
        }
        if sound < lines.len() {
            let file =
                OpenOptions::new().write(true).open(&journal).map_err(Error::io(&journal))?;
            file.set_len(sound as u64).map_err(Error::io(&journal))?;
        }
        Ok(writer)
    }

    fn count(&mut self, part: &Finished) {
        self.packed.parts.extend(part.parts.iter().cloned());
        for (sum, count) in self.packed.sources.iter_mut().zip(&part.sources) {
            sum.add(*count);
            self.packed.total.add(*count);
        }
    }

    /// What is in finished parts: so many documents must be left out when going on.
    pub fn finished(&self) -> Count {
        self.packed.total
    }

    /// What is written so far, the part under way included.
    pub fn written(&self) -> Count {
        let mut total = self.packed.total;
        for count in self.open.iter().flat_map(|open| &open.sources) {
            total.add(*count);
        }
        total
    }

    /// Appends a document and its end token; its first `prompt` tokens are prompt.
    pub fn document<T: Token>(&mut self, ids: &[T], prompt: u32, source: usize) -> Result<()> {
        let width = self.options.width;
        let tokens = ids.len() as u64 + 1;
        let bytes = tokens * width.bytes();
        let full = |open: &Open| {
            open.bytes + bytes > self.options.part_bytes || open.lengths.len() >= PART_DOCUMENTS
        };
        if self.open.as_ref().is_some_and(full) {
            self.close()?;
        }
        let PackOptions { end_of_text, vocab_size, .. } = self.options;
        let bad = |id: u32| id >= vocab_size || id == end_of_text;
        if ids.iter().fold(false, |found, id| found | bad(id.value())) {
            let at = ids.iter().position(|id| bad(id.value())).expect("one is bad");
            return Err(Error::config(format!(
                "document {}: token {at} is {}, but ids go from 0 to {} and {end_of_text} only \
                 ends documents",
                self.written().documents,
                ids[at].value(),
                vocab_size - 1,
            )));
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::create(&self.folder, self.finished, &self.options)?),
        };
        // Megatron's lengths are i32.
        open.lengths.push(i32::try_from(tokens).map_err(|_| {
            Error::input(&open.path, "a document of 2^31 tokens or more cannot be indexed")
        })?);
        open.prompts.push(prompt.min(ids.len() as u32));
        open.sources[source].add(Count { documents: 1, tokens });
        open.bytes += bytes;
        for ids in ids.chunks(FLUSH_BYTES / 4) {
            append(&mut open.buffer, ids, width);
            if open.buffer.len() >= FLUSH_BYTES {
                open.flush(false)?;
            }
        }
        append(&mut open.buffer, &[end_of_text], width);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        open.flush(true)?;
        open.file.sync_all().map_err(Error::io(&open.path))?;
        let rows = open.lengths.len() as u64;
        let stem = format!("part-{:05}", self.finished);
        let name = format!("{stem}.bin");
        let path = self.folder.join(&name);
        std::fs::rename(&open.path, &path).map_err(Error::io(&path))?;
        let xxh3 = format!("{:032x}", open.hash.digest128());
        let mut parts = vec![Part { name, rows, bytes: open.bytes, xxh3 }];
        let mut sidecar = |suffix: &str, bytes: &[u8]| -> Result<()> {
            let part = write_whole(&self.folder.join(format!("{stem}{suffix}")), bytes)?;
            parts.push(Part { rows, ..part });
            Ok(())
        };
        let mut end = 0_u64;
        let mut ends = Vec::with_capacity(open.lengths.len() * 8);
        for &length in &open.lengths {
            end += length as u64;
            ends.extend_from_slice(&end.to_le_bytes());
        }
        sidecar(".idx", &megatron_index(&open.lengths, self.options.width))?;
        sidecar(".bin.index", &ends)?;
        open.blocks.extend(block_hashes(&ends));
        if self.options.prompts {
            let bytes: Vec<u8> = open.prompts.iter().flat_map(|n| n.to_le_bytes()).collect();
            sidecar(".prompt", &bytes)?;
            open.blocks.extend(block_hashes(&bytes));
        }
        sidecar(".xxh3", &hash_bytes_le(open.blocks))?;
        for (from, to) in [(".bin", ".ds"), (".bin.index", ".ds.index")] {
            let link = self.folder.join(format!("{stem}{to}"));
            let _ = std::fs::remove_file(&link);
            let _ = std::fs::hard_link(self.folder.join(format!("{stem}{from}")), link);
        }
        sync_folder(&self.folder)?;
        let finished = Finished { parts, sources: open.sources };
        let mut line = serde_json::to_vec(&finished).expect("plain data");
        line.push(b'\n');
        let journal = self.folder.join(JOURNAL);
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&journal)
            .and_then(|mut file| file.write_all(&line).and_then(|()| file.sync_all()))
            .map_err(Error::io(&journal))?;
        self.finished += 1;
        self.count(&finished);
        Ok(())
    }

    /// Closes the last part; removes the journal, which a finished folder does not need.
    pub fn finish(&mut self) -> Result<Packed> {
        self.close()?;
        let journal = self.folder.join(JOURNAL);
        match std::fs::remove_file(&journal) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(Error::io(&journal))?,
        }
        Ok(std::mem::take(&mut self.packed))
    }
}

impl Open {
    fn create(folder: &Path, number: usize, options: &PackOptions) -> Result<Self> {
        let path = folder.join(format!("part-{number:05}.bin.tmp"));
        let file = File::create(&path).map_err(Error::io(&path))?;
        Ok(Self {
            path,
            file,
            hash: Xxh3::new(),
            blocks: Vec::new(),
            lengths: Vec::new(),
            prompts: Vec::new(),
            sources: vec![Count::default(); options.sources],
            bytes: 0,
            buffer: Vec::new(),
        })
    }

    /// Writes whole blocks, or everything.
    fn flush(&mut self, last: bool) -> Result<()> {
        let whole = if last { self.buffer.len() } else { self.buffer.len() / BLOCK * BLOCK };
        let ready = &self.buffer[..whole];
        for block in ready.chunks(BLOCK) {
            // Twice over a block that is still in the cache.
            self.blocks.extend(block_hashes(block));
            self.hash.update(block);
        }
        self.file.write_all(ready).map_err(Error::io(&self.path))?;
        self.buffer.drain(..whole);
        Ok(())
    }
}

fn append<T: Token>(buffer: &mut Vec<u8>, ids: &[T], width: Width) {
    let at = buffer.len();
    buffer.resize(at + ids.len() * width.bytes() as usize, 0);
    let places = &mut buffer[at..];
    match width {
        Width::Two => {
            for (place, id) in places.chunks_exact_mut(2).zip(ids) {
                place.copy_from_slice(&(id.value() as u16).to_le_bytes());
            }
        }
        Width::Four => {
            for (place, id) in places.chunks_exact_mut(4).zip(ids) {
                place.copy_from_slice(&id.value().to_le_bytes());
            }
        }
    }
}

/// Megatron-LM's index: magic, version, type of ids, counts, then lengths (i32), byte offsets (i64)
/// and document bounds (i64; one sequence a document).
fn megatron_index(lengths: &[i32], width: Width) -> Vec<u8> {
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
    for length in lengths {
        out.extend_from_slice(&length.to_le_bytes());
    }
    let mut offset = 0_u64;
    for &length in lengths {
        out.extend_from_slice(&offset.to_le_bytes());
        offset += length as u64 * width.bytes();
    }
    for bound in 0..=count {
        out.extend_from_slice(&bound.to_le_bytes());
    }
    out
}
