//! Word n-grams of near-dedup, as hashes, and sets of them.

use crate::tokenizer::simd::Level;
use crate::words::{BASE, each_word_hash};

/// The hash of every run of `n` words, in order; none when there are fewer than `n`.
///
/// Rolling: one multiplication a word for any `n`. Two different n-grams share a hash with a
/// probability of about 2^-60.
pub fn gram_hashes(words: &[u64], n: usize) -> impl Iterator<Item = u64> {
    assert!(n > 0, "an n-gram has at least one word");
    // With fewer words none leaves, and `n` may be any number.
    let leaving = (0..n.min(words.len())).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let mut rolling = 0u64;
    words.iter().enumerate().filter_map(move |(i, word)| {
        rolling = rolling.wrapping_mul(BASE).wrapping_add(*word);
        if i >= n {
            rolling = rolling.wrapping_sub(words[i - n].wrapping_mul(leaving));
        }
        (i + 1 >= n).then(|| mix(rolling))
    })
}

/// Appends the hash of every n-gram of a text, in order; `words` is room for the words' hashes.
pub fn add_grams(text: &str, n: usize, words: &mut Vec<u64>, all: &mut Vec<u64>) {
    words.clear();
    words.reserve(text.len() / 2 + 1);
    each_word_hash(text, Level::best(), |_, _, hash| words.push(hash));
    all.reserve(words.len());
    all.extend(gram_hashes(words, n));
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
        return keep_distinct(hashes);
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
    if room.len() < count {
        room.resize(count, 0);
    }
    let room = &mut room[..count];
    for hash in hashes.iter() {
        let place = &mut ends[bucket(*hash)];
        room[*place as usize] = *hash;
        *place += 1;
    }
    // Every hash is now within its bucket: mostly where it belongs, else a place or two from there.
    for (i, &hash) in room.iter().enumerate() {
        let mut at = i;
        while at > 0 && hashes[at - 1] > hash {
            hashes[at] = hashes[at - 1];
            at -= 1;
        }
        hashes[at] = hash;
    }
    keep_distinct(hashes)
}

/// Puts the distinct ones of sorted hashes first, and returns how many there are.
fn keep_distinct(hashes: &mut [u64]) -> usize {
    let Some(&first) = hashes.first() else {
        return 0;
    };
    let (mut last, mut distinct) = (first, 1);
    for i in 1..hashes.len() {
        let hash = hashes[i];
        // Without a branch: one written too many is written over by the next.
        hashes[distinct] = hash;
        distinct += usize::from(hash != last);
        last = hash;
    }
    distinct
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

    #[test]
    fn longer_than_any_text() {
        assert_eq!(gram_hashes(&[1, 2], usize::MAX).count(), 0);
    }
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn grams(text: &str, n: usize) -> Vec<u64> {
        let mut all = Vec::new();
        add_grams(text, n, &mut Vec::new(), &mut all);
        all
    }

    #[test]
    fn fewer_words_than_n_have_no_gram() {
        assert_eq!(grams("a b c d", 5), [0; 0]);
        assert_eq!(grams("a b c d e", 5).len(), 1);
    }

    proptest! {
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
            let hashes = grams(&list.join(" "), n);
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
