//! `MinHash` signatures cut into bands: documents that share a band key are candidates for a pair.
//!
//! A pair of Jaccard similarity J shares one of `b` bands of `r` rows with probability
//! 1 - (1 - J^r)^b. Candidates are always verified afterwards, so `b` and `r` are chosen for recall.

use super::words::mix;
use crate::tokenizer::simd::{self, BLOCK, Kernel, Level, Masks};

/// `bands * rows` random hash functions x -> a*x + b modulo 2^32, with odd a.
#[derive(Debug)]
pub struct Sketcher {
    multipliers: Vec<u32>,
    addends: Vec<u32>,
    bands: usize,
    rows: usize,
    level: Level,
}

/// Functions that are worked out together: their values stay in registers.
const TOGETHER: usize = 32;

impl Sketcher {
    /// The functions are decided by `seed` alone.
    pub fn new(bands: usize, rows: usize, seed: u64) -> Self {
        let draws: Vec<u64> = (1..=(bands * rows).next_multiple_of(TOGETHER) as u64)
            .map(|i| mix(mix(seed).wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
            .collect();
        Self {
            multipliers: draws.iter().map(|draw| (draw >> 32) as u32 | 1).collect(),
            addends: draws.iter().map(|draw| *draw as u32).collect(),
            bands,
            rows,
            level: Level::best(),
        }
    }

    /// The least value of each function over a set of hashes (repeats do no harm).
    pub fn signature(&self, shingles: &[u64], least: &mut Vec<u32>) {
        least.clear();
        least.resize(self.multipliers.len(), u32::MAX);
        simd::run(self.level, &mut Least { sketcher: self, shingles, values: least });
        least.truncate(self.bands * self.rows);
    }

    /// One key a band for a set of hashes, which must not be empty, appended to `keys`.
    pub fn band_keys(&self, shingles: &[u64], least: &mut Vec<u32>, keys: &mut Vec<u64>) {
        self.signature(shingles, least);
        keys.extend(least.chunks_exact(self.rows).zip(1u64..).map(|(band, number)| {
            band.iter().fold(number, |key, value| mix(key.rotate_left(32) ^ u64::from(*value)))
        }));
    }
}

struct Least<'a> {
    sketcher: &'a Sketcher,
    shingles: &'a [u64],
    values: &'a mut [u32],
}

impl Kernel for Least<'_> {
    #[inline]
    fn run(&mut self, _: impl Fn(&[u8; BLOCK]) -> Masks) {
        // A part of the hashes at a time, so that they are in the nearest cache for every function.
        for part in self.shingles.chunks(1024) {
            let multipliers = self.sketcher.multipliers.as_chunks::<TOGETHER>().0;
            let addends = self.sketcher.addends.as_chunks::<TOGETHER>().0;
            let least = self.values.as_chunks_mut::<TOGETHER>().0;
            for ((a, b), least) in multipliers.iter().zip(addends).zip(least) {
                let mut now = *least;
                for shingle in part {
                    let x = (shingle >> 32) as u32;
                    for i in 0..TOGETHER {
                        now[i] = now[i].min(a[i].wrapping_mul(x).wrapping_add(b[i]));
                    }
                }
                *least = now;
            }
        }
    }
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

    #[test]
    fn signatures_are_the_least_values_at_every_level() {
        let set: Vec<u64> = (0..77).map(mix).collect();
        for level in Level::available() {
            let sketcher = Sketcher { level, ..Sketcher::new(7, 5, 3) };
            let mut found = Vec::new();
            sketcher.signature(&set, &mut found);
            let value = |i: usize, x: &u64| {
                let product = sketcher.multipliers[i].wrapping_mul((x >> 32) as u32);
                product.wrapping_add(sketcher.addends[i])
            };
            let truth: Vec<u32> =
                (0..35).map(|i| set.iter().map(|x| value(i, x)).min().unwrap()).collect();
            assert_eq!(found, truth, "{}", level.name());
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
