//! Words and word n-grams, shared by near-dedup and decontamination.
//!
//! A word is a maximal run of `_`, ASCII letters and digits, and other alphanumeric characters
//! (Unicode `Alphabetic` or numeric), lower-cased character by character. Everything else separates
//! words; no Unicode normalisation is done. So `x.y_1` is `x`, `y_1`, and indentation is nothing.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use crate::tokenizer::simd::{self, BLOCK, Kernel, Level, Masks};

/// The rule above in one line, for manifests.
pub const TOKEN_RULE: &str =
    "maximal runs of [A-Za-z0-9_] and non-ASCII alphanumerics, lower-cased";

/// Odd, and 3 modulo 8, so that differences of its powers keep all but a few bits.
const BASE: u64 = 0x9e37_79b9_7f4a_7c13;

/// Calls `each(byte range, lower-cased word)` for every word in order.
pub fn for_each_word(text: &str, mut each: impl FnMut(Range<usize>, &str)) {
    let mut word = String::new();
    let mut start = 0;
    for (at, c) in text.char_indices() {
        let is_word =
            if c.is_ascii() { c == '_' || c.is_ascii_alphanumeric() } else { c.is_alphanumeric() };
        if is_word {
            if word.is_empty() {
                start = at;
            }
            if c.is_ascii() {
                word.push(c.to_ascii_lowercase());
            } else {
                word.extend(c.to_lowercase());
            }
        } else if !word.is_empty() {
            each(start..at, &word);
            word.clear();
        }
    }
    if !word.is_empty() {
        each(start..text.len(), &word);
    }
}

/// One xxh3 hash a word, for decontamination's index.
pub fn word_hashes(text: &str) -> Vec<u64> {
    let mut hashes = Vec::with_capacity(text.len() / 8);
    for_each_word(text, |_, word| hashes.push(xxh3_64(word.as_bytes())));
    hashes
}

/// Calls `each(byte range, hash)` for every word in order, 64 bytes of text at a time.
///
/// The hashes are of our own making, and cheaper for short words than xxh3.
pub fn each_word_hash(text: &str, level: Level, each: impl FnMut(Range<usize>, u64)) {
    simd::run(level, &mut Words { text, each });
}

struct Words<'a, F> {
    text: &'a str,
    each: F,
}

impl<F: FnMut(Range<usize>, u64)> Kernel for Words<'_, F> {
    #[inline]
    fn run(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks) {
        let bytes = self.text.as_bytes();
        // Whether the byte before the block belongs to a word, and where that word started.
        let (mut inside, mut start) = (0u64, 0);
        let (whole, rest) = bytes.as_chunks::<BLOCK>();
        let mut last = [b' '; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        for (block, at) in whole.iter().chain([&last]).zip((0..).step_by(BLOCK)) {
            let found = masks(block);
            let word = found.letter | found.number | found.underscore | found.high;
            // Bits where a word starts or, in turn, has just ended.
            let mut edges = word ^ (word << 1 | inside);
            while edges != 0 {
                let edge = at + edges.trailing_zeros() as usize;
                edges &= edges - 1;
                if inside == 0 {
                    start = edge;
                } else {
                    self.word(start..edge);
                }
                inside ^= 1;
            }
        }
        if inside != 0 {
            self.word(start..bytes.len());
        }
    }
}

impl<F: FnMut(Range<usize>, u64)> Words<'_, F> {
    #[inline]
    fn word(&mut self, range: Range<usize>) {
        let bytes = self.text.as_bytes();
        let length = range.len();
        let tail = bytes.len() - range.start;
        let hash = if length <= 8 && tail >= 8 {
            let all = u64_at(bytes, range.start) & (u64::MAX >> (64 - 8 * length));
            (all & HIGH_BITS == 0).then(|| hash_short(all))
        } else if (9..=16).contains(&length) {
            let (first, last) = (u64_at(bytes, range.start), u64_at(bytes, range.end - 8));
            ((first | last) & HIGH_BITS == 0).then(|| hash_medium(first, last, length))
        } else {
            let word = &bytes[range.clone()];
            word.is_ascii().then(|| hash_bytes(word))
        };
        match hash {
            Some(hash) => (self.each)(range, hash),
            None => self.beyond_ascii(range),
        }
    }

    /// Bytes beyond ASCII may separate words, and lower-case in ways of their own.
    #[cold]
    fn beyond_ascii(&mut self, range: Range<usize>) {
        let start = range.start;
        for_each_word(&self.text[range], |word, lower| {
            (self.each)(start + word.start..start + word.end, hash_bytes(lower.as_bytes()));
        });
    }
}

