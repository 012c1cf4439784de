//! Samples out of packed files: sample `number` is a pure function of files, options and seed.
//!
//! Files are mapped, not read, and each block is checked when it is first touched: memory is what the
//! system caches, opening costs the same for any size (best-fit makes its plan once, and later maps
//! it), and any sample is found in constant time.

use std::path::PathBuf;

use super::order::{Permutation, Schedule, mix};
use super::part::{self, Document, Number, Part, PartFiles};
use super::plan::Plan;
use crate::corpus::hash_bytes;
use crate::{Error, Result};

/// How samples are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Windows over all documents as one stream.
    Concat,
    /// Whole documents in rows.
    BestFit,
}

/// Parts that are read as one stream.
#[derive(Debug, Clone)]
pub struct SourceFiles {
    /// The parts, in order.
    pub parts: Vec<PartFiles>,
    /// What the documents' lengths are known by: hashes of the indexes.
    pub identity: String,
    /// Where plans are kept.
    pub plans: PathBuf,
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
    /// The id that ends documents, and pads.
    pub end_of_text: u32,
}

/// Where samples go: each slice holds `count * length` entries, or is left out.
#[derive(Debug)]
pub struct Fields<'a, N> {
    /// Tokens.
    pub inputs: &'a mut [N],
    /// The token after each, or [`Number::IGNORED`].
    pub labels: Option<&'a mut [N]>,
    /// Each token's place in its document's stretch of the sample.
    pub positions: Option<&'a mut [N]>,
    /// Whether the label belongs to a prompt.
    pub prompts: Option<&'a mut [bool]>,
}

impl<'a, N> Fields<'a, N> {
    /// The first `count` entries of each, and the rest.
    fn split(self, count: usize) -> (Self, Self) {
        fn cut<T>(slice: Option<&mut [T]>, count: usize) -> (Option<&mut [T]>, Option<&mut [T]>) {
            slice.map(|slice| slice.split_at_mut(count)).unzip()
        }
        let inputs: (&'a mut [N], &'a mut [N]) = self.inputs.split_at_mut(count);
        let (labels, positions) = (cut(self.labels, count), cut(self.positions, count));
        let prompts = cut(self.prompts, count);
        (
            Self { inputs: inputs.0, labels: labels.0, positions: positions.0, prompts: prompts.0 },
            Self { inputs: inputs.1, labels: labels.1, positions: positions.1, prompts: prompts.1 },
        )
    }
}

struct Source {
    parts: Vec<Part>,
    tokens: u64,
    plan: Option<Plan>,
    rows: u64,
    has_prompts: bool,
}

/// An endless, shuffled stream of samples.
pub struct Dataset {
    sources: Vec<Source>,
    schedule: Schedule,
    options: Options,
}

impl Source {
    fn open(files: &SourceFiles, options: Options) -> Result<Self> {
        let mut parts: Vec<Part> = Vec::with_capacity(files.parts.len());
        let mut tokens = 0;
        for part in &files.parts {
            parts.push(Part::open(part, tokens, options.end_of_text)?);
            tokens = parts.last().map_or(0, |part| part.first + part.count);
        }
        let plan = (options.method == Method::BestFit).then(|| {
            let hash = hash_bytes(format!("{} {}", files.identity, options.length).as_bytes());
            let key = u128::from_str_radix(&hash, 16).expect("32 hexadecimal digits");
            let path = files.plans.join(format!("{}-{}.plan", options.length, &hash[..16]));
            let documents = parts.iter().flat_map(Part::lengths);
            Plan::open_or_make(&path, key, documents, options.length)
        });
        let plan = plan.transpose()?;
        // The last token of the stream is only ever a label.
        let windows = tokens.saturating_sub(1).div_ceil(u64::from(options.length));
        let rows = plan.as_ref().map_or(windows, |plan| plan.len() as u64);
        if rows == 0 {
            return Err(Error::config(format!(
                "a packed data set of {tokens} tokens holds no sample"
            )));
        }
        let has_prompts = parts.iter().any(Part::has_prompts);
        Ok(Self { parts, tokens, plan, rows, has_prompts })
    }

