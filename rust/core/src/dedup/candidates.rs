//! From keys to decisions: which documents may resemble each other, their n-grams, what goes.

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::grams::sort_set;
use super::greedy::{self, Groups};
use super::join::{Counts, prefix};
use super::measure::Recall;
use super::sign::{Signature, Signatures, Signed, Signer};
use super::spill::{Place, Record, Scratch, Sets, Sorter};
use super::{Documents, Index, Input, Job, Near, Options};
use crate::corpus::{self, Corpus};
use crate::{Error, Result};

/// Marks a document's number as one of the references.
const REFERENCE: u32 = 1 << 31;
const NONE: u32 = u32::MAX;
/// Documents whose records one task makes.
const TOGETHER: usize = 64;

/// Documents that stay, and against which new ones are compared.
#[derive(Debug)]
pub enum Reference {
    /// What it is called, and its documents: read twice, never kept in memory.
    Corpus(String, Corpus),
    /// What earlier runs kept.
    Index(Index),
}

impl Reference {
    /// What it is called in the evidence.
    pub fn label(&self) -> &str {
        match self {
            Self::Corpus(label, _) => label,
            Self::Index(index) => index.label(),
        }
    }

    /// Calls `each` with the documents of each batch: their place, id and what is known of them.
    /// `grams`: whether n-grams are wanted, and of which documents; else hashes and keys are.
    fn each_batch(
        &self,
        signer: &Signer,
        grams: Option<&(dyn Fn(u32) -> bool + Sync)>,
        mut each: impl FnMut(Vec<(u32, String, Signed)>) -> Result<()>,
    ) -> Result<()> {
        let corpus = match self {
            Self::Index(index) => return index.each_batch(grams, each),
            Self::Corpus(_, corpus) => corpus,
        };
        let mut start = 0u32;
        for batch in corpus.batches() {
            let batch = batch?;
            let ids = corpus::ids(&batch);
            let wanted = |i: usize| grams.is_none_or(|wanted| wanted(start + i as u32));
            let mut found: Vec<(u32, String, Signed)> = Vec::new();
            if grams.is_none() {
                let hashes = signer.hashes(&batch).into_iter().zip(start..).enumerate();
                found.extend(hashes.map(|(i, (hash, row))| {
                    let signed = Signed { hash, ..Signed::default() };
                    (row, ids.value(i).to_owned(), signed)
                }));
            }
            // Hashes alone decide where nothing is banded.
            if grams.is_some() || signer.sketcher.is_some() {
                let signed = signer.sign(&batch, grams.is_none(), wanted);
                for signature in signed.iter().flat_map(Signatures::iter) {
                    let i = signature.row;
                    if let Some(known) = found.get_mut(i).filter(|_| grams.is_none()) {
                        known.2.keys = signature.keys.to_vec();
                    } else {
                        let id = ids.value(i).to_owned();
                        found.push((start + i as u32, id, signature.to_signed()));
                    }
                }
            }
            each(found)?;
            start = start
                .checked_add(batch.num_rows() as u32)
                .filter(|start| *start < REFERENCE)
                .ok_or_else(|| Error::config("more than 2^31 rows to compare against"))?;
        }
        Ok(())
    }
}

/// Records of (key, document), of which those that share a key are candidates.
#[derive(Debug)]
pub struct Candidates<'a> {
    records: Sorter<'a>,
    /// A bit for every key of the documents at hand, so that those of references are only taken
    /// where they meet one.
    filter: Vec<u64>,
    filtered: bool,
}

impl<'a> Candidates<'a> {
    /// None yet.
    pub fn new(job: &Job<'_>, scratch: Option<&'a Scratch>) -> Self {
        let spill = job.memory.zip(scratch).map(|(bytes, scratch)| (bytes / 4, scratch));
        let filtered = !job.against.is_empty() && job.memory.is_none();
        Self { records: Sorter::new("records", spill), filter: Vec::new(), filtered }
    }

