//! Samples out of packed files: sample `number` is a pure function of files, options and seed.
//!
//! Files are mapped, not read: memory is the plan (best-fit only, 16 bytes a document) and what the
//! system caches. Everything a sample touches was checked when the data set was opened, except the
//! ids themselves, which are checked against the vocabulary as they are read.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::order::{Permutation, Schedule, mix};
use super::{Plan, Width};
use crate::{Error, Result};

/// The label that a loss leaves out.
pub const IGNORED: i64 = -100;

/// How samples are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Windows over all documents as one stream.
    Concat,
    /// Whole documents in rows.
    BestFit,
}

/// The files of one part and what their manifest says of them.
#[derive(Debug, Clone)]
pub struct PartFiles {
    /// Ids.
    pub tokens: PathBuf,
    /// Document ends.
    pub index: PathBuf,
    /// Prompt tokens of each document.
    pub prompts: Option<PathBuf>,
    /// Documents in it.
    pub documents: u64,
    /// Size of the ids.
    pub bytes: u64,
}

/// Parts that are read as one stream.
#[derive(Debug, Clone)]
pub struct SourceFiles {
    /// The parts, in order.
    pub parts: Vec<(PartFiles, Width)>,
    /// Its share of the samples, relative to the other sources.
    pub weight: u64,
}

/// What to make of the files.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Tokens in a sample.
    pub length: u32,
    /// How samples are cut.
    pub method: Method,
    /// Of the order.
    pub seed: u64,
    /// The id that pads.
    pub end_of_text: u32,
    /// Ids at or above are damage.
    pub vocab_size: u32,
}

/// Samples, one after another.
#[derive(Debug, Default)]
pub struct Batch {
    /// Tokens.
    pub inputs: Vec<i64>,
    /// The token after each, or [`IGNORED`].
    pub labels: Vec<i64>,
    /// Whether the label belongs to a prompt.
    pub prompts: Vec<bool>,
    /// For each sample, where its documents begin, from 0 to the length.
    pub bounds: Vec<Vec<i32>>,
}

struct Part {
    path: PathBuf,
    tokens: Mmap,
    ends: Mmap,
    prompts: Option<Mmap>,
    width: Width,
    documents: usize,
    /// Tokens of the source before this part, and in it.
    first: u64,
    count: u64,
}

struct Source {
    parts: Vec<Part>,
    tokens: u64,
    plan: Option<Plan>,
    rows: u64,
}

/// An endless, shuffled stream of samples.
pub struct Dataset {
    sources: Vec<Source>,
    schedule: Schedule,
    options: Options,
}

fn map(path: &Path, expected: u64) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path))?;
    let found = file.metadata().map_err(Error::io(path))?.len();
    if found != expected {
        return Err(Error::input(
            path,
            format!(
                "{found} bytes, but the manifest asks for {expected}: torn or replaced; pack again"
            ),
        ));
    }
    // SAFETY: a finished stage's files are never written again by this package. Should anyone else
    // cut one short while it is mapped, the process stops with a bus error; no file API can prevent
    // that, and it is the price of sharing one page cache between all ranks of a machine.
    #[allow(unsafe_code)]
    let mapped = unsafe { Mmap::map(&file) };
    mapped.map_err(Error::io(path))
}

impl Part {
    fn open(files: &PartFiles, width: Width, first: u64) -> Result<Self> {
        let part = Self {
            path: files.tokens.clone(),
            tokens: map(&files.tokens, files.bytes)?,
            ends: map(&files.index, files.documents * 8)?,
            prompts: files.prompts.as_ref().map(|p| map(p, files.documents * 4)).transpose()?,
            width,
            documents: files.documents as usize,
            first,
            count: files.bytes / width.bytes(),
        };
        let mut last = 0;
        for document in 0..part.documents {
            let end = part.end(document);
            if end <= last {
                return Err(Error::input(
                    &files.index,
                    format!(
                        "document {document} ends at token {end}, after one that ends at {last}"
                    ),
                ));
            }
            last = end;
        }
        if last * width.bytes() != files.bytes {
            let message = format!("its documents have {last} tokens, the .bin {}", part.count);
            return Err(Error::input(&files.index, message));
        }
        Ok(part)
    }

