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
use crate::tokenizer::simd::{advise_large_pages, prefetch};

/// How often elements occur, roughly: never less than they do, up to 255.
#[derive(Debug)]
pub struct Counts {
    counters: Vec<AtomicU8>,
    shift: u32,
}

/// Elements that are looked up before they are needed: each counter is far from the last in memory.
const AHEAD: usize = 16;

impl Counts {
    /// For about `total` elements, repeats included; a half to one byte each, at most 256 MiB.
    pub fn new(total: usize) -> Self {
        let bits = (total / 2).max(1 << 12).next_power_of_two().ilog2().min(28);
        let mut counters = Vec::with_capacity(1 << bits);
        advise_large_pages(&mut counters);
        counters.resize_with(1 << bits, || AtomicU8::new(0));
        Self { counters, shift: 64 - bits }
    }

    /// Calls `each` with the counter of every element, in order.
    #[inline]
    fn each_counter(&self, set: &[u64], mut each: impl FnMut(&AtomicU8)) {
        let place = |hash: &u64| (hash >> self.shift) as usize;
        for (i, hash) in set.iter().enumerate() {
            if let Some(later) = set.get(i + AHEAD) {
                prefetch(&self.counters, place(later));
            }
            each(&self.counters[place(hash)]);
        }
    }

    /// Counts a set's elements; any number of threads of the pool may.
    pub fn add(&self, set: &[u64]) {
        // A full counter is left as it is.
        let more = |count: u8| count.checked_add(1);
        if rayon::current_num_threads() > 1 {
            self.each_counter(set, |counter| {
                let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            });
            return;
        }
        // Several times cheaper than an addition that no other thread may come between.
        self.each_counter(set, |counter| {
            if let Some(count) = more(counter.load(Ordering::Relaxed)) {
                counter.store(count, Ordering::Relaxed);
            }
        });
    }

    /// Calls `each` with the elements of a sorted set by which it must be found. Elements that occur less
    /// than `least` times take their place in the order and are left out: no other set has them.
    /// `counts` is room for theirs.
    pub fn prefix(
        &self,
        set: &[u64],
        threshold: f64,
        least: usize,
        counts: &mut Vec<u8>,
        mut each: impl FnMut(u64),
    ) {
        let wanted = prefix_length(set.len(), threshold);
        let mut of_count = [0u32; 256];
        counts.clear();
        self.each_counter(set, |counter| {
            let count = counter.load(Ordering::Relaxed);
            of_count[usize::from(count)] += 1;
            counts.push(count);
        });
        // Counts below `last` are in the prefix whole; of `last` itself the first `some` are.
        let (mut last, mut before) = (0, 0);
        while last < 255 && before + of_count[last] as usize <= wanted {
            before += of_count[last] as usize;
            last += 1;
        }
        let mut some = wanted - before;
        for (hash, count) in set.iter().zip(counts) {
            let count = usize::from(*count);
            let inside = count < last || count == last && some > 0;
            if count == last && inside {
                some -= 1;
            }
            if inside && count >= least {
                each(*hash);
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
    let (mut prefix, mut room) = (Vec::new(), Vec::new());
    for (set, number) in sets.iter().zip(0u32..) {
        counts.prefix(set, threshold, 2, &mut room, |hash| prefix.push((hash, number)));
    }
    prefix.into_iter().try_for_each(|record| postings.push(record))?;
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
        counts.each_counter(&[7], |counter| assert_eq!(counter.load(Ordering::Relaxed), 255));
    }
}
