//! Exact set-similarity join by prefix filter: no pair at the threshold is missed.
//!
//! Put the elements of all sets in one order. Two sets of Jaccard similarity t or more share at
//! least t of the larger one's elements, so they also share one of the first n - ceil(t n) + 1
//! elements of each. Any order is exact; rare elements first makes candidates few. The order here is
//! (occurrences counted by hash up to 255, hash): counters may collide, which only costs time.

use std::sync::atomic::{AtomicU8, Ordering};

use rayon::prelude::*;
use rustc_hash::FxHashSet;

use super::greedy::jaccard_at_least;
use super::spill::Sorter;
use crate::Result;

/// How often elements occur, roughly: never less than they do, up to 255.
#[derive(Debug)]
pub struct Counts {
    counters: Vec<AtomicU8>,
    shift: u32,
}

impl Counts {
    /// For about `total` elements, repeats included; a half to one byte each, at most 256 MiB.
    pub fn new(total: usize) -> Self {
        let bits = (total / 2).max(1 << 12).next_power_of_two().ilog2().min(28);
        let counters = std::iter::repeat_with(|| AtomicU8::new(0)).take(1 << bits).collect();
        Self { counters, shift: 64 - bits }
    }

    fn counter(&self, hash: u64) -> &AtomicU8 {
        &self.counters[(hash >> self.shift) as usize]
    }

    /// Counts a set's elements; any number of threads may.
    pub fn add(&self, set: &[u64]) {
        for hash in set {
            // A full counter is left as it is.
            let add = |count: u8| count.checked_add(1);
            let _ = self.counter(*hash).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    /// Appends the elements of a sorted set by which it must be found. Elements that occur less than
    /// `least` times take their place in the order and are left out: no other set has them.
    pub fn prefix(&self, set: &[u64], threshold: f64, least: usize, prefix: &mut Vec<u64>) {
        let wanted = prefix_length(set.len(), threshold);
        // Each counter is far from the last one in memory: it is looked up once.
        let count = |hash: &u64| self.counter(*hash).load(Ordering::Relaxed);
        let counts: Vec<u8> = set.iter().map(count).collect();
        let mut of_count = [0u32; 256];
        for count in &counts {
            of_count[usize::from(*count)] += 1;
        }
        // Counts below `last` are in the prefix whole; of `last` itself the first `some` are.
        let (mut last, mut before) = (0, 0);
        while last < 255 && before + of_count[last] as usize <= wanted {
            before += of_count[last] as usize;
            last += 1;
        }
        let mut some = wanted - before;
        for (hash, count) in set.iter().zip(counts) {
            let count = usize::from(count);
            let inside = count < last || count == last && some > 0;
            if count == last && inside {
                some -= 1;
            }
            if inside && count >= least {
                prefix.push(*hash);
            }
        }
    }
}

/// n - ceil(t n) + 1, and never less for rounding.
fn prefix_length(n: usize, threshold: f64) -> usize {
    let needed = (threshold * n as f64 - 1e-6).ceil().max(1.0) as usize;
    (n + 1).saturating_sub(needed).min(n)
}

/// Every pair of sorted sets with a Jaccard similarity of at least `threshold`, each once with the
/// smaller number first, in order. Empty sets resemble nothing.
pub fn pairs(sets: &[Vec<u64>], threshold: f64) -> Result<Vec<(u32, u32, f64)>> {
    let counts = Counts::new(sets.iter().map(Vec::len).sum());
    sets.par_iter().for_each(|set| counts.add(set));
    let mut postings = Sorter::new("postings", None);
    let mut prefix = Vec::new();
    for (set, number) in sets.iter().zip(0u32..) {
        prefix.clear();
        counts.prefix(set, threshold, 2, &mut prefix);
        prefix.iter().try_for_each(|hash| postings.push((*hash, number)))?;
    }
    let mut candidates = FxHashSet::default();
    postings.for_each_key(|_, numbers| {
        for (i, a) in numbers.iter().enumerate() {
            candidates.extend(numbers[i + 1..].iter().map(|b| (*a, *b)));
        }
    })?;
    let mut found: Vec<(u32, u32, f64)> = candidates
        .into_par_iter()
        .filter_map(|(a, b)| {
            let j = jaccard_at_least(&sets[a as usize], &sets[b as usize], threshold)?;
            Some((a, b, j))
        })
        .collect();
    found.sort_unstable_by_key(|(a, b, _)| (*a, *b));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::grams::mix;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Nothing missed and nothing extra, at any threshold, with few and with many repeats.
        #[test]
        fn all_pairs_equal_brute_force(
            sets in vec(btree_set(0u64..40, 0..25), 0..40),
            t in prop::sample::select(vec![0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0])
        ) {
            let lists: Vec<Vec<u64>> = sets
                .iter()
                .map(|set| {
                    let mut list: Vec<u64> = set.iter().map(|x| mix(*x + 1)).collect();
                    list.sort_unstable();
                    list
                })
                .collect();
            let mut truth = Vec::new();
            for (i, a) in sets.iter().enumerate() {
                for (j, b) in sets.iter().enumerate().skip(i + 1) {
                    let union = a.union(b).count();
                    let similarity = a.intersection(b).count() as f64 / union.max(1) as f64;
                    if similarity >= t {
                        truth.push((i as u32, j as u32, similarity));
                    }
                }
            }
            prop_assert_eq!(pairs(&lists, t).unwrap(), truth);
        }
    }

    #[test]
    fn full_counters_stay_full() {
        let counts = Counts::new(1);
        (0..1000).into_par_iter().for_each(|_| counts.add(&[7, 7]));
        assert_eq!(counts.counter(7).load(Ordering::Relaxed), 255);
    }
}
