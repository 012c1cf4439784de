//! One pass over a text that gives both halves of its features: hashed token 1-2-grams, and counts of
//! what Python's tokens are and what they follow.
//!
//! No syntax tree: brackets, indentation, strings and comments are followed as a tokenizer follows
//! them, which is enough to tell a call from a name and a docstring from data, and forty times cheaper
//! than parsing. Broken code, other languages and prose have counts too.

use std::sync::LazyLock;

use memchr::{memchr, memchr2, memchr3};
use xxhash_rust::xxh3::xxh3_64;

use crate::tokenizer::simd::{BLOCK, Kernel, Level, Masks, run};

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

/// What a token is. Names and numbers are known by their first byte, keywords by their hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The end of a statement's line: where each statement begins.
    Line,
    /// The end of a line inside brackets.
    Continued,
    Name,
    Number,
    Str,
    Def,
    Class,
    Async,
    Import,
    From,
    Return,
    Loop,
    Branch,
    Logic,
    Constant,
    Keyword,
    Round,
    Square,
    Curly,
    Close,
    Dot,
    Comma,
    Colon,
    Equals,
    Operator,
    At,
    Quote,
    Hash,
    Other,
}

/// Columns of the table of pairs; a power of two above the number of kinds.
pub(super) const KINDS: usize = 32;

const WORDS: [(&str, Kind); 37] = [
    ("def", Kind::Def),
    ("class", Kind::Class),
    ("async", Kind::Async),
    ("import", Kind::Import),
    ("from", Kind::From),
    ("return", Kind::Return),
    ("yield", Kind::Return),
    ("for", Kind::Loop),
    ("while", Kind::Loop),
    ("if", Kind::Branch),
    ("elif", Kind::Branch),
    ("else", Kind::Keyword),
    ("and", Kind::Logic),
    ("or", Kind::Logic),
    ("not", Kind::Logic),
    ("in", Kind::Logic),
    ("is", Kind::Logic),
    ("True", Kind::Constant),
    ("False", Kind::Constant),
    ("None", Kind::Constant),
    ("try", Kind::Keyword),
    ("except", Kind::Keyword),
    ("finally", Kind::Keyword),
    ("raise", Kind::Keyword),
    ("with", Kind::Keyword),
    ("as", Kind::Keyword),
    ("assert", Kind::Keyword),
    ("pass", Kind::Keyword),
    ("break", Kind::Keyword),
    ("continue", Kind::Keyword),
    ("del", Kind::Keyword),
    ("global", Kind::Keyword),
    ("nonlocal", Kind::Keyword),
    ("lambda", Kind::Keyword),
    ("await", Kind::Keyword),
    ("print", Kind::Keyword),
    ("super", Kind::Keyword),
];

const fn kind_of_byte(byte: u8) -> Kind {
    match byte {
        b'0'..=b'9' => Kind::Number,
        b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => Kind::Name,
        b'(' => Kind::Round,
        b'[' => Kind::Square,
        b'{' => Kind::Curly,
        b')' | b']' | b'}' => Kind::Close,
        b'.' => Kind::Dot,
        b',' => Kind::Comma,
        b':' => Kind::Colon,
        b'=' => Kind::Equals,
        b'@' => Kind::At,
        b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'!' | b'&' | b'|' | b'^' | b'~' => {
            Kind::Operator
        }
        b'"' | b'\'' => Kind::Quote,
        b'#' => Kind::Hash,
        _ => Kind::Other,
    }
}

const BYTE_KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = kind_of_byte(byte as u8);
        byte += 1;
    }
    kinds
};

/// What a token of each kind does to the depth of brackets.
const DEPTH: [i32; KINDS] = {
    let mut steps = [0; KINDS];
    steps[Kind::Round as usize] = 1;
    steps[Kind::Square as usize] = 1;
    steps[Kind::Curly as usize] = 1;
    steps[Kind::Close as usize] = -1;
    steps
};

/// Keywords by their hash, without collisions: a token is looked up with one load.
struct Words {
    seed: u64,
    table: [(u64, Kind); 256],
}

impl Words {
    fn place(seed: u64, hash: u64) -> usize {
        (hash.wrapping_mul(seed) >> 56) as usize
    }

    fn new() -> Self {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        loop {
            let mut table = [(0, Kind::Other); 256];
            let fits = WORDS.iter().all(|(word, kind)| {
                let hash = hash_of(word.as_bytes());
                let place = &mut table[Self::place(seed, hash)];
                let free = place.0 == 0;
                *place = (hash, *kind);
                free
            });
            if fits {
                return Self { seed, table };
            }
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(2) | 1;
        }
    }
}

