//! GPT-2's pre-tokenizer and runs of white space that are tokens, 64 bytes at a time.
//!
//! Gives the same pieces as [`super::split`] would between the runs. Each block of text becomes bit
//! masks of classes ([`super::simd`]), and where pieces start follows from masks and their
//! neighbours: where a class begins (unless a space stands before it, which it takes along), where
//! white space begins, at the last character of white space before another, and at either end of a
//! run. What a block needs of the one before is a handful of bits.

use std::ops::Range;

use super::classes::{LETTER, NUMBER, OTHER, SPACE, class_at};
use super::simd::{self, BLOCK, Level, ListingKernel, Masks};

/// Pieces that are found at a time.
pub const WINDOW: usize = 192;

/// Room for a window: the last block may go past it, and the text's end is added.
pub type Ends = [u16; MOST_PIECES];

/// Most pieces of a window.
pub const MOST_PIECES: usize = WINDOW + BLOCK + 1;

/// Bytes of text that a window may span, so that places in it fit 16 bits.
const SPAN: usize = (1 << 16) - 2 * BLOCK;

/// Pieces that stand side by side.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// Where the first of them starts.
    pub start: usize,
    /// What `ends` is counted from.
    pub base: usize,
    /// Where each of them ends.
    pub ends: &'a [u16],
}

impl Window<'_> {
    /// The place of one piece.
    pub fn piece(&self, index: usize) -> Range<usize> {
        let end = |index: usize| self.base + usize::from(self.ends[index]);
        index.checked_sub(1).map_or(self.start, end)..end(index)
    }
}

/// The longest run of spaces and of tabs that is a token; every run from two on is. None: 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Runs {
    /// Spaces.
    pub spaces: usize,
    /// Tabs.
    pub tabs: usize,
}

/// What the bytes before a block say about it: each 0 or 1, but for the counts.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    letter: u64,
    number: u64,
    other: u64,
    /// White space that is in no run.
    soft: u64,
    /// A space that is in no run.
    soft_space: u64,
    /// The last byte is in a run of spaces, of tabs.
    space_run: u64,
    tab_run: u64,
    /// Spaces, tabs that the text before ends with.
    spaces: usize,
    tabs: usize,
    /// Where a contraction of the block before makes and unmakes starts.
    make: u64,
    unmake: u64,
}

/// Classes of a block's characters beyond ASCII.
#[derive(Debug, Clone, Copy, Default)]
struct Wide {
    letter: u64,
    number: u64,
    white: u64,
    other: u64,
}

/// Finds the pieces of a stretch of text, a window at a time.
pub struct Boundaries<'a> {
    text: &'a [u8],
    at: usize,
    end: usize,
    runs: Runs,
    level: Level,
    before: Before,
    /// Where the last piece starts whose end is not found yet.
    open: Option<usize>,
    /// Where the window's search began.
    base: usize,
    /// Where pieces start, counted from there: each but the text's first is another's end.
    ends: &'a mut Ends,
    count: usize,
}

impl<'a> Boundaries<'a> {
    /// The pieces of `text[start..end]`, as if nothing stood around it.
    pub fn new(
        level: Level,
        runs: Runs,
        text: &'a str,
        Range { start, end }: Range<usize>,
        ends: &'a mut Ends,
    ) -> Self {
        assert!(text.is_char_boundary(start) && text.is_char_boundary(end) && start <= end);
        Self {
            text: text.as_bytes(),
            at: start,
            end,
            runs,
            level,
            before: Before::default(),
            open: None,
            base: start,
            ends,
            count: 0,
        }
    }

