//! Which documents go: a greedy maximal independent set over verified pairs, in keep order.
//!
//! A document is removed only against a kept document that it was compared with and resembles at the
//! threshold; there is no transitive closure. Documents are taken in blocks: each block is compared
//! with what earlier blocks kept in parallel, then within itself in order. The block's size is fixed,
//! so the result and the counts do not depend on the number of threads.

use rayon::prelude::*;
use rustc_hash::FxHashSet;
use xxhash_rust::xxh3::xxh3_128;

use super::spill::Sets;
use crate::Result;

const BLOCK: usize = 512;

/// Documents that may resemble each other: those that share a band, or an n-gram that decides.
#[derive(Debug, Default)]
pub struct Groups {
    /// Hashes of the groups so far: many bands bring the same documents together.
    seen: FxHashSet<u128>,
    /// `(rank, group)`.
    members: Vec<(u32, u32)>,
    sizes: Vec<u32>,
}

impl Groups {
    /// Adds a group of ranks in any order.
    pub fn add(&mut self, ranks: &mut Vec<u32>) {
        ranks.sort_unstable();
        ranks.dedup();
        if ranks.len() < 2 {
            return;
        }
        let bytes: Vec<u8> = ranks.iter().flat_map(|rank| rank.to_le_bytes()).collect();
        if self.seen.insert(xxh3_128(&bytes)) {
            let group = self.sizes.len() as u32;
            self.members.extend(ranks.iter().map(|rank| (*rank, group)));
            self.sizes.push(ranks.len() as u32);
        }
    }

    /// Numbers the ranks that are in a group from 0, in order; returns what each was before.
    pub fn renumber(&mut self) -> Vec<u32> {
        self.seen = FxHashSet::default();
        self.members.par_sort_unstable();
        let mut ranks: Vec<u32> = Vec::new();
        for (rank, _) in &mut self.members {
            if ranks.last() != Some(rank) {
                ranks.push(*rank);
            }
            *rank = ranks.len() as u32 - 1;
        }
        ranks
    }
}

/// What became of the candidates.
#[derive(Debug, Default)]
pub struct Decision {
    /// For each candidate, the kept one it was removed against and their Jaccard similarity.
    pub removed: Vec<Option<(u32, f64)>>,
    /// Pairs that were compared.
    pub compared: u64,
}

/// Decides for candidates in keep order (number 0 first); the first `fixed` of them stay.
///
/// A document is only compared with kept documents of its groups, the best-ranked first, until one
/// reaches the threshold. So a cluster of copies costs one comparison a document; documents that
/// share groups and yet all stay cost one a pair. Memory: 4 bytes a member of a group.
pub fn decide(groups: &Groups, fixed: u32, sets: &Sets, threshold: f64) -> Result<Decision> {
    let documents: Vec<&[(u32, u32)]> = groups.members.chunk_by(|a, b| a.0 == b.0).collect();
    let mut decision = Decision { removed: vec![None; documents.len()], compared: 0 };
    let compare = Compare::new(sets, threshold);
    let mut kept = Kept::new(&groups.sizes);
    let (stay, open) = documents.split_at(fixed as usize);
    for document in stay {
        kept.add(document);
    }
    for block in open.chunks(BLOCK) {
        let earlier: Vec<(Option<(u32, f64)>, u64)> = block
            .par_iter()
            .map(|document| search(document, &kept, &compare, 0))
            .collect::<Result<_>>()?;
        let start = block[0][0].0;
        for (document, (mut found, compared)) in block.iter().zip(earlier) {
            decision.compared += compared;
            if found.is_none() {
                let (again, compared) = search(document, &kept, &compare, start)?;
                decision.compared += compared;
                found = again;
            }
            decision.removed[document[0].0 as usize] = found;
            if found.is_none() {
                kept.add(document);
            }
        }
    }
    Ok(decision)
}

