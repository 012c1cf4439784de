//! Which references a function matches, and at what rate.
//!
//! The rate of two sequences is 1 - Levenshtein(a, b) / max(|a|, |b|): from 0 to 1. References lie sorted by
//! length, so that those too long or too short for the wanted rate are never touched; a histogram of 64
//! bytes each bounds the distance of the others by one sum of differences; bit vectors measure what is left.

use rustc_hash::FxHashMap;

use super::distance::Pattern;

/// Buckets of a histogram; symbols share them, which only loosens the bound.
const BUCKETS: usize = 64;
type Histogram = [u8; BUCKETS];

/// Symbols below this have a table of their own: every node kind and every ASCII character.
const SMALL: usize = 512;

/// References to compare with, prepared.
#[derive(Debug)]
pub struct References {
    small: Vec<u16>,
    large: FxHashMap<u64, u16>,
    /// By length.
    lengths: Vec<u32>,
    histograms: Vec<Histogram>,
    patterns: Vec<Pattern>,
    items: Vec<u32>,
}

/// A sequence in the references' own numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    symbols: Vec<u16>,
    histogram: Histogram,
}

impl References {
    /// Prepares the sequences of `(item, symbols)`; none if they have 65,535 different symbols or more.
    pub fn new(mut sequences: Vec<(u32, Vec<u64>)>) -> Option<Self> {
        sequences.sort_by_key(|(_, symbols)| symbols.len());
        let mut numbers: FxHashMap<u64, u16> = FxHashMap::default();
        for symbol in sequences.iter().flat_map(|(_, symbols)| symbols) {
            // 0 is any symbol that no reference has.
            let next = u16::try_from(numbers.len() + 1).ok()?;
            numbers.entry(*symbol).or_insert(next);
        }
        let count = numbers.len() + 1;
        let (small, large): (Vec<_>, Vec<_>) =
            numbers.into_iter().partition(|(symbol, _)| *symbol < SMALL as u64);
        let mut references = Self {
            small: vec![0; SMALL],
            large: large.into_iter().collect(),
            lengths: sequences.iter().map(|(_, symbols)| symbols.len() as u32).collect(),
            histograms: Vec::with_capacity(sequences.len()),
            patterns: Vec::with_capacity(sequences.len()),
            items: sequences.iter().map(|(item, _)| *item).collect(),
        };
        for (symbol, number) in small {
            references.small[symbol as usize] = number;
        }
        for (_, symbols) in &sequences {
            let prepared = references.prepare(symbols);
            references.histograms.push(prepared.histogram);
            references.patterns.push(Pattern::new(&prepared.symbols, count));
        }
        Some(references)
    }

    /// A sequence, ready to be compared.
    pub fn prepare(&self, symbols: &[u64]) -> Prepared {
        let number = |symbol: &u64| match self.small.get(*symbol as usize) {
            Some(number) => *number,
            None => self.large.get(symbol).copied().unwrap_or(0),
        };
        let symbols: Vec<u16> = symbols.iter().map(number).collect();
        let mut histogram = [0u8; BUCKETS];
        for symbol in &symbols {
            let bucket = &mut histogram[usize::from(*symbol) % BUCKETS];
            // Cut off at 255, which only loosens the bound.
            *bucket = bucket.saturating_add(1);
        }
        Prepared { symbols, histogram }
    }

    /// Calls `each(item, rate)` for every reference that matches at its item's floor or above.
    ///
    /// `lowest` is the least of the floors.
    pub fn matches(
        &self,
        function: &Prepared,
        floors: &[f64],
        lowest: f64,
        mut each: impl FnMut(u32, f64),
    ) {
        let length = function.symbols.len();
        // A little room for rounding: `rate_within` decides.
        let least = (length as f64 * lowest - 1e-6).ceil().max(0.0) as u32;
        let start = self.lengths.partition_point(|other| *other < least);
        for place in start..self.lengths.len() {
            let other = self.lengths[place] as usize;
            let longest = length.max(other);
            if other > length && (other as f64) * lowest > length as f64 + 1e-6 {
                break;
            }
            let floor = floors[self.items[place] as usize];
            let differences: u32 = (self.histograms[place].iter().zip(&function.histogram))
                .map(|(a, b)| u32::from(a.abs_diff(*b)))
                .sum();
            let at_least = (length.abs_diff(other) + differences as usize).div_ceil(2);
            if (at_least as f64) > (1.0 - floor) * longest as f64 + 1e-6 {
                continue;
            }
            if let Some(rate) =
                rate_at_least(&self.patterns[place], other, &function.symbols, floor)
            {
                each(self.items[place], rate);
            }
        }
    }
}

