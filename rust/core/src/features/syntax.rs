//! Counts of a text's syntax, from masks of its bytes, a block of 64 at a time.
//!
//! No syntax tree: brackets, indentation, strings and comments are followed as a tokenizer follows
//! them, which is enough to tell a call from a name and a docstring from data, and forty times cheaper
//! than parsing. Broken code, other languages and prose have counts too. What each count means is said
//! once more, byte by byte and slowly, in `tests/quality/test_plain_features.py`.

// What a kernel calls has to be compiled with it, for the instructions it is run for.
#![allow(clippy::inline_always)]

use super::keywords::{KINDS, Keywords, Kind, LANES};
use super::scan::{Places, ROOM, STRETCH};
use crate::tokenizer::simd::{self, BLOCK, Masks};

/// What one pass over a text counts. "Of code" is: outside strings and comments.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// Keywords of code, by the kinds that are counted.
    pub keywords: [u32; LANES],
    /// What statements begin with.
    pub openers: [u32; KINDS],
    /// The same for statements that are not indented.
    pub top: [u32; KINDS],
    /// `from .`
    pub relative: u32,
    pub lines: u32,
    /// Lines that hold more than blanks.
    pub full_lines: u32,
    /// Words of code, and those that begin with a digit.
    pub words: u32,
    pub numbers: u32,
    pub word_bytes: u32,
    /// Punctuation marks of code, and some of them.
    pub marks: u32,
    pub brackets: u32,
    pub dots: u32,
    pub commas: u32,
    pub colons: u32,
    /// Round and square brackets right behind a word or a closing bracket.
    pub calls: u32,
    pub subscripts: u32,
    pub assignments: u32,
    pub strings: u32,
    /// Places of [`PLACES`] that the hashes of the words of code fall into.
    pub distinct: u32,
    pub documented: u32,
    pub docstring_bytes: usize,
    pub string_bytes: usize,
    pub comment_bytes: usize,
    pub indent_bytes: usize,
    pub deepest_indent: usize,
    /// Brackets that are open at the end of a line.
    pub deepest_bracket: i32,
    /// Closing brackets without an opening one at the end of a line, strings without an end.
    pub broken: u32,
}

/// Places that hashes of words are put into, to see how many differ.
pub(super) const PLACES: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Code,
    Comment,
    /// A string on one line, or on several with backslashes.
    Single,
    Triple,
}

/// The scan between two blocks.
pub(super) struct Syntax<'a> {
    bytes: &'a [u8],
    counts: Counts,
    mode: Mode,
    /// Where the string or comment begins, and what marks the string's ends.
    quiet_start: usize,
    double: bool,
    /// What a triple-quoted string holds begins here.
    content: usize,
    /// The last two bits of the block before: quotes in a triple-quoted string.
    quotes: u64,
    /// Bits that the block before leaves to the first byte of the next: it is escaped, a statement or
    /// a line with content has yet to begin, the byte before it is a backslash of code, ends what can be
    /// called, makes a comparison, is an equals sign behind none.
    escaped: u64,
    statement: u64,
    line: u64,
    joined: u64,
    callable: u64,
    compared: u64,
    single: u64,
    depth: i32,
    line_start: usize,
    /// What the statement before began with.
    opened: Kind,
    /// A docstring of a definition (true) or a module that goes on behind the stretch.
    docstring: Option<(usize, bool)>,
    words: Places,
    first: Places,
    /// Masks of the stretch's blocks: ends of lines, strings and comments, where one of these begins,
    /// ends of lines that cut a string; and where each block's first line begins.
    newline: [u64; STRETCH],
    quiet: [u64; STRETCH],
    begins: [u64; STRETCH],
    cut: [u64; STRETCH],
    line_of: [usize; STRETCH],
    seen: [u8; PLACES],
}

/// The bits of a block that stand before a place in the text.
#[inline(always)]
pub(super) fn below(end: usize, base: usize) -> u64 {
    let count = end.saturating_sub(base);
    if count >= BLOCK { u64::MAX } else { (1 << count) - 1 }
}

