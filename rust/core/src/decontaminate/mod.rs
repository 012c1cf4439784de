//! Decontamination: documents that hold a benchmark's text or a benchmark's solution go.
//!
//! Two rules, both with evidence. *N-gram*: the document shares a run of n words with an item's
//! prompt or solution. *AST*: some function of the document matches an item's reference function at
//! the threshold (see [`tree`]). The n-gram sees copied text and misses renamed code; the AST sees
//! code whatever its names and misses text.
//!
//! References of fewer than `min_nodes` nodes are left out of the AST rule: `return a + b` matches half
//! of the world. Cost: two reads of the input; memory one batch, the index and the evidence.

mod distance;
mod ngrams;
pub mod tree;

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::corpus::{self, Corpus, Part, Reject};
use crate::dedup::{changed, write_evidence};
use crate::{Error, Result};
use ngrams::Index;
use tree::{Shape, document_shapes, function_shapes};

/// One problem of a benchmark.
#[derive(Debug, Clone)]
pub struct Item {
    /// What evidence calls it.
    pub name: String,
    /// What the n-gram rule looks for, each on its own.
    pub texts: Vec<String>,
    /// A reference program.
    pub program: String,
    /// The function of the program that solves the problem; every function if not named or not there.
    pub entry_point: Option<String>,
}

impl Item {
    fn references(&self) -> Vec<Shape> {
        let functions = function_shapes(&self.program);
        let is_entry = |name: &str| self.entry_point.as_deref() == Some(name);
        let named = functions.iter().any(|(name, _)| is_entry(name));
        functions
            .into_iter()
            .filter(|(name, _)| !named || is_entry(name))
            .map(|(_, shape)| shape)
            .collect()
    }
}

/// What to look for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Words in an n-gram.
    pub ngram: usize,
    /// Least match rate of the AST rule; without it only n-grams count.
    pub ast_threshold: Option<f64>,
    /// References of fewer nodes are not used.
    pub min_nodes: usize,
    /// Texts whose n-grams never count, such as licences.
    pub ignore: Vec<String>,
}

/// What a run did.
#[derive(Debug)]
pub struct Summary {
    /// Files of kept rows.
    pub parts: Vec<Part>,
    /// `evidence/removed.json`: one JSON object a document, item and rule.
    pub evidence: Part,
    /// Usable rows read.
    pub rows: u64,
    /// Rows removed for an n-gram.
    pub ngram: u64,
    /// Other rows removed for a function.
    pub ast: u64,
    /// Rows set aside.
    pub rejects: Vec<Reject>,
    /// Distinct n-grams of the benchmarks.
    pub ngrams: u64,
    /// Items too short to have one: the n-gram rule cannot see them.
    pub items_without_ngram: u64,
    /// Items without a large enough reference function: the AST rule cannot see them.
    pub items_without_reference: u64,
}

#[derive(Serialize)]
struct Evidence<'a> {
    id: &'a str,
    row: u64,
    item: &'a str,
    rule: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ngram: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
}

/// Copies a corpus without the documents that resemble `items` into `out`, on the current rayon pool.
pub fn run(corpus: &Corpus, out: &Path, items: &[Item], options: &Options) -> Result<Summary> {
    let index =
        Index::new(options.ngram, items.iter().map(|item| item.texts.as_slice()), &options.ignore);
    let references: Vec<(u32, Shape)> = (0..)
        .zip(items)
        .flat_map(|(at, item)| item.references().into_iter().map(move |shape| (at, shape)))
        .filter(|(_, shape)| shape.nodes() >= options.min_nodes)
        .collect();
    let mut lines = Vec::new();
    let mut evidence_rows = 0;
    let mut dropped = Vec::new();
    let (mut ngram, mut ast) = (0, 0);
    for batch in corpus.batches() {
        let batch = batch?;
        let (ids, texts) = (corpus::ids(&batch), corpus::texts(&batch));
        let found: Vec<_> = (0..batch.num_rows())
            .into_par_iter()
            .map(|i| {
                let function = options
                    .ast_threshold
                    .and_then(|floor| best_reference(texts.value(i), &references, floor));
                (index.scan(texts.value(i)), function)
            })
            .collect();
        for (i, (grams, function)) in found.into_iter().enumerate() {
            let row = dropped.len() as u64;
            let base = |item: u32, rule| Evidence {
                id: ids.value(i),
                row,
                item: &items[item as usize].name,
                rule,
                ngram: None,
                rate: None,
            };
            let by_gram = grams
                .iter()
                .map(|(item, gram)| Evidence { ngram: Some(gram), ..base(*item, "ngram") });
            let by_tree = function
                .iter()
                .map(|(item, rate)| Evidence { rate: Some(*rate), ..base(*item, "ast") });
            for evidence in by_gram.chain(by_tree) {
                serde_json::to_writer(&mut lines, &evidence)
                    .map_err(|e| Error::config(e.to_string()))?;
                lines.push(b'\n');
                evidence_rows += 1;
            }
            ngram += u64::from(!grams.is_empty());
            ast += u64::from(grams.is_empty() && function.is_some());
            dropped.push(!grams.is_empty() || function.is_some());
        }
    }
    let (parts, rejects) =
        corpus::select(corpus, out, |row| dropped.get(row as usize).is_some_and(|gone| !gone))?;
    if parts.iter().map(|part| part.rows).sum::<u64>() + ngram + ast != dropped.len() as u64 {
        return Err(changed(corpus));
    }
    let without = |seen: Vec<bool>| seen.iter().filter(|seen| !**seen).count() as u64;
    let mut referenced = vec![false; items.len()];
    for (item, _) in &references {
        referenced[*item as usize] = true;
    }
    Ok(Summary {
        parts,
        evidence: write_evidence(out, &lines, evidence_rows)?,
        rows: dropped.len() as u64,
        ngram,
        ast,
        rejects,
        ngrams: index.len() as u64,
        items_without_ngram: without(index.covered(items.len())),
        items_without_reference: without(referenced),
    })
}

