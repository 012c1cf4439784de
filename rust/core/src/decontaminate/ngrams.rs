//! The benchmarks' word n-grams as hashes, and the scan of a document against them.
//!
//! A document's words are hashed in one pass, each run of [`PREFIX`] words is looked up in a bit map, and
//! where one is there the whole n-gram decides by 128 bits. So a set holds no word of a benchmark and may
//! travel; a document goes for a collision with a probability of 2^-128.

use std::collections::BTreeMap;
use std::ops::Range;

use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::xxh3_128;

use crate::tokenizer::simd::Level;
use crate::words::{Rolling, each_json_word_hash, each_word, each_word_hash};

/// Words that are looked up first; texts with fewer words than this (and than n) cannot be found.
pub const PREFIX: usize = 8;

/// One n-gram, hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gram {
    /// Rolling hash of its first words.
    pub key: u64,
    /// xxh3-128 of its words, lower-cased and joined by single spaces.
    pub check: u128,
    /// Words in it: n, or fewer for a short text that counts whole.
    pub words: u32,
    /// Sorted `(item, field)` that hold it; the first field of an item only.
    pub owners: Vec<(u32, u8)>,
}

/// How texts become n-grams.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Words in an n-gram.
    pub n: usize,
    /// Texts of fewer than n words, but [`PREFIX`] or more, count whole.
    pub short: bool,
    /// Count n-grams of numbers, single letters and repeated words too.
    pub trivial: bool,
    /// Texts whose n-grams never count.
    pub ignore: Vec<String>,
}

/// What one item has in common with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The item.
    pub item: u32,
    /// Which of its fields.
    pub field: u8,
    /// Where the first shared run of words starts in the document, in bytes.
    pub start: usize,
    /// Where the first n-gram of it ends.
    pub first_end: usize,
    /// Where the run ends.
    pub end: usize,
    /// Distinct n-grams of the item that the document holds.
    pub grams: u32,
}

/// Every n-gram to look for.
#[derive(Debug)]
pub struct GramSet {
    n: usize,
    /// By key.
    grams: Vec<Gram>,
    first: FxHashMap<u64, u32>,
    filter: Vec<u64>,
    shift: u32,
    level: Level,
}

