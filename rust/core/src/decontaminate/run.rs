//! The passes over a corpus: the stage itself, and a scan that only looks.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use serde::{Deserialize, Serialize};

use super::ngrams::{GramSet, Hit, show};
use super::report::{ItemReport, Neighbour, SweepRow, keep_best};
use super::{Combine, Embed, Index, Item, Match, Options, judge};
use crate::corpus::{self, Corpus, Part, PartWriter, Reject};
use crate::{Error, Result};

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Tick {
    /// Usable rows so far.
    pub rows: u64,
    /// Files that are not yet begun.
    pub files_left: usize,
}

/// What a run did.
#[derive(Debug)]
pub struct Summary {
    /// Files of kept rows.
    pub parts: Vec<Part>,
    /// `evidence/removed.json` and `problems.json`.
    pub evidence: Vec<Part>,
    /// Usable rows read.
    pub rows: u64,
    /// Rows removed, by the first reason that holds.
    pub dropped: Dropped,
    /// Rows set aside.
    pub rejects: Vec<Reject>,
    /// By problem.
    pub items: Vec<ItemReport>,
    /// By threshold.
    pub sweep: Vec<SweepRow>,
}

/// Rows removed, by the first reason that holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Dropped {
    /// An n-gram.
    pub ngram: u64,
    /// A function, or a function and the embedding where both are asked for.
    pub ast: u64,
    /// The embedding.
    pub embedding: u64,
}

/// Everything a run knows between two batches: what a checkpoint holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    rows: u64,
    dropped: Dropped,
    items: Vec<ItemReport>,
    /// By item and threshold of the sweep.
    similar: Vec<Vec<bool>>,
    /// Documents by threshold of the sweep.
    pruned: Vec<u64>,
    parts: Vec<Part>,
    evidence_bytes: u64,
    evidence_rows: u64,
}

/// One line of evidence.
#[derive(Serialize, Default)]
pub(super) struct Evidence<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a Path>,
    row: u64,
    item: &'a str,
    rule: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ngram: Option<String>,
    /// Words in the first shared run.
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<usize>,
    /// Distinct n-grams of the item that the document holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    grams: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    distance: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
}

impl<'a> Evidence<'a> {
    /// Of an n-gram in a file.
    pub(super) fn in_file(id: &'a str, path: &'a Path, row: u64, item: &'a str) -> Self {
        Self { id, path: Some(path), row, item, rule: "ngram", ..Self::default() }
    }

    /// With what a document shares.
    pub(super) fn showing(self, text: &str, hit: &Hit) -> Self {
        let shown = show(text, hit);
        Self {
            field: Some(FIELDS[usize::from(hit.field)]),
            ngram: Some(shown.ngram),
            words: Some(shown.words),
            grams: Some(hit.grams),
            line: Some(shown.line),
            context: Some(shown.context),
            ..self
        }
    }
}

/// Names of the fields of items, by number.
pub const FIELDS: [&str; 3] = ["docstring", "program", "tests"];

/// Rows that are judged before the neighbours found are used as bounds for the next ones.
const CHUNK: usize = 256;
const CHECKPOINT: &str = "checkpoint.json";

