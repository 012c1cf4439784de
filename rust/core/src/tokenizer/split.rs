//! GPT-2's pre-tokenizer, one character at a time:
//!
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

use super::classes::{SPACE, class_at};

/// The pieces of a text, each as its byte range; together they are the text.
pub struct Pieces<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Pieces<'a> {
    /// Pieces of a text (a whole text, or what stands between two added tokens).
    pub fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), at: 0 }
    }

    fn run_end(&self, mut at: usize, class: u8) -> usize {
        while at < self.text.len() {
            let (found, width) = class_at(self.text, at);
            if found != class {
                break;
            }
            at += width;
        }
        at
    }

    fn space_end(&self, start: usize, width: usize) -> usize {
        let (mut last, mut end) = (start, start + width);
        while end < self.text.len() {
            let (class, width) = class_at(self.text, end);
            if class != SPACE {
                // `\s+(?!\S)` gives its last character back, unless it is the only one.
                return if last == start { end } else { last };
            }
            last = end;
            end += width;
        }
        end
    }
}

fn contraction(rest: &[u8]) -> Option<usize> {
    match rest {
        [b's' | b't' | b'm' | b'd', ..] => Some(1),
        [b'r' | b'v', b'e', ..] | [b'l', b'l', ..] => Some(2),
        _ => None,
    }
}

impl Iterator for Pieces<'_> {
    type Item = (usize, usize);

    #[inline]
    fn next(&mut self) -> Option<(usize, usize)> {
        let start = self.at;
        let first = *self.text.get(start)?;
        if first == b'\''
            && let Some(length) = contraction(&self.text[start + 1..])
        {
            self.at = start + 1 + length;
            return Some((start, self.at));
        }
        let (class, width) = class_at(self.text, start);
        let next = start + width;
        self.at = if class != SPACE {
            self.run_end(next, class)
        } else if first == b' ' && next < self.text.len() {
            match class_at(self.text, next) {
                (SPACE, _) => self.space_end(start, width),
                (class, width) => self.run_end(next + width, class),
            }
        } else {
            self.space_end(start, width)
        };
        Some((start, self.at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Pieces;

    fn pieces(text: &str) -> Vec<&str> {
        Pieces::new(text).map(|(start, end)| &text[start..end]).collect()
    }

    #[test]
    fn splits_like_the_pattern() {
        assert_eq!(pieces("I'll  go\n\n  x"), ["I", "'ll", " ", " go", "\n\n ", " x"]);
        assert_eq!(pieces("a 'd 's"), ["a", " '", "d", " '", "s"]);
        assert_eq!(pieces("\n'd\t\tx1_  "), ["\n", "'d", "\t", "\t", "x", "1", "_", "  "]);
        assert_eq!(pieces("\u{a0}x \u{a0}y"), ["\u{a0}", "x", " ", "\u{a0}", "y"]);
        assert_eq!(pieces("'Re don't"), ["'", "Re", " don", "'t"]);
        assert!(pieces("").is_empty());
    }

    proptest! {
        #[test]
        fn pieces_are_the_text(text in "(\\PC|[ \t\n'a1.]){0,40}") {
            prop_assert_eq!(pieces(&text).concat(), text);
        }
    }
}
