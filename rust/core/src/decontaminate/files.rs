//! The n-gram scan of files, nothing written: what a corpus shares with the benchmarks.
//!
//! Plain JSON lines are searched as they lie on disk: a line's `text` is decoded only where something may
//! have been found, or where it holds `\u`. Everything else is read as every stage reads it.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ngrams::{GramSet, Hit};
use super::run::{Evidence, Tick, line};
use crate::corpus::{self, BOM, Corpus, MAX_ROW_BYTES, Reject, raw_row};
use crate::tokenizer::simd::Level;
use crate::{Error, Result};

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Usable rows.
    pub rows: u64,
    /// Rows that share an n-gram with some item.
    pub contaminated: u64,
    /// The same by item.
    pub by_item: Vec<u64>,
    /// One JSON object a row and item, at most as many as asked for.
    pub evidence: Vec<u8>,
    /// Lines of `evidence`.
    pub shown: usize,
    /// Rows set aside.
    pub rejects: Vec<Reject>,
}

/// Bytes of a file that each thread searches at a time: they stay in its near cache.
const BLOCK: usize = 1 << 20;

/// Scans files; evidence names the file and the row in it, from 1.
pub fn scan_files(
    inputs: &[PathBuf],
    extensions: &[String],
    names: &[String],
    grams: &GramSet,
    most: usize,
    threads: Option<usize>,
    tick: &mut dyn FnMut(Tick) -> Result<()>,
) -> Result<Scan> {
    let pool = super::pool(threads)?;
    let files = Corpus::list(inputs, extensions)?;
    let mut scan = Scan { by_item: vec![0; names.len()], ..Scan::default() };
    let mut pass = Pass { names, most, scan: &mut scan };
    for (at, path) in files.iter().enumerate() {
        let mut tick = |rows| tick(Tick { rows, files_left: files.len() - at - 1 });
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let plain = [".jsonl", ".ndjson"].iter().any(|end| name.ends_with(end));
        if plain {
            pass.json_lines(path, grams, &pool, &mut tick)?;
        } else {
            pass.other(path, extensions, grams, &pool, &mut tick)?;
        }
    }
    Ok(scan)
}

struct Pass<'a> {
    names: &'a [String],
    most: usize,
    scan: &'a mut Scan,
}

/// A row's id and text where it shares something; none where it does not.
type Found = Option<(String, String, Vec<Hit>)>;

