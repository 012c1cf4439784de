//! Deduplication: exact copies by hash, near copies by `MinHash` candidates verified one by one.
//!
//! Guarantees: a document is removed only if a *kept* document has the same text (xxh3-128) or a true
//! Jaccard similarity of word n-grams of at least the threshold; the evidence names it. The result
//! depends on the documents, their order and the options, never on the number of threads. Documents
//! of fewer than n words have no n-gram and are only compared as whole texts.
//!
//! Cost: two reads of the input for exact copies, three for near ones; per document about
//! 150 + 8 * bands bytes of memory, and 8 bytes a distinct n-gram for the documents that share a band
//! with another.

mod greedy;
mod minhash;
pub mod words;

use std::path::Path;

use arrow::array::RecordBatch;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use crate::corpus::{self, Corpus, Part, Reject};
use crate::{Error, Result};
use minhash::Sketcher;

/// Which of several similar documents stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The one with the most bytes of text; of equals the first.
    Longest,
    /// The first in input order.
    First,
}

/// How near copies are found.
#[derive(Debug, Clone, PartialEq)]
pub struct Near {
    /// Least Jaccard similarity of a removed document to a kept one.
    pub threshold: f64,
    /// Words in a shingle.
    pub ngram: usize,
    /// What stays.
    pub keep: Keep,
    /// Bands of the signature.
    pub bands: usize,
    /// Values in a band.
    pub rows: usize,
    /// Decides the hash functions.
    pub seed: u64,
}

/// What a run did.
#[derive(Debug)]
pub struct Summary {
    /// Files of kept rows.
    pub parts: Vec<Part>,
    /// `evidence/removed.json`: one JSON object a removed row.
    pub evidence: Part,
    /// Usable rows read.
    pub rows: u64,
    /// Rows that are a copy of an earlier row's text.
    pub exact: u64,
    /// Other rows removed for their similarity to a kept one.
    pub near: u64,
    /// Rows with a text of their own but too few words for an n-gram.
    pub short: u64,
    /// Pairs whose true similarity was computed.
    pub compared: u64,
    /// Rows set aside.
    pub rejects: Vec<Reject>,
}

/// Runs work on a rayon pool of its own: of `threads`, or of as many as there are cores.
pub fn on_threads<T: Send>(
    threads: Option<usize>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build()
        .map_err(|e| Error::config(format!("cannot start threads: {e}")))?
        .install(work)
}

/// The chance that a pair right at the threshold becomes a candidate.
pub fn expected_recall(near: &Near) -> f64 {
    minhash::recall(near.threshold, near.bands, near.rows)
}

struct Documents {
    ids: Vec<Box<str>>,
    lengths: Vec<u32>,
    /// The first row with the same text: its own number if there is none before.
    first: Vec<u32>,
    /// Rows that have a signature.
    signed: Vec<u32>,
    /// `bands` keys for each of them.
    keys: Vec<u64>,
}

/// Copies a corpus without its duplicates into `out`; `near: None` looks for exact copies only.
///
/// Runs on the current rayon pool.
pub fn run(corpus: &Corpus, out: &Path, near: Option<&Near>) -> Result<Summary> {
    let documents = read(corpus, near)?;
    let count = documents.ids.len();
    let mut removed: Vec<Option<(u32, f64)>> = vec![None; count];
    let mut compared = 0;
    if let Some(near) = near {
        compared = find_near(corpus, &documents, near, &mut removed)?;
    }
    let mut lines = Vec::new();
    let (mut exact, mut near_copies) = (0, 0);
    for row in 0..count {
        let first = documents.first[row] as usize;
        let rule = if first == row { "near" } else { "exact" };
        // A copy of a removed document goes against the same kept one as that document.
        let against = removed[first].or((first != row).then_some((first as u32, 1.0)));
        removed[row] = against;
        let Some((kept, jaccard)) = against else {
            continue;
        };
        if first == row {
            near_copies += 1;
        } else {
            exact += 1;
        }
        let evidence = Evidence {
            removed_id: &documents.ids[row],
            removed_row: row as u64,
            kept_id: &documents.ids[kept as usize],
            kept_row: u64::from(kept),
            jaccard,
            rule,
        };
        serde_json::to_writer(&mut lines, &evidence).map_err(|e| Error::config(e.to_string()))?;
        lines.push(b'\n');
    }
    let (parts, rejects) =
        corpus::select(corpus, out, |row| removed.get(row as usize).is_some_and(Option::is_none))?;
    if parts.iter().map(|part| part.rows).sum::<u64>() + exact + near_copies != count as u64 {
        return Err(changed(corpus));
    }
    let distinct = (0..count).filter(|row| documents.first[*row] as usize == *row).count();
    Ok(Summary {
        parts,
        evidence: write_evidence(out, &lines, exact + near_copies)?,
        rows: count as u64,
        exact,
        near: near_copies,
        short: if near.is_some() { (distinct - documents.signed.len()) as u64 } else { 0 },
        compared,
        rejects,
    })
}

