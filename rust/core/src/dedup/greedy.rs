//! Which documents go: a greedy maximal independent set over verified pairs, in keep order.
//!
//! A document is removed only against a kept document that it was compared with and resembles at the
//! threshold; there is no transitive closure. Documents are taken in blocks: each block is compared
//! with what earlier blocks kept in parallel, then within itself in order. The block's size is fixed,
//! so the result and the counts do not depend on the number of threads.

use rayon::prelude::*;

const BLOCK: usize = 512;

/// What became of the candidates.
#[derive(Debug, Default)]
pub struct Decision {
    /// For each rank, the kept rank it was removed against and their Jaccard similarity.
    pub removed: Vec<Option<(u32, f64)>>,
    /// Pairs that were compared.
    pub compared: u64,
}

/// Decides for documents in keep order (rank 0 first).
///
/// `members` is the sorted `(rank, group)` list of documents that share a band; `shingles[rank]`
/// holds the sorted distinct shingles of every rank in it. A document is only compared with kept
/// documents, the best-ranked first, until one reaches the threshold. So a cluster of copies costs
/// one comparison a document; documents that share bands and yet all stay cost one a pair.
pub fn decide(members: &[(u32, u32)], shingles: &[Vec<u64>], threshold: f64) -> Decision {
    let groups = members.iter().map(|(_, group)| *group as usize + 1).max().unwrap_or(0);
    let mut kept_in_group: Vec<Vec<u32>> = vec![Vec::new(); groups];
    let mut decision = Decision { removed: vec![None; shingles.len()], compared: 0 };
    let parities: Vec<Parity> = shingles.par_iter().map(|set| parity(set)).collect();
    let sets = Sets { shingles, parities: &parities, threshold };
    let documents: Vec<&[(u32, u32)]> = members.chunk_by(|a, b| a.0 == b.0).collect();
    for block in documents.chunks(BLOCK) {
        let earlier: Vec<(Option<(u32, f64)>, u64)> =
            block.par_iter().map(|document| search(document, &kept_in_group, &sets, 0)).collect();
        let start = block[0][0].0;
        for (document, (found, compared)) in block.iter().zip(earlier) {
            decision.compared += compared;
            let found = found.or_else(|| {
                let (found, compared) = search(document, &kept_in_group, &sets, start);
                decision.compared += compared;
                found
            });
            let rank = document[0].0;
            decision.removed[rank as usize] = found;
            if found.is_none() {
                for (_, group) in *document {
                    kept_in_group[*group as usize].push(rank);
                }
            }
        }
    }
    decision
}

/// The first kept rank from `start` on that shares a group and reaches the threshold.
fn search(
    document: &[(u32, u32)],
    kept_in_group: &[Vec<u32>],
    sets: &Sets<'_>,
    start: u32,
) -> (Option<(u32, f64)>, u64) {
    let mut candidates: Vec<u32> = document
        .iter()
        .flat_map(|(_, group)| {
            let kept = &kept_in_group[*group as usize];
            &kept[kept.partition_point(|rank| *rank < start)..]
        })
        .copied()
        .collect();
    candidates.sort_unstable();
    candidates.dedup();
    for (compared, rank) in (1u64..).zip(&candidates) {
        if let Some(j) = sets.similar(document[0].0, *rank) {
            return (Some((*rank, j)), compared);
        }
    }
    (None, candidates.len() as u64)
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

struct Sets<'a> {
    shingles: &'a [Vec<u64>],
    parities: &'a [Parity],
    threshold: f64,
}

impl Sets<'_> {
    /// The Jaccard similarity of two documents if it reaches the threshold.
    fn similar(&self, a: u32, b: u32) -> Option<f64> {
        let (a, b) = (a as usize, b as usize);
        // Every differing bit stands for a hash that only one of the sets has. This rejects most of
        // the pairs that share a template, at a small part of the price of going through the sets.
        let differing: u32 =
            self.parities[a].iter().zip(&self.parities[b]).map(|(a, b)| (a ^ b).count_ones()).sum();
        let both = self.shingles[a].len() + self.shingles[b].len();
        let at_most = (both - differing as usize) / 2;
        if at_most < least_common(both, self.threshold) {
            return None;
        }
        jaccard_at_least(&self.shingles[a], &self.shingles[b], self.threshold)
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
            sets in vec(btree_set(0u64..12, 1..8), 1..60), t in 0.2f64..1.0, copies in 1usize..25
        ) {
            let sets: Vec<BTreeSet<u64>> =
                sets.iter().cycle().take(sets.len() * copies).cloned().collect();
            let lists: Vec<Vec<u64>> =
                sets.iter().map(|set| set.iter().copied().collect()).collect();
            let members: Vec<(u32, u32)> = (0..sets.len() as u32).map(|rank| (rank, 0)).collect();
            let decision = decide(&members, &lists, t);
            let mut kept: Vec<usize> = Vec::new();
            for (rank, set) in sets.iter().enumerate() {
                let reason = kept.iter().find(|other| true_jaccard(set, &sets[**other]) >= t);
                let expected = reason.map(|other| (*other as u32, true_jaccard(set, &sets[*other])));
                prop_assert_eq!(decision.removed[rank], expected);
                if expected.is_none() {
                    kept.push(rank);
                }
            }
        }
    }
}