/// Judges a corpus; with `out`, copies what is clean into it, with evidence.
///
/// Only judging is done on `threads` (every core if not given): `embed` and `tick` are called on the thread
/// that calls this. `tick` is called after each batch; its error ends the run, which goes
/// on from its last part when it is called again with the same arguments.
#[allow(clippy::too_many_arguments)] // each is a thing of its own
pub fn run(
    corpus: &Corpus,
    out: Option<&Path>,
    items: &[Item],
    grams: &GramSet,
    options: &Options,
    threads: Option<usize>,
    mut embed: Option<&mut Embed<'_>>,
    tick: &mut dyn FnMut(Tick) -> Result<()>,
) -> Result<Summary> {
    let index = match &options.syntax {
        Some(syntax) => Some(Index::new(items, syntax.reading, syntax.min_nodes)?),
        None => None,
    };
    let pool = super::pool(threads)?;
    let mut pass = Pass { pool: &pool, items, options, state: State::default(), lines: Vec::new() };
    let mut output = match out {
        Some(out) => Some(Output::open(out, corpus, &mut pass.state)?),
        None => None,
    };
    if pass.state.items.is_empty() {
        pass.begin(grams, index.as_ref());
    }
    let done = pass.state.rows;
    let mut batches = corpus.batches();
    let mut rejects = Vec::new();
    let mut row = 0;
    while let Some(batch) = batches.next() {
        let batch = batch?;
        rejects.extend(batches.take_rejects());
        row += batch.num_rows() as u64;
        if row <= done {
            continue;
        }
        if row - (batch.num_rows() as u64) < done {
            return Err(corpus.changed());
        }
        let kept = pass.batch(&batch, grams, index.as_ref(), embed.as_deref_mut())?;
        if let Some(output) = &mut output {
            output.write(&batch, &kept, &mut pass)?;
        }
        tick(Tick { rows: row, files_left: batches.files_left() })?;
    }
    rejects.extend(batches.take_rejects());
    let (sweep, mut state) = (pass.sweep(), pass.state);
    for (item, similar) in state.items.iter_mut().zip(std::mem::take(&mut state.similar)) {
        item.similar = similar;
    }
    let (mut parts, mut evidence) = (Vec::new(), Vec::new());
    if let Some(output) = output {
        corpus::write_rejected(&output.folder, &rejects)?;
        (parts, evidence) = output.finish(&state)?;
    }
    Ok(Summary {
        parts,
        evidence,
        rows: state.rows,
        dropped: state.dropped,
        rejects,
        items: state.items,
        sweep,
    })
}

struct Pass<'a> {
    pool: &'a rayon::ThreadPool,
    items: &'a [Item],
    options: &'a Options,
    state: State,
    /// Evidence of the last batch.
    lines: Vec<u8>,
}