static LEVEL: LazyLock<Level> = LazyLock::new(Level::best);

static TABLE: LazyLock<Words> = LazyLock::new(Words::new);

/// Logarithms of small counts.
static LOGS: LazyLock<Vec<f64>> =
    LazyLock::new(|| (0..4096).map(|n| f64::from(n).ln_1p()).collect());

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
#[inline]
fn hash_at(bytes: &[u8], start: usize, length: usize) -> u64 {
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
#[inline]
pub(super) fn pair_of(before: u64, hash: u64) -> u64 {
    (before.rotate_left(23) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The slot of a hash: its top half, scaled. No division, no bias worth a name.
#[inline]
pub(super) fn slot(hash: u64, slots: usize) -> usize {
    (((hash >> 32) * slots as u64) >> 32) as usize
}

/// What stands before a text's first token.
pub(super) const BEGINNING: u64 = 0;

/// What one pass over a text counts.
pub(super) struct Counts {
    /// How often a kind (column) follows another (row), outside strings and comments.
    pub pairs: Box<[u32; KINDS * KINDS]>,
    /// First tokens of statements that are not indented.
    pub top: [u32; KINDS],
    /// One bit for each hash of a token of code, modulo 4,096.
    pub seen: [u64; 64],
    pub lines: u32,
    pub blank_lines: u32,
    pub name_bytes: u64,
    pub documented: u32,
    pub docstring_bytes: usize,
    pub string_bytes: usize,
    pub comment_bytes: usize,
    pub indent_bytes: u64,
    pub deepest_indent: usize,
    pub deepest_bracket: i32,
    /// Closing brackets without an opening one, strings without an end.
    pub broken: u32,
}

impl Counts {
    fn new() -> Self {
        Self {
            pairs: Box::new([0; KINDS * KINDS]),
            top: [0; KINDS],
            seen: [0; 64],
            lines: 0,
            blank_lines: 0,
            name_bytes: 0,
            documented: 0,
            docstring_bytes: 0,
            string_bytes: 0,
            comment_bytes: 0,
            indent_bytes: 0,
            deepest_indent: 0,
            deepest_bracket: 0,
            broken: 0,
        }
    }

    /// How often `kind` follows `before`.
    pub fn pair(&self, before: Kind, kind: Kind) -> u32 {
        self.pairs[before as usize * KINDS + kind as usize]
    }

    /// How often `kind` occurs.
    pub fn of(&self, kind: Kind) -> u32 {
        self.pairs.iter().skip(kind as usize).step_by(KINDS).sum()
    }

    /// How many statements begin.
    pub fn statements(&self) -> u32 {
        let row = Kind::Line as usize * KINDS;
        self.pairs[row..row + KINDS].iter().sum()
    }
}

/// Blocks that are looked at together.
const STRETCH: usize = 16;

/// The scan of one text.
struct Scan<'a, const RATIOS: bool> {
    bytes: &'a [u8],
    counts: Counts,
    hashed: &'a mut [u32],
}

/// Where a scan stands, between tokens.
#[derive(Clone, Copy)]
struct State {
    /// The hash of the last token.
    before: u64,
    /// The kinds of the last token of code and of the one before it.
    last: Kind,
    earlier: Kind,
    /// The next token of code begins a statement: `last` is [`Kind::Line`].
    begins: bool,
    /// The kind that the statement began with, and what the statement before it began and ended with.
    opens: Kind,
    opened: Kind,
    ended: Kind,
    depth: i32,
    line_start: usize,
    /// Nothing but blanks since the line began.
    blank: bool,
    /// Tokens before this belong to a string or a comment.
    quiet_until: usize,
}

impl<const RATIOS: bool> Kernel for Scan<'_, RATIOS> {
    fn run(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks) {
        // What changes with each token is local: the compiler cannot tell that tables do not overlap.
        let words = &*TABLE;
        let bytes = self.bytes;
        let hashed = &mut *self.hashed;
        let slots = hashed.len();
        let mut pairs = [0u32; KINDS * KINDS];
        let mut top = [0u32; KINDS];
        let mut seen = [0u64; 64];
        let (mut lines, mut blank_lines, mut broken) = (0u32, 0u32, 0u32);
        let (mut name_bytes, mut indent_bytes) = (0u64, 0u64);
        let (mut deepest_indent, mut deepest_bracket) = (0usize, 0i32);
        let mut state = State {
            before: BEGINNING,
            last: Kind::Line,
            earlier: Kind::Line,
            begins: true,
            opens: Kind::Line,
            opened: Kind::Line,
            ended: Kind::Line,
            depth: 0,
            line_start: 0,
            blank: true,
            quiet_until: 0,
        };
        let (blocks, tail) = bytes.as_chunks::<BLOCK>();
        let mut padded = [b' '; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        let mut carry = 0;
        // Two loops over a stretch of text, so that a wrong guess at a branch in the second one does
        // not wait for hashes: which tokens there are, then what they mean.
        let mut events = [(0u32, 0u32, 0u64); STRETCH * BLOCK];
        for stretch in 0..(blocks.len() + 1).div_ceil(STRETCH) {
            let mut count = 0;
            let mut before = state.before;
            for number in stretch * STRETCH..((stretch + 1) * STRETCH).min(blocks.len() + 1) {
                let base = number * BLOCK;
                let found = masks(blocks.get(number).unwrap_or(&padded));
                let word = found.letter | found.number | found.high | found.underscore;
                let mark = !(word | found.blank);
                let begins = word & !((word << 1) | carry);
                carry = word >> 63;
                let mut starts = mark | begins | found.line;
                // The last word may go on in the next block.
                let open = if carry == 1 { 64 - word.leading_ones() } else { 64 };
                while starts != 0 {
                    let offset = starts.trailing_zeros();
                    starts &= starts - 1;
                    let start = base + offset as usize;
                    // One for a mark, none for the end of a line.
                    let mut length = (word >> offset).trailing_ones() | (mark >> offset & 1) as u32;
                    if offset == open {
                        let after = &bytes[start..];
                        let end = after.iter().position(|&byte| !is_word_byte(byte));
                        length = end.unwrap_or(after.len()) as u32;
                    }
                    let hash = hash_at(bytes, start, length as usize);
                    let one = u32::from(length > 0);
                    hashed[slot(hash, slots)] += one;
                    hashed[slot(pair_of(before, hash), slots)] += one;
                    before = if length > 0 { hash } else { before };
                    if RATIOS {
                        events[count] = (start as u32, length, hash);
                        count += 1;
                    }
                }
            }
            state.before = before;
            if !RATIOS {
                continue;
            }
            for &(start, length, hash) in &events[..count] {
                let start = start as usize;
                let first = bytes[start];
                if length == 0 {
                    if first == b'\n' {
                        lines += 1;
                        blank_lines += u32::from(state.blank);
                        state.line_end(start, bytes);
                    }
                    continue;
                }
                state.blank = false;
                if start < state.quiet_until {
                    continue;
                }
                // Branches ask the first byte, which is known long before the hash is.
                let mut kind = BYTE_KINDS[first as usize];
                if kind as u8 >= Kind::Quote as u8 {
                    if kind == Kind::Quote {
                        broken += u32::from(!self.counts.string(bytes, start, &mut state));
                        kind = Kind::Str;
                    } else if kind == Kind::Hash {
                        let rest = &bytes[start..];
                        let length = memchr(b'\n', rest).unwrap_or(rest.len());
                        self.counts.comment_bytes += length;
                        state.quiet_until = start + length;
                        continue; // a comment follows nothing and nothing follows it
                    }
                }
                state.depth += DEPTH[kind as usize];
                if state.depth < 0 {
                    state.depth = 0;
                    broken += 1;
                }
                deepest_bracket = deepest_bracket.max(state.depth);
                seen[(hash & 63) as usize] |= 1 << ((hash >> 6) & 63);
                let known = words.table[Words::place(words.seed, hash)];
                kind = if known.0 == hash { known.1 } else { kind };
                pairs[state.last as usize * KINDS + kind as usize] += 1;
                name_bytes += if kind == Kind::Name { u64::from(length) } else { 0 };
                if state.begins {
                    state.begins = false;
                    let indent = start - state.line_start;
                    top[kind as usize] += u32::from(indent == 0);
                    indent_bytes += indent as u64;
                    deepest_indent = deepest_indent.max(indent);
                    state.opens = kind;
                }
                state.earlier = state.last;
                state.last = kind;
            }
        }
        lines += u32::from(state.line_start < bytes.len());
        self.counts.pairs.copy_from_slice(&pairs);
        self.counts = Counts {
            pairs: std::mem::replace(&mut self.counts.pairs, Box::new([0; KINDS * KINDS])),
            top,
            seen,
            lines,
            blank_lines,
            name_bytes,
            indent_bytes,
            deepest_indent,
            deepest_bracket,
            broken,
            ..self.counts
        };
    }
}

impl State {
    fn line_end(&mut self, at: usize, bytes: &[u8]) {
        self.line_start = at + 1;
        self.blank = true;
        if at < self.quiet_until || matches!(self.last, Kind::Line | Kind::Continued) {
            return;
        }
        // A backslash joins lines.
        if self.depth > 0 || (at > 0 && bytes[at - 1] == b'\\') {
            self.last = Kind::Continued;
            return;
        }
        self.opened = self.opens;
        self.ended = self.last;
        self.last = Kind::Line;
        self.begins = true;
    }
}

impl Counts {
    /// Takes the string that begins here; gives whether it has an end.
    fn string(&mut self, bytes: &[u8], start: usize, state: &mut State) -> bool {
        let rest = &bytes[start..];
        let (length, ends) = string_length(rest);
        state.quiet_until = start + length;
        self.string_bytes += length;
        let prefixed = state.last == Kind::Name && is_prefix(&bytes[..start]);
        let begins = if prefixed { state.earlier } else { state.last } == Kind::Line;
        let module = state.opened == Kind::Line;
        let defines = matches!(state.opened, Kind::Def | Kind::Class | Kind::Async);
        if begins && ends && (module || (defines && state.ended == Kind::Colon)) {
            self.docstring_bytes += length;
            self.documented += u32::from(!module);
        }
        ends
    }
}

/// The length of the string that a text begins with, and whether it has an end.
///
/// Of one without, what counts is the rest of its line, or the quotes of a triple-quoted one.
fn string_length(rest: &[u8]) -> (usize, bool) {
    let quote = rest[0];
    let triple = rest.len() >= 3 && rest[1] == quote && rest[2] == quote;
    let mut at = if triple { 3 } else { 1 };
    while let Some(after) = rest.get(at..) {
        let found =
            if triple { memchr2(quote, b'\\', after) } else { memchr3(quote, b'\\', b'\n', after) };
        let Some(found) = found else { break };
        at += found;
        match rest[at] {
            b'\\' => at += 2,
            b'\n' => return (at, false),
            _ if !triple => return (at + 1, true),
            _ if rest[at..].starts_with(&[quote; 3]) => return (at + 3, true),
            _ => at += 1,
        }
    }
    (if triple { 3 } else { rest.len() }, false)
}

/// Whether a text ends in a string's prefix that stands alone.
fn is_prefix(before: &[u8]) -> bool {
    let letter = matches!(before.last(), Some(b'r' | b'R' | b'u' | b'U' | b'f' | b'F'));
    letter && before.len().checked_sub(2).is_none_or(|at| !is_word_byte(before[at]))
}

/// Fills `row` with a text's hashed 1-2-grams (logarithms of counts, scaled to unit length; zero for a
/// text without tokens) and gives the counts; without `RATIOS`, of the tokens alone.
pub(super) fn fill<const RATIOS: bool>(text: &str, row: &mut [f32]) -> Counts {
    let mut hashed = vec![0; row.len()];
    let mut scan =
        Scan::<'_, RATIOS> { bytes: text.as_bytes(), counts: Counts::new(), hashed: &mut hashed };
    run(*LEVEL, &mut scan);
    let counts = scan.counts;
    let log = |&count: &u32| {
        LOGS.get(count as usize).copied().unwrap_or_else(|| f64::from(count).ln_1p())
    };
    let norm = hashed.iter().map(log).map(|value| value * value).sum::<f64>().sqrt();
    let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    for (value, count) in row.iter_mut().zip(&hashed) {
        *value = (log(count) * scale) as f32;
    }
    counts
}

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
    use proptest::prelude::*;

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
        fill::<true>("one two three", &mut a);
        fill::<false>("three two one", &mut b);
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn equals_the_plain_definition(text in "(\\PC|[\\x00-\\x7f]|[a-z_]{1,40}|[\\n(:\"'#\\\\]){0,150}") {
            let mut row = vec![0.0; 64];
            let counts = fill::<true>(&text, &mut row);
            prop_assert_eq!(&row, &plain(&text, 64));
            let lines = text.split_inclusive('\n').count() as u32;
            prop_assert_eq!(counts.lines, lines);
        }
    }
}
