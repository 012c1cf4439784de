//! A bounded cache from short pieces to their ids, one for each thread.

use std::cell::RefCell;

/// Longest piece that is kept, in bytes.
const KEY_BYTES: usize = 15;
/// Most ids of a piece that are kept.
const MAX_IDS: usize = 6;
/// 2^16 slots of 48 bytes: 3 MiB.
const SLOT_BITS: u32 = 16;

/// One piece and its ids.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slot {
    key: u128,
    tokenizer: u32,
    count: u8,
    ids: [u32; MAX_IDS],
}

impl Slot {
    /// Whether it holds this piece for this tokenizer (numbered from 1).
    #[inline]
    pub fn holds(&self, key: u128, tokenizer: u32) -> bool {
        self.key == key && self.tokenizer == tokenizer
    }

    /// Starts over with another piece.
    pub fn fill(&mut self, key: u128, tokenizer: u32) {
        *self = Self { key, tokenizer, count: 0, ids: [0; MAX_IDS] };
    }

    /// Appends an id; a piece with too many is not kept.
    pub fn push(&mut self, id: u32) {
        match self.ids.get_mut(usize::from(self.count)) {
            Some(slot) => *slot = id,
            None => self.tokenizer = 0,
        }
        self.count = self.count.saturating_add(1);
    }

    /// The ids.
    #[inline]
    pub fn ids(&self) -> &[u32] {
        &self.ids[..usize::from(self.count)]
    }
}

/// A table in which each piece has one place.
pub struct Cache {
    slots: Vec<Slot>,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(Cache {
        slots: vec![Slot::default(); 1 << SLOT_BITS],
    });
}

impl Cache {
    /// This thread's cache.
    pub fn with<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        CACHE.with_borrow_mut(work)
    }

    /// The place of a piece.
    #[inline]
    pub fn slot(&mut self, key: u128, tokenizer: u32) -> &mut Slot {
        let low = key as u64 ^ 0x9E37_79B9_7F4A_7C15;
        let high = (key >> 64) as u64 ^ 0xD1B5_4A32_D192_ED03 ^ u64::from(tokenizer);
        let product = u128::from(low) * u128::from(high);
        let hash = product as u64 ^ (product >> 64) as u64;
        &mut self.slots[(hash >> (64 - SLOT_BITS)) as usize]
    }
}

/// The bytes of a short piece and its length as one number; `None` if it is too long.
#[inline]
pub fn key(text: &[u8], start: usize, end: usize) -> Option<u128> {
    let length = end - start;
    if length > KEY_BYTES {
        return None;
    }
    let bytes = match text.get(start..start + 16) {
        Some(window) => {
            let window = u128::from_le_bytes(window.try_into().expect("16 bytes"));
            window & ((1 << (8 * length)) - 1)
        }
        None => text[start..end].iter().rev().fold(0, |key, &byte| key << 8 | u128::from(byte)),
    };
    Some(bytes | (length as u128) << 120)
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn a_key_depends_on_the_piece_alone() {
        let text = b"abc def ghi jkl mno pqr";
        for start in 0..text.len() {
            for end in start + 1..=text.len() {
                assert_eq!(key(text, start, end), key(&text[start..end], 0, end - start));
                assert_eq!(key(text, start, end).is_none(), end - start > 15);
            }
        }
        assert_ne!(key(b"a\0", 0, 2), key(b"a", 0, 1));
    }
}
