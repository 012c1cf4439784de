//! Merging: the bytes of one piece to token ids.
//!
//! The pair with the lowest rank is merged first, the leftmost of equals. A short piece is scanned for
//! it, a long one keeps a heap, so time is `n log n` for a piece of any length. Where the vocabulary
//! allows, [`super::backtrack`] takes the long ones in linear time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::perfect::{self, PerfectMap};

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
    /// From pairs to ranks.
    ranks: PerfectMap,
    /// The id that the merge of each rank makes.
    made: Vec<u32>,
}

/// A pair of ids as one number.
fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}

impl Merges {
    /// Merges in order of rank: left id, right id, merged id, each under 2^21. A pair that stands
    /// twice has its last rank, as in HF.
    pub fn new(bytes: &[u32; 256], merges: &[(u32, u32, u32)]) -> Self {
        let mut ranks = FxHashMap::default();
        for (rank, &(left, right, _)) in merges.iter().enumerate() {
            assert!((left | right | rank as u32) >> ID_BITS == 0, "under 2^21 ids and merges");
            ranks.insert(key(left, right), rank as u32);
        }
        Self {
            bytes: *bytes,
            ranks: PerfectMap::new(&ranks),
            made: merges.iter().map(|&(_, _, id)| id).collect(),
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

    /// For at most [`SCAN_BYTES`] bytes.
    pub fn encode_by_scan(&self, piece: &[u8], mut out: impl FnMut(u32)) {
        const PLACE_BITS: u32 = 6;
        let length = piece.len();
        let mut ids = [0; SCAN_BYTES];
        // What merging the symbol here with the next would have as rank, and the place.
        let mut next = [NONE; SCAN_BYTES];
        for (id, &byte) in ids.iter_mut().zip(piece) {
            *id = self.byte(byte);
        }
        let rank_at = |left: u32, right: u32, place: usize| match self.rank(left, right) {
            NONE => NONE,
            rank => rank << PLACE_BITS | place as u32,
        };
        for i in 1..length {
            next[i - 1] = rank_at(ids[i - 1], ids[i], i - 1);
        }
        // The places at which a symbol stands.
        let mut live = u64::MAX >> (SCAN_BYTES - length.max(1));
        let scanned = length.next_multiple_of(8);
        loop {
            let best = next[..scanned].iter().fold(NONE, |best, &rank| best.min(rank));
            if best == NONE {
                break;
            }
            let at = (best & (SCAN_BYTES as u32 - 1)) as usize;
            ids[at] = self.made[(best >> PLACE_BITS) as usize];
            let after = live & (u64::MAX << at << 1);
            let right = after.trailing_zeros() as usize;
            live &= !(1 << right);
            next[right] = NONE;
            let after = after & (after - 1);
            next[at] = NONE;
            if after != 0 {
                next[at] = rank_at(ids[at], ids[after.trailing_zeros() as usize], at);
            }
            let before = live & ((1 << at) - 1);
            if before != 0 {
                let left = 63 - before.leading_zeros() as usize;
                next[left] = rank_at(ids[left], ids[at], left);
            }
        }
        if length == 0 {
            return;
        }
        while live != 0 {
            out(ids[live.trailing_zeros() as usize]);
            live &= live - 1;
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
            ids[left] = self.made[rank as usize];
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Merges;

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
            let merges = Merges::new(&std::array::from_fn(|b| b as u32), &list);
            let expected = reference(&list, &piece);
            let (mut scan, mut heap) = (Vec::new(), Vec::new());
            merges.encode_by_scan(&piece, |id| scan.push(id));
            merges.encode_by_heap(&piece, |id| heap.push(id));
            prop_assert_eq!(&scan, &expected);
            prop_assert_eq!(&heap, &expected);
        }
    }
}