    /// Where a document ends, in tokens of this part.
    fn end(&self, document: usize) -> u64 {
        let bytes = &self.ends[document * 8..document * 8 + 8];
        u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
    }

    fn start(&self, document: usize) -> u64 {
        document.checked_sub(1).map_or(0, |before| self.end(before))
    }

    fn prompt(&self, document: usize) -> u64 {
        self.prompts.as_ref().map_or(0, |prompts| {
            let bytes = &prompts[document * 4..document * 4 + 4];
            u64::from(u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
        })
    }

    /// The document that holds a token.
    fn document_of(&self, token: u64) -> usize {
        let (mut low, mut high) = (0, self.documents);
        while low < high {
            let middle = low.midpoint(high);
            if self.end(middle) <= token { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Appends tokens `from..to` of this part.
    fn read(&self, from: u64, to: u64, vocab_size: u32, out: &mut Vec<i64>) -> Result<()> {
        let bytes = |from: u64| (from * self.width.bytes()) as usize;
        let stored = &self.tokens[bytes(from)..bytes(to)];
        let before = out.len();
        match self.width {
            Width::Two => out.extend(
                stored.chunks_exact(2).map(|b| i64::from(u16::from_le_bytes([b[0], b[1]]))),
            ),
            Width::Four => out.extend(
                stored
                    .chunks_exact(4)
                    .map(|b| i64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            ),
        }
        let largest = out[before..].iter().copied().max().unwrap_or(0);
        if largest >= i64::from(vocab_size) {
            return Err(Error::input(
                &self.path,
                format!(
                    "id {largest} among tokens {from}..{to}, but the vocabulary has {vocab_size}: \
                     damaged; check the folder with `hornbook verify`"
                ),
            ));
        }
        Ok(())
    }
}

impl Source {
    fn open(files: &SourceFiles, options: Options) -> Result<Self> {
        let mut parts: Vec<Part> = Vec::with_capacity(files.parts.len());
        let mut tokens = 0;
        for (part, width) in &files.parts {
            parts.push(Part::open(part, *width, tokens)?);
            tokens = parts.last().map_or(0, |part| part.first + part.count);
        }
        let plan = (options.method == Method::BestFit).then(|| {
            let documents = parts.iter().flat_map(|part| {
                (0..part.documents).map(|document| {
                    let start = part.start(document);
                    (part.first + start, part.end(document) - start)
                })
            });
            Plan::best_fit(documents, options.length)
        });
        // The last token of the stream is only ever a label.
        let windows = tokens.saturating_sub(1).div_ceil(u64::from(options.length));
        let rows = plan.as_ref().map_or(windows, |plan| plan.len() as u64);
        if rows == 0 {
            return Err(Error::config(format!(
                "a packed data set of {tokens} tokens holds no sample"
            )));
        }
        Ok(Self { parts, tokens, plan, rows })
    }

    /// The parts that overlap tokens `from..to`, each with the overlap in its own count.
    fn overlaps(&self, from: u64, to: u64) -> impl Iterator<Item = (&Part, u64, u64)> {
        let begin = self.parts.partition_point(|part| part.first + part.count <= from);
        self.parts[begin..].iter().take_while(move |part| part.first < to).map(move |part| {
            (part, from.saturating_sub(part.first), (to - part.first).min(part.count))
        })
    }

    fn read(&self, from: u64, to: u64, vocab_size: u32, out: &mut Vec<i64>) -> Result<()> {
        self.overlaps(from, to)
            .try_for_each(|(part, from, to)| part.read(from, to, vocab_size, out))
    }

    /// The documents that overlap tokens `from..to`: start, end and prompt tokens.
    fn documents(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        self.overlaps(from, to).flat_map(|(part, from, to)| {
            (part.document_of(from)..part.documents)
                .map(|document| (part.start(document), part.end(document), part.prompt(document)))
                .take_while(move |(start, ..)| *start < to)
                .map(|(start, end, prompt)| (part.first + start, part.first + end, prompt))
        })
    }
}

impl Dataset {
    /// Opens and checks the files; plans the rows for [`Method::BestFit`].
    pub fn open(sources: &[SourceFiles], options: Options) -> Result<Self> {
        if options.length == 0 || options.length > 1 << 24 {
            return Err(Error::config(format!(
                "sequence_length = {}: give 1 to {}",
                options.length,
                1 << 24
            )));
        }
        let schedule = Schedule::new(sources.iter().map(|source| source.weight).collect());
        let sources: Result<Vec<Source>> =
            sources.iter().map(|files| Source::open(files, options)).collect();
        Ok(Self { sources: sources?, schedule, options })
    }

    /// Samples that hold every token of every source once.
    pub fn samples_per_epoch(&self) -> u64 {
        self.sources.iter().map(|source| source.rows).sum()
    }

    /// Tokens stored.
    pub fn tokens(&self) -> u64 {
        self.sources.iter().map(|source| source.tokens).sum()
    }

    /// Samples `first..first + count` of the stream.
    pub fn batch(&self, first: u64, count: usize) -> Result<Batch> {
        let length = self.options.length as usize;
        let mut batch = Batch {
            inputs: vec![i64::from(self.options.end_of_text); count * length],
            labels: vec![IGNORED; count * length],
            prompts: vec![false; count * length],
            bounds: Vec::with_capacity(count),
        };
        let mut scratch = Vec::with_capacity(length + 1);
        for sample in 0..count {
            let number = first + sample as u64;
            let at = sample * length;
            let bounds = self.sample(number, at, &mut batch, &mut scratch)?;
            batch.bounds.push(bounds);
        }
        Ok(batch)
    }

    fn sample(
        &self,
        number: u64,
        mut at: usize,
        batch: &mut Batch,
        scratch: &mut Vec<i64>,
    ) -> Result<Vec<i32>> {
        let (index, before) = self.schedule.at(number);
        let source = &self.sources[index];
        let seed = self.options.seed.wrapping_add(mix(index as u64));
        let order = Permutation::new(source.rows, seed, before / source.rows);
        let row = order.at(before % source.rows);
        let mut bounds = vec![0];
        if let Some(plan) = &source.plan {
            let mut filled = 0;
            for piece in plan.row(row as usize) {
                let length = u64::from(piece.length);
                self.span(source, piece.start, length, piece.continues, at, batch, scratch)?;
                at += length as usize;
                filled += piece.length as i32;
                bounds.push(filled);
            }
        } else {
            let start = row * u64::from(self.options.length);
            let length = u64::from(self.options.length).min(source.tokens - 1 - start);
            self.span(source, start, length, true, at, batch, scratch)?;
            let ends = source.documents(start, start + length);
            bounds.extend(
                ends.filter(|(_, end, _)| *end < start + length)
                    .map(|(_, end, _)| (end - start) as i32),
            );
            bounds.push(length as i32);
        }
        if bounds.last() != Some(&(self.options.length as i32)) {
            bounds.push(self.options.length as i32);
        }
        Ok(bounds)
    }

    /// Copies `length` tokens, their labels (the last one only if `labelled`) and prompt marks.
    #[expect(clippy::too_many_arguments)]
    fn span(
        &self,
        source: &Source,
        start: u64,
        length: u64,
        labelled: bool,
        at: usize,
        batch: &mut Batch,
        scratch: &mut Vec<i64>,
    ) -> Result<()> {
        let count = length as usize;
        let to = start + length + u64::from(labelled);
        scratch.clear();
        source.read(start, to, self.options.vocab_size, scratch)?;
        batch.inputs[at..at + count].copy_from_slice(&scratch[..count]);
        batch.labels[at..at + scratch.len() - 1].copy_from_slice(&scratch[1..]);
        if source.parts.iter().any(|part| part.prompts.is_some()) {
            for (first, end, prompt) in source.documents(start + 1, to) {
                let from = first.max(start + 1);
                let upto = first.saturating_add(prompt).min(end).min(to);
                if from < upto {
                    let shift = |token: u64| at + (token - start - 1) as usize;
                    batch.prompts[shift(from)..shift(upto)].fill(true);
                }
            }
        }
        Ok(())
    }
}