    /// Adds a key of a document.
    pub fn add(&mut self, key: u64, document: u32) -> Result<()> {
        self.records.push((key, document))
    }

    fn take(&mut self) -> Sorter<'a> {
        std::mem::replace(&mut self.records, Sorter::new("records", None))
    }

    fn close_filter(&mut self) {
        if self.filtered {
            let bits = (self.records.in_memory().len() * 16).next_power_of_two().max(64);
            self.filter = vec![0; bits / 64];
            for (key, _) in self.records.in_memory() {
                let bit = *key as usize % bits;
                self.filter[bit / 64] |= 1 << (bit % 64);
            }
        }
    }

    fn add_reference(&mut self, key: u64, document: u32) -> Result<()> {
        if self.filtered {
            let bit = key as usize % (self.filter.len() * 64);
            if self.filter[bit / 64] >> (bit % 64) & 1 == 0 {
                return Ok(());
            }
        }
        self.records.push((key, document))
    }
}

/// What goes, by row.
#[derive(Debug, Default)]
pub struct Removed {
    /// Against which row, counted on through the references; `u32::MAX` for rows that stay.
    pub kept: Vec<u32>,
    /// Their similarity.
    pub jaccard: Vec<f64>,
    /// Whether that is why the row goes, and not that its text is there already.
    pub near: Vec<bool>,
}

impl Removed {
    /// Whether a row goes.
    pub fn contains(&self, row: usize) -> bool {
        self.kept[row] != NONE
    }
}

/// What came of the comparisons.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What goes.
    pub removed: Removed,
    /// Pairs whose true similarity was computed.
    pub compared: u64,
    /// Documents of references that something was removed against: (reference, row in it, id), by
    /// number counted on from the rows.
    pub references: FxHashMap<u32, (usize, u32, String)>,
    /// What the sample says.
    pub recall: Option<Recall>,
    /// All verified pairs by row, at least one of them of the input, if they were asked for.
    pub edges: Vec<(u32, u32, f64)>,
}

/// All references as one sequence.
struct References<'a> {
    all: Vec<&'a Reference>,
    /// The number of each one's first document.
    starts: Vec<u32>,
    count: u32,
}

/// Finds the candidates, verifies them and decides.
pub fn decide(
    job: &Job<'_>,
    options: &Options,
    signer: &Signer,
    input: &Input<'_>,
    documents: &mut Documents<'_>,
    scratch: Option<&Scratch>,
) -> Result<Outcome> {
    let count = documents.len();
    let recall = documents.sample.take().map(|sample| sample.measure(options.threshold));
    let recall = recall.transpose()?;
    let mut outcome = Outcome { recall, ..Outcome::default() };
    let mut kept = vec![NONE; count];
    let mut jaccard = vec![0.0; count];
    let mut near = vec![false; count];
    let references = compare_hashes(job, signer, documents, &mut kept, &mut jaccard, &mut outcome)?;
    documents.seen = FxHashMap::default();
    let best = best_copies(documents);
    if options.near == Some(Near::Join) {
        postings(job, options, signer, input, documents, &references)?;
    }
    if options.near.is_some() {
        let ranks = Ranks::new(documents, &best, &kept, references.count);
        let mut groups = ranks.groups(documents.candidates.take())?;
        let members = groups.renumber();
        let fixed = members.partition_point(|rank| *rank < references.count) as u32;
        let sets = sets_of(
            job,
            signer,
            input,
            documents,
            &references,
            &ranks,
            &members,
            &mut outcome,
            scratch,
        )?;
        (job.progress)("verifying", 0, Some(members.len() as u64))?;
        let decision = greedy::decide(&groups, fixed, &sets, options.threshold)?;
        outcome.compared = decision.compared;
        let number_of = |member: u32| {
            let rank = members[member as usize];
            match ranks.row(rank) {
                Some(row) => best.get(row as usize).copied().unwrap_or(row),
                None => count as u32 + rank,
            }
        };
        for (member, found) in (0u32..).zip(decision.removed) {
            if let Some((against, similarity)) = found {
                let row = ranks.row(members[member as usize]).expect("references stay") as usize;
                (kept[row], jaccard[row], near[row]) = (number_of(against), similarity, true);
            }
        }
        if options.components {
            let edges = greedy::edges(&groups, fixed, &sets, options.threshold)?;
            let named = |(a, b, j)| (number_of(a), number_of(b), j);
            outcome.edges = edges.into_iter().map(named).collect();
        }
    }
    // Backwards, because what becomes of a first row decides for all rows with its text.
    for row in (0..count).rev() {
        let first = documents.first[row] as usize;
        let stays = best.get(first).copied().unwrap_or(first as u32);
        if kept[first] != NONE {
            (kept[row], jaccard[row]) = (kept[first], jaccard[first]);
        } else if stays as usize != row {
            (kept[row], jaccard[row]) = (stays, 1.0);
        }
    }
    outcome.removed = Removed { kept, jaccard, near };
    Ok(outcome)
}