    /// The parts that overlap tokens `from..to`, each with the overlap in its own count.
    fn overlaps(&self, from: u64, to: u64) -> impl Iterator<Item = (&Part, u64, u64)> {
        let begin = self.parts.partition_point(|part| part.first + part.count <= from);
        self.parts[begin..].iter().take_while(move |part| part.first < to).map(move |part| {
            (part, from.saturating_sub(part.first), (to - part.first).min(part.count))
        })
    }

    fn copy<N: Number>(&self, from: u64, mut out: &mut [N]) -> Result<()> {
        for (part, from, to) in self.overlaps(from, from + out.len() as u64) {
            let (here, rest) = out.split_at_mut((to - from) as usize);
            part.copy(from, here)?;
            out = rest;
        }
        Ok(())
    }

    /// The documents that overlap tokens `from..to`.
    fn documents(&self, from: u64, to: u64) -> impl Iterator<Item = Result<Document>> {
        self.overlaps(from, to).flat_map(|(part, from, to)| {
            part.documents_from(from)
                .take_while(move |found| found.as_ref().map_or(true, |found| found.start < to))
                .map(|found| {
                    found.map(|Document { start, end, prompt }| Document {
                        start: part.first + start,
                        end: part.first + end,
                        prompt,
                    })
                })
        })
    }

