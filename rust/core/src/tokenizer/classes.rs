//! What the pre-tokenizer asks of a character: letter, number, white space or none of them.
//!
//! The table holds the classes of Unicode 16 (`regex-syntax`'s), which is what HF tokenizers 0.23
//! uses; a newer Unicode would give other tokens for a few thousand rare characters.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// None of the classes below: punctuation, symbols, marks, controls.
pub const OTHER: u8 = 0;
/// `\p{L}`.
pub const LETTER: u8 = 1;
/// `\p{N}`.
pub const NUMBER: u8 = 2;
/// `\s`, that is `White_Space`.
pub const SPACE: u8 = 3;

/// Classes of all characters, in two levels: page of 256 characters, then character.
pub struct Classes {
    page_of: Vec<u8>,
    pages: Vec<[u8; 256]>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);

impl Classes {
    /// The one table, built on first use (about a millisecond).
    pub fn get() -> &'static Self {
        &CLASSES
    }

    fn build() -> Self {
        let mut flat = vec![OTHER; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            let hir = regex_syntax::parse(pattern).expect("a valid class");
            let HirKind::Class(Class::Unicode(ranges)) = hir.kind() else {
                unreachable!("a Unicode class")
            };
            for range in ranges.iter() {
                flat[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        let mut table = Self { page_of: Vec::new(), pages: Vec::new() };
        for page in flat.chunks_exact(256) {
            let known = table.pages.iter().position(|p| p == page).unwrap_or_else(|| {
                table.pages.push(page.try_into().expect("256 long"));
                table.pages.len() - 1
            });
            table.page_of.push(u8::try_from(known).expect("well under 256 distinct pages"));
        }
        table
    }

    /// The class of a code point.
    fn of(&self, code: usize) -> u8 {
        self.pages[usize::from(self.page_of[code >> 8])][code & 255]
    }

    /// Class and length in bytes of the character at `at` of valid UTF-8.
    #[inline]
    pub fn at(&self, text: &[u8], at: usize) -> (u8, usize) {
        let first = text[at];
        if first < 0x80 {
            // Page 0 is the first page seen.
            return (self.pages[0][usize::from(first)], 1);
        }
        let low = |i: usize| usize::from(text[at + i] & 0x3F);
        let first = usize::from(first);
        match first {
            0xF0.. => (self.of((first & 7) << 18 | low(1) << 12 | low(2) << 6 | low(3)), 4),
            0xE0.. => (self.of((first & 15) << 12 | low(1) << 6 | low(2)), 3),
            _ => (self.of((first & 31) << 6 | low(1)), 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_unicode_16() {
        let class = |c: char| Classes::get().at(c.to_string().as_bytes(), 0).0;
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