#[derive(Serialize)]
struct Evidence<'a> {
    removed_id: &'a str,
    removed_row: u64,
    kept_id: &'a str,
    kept_row: u64,
    jaccard: f64,
    rule: &'static str,
}

/// Writes `rows` JSON objects to `evidence/removed.json`, which readers of the folder pass over.
pub(crate) fn write_evidence(out: &Path, lines: &[u8], rows: u64) -> Result<Part> {
    let folder = out.join("evidence");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let part = corpus::write_whole(&folder.join("removed.json"), lines)?;
    Ok(Part { name: format!("evidence/{}", part.name), rows, ..part })
}

/// The error of an input whose rows are not those of the pass before.
pub(crate) fn changed(corpus: &Corpus) -> Error {
    let path = corpus.files().next().unwrap_or(Path::new(""));
    Error::input(path, "this input or one after it changed while it was being read; run it again")
}

/// First pass: ids, exact copies, and the signatures of the rest.
fn read(corpus: &Corpus, near: Option<&Near>) -> Result<Documents> {
    let sketcher = near.map(|near| Sketcher::new(near.bands, near.rows, near.seed));
    let mut documents = Documents {
        ids: Vec::new(),
        lengths: Vec::new(),
        first: Vec::new(),
        signed: Vec::new(),
        keys: Vec::new(),
    };
    let mut seen: FxHashMap<u128, u32> = FxHashMap::default();
    for batch in corpus.batches() {
        let batch = batch?;
        let (ids, texts) = (corpus::ids(&batch), corpus::texts(&batch));
        let start = documents.ids.len();
        if start + batch.num_rows() > u32::MAX as usize {
            return Err(Error::config("more than 2^32 - 1 rows: split the input"));
        }
        for (i, hash) in text_hashes(&batch).into_iter().enumerate() {
            let row = (start + i) as u32;
            documents.ids.push(ids.value(i).into());
            documents.lengths.push(texts.value_length(i) as u32);
            documents.first.push(*seen.entry(hash).or_insert(row));
        }
        let (Some(near), Some(sketcher)) = (near, &sketcher) else {
            continue;
        };
        let signed: Vec<(u32, Vec<u64>)> = (0..batch.num_rows())
            .into_par_iter()
            .filter(|i| documents.first[start + i] as usize == start + i)
            .filter_map(|i| {
                let words = words::word_hashes(texts.value(i));
                (words.len() >= near.ngram).then(|| {
                    let grams = words::gram_hashes(&words, near.ngram);
                    ((start + i) as u32, sketcher.band_keys(grams))
                })
            })
            .collect();
        for (row, keys) in signed {
            documents.signed.push(row);
            documents.keys.extend(keys);
        }
    }
    Ok(documents)
}

fn text_hashes(batch: &RecordBatch) -> Vec<u128> {
    let texts = corpus::texts(batch);
    (0..batch.num_rows()).into_par_iter().map(|i| xxh3_128(texts.value(i).as_bytes())).collect()
}

