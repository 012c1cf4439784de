//! Repeated spans: what stands in the corpus more than once, in runs of at least L words, stays once.
//!
//! Exactly: take runs of L words in input order. A run is a repeat if the same L words (by 64-bit
//! hash) stand before it uncut, in an earlier document or at least L words before in this one. Every
//! word in a repeat is cut. So each cut word stands in the result, within the run it was cut with; what
//! a cut only touches does not count as standing there. Cuts start and end with a word, hence never
//! within a character.
//!
//! Cost: two reads; memory one byte a run (rounded up to a power of two) and about 32 bytes a distinct
//! run that is repeated.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use serde::Serialize;

use super::Progress;
use super::evidence::{push_line, write_evidence};
use super::grams::gram_hashes;
use super::spill::Names;
use crate::corpus::{self, Corpus, Part, PartWriter, Reject};
use crate::tokenizer::Level;
use crate::words::each_word_hash;
use crate::{Error, Result};

/// What a run did.
#[derive(Debug)]
pub struct Spans {
    /// Files of the rows that are left.
    pub parts: Vec<Part>,
    /// `evidence/removed.json`: one JSON object a cut.
    pub evidence: Part,
    /// Usable rows read.
    pub rows: u64,
    /// Rows of which no word was left.
    pub emptied: u64,
    /// Rows of which some words were cut.
    pub shortened: u64,
    /// Cuts made.
    pub cuts: u64,
    /// Bytes of text read, and cut.
    pub bytes: (u64, u64),
    /// Rows set aside.
    pub rejects: Vec<Reject>,
}

#[derive(Serialize)]
struct Cut<'a> {
    id: &'a str,
    row: u64,
    start: usize,
    end: usize,
    words: usize,
    first_id: &'a str,
    first_row: u64,
    rule: &'static str,
}

/// A text's words and the hashes of its runs.
struct Runs {
    words: Vec<Range<usize>>,
    runs: Vec<u64>,
}

fn runs_of(text: &str, length: usize) -> Runs {
    let (mut words, mut hashes) = (Vec::new(), Vec::new());
    each_word_hash(text, Level::best(), |start, end, hash| {
        words.push(start..end);
        hashes.push(hash);
    });
    Runs { words, runs: gram_hashes(&hashes, length).collect() }
}

fn all_runs(batch: &RecordBatch, length: usize) -> Vec<Runs> {
    let texts = corpus::texts(batch);
    (0..batch.num_rows()).into_par_iter().map(|i| runs_of(texts.value(i), length)).collect()
}

/// Runs that may be there more than once: every one that is, and few others.
struct Often(Vec<AtomicU8>);

impl Often {
    fn new(corpus: &Corpus) -> Self {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let bytes: u64 = corpus.files().map(size).sum();
        let count = (bytes as usize).clamp(1 << 16, 1 << 32).next_power_of_two();
        Self(std::iter::repeat_with(|| AtomicU8::new(0)).take(count).collect())
    }

    fn counter(&self, hash: u64) -> &AtomicU8 {
        &self.0[(hash >> 7) as usize & (self.0.len() - 1)]
    }

    fn has(&self, hash: u64) -> bool {
        self.counter(hash).load(Ordering::Relaxed) >= 2
    }

    fn add(&self, hash: u64) {
        let more = |count: u8| (count < 2).then_some(count + 1);
        let _ = self.counter(hash).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }
}