const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
/// Makes ASCII letters lower-case, leaves digits, and moves `_` to a byte that no word has.
const LOWER: u64 = 0x2020_2020_2020_2020;

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Both halves of a 128-bit product, folded.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x2d35_8dcc_aa6c_78a5) * u128::from(b ^ 0x8bb8_4b93_962e_acc9);
    product as u64 ^ (product >> 64) as u64
}

/// The bytes of `all` beyond the word must be 0; no word has the byte that they become.
#[inline]
fn hash_short(all: u64) -> u64 {
    fold((all | LOWER).rotate_left(29), all | LOWER)
}

#[inline]
fn hash_medium(first: u64, last: u64, length: usize) -> u64 {
    fold(fold(first | LOWER, length as u64), last | LOWER)
}

/// The hash of a lower-cased word; ASCII letters may be in either case.
fn hash_bytes(word: &[u8]) -> u64 {
    let mut padded = [0; 8];
    match word.len() {
        length @ 0..=8 => {
            padded[..length].copy_from_slice(word);
            hash_short(u64::from_le_bytes(padded))
        }
        length @ 9..=16 => hash_medium(u64_at(word, 0), u64_at(word, length - 8), length),
        length => {
            let mut hash = length as u64;
            for at in (0..length - 8).step_by(8) {
                hash = fold(hash, u64_at(word, at) | LOWER);
            }
            fold(hash, u64_at(word, length - 8) | LOWER)
        }
    }
}

/// The hash of every run of `n` words, in order; none when there are fewer than `n`.
///
/// Rolling: one multiplication a word for any `n`. Two different n-grams share a hash with a
/// probability of about 2^-60.
pub fn gram_hashes(words: &[u64], n: usize) -> impl Iterator<Item = u64> {
    assert!(n > 0, "an n-gram has at least one word");
    let leaving = (0..n).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let mut rolling = 0u64;
    words.iter().enumerate().filter_map(move |(i, word)| {
        rolling = rolling.wrapping_mul(BASE).wrapping_add(*word);
        if i >= n {
            rolling = rolling.wrapping_sub(words[i - n].wrapping_mul(leaving));
        }
        (i + 1 >= n).then(|| mix(rolling))
    })
}

/// The hash of every n-gram of a text, in order; `words` is room for the words' hashes.
pub fn grams(text: &str, n: usize, words: &mut Vec<u64>) -> Vec<u64> {
    words.clear();
    each_word_hash(text, Level::best(), |_, hash| words.push(hash));
    let mut all = Vec::with_capacity((words.len() + 1).saturating_sub(n));
    all.extend(gram_hashes(words, n));
    all
}

/// Sorts well-mixed hashes and removes repeats; see [`sort_distinct`].
pub fn sort_set(hashes: &mut Vec<u64>, room: &mut Vec<u64>) {
    let count = sort_distinct(hashes, room);
    hashes.truncate(count);
}

/// Puts the distinct ones of well-mixed hashes first, sorted, and returns how many there are.
///
/// By place value first, into so many places that few share one, then by insertion.
pub fn sort_distinct(hashes: &mut [u64], room: &mut Vec<u64>) -> usize {
    const BUCKETS: usize = 1 << 12;
    let count = hashes.len();
    if !(32..4 * BUCKETS).contains(&count) {
        hashes.sort_unstable();
        let mut distinct = count.min(1);
        for i in 1..count {
            if hashes[i] != hashes[distinct - 1] {
                hashes[distinct] = hashes[i];
                distinct += 1;
            }
        }
        return distinct;
    }
    let bits = (count.ilog2() + 2).min(BUCKETS.ilog2());
    let mut ends = [0u32; BUCKETS];
    let ends = &mut ends[..1 << bits];
    let bucket = |hash: u64| (hash >> (64 - bits)) as usize;
    for hash in hashes.iter() {
        ends[bucket(*hash)] += 1;
    }
    let mut before = 0;
    for end in ends.iter_mut() {
        before += std::mem::replace(end, before);
    }
    room.clear();
    room.resize(count, 0);
    for hash in hashes.iter() {
        let place = &mut ends[bucket(*hash)];
        room[*place as usize] = *hash;
        *place += 1;
    }
    // Every hash is now within its bucket: mostly where it belongs, else a place or two from there.
    let mut distinct = 0;
    for &hash in room.iter() {
        let mut at = distinct;
        while at > 0 && hashes[at - 1] > hash {
            at -= 1;
        }
        if at > 0 && hashes[at - 1] == hash {
            continue;
        }
        hashes.copy_within(at..distinct, at + 1);
        hashes[at] = hash;
        distinct += 1;
    }
    distinct
}