/// The first stop at or after each set bit, and one if the last bit finds none.
#[inline(always)]
fn next(from: u64, stops: u64) -> (u64, u64) {
    // A carry runs through what is no stop.
    let (sum, over) = (!stops).overflowing_add(from & !stops);
    ((from | sum) & stops, u64::from(over))
}

/// For each bit, whether an odd number of bits are set up to it.
#[inline(always)]
fn parity(mut bits: u64) -> u64 {
    for step in [1, 2, 4, 8, 16, 32] {
        bits ^= bits << step;
    }
    bits
}

impl<'a> Syntax<'a> {
    #[inline(always)]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            counts: Counts::default(),
            mode: Mode::Code,
            quiet_start: 0,
            double: false,
            content: 0,
            quotes: 0,
            escaped: 0,
            statement: 1,
            line: 1,
            joined: 0,
            callable: 0,
            compared: 0,
            single: 0,
            depth: 0,
            line_start: 0,
            opened: Kind::Start,
            docstring: None,
            words: Places::new(),
            first: Places::new(),
            newline: [0; STRETCH],
            quiet: [0; STRETCH],
            begins: [0; STRETCH],
            cut: [0; STRETCH],
            line_of: [0; STRETCH],
            seen: [0; PLACES],
        }
    }

    /// Takes the stretch's next block, which stands at `base` in the text. `begins`: where words do.
    #[inline(always)]
    pub fn block(
        &mut self,
        place: usize,
        base: usize,
        m: &Masks,
        word: u64,
        begins: u64,
        list: &impl Fn(u64, u16, &mut [u16; BLOCK]),
    ) {
        let mark = !(word | m.blank);
        let (quiet, strings) = self.quiet(place, base, m);
        let code = !quiet;
        let words = begins & code;
        let c = &mut self.counts;

        // Which ends of lines end statements: those with no bracket open.
        let (round, square) = (m.round & code, m.square & code);
        let open = round | square | (m.curly & code);
        let close = m.close & code;
        let (mut ends, mut before, mut depth) = (0, 0, self.depth);
        let mut lines = m.newline & code;
        while lines != 0 {
            let bit = lines & lines.wrapping_neg();
            let till = bit - 1;
            depth += (open & till & !before).count_ones() as i32;
            depth -= (close & till & !before).count_ones() as i32;
            c.broken += depth.min(0).unsigned_abs();
            depth = depth.max(0);
            c.deepest_bracket = c.deepest_bracket.max(depth);
            ends |= if depth == 0 { bit } else { 0 };
            before = till;
            lines &= lines - 1;
        }
        depth += (open & !before).count_ones() as i32;
        self.depth = depth - (close & !before).count_ones() as i32;
        let backslash = m.backslash & code;
        ends &= !(backslash << 1 | self.joined);
        self.joined = backslash >> 63;
        let tokens = words | (mark & code) | strings;
        let (first, over) = next(ends << 1 | self.statement, tokens);
        self.statement = over | ends >> 63;
        let (full, over) = next(m.newline << 1 | self.line, word | mark);
        self.line = over | m.newline >> 63;

        let ended = word | close;
        let behind = ended << 1 | self.callable;
        self.callable = ended >> 63;
        c.lines += m.newline.count_ones();
        c.full_lines += full.count_ones();
        c.words += words.count_ones();
        c.numbers += (words & m.number).count_ones();
        c.word_bytes += (word & code).count_ones();
        c.marks += (mark & code).count_ones();
        c.brackets += (open | close).count_ones();
        c.dots += (m.dot & code).count_ones();
        c.commas += (m.comma & code).count_ones();
        c.colons += (m.colon & code).count_ones();
        c.calls += (round & behind).count_ones();
        c.subscripts += (square & behind).count_ones();
        c.strings += strings.count_ones();
        // Equals signs behind no comparison, less those that another one follows.
        let equals = m.equals & code;
        let single = equals & !(m.compare << 1 | self.compared);
        let double = equals & (single << 1 | self.single);
        self.compared = m.compare >> 63;
        self.single = single >> 63;
        c.assignments = c.assignments + single.count_ones() - double.count_ones();

        self.words.list(words, place, list);
        self.first.list(first, place, list);
        self.newline[place] = m.newline;
        self.quiet[place] = quiet;
        self.begins[place] |= strings;
        self.line_of[place] = self.line_start;
        if m.newline != 0 {
            self.line_start = base + BLOCK - m.newline.leading_zeros() as usize;
        }
    }

    /// Which bytes of a block belong to strings and comments, and where strings begin.
    #[inline(always)]
    fn quiet(&mut self, place: usize, base: usize, m: &Masks) -> (u64, u64) {
        let marks = m.quote | m.double;
        if self.mode == Mode::Code && self.escaped | m.backslash | m.hash == 0 {
            if marks == 0 {
                return (0, 0);
            }
            // Strings of one kind of mark that begin and end here, and none is empty or triple-quoted.
            let inside = parity(marks);
            let one_kind = m.quote == 0 || m.double == 0;
            if one_kind && (inside >> 63) | (inside & m.newline) | (marks & marks << 1) == 0 {
                self.counts.string_bytes += (inside | marks).count_ones() as usize;
                return (inside | marks, inside & marks);
            }
        }
        self.quiet_by_steps(place, base, m)
    }

    /// As above, one beginning or end after the other.
    #[inline(always)]
    fn quiet_by_steps(&mut self, place: usize, base: usize, m: &Masks) -> (u64, u64) {
        let escaped;
        (escaped, self.escaped) = simd::escaped(m.backslash, self.escaped);
        let (mut quiet, mut strings) = (0, 0);
        // What is left of the block.
        let mut left = u64::MAX;
        loop {
            if self.mode == Mode::Code {
                let found = (m.quote | m.double | m.hash) & left;
                if found == 0 {
                    return (quiet, strings);
                }
                let bit = found & found.wrapping_neg();
                let start = base + found.trailing_zeros() as usize;
                self.quiet_start = start;
                left &= !(bit | (bit - 1));
                quiet |= bit;
                if m.hash & bit != 0 {
                    self.mode = Mode::Comment;
                    self.begins[place] |= bit;
                    continue;
                }
                strings |= bit;
                self.double = m.double & bit != 0;
                let triple = self.bytes[start..].starts_with(&[self.bytes[start]; 3]);
                self.mode = if triple { Mode::Triple } else { Mode::Single };
                self.content = start + 3;
                self.quotes = 0;
                continue;
            }
            let same = if self.double { m.double } else { m.quote };
            let stops = left
                & match self.mode {
                    Mode::Comment => m.newline,
                    Mode::Single => (same | m.newline) & !escaped,
                    _ => {
                        let marks = same & !escaped & !below(self.content, base);
                        let (one, two) = (marks << 1 | self.quotes >> 1, marks << 2 | self.quotes);
                        self.quotes = marks >> 62;
                        marks & one & two
                    }
                };
            if stops == 0 {
                return (quiet | left, strings);
            }
            let bit = stops & stops.wrapping_neg();
            let at = base + stops.trailing_zeros() as usize;
            // The end of a line is no part of what it ends; a quote is.
            let cut = m.newline & bit;
            let inside = left & ((bit - 1) | (bit & !cut));
            quiet |= inside;
            left &= !inside;
            if self.mode == Mode::Comment {
                self.counts.comment_bytes += at - self.quiet_start;
            } else {
                self.counts.string_bytes += at + usize::from(cut == 0) - self.quiet_start;
                self.counts.broken += u32::from(cut != 0);
                self.cut[place] |= cut;
            }
            self.mode = Mode::Code;
        }
    }

    /// Takes what needs the words' hashes, which stand at their places in the stretch at `base`.
    #[inline(never)]
    pub fn words(&mut self, base: usize, blocks: usize, hashes: &[u64; ROOM], keywords: &Keywords) {
        let c = &mut self.counts;
        for part in self.words.take().chunks(255) {
            let mut lanes = 0;
            for &at in part {
                let hash = hashes[usize::from(at) % ROOM];
                lanes += keywords.lane(hash);
                self.seen[hash as usize % PLACES] = 1;
            }
            for (count, lane) in c.keywords.iter_mut().zip(u64::to_le_bytes(lanes)) {
                *count += u32::from(lane);
            }
        }
        let follow =
            Follow { base, quiet: &self.quiet[..blocks], begins: &self.begins, cut: &self.cut };
        if let Some((start, defines)) = self.docstring {
            self.docstring = follow.docstring(start, defines, c);
        }
        for &within in self.first.take() {
            let within = usize::from(within) % ROOM;
            let (block, at) = (within / BLOCK, within % BLOCK);
            let start = base + within;
            let before = self.newline[block] & ((1 << at) - 1);
            let line = start - at + BLOCK - before.leading_zeros() as usize;
            let line = if before == 0 { self.line_of[block] } else { line };
            let indent = start - line;
            c.indent_bytes += indent;
            c.deepest_indent = c.deepest_indent.max(indent);
            let kind = FIRST_KINDS[usize::from(self.bytes[start])];
            let kind = if kind == Kind::Name { keywords.kind(hashes[within]) } else { kind };
            c.openers[kind as usize] += 1;
            c.top[kind as usize] += u32::from(indent == 0);
            if kind == Kind::From {
                c.relative += u32::from(is_relative(&self.bytes[start + 4..]));
            }
            let prefix = is_prefix(&self.bytes[start..]);
            if (kind == Kind::Quote) | prefix {
                let defines = matches!(self.opened, Kind::Def | Kind::Class | Kind::Async);
                if defines || self.opened == Kind::Start {
                    self.docstring = follow.docstring(start + usize::from(prefix), defines, c);
                }
            }
            self.opened = kind;
        }
        self.begins = [0; STRETCH];
        self.cut = [0; STRETCH];
    }

    /// The counts of a text that ends here.
    #[inline(always)]
    pub fn finish(self) -> Counts {
        let mut c = self.counts;
        c.lines += u32::from(self.line_start < self.bytes.len());
        c.distinct = self.seen.iter().map(|&seen| u32::from(seen)).sum();
        let open = self.bytes.len() - self.quiet_start;
        match self.mode {
            Mode::Code => {}
            Mode::Comment => c.comment_bytes += open,
            Mode::Single | Mode::Triple => {
                c.string_bytes += open;
                c.broken += 1;
            }
        }
        c
    }
}

