//! Merging: the bytes of one piece to token ids.
//!
//! The pair with the lowest rank is merged first, the leftmost of equals. Short pieces scan for it,
//! long ones keep a heap, so time is `n log n` for a piece of any length.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// Longest piece that is merged by scanning.
const SCAN_BYTES: usize = 64;
const NONE: u32 = u32::MAX;

/// The merges of a vocabulary.
#[derive(Debug)]
pub struct Merges {
    /// Id of each single byte.
    bytes: [u32; 256],
    /// `left << 32 | right` -> (rank, merged id).
    pairs: FxHashMap<u64, (u32, u32)>,
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Merges {
    /// Merges in order of rank: left id, right id, merged id. A pair that stands twice has its last
    /// rank, as in HF.
    pub fn new(bytes: &[u32; 256], merges: impl IntoIterator<Item = (u32, u32, u32)>) -> Self {
        let pairs = merges
            .into_iter()
            .enumerate()
            .map(|(rank, (left, right, id))| (key(left, right), (rank as u32, id)))
            .collect();
        Self { bytes: *bytes, pairs }
    }

    /// The id of a single byte.
    #[inline]
    pub fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    /// Whether some merge makes this id.
    pub fn makes(&self, id: u32) -> bool {
        self.pairs.values().any(|&(_, made)| made == id)
    }

    fn pair(&self, left: u32, right: u32) -> (u32, u32) {
        self.pairs.get(&key(left, right)).copied().unwrap_or((NONE, NONE))
    }

    /// Hands the ids of one piece to `out`, in order.
    pub fn encode(&self, piece: &[u8], out: impl FnMut(u32)) {
        if piece.len() <= SCAN_BYTES {
            self.encode_by_scan(piece, out);
        } else {
            self.encode_by_heap(piece, out);
        }
    }

    fn encode_by_scan(&self, piece: &[u8], out: impl FnMut(u32)) {
        let mut ids = [0; SCAN_BYTES];
        // What merging `i` with `i + 1` would give.
        let mut next = [(NONE, NONE); SCAN_BYTES];
        let mut length = piece.len();
        for (id, &byte) in ids.iter_mut().zip(piece) {
            *id = self.byte(byte);
        }
        for i in 1..length {
            next[i - 1] = self.pair(ids[i - 1], ids[i]);
        }
        while length > 1 {
            let (mut best, mut at) = (NONE, 0);
            for (i, &(rank, _)) in next[..length - 1].iter().enumerate() {
                if rank < best {
                    (best, at) = (rank, i);
                }
            }
            if best == NONE {
                break;
            }
            ids[at] = next[at].1;
            ids.copy_within(at + 2..length, at + 1);
            next.copy_within(at + 1..length, at);
            length -= 1;
            if at + 1 < length {
                next[at] = self.pair(ids[at], ids[at + 1]);
            }
            if at > 0 {
                next[at - 1] = self.pair(ids[at - 1], ids[at]);
            }
        }
        ids[..length].iter().copied().for_each(out);
    }

    fn encode_by_heap(&self, piece: &[u8], out: impl FnMut(u32)) {
        let length = u32::try_from(piece.len()).expect("a piece under 4 GiB");
        // A doubly linked list in place; a symbol that was merged away has id NONE.
        let mut ids: Vec<u32> = piece.iter().map(|&byte| self.byte(byte)).collect();
        let mut before: Vec<u32> = (0..length).map(|i| i.wrapping_sub(1)).collect();
        let mut after: Vec<u32> = (1..=length).collect();
        let mut heap = BinaryHeap::with_capacity(piece.len());
        for i in 1..length {
            let (rank, id) = self.pair(ids[i as usize - 1], ids[i as usize]);
            if rank != NONE {
                heap.push(Reverse((rank, i - 1, id)));
            }
        }
        while let Some(Reverse((_, at, id))) = heap.pop() {
            let left = at as usize;
            let right = after[left];
            // Stale entries name a pair that is no longer there.
            if ids[left] == NONE
                || right == length
                || self.pair(ids[left], ids[right as usize]).1 != id
            {
                continue;
            }
            ids[left] = id;
            ids[right as usize] = NONE;
            let next = after[right as usize];
            after[left] = next;
            if next < length {
                before[next as usize] = at;
                let (rank, id) = self.pair(ids[left], ids[next as usize]);
                if rank != NONE {
                    heap.push(Reverse((rank, at, id)));
                }
            }
            if let Some(&prev) = ids.get(before[left] as usize) {
                let (rank, id) = self.pair(prev, ids[left]);
                if rank != NONE {
                    heap.push(Reverse((rank, before[left], id)));
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
            piece in prop::collection::vec(97_u8..101, 1..64),
        ) {
            let mut known: Vec<u32> = (97..101).collect();
            let mut list = Vec::new();
            for (left, right) in choices {
                let id = 256 + list.len() as u32;
                list.push((*left.get(&known), *right.get(&known), id));
                known.push(id);
            }
            let merges = Merges::new(&std::array::from_fn(|b| b as u32), list.iter().copied());
            let expected = reference(&list, &piece);
            let (mut scan, mut heap) = (Vec::new(), Vec::new());
            merges.encode_by_scan(&piece, |id| scan.push(id));
            merges.encode_by_heap(&piece, |id| heap.push(id));
            prop_assert_eq!(&scan, &expected);
            prop_assert_eq!(&heap, &expected);
        }
    }
}