impl Pass<'_> {
    fn begin(&mut self, grams: &GramSet, index: Option<&Index>) {
        let counts = grams.of_items(self.items.len());
        let taus = self.taus().len();
        self.state.items = (self.items.iter().zip(counts).enumerate())
            .map(|(at, (item, ngrams))| ItemReport {
                item: item.name.clone(),
                ngrams,
                nodes: index.map_or(0, |index| index.nodes[at]),
                ..ItemReport::default()
            })
            .collect();
        self.state.similar = vec![vec![false; taus]; self.items.len()];
        self.state.pruned = vec![0; taus];
    }

    fn taus(&self) -> &[f64] {
        self.options.syntax.as_ref().map_or(&[], |syntax| &syntax.sweep)
    }

    /// The rate from which on a match with each item has to be known.
    fn floors(&self) -> Vec<f64> {
        let Some(syntax) = &self.options.syntax else {
            return Vec::new();
        };
        let acting = syntax.sweep.iter().copied().chain(syntax.threshold).fold(2.0, f64::min);
        let nearest = |item: &ItemReport| match item.nearest.get(syntax.nearest.wrapping_sub(1)) {
            _ if syntax.nearest == 0 => acting,
            Some(last) => acting.min(last.value),
            None => 0.0,
        };
        self.state.items.iter().map(nearest).collect()
    }

    /// Judges a batch; which rows stay.
    fn batch(
        &mut self,
        batch: &RecordBatch,
        grams: &GramSet,
        index: Option<&Index>,
        mut embed: Option<&mut Embed<'_>>,
    ) -> Result<BooleanArray> {
        let (ids, texts) = (corpus::ids(batch), corpus::texts(batch));
        let texts: Vec<&str> = (0..batch.num_rows()).map(|i| texts.value(i)).collect();
        let mut kept = Vec::with_capacity(texts.len());
        self.lines.clear();
        for (number, chunk) in texts.chunks(CHUNK).enumerate() {
            let floors = self.floors();
            let found = self.pool.install(|| judge(chunk, grams, index, &floors));
            let distances = match &mut embed {
                Some(embed) => embed(chunk)?,
                None => Vec::new(),
            };
            let width = self.items.len();
            for (i, (text, (hits, matches))) in chunk.iter().zip(found).enumerate() {
                let id = ids.value(number * CHUNK + i);
                let distances = distances.get(i * width..(i + 1) * width).unwrap_or_default();
                kept.push(Some(!self.document(id, text, &hits, &matches, distances)?));
            }
        }
        Ok(kept.into_iter().collect())
    }

    /// Decides about a document; whether it goes.
    fn document(
        &mut self,
        id: &str,
        text: &str,
        hits: &[Hit],
        matches: &[Match],
        distances: &[f32],
    ) -> Result<bool> {
        let options = self.options;
        let row = self.state.rows;
        self.state.rows += 1;
        let threshold = options.syntax.as_ref().and_then(|syntax| syntax.threshold);
        let and = options.combine == Combine::And;
        // Infinite for a problem without a program.
        let distance = |item: u32| {
            distances.get(item as usize).map(|d| f64::from(*d)).filter(|d| d.is_finite())
        };
        let is_near = |item: u32| {
            options.embedding.is_some_and(|e| distance(item).is_some_and(|d| d <= e.threshold))
        };
        let trees: Vec<&Match> = matches
            .iter()
            .filter(|found| threshold.is_some_and(|threshold| found.rate >= threshold))
            .filter(|found| !and || is_near(found.item))
            .collect();
        let near: Vec<u32> =
            (0..distances.len() as u32).filter(|item| !and && is_near(*item)).collect();
        let removed = !(hits.is_empty() && trees.is_empty() && near.is_empty());
        if removed {
            let base = |item: u32, rule| Evidence {
                id,
                row,
                item: &self.items[item as usize].name,
                rule,
                ..Evidence::default()
            };
            for hit in hits {
                let evidence = base(hit.item, "ngram").showing(text, hit);
                self.state.evidence_rows += line(&mut self.lines, &evidence)?;
            }
            for found in &trees {
                let rule = if and { "ast+embedding" } else { "ast" };
                self.state.evidence_rows += line(
                    &mut self.lines,
                    &Evidence {
                        rate: Some(found.rate),
                        function: Some(&found.function.0),
                        line: Some(found.function.1),
                        distance: distance(found.item),
                        ..base(found.item, rule)
                    },
                )?;
            }
            for item in &near {
                self.state.evidence_rows += line(
                    &mut self.lines,
                    &Evidence { distance: distance(*item), ..base(*item, "embedding") },
                )?;
            }
        }
        let dropped = &mut self.state.dropped;
        dropped.ngram += u64::from(!hits.is_empty());
        dropped.ast += u64::from(hits.is_empty() && !trees.is_empty());
        dropped.embedding += u64::from(hits.is_empty() && trees.is_empty() && !near.is_empty());
        self.count(hits, &trees, &near);
        self.sweep_document(matches, &near, &is_near);
        self.neighbours(id, row, removed, matches, distances);
        Ok(removed)
    }

    /// Counts a document for each problem that it resembles.
    fn count(&mut self, hits: &[Hit], trees: &[&Match], near: &[u32]) {
        let mut reasons: Vec<u32> = Vec::new();
        for hit in hits {
            self.state.items[hit.item as usize].by_ngram += 1;
            reasons.push(hit.item);
        }
        for found in trees {
            self.state.items[found.item as usize].by_ast += 1;
            reasons.push(found.item);
        }
        for item in near {
            self.state.items[*item as usize].by_embedding += 1;
            reasons.push(*item);
        }
        reasons.sort_unstable();
        reasons.dedup();
        for item in reasons {
            self.state.items[item as usize].removed += 1;
        }
    }

    fn sweep_document(&mut self, matches: &[Match], near: &[u32], is_near: &dyn Fn(u32) -> bool) {
        let and = self.options.combine == Combine::And;
        for (place, tau) in self.taus().to_vec().into_iter().enumerate() {
            let mut pruned = !near.is_empty();
            for item in near {
                self.state.similar[*item as usize][place] = true;
            }
            for found in matches.iter().filter(|f| f.rate >= tau && (!and || is_near(f.item))) {
                pruned = true;
                self.state.similar[found.item as usize][place] = true;
            }
            self.state.pruned[place] += u64::from(pruned);
        }
    }

    fn neighbours(
        &mut self,
        id: &str,
        row: u64,
        removed: bool,
        matches: &[Match],
        distances: &[f32],
    ) {
        let make = |value, function| Neighbour { id: id.to_owned(), row, value, function, removed };
        if let Some(most) = self.options.syntax.as_ref().map(|s| s.nearest).filter(|n| *n > 0) {
            for found in matches.iter().filter(|found| found.rate > 0.0) {
                let list = &mut self.state.items[found.item as usize].nearest;
                let function = Some(found.function.clone());
                keep_best(list, most, |known| found.rate > known, || make(found.rate, function));
            }
        }
        if let Some(most) = self.options.embedding.map(|e| e.nearest).filter(|n| *n > 0) {
            for (item, distance) in self.state.items.iter_mut().zip(distances) {
                let distance = f64::from(*distance);
                if distance.is_finite() {
                    let list = &mut item.nearest_embedding;
                    keep_best(list, most, |known| distance < known, || make(distance, None));
                }
            }
        }
    }

    fn sweep(&self) -> Vec<SweepRow> {
        let row = |(place, tau): (usize, &f64)| {
            let similar = self.state.similar.iter().filter(|item| item[place]).count() as u64;
            SweepRow {
                tau: *tau,
                similar,
                non_similar: self.items.len() as u64 - similar,
                documents: self.state.pruned[place],
            }
        };
        self.taus().iter().enumerate().map(row).collect()
    }
}

