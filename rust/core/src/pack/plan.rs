//! Best-fit decreasing: whole documents into rows of one length ("Fewer Truncations Improve Language
//! Modeling", 2404.10830). Longer documents are cut into full rows and a rest.
//!
//! Linear time: counting sort, and one stack of rows for each free length. Where that leaves more rows
//! than the tokens need, first-fit decreasing is tried as well and the better one kept: neither always
//! wins, so the plan is never worse than either. A plan is bytes in one layout, in memory and in its
//! file: 16 a piece and 8 a row, and while planning 24 a piece more.
//!
//! The file: magic, key, number of rows and of pieces; the first piece of each row, and the end; the
//! pieces (first token u64, length u32, whether the document goes on u32); the hashes of the blocks
//! so far; the hash of those and the first [`HEADER`] bytes. All little-endian.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::blocks::{CheckedMap, block_count, block_hashes, hash_bytes_le, u64_at};
use crate::{Error, Result};

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

const MAGIC: &[u8; 8] = b"HBPLAN1\n";
const HEADER: usize = 40;
const PIECE: usize = 16;

enum Bytes {
    Owned(Vec<u8>),
    Mapped(CheckedMap),
}

/// Rows of pieces.
pub struct Plan {
    bytes: Bytes,
    rows: usize,
}

impl Plan {
    /// Places documents, given as (start, length), into rows of `length` tokens.
    pub fn best_fit(documents: impl Iterator<Item = (u64, u64)>, length: u32) -> Self {
        Self::with_key(documents, length, 0)
    }

    fn with_key(documents: impl Iterator<Item = (u64, u64)>, length: u32, key: u128) -> Self {
        let mut pieces = Vec::new();
        let mut tokens_in_all = 0;
        for (start, tokens) in documents {
            tokens_in_all += tokens;
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
        let (mut row_of, mut rows) = best_fit(&pieces, length);
        if rows as u64 > tokens_in_all.div_ceil(u64::from(length))
            && let Some(better) = first_fit(&pieces, length, rows)
        {
            (row_of, rows) = better;
        }
        let pieces = counting_sort(&pieces, rows, |i, _| row_of[i] as usize);
        let mut starts = vec![0_u64; rows + 1];
        for &row in &row_of {
            starts[row as usize + 1] += 1;
        }
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        let mut bytes = Vec::with_capacity(HEADER + starts.len() * 8 + pieces.len() * PIECE);
        bytes.extend(MAGIC);
        bytes.extend(key.to_le_bytes());
        bytes.extend((rows as u64).to_le_bytes());
        bytes.extend((pieces.len() as u64).to_le_bytes());
        for start in starts {
            bytes.extend_from_slice(&start.to_le_bytes());
        }
        for piece in pieces {
            let mut record = [0; PIECE];
            record[..8].copy_from_slice(&piece.start.to_le_bytes());
            record[8..12].copy_from_slice(&piece.length.to_le_bytes());
            record[12] = u8::from(piece.continues);
            bytes.extend_from_slice(&record);
        }
        Self { bytes: Bytes::Owned(bytes), rows }
    }

    /// The plan in the file `path`, if it has this key; else a new one, written there if that can be.
    ///
    /// A folder that cannot be written to, or a damaged file, only costs the planning.
    pub fn open_or_make(
        path: &Path,
        key: u128,
        documents: impl Iterator<Item = Result<(u64, u64)>>,
        length: u32,
    ) -> Result<Self> {
        if let Some(plan) = Self::open(path, key) {
            return Ok(plan);
        }
        let mut failed = None;
        let sound = documents.map_while(|document| document.map_err(|e| failed = Some(e)).ok());
        let plan = Self::with_key(sound, length, key);
        if let Some(error) = failed {
            return Err(error);
        }
        let Bytes::Owned(bytes) = &plan.bytes else { unreachable!("just made") };
        Ok(save(path, bytes).ok().and_then(|()| Self::open(path, key)).unwrap_or(plan))
    }

    fn open(path: &Path, key: u128) -> Option<Self> {
        let size = std::fs::metadata(path).ok()?.len() as usize;
        let mut file = File::open(path).ok()?;
        let mut header = [0; HEADER];
        file.read_exact(&mut header).ok()?;
        let (rows, pieces) = (u64_at(&header, 24) as usize, u64_at(&header, 32) as usize);
        let payload = HEADER
            .checked_add(rows.checked_add(1)?.checked_mul(8)?)?
            .checked_add(pieces.checked_mul(PIECE)?)?;
        let hashed = block_count(payload as u64) * 8;
        if &header[..8] != MAGIC
            || header[8..24] != key.to_le_bytes()
            || payload.checked_add(hashed + 8)? != size
        {
            return None;
        }
        let mut trailer = vec![0; hashed + 8];
        file.seek(SeekFrom::Start(payload as u64)).ok()?;
        file.read_exact(&mut trailer).ok()?;
        if seal(&header, &trailer[..hashed]) != u64_at(&trailer, hashed) {
            return None;
        }
        let hashes = trailer[..hashed].chunks_exact(8).map(|hash| u64_at(hash, 0)).collect();
        let map = CheckedMap::open(path, size as u64, payload, hashes).ok()?;
        Some(Self { bytes: Bytes::Mapped(map), rows })
    }

    fn get(&self, at: usize, count: usize) -> Result<&[u8]> {
        match &self.bytes {
            Bytes::Owned(bytes) => Ok(&bytes[at..at + count]),
            Bytes::Mapped(map) => map.get(at..at + count),
        }
    }

    /// Rows in all.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The pieces of a row, in order.
    pub fn row(&self, row: usize) -> Result<impl Iterator<Item = Piece> + '_> {
        let bounds = self.get(HEADER + row * 8, 16)?;
        let (first, end) = (u64_at(bounds, 0) as usize, u64_at(bounds, 8) as usize);
        let at = HEADER + (self.rows + 1) * 8 + first * PIECE;
        let records = self.get(at, (end - first) * PIECE)?;
        Ok(records.chunks_exact(PIECE).map(|record| Piece {
            start: u64_at(record, 0),
            length: u32::from_le_bytes(record[8..12].try_into().expect("4 bytes")),
            continues: record[12] != 0,
        }))
    }
}

