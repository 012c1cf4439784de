//! Near-dedup in pieces, for engines that shuffle by themselves: sign documents batch by batch, group
//! by band key (16 bytes a record, never text), verify pairs, decide over the verified ones.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::greedy::jaccard_at_least;
use super::index::{Stamp, to_batch};
use super::minhash::Sketcher;
use super::sign::{Signatures, Signed};
use crate::corpus;

/// Signs the documents of a batch with string columns `id` and `text`: columns `id`, `hash` (16
/// bytes), `keys` (one a band) and `grams` (sorted, distinct). Rows stay in order.
pub fn sign_batch(batch: &RecordBatch, stamp: &Stamp) -> RecordBatch {
    let signer = stamp.signer();
    let ids = corpus::ids(batch);
    let hashes = signer.hashes(batch);
    let mut signed: Vec<(String, Signed)> = Vec::with_capacity(batch.num_rows());
    for signature in signer.sign(batch, true, |_| true).iter().flat_map(Signatures::iter) {
        let mut document = signature.to_signed();
        document.hash = hashes[signature.row];
        signed.push((ids.value(signature.row).to_owned(), document));
    }
    to_batch(&signed)
}

/// The signature of each list, `count` slots folded to 32 bits, one list after another. Slots of two
/// lists agree with the probability of their Jaccard similarity. Lists must not be empty.
pub fn signatures<'a>(lists: impl Iterator<Item = &'a [u64]>, count: usize, seed: u64) -> Vec<u32> {
    let sketcher = Sketcher::new(count, 1, seed);
    let (mut all, mut slots) = (Vec::new(), Vec::new());
    for list in lists {
        sketcher.signature(list, &mut slots);
        all.extend(
            slots
                .iter()
                .map(|slot| (*slot as u32) ^ ((slot >> 32) as u32).wrapping_mul(0x9e37_79b9)),
        );
    }
    all
}

/// Pairs of documents that share a key, each once with the smaller first, in order.
pub fn candidate_pairs(keys: &[u64], documents: &[u64]) -> Vec<(u64, u64)> {
    let mut records: Vec<(u64, u64)> =
        keys.iter().copied().zip(documents.iter().copied()).collect();
    records.par_sort_unstable();
    records.dedup();
    let mut pairs = FxHashSet::default();
    for group in records.chunk_by(|a, b| a.0 == b.0) {
        for (i, (_, a)) in group.iter().enumerate() {
            pairs.extend(group[i + 1..].iter().map(|(_, b)| (*a, *b)));
        }
    }
    let mut pairs: Vec<(u64, u64)> = pairs.into_iter().collect();
    pairs.par_sort_unstable();
    pairs
}

/// The Jaccard similarity of each pair of sorted sets, or nothing below the threshold.
pub fn verify_pairs<'a>(
    pairs: usize,
    sets: impl Fn(usize) -> (&'a [u64], &'a [u64]) + Sync,
    threshold: f64,
) -> Vec<Option<f64>> {
    let similar = |i| {
        let (a, b) = sets(i);
        jaccard_at_least(a, b, threshold)
    };
    (0..pairs).into_par_iter().map(similar).collect()
}

/// What goes, given every verified pair: in the order of their numbers, each document that has a kept
/// one before it goes against the first such. Returns (removed, kept, Jaccard), in order.
pub fn choose_removals(edges: &[(u64, u64, f64)]) -> Vec<(u64, u64, f64)> {
    let mut earlier: BTreeMap<u64, Vec<(u64, f64)>> = BTreeMap::new();
    for (a, b, j) in edges {
        earlier.entry(*a.max(b)).or_default().push((*a.min(b), *j));
    }
    let mut removed: BTreeMap<u64, (u64, f64)> = BTreeMap::new();
    for (document, mut others) in earlier {
        others.sort_unstable_by_key(|(other, _)| *other);
        if let Some(kept) = others.into_iter().find(|(other, _)| !removed.contains_key(other)) {
            removed.insert(document, kept);
        }
    }
    removed.into_iter().map(|(document, (kept, j))| (document, kept, j)).collect()
}

/// The document that stands for all that are connected to this one.
fn root<N: Copy + Eq + std::hash::Hash>(parent: &mut FxHashMap<N, N>, mut one: N) -> N {
    while parent[&one] != one {
        let above = parent[&parent[&one]];
        parent.insert(one, above);
        one = above;
    }
    one
}

/// Documents that are connected by pairs, in order of their first. For looking at: nothing is removed
/// because of them.
pub fn components<N: Copy + Ord + std::hash::Hash>(edges: &[(N, N, f64)]) -> Vec<Vec<N>> {
    let mut parent: FxHashMap<N, N> = FxHashMap::default();
    for (a, b, _) in edges {
        parent.entry(*a).or_insert(*a);
        parent.entry(*b).or_insert(*b);
        let (a, b) = (root(&mut parent, *a), root(&mut parent, *b));
        parent.insert(a.max(b), a.min(b));
    }
    let mut members: Vec<N> = parent.keys().copied().collect();
    members.sort_unstable();
    let mut groups: BTreeMap<N, Vec<N>> = BTreeMap::new();
    for one in members {
        groups.entry(root(&mut parent, one)).or_default().push(one);
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_component_and_not_one_removal() {
        // 1 ~ 2 ~ 3 ~ 4: closure would leave one; 3 resembles nothing that stays before it.
        let edges = [(2, 1, 0.8), (2, 3, 0.7), (4, 3, 0.9), (8, 9, 1.0)];
        assert_eq!(choose_removals(&edges), [(2, 1, 0.8), (4, 3, 0.9), (9, 8, 1.0)]);
        assert_eq!(components(&edges), [vec![1, 2, 3, 4], vec![8, 9]]);
    }

    #[test]
    fn pairs_share_a_key() {
        assert_eq!(candidate_pairs(&[5, 6, 5, 5, 6, 7], &[3, 1, 1, 3, 3, 2]), [(1, 3)]);
        assert_eq!(candidate_pairs(&[], &[]), []);
    }
}
