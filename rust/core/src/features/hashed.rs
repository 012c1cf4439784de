//! Hashed token 1-2-grams: logarithm of each slot's count, scaled to unit length.

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

/// Fills `row` with the hashed 1-2-grams of a text; all zero for a text without tokens.
pub(super) fn fill(text: &str, row: &mut [f32]) {
    let mut counts = vec![0u32; row.len()];
    let slots = row.len() as u64;
    // The top half of a hash, scaled to the number of slots: no division, no bias worth a name.
    let slot = |hash: u64| (((hash >> 32) * slots) >> 32) as usize;
    let mut before: Option<u64> = None;
    for lexeme in lexemes(text) {
        let hash = xxh3_64(lexeme);
        counts[slot(hash)] += 1;
        if let Some(before) = before {
            let pair = (before.rotate_left(23) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            counts[slot(pair)] += 1;
        }
        before = Some(hash);
    }
    let logs: Vec<f64> = counts.iter().map(|&count| f64::from(count).ln_1p()).collect();
    let norm = logs.iter().map(|value| value * value).sum::<f64>().sqrt();
    for (value, log) in row.iter_mut().zip(logs) {
        *value = if norm > 0.0 { (log / norm) as f32 } else { 0.0 };
    }
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

    #[test]
    fn order_counts() {
        let (mut a, mut b) = (vec![0.0; 512], vec![0.0; 512]);
        fill("one two three", &mut a);
        fill("three two one", &mut b);
        assert_ne!(a, b);
    }
}
