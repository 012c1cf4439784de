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
    counters: Vec<u8>,
    shift: u32,
}

/// Elements, or sets, that are asked for before they are needed: each is far from the last in memory.
const AHEAD: usize = 16;
/// Counters that are filled and read together: 1 MiB, half of a usual core's own cache.
const PART: usize = 1 << 20;
/// Elements in a line of the cache.
const LINE: usize = 8;

impl Counts {
    /// For about `total` elements, repeats included; a half to one byte each, at most 256 MiB.
    pub fn new(total: usize) -> Self {
        let bits = (total / 2).max(1 << 12).next_power_of_two().ilog2().min(28);
        let mut counters = Vec::with_capacity(1 << bits);
        advise_large_pages(&mut counters);
        counters.resize(1 << bits, 0);
        Self { counters, shift: 64 - bits }
    }

    /// Where the counter of a set's element `i` stands; that of a later one is asked for.
    fn place(&self, set: &[u64], i: usize) -> usize {
        let place = |hash: u64| (hash >> self.shift) as usize;
        if let Some(later) = set.get(i + AHEAD) {
            prefetch(&self.counters, place(*later));
        }
        place(set[i])
    }

    /// Counts a set's elements.
    pub fn add(&mut self, set: &[u64]) {
        for i in 0..set.len() {
            let place = self.place(set, i);
            self.counters[place] = self.counters[place].saturating_add(1);
        }
    }

    /// Counts the elements of sorted sets on the current rayon pool, and returns how often each occurs,
    /// one set after another.
    ///
    /// All that falls in one part of the counters is counted before the next, so that a counter is
    /// found in the processor's cache: [`add`](Self::add) waits for memory with every element.
    pub fn add_all(&mut self, sets: &[&[u64]]) -> Vec<u8> {
        let shift = self.shift;
        let mut starts = Vec::with_capacity(sets.len());
        let mut total = 0;
        for set in sets {
            starts.push(total);
            total += set.len();
        }
        let mut found = Vec::new();
        found.resize_with(total, || AtomicU8::new(0));
        let parts = self.counters.len().div_ceil(PART);
        let together = parts.div_ceil(rayon::current_num_threads()) * PART;
        self.counters.par_chunks_mut(together).enumerate().for_each(|(task, counters)| {
            let place = |hash: u64| (hash >> shift) as usize;
            let before = |hash: &u64| place(*hash) < task * together;
            // Of each set, what falls in the part at hand; and the counters of all of that.
            let mut from: Vec<usize> = sets.iter().map(|set| set.partition_point(before)).collect();
            let mut to = from.clone();
            let mut places: Vec<u32> = Vec::new();
            for (part, counters) in counters.chunks_mut(PART).enumerate() {
                let first = task * together + part * PART;
                for (i, set) in sets.iter().enumerate() {
                    if let Some(later) = sets.get(i + AHEAD) {
                        let next = to[i + AHEAD];
                        for line in 0..4 {
                            prefetch(later, (next + line * LINE).min(later.len()));
                        }
                    }
                    let known = places.len();
                    for hash in &set[from[i]..] {
                        let place = place(*hash) - first;
                        let Some(counter) = counters.get_mut(place) else {
                            break;
                        };
                        *counter = counter.saturating_add(1);
                        places.push(place as u32);
                    }
                    to[i] += places.len() - known;
                }
                let mut counted = places.drain(..).map(|place| counters[place as usize]);
                for ((from, to), start) in from.iter_mut().zip(&to).zip(&starts) {
                    let room = &found[start + *from..start + *to];
                    for (found, count) in room.iter().zip(&mut counted) {
                        found.store(count, Ordering::Relaxed);
                    }
                    *from = *to;
                }
            }
        });
        found.into_iter().map(AtomicU8::into_inner).collect()
    }

    /// Looks up how often each element of a set occurs.
    pub fn of(&self, set: &[u64], counts: &mut Vec<u8>) {
        counts.clear();
        counts.extend((0..set.len()).map(|i| self.counters[self.place(set, i)]));
    }
}

/// Calls `each` with the elements of a sorted set by which it must be found, `counts` being how often
/// each occurs. Elements that occur less than `least` times take their place in the order and are left
/// out: no other set has them.
pub fn prefix(set: &[u64], counts: &[u8], threshold: f64, least: usize, mut each: impl FnMut(u64)) {
    let wanted = prefix_length(set.len(), threshold);
    let mut of_count = [0u32; 256];
    for count in counts {
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

/// n - ceil(t n) + 1, and never less for rounding.
fn prefix_length(n: usize, threshold: f64) -> usize {
    let needed = (threshold * n as f64 - 1e-6).ceil().max(1.0) as usize;
    (n + 1).saturating_sub(needed).min(n)
}

/// Every pair of sorted sets with a Jaccard similarity of at least `threshold`, each once with the
/// smaller number first, in order. Empty sets resemble nothing.
pub fn pairs(sets: &[Vec<u64>], threshold: f64) -> Result<Vec<(u32, u32, f64)>> {
    let mut counts = Counts::new(sets.iter().map(Vec::len).sum());
    for set in sets {
        counts.add(set);
    }
    let mut postings = Sorter::new("postings", None);
    let (mut found, mut room) = (Vec::new(), Vec::new());
    for (set, number) in sets.iter().zip(0u32..) {
        counts.of(set, &mut room);
        prefix(set, &room, threshold, 2, |hash| found.push((hash, number)));
    }
    found.into_iter().try_for_each(|record| postings.push(record))?;
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

    /// Any sets, in counters of several parts: one by one or all at once, with any number of threads.
    #[test]
    fn all_at_once_counts_as_one_by_one() {
        let counters = 4 * PART;
        let element = |i: u64| mix(i * i % 50_021);
        let mut sets: Vec<Vec<u64>> = (0..1000u64)
            .map(|number| (0..number % 90).map(|i| element(number * 7 + i)).collect())
            .collect();
        // Full counters, an empty set, the least and the greatest element.
        sets.extend(vec![vec![3, u64::MAX]; 300]);
        sets.push(vec![]);
        for set in &mut sets {
            set.sort_unstable();
        }
        let sets: Vec<&[u64]> = sets.iter().map(Vec::as_slice).collect();
        let mut truth = Counts::new(2 * counters);
        for set in &sets {
            truth.add(set);
        }
        let (mut each, mut room) = (Vec::new(), Vec::new());
        for set in &sets {
            truth.of(set, &mut room);
            each.extend_from_slice(&room);
        }
        assert_eq!(each.iter().max(), Some(&255));
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut counts = Counts::new(2 * counters);
            assert_eq!(pool.install(|| counts.add_all(&sets)), each, "{threads}");
            assert_eq!(counts.counters, truth.counters);
        }
    }
}
