//! One pass over a text that gives both halves of its features: hashed token 1-2-grams, and counts of
//! its syntax ([`super::syntax`]).
//!
//! The text is taken in stretches of some blocks of 64 bytes. Loops of a stretch are kept apart, so
//! that a wrong guess at a branch in one does not wait for what another computes: where tokens and
//! strings are (from masks), what the tokens' hashes are, what those mean.

// What a kernel calls has to be compiled with it, for the instructions it is run for.
#![allow(clippy::inline_always)]

use std::sync::LazyLock;

use super::keywords::KEYWORDS;
use super::syntax::{Counts, Syntax, below};
use super::tokens::{BEGINNING, hash_at, is_word_byte, pair_of, slot};
use crate::tokenizer::simd::{BLOCK, Level, ListingKernel, Masks, run_listing};

/// Blocks that are looked at together.
pub(super) const STRETCH: usize = 16;
/// Bytes of a stretch.
pub(super) const ROOM: usize = STRETCH * BLOCK;

static LEVEL: LazyLock<Level> = LazyLock::new(Level::best);

/// Logarithms of small counts.
static LOGS: LazyLock<Vec<f64>> =
    LazyLock::new(|| (0..4096).map(|n| f64::from(n).ln_1p()).collect());

/// Places in a stretch.
pub(super) struct Places {
    places: [u16; ROOM + BLOCK],
    count: usize,
}

impl Places {
    pub fn new() -> Self {
        Self { places: [0; ROOM + BLOCK], count: 0 }
    }

    /// Appends the places of a block's set bits.
    #[inline(always)]
    pub fn list(&mut self, bits: u64, number: usize, list: &impl Fn(u64, u16, &mut [u16; BLOCK])) {
        let room = self.places[self.count.min(ROOM)..].first_chunk_mut().expect("one more block");
        list(bits, (number * BLOCK) as u16, room);
        self.count += bits.count_ones() as usize;
    }

    /// What was listed; the next call lists anew.
    #[inline(always)]
    pub fn take(&mut self) -> &[u16] {
        &self.places[..std::mem::take(&mut self.count)]
    }
}

/// Counts tokens and pairs of tokens.
struct Hasher {
    before: u64,
    slots: usize,
    shift: u32,
}

impl Hasher {
    #[inline(always)]
    fn new(slots: usize) -> Self {
        // Of a power of two slots, `slot` is a shift.
        let shift = if slots.is_power_of_two() { 64 - slots.trailing_zeros() } else { 64 };
        Self { before: BEGINNING, slots, shift }
    }

    /// Takes the next token; gives its hash.
    #[inline(always)]
    fn take(&mut self, text: &[u8], start: usize, length: usize, hashed: &mut [u32]) -> u64 {
        let hash = hash_at(text, start, length);
        let pair = pair_of(self.before, hash);
        self.before = hash;
        if self.shift < 64 {
            hashed[(hash >> self.shift) as usize] += 1;
            hashed[(pair >> self.shift) as usize] += 1;
        } else {
            hashed[slot(hash, self.slots)] += 1;
            hashed[slot(pair, self.slots)] += 1;
        }
        hash
    }
}

/// The scan of one text.
struct Scan<'a, const RATIOS: bool> {
    bytes: &'a [u8],
    counts: Counts,
    hashed: &'a mut [u32],
}

impl<const RATIOS: bool> ListingKernel for Scan<'_, RATIOS> {
    #[inline(always)]
    fn run(
        &mut self,
        masks: impl Fn(&[u8; BLOCK]) -> Masks,
        list: impl Fn(u64, u16, &mut [u16; BLOCK]),
    ) {
        let keywords = &*KEYWORDS;
        let bytes = self.bytes;
        let hashed = &mut *self.hashed;
        let mut syntax = Syntax::new(bytes);
        let (blocks, tail) = bytes.as_chunks::<BLOCK>();
        let mut padded = [b' '; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        let mut hasher = Hasher::new(hashed.len());
        let (mut starts, mut ends) = (Places::new(), Places::new());
        let mut hashes = [0u64; ROOM];
        // Where the word ends that was taken with the stretch before.
        let mut taken = 0;
        for stretch in 0..(blocks.len() + 1).div_ceil(STRETCH) {
            let numbers = stretch * STRETCH..((stretch + 1) * STRETCH).min(blocks.len() + 1);
            let (mut word_carry, mut mark_carry) = (0, 0);
            for (place, number) in numbers.clone().enumerate() {
                let base = number * BLOCK;
                let m = masks(blocks.get(number).unwrap_or(&padded));
                let all = m.letter | m.number | m.high | m.underscore;
                let mark = !(all | m.blank);
                let word = if base < taken { all & !below(taken, base) } else { all };
                let begins = word & !(word << 1 | word_carry);
                starts.list(mark | begins, place, &list);
                let over = (mark << 1 | mark_carry) | ((word << 1 | word_carry) & !word);
                ends.list(over, place, &list);
                (word_carry, mark_carry) = (word >> 63, mark >> 63);
                if RATIOS {
                    syntax.block(place, base, &m, all, begins, &list);
                }
            }
            let base = numbers.start * BLOCK;
            let text = &bytes[base..];
            let (starts, ends) = (starts.take(), ends.take());
            for (&start, &end) in starts.iter().zip(ends) {
                let (start, length) = (usize::from(start), usize::from(end - start));
                let hash = hasher.take(text, start, length, hashed);
                if RATIOS {
                    hashes[start % ROOM] = hash;
                }
            }
            // The last token ends with the stretch or goes on behind it.
            if let Some(&start) = starts.get(ends.len()) {
                let mut end = numbers.len() * BLOCK;
                if word_carry == 1 {
                    let after = text.get(end..).unwrap_or_default();
                    let more = after.iter().position(|&byte| !is_word_byte(byte));
                    end += more.unwrap_or(after.len());
                    taken = base + end;
                }
                let start = usize::from(start);
                hashes[start % ROOM] = hasher.take(text, start, end - start, hashed);
            }
            if RATIOS {
                syntax.words(base, numbers.len(), &hashes, keywords);
            }
        }
        self.counts = syntax.finish();
    }
}

