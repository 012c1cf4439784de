//! Levenshtein distance (insert, delete, replace: 1 each) by bit vectors: Myers' algorithm in Hyyrö's form,
//! 64 cells of the table a step. A pattern is prepared once and compared with many sequences.

/// A prepared sequence of symbols below some number.
#[derive(Debug, Clone)]
pub struct Pattern {
    length: usize,
    /// 64-bit blocks of a column.
    blocks: usize,
    /// For each symbol, which row of `places` is its own; 0 where the pattern has no such symbol.
    rows: Vec<u16>,
    /// For each symbol of the pattern, its places in it, a bit each.
    places: Vec<u64>,
}

impl Pattern {
    /// Prepares a sequence whose symbols are below `symbols`.
    pub fn new(sequence: &[u16], symbols: usize) -> Self {
        let blocks = sequence.len().div_ceil(64);
        let mut rows = vec![0; symbols];
        let mut places = vec![0; blocks];
        for (at, symbol) in sequence.iter().enumerate() {
            let row = &mut rows[usize::from(*symbol)];
            if *row == 0 {
                *row = (places.len() / blocks) as u16;
                places.resize(places.len() + blocks, 0);
            }
            places[usize::from(*row) * blocks + at / 64] |= 1 << (at % 64);
        }
        Self { length: sequence.len(), blocks, rows, places }
    }

    /// The distance to a sequence (of symbols below the same number) if it is at most `limit`.
    pub fn distance_within(&self, other: &[u16], limit: usize) -> Option<usize> {
        if self.length.abs_diff(other.len()) > limit {
            return None;
        }
        if self.length == 0 {
            return Some(other.len());
        }
        let distance =
            if self.blocks == 1 { self.one(other, limit) } else { self.many(other, limit) };
        distance.filter(|distance| *distance <= limit)
    }

    fn one(&self, other: &[u16], limit: usize) -> Option<usize> {
        let last = self.length - 1;
        let (mut up, mut down) = (u64::MAX, 0u64);
        let mut distance = self.length;
        for (left, symbol) in (0..other.len()).rev().zip(other) {
            let same = self.places[usize::from(self.rows[usize::from(*symbol)])];
            let diagonal = (((same & up).wrapping_add(up)) ^ up) | same | down;
            let right = down | !(diagonal | up);
            let fall = diagonal & up;
            distance = distance + (right >> last & 1) as usize - (fall >> last & 1) as usize;
            // Each symbol that is left takes off one at most.
            if distance > limit + left {
                return None;
            }
            let right = (right << 1) | 1;
            up = (fall << 1) | !(diagonal | right);
            down = right & diagonal;
        }
        Some(distance)
    }

    fn many(&self, other: &[u16], limit: usize) -> Option<usize> {
        let last = (self.length - 1) % 64;
        let mut column = vec![(u64::MAX, 0u64); self.blocks];
        let mut distance = self.length;
        for (left, symbol) in (0..other.len()).rev().zip(other) {
            let places = &self.places[usize::from(self.rows[usize::from(*symbol)]) * self.blocks..];
            // What the block above hands down: the sign of its lowest horizontal difference.
            let (mut more, mut less) = (1, 0);
            let (mut right, mut fall) = (0, 0);
            for ((up, down), same) in column.iter_mut().zip(places) {
                let same_or_less = same | less;
                let diagonal =
                    (((same_or_less & *up).wrapping_add(*up)) ^ *up) | same_or_less | *down;
                right = *down | !(diagonal | *up);
                fall = diagonal & *up;
                let (right_in, fall_in) = ((right << 1) | more, (fall << 1) | less);
                (more, less) = (right >> 63, fall >> 63);
                *up = fall_in | !(diagonal | right_in);
                *down = right_in & diagonal;
            }
            distance = distance + (right >> last & 1) as usize - (fall >> last & 1) as usize;
            if distance > limit + left {
                return None;
            }
        }
        Some(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn plain(a: &[u16], b: &[u16]) -> usize {
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.iter().enumerate() {
            let mut diagonal = i;
            row[0] = i + 1;
            for (j, y) in b.iter().enumerate() {
                let cell = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
                diagonal = std::mem::replace(&mut row[j + 1], cell);
            }
        }
        row[b.len()]
    }

    #[test]
    fn small_cases() {
        let within = |a: &[u16], b: &[u16], limit| Pattern::new(a, 9).distance_within(b, limit);
        assert_eq!(within(&[], &[], 0), Some(0));
        assert_eq!(within(&[1, 2, 3], &[], 2), None);
        assert_eq!(within(&[1, 2, 3], &[], 3), Some(3));
        assert_eq!(within(&[], &[1, 2, 3], 3), Some(3));
        assert_eq!(within(&[1, 2, 3], &[2, 3, 4], 100), Some(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_whole_table(
            a in vec(0u16..4, 0..24), b in vec(0u16..4, 0..24), limit in 0usize..30
        ) {
            let found = Pattern::new(&a, 4).distance_within(&b, limit);
            prop_assert_eq!(found, Some(plain(&a, &b)).filter(|d| *d <= limit));
        }

        #[test]
        fn agrees_over_several_blocks(
            a in vec(0u16..3, 50..300), edits in vec((0usize..1000, 0u16..4), 0..60), limit in 0usize..80
        ) {
            let mut b = a.clone();
            for (place, symbol) in edits {
                let at = place % (b.len() + 1);
                if symbol == 3 && at < b.len() { b.remove(at); } else { b.insert(at, symbol.min(2)); }
            }
            let truth = plain(&a, &b);
            let pattern = Pattern::new(&a, 3);
            prop_assert_eq!(pattern.distance_within(&b, limit), Some(truth).filter(|d| *d <= limit));
            prop_assert_eq!(pattern.distance_within(&b, usize::MAX >> 1), Some(truth));
        }
    }
}
