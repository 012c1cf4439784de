//! Merging of long pieces in linear time.
//!
//! Ids are what merging gives exactly if each id alone is what its own bytes are merged to, and no two
//! neighbours would have been merged across their border on the way. So ids are taken from left to
//! right, the longest first, and given back where no id fits behind them; a place that was given up
//! is never tried again, so the time is linear in the piece.

use rustc_hash::FxHashMap;

use super::bpe::Merges;
use super::perfect::{PerfectMap, VALUE_BITS};

const NONE: u32 = u32::MAX;

/// What is known of one id.
#[derive(Debug, Clone, Copy)]
struct Token {
    /// 0 for a byte; one more than the rank of its merge otherwise.
    order: u32,
    /// What it was merged from.
    left: u32,
    right: u32,
    /// Bytes.
    length: u32,
    /// The longest other id whose bytes it starts with.
    shorter: u32,
}

/// A vocabulary in which every merge makes a new id out of earlier ones.
#[derive(Debug)]
pub struct Backtrack {
    tokens: Vec<Token>,
    /// Node and byte to the next node.
    trie: PerfectMap,
    /// The id that ends at a node.
    ends: Vec<u32>,
}

impl Backtrack {
    /// Prepares a vocabulary: its merges as (left, right, made) and the bytes of each id. `None` if ids
    /// do not follow from neighbours alone.
    pub fn new(merges: &Merges, list: &[(u32, u32, u32)], words: &[Vec<u8>]) -> Option<Self> {
        let blank = Token { order: NONE, left: NONE, right: NONE, length: 0, shorter: NONE };
        let mut tokens = vec![blank; words.len()];
        for byte in 0..=255 {
            let token = &mut tokens[merges.byte(byte) as usize];
            (token.order, token.length) = (0, 1);
        }
        for (rank, &(left, right, id)) in list.iter().enumerate() {
            let [a, b] = [left, right].map(|part| tokens[part as usize]);
            if a.order == NONE || b.order == NONE || tokens[id as usize].order != NONE {
                return None;
            }
            let (order, length) = (rank as u32 + 1, a.length + b.length);
            tokens[id as usize] = Token { order, left, right, length, shorter: NONE };
        }
        let mut children = FxHashMap::default();
        let mut ends = vec![NONE];
        let mut known = Vec::new();
        for (id, word) in words.iter().enumerate().filter(|&(id, _)| tokens[id].order != NONE) {
            known.clear();
            merges.encode(word, |id| known.push(id));
            if known != [id as u32] {
                continue;
            }
            let mut node = 0;
            for &byte in word {
                node = *children.entry(step(node, byte)).or_insert_with(|| {
                    ends.push(NONE);
                    ends.len() as u32 - 1
                });
            }
            ends[node as usize] = id as u32;
        }
        if ends.len() > 1 << VALUE_BITS {
            return None;
        }
        let new = Self { tokens, trie: PerfectMap::new(&children), ends };
        let shorter: Vec<u32> = words
            .iter()
            .map(|word| word.split_last().map_or(NONE, |(_, start)| new.longest(start)))
            .collect();
        let mut new = new;
        for (token, shorter) in new.tokens.iter_mut().zip(shorter) {
            token.shorter = shorter;
        }
        Some(new)
    }

    /// The longest id that a text starts with.
    fn longest(&self, text: &[u8]) -> u32 {
        let (mut node, mut found) = (0, NONE);
        for &byte in text {
            let Some(next) = self.trie.get(step(node, byte)) else { break };
            node = next;
            if self.ends[node as usize] != NONE {
                found = self.ends[node as usize];
            }
        }
        found
    }

    /// Whether two ids may stand side by side: merging never joins across their border.
    ///
    /// Goes back in time. Merges happen in the order of ranks, of equals the left one first, so of
    /// the two ids at the border the one of higher order was made last; before that its nearer part
    /// stood there, and would have been joined by a merge that comes before.
    fn fit(&self, merges: &Merges, mut left: u32, mut right: u32) -> bool {
        let mut limit = NONE;
        loop {
            let rank = merges.rank(left, right);
            if rank != NONE && rank + 1 < limit {
                return false;
            }
            let (a, b) = (self.tokens[left as usize], self.tokens[right as usize]);
            if a.order > b.order {
                (limit, left) = (a.order, a.right);
            } else if b.order > 0 {
                (limit, right) = (b.order + 1, b.left);
            } else {
                return true;
            }
        }
    }

    /// The ids of a piece; `None` if there are none, which a sound vocabulary never gives.
    pub fn encode(&self, merges: &Merges, piece: &[u8]) -> Option<Vec<u32>> {
        let mut ids: Vec<u32> = Vec::with_capacity(piece.len() / 2);
        let mut given_up = vec![0_u64; piece.len() / 64 + 1];
        let (mut at, mut next) = (0, self.longest(piece));
        while at < piece.len() {
            let before = ids.last().copied();
            let mut id = next;
            while id != NONE {
                let end = at + self.tokens[id as usize].length as usize;
                if given_up[end / 64] >> (end % 64) & 1 == 0
                    && before.is_none_or(|before| self.fit(merges, before, id))
                {
                    break;
                }
                id = self.tokens[id as usize].shorter;
            }
            if id == NONE {
                given_up[at / 64] |= 1 << (at % 64);
                next = ids.pop()?;
                at -= self.tokens[next as usize].length as usize;
            } else {
                ids.push(id);
                at += self.tokens[id as usize].length as usize;
                next = self.longest(&piece[at..]);
            }
        }
        Some(ids)
    }
}

fn step(node: u32, byte: u8) -> u64 {
    u64::from(node) << 8 | u64::from(byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::Backtrack;
    use crate::tokenizer::bpe::Merges;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn gives_what_the_heap_gives(
            choices in prop::collection::vec((any::<Index>(), any::<Index>()), 0..24),
            pieces in prop::collection::vec(
                prop::collection::vec(97_u8..100, 0..70), 1..4),
        ) {
            let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
            let mut known: Vec<u32> = (97..100).collect();
            let mut list = Vec::new();
            for (left, right) in choices {
                let (left, right) = (*left.get(&known), *right.get(&known));
                let word = [&*words[left as usize], &*words[right as usize]].concat();
                if words.contains(&word) {
                    continue;
                }
                let id = words.len() as u32;
                words.push(word);
                list.push((left, right, id));
                known.push(id);
            }
            let merges = Merges::new(&std::array::from_fn(|b| b as u32), &list);
            let backtrack = Backtrack::new(&merges, &list, &words).expect("merges in order");
            for piece in pieces {
                let mut expected = Vec::new();
                merges.encode_by_heap(&piece, |id| expected.push(id));
                prop_assert_eq!(backtrack.encode(&merges, &piece), Some(expected));
            }
        }
    }

    #[test]
    fn merges_out_of_order_are_refused() {
        let words: Vec<Vec<u8>> =
            (0..=255).map(|byte| vec![byte]).chain([b"ab".to_vec(), b"abc".to_vec()]).collect();
        let bytes = std::array::from_fn(|b| b as u32);
        for list in [[(256, 99, 257), (97, 98, 256)], [(97, 98, 256), (97, 98, 256)]] {
            assert!(Backtrack::new(&Merges::new(&bytes, &list), &list, &words).is_none());
        }
    }
}