/// Binds the hashes of the blocks to the header.
fn seal(header: &[u8], hashes: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(header);
    hash.update(hashes);
    hash.digest()
}

/// Several processes may do this at once: each writes a file of its own, and their bytes are equal.
fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().expect("a plan lies in a folder");
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let hashes = hash_bytes_le(block_hashes(bytes));
    let mut file = File::create(&temporary).map_err(Error::io(&temporary))?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.write_all(&hashes))
        .and_then(|()| file.write_all(&seal(&bytes[..HEADER], &hashes).to_le_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(Error::io(path))
}

/// The row of each piece, and how many rows there are; pieces come longest first. Each goes into the
/// fullest row that holds it.
fn best_fit(pieces: &[Piece], length: u32) -> (Vec<u32>, usize) {
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

/// The same with the first row that holds the piece; `None` if that needs `limit` rows or more.
fn first_fit(pieces: &[Piece], length: u32, limit: usize) -> Option<(Vec<u32>, usize)> {
    const NONE: u32 = u32::MAX;
    let mut row_of = Vec::with_capacity(pieces.len());
    let mut rows = 0_u32;
    // Rows by free tokens, earliest first; a tree over the free lengths knows the earliest of a range.
    let mut by_free: Vec<BinaryHeap<Reverse<u32>>> = vec![BinaryHeap::new(); length as usize + 1];
    let leaves = (length as usize + 1).next_power_of_two();
    let mut tree = vec![NONE; 2 * leaves];
    let set = |tree: &mut [u32], free: usize, row: u32| {
        let mut node = leaves + free;
        tree[node] = row;
        while node > 1 {
            node /= 2;
            tree[node] = tree[2 * node].min(tree[2 * node + 1]);
        }
    };
    // Where the row with the earliest number stands, in free tokens; only its own leaf equals it.
    let earliest = |tree: &[u32], need: usize| -> Option<(u32, usize)> {
        let (mut best, mut top) = (NONE, 0);
        let (mut low, mut high) = (leaves + need, 2 * leaves);
        while low < high {
            if low % 2 == 1 {
                if tree[low] < best {
                    (best, top) = (tree[low], low);
                }
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                if tree[high] < best {
                    (best, top) = (tree[high], high);
                }
            }
            low /= 2;
            high /= 2;
        }
        while top != 0 && top < leaves {
            top = if tree[2 * top] == best { 2 * top } else { 2 * top + 1 };
        }
        (best != NONE).then(|| (best, top - leaves))
    };
    for piece in pieces {
        let need = piece.length as usize;
        let (row, free) = if let Some((row, free)) = earliest(&tree, need) {
            by_free[free].pop();
            let next = by_free[free].peek().map_or(NONE, |Reverse(row)| *row);
            set(&mut tree, free, next);
            (row, free)
        } else {
            rows += 1;
            if rows as usize >= limit {
                return None;
            }
            (rows - 1, length as usize)
        };
        let left = free - need;
        if left > 0 {
            by_free[left].push(Reverse(row));
            let Reverse(first) = *by_free[left].peek().expect("just pushed");
            set(&mut tree, left, first);
        }
        row_of.push(row);
    }
    Some((row_of, rows as usize))
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

    /// The textbook's forms: every row is looked at. (best fit, first fit)
    fn row_counts(mut lengths: Vec<u32>, size: u32) -> (usize, usize) {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let (mut best, mut first): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        for length in lengths {
            match best.iter_mut().filter(|free| **free >= length).min() {
                Some(row) => *row -= length,
                None => best.push(size - length),
            }
            match first.iter_mut().find(|free| **free >= length) {
                Some(row) => *row -= length,
                None => first.push(size - length),
            }
        }
        (best.len(), first.len())
    }

    fn documents(lengths: &[u64]) -> (Vec<(u64, u64)>, u64) {
        let mut at = 0;
        let place = |&length: &u64| {
            at += length;
            (at - length, length)
        };
        (lengths.iter().map(place).collect(), at)
    }

    fn pieces(plan: &Plan) -> Vec<Vec<Piece>> {
        (0..plan.len()).map(|row| plan.row(row).unwrap().collect()).collect()
    }

    fn check(lengths: &[u64], size: u32) -> Result<(), TestCaseError> {
        let (documents, tokens) = documents(lengths);
        let plan = Plan::best_fit(documents.iter().copied(), size);
        let rows = pieces(&plan);
        for row in &rows {
            let used: u32 = row.iter().map(|p| p.length).sum();
            prop_assert!(used > 0 && used <= size);
        }
        let mut pieces = rows.concat();
        let (best, first) = row_counts(pieces.iter().map(|p| p.length).collect(), size);
        prop_assert_eq!(plan.len(), best.min(first));
        pieces.sort_unstable_by_key(|p| p.start);
        let mut next = 0;
        for piece in pieces {
            prop_assert_eq!(piece.start, next);
            next += u64::from(piece.length);
            let whole = documents.iter().any(|(start, length)| start + length == next);
            prop_assert_eq!(piece.continues, !whole);
            prop_assert!(whole || piece.length == size);
        }
        prop_assert_eq!(next, tokens);
        Ok(())
    }

    proptest! {
        #[test]
        fn every_token_stands_once_in_no_more_rows_than_best_or_first_fit(
            lengths in prop::collection::vec(1_u64..300, 0..80), size in 1_u32..150,
        ) {
            check(&lengths, size)?;
        }
    }

    #[test]
    fn first_fit_is_taken_where_it_wins() {
        // Random lists with few rows, until both forms have been the better one.
        let (mut best_wins, mut first_wins) = (0, 0);
        let mut state = 1_u64;
        let mut random = |limit: u64| {
            state = super::super::order::mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
            state % limit
        };
        for _ in 0..40_000 {
            let count = 8 + random(12);
            let lengths: Vec<u64> = (0..count).map(|_| 5 + random(45)).collect();
            let (best, first) = row_counts(lengths.iter().map(|l| *l as u32).collect(), 100);
            if best != first {
                check(&lengths, 100).unwrap();
                best_wins += usize::from(best < first);
                first_wins += usize::from(first < best);
            }
        }
        assert!(best_wins > 0 && first_wins > 0, "{best_wins} {first_wins}");
    }

    #[test]
    fn a_saved_plan_is_the_same_and_a_damaged_one_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plans/a.plan");
        let (documents, _) = documents(&(1..30_000).map(|i| 1 + i % 97).collect::<Vec<_>>());
        let make =
            |key| Plan::open_or_make(&path, key, documents.iter().map(|d| Ok(*d)), 100).unwrap();
        let expected = pieces(&Plan::best_fit(documents.iter().copied(), 100));
        assert_eq!(pieces(&make(7)), expected);
        let saved = std::fs::read(&path).unwrap();
        let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(pieces(&make(7)), expected);
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), changed);
        assert_eq!(pieces(&make(8)), expected);
        assert_ne!(std::fs::read(&path).unwrap(), saved);
        for at in [0, 10, 30, saved.len() - 20, saved.len() - 1] {
            let mut bytes = saved.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(pieces(&make(7)), expected);
            assert_eq!(std::fs::read(&path).unwrap(), saved);
        }
        // Inside the pieces it is found where it is read.
        let mut bytes = saved.clone();
        bytes[saved.len() / 2] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let plan = make(7);
        assert!((0..plan.len()).any(|row| plan.row(row).is_err()));
    }
}
