//! Order without state: a shuffle that is computed, not stored, and a fixed proportion of sources.

/// A good mix of the bits of `x` (the finalizer of `SplitMix64`).
pub fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

const ROUNDS: u64 = 8;

/// A keyed permutation of `0..size`: a Feistel network over the next even power of two, walked until
/// it lands inside (at most 4 steps on average).
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    size: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    /// The permutation of `0..size` for a seed and an epoch.
    pub fn new(size: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - size.saturating_sub(1).leading_zeros();
        let key = mix(mix(seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_add(mix(epoch)));
        Self { size, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Where `index` goes; both are below `size`.
    pub fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.size);
        let mask = (1 << self.half_bits) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for round in 0..ROUNDS {
                let key = self.key.wrapping_add(round.wrapping_mul(0xD1B5_4A32_D192_ED03));
                (left, right) = (right, left ^ mix(key ^ right) & mask);
            }
            value = left << self.half_bits | right;
            if value < self.size {
                return value;
            }
        }
    }
}

/// Which source each sample comes from: a fixed pattern, in which source `i` has exactly its weight,
/// repeated for ever.
///
/// Tijdeman's rule for the chairman assignment problem ("The chairman assignment problem", 1980): of
/// the sources that are behind enough, the one that would be too late first. After any number of
/// samples each source has had its share to within less than one sample, which always taking the one
/// furthest behind does not promise.
#[derive(Debug, Clone)]
pub struct Schedule {
    weights: Vec<u64>,
    /// For each place of the pattern: the source, and how often it stood before.
    pattern: Vec<(u32, u64)>,
}

impl Schedule {
    /// The pattern for integer weights, whose sum is its length.
    pub fn new(weights: Vec<u64>) -> Self {
        let period: u64 = weights.iter().sum();
        let mut counts = vec![0_u64; weights.len()];
        let mut pattern = Vec::with_capacity(period as usize);
        // With shares w/p and n sources, Tijdeman's bound on the lag is 1 - 1/(2n - 2); all terms
        // below are multiplied by p (2n - 2) to stay whole.
        let scale = (2 * weights.len() as i128 - 2).max(1);
        let whole = i128::from(period) * scale;
        for place in 1..=i128::from(period) {
            let lag = |i: usize| {
                let due = place * i128::from(weights[i]) - i128::from(counts[i] * period);
                due * scale
            };
            let next = (0..weights.len())
                .filter(|&i| weights[i] > 0 && lag(i) >= i128::from(period))
                // (bound - lag) / weight, compared without division; the first of equal ones.
                .min_by(|&a, &b| {
                    let slack = |i: usize| whole - i128::from(period) - lag(i);
                    (slack(a) * i128::from(weights[b])).cmp(&(slack(b) * i128::from(weights[a])))
                })
                .expect("the lags sum to one sample, so one of them is large enough");
            pattern.push((next as u32, counts[next]));
            counts[next] += 1;
        }
        Self { weights, pattern }
    }

    /// How many of the first `number` samples come from each source.
    pub fn counts(&self, number: u64) -> Vec<u64> {
        let period = self.pattern.len() as u64;
        let mut counts: Vec<u64> = self.weights.iter().map(|w| number / period * w).collect();
        for (source, _) in &self.pattern[..(number % period) as usize] {
            counts[*source as usize] += 1;
        }
        counts
    }

    /// The source of sample `number`, and how many samples of that source came before.
    pub fn at(&self, number: u64) -> (usize, u64) {
        let period = self.pattern.len() as u64;
        let (source, before) = self.pattern[(number % period) as usize];
        let source = source as usize;
        (source, number / period * self.weights[source] + before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Permutation, Schedule};

    proptest! {
        #[test]
        fn every_index_once(size in 1_u64..3000, seed: u64, epoch: u64) {
            let permutation = Permutation::new(size, seed, epoch);
            let mut seen: Vec<u64> = (0..size).map(|i| permutation.at(i)).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..size));
        }

        #[test]
        fn a_schedule_keeps_its_proportions(weights in prop::collection::vec(1_u64..60, 1..9)) {
            let schedule = Schedule::new(weights.clone());
            let period: u64 = weights.iter().sum();
            let mut counts = vec![0; weights.len()];
            for number in 0..3 * period {
                let (source, before) = schedule.at(number);
                prop_assert_eq!(before, counts[source]);
                counts[source] += 1;
                let done = number + 1;
                prop_assert_eq!(&schedule.counts(done), &counts);
                for (count, weight) in counts.iter().zip(&weights) {
                    // |count - done * weight / period| < 1
                    prop_assert!((count * period).abs_diff(done * weight) < period);
                    prop_assert!(done % period > 0 || count * period == done * weight);
                }
            }
        }
    }

    #[test]
    fn large_sizes_and_different_keys() {
        let size = (1 << 40) + 7;
        let orders: Vec<Vec<u64>> = [(1, 0), (1, 1), (2, 0)]
            .map(|(seed, epoch)| Permutation::new(size, seed, epoch))
            .map(|p| (0..100).map(|i| p.at(i)).collect())
            .into();
        assert!(orders.iter().flatten().all(|&at| at < size));
        assert!(orders[0] != orders[1] && orders[0] != orders[2] && orders[1] != orders[2]);
    }
}
