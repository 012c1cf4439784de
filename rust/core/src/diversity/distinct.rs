//! Counting distinct things in bounded memory, by Wegman's adaptive sampling.

use rustc_hash::FxHashSet;

/// Most hashes held for one count: about 64 MB.
pub const LIMIT: usize = 1 << 22;

/// Counts distinct hashes: exactly up to a limit, above it from those that begin with enough zero
/// bits. Depends on the set of hashes alone, not on their order.
#[derive(Debug, Clone)]
pub struct Distinct {
    held: FxHashSet<u64>,
    zeros: u32,
    limit: usize,
}

impl Distinct {
    /// Holds at most `limit` hashes.
    pub fn new(limit: usize) -> Self {
        Self { held: FxHashSet::default(), zeros: 0, limit }
    }

    /// Adds well-mixed hashes.
    pub fn extend(&mut self, hashes: impl IntoIterator<Item = u64>) {
        for hash in hashes {
            if hash.leading_zeros() < self.zeros {
                continue;
            }
            self.held.insert(hash);
            while self.held.len() > self.limit {
                self.zeros += 1;
                self.held.retain(|held| held.leading_zeros() >= self.zeros);
            }
        }
    }

    /// How many distinct ones there were.
    pub fn count(&self) -> u64 {
        (self.held.len() as u64) << self.zeros
    }

    /// Whether [`Distinct::count`] is exact.
    pub fn is_exact(&self) -> bool {
        self.zeros == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    fn hashes(n: u64) -> impl Iterator<Item = u64> {
        (0..n).map(|i| xxh3_64(&i.to_le_bytes()))
    }

    #[test]
    fn exact_up_to_the_limit_and_close_beyond() {
        let mut exact = Distinct::new(1000);
        exact.extend(hashes(1000).chain(hashes(500)));
        assert_eq!((exact.count(), exact.is_exact()), (1000, true));

        let mut sampled = Distinct::new(4096);
        sampled.extend(hashes(100_000));
        assert!(!sampled.is_exact() && sampled.held.len() <= 4096);
        assert!((sampled.count() as f64 / 1e5 - 1.0).abs() < 0.08, "{}", sampled.count());

        let mut backwards = Distinct::new(4096);
        backwards.extend(hashes(100_000).collect::<Vec<_>>().into_iter().rev());
        assert_eq!(backwards.count(), sampled.count());
    }
}
