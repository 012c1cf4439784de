//! What near-dedup knows of a document besides its text: a hash, band keys, n-grams.

use arrow::array::RecordBatch;
use rayon::prelude::*;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::grams;
use super::minhash::Sketcher;
use crate::corpus;

/// How documents are signed: the same for every document that is ever compared.
#[derive(Debug)]
pub struct Signer {
    /// Words in a shingle; `None` when only whole texts are compared.
    pub ngram: Option<usize>,
    /// Makes band keys; `None` without bands.
    pub sketcher: Option<Sketcher>,
    /// Whether runs of white space count as one space, and those at the ends as nothing.
    pub normalize: bool,
    /// Whether n-grams are sorted at once and repeats left out, while they are in a near cache.
    pub distinct: bool,
}

/// A signed document.
#[derive(Debug, Default, Clone)]
pub struct Signed {
    /// xxh3-128 of the text, normalised if so asked.
    pub hash: u128,
    /// One key a band; none for documents of too few words.
    pub keys: Vec<u64>,
    /// Hashes of the n-grams; in order of the text and with repeats unless they were sorted.
    pub grams: Vec<u64>,
}

/// Some signed documents of a batch, one after another: an allocation a document would cost more than
/// the hashes do.
#[derive(Debug, Default)]
pub struct Signatures {
    rows: Vec<usize>,
    /// The least hash of each.
    least: Vec<u64>,
    bands: usize,
    keys: Vec<u64>,
    grams: Vec<u64>,
    ends: Vec<usize>,
}

/// One of [`Signatures`].
#[derive(Debug, Clone, Copy)]
pub struct Signature<'a> {
    /// Its row in the batch.
    pub row: usize,
    /// The least hash of its n-grams, 0 without keys: two documents have the same with the probability
    /// of their Jaccard similarity.
    pub least: u64,
    /// One key a band; none where they were not wanted or the document has too few words.
    pub keys: &'a [u64],
    /// Hashes of the n-grams, in order of the text and with repeats unless they are to be distinct.
    pub grams: &'a [u64],
}

impl Signatures {
    /// The documents, in order.
    pub fn iter(&self) -> impl Iterator<Item = Signature<'_>> {
        let (mut start, mut key) = (0, 0);
        (0..self.rows.len()).map(move |i| {
            let grams = &self.grams[start..self.ends[i]];
            start = self.ends[i];
            let keys = if grams.is_empty() { 0 } else { self.bands };
            key += keys;
            let keys = &self.keys[key - keys..key];
            Signature { row: self.rows[i], least: self.least[i], keys, grams }
        })
    }
}

impl Signature<'_> {
    /// A copy that stands for itself.
    pub fn to_signed(self) -> Signed {
        Signed { hash: 0, keys: self.keys.to_vec(), grams: self.grams.to_vec() }
    }
}

/// Rows that one task signs.
const TOGETHER: usize = 64;

impl Signer {
    /// Hashes of whole texts.
    pub fn hashes(&self, batch: &RecordBatch) -> Vec<u128> {
        let texts = corpus::texts(batch);
        let hash = |i| text_hash(texts.value(i), self.normalize);
        (0..batch.num_rows()).into_par_iter().map(hash).collect()
    }

    /// The n-grams of some rows, with band keys if `keys`; in order.
    pub fn sign(
        &self,
        batch: &RecordBatch,
        keys: bool,
        wanted: impl Fn(usize) -> bool + Sync,
    ) -> Vec<Signatures> {
        let Some(ngram) = self.ngram else {
            return Vec::new();
        };
        let texts = corpus::texts(batch);
        let sketcher = self.sketcher.as_ref().filter(|_| keys);
        let bands = sketcher.map_or(0, Sketcher::bands);
        let starts: Vec<usize> = (0..batch.num_rows()).step_by(TOGETHER).collect();
        starts
            .into_par_iter()
            .map_init(
                || (Vec::new(), Vec::new(), Vec::new()),
                |(words, slots, room), start| {
                    let mut all = Signatures { bands, ..Signatures::default() };
                    let end = (start + TOGETHER).min(batch.num_rows());
                    let bytes = texts.value_offsets()[end] - texts.value_offsets()[start];
                    all.grams.reserve(bytes as usize / 8);
                    all.keys.reserve(bands * (end - start));
                    for i in start..end {
                        if !wanted(i) {
                            continue;
                        }
                        let before = all.grams.len();
                        grams::add_grams(texts.value(i), ngram, words, &mut all.grams);
                        if self.distinct {
                            let count = grams::sort_distinct(&mut all.grams[before..], room);
                            all.grams.truncate(before + count);
                        }
                        let grams = &all.grams[before..];
                        if let Some(sketcher) = sketcher.filter(|_| !grams.is_empty()) {
                            sketcher.band_keys(grams, slots, &mut all.keys);
                            all.least.push(least_of(grams));
                        } else {
                            all.least.push(0);
                        }
                        all.ends.push(all.grams.len());
                        all.rows.push(i);
                    }
                    all
                },
            )
            .collect()
    }
}

/// The least hash of a set, in an order of its own: what is sampled by it must not be what bands see.
pub fn least_of(grams: &[u64]) -> u64 {
    grams.iter().min().map_or(u64::MAX, |hash| grams::mix(*hash))
}

/// xxh3-128 of a text, or of its words by white space with one space between them.
pub fn text_hash(text: &str, normalize: bool) -> u128 {
    if !normalize {
        return xxh3_128(text.as_bytes());
    }
    let mut hash = Xxh3::new();
    for (i, run) in text.split_whitespace().enumerate() {
        if i > 0 {
            hash.update(b" ");
        }
        hash.update(run.as_bytes());
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_counts_unless_normalised() {
        let same = |a: &str, b: &str, normalize| text_hash(a, normalize) == text_hash(b, normalize);
        assert!(same(" a\n\tb ", "a b", true) && !same("a b", "ab", true));
        assert!(same("a b", "a b", true) && same("", "\u{2003}\n", true));
        assert!(!same("a b", "a  b", false) && same("é", "é", false));
    }
}
