//! What near-dedup knows of a document besides its text: a hash, band keys, n-grams.

use arrow::array::RecordBatch;
use rayon::prelude::*;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::minhash::Sketcher;
use super::words;
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
}

/// A signed document.
#[derive(Debug, Default, Clone)]
pub struct Signed {
    /// xxh3-128 of the text, normalised if so asked.
    pub hash: u128,
    /// One key a band; none for documents of too few words.
    pub keys: Vec<u64>,
    /// Hashes of the n-grams, in order of the text and with repeats.
    pub grams: Vec<u64>,
}

impl Signer {
    /// Hashes of whole texts.
    pub fn hashes(&self, batch: &RecordBatch) -> Vec<u128> {
        let texts = corpus::texts(batch);
        let hash = |i| text_hash(texts.value(i), self.normalize);
        (0..batch.num_rows()).into_par_iter().map(hash).collect()
    }

    /// The n-grams of some rows, with band keys if `keys`; each with its row.
    pub fn sign(
        &self,
        batch: &RecordBatch,
        keys: bool,
        wanted: impl Fn(usize) -> bool + Sync,
    ) -> Vec<(usize, Signed)> {
        let Some(ngram) = self.ngram else {
            return Vec::new();
        };
        let texts = corpus::texts(batch);
        let sketcher = self.sketcher.as_ref().filter(|_| keys);
        (0..batch.num_rows())
            .into_par_iter()
            .filter(|i| wanted(*i))
            .map_init(
                || (Vec::new(), Vec::new()),
                |(words, least), i| {
                    let grams = words::grams(texts.value(i), ngram, words);
                    let mut signed = Signed { grams, ..Signed::default() };
                    if let Some(sketcher) = sketcher.filter(|_| !signed.grams.is_empty()) {
                        sketcher.band_keys(&signed.grams, least, &mut signed.keys);
                    }
                    (i, signed)
                },
            )
            .collect()
    }
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