impl GramSet {
    /// Hashes texts, each with its `(item, field)`, and adds n-grams hashed before.
    pub fn new<'a>(
        rule: &Rule,
        texts: impl Iterator<Item = (u32, u8, &'a str)>,
        hashed: impl IntoIterator<Item = Gram>,
    ) -> Self {
        let mut all: FxHashMap<(u64, u128), Gram> = FxHashMap::default();
        let mut add = |gram: Gram| {
            all.entry((gram.key, gram.check))
                .and_modify(|known| known.owners.extend(&gram.owners))
                .or_insert(gram);
        };
        let ignored: FxHashSet<u128> =
            rule.ignore.iter().flat_map(|text| grams_of(text, rule)).map(|g| g.check).collect();
        for (item, field, text) in texts {
            for gram in grams_of(text, rule) {
                if !ignored.contains(&gram.check) {
                    add(Gram { owners: vec![(item, field)], ..gram });
                }
            }
        }
        hashed.into_iter().filter(|gram| !ignored.contains(&gram.check)).for_each(add);
        let mut grams: Vec<Gram> = all.into_values().collect();
        grams.sort_unstable_by_key(|gram| (gram.key, gram.words, gram.check));
        for gram in &mut grams {
            gram.owners.sort_unstable();
            gram.owners.dedup_by_key(|(item, _)| *item);
        }
        let bits = (grams.len() * 16).next_power_of_two().clamp(1 << 12, 1 << 26);
        let shift = 64 - bits.trailing_zeros();
        let mut filter = vec![0; bits / 64];
        let mut first = FxHashMap::default();
        for (place, gram) in (0..).zip(&grams) {
            first.entry(gram.key).or_insert(place);
            let bit = gram.key >> shift;
            filter[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        Self { n: rule.n, grams, first, filter, shift, level: Level::best() }
    }

    /// The n-grams, by key.
    pub fn grams(&self) -> &[Gram] {
        &self.grams
    }

    /// How many n-grams each of the first `count` items has.
    pub fn of_items(&self, count: usize) -> Vec<u32> {
        let mut grams = vec![0; count];
        for (item, _) in self.grams.iter().flat_map(|gram| &gram.owners) {
            grams[*item as usize] += 1;
        }
        grams
    }

    /// Whether some n-gram may begin with a key.
    #[inline]
    fn may_hold(&self, key: u64) -> bool {
        let bit = key >> self.shift;
        self.filter[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    /// Whether [`GramSet::scan`] of what a JSON string stands for can find anything.
    pub fn may_be_in_json(&self, json: &str) -> bool {
        let mut rolling = Rolling::new(prefix(self.n));
        let mut found = false;
        let whole = each_json_word_hash(json, self.level, |start, _, hash| {
            if let Some((key, _)) = rolling.push(hash, start)
                && self.may_hold(key)
            {
                found |= self.first.contains_key(&key);
            }
        });
        found || !whole
    }

    /// What each item has in common with a text, by item.
    pub fn scan(&self, text: &str) -> Vec<Hit> {
        let mut rolling = Rolling::new(prefix(self.n));
        let mut candidates = Vec::new();
        each_word_hash(text, self.level, |start, _, hash| {
            if let Some((key, start)) = rolling.push(hash, start)
                && self.may_hold(key)
            {
                candidates.push((key, start));
            }
        });
        let mut hits: BTreeMap<u32, Hit> = BTreeMap::new();
        let mut counted: FxHashSet<(u32, u32)> = FxHashSet::default();
        for (key, start) in candidates {
            let Some(first) = self.first.get(&key) else {
                continue;
            };
            let same_key = self.grams[*first as usize..].iter().take_while(|gram| gram.key == key);
            let mut joined = None;
            for (place, gram) in (*first..).zip(same_key) {
                if joined.as_ref().is_none_or(|(words, _)| *words != gram.words) {
                    joined = Some((gram.words, hash_words(text, start, gram.words)));
                }
                let Some((_, Some((check, end)))) = joined else {
                    continue;
                };
                if check != gram.check {
                    continue;
                }
                for &(item, field) in &gram.owners {
                    let hit = hits.entry(item).or_insert(Hit {
                        item,
                        field,
                        start,
                        first_end: end,
                        end,
                        grams: 0,
                    });
                    if start <= hit.end {
                        hit.end = hit.end.max(end);
                    }
                    hit.grams += u32::from(counted.insert((item, place)));
                }
            }
        }
        hits.into_values().collect()
    }
}

/// Words that are looked up for n-grams of n.
pub fn prefix(n: usize) -> usize {
    n.min(PREFIX)
}

/// The n-grams of a text, without owners.
fn grams_of(text: &str, rule: &Rule) -> Vec<Gram> {
    // The words with single spaces between, and of each its place there and a number of its own if it
    // has two letters or more.
    let mut joined = String::with_capacity(text.len());
    let mut all: Vec<(Range<usize>, Option<u32>)> = Vec::new();
    let mut numbers: FxHashMap<String, u32> = FxHashMap::default();
    each_word(text, |_, word| {
        if !joined.is_empty() {
            joined.push(' ');
        }
        let start = joined.len();
        joined.push_str(word);
        let letters = word.chars().filter(|c| c.is_alphabetic()).count();
        let number = (letters > 1).then(|| {
            let next = numbers.len() as u32;
            // Looked up first, so that only a new word is copied.
            numbers
                .get(word)
                .copied()
                .unwrap_or_else(|| *numbers.entry(word.to_owned()).or_insert(next))
        });
        all.push((start..joined.len(), number));
    });
    let short = rule.short && (prefix(rule.n)..rule.n).contains(&all.len());
    let n = if short { all.len() } else { rule.n };
    let mut keys = Vec::with_capacity(all.len());
    let mut rolling = Rolling::new(prefix(rule.n));
    each_word_hash(text, Level::best(), |start, _, hash| keys.extend(rolling.push(hash, start)));
    let mut seen = Vec::with_capacity(n);
    let mut counts = |gram: &[(Range<usize>, Option<u32>)]| {
        rule.trivial || {
            seen.clear();
            seen.extend(gram.iter().filter_map(|(_, number)| *number));
            seen.sort_unstable();
            seen.dedup();
            // A third of the words are distinct ones with two letters or more.
            seen.len() * 3 >= gram.len()
        }
    };
    (all.windows(n).zip(keys).filter(|(gram, _)| counts(gram)))
        .map(|(gram, (key, _))| {
            let check = xxh3_128(&joined.as_bytes()[gram[0].0.start..gram[n - 1].0.end]);
            Gram { key, check, words: n as u32, owners: vec![] }
        })
        .collect()
}

/// The hash of the `count` words from `start` on, and where the last one ends; none if there are fewer.
fn hash_words(text: &str, start: usize, count: u32) -> Option<(u128, usize)> {
    let (joined, end) = join(&text[start..], count as usize)?;
    Some((xxh3_128(joined.as_bytes()), start + end))
}

/// The first `count` words of a text, lower-cased, with single spaces between; and where they end.
fn join(text: &str, count: usize) -> Option<(String, usize)> {
    let is_word = |c: char| {
        if c.is_ascii() { c == '_' || c.is_ascii_alphanumeric() } else { c.is_alphanumeric() }
    };
    let mut joined = String::new();
    let (mut inside, mut done) = (false, 0);
    for (at, c) in text.char_indices() {
        if is_word(c) {
            if !inside && done > 0 {
                joined.push(' ');
            }
            joined.extend(c.to_lowercase());
            inside = true;
        } else if inside {
            inside = false;
            done += 1;
            if done == count {
                return Some((joined, at));
            }
        }
    }
    (inside && done + 1 == count).then_some((joined, text.len()))
}

/// A shared run as evidence shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The first n-gram, lower-cased, with single spaces.
    pub ngram: String,
    /// The run with what stands around it.
    pub context: String,
    /// Words in the run.
    pub words: usize,
    /// The line it starts on, from 1.
    pub line: usize,
}

/// Most bytes of a document shown before and after a run, and of the run itself.
const AROUND: usize = 80;
const SHOWN: usize = 400;

/// What evidence shows of a hit.
pub fn show(text: &str, hit: &Hit) -> Shown {
    let mut words = 0;
    each_word_hash(&text[hit.start..hit.end], Level::best(), |_, _, _| words += 1);
    let mut from = hit.start.saturating_sub(AROUND);
    while !text.is_char_boundary(from) {
        from -= 1;
    }
    let end = hit.end.min(hit.start + SHOWN);
    let mut to = (end + AROUND).min(text.len());
    while !text.is_char_boundary(to) {
        to += 1;
    }
    let mut ngram: Vec<String> = Vec::new();
    each_word(&text[hit.start..hit.first_end], |_, word| ngram.push(word.to_owned()));
    Shown {
        ngram: ngram.join(" "),
        context: text[from..to].to_owned(),
        words,
        line: 1 + memchr::memchr_iter(b'\n', &text.as_bytes()[..hit.start]).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn rule(n: usize) -> Rule {
        Rule { n, short: true, trivial: true, ignore: vec![] }
    }

    fn set(rule: &Rule, texts: &[&str]) -> GramSet {
        GramSet::new(rule, (0..).zip(texts).map(|(item, text)| (item, 0, *text)), [])
    }

    fn words(text: &str) -> Vec<String> {
        let mut all = Vec::new();
        each_word(text, |_, word| all.push(word.to_owned()));
        all
    }

    #[test]
    fn names_every_item_with_its_run() {
        let set_of_two = set(&rule(3), &["One two, three FOUR", "two three four five"]);
        assert_eq!(set_of_two.grams().len(), 3);
        let text = "zero; one two\nthree four. fivE";
        let found = set_of_two.scan(text);
        let shown: Vec<_> = found
            .iter()
            .map(|hit| (hit.item, hit.grams, &text[hit.start..hit.end], show(text, hit)))
            .collect();
        assert_eq!(shown[0].0..shown[0].1, 0..2);
        assert_eq!(shown[0].2, "one two\nthree four");
        assert_eq!((shown[0].3.ngram.as_str(), shown[0].3.words), ("one two three", 4));
        assert_eq!(shown[1].2, "two\nthree four. fivE");
        assert_eq!((shown[1].3.ngram.as_str(), shown[1].3.line), ("two three four", 1));
        assert_eq!(shown[1].3.context, text);
        assert!(set_of_two.scan("three four, then five").is_empty());
        let ignore = Rule { ignore: vec!["two three four".to_owned()], ..rule(3) };
        let without = set(&ignore, &["One two, three FOUR", "two three four five"]);
        assert!(without.scan("two three four").is_empty());
        assert_eq!(without.of_items(2), [1, 1]);
    }

    #[test]
    fn short_texts_count_whole_and_trivial_ones_never() {
        let text = "Write a function to reverse each word in it";
        assert_eq!(
            set(&rule(13), &[text]).scan("X. WRITE a function to reverse each word in it!").len(),
            1
        );
        assert_eq!(
            set(&rule(13), &[text]).scan("write a function to reverse each word in").len(),
            0
        );
        assert_eq!(set(&rule(13), &["def add a b return a b"]).grams().len(), 0);
        assert_eq!(set(&Rule { short: false, ..rule(13) }, &[text]).grams().len(), 0);
        let plain = Rule { trivial: false, ..rule(13) };
        for trivial in [
            "0 1 2 3 4 5 6 7 8 9 a b c",
            "n n 1 n n 2 n n 3 n n 4 n",
            "ab ab ab ab ab ab ab ab ab ab ab ab ab",
        ] {
            assert_eq!(set(&plain, &[trivial]).grams().len(), 0);
            assert_eq!(set(&rule(13), &[trivial]).scan(trivial).len(), 1);
        }
        assert_eq!(set(&plain, &[text]).grams().len(), 1);
    }

    #[test]
    fn hashed_grams_are_found_without_the_words() {
        let text =
            "return the length of the longest run of neighbouring values that are all below it";
        let grams = set(&rule(13), &[text]).grams().to_vec();
        let hashed = GramSet::new(&rule(13), std::iter::empty(), grams.clone());
        assert_eq!(hashed.grams(), grams);
        assert_eq!(
            hashed.scan(&text.to_uppercase()),
            set(&rule(13), &[text]).scan(&text.to_uppercase())
        );
        assert_eq!(hashed.scan(text)[0].grams, 3);
    }

    proptest! {
        #[test]
        fn agrees_with_comparing_all_windows(
            items in vec(vec("[aBé]{1,2}", 0..14), 1..5), text in vec("[aBé]{1,2}", 0..40), n in 1usize..12
        ) {
            let texts: Vec<String> = items.iter().map(|item| item.join(" ")).collect();
            let set = set(&rule(n), &texts.iter().map(String::as_str).collect::<Vec<_>>());
            let text = text.join("-");
            let document = words(&text);
            let mut expected = Vec::new();
            for (item, own) in (0u32..).zip(&texts) {
                let own = words(own);
                let n = if (8.min(n)..n).contains(&own.len()) { own.len() } else { n };
                let shared = document.windows(n).filter(|gram| own.windows(n).any(|w| w == *gram));
                let first = shared.clone().next().map(|gram| gram.join(" "));
                let distinct: std::collections::HashSet<_> = shared.collect();
                expected.extend(first.map(|first| (item, first, distinct.len() as u32)));
            }
            let found: Vec<_> =
                set.scan(&text).iter().map(|hit| (hit.item, show(&text, hit).ngram, hit.grams)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