    /// Copies `length` tokens, their labels (the last one only if `labelled`) and prompt marks to the
    /// front of `out`.
    fn span<N: Number>(
        &self,
        (start, length, labelled): (u64, usize, bool),
        out: &mut Fields<N>,
    ) -> Result<()> {
        self.copy(start, &mut out.inputs[..length])?;
        let next = length - usize::from(!labelled);
        if let Some(labels) = &mut out.labels {
            self.copy(start + 1, &mut labels[..next])?;
            labels[next..length].fill(N::IGNORED);
        }
        if let Some(prompts) = &mut out.prompts {
            prompts[..length].fill(false);
            if self.has_prompts {
                let to = start + 1 + next as u64;
                for document in self.documents(start + 1, to) {
                    let Document { start: first, end, prompt } = document?;
                    let from = first.max(start + 1);
                    let upto = first.saturating_add(prompt).min(end).min(to);
                    if from < upto {
                        let shift = |token: u64| (token - start - 1) as usize;
                        prompts[shift(from)..shift(upto)].fill(true);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Dataset {
    /// Opens the files; finds or makes the plan of the rows for [`Method::BestFit`].
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

    /// For each source: samples of an epoch, and samples among the first `number` of the stream.
    pub fn counts(&self, number: u64) -> Vec<(u64, u64)> {
        let rows = self.sources.iter().map(|source| source.rows);
        rows.zip(self.schedule.counts(number)).collect()
    }

    /// Writes samples `first..first + count` of the stream, shared out to so many threads.
    ///
    /// Returns where documents begin in the samples laid end to end, from 0 to `count * length`;
    /// every sample begins a new one.
    pub fn fill<N: Number>(
        &self,
        first: u64,
        count: usize,
        fields: Fields<N>,
        threads: usize,
    ) -> Result<Vec<i32>> {
        let length = self.options.length as usize;
        if count.checked_mul(length).is_none_or(|tokens| tokens > i32::MAX as usize) {
            return Err(Error::config(format!(
                "a batch of {count} samples of {length} tokens: give fewer than 2^31 tokens"
            )));
        }
        assert_eq!(fields.inputs.len(), count * length, "the caller's buffers fit");
        let share = count.div_ceil(threads.max(1)).max(1);
        let mut bounds = vec![0];
        if share >= count {
            self.fill_some(first, fields, 0, &mut bounds)?;
            return Ok(bounds);
        }
        // Threads of this call alone: nothing is left running, so a process may fork at any time.
        let found: Vec<Result<Vec<i32>>> = std::thread::scope(|scope| {
            let mut rest = Some(fields);
            let mut workers = Vec::new();
            for begin in (0..count).step_by(share) {
                let here = share.min(count - begin);
                let (mine, others) = rest.take().expect("put back").split(here * length);
                rest = Some(others);
                workers.push(scope.spawn(move || {
                    let mut bounds = Vec::new();
                    let shift = (begin * length) as i32;
                    self.fill_some(first + begin as u64, mine, shift, &mut bounds)?;
                    Ok(bounds)
                }));
            }
            let join = |worker: std::thread::ScopedJoinHandle<'_, Result<Vec<i32>>>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect()
        });
        for part in found {
            bounds.extend(part?);
        }
        Ok(bounds)
    }

    fn fill_some<N: Number>(
        &self,
        first: u64,
        fields: Fields<N>,
        mut shift: i32,
        bounds: &mut Vec<i32>,
    ) -> Result<()> {
        let length = self.options.length as usize;
        let count = fields.inputs.len() / length;
        let mut rest = fields;
        for number in first..first + count as u64 {
            let (sample, others) = rest.split(length);
            self.sample(number, sample, shift, bounds)?;
            rest = others;
            shift += length as i32;
        }
        Ok(())
    }

    fn sample<N: Number>(
        &self,
        number: u64,
        mut out: Fields<N>,
        shift: i32,
        bounds: &mut Vec<i32>,
    ) -> Result<()> {
        let (index, before) = self.schedule.at(number);
        let source = &self.sources[index];
        let seed = self.options.seed.wrapping_add(mix(index as u64));
        let order = Permutation::new(source.rows, seed, before / source.rows);
        let row = order.at(before % source.rows);
        let size = self.options.length;
        let begun = bounds.len();
        let mut filled = 0;
        if let Some(plan) = &source.plan {
            for piece in plan.row(row as usize)? {
                let length = piece.length as usize;
                let end = piece.start.checked_add(u64::from(piece.length));
                let fits = end.is_some_and(|end| end <= source.tokens);
                if !fits || filled + length > size as usize {
                    return Err(Error::config("the plan does not belong to these files"));
                }
                let mut here = Fields {
                    inputs: &mut out.inputs[filled..],
                    labels: out.labels.as_deref_mut().map(|labels| &mut labels[filled..]),
                    positions: None,
                    prompts: out.prompts.as_deref_mut().map(|prompts| &mut prompts[filled..]),
                };
                source.span((piece.start, length, piece.continues), &mut here)?;
                filled += length;
                bounds.push(shift + filled as i32);
            }
        } else {
            let start = row * u64::from(size);
            filled = u64::from(size).min(source.tokens - 1 - start) as usize;
            source.span((start, filled, true), &mut out)?;
            let mut at = shift;
            for (part, from, to) in source.overlaps(start, start + filled as u64) {
                part.ends(from, to, self.options.end_of_text, at, bounds)?;
                at += (to - from) as i32;
            }
            if bounds.len() == begun || bounds.last() != Some(&at) {
                bounds.push(at);
            }
        }
        out.inputs[filled..].fill(N::of(self.options.end_of_text));
        if let Some(labels) = &mut out.labels {
            labels[filled..].fill(N::IGNORED);
        }
        if let Some(prompts) = &mut out.prompts {
            prompts[filled..].fill(false);
        }
        if filled < size as usize {
            bounds.push(shift + size as i32);
        }
        if let Some(positions) = &mut out.positions {
            let mut from = 0;
            for &bound in &bounds[begun..] {
                let to = (bound - shift) as usize;
                part::positions(&mut positions[from..to]);
                from = to;
            }
        }
        Ok(())
    }
}
