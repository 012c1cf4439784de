//! The words of a text and a hash of each, 64 bytes at a time.
//!
//! The rule is that of [`crate::dedup::words`]; this is the fast way to the same words. Sixty-four bytes
//! become one mask of word bytes without a branch ([`simd`]), the edges of its runs are the words, and a
//! word of up to sixteen bytes is hashed by two multiplications. More than 1 GB a CPU second, memory
//! constant.

use crate::tokenizer::simd::{self, BLOCK, Level, ListingKernel, Masks};

/// Odd, and 3 modulo 8, so that differences of its powers keep all but a few bits.
pub const BASE: u64 = 0x9e37_79b9_7f4a_7c13;

/// Sets bit 5 of every byte: ASCII letters become small, digits stay, `_` becomes a byte of its own.
const SMALL: u64 = 0x2020_2020_2020_2020;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Calls `each(start, end, hash)` for every word of a text, in order.
#[inline]
pub fn for_each_word(text: &str, level: Level, each: impl FnMut(usize, usize, u64)) {
    simd::run_listing(level, &mut Walk::<_, false> { text, each, whole: true });
}

/// As [`for_each_word`] of what a JSON string stands for, without decoding it; offsets are those of the
/// JSON. False, and at once, where a `\u` makes decoding necessary.
///
/// Every other escape stands for something that is not a word, and so does the backslash: all there is
/// to do is to take the letter after it out of the words.
#[inline]
pub fn for_each_json_word(json: &str, level: Level, each: impl FnMut(usize, usize, u64)) -> bool {
    let mut walk = Walk::<_, true> { text: json, each, whole: true };
    simd::run_listing(level, &mut walk);
    walk.whole
}

struct Walk<'a, F, const JSON: bool> {
    text: &'a str,
    each: F,
    whole: bool,
}

impl<F: FnMut(usize, usize, u64), const JSON: bool> ListingKernel for Walk<'_, F, JSON> {
    // It must become part of the function that is compiled for the wider instructions.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn run(
        &mut self,
        masks: impl Fn(&[u8; BLOCK]) -> Masks,
        list: impl Fn(u64, u16, &mut [u16; BLOCK]),
    ) {
        self.whole = walk::<JSON>(self.text, masks, list, &mut self.each);
    }
}

#[allow(clippy::inline_always)]
#[inline(always)]
fn walk<const JSON: bool>(
    text: &str,
    masks: impl Fn(&[u8; BLOCK]) -> Masks,
    list: impl Fn(u64, u16, &mut [u16; BLOCK]),
    each: &mut impl FnMut(usize, usize, u64),
) -> bool {
    let bytes = text.as_bytes();
    // Where words start and end, in turn; after a block at most the start of the word that is open.
    let mut edges = [0usize; 8 + BLOCK];
    let mut places = [0; BLOCK];
    let mut count = 0;
    // Bit 0: whether the byte before this block belongs to a word.
    let mut before = 0;
    // Word bits that a character at the end of a block has in the next one; the same of an escape.
    let (mut spilled, mut escaped) = (0u64, 0u64);
    let mut base = 0;
    // One block more than the text may need, so that a word that ends with the text ends in the loop.
    while base <= bytes.len() {
        let mut tail = [0; 64];
        let block = bytes[base..].first_chunk::<64>().unwrap_or_else(|| {
            tail[..bytes.len() - base].copy_from_slice(&bytes[base..]);
            &tail
        });
        let found = masks(block);
        let mut mask = found.letter | found.number | found.underscore | spilled;
        spilled = 0;
        if found.high != 0 {
            let (here, next) = beyond_ascii(text, base, found.high);
            mask |= here;
            spilled = next;
        }
        if JSON {
            // A backslash that is escaped itself escapes nothing.
            let mut left = found.backslash & !escaped;
            let mut taken = u128::from(escaped);
            while left != 0 {
                let after = left.trailing_zeros() + 1;
                left &= left - 1;
                if bytes.get(base + after as usize) == Some(&b'u') {
                    return false;
                }
                taken |= 1u128 << after;
                left &= !(taken as u64);
            }
            mask &= !(taken as u64);
            escaped = (taken >> 64) as u64;
        }
        let found = mask ^ ((mask << 1) | before);
        before = mask >> 63;
        list(found, 0, &mut places);
        let total = count + found.count_ones() as usize;
        // Eight at a time, too many at the end: cheaper than a branch that is guessed wrong.
        let (eights, _) = edges[count..].as_chunks_mut::<8>();
        for (edges, places) in
            eights.iter_mut().zip(places.as_chunks().0).take((total - count).div_ceil(8))
        {
            *edges = places.map(|place: u16| base + usize::from(place));
        }
        for pair in edges[..total].as_chunks::<2>().0 {
            each(pair[0], pair[1], word_hash(text, pair[0], pair[1]));
        }
        count = total % 2;
        if count == 1 {
            edges[0] = edges[total - 1];
        }
        base += 64;
    }
    true
}

