//! What a document looks like, as numbers: hashed token 1-2-grams and syntax ratios, and the forest
//! that turns them into a quality score. One core makes the features of 380 to 610 MB a second.
//!
//! The same text gives the same `f32` values whatever the thread count and whatever stands beside it.
//! Only the first [`MAX_BYTES`] of a text are looked at, in training and in scoring alike.

mod filter;
mod forest;
mod head;
mod keywords;
mod ratios;
mod scan;
mod syntax;
mod tally;
mod tokens;

pub use filter::{Filtered, Out, Rule, Scores, filter_unit};
pub use forest::{Forest, ForestHeader, SourceTrees};
pub(crate) use head::head;
pub use ratios::{DOCSTRING_SHARE, RATIO_NAMES};
pub use tally::{BINS, Example, Tally, excerpts, tally};
pub(crate) use tokens::is_word_byte;
pub use tokens::{lexemes, token_slots};

use rayon::prelude::*;

use crate::{Error, Result};

/// Bytes of a text that the features look at.
pub const MAX_BYTES: usize = 1 << 20;
/// Most hashed dimensions.
pub const MAX_DIMENSIONS: usize = 1 << 16;
/// Changes whenever the same text would give other numbers.
pub const VERSION: u32 = 4;

/// Columns of [`embed`]'s result for a number of hashed dimensions.
pub fn width(dimensions: usize) -> usize {
    dimensions + RATIO_NAMES.len()
}

/// The name of this embedding; a forest only scores features of the name it was trained on.
pub fn embedder_id(dimensions: usize) -> String {
    format!("hash-{dimensions}+syntax-{}/v{VERSION}", RATIO_NAMES.len())
}

/// Features of texts, row by row: `dimensions` hashed ones (unit length), then [`RATIO_NAMES`].
///
/// `parallel`: over texts, on all threads; the result is the same. Fails when `dimensions` is 0 or above
/// [`MAX_DIMENSIONS`].
pub fn embed<T: AsRef<str> + Sync>(
    texts: &[T],
    dimensions: usize,
    parallel: bool,
) -> Result<Vec<f32>> {
    if dimensions == 0 || dimensions > MAX_DIMENSIONS {
        return Err(Error::config(format!(
            "dimensions = {dimensions}: must lie between 1 and {MAX_DIMENSIONS}"
        )));
    }
    let width = width(dimensions);
    let mut features = vec![0.0; texts.len() * width];
    let fill = |scratch: &mut Vec<u32>, (row, text): (&mut [f32], &T)| {
        let text = head(text.as_ref());
        let (hashed, ratios) = row.split_at_mut(dimensions);
        ratios::fill(&scan::fill::<true>(text, hashed, scratch), text.len(), ratios);
    };
    if parallel {
        features.par_chunks_mut(width).zip(texts).for_each_init(Vec::new, fill);
    } else {
        let mut scratch = Vec::new();
        features.chunks_mut(width).zip(texts).for_each(|pair| fill(&mut scratch, pair));
    }
    Ok(features)
}

/// The hashed columns of [`embed`] alone, on this thread: what other hashing vectorizers make.
pub fn hashed<T: AsRef<str>>(texts: &[T], dimensions: usize) -> Vec<f32> {
    let mut features = vec![0.0; texts.len() * dimensions];
    let mut scratch = Vec::new();
    for (row, text) in features.chunks_mut(dimensions.max(1)).zip(texts) {
        scan::fill::<false>(head(text.as_ref()), row, &mut scratch);
    }
    features
}

/// The share of a text that is docstrings.
pub fn docstring_share(text: &str) -> f32 {
    let text = head(text);
    let mut row = [0.0; RATIO_NAMES.len()];
    ratios::fill(&scan::fill::<true>(text, &mut [0.0], &mut Vec::new()), text.len(), &mut row);
    row[DOCSTRING_SHARE]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_do_not_depend_on_their_neighbours_or_on_threads() {
        let texts: Vec<String> =
            (0..300).map(|i| format!("def f{i}(x):\n    return x + {i}\n")).collect();
        let all = embed(&texts, 64, true).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(all, pool.install(|| embed(&texts, 64, true)).unwrap());
        assert_eq!(all, embed(&texts, 64, false).unwrap());
        assert_eq!(all[5 * width(64)..6 * width(64)], embed(&texts[5..6], 64, false).unwrap());
    }

    #[test]
    fn senseless_dimensions_are_refused() {
        assert!(embed(&["x"], 0, false).is_err());
        assert!(embed(&["x"], MAX_DIMENSIONS + 1, false).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_text_gives_finite_numbers(text in "\\PC{0,200}|[\\x00-\\x7f\\n(:\"']{0,200}") {
            let row = embed(&[&text], 32, false).unwrap();
            prop_assert!(row.iter().all(|value| value.is_finite()));
            let norm: f32 = row[..32].iter().map(|value| value * value).sum();
            prop_assert!(norm == 0.0 || (norm - 1.0).abs() < 1e-4);
        }
    }
}