/// For each first row the copy that stays if any does; nothing where that is the first itself.
fn best_copies(documents: &Documents<'_>) -> Vec<u32> {
    let (first, weights) = (&documents.first, &documents.weights);
    if weights.is_empty() {
        return Vec::new();
    }
    let mut best: Vec<u32> = first.clone();
    for row in 0..first.len() {
        let now = best[first[row] as usize] as usize;
        if weights[row] > weights[now] {
            best[first[row] as usize] = row as u32;
        }
    }
    best
}

/// Reads the references once: exact copies go at once, keys that meet ours become records.
fn compare_hashes<'a>(
    job: &'a Job<'_>,
    signer: &Signer,
    documents: &mut Documents<'_>,
    kept: &mut [u32],
    jaccard: &mut [f64],
    outcome: &mut Outcome,
) -> Result<References<'a>> {
    let mut references =
        References { all: job.against.iter().collect(), starts: Vec::new(), count: 0 };
    documents.candidates.close_filter();
    let rows = documents.len() as u32;
    for which in 0..references.all.len() {
        let start = references.count;
        references.starts.push(start);
        references.all[which].each_batch(signer, None, |batch| {
            for (row, id, signed) in batch {
                let number = start + row;
                references.count = number + 1;
                if number >= REFERENCE - rows {
                    return Err(Error::config("more than 2^31 rows to compare against"));
                }
                if let Some(first) = documents.seen.get(&signed.hash) {
                    let first = *first as usize;
                    if kept[first] == NONE {
                        (kept[first], jaccard[first]) = (rows + number, 1.0);
                        outcome.references.insert(rows + number, (which, row, id));
                    }
                }
                for key in &signed.keys {
                    documents.candidates.add_reference(*key, REFERENCE | number)?;
                }
            }
            (job.progress)("comparing with others", u64::from(references.count), None)
        })?;
    }
    Ok(references)
}