    /// The next pieces; `None` after the last.
    #[inline]
    pub fn window(&mut self) -> Option<Window<'_>> {
        let (from, start) = loop {
            if self.at == self.end {
                return None;
            }
            // The start of the text ends no piece.
            let from = usize::from(self.open.is_none());
            let start = self.open.unwrap_or(self.at);
            (self.base, self.count) = (self.at, 0);
            simd::run_listing(self.level, &mut *self);
            if self.at == self.end {
                self.ends[self.count] = (self.end - self.base) as u16;
                self.count += 1;
            }
            if self.count > from {
                break (from, start);
            }
            self.open = Some(start);
        };
        let ends = &self.ends[from..self.count];
        self.open = ends.last().map(|&end| self.base + usize::from(end));
        Some(Window { start, base: self.base, ends })
    }

    /// The classes of characters beyond ASCII, whose bytes `high` tells, on all of their bytes. Takes
    /// and gives bits alone: a kernel that hands over its masks has to make all there are.
    #[cold]
    fn wide(&self, high: u64) -> Wide {
        let mut wide = Wide::default();
        let mut left = high;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            let (class, width) = class_at(self.text, self.at + i);
            let bits = up_to(width) << i;
            match class {
                LETTER => wide.letter |= bits,
                NUMBER => wide.number |= bits,
                SPACE => wide.white |= bits,
                OTHER => wide.other |= bits,
                _ => unreachable!("four classes"),
            }
            left &= !bits;
        }
        wide
    }

    /// Takes out of `run` each character that is left over when a run is cut into its longest
    /// token: such a one stands alone, and the text after it may take it along. Where fewer
    /// characters than the longest token has come right after one of their kind, there is none.
    #[cold]
    fn leftovers(
        run: u64,
        all: u64,
        longest: usize,
        before: usize,
        length: usize,
        more: bool,
    ) -> u64 {
        let mut run = run;
        let mut left = all;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let count = (left >> first).trailing_ones() as usize;
            let past = first + count;
            left &= !(up_to(count) << first);
            let total = count + if first == 0 { before } else { 0 };
            if !(past == length && more) && total > 1 && total % longest == 1 {
                run &= !(1 << (past - 1));
            }
        }
        run
    }

    /// Where contractions make and unmake starts, from the apostrophes that start a piece. Bits may
    /// lie beyond the block.
    #[inline]
    fn contractions(&self, mut quotes: u64) -> (u128, u128) {
        let (mut make, mut unmake) = (0, 0);
        while quotes != 0 {
            let i = quotes.trailing_zeros() as usize;
            quotes &= quotes - 1;
            let rest = &self.text[self.at + i + 1..self.end];
            let length = match rest.first() {
                Some(b's' | b't' | b'm' | b'd') => 1,
                Some(b'r' | b'v') if rest.get(1) == Some(&b'e') => 2,
                Some(b'l') if rest.get(1) == Some(&b'l') => 2,
                _ => continue,
            };
            unmake |= 1_u128 << (i + 1);
            if rest.len() > length {
                make |= 1_u128 << (i + 1 + length);
            }
        }
        (make, unmake)
    }
}

/// The lowest `count` bits.
#[inline]
fn up_to(count: usize) -> u64 {
    u64::MAX >> (BLOCK - count)
}