/// Where the strings of a stretch end: before the code, string or comment that follows.
struct Follow<'a> {
    base: usize,
    quiet: &'a [u64],
    begins: &'a [u64; STRETCH],
    cut: &'a [u64; STRETCH],
}

impl Follow<'_> {
    /// Counts the docstring that begins at `start` if it has an end; gives it back if it goes on behind
    /// the stretch.
    #[cold]
    fn docstring(&self, start: usize, defines: bool, c: &mut Counts) -> Option<(usize, bool)> {
        let within = start.saturating_sub(self.base);
        let mut from = if start < self.base { u64::MAX } else { !1 << (within % BLOCK) };
        for block in within / BLOCK..self.quiet.len() {
            let stops = (!self.quiet[block] | self.begins[block]) & from;
            if stops != 0 {
                if self.cut[block] & stops & stops.wrapping_neg() == 0 {
                    let end = self.base + block * BLOCK + stops.trailing_zeros() as usize;
                    c.docstring_bytes += end - start;
                    c.documented += u32::from(defines);
                }
                return None;
            }
            from = u64::MAX;
        }
        Some((start, defines))
    }
}

/// What a statement that begins with a byte begins with; for a name, unless it is a keyword.
const FIRST_KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => Kind::Name,
            b'@' => Kind::At,
            b'"' | b'\'' => Kind::Quote,
            _ => Kind::Other,
        };
        byte += 1;
    }
    kinds
};

#[cold]
fn is_relative(rest: &[u8]) -> bool {
    rest.iter().find(|byte| !matches!(byte, b' ' | b'\t')) == Some(&b'.')
}

/// Whether a text begins with a string's prefix of one letter.
#[inline(always)]
fn is_prefix(rest: &[u8]) -> bool {
    // The second byte first: many statements begin with one of the letters, few have a quote there.
    rest.get(1).is_some_and(|byte| matches!(byte, b'"' | b'\''))
        && matches!(rest[0] | 0x20, b'r' | b'u' | b'f')
}