/// Second pass: reads the candidates again, verifies and decides; returns the pairs compared.
fn find_near(
    corpus: &Corpus,
    documents: &Documents,
    near: &Near,
    removed: &mut [Option<(u32, f64)>],
) -> Result<u64> {
    let mut order: Vec<u32> = (0..documents.signed.len() as u32).collect();
    if near.keep == Keep::Longest {
        let length = |place: u32| documents.lengths[documents.signed[place as usize] as usize];
        order.sort_by_key(|place| std::cmp::Reverse(length(*place)));
    }
    let mut members = minhash::shared_bands(&documents.keys, near.bands, &order);
    // From here on only documents that share a band count: number those, still in keep order.
    let mut rows: Vec<u32> = Vec::new();
    let mut last = None;
    for (rank, _) in &mut members {
        if last.replace(*rank) != Some(*rank) {
            rows.push(documents.signed[order[*rank as usize] as usize]);
        }
        *rank = rows.len() as u32 - 1;
    }
    let rank_of: FxHashMap<u32, u32> = rows.iter().copied().zip(0..).collect();
    let mut shingles: Vec<Vec<u64>> = vec![Vec::new(); rows.len()];
    if !rows.is_empty() {
        let mut start = 0;
        for batch in corpus.batches() {
            let batch = batch?;
            let texts = corpus::texts(&batch);
            let found: Vec<(u32, Vec<u64>)> = (0..batch.num_rows())
                .into_par_iter()
                .filter_map(|i| {
                    let rank = rank_of.get(&((start + i) as u32))?;
                    Some((*rank, words::shingles(texts.value(i), near.ngram)))
                })
                .collect();
            for (rank, set) in found {
                shingles[rank as usize] = set;
            }
            start += batch.num_rows();
        }
        if start != documents.ids.len() {
            return Err(changed(corpus));
        }
    }
    let decision = greedy::decide(&members, &shingles, near.threshold);
    for (row, found) in rows.iter().zip(decision.removed) {
        removed[*row as usize] = found.map(|(kept, jaccard)| (rows[kept as usize], jaccard));
    }
    Ok(decision.compared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn corpus(folder: &Path, texts: &[&str]) -> Corpus {
        let path: PathBuf = folder.join("in.jsonl");
        let lines: String =
            texts.iter().map(|text| serde_json::json!({"text": text}).to_string() + "\n").collect();
        std::fs::write(&path, lines).unwrap();
        Corpus::open(&[path], &[]).unwrap()
    }

    fn near(keep: Keep) -> Near {
        Near { threshold: 0.6, ngram: 2, keep, bands: 32, rows: 2, seed: 0 }
    }

    #[test]
    fn keeps_the_longest_or_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let texts =
            ["a b c d e f g", "a b c d e f g h", "a b c d e f g", "other words here now", "a b"];
        let corpus = corpus(folder.path(), &texts);
        let longest =
            run(&corpus, &folder.path().join("longest"), Some(&near(Keep::Longest))).unwrap();
        assert_eq!((longest.rows, longest.exact, longest.near, longest.short), (5, 1, 1, 0));
        let first = run(&corpus, &folder.path().join("first"), Some(&near(Keep::First))).unwrap();
        assert_eq!((first.exact, first.near), (1, 1));
        let evidence = |name: &str| {
            let path = folder.path().join(name).join("evidence/removed.json");
            let text = std::fs::read_to_string(path).unwrap();
            let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
            rows.collect::<Vec<serde_json::Value>>()
        };
        // The copy of a removed document names the kept one, and the similarity to it.
        let kept: Vec<u64> =
            evidence("longest").iter().map(|row| row["kept_row"].as_u64().unwrap()).collect();
        assert_eq!(kept, [1, 1]);
        assert!((evidence("longest")[1]["jaccard"].as_f64().unwrap() - 6.0 / 7.0).abs() < 1e-12);
        assert_eq!(evidence("first")[0]["removed_row"], 1);
        assert_eq!(evidence("first")[1]["rule"], "exact");
    }

    #[test]
    fn exact_looks_at_whole_texts_only() {
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(folder.path(), &["a b c", "a b c ", "a b c", ""]);
        let summary = run(&corpus, &folder.path().join("out"), None).unwrap();
        assert_eq!((summary.rows, summary.exact, summary.near, summary.compared), (4, 1, 0, 0));
        assert_eq!(summary.parts.iter().map(|part| part.rows).sum::<u64>(), 3);
    }
}