/// Fills `row` with a text's hashed 1-2-grams (logarithms of counts, scaled to unit length; zero for a
/// text without tokens) and gives the counts; without `RATIOS`, none. `scratch` is for use again.
pub(super) fn fill<const RATIOS: bool>(
    text: &str,
    row: &mut [f32],
    scratch: &mut Vec<u32>,
) -> Counts {
    fill_at::<RATIOS>(*LEVEL, text, row, scratch)
}

fn fill_at<const RATIOS: bool>(
    level: Level,
    text: &str,
    row: &mut [f32],
    scratch: &mut Vec<u32>,
) -> Counts {
    scratch.clear();
    scratch.resize(row.len(), 0);
    let mut scan =
        Scan::<'_, RATIOS> { bytes: text.as_bytes(), counts: Counts::default(), hashed: scratch };
    run_listing(level, &mut scan);
    let counts = scan.counts;
    let log = |&count: &u32| {
        LOGS.get(count as usize).copied().unwrap_or_else(|| f64::from(count).ln_1p())
    };
    let norm = scratch.iter().map(log).map(|value| value * value).sum::<f64>().sqrt();
    let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    for (value, count) in row.iter_mut().zip(&*scratch) {
        *value = (log(count) * scale) as f32;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::super::tokens::token_slots;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_counts() {
        let (mut a, mut b) = (vec![0.0; 512], vec![0.0; 512]);
        fill::<true>("one two three", &mut a, &mut Vec::new());
        fill::<false>("three two one", &mut b, &mut Vec::new());
        assert_ne!(a, b);
    }

    /// The hashed half by its definition, token by token.
    fn plain(text: &str, slots: usize) -> Vec<f32> {
        let mut counts = vec![0u32; slots];
        for (_, slot) in token_slots(text, slots) {
            counts[slot] += 1;
        }
        let logs: Vec<f64> = counts.iter().map(|&count| f64::from(count).ln_1p()).collect();
        let norm = logs.iter().map(|value| value * value).sum::<f64>().sqrt();
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        logs.iter().map(|log| (log * scale) as f32).collect()
    }

    #[test]
    fn words_longer_than_a_stretch_are_one_token() {
        for length in [63, 64, 65, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM, 70_000] {
            for before in [0, 1, 63, 64, ROOM - 1, ROOM] {
                let text = format!("{}{} b", ".".repeat(before), "a".repeat(length));
                let mut row = vec![0.0; 100];
                let counts = fill::<true>(&text, &mut row, &mut Vec::new());
                assert_eq!(row, plain(&text, 100), "{before} {length}");
                assert_eq!(counts.words, 2);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn equals_the_plain_definition(
            text in "(\\PC|[\\x00-\\x7f]|[a-z_]{1,40}|[\\n(:\"'#\\\\]){0,150}",
            slots in prop::sample::select(vec![1, 2, 64, 100]),
        ) {
            let mut row = vec![0.0; slots];
            let counts = fill::<true>(&text, &mut row, &mut Vec::new());
            prop_assert_eq!(&row, &plain(&text, slots));
            let lines = text.split_inclusive('\n').count() as u32;
            prop_assert_eq!(counts.lines, lines);
            for level in Level::available() {
                let mut again = vec![0.0; slots];
                let found = fill_at::<true>(level, &text, &mut again, &mut Vec::new());
                prop_assert_eq!(&row, &again);
                prop_assert_eq!(&counts, &found, "{}", level.name());
            }
        }
    }
}