/// Adds a record for every n-gram that decides in the join.
fn postings(
    job: &Job<'_>,
    options: &Options,
    signer: &Signer,
    input: &Input<'_>,
    documents: &mut Documents<'_>,
    references: &References<'_>,
) -> Result<()> {
    // An n-gram that occurs once among the documents can still be in a reference.
    let least = if references.all.is_empty() { 2 } else { 1 };
    let mut counts;
    if let Some((grams, places)) = &documents.grams {
        let sets: Vec<&[u64]> = places.iter().map(|place| grams.get(*place)).collect();
        counts = Counts::new(sets.iter().map(|set| set.len()).sum());
        let counted = counts.add_all(&sets);
        let mut counted = counted.as_slice();
        let sets = sets.into_iter().zip(0u32..).map(|(set, row)| {
            let (here, behind) = counted.split_at(set.len());
            counted = behind;
            (set, here, row)
        });
        let sets: Vec<(&[u64], &[u8], u32)> = sets.collect();
        for some in sets.chunks(64 * TOGETHER) {
            let records: Vec<Vec<Record>> = some
                .par_chunks(TOGETHER)
                .map(|sets| {
                    let mut found = Vec::new();
                    for (set, counted, row) in sets {
                        prefix(set, counted, options.threshold, least, |hash| {
                            found.push((hash, *row));
                        });
                    }
                    found
                })
                .collect();
            for (key, row) in records.into_iter().flatten() {
                documents.candidates.add(key, row)?;
            }
        }
    } else {
        // Compressed or not, a file holds hardly more words than it has bytes.
        let most = usize::try_from(job.corpus.bytes()?).unwrap_or(usize::MAX);
        counts = Counts::new(most.min(job.memory.unwrap_or_default() / 4));
        let mut signed = 0;
        let is_first = |row: u32| documents.first[row as usize] == row;
        each_set(job, signer, input, documents, is_first, |_, set| {
            counts.add(set);
            signed += u64::from(!set.is_empty());
            Ok(())
        })?;
        let mut candidates = documents.candidates.take();
        let (mut room, mut found) = (Vec::new(), Vec::new());
        each_set(job, signer, input, documents, is_first, |row, set| {
            counts.of(set, &mut room);
            prefix(set, &room, options.threshold, least, |hash| found.push((hash, row)));
            found.drain(..).try_for_each(|record| candidates.push(record))
        })?;
        documents.candidates.records = candidates;
        documents.signed = signed;
    }
    documents.candidates.close_filter();
    for (which, reference) in references.all.iter().enumerate() {
        let start = references.starts[which];
        reference.each_batch(signer, Some(&|_| true), |batch| {
            let records: Vec<Vec<Record>> = batch
                .into_par_iter()
                .map_init(
                    || (Vec::new(), Vec::new()),
                    |(room, counted), (row, _, mut signed)| {
                        let mut found = Vec::new();
                        sort_set(&mut signed.grams, room);
                        let number = REFERENCE | (start + row);
                        counts.of(&signed.grams, counted);
                        prefix(&signed.grams, counted, options.threshold, least, |hash| {
                            found.push((hash, number));
                        });
                        found
                    },
                )
                .collect();
            for (key, number) in records.into_iter().flatten() {
                documents.candidates.add_reference(key, number)?;
            }
            (job.progress)("comparing with others", u64::from(start), None)
        })?;
    }
    Ok(())
}

/// Calls `each` with the sorted distinct n-grams of the wanted rows, reading the input again.
fn each_set(
    job: &Job<'_>,
    signer: &Signer,
    input: &Input<'_>,
    documents: &Documents<'_>,
    wanted: impl Fn(u32) -> bool,
    mut each: impl FnMut(u32, &[u64]) -> Result<()> + Send,
) -> Result<()> {
    let total = Some(documents.len() as u64);
    input.each_batch(
        documents,
        |row| wanted(row as u32),
        |batch, rows| {
            let sets: Vec<Vec<(usize, Vec<u64>)>> = signer
                .sign(batch, false, |_| true)
                .par_iter()
                .map_init(Vec::new, |room, signed| {
                    let sorted = |signature: Signature<'_>| {
                        let mut set = signature.grams.to_vec();
                        sort_set(&mut set, room);
                        (signature.row, set)
                    };
                    signed.iter().map(sorted).collect()
                })
                .collect();
            for (i, set) in sets.iter().flatten() {
                each(rows[*i] as u32, set)?;
            }
            (job.progress)("reading n-grams", rows.last().map_or(0, |row| *row as u64 + 1), total)
        },
    )
}

/// The order in which documents are kept: references first, then rows by weight and position.
struct Ranks {
    references: u32,
    /// First rows by rank.
    order: Vec<u32>,
    /// Ranks by row; `NONE` for copies and for what is gone already.
    of_row: Vec<u32>,
}