/// Word bits of the alphanumeric characters beyond ASCII that start in a block: in it and in the next.
#[cold]
fn beyond_ascii(text: &str, base: usize, mut high: u64) -> (u64, u64) {
    let mut bits = 0u128;
    while high != 0 {
        let at = high.trailing_zeros() as usize;
        high &= high - 1;
        // Bytes inside a character belong to the one before.
        if let Some(c) = text.get(base + at..).and_then(|rest| rest.chars().next())
            && c.is_alphanumeric()
        {
            bits |= ((1u128 << c.len_utf8()) - 1) << at;
        }
    }
    (bits as u64, (bits >> 64) as u64)
}

/// For a word of so many bytes, which bits of its first sixteen are its own.
const OWN: [(u64, u64); 17] = {
    let mut own = [(0, 0); 17];
    let mut length = 1;
    while length <= 16 {
        let first = if length < 8 { length } else { 8 };
        let second = length - first;
        own[length] = (
            u64::MAX >> (64 - 8 * first),
            if second == 0 { 0 } else { u64::MAX >> (64 - 8 * second) },
        );
        length += 1;
    }
    own
};

/// The hash of the word at `start..end`, the same for the same lower-cased word.
#[inline]
fn word_hash(text: &str, start: usize, end: usize) -> u64 {
    if let Some(own) = OWN.get(end - start)
        && let Some(sixteen) = text.as_bytes()[start..].first_chunk::<16>()
    {
        let (first, second) = halves(sixteen);
        let (first, second) = (first & own.0, second & own.1);
        if (first | second) & HIGH == 0 {
            return fold(first, second);
        }
    }
    rare_hash(&text[start..end])
}

/// The same of any word.
#[cold]
fn rare_hash(word: &str) -> u64 {
    let lower: String;
    let bytes = if word.is_ascii() {
        word.as_bytes()
    } else {
        lower = word.chars().flat_map(char::to_lowercase).collect();
        lower.as_bytes()
    };
    let (sixteens, rest) = bytes.as_chunks::<16>();
    let mut hash = 0;
    let mut add = |sixteen: &[u8; 16]| {
        let (first, second) = halves(sixteen);
        hash = fold(first ^ hash, second);
    };
    sixteens.iter().for_each(&mut add);
    if !rest.is_empty() {
        let mut last = [0; 16];
        last[..rest.len()].copy_from_slice(rest);
        add(&last);
    }
    hash
}

