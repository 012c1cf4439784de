//! Decontamination: documents that hold a benchmark's text or a benchmark's solution go.
//!
//! Three rules, all with evidence. *N-gram*: the document shares a run of n words with an item's text
//! ([`ngrams`]). *AST*: some function of the document matches an item's reference function at the
//! threshold ([`tree`], [`matching`]). *Embedding*: the document's embedding lies within a distance of the
//! item's. The last two are one test of similarity, by either or by both for the same item.
//!
//! One pass: a batch is read, judged on all threads, and its kept rows are written. Memory is one batch,
//! the references, and a fixed report for each item. After each part a checkpoint is left, from which an
//! interrupted run goes on.

mod distance;
mod files;
pub mod matching;
pub mod ngrams;
pub mod report;
mod run;
pub mod tree;

pub use files::{Scan, scan_files};
pub use run::{Dropped, FIELDS, Summary, Tick, run};

use rayon::prelude::*;

use crate::{Error, Result};
use matching::{Prepared, References};
use ngrams::{GramSet, Hit, Shown, show};
use tree::{Function, Reading};

/// One problem of a benchmark.
#[derive(Debug, Clone)]
pub struct Item {
    /// What evidence calls it.
    pub name: String,
    /// A reference program; empty if there is none.
    pub program: String,
    /// The function of the program that solves the problem; every function if not named or not there.
    pub entry_point: Option<String>,
}

impl Item {
    /// The symbols of its reference functions.
    fn references(&self, reading: Reading) -> Vec<Vec<u64>> {
        let source = tree::read(&self.program, reading);
        let is_entry = |function: &Function| self.entry_point.as_ref() == Some(&function.name);
        let named = source.functions.iter().any(is_entry);
        (source.functions.iter())
            .filter(|function| !named || is_entry(function))
            .map(|function| source.symbols[function.range.clone()].to_vec())
            .collect()
    }
}

/// The AST rule.
#[derive(Debug, Clone)]
pub struct Syntax {
    /// Least rate that counts; none to look for neighbours and thresholds of the sweep only.
    pub threshold: Option<f64>,
    /// How trees are read.
    pub reading: Reading,
    /// Reference functions of fewer nodes are not used, whatever the reading.
    pub min_nodes: usize,
    /// Rates for which problems and documents are counted.
    pub sweep: Vec<f64>,
    /// How many nearest documents are kept for each item.
    pub nearest: usize,
}

/// Whether one of the tests of similarity is enough or both must hold for the same item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// One is enough.
    Or,
    /// Both must hold.
    And,
}

/// The embedding rule.
#[derive(Debug, Clone, Copy)]
pub struct Embedding {
    /// Largest distance that counts.
    pub threshold: f64,
    /// How many nearest documents are kept for each item.
    pub nearest: usize,
}

/// What to look for besides n-grams.
#[derive(Debug, Clone)]
pub struct Options {
    /// The AST rule, if wanted.
    pub syntax: Option<Syntax>,
    /// The embedding rule, if wanted.
    pub embedding: Option<Embedding>,
    /// How the two work together.
    pub combine: Combine,
}

/// Gives the distances of texts to the items, a row a text.
pub type Embed<'a> = dyn FnMut(&[&str]) -> Result<Vec<f32>> + 'a;

/// A document's best match with one item.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// The item.
    pub item: u32,
    /// The rate.
    pub rate: f64,
    /// The function's name and line.
    pub function: (String, usize),
}

/// Every reference function of some items, prepared.
#[derive(Debug)]
pub struct Index {
    references: References,
    reading: Reading,
    /// Symbols of each item's largest reference; 0 if it has none that is used.
    pub nodes: Vec<usize>,
}

/// A document's functions, ready to be compared with an [`Index`].
pub type Functions = Vec<(String, usize, Prepared)>;