/// Every pair of candidates that shares a group and reaches the threshold, in order, but for pairs of
/// the first `fixed`. For looking at: unlike [`decide`], it compares all pairs of a group.
pub fn edges(
    groups: &Groups,
    fixed: u32,
    sets: &Sets,
    threshold: f64,
) -> Result<Vec<(u32, u32, f64)>> {
    let compare = Compare::new(sets, threshold);
    let mut kept = Kept::new(&groups.sizes);
    let mut edges = Vec::new();
    for document in groups.members.chunk_by(|a, b| a.0 == b.0) {
        if document[0].0 < fixed {
            kept.add(document);
            continue;
        }
        let found: Vec<Option<(u32, u32, f64)>> = kept
            .candidates(document, 0)
            .into_par_iter()
            .map(|other| {
                let j = compare.similar(document[0].0, other)?;
                Ok(j.map(|j| (other, document[0].0, j)))
            })
            .collect::<Result<_>>()?;
        edges.extend(found.into_iter().flatten());
        kept.add(document);
    }
    Ok(edges)
}

/// The kept documents of each group, in order, one group after another.
struct Kept {
    starts: Vec<u32>,
    counts: Vec<u32>,
    documents: Vec<u32>,
}

impl Kept {
    fn new(sizes: &[u32]) -> Self {
        let mut total = 0;
        let starts = sizes
            .iter()
            .map(|size| {
                total += size;
                total - size
            })
            .collect();
        Self { starts, counts: vec![0; sizes.len()], documents: vec![0; total as usize] }
    }

    fn add(&mut self, document: &[(u32, u32)]) {
        for (number, group) in document {
            let group = *group as usize;
            self.documents[(self.starts[group] + self.counts[group]) as usize] = *number;
            self.counts[group] += 1;
        }
    }

    /// Kept documents from `start` on that share a group with this one, in order.
    fn candidates(&self, document: &[(u32, u32)], start: u32) -> Vec<u32> {
        let mut candidates: Vec<u32> = Vec::new();
        for (_, group) in document {
            let (from, count) = (self.starts[*group as usize], self.counts[*group as usize]);
            let kept = &self.documents[from as usize..(from + count) as usize];
            candidates.extend(&kept[kept.partition_point(|number| *number < start)..]);
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }
}

/// The first kept document from `start` on that shares a group and reaches the threshold.
fn search(
    document: &[(u32, u32)],
    kept: &Kept,
    compare: &Compare<'_>,
    start: u32,
) -> Result<(Option<(u32, f64)>, u64)> {
    let candidates = kept.candidates(document, start);
    for (compared, other) in (1u64..).zip(&candidates) {
        if let Some(j) = compare.similar(document[0].0, *other)? {
            return Ok((Some((*other, j)), compared));
        }
    }
    Ok((None, candidates.len() as u64))
}

/// Bit i: whether an odd number of a set's hashes are i modulo 512.
type Parity = [u64; 8];

fn parity(set: &[u64]) -> Parity {
    let mut bits = Parity::default();
    for hash in set {
        bits[(hash >> 6) as usize % 8] ^= 1 << (hash % 64);
    }
    bits
}

struct Compare<'a> {
    sets: &'a Sets,
    /// Only for sets in memory.
    parities: Vec<Parity>,
    threshold: f64,
}

impl<'a> Compare<'a> {
    fn new(sets: &'a Sets, threshold: f64) -> Self {
        let parities = match sets {
            Sets::Memory(grams, places) => {
                places.par_iter().map(|place| parity(grams.get(*place))).collect()
            }
            Sets::Disk { .. } => Vec::new(),
        };
        Self { sets, parities, threshold }
    }

    /// The Jaccard similarity of two documents if it reaches the threshold.
    fn similar(&self, a: u32, b: u32) -> Result<Option<f64>> {
        let (a, b) = (a as usize, b as usize);
        let (first, second) = (self.sets.len_of(a), self.sets.len_of(b));
        let needed = least_common(first + second, self.threshold);
        if first.min(second) < needed {
            return Ok(None);
        }
        // Every differing bit stands for a hash that only one of the sets has. This rejects most of
        // the pairs that share a template, at a small part of the price of going through the sets.
        if let (Some(a), Some(b)) = (self.parities.get(a), self.parities.get(b)) {
            let differing: u32 = a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum();
            if (first + second - differing as usize) / 2 < needed {
                return Ok(None);
            }
        }
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let (a, b) = (self.sets.get(a, &mut left)?, self.sets.get(b, &mut right)?);
        Ok(jaccard_at_least(a, b, self.threshold))
    }
}

