//! The words of a text, and a hash of each: what dedup and decontamination compare.
//!
//! A word is a maximal run of `_`, ASCII letters and digits, and other alphanumeric characters
//! (Unicode `Alphabetic` or numeric), lower-cased character by character. Everything else separates
//! words; no Unicode normalisation is done. So `x.y_1` is `x`, `y_1`, and indentation is nothing.
//!
//! [`each_word`] is that rule step by step; [`each_word_hash`] the fast way to the same words: 64 bytes
//! become one mask of word bytes without a branch ([`simd`]), the edges of its runs are the words, and
//! a word of up to sixteen bytes is hashed by one multiplication. About 1 GB a CPU second, memory
//! constant.

use std::ops::Range;

use memchr::memmem;

use crate::tokenizer::simd::{self, BLOCK, Level, ListingKernel, Masks};

/// The rule above in one line, for manifests.
pub const TOKEN_RULE: &str =
    "maximal runs of [A-Za-z0-9_] and non-ASCII alphanumerics, lower-cased";

/// Calls `each(byte range, lower-cased word)` for every word in order.
pub fn each_word(text: &str, mut each: impl FnMut(Range<usize>, &str)) {
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

/// Odd, and 3 modulo 8, so that differences of its powers keep all but a few bits.
pub const BASE: u64 = 0x9e37_79b9_7f4a_7c13;

/// Sets bit 5 of every byte: ASCII letters become small, digits stay, `_` becomes a byte of its own.
const SMALL: u64 = 0x2020_2020_2020_2020;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Calls `each(start, end, hash)` for every word of a text, in order.
#[inline]
pub fn each_word_hash(text: &str, level: Level, each: impl FnMut(usize, usize, u64)) {
    simd::run_listing(level, &mut Walk::<_, false> { text, each });
}

/// As [`each_word_hash`] of what a JSON string stands for, without decoding it; offsets are those of the
/// JSON. False, and nothing is called, where a `\u` makes decoding necessary.
///
/// Every other escape stands for something that is not a word, and so does the backslash: all there is
/// to do is to take the letter after it out of the words.
#[inline]
pub fn each_json_word_hash(json: &str, level: Level, each: impl FnMut(usize, usize, u64)) -> bool {
    let bytes = json.as_bytes();
    // One more backslash before it, and it is that one which is escaped.
    let escapes =
        |at: usize| bytes[..at].iter().rev().take_while(|b| **b == b'\\').count() % 2 == 0;
    if memmem::find_iter(bytes, b"\\u").any(escapes) {
        return false;
    }
    simd::run_listing(level, &mut Walk::<_, true> { text: json, each });
    true
}

struct Walk<'a, F, const JSON: bool> {
    text: &'a str,
    each: F,
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
        walk::<JSON>(self.text, masks, list, &mut self.each);
    }
}

#[allow(clippy::inline_always)]
#[inline(always)]
fn walk<const JSON: bool>(
    text: &str,
    masks: impl Fn(&[u8; BLOCK]) -> Masks,
    list: impl Fn(u64, u16, &mut [u16; BLOCK]),
    each: &mut impl FnMut(usize, usize, u64),
) {
    let bytes = text.as_bytes();
    // Where words start and end, in turn, from the start of the window.
    let mut edges = [0u16; WINDOW + BLOCK];
    // The start of a word that is open at the end of a window.
    let mut open = None;
    // Bit 0: whether the byte before this block belongs to a word.
    let mut before = 0;
    // Word bits that a character at the end of a block has in the next one; the same of an escape.
    let (mut spilled, mut escaped) = (0u64, 0u64);
    let mut window = 0;
    // One block more than the text may need, so that a word that ends with the text ends in the loop.
    while window <= bytes.len() {
        let mut count = 0;
        for inside in (0..WINDOW as u16).step_by(BLOCK) {
            let base = window + usize::from(inside);
            if base > bytes.len() {
                break;
            }
            let mut tail = [0; BLOCK];
            let block = bytes[base..].first_chunk::<BLOCK>().unwrap_or_else(|| {
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
                let letters;
                (letters, escaped) = simd::escaped(found.backslash, escaped);
                mask &= !letters;
            }
            let found = mask ^ ((mask << 1) | before);
            before = mask >> 63;
            let room = edges[count..].first_chunk_mut().expect("a block of room is left");
            list(found, inside, room);
            count += found.count_ones() as usize;
        }
        // Words of many blocks in one loop: where it ends is guessed wrong once a window.
        let mut edges = &edges[..count];
        if let (Some(start), Some((end, rest))) = (open, edges.split_first()) {
            let end = window + usize::from(*end);
            each(start, end, word_hash(text, start, end));
            (open, edges) = (None, rest);
        }
        let (pairs, last) = edges.as_chunks::<2>();
        for [start, end] in pairs {
            let (start, end) = (window + usize::from(*start), window + usize::from(*end));
            each(start, end, word_hash(text, start, end));
        }
        open = last.first().map_or(open, |start| Some(window + usize::from(*start)));
        window += WINDOW;
    }
}

/// Bytes whose words are listed before they are hashed.
const WINDOW: usize = 64 * BLOCK;

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
            return fold(first | SMALL, second | SMALL);
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
    // Beyond ASCII bit 5 tells letters apart; no ASCII word has a byte above 127, and none a 0. The
    // Kelvin sign is beyond ASCII, its lower case is not.
    let small = if bytes.is_ascii() { SMALL } else { 0 };
    let (sixteens, rest) = bytes.as_chunks::<16>();
    let mut hash = 0;
    let mut add = |sixteen: &[u8; 16]| {
        let (first, second) = halves(sixteen);
        hash = fold((first | small) ^ hash, second | small);
    };
    sixteens.iter().for_each(&mut add);
    if !rest.is_empty() {
        let mut last = [0; 16];
        last[..rest.len()].copy_from_slice(rest);
        add(&last);
    }
    hash
}

