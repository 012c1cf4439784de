//! Best-fit decreasing: whole documents into rows of one length ("Fewer Truncations Improve Language
//! Modeling", 2404.10830). Longer documents are cut into full rows and a rest. Linear time (counting
//! sort, one stack of rows for each free length); 20 bytes a piece while planning, 16 after.

/// A stretch of tokens that stands in one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its first token, counted over the whole source.
    pub start: u64,
    /// Tokens in it.
    pub length: u32,
    /// Whether its document goes on after it.
    pub continues: bool,
}

/// Rows of pieces.
#[derive(Debug, Clone)]
pub struct Plan {
    pieces: Vec<Piece>,
    /// First piece of each row, and the end.
    rows: Vec<usize>,
}

impl Plan {
    /// Places documents, given as (start, length), into rows of `length` tokens.
    pub fn best_fit(documents: impl Iterator<Item = (u64, u64)>, length: u32) -> Self {
        let mut pieces = Vec::new();
        for (start, tokens) in documents {
            let mut done = 0;
            while done < tokens {
                let take = (tokens - done).min(u64::from(length));
                pieces.push(Piece {
                    start: start + done,
                    length: take as u32,
                    continues: done + take < tokens,
                });
                done += take;
            }
        }
        // Longest first, equal ones in the order of the data: the sort is stable.
        let pieces =
            counting_sort(&pieces, length as usize + 1, |_, p| (length - p.length) as usize);
        let (row_of, rows) = assign(&pieces, length);
        let pieces = counting_sort(&pieces, rows, |i, _| row_of[i] as usize);
        let mut starts = vec![0; rows + 1];
        for &row in &row_of {
            starts[row as usize + 1] += 1;
        }
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        Self { pieces, rows: starts }
    }

    /// Rows in all.
    pub fn len(&self) -> usize {
        self.rows.len() - 1
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces of a row, in order.
    pub fn row(&self, row: usize) -> &[Piece] {
        &self.pieces[self.rows[row]..self.rows[row + 1]]
    }
}

/// The row of each piece, and how many rows there are; pieces come longest first.
fn assign(pieces: &[Piece], length: u32) -> (Vec<u32>, usize) {
    let mut row_of = Vec::with_capacity(pieces.len());
    let mut rows = 0_u32;
    // Rows by free tokens, and one bit for each free length that some row has.
    let mut by_free: Vec<Vec<u32>> = vec![Vec::new(); length as usize + 1];
    let mut present = vec![0_u64; length as usize / 64 + 1];
    for piece in pieces {
        let need = piece.length as usize;
        let (row, free) = if let Some(free) = first_set(&present, need) {
            let row = by_free[free].pop().expect("its bit is set");
            if by_free[free].is_empty() {
                present[free / 64] &= !(1 << (free % 64));
            }
            (row, free)
        } else {
            rows += 1;
            (rows - 1, length as usize)
        };
        let left = free - need;
        if left > 0 {
            by_free[left].push(row);
            present[left / 64] |= 1 << (left % 64);
        }
        row_of.push(row);
    }
    (row_of, rows as usize)
}

/// The first set bit at or after `from`.
fn first_set(bits: &[u64], from: usize) -> Option<usize> {
    let mut word = from / 64;
    let mut rest = bits.get(word)? & (u64::MAX << (from % 64));
    while rest == 0 {
        word += 1;
        rest = *bits.get(word)?;
    }
    Some(word * 64 + rest.trailing_zeros() as usize)
}

fn counting_sort(
    pieces: &[Piece],
    keys: usize,
    key: impl Fn(usize, &Piece) -> usize,
) -> Vec<Piece> {
    let mut next = vec![0_usize; keys + 1];
    for (i, piece) in pieces.iter().enumerate() {
        next[key(i, piece) + 1] += 1;
    }
    for i in 0..keys {
        next[i + 1] += next[i];
    }
    let mut sorted = vec![Piece { start: 0, length: 0, continues: false }; pieces.len()];
    for (i, piece) in pieces.iter().enumerate() {
        let place = &mut next[key(i, piece)];
        sorted[*place] = *piece;
        *place += 1;
    }
    sorted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Piece, Plan};

    /// The textbook's form: every row is looked at.
    fn row_count(mut lengths: Vec<u32>, size: u32) -> usize {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let mut free: Vec<u32> = Vec::new();
        for length in lengths {
            match free.iter_mut().filter(|f| **f >= length).min() {
                Some(row) => *row -= length,
                None => free.push(size - length),
            }
        }
        free.len()
    }

    proptest! {
        #[test]
        fn every_token_stands_once(
            lengths in prop::collection::vec(1_u64..300, 0..80), size in 1_u32..150,
        ) {
            let mut at = 0;
            let documents: Vec<(u64, u64)> = lengths
                .iter()
                .map(|&length| {
                    at += length;
                    (at - length, length)
                })
                .collect();
            let plan = Plan::best_fit(documents.iter().copied(), size);
            let mut pieces: Vec<Piece> = Vec::new();
            for row in 0..plan.len() {
                let used: u32 = plan.row(row).iter().map(|p| p.length).sum();
                prop_assert!(used > 0 && used <= size);
                pieces.extend(plan.row(row));
            }
            prop_assert_eq!(plan.len(), row_count(pieces.iter().map(|p| p.length).collect(), size));
            pieces.sort_unstable_by_key(|p| p.start);
            let mut next = 0;
            for piece in pieces {
                prop_assert_eq!(piece.start, next);
                next += u64::from(piece.length);
                let whole = documents.iter().any(|(start, length)| start + length == next);
                prop_assert_eq!(piece.continues, !whole);
                prop_assert!(whole || piece.length == size);
            }
            prop_assert_eq!(next, at);
        }
    }
}