/// How many elements two sets must share for the threshold, if they have `both` together.
///
/// Only a lower bound, so rounded down: the decision itself is always a division.
fn least_common(both: usize, threshold: f64) -> usize {
    (threshold * both as f64 / (1.0 + threshold) - 1e-6).max(0.0) as usize
}

/// The Jaccard similarity of two sorted sets if it is at least `threshold`.
pub fn jaccard_at_least(a: &[u64], b: &[u64], threshold: f64) -> Option<f64> {
    let (mut i, mut j, mut common) = (0, 0, 0);
    let both = a.len() + b.len();
    let needed = least_common(both, threshold);
    while i < a.len() && j < b.len() {
        if common + (a.len() - i).min(b.len() - j) < needed {
            return None;
        }
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                common += 1;
                i += 1;
                j += 1;
            }
        }
    }
    let similarity = common as f64 / (both - common) as f64;
    (similarity >= threshold).then_some(similarity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn true_jaccard(a: &BTreeSet<u64>, b: &BTreeSet<u64>) -> f64 {
        a.intersection(b).count() as f64 / a.union(b).count() as f64
    }

    proptest! {
        #[test]
        fn jaccard_agrees_with_sets(
            a in btree_set(0u64..40, 1..30), b in btree_set(0u64..40, 1..30), t in 0.01f64..=1.0
        ) {
            let list = |set: &BTreeSet<u64>| set.iter().copied().collect::<Vec<_>>();
            let truth = true_jaccard(&a, &b);
            let found = jaccard_at_least(&list(&a), &list(&b), t);
            prop_assert_eq!(found, (truth >= t).then_some(truth));
            // At a threshold that the pair meets exactly, rounding must not lose it.
            if truth > 0.0 {
                prop_assert_eq!(jaccard_at_least(&list(&a), &list(&b), truth), Some(truth));
            }
        }

        /// With every document in one group, the result is the plain greedy scan.
        #[test]
        fn blocks_equal_the_plain_scan(
            sets in vec(btree_set(0u64..12, 1..8), 1..60), t in 0.2f64..1.0, copies in 1usize..25,
            fixed in 0u32..9
        ) {
            let sets: Vec<BTreeSet<u64>> =
                sets.iter().cycle().take(sets.len() * copies).cloned().collect();
            let lists: Vec<Vec<u64>> =
                sets.iter().map(|set| set.iter().copied().collect()).collect();
            let mut groups = Groups::default();
            groups.add(&mut (0..sets.len() as u32).rev().collect());
            if sets.len() == 1 {
                return Ok(());
            }
            groups.renumber();
            let lists = Sets::of(&lists);
            let fixed = fixed.min(sets.len() as u32);
            let decision = decide(&groups, fixed, &lists, t).unwrap();
            let mut kept: Vec<usize> = Vec::new();
            for (rank, set) in sets.iter().enumerate() {
                let reason = kept
                    .iter()
                    .filter(|_| rank >= fixed as usize)
                    .find(|other| true_jaccard(set, &sets[**other]) >= t);
                let expected = reason.map(|other| (*other as u32, true_jaccard(set, &sets[*other])));
                prop_assert_eq!(decision.removed[rank], expected);
                if expected.is_none() {
                    kept.push(rank);
                }
            }
        }

        #[test]
        fn edges_are_all_similar_pairs(sets in vec(btree_set(0u64..12, 1..8), 2..30), t in 0.2f64..1.0) {
            let lists: Vec<Vec<u64>> =
                sets.iter().map(|set| set.iter().copied().collect()).collect();
            let mut groups = Groups::default();
            groups.add(&mut (0..sets.len() as u32).collect());
            groups.renumber();
            let found: BTreeSet<(u32, u32)> = edges(&groups, 0, &Sets::of(&lists), t)
                .unwrap()
                .into_iter()
                .map(|(a, b, _)| (a, b))
                .collect();
            let all = (0..sets.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
            let truth: BTreeSet<(u32, u32)> = all
                .filter(|(a, b)| true_jaccard(&sets[*a], &sets[*b]) >= t)
                .map(|(a, b)| (a as u32, b as u32))
                .collect();
            prop_assert_eq!(found, truth);
        }
    }
}