#[inline]
fn halves(sixteen: &[u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(*sixteen);
    (both as u64, (both >> 64) as u64)
}

/// Both halves of a 128-bit product, folded (as in wyhash). Short words have the same second half: that
/// it depends on the first keeps the multiplier from being one number.
#[inline]
fn fold(first: u64, second: u64) -> u64 {
    let second = second ^ first.rotate_left(29);
    let product =
        u128::from(first ^ 0x2d35_8dcc_aa6c_78a5) * u128::from(second ^ 0x8bb8_4b93_962e_acc9);
    product as u64 ^ (product >> 64) as u64
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
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn plain(text: &str) -> Vec<(usize, usize, String)> {
        let mut all = Vec::new();
        each_word(text, |range, word| {
            all.push((range.start, range.end, word.to_owned()));
        });
        all
    }

    fn check(text: &str) {
        let plain = plain(text);
        let mut found = Vec::new();
        each_word_hash(text, Level::best(), |start, end, hash| found.push((start, end, hash)));
        for level in Level::available() {
            let mut same = Vec::new();
            each_word_hash(text, level, |start, end, hash| same.push((start, end, hash)));
            assert_eq!(same, found, "{}", level.name());
        }
        let spans: Vec<_> = plain.iter().map(|(start, end, _)| (*start, *end)).collect();
        assert_eq!(found.iter().map(|(s, e, _)| (*s, *e)).collect::<Vec<_>>(), spans, "{text:?}");
        let (mut hashes, mut back) = (HashMap::new(), HashMap::new());
        for ((_, _, word), (_, _, hash)) in plain.iter().zip(&found) {
            assert_eq!(hashes.entry(word.clone()).or_insert(*hash), hash, "{word:?}");
            assert_eq!(back.entry(*hash).or_insert(word.clone()), word);
        }
    }

    fn listed(text: &str) -> Vec<String> {
        plain(text).into_iter().map(|(_, _, word)| word).collect()
    }

    #[test]
    fn words_follow_the_rule() {
        assert_eq!(listed("Foo.bar_1 = 'Ünïcode', 東京\n"), ["foo", "bar_1", "ünïcode", "東京"]);
        assert_eq!(listed(" \t\n.,;"), [""; 0]);
        assert_eq!(listed("last"), ["last"]);
    }

    #[test]
    fn ranges_point_at_the_words() {
        let text = "ab ÇÉ, x";
        let mut spans = Vec::new();
        each_word(text, |range, _| spans.push(&text[range]));
        assert_eq!(spans, ["ab", "ÇÉ", "x"]);
    }

    #[test]
    fn json_escapes() {
        let words = |json: &str| {
            let mut found = Vec::new();
            let whole = each_json_word_hash(json, Level::best(), |start, end, _| {
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
        for length in [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097, 9000] {
            check(&"x".repeat(length));
            check(&" ".repeat(length));
            check(&format!("{}é", "a".repeat(length)));
            check(&format!("{}東_1\u{212a}Kk", " ".repeat(length)));
            check(&format!("{}“q”", "-".repeat(length)));
        }
        // Letters that differ in bit 5 of a byte alone.
        check("\u{212a} k 10\u{212a} 10k a_\u{212a} A_K");
        check("一 丠 ā ġ 一丁丂七丄丅 丠丁丂七丄丅");
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
            each_word_hash(&text, Level::best(), |_, _, hash| plain.push(hash));
            for level in Level::available() {
                let mut raw = Vec::new();
                let inside = &json[1..json.len() - 1];
                prop_assert!(each_json_word_hash(inside, level, |_, _, hash| raw.push(hash)));
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
            each_word_hash(&text, Level::best(), |start, _, hash| found.extend(rolling.push(hash, start)));
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
