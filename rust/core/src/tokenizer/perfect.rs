//! A perfect hash map: whether a key is there is answered with two loads and no branch, since no
//! branch predictor could tell.

use rustc_hash::FxHashMap;

/// Values fit this many bits, and keys twice as many.
pub const VALUE_BITS: u32 = 21;
/// No key has this many bits set.
const EMPTY: u64 = u64::MAX;

/// Keys under 2^42 to values under 2^21.
#[derive(Debug)]
pub struct PerfectMap {
    /// `key << 21 | value`.
    slots: Vec<u64>,
    /// How many strides each group of keys is moved so that no two keys meet.
    steps: Vec<u16>,
}

fn hash(key: u64) -> u64 {
    let product = u128::from(key) * u128::from(0x9E37_79B9_7F4A_7C15_u64);
    product as u64 ^ (product >> 64) as u64
}

impl PerfectMap {
    /// Holds what an ordinary map holds.
    pub fn new(map: &FxHashMap<u64, u32>) -> Self {
        let mut size = (map.len() * 5 / 4).next_power_of_two();
        loop {
            if let Some(new) = Self::of_size(map, size) {
                return new;
            }
            size *= 2;
        }
    }

    fn of_size(map: &FxHashMap<u64, u32>, size: usize) -> Option<Self> {
        let mut new = Self { slots: vec![EMPTY; size], steps: vec![0; (size / 4).max(1)] };
        let mut keys: Vec<(usize, u64)> =
            map.keys().map(|&key| (new.group(hash(key)), key)).collect();
        keys.sort_unstable();
        let mut groups: Vec<&[(usize, u64)]> = keys.chunk_by(|a, b| a.0 == b.0).collect();
        // The fullest first, while there is room.
        groups.sort_by_key(|keys| std::cmp::Reverse(keys.len()));
        let mut taken = Vec::new();
        for keys in groups {
            let step = (0..=u16::MAX).find(|&step| {
                taken.clear();
                keys.iter().all(|&(_, key)| {
                    let at = new.place(hash(key), step);
                    let free = new.slots[at] == EMPTY && !taken.contains(&at);
                    taken.push(at);
                    free
                })
            })?;
            new.steps[keys[0].0] = step;
            for (&(_, key), &at) in keys.iter().zip(&taken) {
                assert!(key >> (2 * VALUE_BITS) == 0 && map[&key] >> VALUE_BITS == 0);
                new.slots[at] = key << VALUE_BITS | u64::from(map[&key]);
            }
        }
        Some(new)
    }

    #[inline]
    fn group(&self, hash: u64) -> usize {
        (hash >> 40) as usize & (self.steps.len() - 1)
    }

    #[inline]
    fn place(&self, hash: u64, step: u16) -> usize {
        let stride = (hash >> 20) as usize | 1;
        (hash as usize).wrapping_add(stride.wrapping_mul(usize::from(step)))
            & (self.slots.len() - 1)
    }

    /// The value of a key.
    #[inline]
    pub fn get(&self, key: u64) -> Option<u32> {
        let hash = hash(key);
        let entry = self.slots[self.place(hash, self.steps[self.group(hash)])];
        (entry >> VALUE_BITS == key).then_some(entry as u32 & ((1 << VALUE_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustc_hash::FxHashMap;

    use super::PerfectMap;

    proptest! {
        #[test]
        fn holds_what_the_ordinary_map_holds(
            pairs in prop::collection::hash_map(0_u64..1 << 42, 0_u32..1 << 21, 0..400),
            others in prop::collection::vec(0_u64..1 << 42, 0..50),
        ) {
            let map: FxHashMap<u64, u32> = pairs.into_iter().collect();
            let perfect = PerfectMap::new(&map);
            for key in map.keys().copied().chain(others) {
                prop_assert_eq!(perfect.get(key), map.get(&key).copied());
            }
        }
    }
}