/// Copies a corpus without repeated runs of `length` words into `out`. Runs on the current rayon pool.
pub fn substring(
    corpus: &Corpus,
    out: &Path,
    length: usize,
    progress: Progress<'_>,
) -> Result<Spans> {
    let often = Often::new(corpus);
    let mut names = Names::new(None)?;
    for batch in corpus.batches() {
        let batch = batch?;
        all_runs(&batch, length)
            .par_iter()
            .flat_map(|one| &one.runs)
            .for_each(|run| often.add(*run));
        corpus::ids(&batch).iter().try_for_each(|id| names.push(id.unwrap_or_default()))?;
        progress("reading", names.len() as u64, None)?;
    }
    let mut first: FxHashMap<u64, u32> = FxHashMap::default();
    let mut lines = Vec::new();
    let mut done = Spans {
        parts: Vec::new(),
        evidence: Part { name: String::new(), rows: 0, bytes: 0, xxh3: String::new() },
        rows: 0,
        emptied: 0,
        shortened: 0,
        cuts: 0,
        bytes: (0, 0),
        rejects: Vec::new(),
    };
    let mut writer = PartWriter::create(out, corpus.schema())?;
    let mut batches = corpus.batches();
    while let Some(batch) = batches.next() {
        let batch = batch?;
        if done.rows as usize + batch.num_rows() > names.len() {
            return Err(corpus.changed());
        }
        let texts = corpus::texts(&batch);
        let mut kept = Vec::with_capacity(batch.num_rows());
        for (i, one) in all_runs(&batch, length).into_iter().enumerate() {
            let (row, text) = (done.rows as u32, texts.value(i));
            let cuts = repeats(&one, row, length, &often, &mut first);
            let mut left = String::with_capacity(text.len());
            let (mut end, mut cut_words) = (0, 0);
            for (words, from) in cuts {
                let span = one.words[words.start].start..one.words[words.end - 1].end;
                left.push_str(&text[end..span.start]);
                end = span.end;
                cut_words += words.len();
                let cut = Cut {
                    id: &names.get(row as usize)?,
                    row: u64::from(row),
                    start: span.start,
                    end: span.end,
                    words: words.len(),
                    first_id: &names.get(from as usize)?,
                    first_row: u64::from(from),
                    rule: "substring",
                };
                push_line(&mut lines, &cut)?;
                done.cuts += 1;
                done.bytes.1 += span.len() as u64;
            }
            done.bytes.0 += text.len() as u64;
            left.push_str(&text[end..]);
            let emptied = cut_words > 0 && cut_words == one.words.len();
            done.emptied += u64::from(emptied);
            done.shortened += u64::from(cut_words > 0 && !emptied);
            kept.push((!emptied).then_some(left));
            done.rows += 1;
        }
        writer.write(&with_texts(&batch, &kept)?)?;
        done.rejects.extend(batches.take_rejects());
        progress("cutting", done.rows, Some(names.len() as u64))?;
    }
    done.rejects.extend(batches.take_rejects());
    if done.rows as usize != names.len() {
        return Err(corpus.changed());
    }
    corpus::write_rejected(out, &done.rejects)?;
    done.parts = writer.finish()?;
    done.evidence = write_evidence(out, &lines, done.cuts)?;
    Ok(done)
}

/// The word ranges of a document that are repeats, each with the document in which its first run
/// stands. `first` learns where the runs stand that no cut touches.
fn repeats(
    one: &Runs,
    row: u32,
    length: usize,
    often: &Often,
    first: &mut FxHashMap<u64, u32>,
) -> Vec<(Range<usize>, u32)> {
    let mut cuts: Vec<(Range<usize>, u32)> = Vec::new();
    // Whatever cut may touch a run has been made once a run is looked at that starts behind it.
    let learn = |at: usize, cuts: &[(Range<usize>, u32)], first: &mut FxHashMap<_, _>| {
        let run = one.runs[at];
        if often.has(run) && cuts.last().is_none_or(|(words, _)| words.end <= at) {
            first.entry(run).or_insert(row);
        }
    };
    for (at, run) in one.runs.iter().enumerate() {
        if at >= length {
            learn(at - length, &cuts, first);
        }
        if !often.has(*run) {
            continue;
        }
        let Some(from) = first.get(run) else { continue };
        match cuts.last_mut() {
            Some((words, _)) if words.end >= at => words.end = at + length,
            _ => cuts.push((at..at + length, *from)),
        }
    }
    for at in one.runs.len().saturating_sub(length)..one.runs.len() {
        learn(at, &cuts, first);
    }
    cuts
}

/// A batch with other texts, without the rows that have none.
fn with_texts(batch: &RecordBatch, texts: &[Option<String>]) -> Result<RecordBatch> {
    let fail = |e: arrow::error::ArrowError| Error::config(e.to_string());
    let column: StringArray =
        texts.iter().map(|text| Some(text.as_deref().unwrap_or_default())).collect();
    let mut columns = batch.columns().to_vec();
    let place = batch.schema().index_of("text").map_err(fail)?;
    columns[place] = Arc::new(column) as ArrayRef;
    let batch = RecordBatch::try_new(batch.schema(), columns).map_err(fail)?;
    let mask: BooleanArray = texts.iter().map(|text| Some(text.is_some())).collect();
    filter_record_batch(&batch, &mask).map_err(fail)
}
