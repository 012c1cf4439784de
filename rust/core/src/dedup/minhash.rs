//! `MinHash` signatures cut into bands: documents that share a band key are candidates for a pair.
//!
//! A pair of Jaccard similarity J shares one of `b` bands of `r` rows with probability
//! 1 - (1 - J^r)^b. Candidates are always verified afterwards, so `b` and `r` are chosen for recall.
//!
//! Signatures are those of Fast Similarity Sketching (Dahlgaard, Knudsen and Thorup, FOCS 2017): every
//! hash goes into one slot a round and rounds end when no slot is empty, so a document costs a step for
//! each of its hashes and not one for each of its hashes and slots. Slots agree with the probability J
//! and are about as good as independent ones.

use super::grams::mix;

/// Makes signatures of `bands * rows` slots.
#[derive(Debug)]
pub struct Sketcher {
    seed: u64,
    bands: usize,
    rows: usize,
}

/// A slot that nothing fell into yet.
const EMPTY: u64 = u64::MAX;

impl Sketcher {
    /// The hash functions are decided by `seed` alone.
    pub fn new(bands: usize, rows: usize, seed: u64) -> Self {
        Self { seed: mix(seed), bands, rows }
    }

    /// Keys that a document has.
    pub fn bands(&self) -> usize {
        self.bands
    }

    /// The signature of a set of hashes, which must not be empty; repeats do no harm.
    ///
    /// In each round every hash is thrown into one slot, which keeps the least; what falls into a slot
    /// in a later round never counts beside an earlier one. After as many rounds as there are slots,
    /// those still empty are filled one a round.
    pub fn signature(&self, shingles: &[u64], slots: &mut Vec<u64>) {
        let count = self.bands * self.rows;
        slots.clear();
        slots.resize(count, EMPTY);
        for round in 0..2 * count {
            let seed = mix(self.seed.wrapping_add(round as u64));
            let after = (round as u64) << 32;
            if let Some(slot) = round.checked_sub(count) {
                if slots[slot] == EMPTY {
                    let least = shingles.iter().map(|x| throw(*x, seed) & LOW).min();
                    slots[slot] = after | least.unwrap_or(LOW);
                }
            } else {
                for shingle in shingles {
                    let hash = throw(*shingle, seed);
                    let slot = &mut slots[(((hash >> 32) * count as u64) >> 32) as usize];
                    *slot = (*slot).min(after | hash & LOW);
                }
            }
            if !slots.contains(&EMPTY) {
                break;
            }
        }
    }

    /// Appends one key a band for a set of hashes, which must not be empty.
    pub fn band_keys(&self, shingles: &[u64], slots: &mut Vec<u64>, keys: &mut Vec<u64>) {
        self.signature(shingles, slots);
        keys.extend(slots.chunks_exact(self.rows).zip(1u64..).map(|(band, number)| {
            band.iter().fold(mix(number), |key, value| throw(*value, key.rotate_left(32)))
        }));
    }
}

/// The bits of a slot's value that are not its round.
const LOW: u64 = u32::MAX as u64;

/// A hash under a seed: both halves of a 128-bit product, folded.
#[inline]
fn throw(hash: u64, seed: u64) -> u64 {
    let product = u128::from(hash ^ seed) * u128::from(0xd6e8_feb8_6659_fd93_u64);
    product as u64 ^ (product >> 64) as u64
}

/// The chance that a pair of Jaccard similarity `j` becomes a candidate.
pub fn recall(j: f64, bands: usize, rows: usize) -> f64 {
    1.0 - (1.0 - j.powf(rows as f64)).powf(bands as f64)
}

