//! What the pre-tokenizer asks of a character: letter, number, white space or none of them.
//!
//! The table is made when this crate is built, from one version of `regex-syntax` whose tables are those
//! of Unicode 16. HF tokenizers 0.23 uses the same; HF 1.0rc3's has 4,644 more letters and 13 more numbers
//! (Unicode 17's), which stand among the symbols here.

/// None of the classes below: punctuation, symbols, marks, controls.
pub const OTHER: u8 = 0;
/// `\p{L}`.
pub const LETTER: u8 = 1;
/// `\p{N}`.
pub const NUMBER: u8 = 2;
/// `\s`, that is `White_Space`.
pub const SPACE: u8 = 3;

/// The page of each 256 characters, then the pages.
static TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/classes.bin"));

/// How many pages all characters would have.
const PAGES: usize = 0x11_0000 / 256;

/// The class of a code point.
#[inline]
fn of(code: usize) -> u8 {
    TABLE[PAGES + usize::from(TABLE[code >> 8]) * 256 + (code & 255)]
}

/// Class and length in bytes of the character at `at` of valid UTF-8.
#[inline]
pub fn class_at(text: &[u8], at: usize) -> (u8, usize) {
    let low = |i: usize| usize::from(text[at + i] & 0x3F);
    let first = usize::from(text[at]);
    match first {
        0xF0.. => (of((first & 7) << 18 | low(1) << 12 | low(2) << 6 | low(3)), 4),
        0xE0.. => (of((first & 15) << 12 | low(1) << 6 | low(2)), 3),
        0x80.. => (of((first & 31) << 6 | low(1)), 2),
        _ => (of(first), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_unicode_16() {
        let class = |c: char| class_at(c.to_string().as_bytes(), 0).0;
        assert_eq!((class('a'), class('é'), class('漢'), class('𝒜')), (1, 1, 1, 1));
        assert_eq!((class('7'), class('½'), class('Ⅷ'), class('𝟘')), (2, 2, 2, 2));
        for c in [' ', '\t', '\n', '\u{b}', '\u{c}', '\r', '\u{85}', '\u{a0}', '\u{2028}'] {
            assert_eq!(class(c), SPACE);
        }
        for c in ['\0', '\u{1c}', '\u{1f}', '\u{200b}', '\u{301}', '_', '\u{10FFFF}'] {
            assert_eq!(class(c), OTHER);
        }
        // U+A7DC is a letter since Unicode 16, U+10940 (Sidetic) since 17.
        assert_eq!((class('\u{A7DC}'), class('\u{10940}')), (LETTER, OTHER));
    }
}