impl Index {
    /// Of the references with at least `min_nodes` nodes.
    pub fn new(items: &[Item], reading: Reading, min_nodes: usize) -> Result<Self> {
        let plain = Reading { unit: tree::Unit::Node, ..Reading::default() };
        let mut sequences = Vec::new();
        let mut nodes = vec![0; items.len()];
        for ((number, item), most) in (0u32..).zip(items).zip(&mut nodes) {
            // The same functions in the same order, whatever the reading.
            for (plain, symbols) in item.references(plain).into_iter().zip(item.references(reading))
            {
                if plain.len() >= min_nodes {
                    *most = (*most).max(symbols.len());
                    sequences.push((number, symbols));
                }
            }
        }
        let references = References::new(sequences).ok_or_else(|| {
            Error::config(
                "the reference programs have 65,535 different symbols or more: strip names",
            )
        })?;
        Ok(Self { references, reading, nodes })
    }

    /// The functions of a document: of its text, and of each of its fenced blocks.
    pub fn functions(&self, text: &str) -> Functions {
        let mut found = Vec::new();
        for (line, sequence) in tree::document(text, self.reading) {
            for function in sequence.functions {
                let prepared = self.references.prepare(&sequence.symbols[function.range]);
                found.push((function.name, line + function.line, prepared));
            }
        }
        found
    }

    /// [`Index::functions`] of many texts, on `threads`.
    pub fn functions_of(&self, texts: &[&str], threads: Option<usize>) -> Result<Vec<Functions>> {
        let one = |text: &&str| self.functions(text);
        Ok(pool(threads)?.install(|| texts.par_iter().map(one).collect()))
    }

    /// [`Index::matches`] of many texts at one floor, on `threads`.
    pub fn matches_of(
        &self,
        texts: &[Functions],
        floor: f64,
        threads: Option<usize>,
    ) -> Result<Vec<Vec<Match>>> {
        let floors = vec![floor; self.nodes.len()];
        let one = |functions| self.matches(functions, &floors, floor);
        Ok(pool(threads)?.install(|| texts.par_iter().with_min_len(16).map(one).collect()))
    }

    /// For every item the best match of some functions, if at its floor or above; by item.
    ///
    /// `lowest` is the least of the floors.
    pub fn matches(&self, functions: &Functions, floors: &[f64], lowest: f64) -> Vec<Match> {
        let mut found: Vec<Match> = Vec::new();
        for (name, line, prepared) in functions {
            self.references.matches(prepared, floors, lowest, |item, rate| {
                match found.iter_mut().find(|known| known.item == item) {
                    Some(known) if known.rate >= rate => {}
                    Some(known) => {
                        known.rate = rate;
                        known.function = (name.clone(), *line);
                    }
                    None => found.push(Match { item, rate, function: (name.clone(), *line) }),
                }
            });
        }
        found.sort_by_key(|found| found.item);
        found
    }
}

/// What each text shares with each item, and how evidence shows it; on `threads`.
pub fn scan_texts(
    grams: &GramSet,
    texts: &[&str],
    threads: Option<usize>,
) -> Result<Vec<Vec<(Hit, Shown)>>> {
    let one = |text: &&str| {
        let shown = |hit| (show(text, &hit), hit);
        grams.scan(text).into_iter().map(shown).map(|(shown, hit)| (hit, shown)).collect()
    };
    Ok(pool(threads)?.install(|| texts.par_iter().with_min_len(16).map(one).collect()))
}

/// Judges texts on the current rayon pool: shared n-grams, and matches at the floors or above.
fn judge(
    texts: &[&str],
    grams: &GramSet,
    index: Option<&Index>,
    floors: &[f64],
) -> Vec<(Vec<Hit>, Vec<Match>)> {
    let lowest = floors.iter().copied().fold(1.0, f64::min);
    let one = |text: &&str| {
        let matches = index.map(|index| index.matches(&index.functions(text), floors, lowest));
        (grams.scan(text), matches.unwrap_or_default())
    };
    texts.par_iter().map(one).collect()
}

/// A pool of `threads`, or of as many as there are cores.
fn pool(threads: Option<usize>) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build()
        .map_err(|e| Error::config(format!("cannot start threads: {e}")))
}

/// The match rate of two sources: of all that stands in them, read the same way.
pub fn ast_match(a: &str, b: &str, reading: Reading) -> Result<f64> {
    matching::rate(&tree::read(a, reading).symbols, &tree::read(b, reading).symbols).ok_or_else(
        || Error::config("the source has 65,535 different symbols or more: strip names"),
    )
}