/// Appends a line of JSON; 1.
pub(super) fn line(lines: &mut Vec<u8>, value: &impl Serialize) -> Result<u64> {
    serde_json::to_writer(&mut *lines, value).map_err(|e| Error::config(e.to_string()))?;
    lines.push(b'\n');
    Ok(1)
}

/// What a run writes.
struct Output {
    folder: PathBuf,
    writer: PartWriter,
    evidence: BufWriter<File>,
    parts: usize,
}

impl Output {
    /// Begins, or goes on after the last part that a run before has finished.
    fn open(folder: &Path, corpus: &Corpus, state: &mut State) -> Result<Self> {
        let path = evidence_path(folder);
        let parent = path.parent().expect("a folder in a folder");
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let checkpoint = folder.join(CHECKPOINT);
        if let Ok(saved) = std::fs::read(&checkpoint) {
            *state = serde_json::from_slice(&saved).map_err(|e| {
                let message = format!("not a checkpoint ({e}): delete the folder and run again");
                Error::Resume { path: checkpoint, message }
            })?;
        }
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let mut file = file.map_err(Error::io(&path))?;
        file.set_len(state.evidence_bytes).map_err(Error::io(&path))?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(Error::io(&path))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            writer: PartWriter::resume(folder, corpus.schema(), state.parts.clone())?,
            evidence: BufWriter::new(file),
            parts: state.parts.len(),
        })
    }

    fn write(
        &mut self,
        batch: &RecordBatch,
        kept: &BooleanArray,
        pass: &mut Pass<'_>,
    ) -> Result<()> {
        let path = evidence_path(&self.folder);
        self.evidence.write_all(&pass.lines).map_err(Error::io(&path))?;
        pass.state.evidence_bytes += pass.lines.len() as u64;
        let rows = filter_record_batch(batch, kept).map_err(|e| Error::config(e.to_string()))?;
        self.writer.write(&rows)?;
        if self.writer.parts().len() > self.parts {
            self.parts = self.writer.parts().len();
            let synced = self.evidence.flush().and_then(|()| self.evidence.get_ref().sync_all());
            synced.map_err(Error::io(&path))?;
            pass.state.parts = self.writer.parts().to_vec();
            let saved =
                serde_json::to_vec(&pass.state).map_err(|e| Error::config(e.to_string()))?;
            corpus::write_whole(&self.folder.join(CHECKPOINT), &saved)?;
        }
        Ok(())
    }

    fn finish(mut self, state: &State) -> Result<(Vec<Part>, Vec<Part>)> {
        let from = evidence_path(&self.folder);
        self.evidence.flush().map_err(Error::io(&from))?;
        self.evidence.get_ref().sync_all().map_err(Error::io(&from))?;
        let to = from.with_extension("");
        let removed = Part {
            name: "evidence/removed.json".to_owned(),
            rows: state.evidence_rows,
            bytes: state.evidence_bytes,
            xxh3: corpus::hash_file(&from)?,
        };
        let mut lines = Vec::new();
        for item in &state.items {
            line(&mut lines, item)?;
        }
        let problems = corpus::write_whole(&self.folder.join("problems.json"), &lines)?;
        let name = "problems.json".to_owned();
        let problems = Part { name, rows: state.items.len() as u64, ..problems };
        let parts = self.writer.finish()?;
        let checkpoint = self.folder.join(CHECKPOINT);
        if checkpoint.exists() {
            std::fs::remove_file(&checkpoint).map_err(Error::io(&checkpoint))?;
        }
        // Last: with a checkpoint, the next run would go on writing where the evidence was.
        std::fs::rename(&from, &to).map_err(Error::io(&to))?;
        corpus::sync_folder(&self.folder.join("evidence"))?;
        Ok((parts, vec![removed, problems]))
    }
}

fn evidence_path(folder: &Path) -> PathBuf {
    folder.join("evidence").join("removed.json.tmp")
}
