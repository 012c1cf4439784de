//! Strings of JSON, 64 bytes at a time: found, and copied with their escapes made characters.
//!
//! Anything that is not a plain good string is `None`: `serde_json` then says what it is. Where escapes
//! start in a run of backslashes is found by one subtraction, as in simdjson (Langdale and Lemire 2019).

#![allow(unsafe_code)]

use crate::tokenizer::simd::{self, BLOCK, Kernel, Level, Masks, escapes};

/// Appends to `out` the string that `rest` begins with, its first quote left out. Returns how many
/// bytes of `rest` it took, the last quote included, and whether it may not be ASCII.
pub fn copy_string(level: Level, rest: &[u8], out: &mut Vec<u8>) -> Option<(usize, bool)> {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 && is_x86_feature_detected!("avx512vbmi2") {
        // SAFETY: the level's features were asked for when it was made, the last one just now.
        return unsafe { copy_vbmi2(rest, out) };
    }
    let mut kernel = Copy { rest, out, answer: None };
    simd::run(level, &mut kernel);
    kernel.answer
}

struct Copy<'a> {
    rest: &'a [u8],
    out: &'a mut Vec<u8>,
    answer: Option<(usize, bool)>,
}

impl Kernel for Copy<'_> {
    #[inline]
    fn run(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks) {
        self.answer = self.copy(masks);
    }
}

impl Copy<'_> {
    #[inline]
    fn copy(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks) -> Option<(usize, bool)> {
        let (mut at, mut high) = (0, 0);
        let mut padded = [0; BLOCK];
        loop {
            let (block, length) = block_at(self.rest, at, &mut padded);
            let found = masks(block);
            let escapes = escapes(found.backslash);
            let quotes = found.double & !(escapes << 1);
            // Control characters must be escaped in JSON.
            let mut stop = (quotes | found.control).trailing_zeros() as usize;
            let mut from = 0;
            let mut left = escapes & below(stop);
            while left != 0 {
                let escape = left.trailing_zeros() as usize;
                left &= left - 1;
                let Some(plain) = block.get(escape + 1).and_then(|letter| plain_escape(*letter))
                else {
                    stop = escape;
                    break;
                };
                self.append(&block[from..escape], at + from);
                self.out.push(plain);
                from = escape + 2;
            }
            // An escape may reach past the block.
            self.append(&block[from.min(stop)..stop], at + from);
            high |= found.high & below(stop);
            at += stop;
            match block.get(stop) {
                None if length == BLOCK => {}
                Some(b'"') => return Some((at + 1, high != 0)),
                Some(b'\\') => at = escape(self.rest, at, self.out)?,
                _ => return None,
            }
        }
    }

    /// Appends a part of a block, which stands at `at`.
    #[inline]
    fn append(&mut self, part: &[u8], at: usize) {
        // A copy of a length that is known beforehand is a single move.
        match self.rest.get(at..).and_then(|rest| rest.first_chunk::<BLOCK>()) {
            Some(block) => {
                let whole = self.out.len() + part.len();
                self.out.extend_from_slice(block);
                self.out.truncate(whole);
            }
            None => self.out.extend_from_slice(part),
        }
    }
}

/// [`copy_string`] without a branch on how many escapes a block has.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
fn copy_vbmi2(rest: &[u8], out: &mut Vec<u8>) -> Option<(usize, bool)> {
    use std::arch::x86_64::{
        _mm512_cmpeq_epi8_mask, _mm512_cmplt_epu8_mask, _mm512_loadu_si512, _mm512_mask_mov_epi8,
        _mm512_maskz_compress_epi8, _mm512_movepi8_mask, _mm512_set1_epi8, _mm512_storeu_si512,
    };
    let (mut at, mut high) = (0, 0);
    let mut padded = [0; BLOCK];
    let all = |byte: u8| _mm512_set1_epi8(byte as i8);
    loop {
        let (block, length) = block_at(rest, at, &mut padded);
        // SAFETY: 64 bytes are there, and the load needs no alignment.
        let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        let is = |byte: u8| _mm512_cmpeq_epi8_mask(bytes, all(byte));
        let (backslash, double) = (is(b'\\'), is(b'"'));
        let escapes = escapes(backslash);
        let letters = escapes << 1;
        let [n, t, r] = [b'n', b't', b'r'].map(is);
        let known = letters & (n | t | r | double | backslash | is(b'/'));
        let control = _mm512_cmplt_epu8_mask(bytes, all(b' '));
        // Escapes of other letters, and one whose letter is in the next block.
        let other = (letters & !known) >> 1 | escapes & 1 << (BLOCK - 1);
        let stop = ((double & !letters) | control | other).trailing_zeros() as usize;
        let mut text = bytes;
        for (letter, plain) in [(n, b'\n'), (t, b'\t'), (r, b'\r')] {
            text = _mm512_mask_mov_epi8(text, letters & letter, all(plain));
        }
        let taken = below(stop) & !escapes;
        let text = _mm512_maskz_compress_epi8(taken, text);
        out.reserve(BLOCK);
        // SAFETY: 64 bytes have just been reserved behind the last one, of which so many as counted
        // hold text now.
        unsafe {
            _mm512_storeu_si512(out.as_mut_ptr().add(out.len()).cast(), text);
            out.set_len(out.len() + taken.count_ones() as usize);
        }
        high |= _mm512_movepi8_mask(bytes) & below(stop);
        at += stop;
        match block.get(stop) {
            None if length == BLOCK => {}
            Some(b'"') => return Some((at + 1, high != 0)),
            Some(b'\\') => at = escape(rest, at, out)?,
            _ => return None,
        }
    }
}

