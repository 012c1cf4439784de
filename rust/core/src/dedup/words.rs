//! Words and word n-grams, shared by near-dedup and decontamination.
//!
//! A word is a maximal run of `_`, ASCII letters and digits, and other alphanumeric characters
//! (Unicode `Alphabetic` or numeric), lower-cased character by character. Everything else separates
//! words; no Unicode normalisation is done. So `x.y_1` is `x`, `y_1`, and indentation is nothing.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

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

/// One hash a word.
pub fn word_hashes(text: &str) -> Vec<u64> {
    let mut hashes = Vec::with_capacity(text.len() / 8);
    for_each_word(text, |_, word| hashes.push(xxh3_64(word.as_bytes())));
    hashes
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

/// The set of a text's n-grams as sorted distinct hashes.
pub fn shingles(text: &str, n: usize) -> Vec<u64> {
    let mut set: Vec<u64> = gram_hashes(&word_hashes(text), n).collect();
    set.sort_unstable();
    set.dedup();
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

    proptest! {
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