fn rate_at_least(a: &Pattern, length: usize, b: &[u16], floor: f64) -> Option<f64> {
    let longest = length.max(b.len());
    if longest == 0 {
        return Some(1.0);
    }
    let rate = |distance: usize| 1.0 - distance as f64 / longest as f64;
    // The largest distance that still has this rate, by the same arithmetic as the rate.
    let mut limit = (((1.0 - floor) * longest as f64) as usize + 1).min(longest);
    while limit > 0 && rate(limit) < floor {
        limit -= 1;
    }
    a.distance_within(b, limit).map(rate).filter(|rate| *rate >= floor)
}

/// The rate of two sequences; none if the first has 65,535 different symbols or more.
pub fn rate(a: &[u64], b: &[u64]) -> Option<f64> {
    let references = References::new(vec![(0, a.to_vec())])?;
    let mut found = 0.0;
    references.matches(&references.prepare(b), &[0.0], 0.0, |_, rate| found = rate);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// The rate by the whole table.
    fn plain_rate(a: &[u64], b: &[u64]) -> f64 {
        let longest = a.len().max(b.len());
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.iter().enumerate() {
            let mut diagonal = i;
            row[0] = i + 1;
            for (j, y) in b.iter().enumerate() {
                let cell = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
                diagonal = std::mem::replace(&mut row[j + 1], cell);
            }
        }
        if longest == 0 { 1.0 } else { 1.0 - row[b.len()] as f64 / longest as f64 }
    }

    #[test]
    fn empty_and_strange_sequences() {
        let text = 1 << 63 | 5;
        assert_eq!(rate(&[], &[]), Some(1.0));
        assert_eq!(rate(&[1, 2], &[]), Some(0.0));
        assert_eq!(rate(&[], &[1, 2]), Some(0.0));
        assert_eq!(rate(&[1, text], &[1, text]), Some(1.0));
        assert_eq!(rate(&vec![7; 3000], &vec![7; 1500]), Some(0.5));
        assert_eq!(rate(&(0..70_000).collect::<Vec<_>>(), &[]), None);
    }

    proptest! {
        /// Sorting, bounds and cut-offs never change the answer.
        #[test]
        fn agrees_with_the_plain_rate(
            references in vec(vec(0u64..70, 0..90), 1..8), function in vec(0u64..70, 0..90),
            copied in any::<bool>(), floors in vec(0.0f64..=1.0, 8)
        ) {
            let function = if copied {
                let mut near = references[0].clone();
                near.splice(0..near.len().min(3), function.into_iter().take(4));
                near
            } else { function };
            let numbered = (0..).zip(references.iter().cloned()).collect();
            let prepared = References::new(numbered).unwrap();
            let mut found = Vec::new();
            let lowest = floors.iter().copied().fold(1.0, f64::min);
            prepared.matches(&prepared.prepare(&function), &floors, lowest, |item, rate| found.push((item, rate)));
            found.sort_by_key(|(item, _)| *item);
            let expected: Vec<(u32, f64)> = (0..).zip(&references)
                .map(|(item, reference)| (item, plain_rate(reference, &function)))
                .filter(|(item, rate)| *rate >= floors[*item as usize])
                .collect();
            prop_assert_eq!(&found, &expected);
            for (item, rate) in expected {
                let mut exact = floors.clone();
                exact[item as usize] = rate;
                let mut again = None;
                let each = |found, rate| if found == item { again = Some(rate); };
                prepared.matches(&prepared.prepare(&function), &exact, lowest, each);
                prop_assert_eq!(again, Some(rate), "a floor that is the rate itself");
            }
        }
    }
}
