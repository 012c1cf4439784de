//! Hashes of blocks, so that a file is checked where it is read, when it is first read.
//!
//! A part's `.xxh3` holds the xxh3-64 of every [`BLOCK`] bytes of its files; the manifest holds the
//! hash of that one. Each process hashes a block once (about 10 µs) and then trusts it.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::Mmap;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Error, Result};

/// Bytes that one hash covers.
pub const BLOCK: usize = 128 << 10;

/// The hash of each block; the last one may be short.
pub fn block_hashes(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks(BLOCK).map(xxh3_64)
}

/// How many blocks a file has.
pub fn block_count(bytes: u64) -> usize {
    bytes.div_ceil(BLOCK as u64) as usize
}

/// Hashes as the bytes of a `.xxh3` file.
pub fn hash_bytes_le(hashes: impl IntoIterator<Item = u64>) -> Vec<u8> {
    hashes.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The number that stands at `at`.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// A file in memory, every block of which is compared with its hash before it is first given out.
pub struct CheckedMap {
    path: PathBuf,
    map: Mmap,
    covered: usize,
    hashes: Vec<u64>,
    seen: Vec<AtomicBool>,
}

impl CheckedMap {
    /// Maps a file that must have `bytes` bytes; `hashes` are those of its first `covered`, and only
    /// those are given out.
    pub fn open(path: &Path, bytes: u64, covered: usize, hashes: Vec<u64>) -> Result<Self> {
        debug_assert_eq!(hashes.len(), block_count(covered as u64));
        let file = File::open(path).map_err(Error::io(path))?;
        let found = file.metadata().map_err(Error::io(path))?.len();
        if found != bytes {
            return Err(Error::input(
                path,
                format!(
                    "{found} bytes, but the manifest asks for {bytes}: torn or replaced; pack again"
                ),
            ));
        }
        // SAFETY: a finished stage's files are never written again by this package. Should anyone
        // else cut one short while it is mapped, the process stops with a bus error; no file API can
        // prevent that, and it is the price of sharing one page cache between a machine's ranks.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let seen = hashes.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self { path: path.to_path_buf(), map, covered, hashes, seen })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes `range`, checked.
    pub fn get(&self, range: Range<usize>) -> Result<&[u8]> {
        if range.end > self.covered || range.start > range.end {
            let message = format!("bytes {range:?} asked for, but it has {}", self.covered);
            return Err(Error::input(&self.path, message));
        }
        if range.is_empty() {
            return Ok(&[]);
        }
        for block in range.start / BLOCK..=(range.end - 1) / BLOCK {
            if !self.seen[block].load(Ordering::Relaxed) {
                self.check(block)?;
            }
        }
        Ok(&self.map[range])
    }

    /// The whole file, checked.
    pub fn all(&self) -> Result<&[u8]> {
        self.get(0..self.covered)
    }

    /// The number that stands at `at`.
    pub fn u64(&self, at: usize) -> Result<u64> {
        Ok(u64_at(self.get(at..at + 8)?, 0))
    }

    #[cold]
    fn check(&self, block: usize) -> Result<()> {
        let range = block * BLOCK..self.covered.min((block + 1) * BLOCK);
        if xxh3_64(&self.map[range.clone()]) != self.hashes[block] {
            return Err(Error::input(
                &self.path,
                format!(
                    "bytes {} to {} changed since they were written (hash differs): bring the \
                     file back, or make it again (a .plan: delete it)",
                    range.start, range.end
                ),
            ));
        }
        self.seen[block].store(true, Ordering::Relaxed);
        Ok(())
    }
}