impl Pass<'_> {
    fn found(&mut self, path: &Path, row: u64, found: &Found) -> Result<()> {
        self.scan.rows += 1;
        let Some((id, text, hits)) = found else {
            return Ok(());
        };
        self.scan.contaminated += u64::from(!hits.is_empty());
        for hit in hits {
            self.scan.by_item[hit.item as usize] += 1;
            if self.scan.shown < self.most {
                self.scan.shown += 1;
                let item = &self.names[hit.item as usize];
                let evidence = Evidence::in_file(id, path, row, item).showing(text, hit);
                line(&mut self.scan.evidence, &evidence)?;
            }
        }
        Ok(())
    }

    fn json_lines(
        &mut self,
        path: &Path,
        grams: &GramSet,
        pool: &rayon::ThreadPool,
        tick: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let mut buffer: Vec<u8> = Vec::new();
        let (mut row, mut ended) = (0, false);
        // The line that is under way is too long: it is set aside, and its rest passed over.
        let mut too_long = false;
        while !ended {
            let limit = (BLOCK * pool.current_num_threads()) as u64;
            let read =
                file.by_ref().take(limit).read_to_end(&mut buffer).map_err(Error::io(path))?;
            ended = read == 0;
            if row == 0 && buffer.starts_with(BOM) {
                buffer.drain(..BOM.len());
            }
            if too_long {
                let Some(end) = memchr::memchr(b'\n', &buffer) else {
                    buffer.clear();
                    continue;
                };
                buffer.drain(..=end);
                too_long = false;
            }
            let whole = match memchr::memrchr(b'\n', &buffer) {
                _ if ended => buffer.len(),
                Some(end) => end + 1,
                None => 0,
            };
            let lines: Vec<&[u8]> = split_lines(&buffer[..whole]);
            let found: Vec<_> = pool.install(|| {
                lines.par_iter().with_min_len(16).map(|line| json_line(line, grams)).collect()
            });
            for found in found {
                row += 1;
                match found {
                    Some(Ok(found)) => self.found(path, row, &found)?,
                    Some(Err(reason)) => self.reject(path, row, reason),
                    None => {}
                }
            }
            buffer.drain(..whole);
            if buffer.len() > MAX_ROW_BYTES {
                row += 1;
                self.reject(path, row, format!("longer than {MAX_ROW_BYTES} bytes"));
                buffer.clear();
                too_long = true;
            }
            tick(self.scan.rows)?;
        }
        Ok(())
    }

    fn other(
        &mut self,
        path: &Path,
        extensions: &[String],
        grams: &GramSet,
        pool: &rayon::ThreadPool,
        tick: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let corpus = Corpus::open(&[path.to_path_buf()], extensions)?;
        let mut batches = corpus.batches();
        let mut row = 0;
        while let Some(batch) = batches.next() {
            let batch = batch?;
            let (ids, texts) = (corpus::ids(&batch), corpus::texts(&batch));
            let found: Vec<Found> = pool.install(|| {
                let one = |i| {
                    let hits = grams.scan(texts.value(i));
                    let shared =
                        || (ids.value(i).to_owned(), texts.value(i).to_owned(), hits.clone());
                    (!hits.is_empty()).then(shared)
                };
                (0..batch.num_rows()).into_par_iter().with_min_len(16).map(one).collect()
            });
            let rejects = batches.take_rejects();
            let mut passed = rejects.iter().map(|reject| reject.row).peekable();
            for found in &found {
                row += 1;
                while passed.next_if_eq(&row).is_some() {
                    row += 1;
                }
                self.found(path, row, found)?;
            }
            row += passed.count() as u64;
            self.scan.rejects.extend(rejects);
            tick(self.scan.rows)?;
        }
        self.scan.rejects.extend(batches.take_rejects());
        Ok(())
    }

    fn reject(&mut self, path: &Path, row: u64, reason: String) {
        self.scan.rejects.push(Reject { path: path.to_path_buf(), row, reason });
    }
}

fn split_lines(block: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', block) {
        lines.push(&block[start..end]);
        start = end + 1;
    }
    if start < block.len() {
        lines.push(&block[start..]);
    }
    lines
}

/// A row's values as they stand in its line; of a key that stands there twice the last, as elsewhere.
type Row<'a> = FxHashMap<Name<'a>, &'a RawValue>;

/// A key, borrowed where it has no escape.
#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// What a line shares, or why it is set aside; none for an empty line.
fn json_line(line: &[u8], grams: &GramSet) -> Option<std::result::Result<Found, String>> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return None;
    }
    // The quick check does not say where.
    let text = simdutf8::basic::from_utf8(line).or_else(|_| std::str::from_utf8(line));
    let text = match text {
        Ok(text) => text,
        Err(e) => return Some(Err(format!("not UTF-8 at byte {}", e.valid_up_to()))),
    };
    Some(json_text(text, grams))
}

fn json_text(line: &str, grams: &GramSet) -> std::result::Result<Found, String> {
    let (raw, id) = if let Some(row) = raw_row(line.trim_ascii_end(), Level::best()) {
        row
    } else {
        let row = serde_json::from_str::<Row<'_>>(line).map_err(|e| {
            let is_object = line.trim_start().starts_with('{');
            if is_object { format!("not JSON: {e}") } else { "not a JSON object".to_owned() }
        })?;
        let value = |name| row.get(&Name(Cow::Borrowed(name))).map(|raw| raw.get());
        (value("text").ok_or("no `text`")?, value("id"))
    };
    let Some(inside) = raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')) else {
        return Err("`text` is not a string".to_owned());
    };
    if !grams.may_be_in_json(inside) {
        return Ok(None);
    }
    let text: String = serde_json::from_str(raw).map_err(|e| format!("not JSON: {e}"))?;
    let hits = grams.scan(&text);
    if hits.is_empty() {
        return Ok(None);
    }
    let id = id.map_or_else(
        || corpus::text_id(&text),
        |id| serde_json::from_str(id).unwrap_or_else(|_| id.to_owned()),
    );
    Ok(Some((id, text, hits)))
}
