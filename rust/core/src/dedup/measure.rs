//! How much the bands find, measured in every run: a sample is joined exactly and held against them.
//!
//! The sample is of neighbourhoods, not of single documents: those whose least n-gram hash is among
//! the smallest. Two documents of similarity J have the same least hash with probability J, so pairs
//! come into the sample together; weighing each by 1/J makes up for the dissimilar ones that do so
//! less often.

use rustc_hash::FxHashSet;

use super::grams::sort_set;
use super::join;
use super::sign::{Signature, Signed};
use crate::Result;

/// What a sample says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// Documents sampled.
    pub documents: u64,
    /// Pairs among them that reach the threshold, by the exact join.
    pub pairs: u64,
    /// Those that share a band.
    pub found: u64,
    /// Estimated share found, with the ends of its 95 % interval (Wilson); `None` without pairs.
    pub estimate: Option<(f64, f64, f64)>,
}

/// Documents of the smallest least hashes.
#[derive(Debug)]
pub struct Sample {
    most: usize,
    below: u64,
    documents: Vec<(u64, Signed)>,
}

impl Sample {
    /// Of about 1,000 documents, or 250 where memory is limited.
    pub fn new(limited: bool) -> Self {
        Self { most: if limited { 250 } else { 1000 }, below: u64::MAX, documents: Vec::new() }
    }

    /// Takes a document if its least hash is small enough.
    pub fn offer(&mut self, signature: Signature<'_>) {
        if signature.least >= self.below {
            return;
        }
        self.documents.push((signature.least, signature.to_signed()));
        if self.documents.len() >= 2 * self.most {
            self.documents.sort_by_key(|(least, _)| *least);
            // All documents of one least hash stay or go together, unless there are too many.
            let middle = self.documents[self.most].0;
            self.below = if middle == self.documents[0].0 { middle + 1 } else { middle };
            let below = self.below;
            self.documents.retain(|(least, _)| *least < below);
            self.documents.truncate(self.most);
        }
    }

    /// Joins the sample exactly and counts the pairs that share a band.
    pub fn measure(self, threshold: f64) -> Result<Recall> {
        let mut sets = Vec::with_capacity(self.documents.len());
        let mut keys = Vec::with_capacity(self.documents.len());
        for (_, mut signed) in self.documents {
            sort_set(&mut signed.grams, &mut Vec::new());
            sets.push(signed.grams);
            keys.push(signed.keys);
        }
        let pairs = join::pairs(&sets, threshold)?;
        let (mut all, mut weight, mut found) = (0.0, 0.0, 0);
        for (a, b, j) in &pairs {
            let other: FxHashSet<u64> = keys[*b as usize].iter().copied().collect();
            all += 1.0 / j;
            if keys[*a as usize].iter().any(|key| other.contains(key)) {
                weight += 1.0 / j;
                found += 1;
            }
        }
        let estimate = (!pairs.is_empty()).then(|| {
            let share: f64 = weight / all;
            let (low, high) = wilson(share, pairs.len() as f64);
            (share, low, high)
        });
        Ok(Recall { documents: sets.len() as u64, pairs: pairs.len() as u64, found, estimate })
    }
}

/// The 95 % score interval of a share seen in `n` trials.
fn wilson(share: f64, n: f64) -> (f64, f64) {
    let z = 1.96f64;
    let middle = share + z * z / (2.0 * n);
    let spread = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    (((middle - spread) / scale).max(0.0), ((middle + spread) / scale).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::grams::mix;
    use crate::dedup::minhash::Sketcher;
    use crate::dedup::sign::least_of;

    /// Families of similar documents: the sample sees pairs, and few bands find fewer of them.
    #[test]
    fn few_bands_are_seen_to_miss() {
        let measure = |bands: usize, rows: usize| {
            let sketcher = Sketcher::new(bands, rows, 1);
            let mut sample = Sample::new(false);
            for document in 0..6000u64 {
                let own = |i: u64| mix(document << 20 | i);
                let family = |i: u64| mix((document / 2) << 40 | i | 1 << 63);
                let grams: Vec<u64> = (0..80).map(family).chain((0..15).map(own)).collect();
                let mut keys = Vec::new();
                sketcher.band_keys(&grams, &mut Vec::new(), &mut keys);
                let least = least_of(&grams);
                sample.offer(Signature { row: 0, least, keys: &keys, grams: &grams });
            }
            sample.measure(0.7).unwrap()
        };
        let (few, many) = (measure(2, 5), measure(32, 5));
        // J = 80 / 110 for all: pairs of a family, nothing else.
        assert!(many.documents >= 1000 && many.pairs > 200, "{many:?}");
        assert_eq!(few.pairs, many.pairs);
        let truth = super::super::minhash::recall(80.0 / 110.0, 2, 5);
        let (_, low, high) = few.estimate.unwrap();
        assert!(low < truth + 0.03 && truth - 0.03 < high, "{few:?} for {truth}");
        assert!(many.estimate.unwrap().0 > 0.98 && few.found < many.found);
        // Documents come into the sample by a hash that no slot of their signatures shares.
        let one = measure(1, 1).estimate.unwrap().0;
        assert!((one - 80.0 / 110.0).abs() < 0.06, "{one}");
    }

    #[test]
    fn one_text_everywhere_does_not_fill_the_memory() {
        let mut sample = Sample::new(true);
        for _ in 0..5000 {
            sample.offer(Signature { row: 0, least: 5, keys: &[9], grams: &[1, 2, 3] });
        }
        let recall = sample.measure(0.7).unwrap();
        assert!(recall.documents <= 500 && recall.found == recall.pairs && recall.pairs > 0);
    }
}