/// The fewest bands of the most rows that find a pair of similarity `j` with at least the wanted
/// probability, in signatures of at most `most` values.
///
/// More rows leave more dissimilar pairs out, so the most that can be had is taken. `None` where even
/// one row a band needs more values.
pub fn choose_bands(j: f64, wanted: f64, most: usize) -> Option<(usize, usize)> {
    let bands = |rows: usize| {
        let missed = (-j.powf(rows as f64)).ln_1p();
        ((1.0 - wanted).ln() / missed).ceil().max(1.0) as usize
    };
    (1..=16)
        .rev()
        .map(|rows| (bands(rows), rows))
        .find(|(bands, rows)| bands.saturating_mul(*rows) <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_follows_the_formula() {
        assert!((recall(0.7, 32, 5) - 0.997).abs() < 5e-4);
        assert!((recall(0.5, 32, 5) - 0.638).abs() < 5e-4);
    }

    fn keys(sketcher: &Sketcher, set: &[u64]) -> Vec<u64> {
        let mut keys = Vec::new();
        sketcher.band_keys(set, &mut Vec::new(), &mut keys);
        keys
    }

    #[test]
    fn equal_sets_share_every_band() {
        let sketcher = Sketcher::new(8, 4, 1);
        let set: Vec<u64> = (0..3000).map(mix).collect();
        let again: Vec<u64> = set.iter().rev().chain(&set).copied().collect();
        assert_eq!(keys(&sketcher, &set), keys(&sketcher, &again));
        assert_ne!(keys(&Sketcher::new(8, 4, 2), &set), keys(&sketcher, &set));
    }

    /// Slot by slot, as it is defined.
    #[test]
    fn signatures_follow_the_definition() {
        let sketcher = Sketcher::new(7, 5, 3);
        for size in [1, 2, 3, 10, 35, 200, 5000] {
            let set: Vec<u64> = (0..size).map(mix).collect();
            let mut found = Vec::new();
            sketcher.signature(&set, &mut found);
            let throws = |round: u64| {
                let seed = mix(sketcher.seed.wrapping_add(round));
                set.iter().map(move |x| throw(*x, seed))
            };
            for (slot, value) in (0u64..).zip(found) {
                let first = (0..35).find_map(|round| {
                    let here = throws(round).filter(|hash| ((hash >> 32) * 35) >> 32 == slot);
                    here.map(|hash| round << 32 | hash & LOW).min()
                });
                let late = || throws(35 + slot).map(|hash| (35 + slot) << 32 | hash & LOW).min();
                assert_eq!(Some(value), first.or_else(late), "slot {slot} of {size}");
            }
        }
    }

    /// Bands agree about as often as those of independent slots, whatever the size of the sets. A little
    /// less often: what falls into one slot of a round cannot fall into another.
    #[test]
    fn bands_agree_as_often_as_expected() {
        let sketcher = Sketcher::new(32, 5, 11);
        for (shared, own) in [(7u64, 1u64), (7, 2), (28, 6), (140, 30), (700, 150), (30, 3)] {
            let jaccard = shared as f64 / (shared + 2 * own) as f64;
            let expected = jaccard.powi(5);
            let pairs = 2000u64;
            let found = (0..pairs).map(|pair| {
                let set = |from: u64| -> Vec<u64> {
                    (from..from + shared + own).map(|i| mix(pair << 32 | i)).collect()
                };
                let (a, b) = (keys(&sketcher, &set(0)), keys(&sketcher, &set(own)));
                a.iter().zip(&b).filter(|(a, b)| a == b).count()
            });
            let share = found.sum::<usize>() as f64 / (32 * pairs) as f64;
            let ratio = share / expected;
            assert!((0.93..1.03).contains(&ratio), "{share} for {expected} at {jaccard}");
        }
    }

    #[test]
    fn rows_agree_as_often_as_the_jaccard_similarity() {
        // One row a band: the share of equal keys estimates J with a deviation of about 0.011.
        let sketcher = Sketcher::new(2000, 1, 7);
        for (shared, own) in [(300u64, 100u64), (100, 300), (20, 5)] {
            let set = |from: u64| (from..from + shared + own).map(mix).collect::<Vec<_>>();
            let (a, b) = (keys(&sketcher, &set(0)), keys(&sketcher, &set(own)));
            let equal = a.iter().zip(&b).filter(|(a, b)| a == b).count();
            let truth = shared as f64 / (shared + 2 * own) as f64;
            let estimate = equal as f64 / 2000.0;
            assert!((estimate - truth).abs() < 0.06, "{estimate} for {truth}");
        }
    }

    #[test]
    fn bands_reach_the_wanted_recall() {
        assert_eq!(choose_bands(0.7, 0.996, 256), Some((31, 5)));
        assert_eq!(choose_bands(1.0, 0.999, 256), Some((1, 16)));
        assert_eq!(choose_bands(0.01, 0.999, 256), None);
        for (j, wanted) in [(0.5, 0.9), (0.7, 0.99), (0.8, 0.999), (0.85, 0.5)] {
            let (bands, rows) = choose_bands(j, wanted, 256).unwrap();
            assert!(recall(j, bands, rows) >= wanted && bands * rows <= 256);
            assert!(bands == 1 || recall(j, bands - 1, rows) < wanted, "no band too many");
        }
    }
}
