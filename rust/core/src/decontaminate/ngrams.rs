//! An index of the benchmarks' word n-grams, and the scan of a document against it.

use std::collections::BTreeMap;
use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::dedup::words::{for_each_word, gram_hashes, word_hashes};
use xxhash_rust::xxh3::xxh3_64;

/// One n-gram of the benchmarks.
#[derive(Debug)]
struct Gram {
    /// Its words, lower-cased and joined by single spaces.
    words: String,
    /// The items that hold it, in order.
    items: Vec<u32>,
}

/// Every word n-gram of every benchmark item.
#[derive(Debug)]
pub struct Index {
    n: usize,
    by_hash: FxHashMap<u64, u32>,
    grams: Vec<Gram>,
}

impl Index {
    /// Indexes the texts of each item; n-grams that a text of `ignore` holds are left out.
    pub fn new<'a>(n: usize, items: impl Iterator<Item = &'a [String]>, ignore: &[String]) -> Self {
        let mut index = Self { n, by_hash: FxHashMap::default(), grams: Vec::new() };
        let ignored: Vec<u64> = ignore
            .iter()
            .flat_map(|text| gram_hashes(&word_hashes(text), n).collect::<Vec<_>>())
            .collect();
        let ignored: rustc_hash::FxHashSet<u64> = ignored.into_iter().collect();
        for (item, texts) in (0u32..).zip(items) {
            for text in texts {
                let words = Words::of(text);
                for (start, hash) in gram_hashes(&words.hashes, n).enumerate() {
                    if ignored.contains(&hash) {
                        continue;
                    }
                    let place = *index.by_hash.entry(hash).or_insert_with(|| {
                        index.grams.push(Gram { words: words.join(text, start, n), items: vec![] });
                        index.grams.len() as u32 - 1
                    });
                    let items = &mut index.grams[place as usize].items;
                    if items.last() != Some(&item) {
                        items.push(item);
                    }
                }
            }
        }
        index
    }

    /// Distinct n-grams.
    pub fn len(&self) -> usize {
        self.grams.len()
    }

    /// Which of the first `count` items have at least one n-gram in the index.
    pub fn covered(&self, count: usize) -> Vec<bool> {
        let mut covered = vec![false; count];
        for item in self.grams.iter().flat_map(|gram| &gram.items) {
            covered[*item as usize] = true;
        }
        covered
    }

    /// The items that share an n-gram with a text, each with the first such n-gram.
    pub fn scan(&self, text: &str) -> BTreeMap<u32, &str> {
        let mut found = BTreeMap::new();
        let words = Words::of(text);
        for (start, hash) in gram_hashes(&words.hashes, self.n).enumerate() {
            let Some(place) = self.by_hash.get(&hash) else {
                continue;
            };
            let gram = &self.grams[*place as usize];
            // The words themselves decide: a document never goes for a hash collision.
            if gram.words == words.join(text, start, self.n) {
                for item in &gram.items {
                    found.entry(*item).or_insert(gram.words.as_str());
                }
            }
        }
        found
    }
}

struct Words {
    hashes: Vec<u64>,
    spans: Vec<Range<usize>>,
}

impl Words {
    fn of(text: &str) -> Self {
        let mut words = Self { hashes: Vec::new(), spans: Vec::new() };
        for_each_word(text, |span, word| {
            words.hashes.push(xxh3_64(word.as_bytes()));
            words.spans.push(span);
        });
        words
    }

    /// `n` words from the `start`-th on, lower-cased, with single spaces between.
    fn join(&self, text: &str, start: usize, n: usize) -> String {
        let mut joined = String::new();
        for_each_word(&text[self.spans[start].start..self.spans[start + n - 1].end], |_, word| {
            if !joined.is_empty() {
                joined.push(' ');
            }
            joined.push_str(word);
        });
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        let mut all = Vec::new();
        for_each_word(text, |_, word| all.push(word.to_owned()));
        all
    }

    #[test]
    fn names_every_item_with_its_first_gram() {
        let items =
            [vec!["One two, three FOUR".to_owned()], vec!["two three four five".to_owned()]];
        let index = Index::new(3, items.iter().map(Vec::as_slice), &[]);
        assert_eq!(index.len(), 3);
        let found = index.scan("zero; one two\nthree four. five");
        assert_eq!(found, BTreeMap::from([(0, "one two three"), (1, "two three four")]));
        assert!(index.scan("three four, then five").is_empty());
        let without =
            Index::new(3, items.iter().map(Vec::as_slice), &["two three four".to_owned()]);
        assert_eq!(without.scan("two three four"), BTreeMap::new());
        assert_eq!(without.covered(2), [true, true]);
    }

    proptest! {
        #[test]
        fn agrees_with_comparing_all_windows(
            items in vec(vec("[aB]{1,2}", 0..12), 1..5), text in vec("[aB]{1,2}", 0..40), n in 1usize..5
        ) {
            let texts: Vec<Vec<String>> = items.iter().map(|item| vec![item.join(" ")]).collect();
            let index = Index::new(n, texts.iter().map(Vec::as_slice), &[]);
            let text = text.join("-");
            let document = words(&text);
            let mut expected = BTreeMap::new();
            for (item, texts) in (0u32..).zip(&texts) {
                let own = words(&texts[0]);
                if let Some(gram) = document.windows(n).find(|gram| own.windows(n).any(|w| w == *gram)) {
                    expected.insert(item, gram.join(" "));
                }
            }
            let found: BTreeMap<u32, String> =
                index.scan(&text).into_iter().map(|(item, gram)| (item, gram.to_owned())).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
