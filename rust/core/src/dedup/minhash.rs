//! `MinHash` signatures cut into bands: documents that share a band key are candidates for a pair.
//!
//! A pair of Jaccard similarity J shares one of `b` bands of `r` rows with probability
//! 1 - (1 - J^r)^b. Candidates are always verified afterwards, so `b` and `r` are chosen for recall.

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::words::mix;

/// `bands * rows` random hash functions x -> a*x + b modulo 2^32, with odd a.
#[derive(Debug)]
pub struct Sketcher {
    multipliers: Vec<u32>,
    addends: Vec<u32>,
    rows: usize,
}

impl Sketcher {
    /// The functions are decided by `seed` alone.
    pub fn new(bands: usize, rows: usize, seed: u64) -> Self {
        let draws: Vec<u64> = (1..=(bands * rows) as u64)
            .map(|i| mix(mix(seed).wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
            .collect();
        Self {
            multipliers: draws.iter().map(|draw| (draw >> 32) as u32 | 1).collect(),
            addends: draws.iter().map(|draw| *draw as u32).collect(),
            rows,
        }
    }

    /// One key a band for a set of hashes (repeats do no harm), which must not be empty.
    pub fn band_keys(&self, shingles: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut least = vec![u32::MAX; self.multipliers.len()];
        for shingle in shingles {
            let x = (shingle >> 32) as u32;
            for ((least, a), b) in least.iter_mut().zip(&self.multipliers).zip(&self.addends) {
                *least = (*least).min(a.wrapping_mul(x).wrapping_add(*b));
            }
        }
        let mut bytes = Vec::with_capacity(4 * self.rows);
        least
            .chunks_exact(self.rows)
            .zip(0u64..)
            .map(|(band, seed)| {
                bytes.clear();
                bytes.extend(band.iter().flat_map(|value| value.to_le_bytes()));
                xxh3_64_with_seed(&bytes, seed)
            })
            .collect()
    }
}

/// The chance that a pair of Jaccard similarity `j` becomes a candidate.
pub fn recall(j: f64, bands: usize, rows: usize) -> f64 {
    1.0 - (1.0 - j.powf(rows as f64)).powf(bands as f64)
}

/// Which documents share a band key: sorted `(rank, group)`, for groups of at least two documents.
///
/// `keys` holds `bands` keys a document; `order[rank]` is a document's place in it.
/// Memory while it runs: 16 bytes a document and thread.
pub fn shared_bands(keys: &[u64], bands: usize, order: &[u32]) -> Vec<(u32, u32)> {
    let by_band: Vec<Vec<Vec<u32>>> = (0..bands)
        .into_par_iter()
        .map(|band| {
            let key = |place: u32| keys[place as usize * bands + band];
            let mut ranked: Vec<(u64, u32)> =
                (0u32..).zip(order).map(|(rank, place)| (key(*place), rank)).collect();
            ranked.sort_unstable();
            ranked
                .chunk_by(|a, b| a.0 == b.0)
                .filter(|chunk| chunk.len() > 1)
                .map(|chunk| chunk.iter().map(|(_, rank)| *rank).collect())
                .collect()
        })
        .collect();
    let mut members: Vec<(u32, u32)> = by_band
        .iter()
        .flatten()
        .zip(0u32..)
        .flat_map(|(ranks, group)| ranks.iter().map(move |rank| (*rank, group)))
        .collect();
    members.sort_unstable();
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_follows_the_formula() {
        assert!((recall(0.7, 32, 5) - 0.997).abs() < 5e-4);
        assert!((recall(0.5, 32, 5) - 0.638).abs() < 5e-4);
    }

    #[test]
    fn equal_sets_share_every_band() {
        let sketcher = Sketcher::new(8, 4, 1);
        let set: Vec<u64> = (0..100).map(mix).collect();
        let again = set.iter().rev().chain(&set).copied();
        assert_eq!(sketcher.band_keys(set.iter().copied()), sketcher.band_keys(again));
        let other = Sketcher::new(8, 4, 2);
        assert_ne!(sketcher.band_keys(set.iter().copied()), other.band_keys(set.iter().copied()));
    }

    #[test]
    fn rows_agree_as_often_as_the_jaccard_similarity() {
        // One row a band: the share of equal keys estimates J with a deviation of about 0.011.
        let sketcher = Sketcher::new(2000, 1, 7);
        for (shared, own) in [(300u64, 100u64), (100, 300), (20, 5)] {
            let a = sketcher.band_keys((0..shared + own).map(mix));
            let b = sketcher.band_keys((own..shared + 2 * own).map(mix));
            let equal = a.iter().zip(&b).filter(|(a, b)| a == b).count();
            let truth = shared as f64 / (shared + 2 * own) as f64;
            let estimate = equal as f64 / 2000.0;
            assert!((estimate - truth).abs() < 0.06, "{estimate} for {truth}");
        }
    }

    #[test]
    fn groups_hold_documents_with_equal_keys() {
        // Three documents of two bands; documents 0 and 2 agree in the second band.
        let keys = [1, 9, 2, 8, 3, 9];
        assert_eq!(shared_bands(&keys, 2, &[2, 1, 0]), [(0, 0), (2, 0)]);
        assert_eq!(shared_bands(&[], 2, &[]), [(0, 0); 0]);
    }
}
