//! What a token that begins a statement is, and Python's keywords by their hashes.

// What a kernel calls has to be compiled with it, for the instructions it is run for.
#![allow(clippy::inline_always)]

use std::hint::select_unpredictable;
use std::sync::LazyLock;

use super::tokens::hash_of;

/// What a token is. The first [`LANES`] are counted wherever they stand in code; the others matter
/// where they begin a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Def,
    Class,
    Return,
    Loop,
    Branch,
    Logic,
    Constant,
    Keyword,
    Async,
    Import,
    From,
    At,
    Quote,
    /// A word that is no keyword and no number.
    Name,
    Other,
    /// The beginning of the text.
    Start,
}

/// How many kinds are counted.
pub(super) const LANES: usize = 8;
/// How many kinds there are.
pub(super) const KINDS: usize = 16;

pub(super) const WORDS: [(&str, Kind); 37] = [
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

/// Keywords by their hash, without collisions: a token is looked up with one load.
pub(super) struct Keywords {
    seed: u64,
    hashes: [u64; PLACES],
    /// One in the keyword's lane of eight bits, if it has one.
    lanes: [u64; PLACES],
    kinds: [Kind; PLACES],
}

const PLACES: usize = 256;

impl Keywords {
    fn place(seed: u64, hash: u64) -> usize {
        (hash.wrapping_mul(seed) >> 56) as usize
    }

    fn new() -> Self {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        loop {
            let mut found =
                Self { seed, hashes: [0; PLACES], lanes: [0; PLACES], kinds: [Kind::Name; PLACES] };
            let fits = WORDS.iter().all(|(word, kind)| {
                let hash = hash_of(word.as_bytes());
                let at = Self::place(seed, hash);
                let free = found.hashes[at] == 0;
                found.hashes[at] = hash;
                found.kinds[at] = *kind;
                if (*kind as usize) < LANES {
                    found.lanes[at] = 1 << (8 * *kind as usize);
                }
                free
            });
            if fits {
                return found;
            }
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(2) | 1;
        }
    }

    /// One in the lane of eight bits of a keyword's kind; zero for other words.
    #[inline(always)]
    pub(super) fn lane(&self, hash: u64) -> u64 {
        let at = Self::place(self.seed, hash);
        select_unpredictable(self.hashes[at] == hash, self.lanes[at], 0)
    }

    /// A word's kind: [`Kind::Name`] for one that is no keyword.
    #[inline(always)]
    pub(super) fn kind(&self, hash: u64) -> Kind {
        let at = Self::place(self.seed, hash);
        select_unpredictable(self.hashes[at] == hash, self.kinds[at], Kind::Name)
    }
}

pub(super) static KEYWORDS: LazyLock<Keywords> = LazyLock::new(Keywords::new);
