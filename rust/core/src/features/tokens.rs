//! Tokens of a text, their hashes, and the slots that those fall into.

// What a kernel calls has to be compiled with it, for the instructions it is run for.
#![allow(clippy::inline_always)]

use xxhash_rust::xxh3::xxh3_64;

/// Whether a byte belongs to a word: letters, digits, underscore and everything beyond ASCII.
pub(crate) fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Words (runs of letters, digits, `_` and non-ASCII) and single punctuation marks, in order.
/// Blanks and control characters separate and are left out.
pub fn lexemes(text: &str) -> impl Iterator<Item = &[u8]> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let start = rest.iter().position(|&byte| byte > b' ' && byte != 0x7f)?;
        rest = &rest[start..];
        let length = rest.iter().position(|&byte| !is_word_byte(byte)).unwrap_or(rest.len()).max(1);
        let (lexeme, after) = rest.split_at(length);
        rest = after;
        Some(lexeme)
    })
}

#[inline(always)]
fn mix(low: u64, high: u64, length: usize) -> u64 {
    let a = u128::from(low ^ 0xa076_1d64_78bd_642f);
    let product = a * u128::from(high ^ 0xe703_7ed1_a0b4_28db ^ (length as u64).rotate_left(40));
    (product as u64) ^ ((product >> 64) as u64)
}

/// The hash of a token: two words of eight bytes mixed, or xxh3-64 beyond sixteen bytes.
pub(super) fn hash_of(token: &[u8]) -> u64 {
    if token.len() > 16 {
        return xxh3_64(token);
    }
    let mut padded = [0; 16];
    padded[..token.len()].copy_from_slice(token);
    let value = u128::from_le_bytes(padded);
    mix(value as u64, (value >> 64) as u64, token.len())
}

/// Masks of the first so many bytes of sixteen.
const FIRST: [[u64; 2]; 17] = {
    let mut masks = [[0; 2]; 17];
    let mut length = 1;
    while length <= 16 {
        let mask = u128::MAX >> (128 - 8 * length);
        masks[length] = [mask as u64, (mask >> 64) as u64];
        length += 1;
    }
    masks
};

/// As [`hash_of`] for a token inside a text, without copying where there is room behind it.
#[inline(always)]
pub(super) fn hash_at(bytes: &[u8], start: usize, length: usize) -> u64 {
    match bytes[start..].first_chunk::<16>() {
        Some(chunk) if length <= 16 => {
            let value = u128::from_le_bytes(*chunk);
            let [low, high] = FIRST[length];
            mix(value as u64 & low, (value >> 64) as u64 & high, length)
        }
        _ => hash_of(&bytes[start..start + length]),
    }
}

/// The hash of a token after another one.
#[inline(always)]
pub(super) fn pair_of(before: u64, hash: u64) -> u64 {
    (before.rotate_left(23) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The slot of a hash: its top half, scaled. No division, no bias worth a name.
#[inline(always)]
pub(super) fn slot(hash: u64, slots: usize) -> usize {
    (((hash >> 32) * slots as u64) >> 32) as usize
}

/// What stands before a text's first token.
pub(super) const BEGINNING: u64 = 0;

/// The slots of a text's tokens and pairs of tokens: what the hashed columns mean for this text.
pub fn token_slots(text: &str, dimensions: usize) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let (mut before, mut word) = (BEGINNING, String::new());
    for lexeme in lexemes(text) {
        let name = String::from_utf8_lossy(lexeme).into_owned();
        let hash = hash_of(lexeme);
        found.push((name.clone(), slot(hash, dimensions)));
        found.push((format!("{word} {name}"), slot(pair_of(before, hash), dimensions)));
        (before, word) = (hash, name);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_words_and_marks() {
        let found: Vec<&[u8]> = lexemes("x_1 += größe(\t'a')\0").collect();
        let expected = ["x_1", "+", "=", "größe", "(", "'", "a", "'", ")"];
        assert_eq!(found, expected.map(str::as_bytes));
        assert_eq!(lexemes(" \n\0").count(), 0);
    }
}