/// The reference that some function of a text matches best, if at `floor` or above; of equals the first.
fn best_reference(text: &str, references: &[(u32, Shape)], floor: f64) -> Option<(u32, f64)> {
    let shapes = document_shapes(text);
    let mut best: Option<(u32, f64)> = None;
    for (item, reference) in references {
        for shape in &shapes {
            let floor = best.map_or(floor, |(_, rate)| rate);
            if let Some(rate) = shape.match_at_least(reference, floor)
                && best.is_none_or(|(_, best)| rate > best)
            {
                best = Some((*item, rate));
            }
        }
    }
    best
}

/// How close a corpus comes to one item.
#[derive(Debug, Clone, PartialEq)]
pub struct Similarity {
    /// The item's name.
    pub name: String,
    /// The best match rate of any function of any document; 0 if there is none.
    pub rate: f64,
    /// The document it stands in; of equals the first.
    pub id: Option<String>,
    /// Nodes of the item's largest reference: small ones match by chance.
    pub nodes: usize,
}

/// Documents that are searched before the rates found are used as bounds for the next ones.
const CHUNK: usize = 64;

/// For every item, the best AST match rate over all functions of all documents.
pub fn similarity(corpus: &Corpus, items: &[Item]) -> Result<Vec<Similarity>> {
    let references: Vec<Vec<Shape>> = items.iter().map(Item::references).collect();
    let mut best: Vec<Similarity> = items
        .iter()
        .zip(&references)
        .map(|(item, references)| Similarity {
            name: item.name.clone(),
            rate: 0.0,
            id: None,
            nodes: references.iter().map(Shape::nodes).max().unwrap_or(0),
        })
        .collect();
    for batch in corpus.batches() {
        let batch = batch?;
        let (ids, texts) = (corpus::ids(&batch), corpus::texts(&batch));
        for start in (0..batch.num_rows()).step_by(CHUNK) {
            let rows = start..(start + CHUNK).min(batch.num_rows());
            let found: Vec<Vec<(usize, f64)>> = rows
                .clone()
                .into_par_iter()
                .map(|i| better(&document_shapes(texts.value(i)), &references, &best))
                .collect();
            for (i, found) in rows.zip(found) {
                for (item, rate) in found {
                    if rate > best[item].rate {
                        best[item].rate = rate;
                        best[item].id = Some(ids.value(i).to_owned());
                    }
                }
            }
        }
    }
    Ok(best)
}

/// The items that some shape matches better than the best so far, with the rate.
fn better(shapes: &[Shape], references: &[Vec<Shape>], best: &[Similarity]) -> Vec<(usize, f64)> {
    let mut found = Vec::new();
    for (item, (references, best)) in references.iter().zip(best).enumerate() {
        let mut highest = best.rate;
        for shape in shapes {
            for reference in references {
                if let Some(rate) = shape.match_at_least(reference, highest) {
                    highest = rate;
                }
            }
        }
        if highest > best.rate {
            found.push((item, highest));
        }
    }
    found
}

/// The match rate of two sources: of their whole shapes, docstrings and comments left out.
pub fn ast_match(a: &str, b: &str) -> f64 {
    let rate = tree::source_shape(a).match_at_least(&tree::source_shape(b), 0.0);
    rate.unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(entry_point: Option<&str>) -> Item {
        let program =
            "def helper(x):\n    return x\n\ndef main(y):\n    return [helper(v) for v in y]\n";
        Item {
            name: "t/0".to_owned(),
            texts: vec![],
            program: program.to_owned(),
            entry_point: entry_point.map(str::to_owned),
        }
    }

    #[test]
    fn the_entry_point_is_the_reference_where_it_is_known() {
        assert_eq!(item(None).references().len(), 2);
        assert_eq!(item(Some("gone")).references().len(), 2);
        let named = item(Some("main")).references();
        assert_eq!(named, [function_shapes(&item(None).program)[1].1.clone()]);
    }

    #[test]
    fn the_best_reference_wins_and_the_floor_holds() {
        let references: Vec<(u32, Shape)> = (0..).zip(item(None).references()).collect();
        let text = "def renamed(z):\n    return [other(w) for w in z]\n";
        assert_eq!(best_reference(text, &references, 0.5), Some((1, 1.0)));
        let other = "def renamed(z):\n    return {other(w): 1 for w in z if w}\n";
        assert_eq!(best_reference(other, &references, 0.95), None);
        assert!(best_reference(other, &references, 0.5).is_some_and(|(_, rate)| rate < 1.0));
    }
}
