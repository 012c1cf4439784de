//! Merging: the bytes of one piece to token ids.
//!
//! The pair with the lowest rank is merged first, the leftmost of equals. A short piece is scanned for
//! it, a long one keeps a heap, so time is `n log n` for a piece of any length. Where the vocabulary
//! allows, [`super::backtrack`] takes the long ones in linear time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::perfect::{self, PerfectMap};
use super::simd::{self, BLOCK, Kernel, Level, Masks};

/// Longest piece that is merged by scanning: one bit a byte must fit 64.
pub const SCAN_BYTES: usize = 64;
/// Ids and ranks fit this many bits, so that a pair and its rank fit 64.
pub const ID_BITS: u32 = perfect::VALUE_BITS;
const NONE: u32 = u32::MAX;

/// The merges of a vocabulary.
#[derive(Debug)]
pub struct Merges {
    /// Id of each single byte.
    bytes: [u32; 256],
    /// Ranks of pairs of bytes: where every piece begins, and few of them are in use, so that these
    /// stay in a near cache.
    byte_ranks: Vec<u32>,
    /// From pairs to ranks.
    ranks: PerfectMap,
    /// The id that the merge of each rank makes.
    made: Vec<u32>,
    /// What to add to a rank for the id that its merge makes, if that is the same for all: then
    /// nothing needs to be loaded.
    first_made: Option<u32>,
    level: Level,
}

/// A pair of ids as one number.
fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}

impl Merges {
    /// Uses other instructions; for tests.
    pub fn set_level(&mut self, level: Level) {
        self.level = level;
    }

    /// Merges in order of rank: left id, right id, merged id, each under 2^21. A pair that stands
    /// twice has its last rank, as in HF.
    pub fn new(bytes: &[u32; 256], merges: &[(u32, u32, u32)]) -> Self {
        let mut ranks = FxHashMap::default();
        for (rank, &(left, right, _)) in merges.iter().enumerate() {
            assert!((left | right | rank as u32) >> ID_BITS == 0, "under 2^21 ids and merges");
            ranks.insert(key(left, right), rank as u32);
        }
        let first_made = merges.first().map_or(0, |&(_, _, id)| id);
        let in_order = (first_made..).zip(merges).all(|(id, merge)| merge.2 == id);
        let byte_rank = |pair: usize| {
            let pair = key(bytes[pair >> 8], bytes[pair & 255]);
            ranks.get(&pair).copied().unwrap_or(NONE)
        };
        Self {
            bytes: *bytes,
            byte_ranks: (0..1 << 16).map(byte_rank).collect(),
            ranks: PerfectMap::new(&ranks),
            made: merges.iter().map(|&(_, _, id)| id).collect(),
            first_made: in_order.then_some(first_made),
            level: Level::best(),
        }
    }

    /// The id of a single byte.
    #[inline]
    pub fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    /// Whether some merge makes this id.
    pub fn makes(&self, id: u32) -> bool {
        self.made.contains(&id)
    }

    /// The rank of a pair, or `u32::MAX` if it is not merged.
    #[inline]
    pub fn rank(&self, left: u32, right: u32) -> u32 {
        self.ranks.get(key(left, right)).unwrap_or(NONE)
    }

    /// Hands the ids of one piece to `out`, in order.
    pub fn encode(&self, piece: &[u8], out: impl FnMut(u32)) {
        if piece.len() <= SCAN_BYTES {
            self.encode_by_scan(piece, out);
        } else {
            self.encode_by_heap(piece, out);
        }
    }

    /// The id that the merge of a rank makes.
    #[inline]
    fn made(&self, rank: u32) -> u32 {
        self.first_made.map_or_else(|| self.made[rank as usize], |first| first + rank)
    }

    /// For at most [`SCAN_BYTES`] bytes.
    pub fn encode_by_scan(&self, piece: &[u8], out: impl FnMut(u32)) {
        if piece.len() <= 16 {
            simd::run(self.level, &mut Scan::<_, 16> { merges: self, piece, out });
        } else {
            simd::run(self.level, &mut Scan::<_, SCAN_BYTES> { merges: self, piece, out });
        }
    }

