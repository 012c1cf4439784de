//! What a run finds, by problem and by threshold.

use serde::{Deserialize, Serialize};

/// A document near a problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The document's id.
    pub id: String,
    /// Its row among the usable ones, from 0.
    pub row: u64,
    /// The best match rate of its functions, or the distance of its embedding.
    pub value: f64,
    /// The function that matches, and its line (of rates).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<(String, usize)>,
    /// Whether the document was removed (for whatever reason).
    pub removed: bool,
}

/// What was found about one problem.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ItemReport {
    /// The problem's name.
    pub item: String,
    /// Its n-grams; without one it cannot be found by them.
    pub ngrams: u32,
    /// Symbols of its largest reference function; 0 if the AST rule has none for it.
    pub nodes: usize,
    /// Documents that share an n-gram.
    pub by_ngram: u64,
    /// Documents with a function at the AST threshold or above.
    pub by_ast: u64,
    /// Documents at the embedding threshold or nearer.
    pub by_embedding: u64,
    /// Removed documents that this problem gave a reason for.
    pub removed: u64,
    /// Documents with the best match rates, best first; of equals the first in the corpus.
    pub nearest: Vec<Neighbour>,
    /// Documents with the nearest embeddings, nearest first.
    pub nearest_embedding: Vec<Neighbour>,
    /// Which thresholds of the sweep make it similar to some document.
    #[serde(default, skip_serializing)]
    pub similar: Vec<bool>,
}

/// One row of the paper's table of thresholds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepRow {
    /// The AST match rate.
    pub tau: f64,
    /// Problems with a similar document.
    pub similar: u64,
    /// The other problems.
    pub non_similar: u64,
    /// Documents similar to some problem: what pruning at this rate takes.
    pub documents: u64,
}

/// Where `value` belongs in a list that is sorted best first, if among its first `most`.
pub fn place(list: &[Neighbour], most: usize, better: impl Fn(f64) -> bool) -> Option<usize> {
    let place = list.partition_point(|known| !better(known.value));
    (place < most).then_some(place)
}

/// Puts a neighbour among the `most` best.
pub fn keep_best(
    list: &mut Vec<Neighbour>,
    most: usize,
    better: impl Fn(f64) -> bool,
    make: impl FnOnce() -> Neighbour,
) {
    if let Some(place) = place(list, most, better) {
        list.truncate(most - 1);
        list.insert(place, make());
    }
}