fn halves(sixteen: &[u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(*sixteen);
    (both as u64, (both >> 64) as u64)
}

/// Two multiplications that do not wait for each other. The result is looked up by its high bits, and
/// 128 bits of the words decide later, so no more is needed.
fn fold(first: u64, second: u64) -> u64 {
    let first = (first | SMALL).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let second = (second | SMALL).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let sum = first.wrapping_add(second.rotate_left(32));
    sum ^ (sum >> 29)
}

/// Most words in a run whose hash rolls.
pub const LONGEST: usize = 8;

/// The hash of each run of `n` words, rolling.
pub struct Rolling {
    n: usize,
    leaving: u64,
    seen: usize,
    value: u64,
    hashes: [u64; LONGEST],
    starts: [usize; LONGEST],
}

impl Rolling {
    /// For runs of `n` words, from one to [`LONGEST`].
    pub fn new(n: usize) -> Self {
        assert!((1..=LONGEST).contains(&n), "a run has one to {LONGEST} words");
        let leaving = (0..n).fold(1u64, |power, _| power.wrapping_mul(BASE));
        Self { n, leaving, seen: 0, value: 0, hashes: [0; LONGEST], starts: [0; LONGEST] }
    }

    /// Takes the next word; the run's hash and the start of its first word once there are `n`.
    #[inline(always)]
    #[allow(clippy::inline_always)] // its fields have to live in registers
    pub fn push(&mut self, hash: u64, start: usize) -> Option<(u64, usize)> {
        let oldest =
            self.hashes[self.seen.wrapping_sub(self.n) % LONGEST].wrapping_mul(self.leaving);
        self.hashes[self.seen % LONGEST] = hash;
        self.starts[self.seen % LONGEST] = start;
        // Only one multiplication waits for the word before.
        self.value = self.value.wrapping_mul(BASE).wrapping_add(hash.wrapping_sub(oldest));
        self.seen += 1;
        let first = self.seen.wrapping_sub(self.n) % LONGEST;
        (self.seen >= self.n).then(|| (self.value, self.starts[first]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::words;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn plain(text: &str) -> Vec<(usize, usize, String)> {
        let mut all = Vec::new();
        words::for_each_word(text, |range, word| {
            all.push((range.start, range.end, word.to_owned()));
        });
        all
    }

    fn check(text: &str) {
        let plain = plain(text);
        let mut found = Vec::new();
        for_each_word(text, Level::best(), |start, end, hash| found.push((start, end, hash)));
        for level in Level::available() {
            let mut same = Vec::new();
            for_each_word(text, level, |start, end, hash| same.push((start, end, hash)));
            assert_eq!(same, found, "{}", level.name());
        }
        let spans: Vec<_> = plain.iter().map(|(start, end, _)| (*start, *end)).collect();
        assert_eq!(found.iter().map(|(s, e, _)| (*s, *e)).collect::<Vec<_>>(), spans, "{text:?}");
        let (mut hashes, mut back) = (HashMap::new(), HashMap::new());
        for ((_, _, word), (_, _, hash)) in plain.iter().zip(&found) {
            assert_eq!(hashes.entry(word.clone()).or_insert(*hash), hash, "{word:?}");
            // Bit 5 is all that the hash may overlook, and no two ASCII words differ in it alone.
            if word.is_ascii() {
                assert_eq!(back.entry(*hash).or_insert(word.clone()), word);
            }
        }
    }

    #[test]
    fn json_escapes() {
        let words = |json: &str| {
            let mut found = Vec::new();
            let whole = for_each_json_word(json, Level::best(), |start, end, _| {
                found.push(json[start..end].to_owned());
            });
            whole.then_some(found)
        };
        for pad in 0..70 {
            let pad = ".".repeat(pad);
            assert_eq!(words(&format!(r"{pad}\nab\tc \\nd\\\ne")).unwrap(), ["ab", "c", "nd", "e"]);
            assert_eq!(words(&format!(r"{pad}a\u00e9")), None);
            assert_eq!(words(&format!(r"{pad}a\\u00e9")).unwrap(), ["a", "u00e9"]);
        }
    }

    #[test]
    fn the_same_words_as_the_plain_rule() {
        for length in [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129] {
            check(&"x".repeat(length));
            check(&" ".repeat(length));
            check(&format!("{}é", "a".repeat(length)));
            check(&format!("{}東_1\u{212a}Kk", " ".repeat(length)));
            check(&format!("{}“q”", "-".repeat(length)));
        }
        check("Foo.bar_1 FOO.BAR_1 'Ünïcode' ünÏcode 東京 a\u{301} _x `x @X [y {Y");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn any_text_has_the_words_of_the_plain_rule(text in "[aAbB_1é東“ \\n.\u{10400}-]{0,200}") {
            check(&text);
        }

        #[test]
        fn json_has_the_words_of_what_it_stands_for(text in "[aAu_1é東“ \\\\\"/\n\t.]{0,200}") {
            let json = serde_json::to_string(&text).unwrap();
            let mut plain = Vec::new();
            for_each_word(&text, Level::best(), |_, _, hash| plain.push(hash));
            for level in Level::available() {
                let mut raw = Vec::new();
                let inside = &json[1..json.len() - 1];
                prop_assert!(for_each_json_word(inside, level, |_, _, hash| raw.push(hash)));
                prop_assert_eq!(&plain, &raw);
            }
        }

        #[test]
        fn really_any_text(text in "\\PC{0,150}") {
            check(&text);
        }

        #[test]
        fn runs_hash_like_their_words(
            list in proptest::collection::vec("[ab]{1,2}", 0..60), n in 1usize..=8
        ) {
            let text = list.join(" ");
            let mut rolling = Rolling::new(n);
            let mut found = Vec::new();
            for_each_word(&text, Level::best(), |start, _, hash| found.extend(rolling.push(hash, start)));
            prop_assert_eq!(found.len(), (list.len() + 1).saturating_sub(n));
            let mut seen: HashMap<u64, &[String]> = HashMap::new();
            let mut back: HashMap<&[String], u64> = HashMap::new();
            for ((hash, start), gram) in found.iter().zip(list.windows(n)) {
                prop_assert!(text[*start..].starts_with(&gram.join(" ")));
                prop_assert_eq!(*seen.entry(*hash).or_insert(gram), gram);
                prop_assert_eq!(*back.entry(gram).or_insert(*hash), *hash);
            }
        }
    }
}