/// The set of a text's n-grams as sorted distinct hashes.
pub fn shingles(text: &str, n: usize) -> Vec<u64> {
    let mut set = grams(text, n, &mut Vec::new());
    sort_set(&mut set, &mut Vec::new());
    set
}

/// A bijection that spreads every bit over all others (the finaliser of `SplitMix64`).
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn words(text: &str) -> Vec<String> {
        let mut all = Vec::new();
        for_each_word(text, |_, word| all.push(word.to_owned()));
        all
    }

    #[test]
    fn words_follow_the_rule() {
        assert_eq!(words("Foo.bar_1 = 'Ünïcode', 東京\n"), ["foo", "bar_1", "ünïcode", "東京"]);
        assert_eq!(words(" \t\n.,;"), [""; 0]);
        assert_eq!(words("last"), ["last"]);
    }

    #[test]
    fn ranges_point_at_the_words() {
        let text = "ab ÇÉ, x";
        let mut spans = Vec::new();
        for_each_word(text, |range, _| spans.push(&text[range]));
        assert_eq!(spans, ["ab", "ÇÉ", "x"]);
    }

    #[test]
    fn fewer_words_than_n_have_no_gram() {
        assert_eq!(shingles("a b c d", 5), [0; 0]);
        assert_eq!(shingles("a b c d e", 5).len(), 1);
    }

    fn hashes(text: &str, level: Level) -> Vec<(Range<usize>, u64)> {
        let mut found = Vec::new();
        each_word_hash(text, level, |range, hash| found.push((range, hash)));
        found
    }

    proptest! {
        /// Every level finds the words of the rule, and hashes what they say in lower case.
        #[test]
        fn blocks_of_text_give_the_same_words(
            text in "([a-cA-Z_0-9]{1,20}|[ \n.(]{1,3}|[\u{80}-\u{200}İK→東ß]{1,4}){0,60}"
        ) {
            let mut truth = Vec::new();
            for_each_word(&text, |range, word| truth.push((range, hash_bytes(word.as_bytes()))));
            for level in Level::available() {
                prop_assert_eq!(&hashes(&text, level), &truth);
            }
        }

        /// Different words have different hashes, whatever stands around them.
        #[test]
        fn words_hash_by_what_they_say(a in "[a-c_0]{1,40}", b in "[a-c_0]{1,40}", pad in " {0,70}") {
            let hash = |word: &str| hashes(&format!("{pad}{word}{pad}"), Level::best())[0].1;
            prop_assert_eq!(hash(&a) == hash(&b), a == b);
            prop_assert_eq!(hash(&a), hash(&a.to_uppercase()));
        }

        #[test]
        fn sets_are_sorted_and_distinct(seeds in proptest::collection::vec(0u64..3000, 0..3000)) {
            let mut set: Vec<u64> = seeds.iter().map(|seed| mix(*seed)).collect();
            let truth: std::collections::BTreeSet<u64> = set.iter().copied().collect();
            sort_set(&mut set, &mut Vec::new());
            prop_assert_eq!(set, truth.into_iter().collect::<Vec<_>>());
        }

        /// Equal hashes exactly where the words are equal, whatever stands before them.
        #[test]
        fn grams_hash_like_their_words(
            list in proptest::collection::vec("[ab]{1,2}", 0..60), n in 1usize..7
        ) {
            let hashes: Vec<u64> = gram_hashes(&word_hashes(&list.join(" ")), n).collect();
            prop_assert_eq!(hashes.len(), (list.len() + 1).saturating_sub(n));
            let mut seen: HashMap<u64, &[String]> = HashMap::new();
            let mut back: HashMap<&[String], u64> = HashMap::new();
            for (hash, gram) in hashes.iter().zip(list.windows(n)) {
                prop_assert_eq!(*seen.entry(*hash).or_insert(gram), gram);
                prop_assert_eq!(*back.entry(gram).or_insert(*hash), *hash);
            }
        }
    }
}