impl ListingKernel for Boundaries<'_> {
    // It must become part of the function that is compiled for the wider instructions.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn run(
        &mut self,
        masks_of: impl Fn(&[u8; BLOCK]) -> Masks,
        list: impl Fn(u64, u16, &mut [u16; BLOCK]),
    ) {
        let mut before = self.before;
        while self.at < self.end && self.count <= WINDOW && self.at - self.base <= SPAN {
            let at = self.at;
            let mut length = BLOCK.min(self.end - at);
            let masks = if let Some(block) = self.text[at..].first_chunk::<BLOCK>() {
                masks_of(block)
            } else {
                let mut padded = [0; BLOCK];
                padded[..length].copy_from_slice(&self.text[at..self.end]);
                masks_of(&padded)
            };
            let mut wide = Wide::default();
            if masks.high & up_to(length) != 0 {
                // A character is never cut: what follows of it belongs to the next block.
                while at + length < self.end && self.text[at + length] & 0xC0 == 0x80 {
                    length -= 1;
                }
                wide = self.wide(masks.high & up_to(length));
            }
            let valid = up_to(length);
            let high = masks.high & valid;
            let letter = masks.letter & valid | wide.letter;
            let number = masks.number & valid | wide.number;
            let (space, tab) = (masks.space & valid, masks.tab & valid);
            let white = space | tab | masks.line & valid | wide.white;
            let other = valid & !(letter | number | white | high) | wide.other;

            let (mut next_white, mut next_space, mut next_tab) = (true, false, false);
            if at + length < self.end {
                let next = self.text[at + length];
                (next_space, next_tab) = (next == b' ', next == b'\t');
                next_white = next_space
                    || (b'\t'..=b'\r').contains(&next)
                    || next >= 0x80 && class_at(self.text, at + length).0 == SPACE;
            }
            let top = length - 1;
            let shifted = |mask: u64, next: bool| mask >> 1 | u64::from(next) << top;

            let (mut space_run, mut tab_run) = (0, 0);
            if self.runs.spaces > 0 {
                let neighbours = space << 1 | u64::from(before.spaces > 0);
                space_run = space & (neighbours | shifted(space, next_space));
                if (space & neighbours).count_ones() as usize + before.spaces >= self.runs.spaces {
                    let longest = self.runs.spaces;
                    space_run = Self::leftovers(
                        space_run,
                        space,
                        longest,
                        before.spaces,
                        length,
                        next_space,
                    );
                }
            }
            if self.runs.tabs > 0 && tab != 0 {
                let neighbours = tab << 1 | u64::from(before.tabs > 0);
                tab_run = tab & (neighbours | shifted(tab, next_tab));
                if (tab & neighbours).count_ones() as usize + before.tabs >= self.runs.tabs {
                    let longest = self.runs.tabs;
                    tab_run = Self::leftovers(tab_run, tab, longest, before.tabs, length, next_tab);
                }
            }
            let soft = white & !(space_run | tab_run);
            let soft_space = space & !space_run;

            let begins = letter & !(letter << 1 | before.letter)
                | number & !(number << 1 | before.number)
                | other & !(other << 1 | before.other);
            let mut starts = begins & !(soft_space << 1 | before.soft_space);
            starts |= soft & !(soft << 1 | before.soft);
            starts |= space_run & !(space_run << 1 | before.space_run);
            starts |= tab_run & !(tab_run << 1 | before.tab_run);
            let mut last = soft & !shifted(white, next_white);
            if last & high != 0 {
                // The last byte of a longer character; the piece starts at its first.
                let mut long = last & high;
                last &= !high;
                while long != 0 {
                    let mut i = long.trailing_zeros() as usize;
                    long &= long - 1;
                    while self.text[at + i] & 0xC0 == 0x80 {
                        i -= 1;
                    }
                    last |= 1 << i;
                }
            }
            starts |= last;

            let (mut make, mut unmake) = (u128::from(before.make), u128::from(before.unmake));
            starts = (starts | before.make) & !before.unmake;
            let quotes = masks.quote & starts;
            if quotes != 0 {
                let (made, unmade) = self.contractions(quotes);
                make |= made;
                unmake |= unmade;
                starts = (starts | made as u64) & !(unmade as u64) & valid;
            }

            let ending = |mask: u64| mask >> top & 1;
            before = Before {
                letter: ending(letter),
                number: ending(number),
                other: ending(other),
                soft: ending(soft),
                soft_space: ending(soft_space),
                space_run: ending(space_run),
                tab_run: ending(tab_run),
                spaces: trailing(space, length, before.spaces),
                tabs: trailing(tab, length, before.tabs),
                make: (make >> length) as u64,
                unmake: (unmake >> length) as u64,
            };
            let room = self.ends[self.count..].first_chunk_mut().expect("room for a block");
            list(starts, (at - self.base) as u16, room);
            self.count += starts.count_ones() as usize;
            self.at = at + length;
        }
        self.before = before;
    }
}

/// How many bits are set at the end of a block, and before it if they all are.
#[inline]
fn trailing(mask: u64, length: usize, before: usize) -> usize {
    let ones = (mask << (BLOCK - length)).leading_ones() as usize;
    if ones >= length { length + before } else { ones }
}