impl Ranks {
    fn new(documents: &Documents<'_>, best: &[u32], kept: &[u32], references: u32) -> Self {
        let stays = |row: u32| documents.first[row as usize] == row && kept[row as usize] == NONE;
        let mut order: Vec<u32> = (0..documents.len() as u32).filter(|row| stays(*row)).collect();
        if !best.is_empty() {
            order.sort_by_key(|row| {
                let copy = best[*row as usize];
                (std::cmp::Reverse(documents.weights[copy as usize]), copy)
            });
        }
        let mut of_row = vec![NONE; documents.len()];
        for (row, rank) in order.iter().zip(references..) {
            of_row[*row as usize] = rank;
        }
        Self { references, order, of_row }
    }

    /// The row of a rank, or `None` for a reference.
    fn row(&self, rank: u32) -> Option<u32> {
        rank.checked_sub(self.references).map(|place| self.order[place as usize])
    }

    /// Documents that share a key, at least one of them new.
    fn groups(&self, records: Sorter<'_>) -> Result<Groups> {
        let mut groups = Groups::default();
        let mut ranks = Vec::new();
        records.for_each_key(|_, documents| {
            if documents.len() < 2 {
                return;
            }
            ranks.clear();
            ranks.extend(documents.iter().filter_map(|document| {
                if document & REFERENCE != 0 {
                    return Some(document ^ REFERENCE);
                }
                Some(self.of_row[*document as usize]).filter(|rank| *rank != NONE)
            }));
            if ranks.iter().any(|rank| *rank >= self.references) {
                groups.add(&mut ranks);
            }
        })?;
        Ok(groups)
    }
}

/// The n-grams of every document that may resemble another.
#[allow(clippy::too_many_arguments)]
fn sets_of(
    job: &Job<'_>,
    signer: &Signer,
    input: &Input<'_>,
    documents: &mut Documents<'_>,
    references: &References<'_>,
    ranks: &Ranks,
    members: &[u32],
    outcome: &mut Outcome,
    scratch: Option<&Scratch>,
) -> Result<Sets> {
    let member_of = |row: usize| members.binary_search(&ranks.of_row[row]);
    let mut sets = match (documents.grams.take(), scratch) {
        (Some((mut grams, mut places)), _) => {
            if !signer.distinct {
                grams.sort(&mut places, |row| member_of(row).is_ok());
            }
            let mut of_member = vec![Place::default(); members.len()];
            for (row, place) in places.into_iter().enumerate() {
                if let Ok(member) = member_of(row) {
                    of_member[member] = place;
                }
            }
            Sets::Memory(grams, of_member)
        }
        (None, Some(scratch)) => Sets::on_disk(members.len(), scratch)?,
        (None, None) => return Err(Error::config("n-grams are neither in memory nor on disk")),
    };
    let fixed = members.partition_point(|rank| *rank < ranks.references);
    for (which, reference) in references.all.iter().enumerate() {
        let start = references.starts[which];
        let member = |row: u32| members[..fixed].binary_search(&(start + row));
        reference.each_batch(signer, Some(&|row| member(row).is_ok()), |batch| {
            for (row, id, mut signed) in batch {
                let Ok(member) = member(row) else { continue };
                sort_set(&mut signed.grams, &mut Vec::new());
                sets.put(member, &signed.grams)?;
                let number = documents.len() as u32 + start + row;
                outcome.references.insert(number, (which, row, id));
            }
            (job.progress)("comparing with others", u64::from(start), None)
        })?;
    }
    if scratch.is_some() && fixed < members.len() {
        let member = |row: u32| member_of(row as usize);
        let is_member = |row| member(row).is_ok();
        each_set(job, signer, input, documents, is_member, |row, set| match member(row) {
            Ok(member) => sets.put(member, set),
            Err(_) => Ok(()),
        })?;
    }
    Ok(sets)
}