/// The bits below one, or all if there is none.
#[inline]
fn below(bit: usize) -> u64 {
    1u64.checked_shl(bit as u32).unwrap_or(0).wrapping_sub(1)
}

/// The next 64 bytes, at the end filled up with spaces, and how many there are.
#[inline]
pub fn block_at<'a>(
    rest: &'a [u8],
    at: usize,
    padded: &'a mut [u8; BLOCK],
) -> (&'a [u8; BLOCK], usize) {
    let rest = &rest[at..];
    if let Some(block) = rest.first_chunk() {
        return (block, BLOCK);
    }
    padded.fill(b' ');
    padded[..rest.len()].copy_from_slice(rest);
    (padded, rest.len())
}

/// What a letter after a backslash stands for, if that is one byte.
#[inline]
pub fn plain_escape(letter: u8) -> Option<u8> {
    Some(match letter {
        b'n' => b'\n',
        b'"' | b'\\' | b'/' => letter,
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        _ => return None,
    })
}

/// Appends the character that the escape at `at` stands for; returns where it ends.
fn escape(rest: &[u8], at: usize, out: &mut Vec<u8>) -> Option<usize> {
    let letter = *rest.get(at + 1)?;
    if let Some(plain) = plain_escape(letter) {
        out.push(plain);
        return Some(at + 2);
    }
    if letter != b'u' {
        return None;
    }
    let (first, mut end) = (hex(rest, at + 2)?, at + 6);
    // Pairs of surrogates are one character; a lone one is for serde_json to refuse.
    let character = if (0xd800..0xdc00).contains(&first) {
        if !rest[end..].starts_with(b"\\u") {
            return None;
        }
        let second = hex(rest, end + 2)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        end += 6;
        char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)?
    } else {
        char::from_u32(first)?
    };
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Some(end)
}

/// Four hexadecimal digits as a number.
fn hex(rest: &[u8], at: usize) -> Option<u32> {
    let digits = rest.get(at..at + 4)?;
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | (*digit as char).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every level copies the same; where it answers, that is what `serde_json` reads.
    fn check(rest: &str) {
        let mut answers = Level::available().into_iter().map(|level| {
            let mut out = b"before".to_vec();
            copy_string(level, rest.as_bytes(), &mut out).map(|(taken, high)| {
                let text = String::from_utf8(out.split_off(6)).unwrap();
                assert_eq!(
                    serde_json::from_str::<String>(&format!("\"{}", &rest[..taken])).unwrap(),
                    text
                );
                assert!(high || rest[..taken].is_ascii());
                (taken, text)
            })
        });
        let first = answers.next().unwrap();
        answers.for_each(|other| assert_eq!(other, first, "{rest}"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn levels_copy_what_serde_json_reads(rest in "(\\\\[nrtbf/\"\\\\]|[\\\\ n\"]|[a-z]{0,30}|é|\\\\u00e9|\\\\ud83d\\\\ude00|\n){0,40}\"?.{0,70}") {
            check(&rest);
        }

        #[test]
        fn runs_of_backslashes_at_any_place(before in 0usize..130, run in 0usize..140, after in "[n\"]{0,3}") {
            check(&format!("{}{}{after}\"", "x".repeat(before), "\\".repeat(run)));
        }
    }
}