    /// For a piece of any length under 4 GiB.
    pub fn encode_by_heap(&self, piece: &[u8], out: impl FnMut(u32)) {
        let length = u32::try_from(piece.len()).expect("a piece under 4 GiB");
        // A doubly linked list in place; a symbol that was merged away has id NONE.
        let mut ids: Vec<u32> = piece.iter().map(|&byte| self.byte(byte)).collect();
        let mut before: Vec<u32> = (0..length).map(|i| i.wrapping_sub(1)).collect();
        let mut after: Vec<u32> = (1..=length).collect();
        let mut heap = BinaryHeap::with_capacity(piece.len());
        for i in 1..length {
            let rank = self.rank(ids[i as usize - 1], ids[i as usize]);
            if rank != NONE {
                heap.push(Reverse((rank, i - 1)));
            }
        }
        while let Some(Reverse((rank, at))) = heap.pop() {
            let left = at as usize;
            let right = after[left];
            // Stale entries name a pair that is no longer there.
            if ids[left] == NONE
                || right == length
                || self.rank(ids[left], ids[right as usize]) != rank
            {
                continue;
            }
            ids[left] = self.made(rank);
            ids[right as usize] = NONE;
            let next = after[right as usize];
            after[left] = next;
            if next < length {
                before[next as usize] = at;
                let rank = self.rank(ids[left], ids[next as usize]);
                if rank != NONE {
                    heap.push(Reverse((rank, at)));
                }
            }
            if let Some(&prev) = ids.get(before[left] as usize) {
                let rank = self.rank(prev, ids[left]);
                if rank != NONE {
                    heap.push(Reverse((rank, before[left])));
                }
            }
        }
        ids.into_iter().filter(|&id| id != NONE).for_each(out);
    }
}

/// Merges a piece of at most `N` bytes, of which there are at most [`SCAN_BYTES`].
struct Scan<'a, F, const N: usize> {
    merges: &'a Merges,
    piece: &'a [u8],
    out: F,
}

impl<F: FnMut(u32), const N: usize> Kernel for Scan<'_, F, N> {
    // It must become part of the function that is compiled for the wider instructions.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn run(&mut self, _: impl Fn(&[u8; BLOCK]) -> Masks) {
        const PLACE_BITS: u32 = 6;
        let Self { merges, piece, out } = self;
        let Some((&last, starts)) = piece.split_last() else { return };
        let mut ids = [0; N];
        // What merging the symbol here with the next would have as rank, and the place.
        let mut next = [NONE; N];
        let ranked = |rank: u32, place: usize| match rank {
            NONE => NONE,
            rank => rank << PLACE_BITS | place as u32,
        };
        let rank_at = |left, right, place| ranked(merges.rank(left, right), place);
        for (i, (&byte, &after)) in starts.iter().zip(&piece[1..]).enumerate() {
            ids[i] = merges.byte(byte);
            let pair = usize::from(byte) << 8 | usize::from(after);
            next[i] = ranked(merges.byte_ranks[pair], i);
        }
        ids[starts.len()] = merges.byte(last);
        // The places at which a symbol stands.
        let mut live = u64::MAX >> (SCAN_BYTES - piece.len());
        loop {
            let best = next.iter().fold(NONE, |best, &rank| best.min(rank));
            if best == NONE {
                break;
            }
            let at = best as usize % N;
            ids[at] = merges.made(best >> PLACE_BITS);
            let after = live & (u64::MAX << at << 1);
            let right = after.trailing_zeros() as usize % N;
            live &= !(1 << right);
            next[right] = NONE;
            let after = after & (after - 1);
            next[at] = NONE;
            if after != 0 {
                next[at] = rank_at(ids[at], ids[after.trailing_zeros() as usize % N], at);
            }
            let before = live & ((1 << at) - 1);
            if before != 0 {
                let left = 63 - before.leading_zeros() as usize;
                next[left] = rank_at(ids[left], ids[at], left);
            }
        }
        while live != 0 {
            out(ids[live.trailing_zeros() as usize % N]);
            live &= live - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Merges;
    use crate::tokenizer::simd::Level;

    /// The definition: look at every pair, merge the leftmost of the lowest rank, start again.
    fn reference(merges: &[(u32, u32, u32)], piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|&b| u32::from(b)).collect();
        loop {
            let rank = |i: usize| {
                merges.iter().rposition(|&(left, right, _)| (left, right) == (ids[i], ids[i + 1]))
            };
            let best = (0..ids.len().saturating_sub(1)).filter_map(|i| Some((rank(i)?, i))).min();
            let Some((rank, at)) = best else { return ids };
            ids[at] = merges[rank].2;
            ids.remove(at + 1);
        }
    }

    proptest! {
        #[test]
        fn scan_and_heap_follow_the_definition(
            choices in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..24),
            piece in prop::collection::vec(97_u8..101, 0..=64),
        ) {
            let mut known: Vec<u32> = (97..101).collect();
            let mut list = Vec::new();
            for (left, right) in choices {
                let id = 256 + list.len() as u32;
                list.push((*left.get(&known), *right.get(&known), id));
                known.push(id);
            }
            let mut merges = Merges::new(&std::array::from_fn(|b| b as u32), &list);
            let expected = reference(&list, &piece);
            let mut heap = Vec::new();
            merges.encode_by_heap(&piece, |id| heap.push(id));
            prop_assert_eq!(&heap, &expected);
            for level in Level::available() {
                merges.set_level(level);
                let mut scan = Vec::new();
                merges.encode_by_scan(&piece, |id| scan.push(id));
                prop_assert_eq!(&scan, &expected, "{}", level.name());
            }
        }
    }
}
