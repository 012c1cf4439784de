//! What a run leaves behind: kept rows, and for every removal the document that it went against.

use std::collections::BTreeMap;
use std::path::Path;

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::candidates::Outcome;
use super::{Documents, Input, Job, Options, Summary};
use crate::corpus::{self, Part, PartWriter};
use crate::{Error, Result};

/// Pairs shown side by side.
const SHOWN_PAIRS: usize = 12;
/// Bytes of each text that are shown.
const SHOWN_BYTES: usize = 4000;

/// What became of a source's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceCount {
    /// Its name: the value of the source column, or the input.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Those that were removed.
    pub removed: u64,
}

#[derive(Serialize)]
struct Removal<'a> {
    removed_id: &'a str,
    removed_row: u64,
    kept_id: &'a str,
    kept_row: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_in: Option<&'a str>,
    jaccard: f64,
    rule: &'static str,
}

#[derive(Serialize)]
struct Cluster<'a> {
    kept_id: &'a str,
    kept_row: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_in: Option<&'a str>,
    removed_rows: Vec<u64>,
    removed_ids: Vec<String>,
}

#[derive(Serialize)]
struct Pair {
    removed: String,
    kept: String,
    jaccard: f64,
    removed_text: String,
    /// Nothing for documents of a reference, whose texts are not at hand.
    kept_text: Option<String>,
}

/// Names of documents, references included.
struct Who<'a> {
    documents: &'a Documents<'a>,
    outcome: &'a Outcome,
    labels: Vec<&'a str>,
}

impl Who<'_> {
    /// Id, row, and what the document belongs to if it is not the input.
    fn is(&self, number: u32) -> Result<(String, u64, Option<&str>)> {
        match self.outcome.references.get(&number) {
            Some((which, row, id)) => Ok((id.clone(), u64::from(*row), Some(self.labels[*which]))),
            None => Ok((self.documents.names.get(number as usize)?, u64::from(number), None)),
        }
    }
}

/// Writes kept rows and evidence.
pub fn write(
    job: &Job<'_>,
    options: &Options,
    input: &Input<'_>,
    documents: &Documents<'_>,
    outcome: &Outcome,
) -> Result<Summary> {
    let labels = job.against.iter().map(super::Reference::label).collect();
    let who = Who { documents, outcome, labels };
    let removed = &outcome.removed;
    let count = documents.len();
    let mut sources: Vec<SourceCount> = documents
        .sources
        .iter()
        .map(|name| SourceCount { name: name.clone(), rows: 0, removed: 0 })
        .collect();
    let (mut exact, mut near, mut against) = (0, 0, 0);
    let mut lines = Vec::new();
    let mut by_kept: Vec<(u32, u32)> = Vec::new();
    for row in 0..count {
        let source = &mut sources[documents.source[row] as usize];
        source.rows += 1;
        if !removed.contains(row) {
            continue;
        }
        source.removed += 1;
        let (kept_id, kept_row, kept_in) = who.is(removed.kept[row])?;
        by_kept.push((removed.kept[row], row as u32));
        let is_near = removed.near[row];
        against += u64::from(kept_in.is_some());
        *if is_near { &mut near } else { &mut exact } += 1;
        let removal = Removal {
            removed_id: &documents.names.get(row)?,
            removed_row: row as u64,
            kept_id: &kept_id,
            kept_row,
            kept_in,
            jaccard: removed.jaccard[row],
            rule: if is_near { "near" } else { "exact" },
        };
        push_line(&mut lines, &removal)?;
    }
    let mut evidence = vec![write_evidence(job.out, &lines, exact + near)?];
    drop(lines);
    evidence.push(write_clusters(job.out, &who, by_kept)?);
    if options.components {
        evidence.push(write_components(job.out, &who, outcome)?);
        evidence.push(write_edges(job.out, outcome)?);
    }
    corpus::write_rejected(job.out, &documents.rejects)?;
    let (parts, pairs) = match &documents.parts {
        Some(parts) => (parts.clone(), Vec::new()),
        None => write_rows(job, input, documents, outcome)?,
    };
    if parts.iter().map(|part| part.rows).sum::<u64>() + exact + near != count as u64 {
        return Err(job.corpus.changed());
    }
    evidence.push(write_pairs(job.out, &who, &pairs)?);
    let distinct = (0..count).filter(|row| documents.first[*row] as usize == *row).count();
    Ok(Summary {
        parts,
        evidence,
        rows: count as u64,
        exact,
        near,
        against,
        short: if options.near.is_some() { distinct as u64 - documents.signed } else { 0 },
        compared: outcome.compared,
        sources,
        recall: outcome.recall,
        rejects: documents.rejects.clone(),
        hashes: documents.hashes.clone(),
    })
}

/// Copies the rows that stay; returns the texts of some pairs too.
fn write_rows(
    job: &Job<'_>,
    input: &Input<'_>,
    documents: &Documents<'_>,
    outcome: &Outcome,
) -> Result<(Vec<Part>, Vec<ShownPair>)> {
    let removed = &outcome.removed;
    let near: Vec<usize> = (0..documents.len()).filter(|row| removed.near[*row]).collect();
    let step = near.len().div_ceil(SHOWN_PAIRS).max(1);
    let mut pairs: Vec<ShownPair> = near
        .iter()
        .step_by(step)
        .map(|row| ShownPair {
            removed: *row as u32,
            kept: removed.kept[*row],
            jaccard: removed.jaccard[*row],
            texts: [None, None],
        })
        .collect();
    let mut wanted: FxHashMap<u32, Vec<(usize, usize)>> = FxHashMap::default();
    for (i, pair) in pairs.iter().enumerate() {
        wanted.entry(pair.removed).or_default().push((i, 0));
        wanted.entry(pair.kept).or_default().push((i, 1));
    }
    let mut writer = job.writer()?;
    let stays = |row: usize| !removed.contains(row);
    let read = |row: usize| stays(row) || wanted.contains_key(&(row as u32));
    input.each_batch(documents, read, |batch, rows| {
        for (i, row) in rows.iter().enumerate() {
            for (pair, side) in wanted.get(&(*row as u32)).into_iter().flatten() {
                let text = corpus::texts(batch).value(i);
                let most = text.len().min(SHOWN_BYTES);
                let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                pairs[*pair].texts[*side] = Some(text[..end].to_owned());
            }
        }
        writer.write_where(batch, |i| stays(rows[i]))?;
        let done = rows.last().map_or(0, |row| row + 1);
        (job.progress)("writing", done as u64, Some(documents.len() as u64))
    })?;
    Ok((writer.finish()?, pairs))
}

impl Job<'_> {
    /// Writes the rows that stay.
    pub(super) fn writer(&self) -> Result<PartWriter> {
        Ok(PartWriter::create(self.out, self.corpus.schema())?.quick(self.memory.is_some()))
    }
}

struct ShownPair {
    removed: u32,
    kept: u32,
    jaccard: f64,
    texts: [Option<String>; 2],
}

fn write_pairs(out: &Path, who: &Who<'_>, pairs: &[ShownPair]) -> Result<Part> {
    let mut lines = Vec::new();
    for pair in pairs {
        let line = Pair {
            removed: who.is(pair.removed)?.0,
            kept: who.is(pair.kept)?.0,
            jaccard: pair.jaccard,
            removed_text: pair.texts[0].clone().unwrap_or_default(),
            kept_text: pair.texts[1].clone(),
        };
        push_line(&mut lines, &line)?;
    }
    write_lines(out, "pairs.json", &lines, pairs.len() as u64)
}

/// One line for each document that others were removed against.
fn write_clusters(out: &Path, who: &Who<'_>, mut by_kept: Vec<(u32, u32)>) -> Result<Part> {
    by_kept.sort_unstable();
    let (mut lines, mut count) = (Vec::new(), 0);
    for cluster in by_kept.chunk_by(|a, b| a.0 == b.0) {
        let (kept_id, kept_row, kept_in) = who.is(cluster[0].0)?;
        let rows = cluster.iter().map(|(_, row)| *row as usize);
        let line = Cluster {
            kept_id: &kept_id,
            kept_row,
            kept_in,
            removed_rows: rows.clone().map(|row| row as u64).collect(),
            removed_ids: rows.map(|row| who.documents.names.get(row)).collect::<Result<_>>()?,
        };
        push_line(&mut lines, &line)?;
        count += 1;
    }
    write_lines(out, "clusters.json", &lines, count)
}

#[derive(Serialize)]
struct Component {
    ids: Vec<String>,
    rows: Vec<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    elsewhere: BTreeMap<String, Vec<u64>>,
    pairs: usize,
}

/// Connected components of all verified pairs: for looking at, nothing was decided by them.
fn write_components(out: &Path, who: &Who<'_>, outcome: &Outcome) -> Result<Part> {
    let groups = super::pieces::components(&outcome.edges);
    let mut pairs: FxHashMap<u32, usize> = FxHashMap::default();
    let label: FxHashMap<u32, u32> =
        groups.iter().flat_map(|group| group.iter().map(|one| (*one, group[0]))).collect();
    for (a, _, _) in &outcome.edges {
        *pairs.entry(label[a]).or_default() += 1;
    }
    let mut lines = Vec::new();
    for group in &groups {
        let mut component = Component {
            ids: Vec::new(),
            rows: Vec::new(),
            elsewhere: BTreeMap::new(),
            pairs: pairs[&group[0]],
        };
        for number in group {
            let (id, row, place) = who.is(*number)?;
            component.ids.push(id);
            match place {
                None => component.rows.push(row),
                Some(place) => component.elsewhere.entry(place.to_owned()).or_default().push(row),
            }
        }
        push_line(&mut lines, &component)?;
    }
    write_lines(out, "components.json", &lines, groups.len() as u64)
}

/// The verified pairs within the input: `[row, row, Jaccard]`.
fn write_edges(out: &Path, outcome: &Outcome) -> Result<Part> {
    let (mut lines, mut count) = (Vec::new(), 0);
    let elsewhere = |number: &u32| outcome.references.contains_key(number);
    for edge in outcome.edges.iter().filter(|(a, b, _)| !elsewhere(a) && !elsewhere(b)) {
        push_line(&mut lines, edge)?;
        count += 1;
    }
    write_lines(out, "edges.json", &lines, count)
}

pub(super) fn push_line(lines: &mut Vec<u8>, line: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *lines, line).map_err(|e| Error::config(e.to_string()))?;
    lines.push(b'\n');
    Ok(())
}

/// Writes `rows` JSON objects to `evidence/removed.json`, which readers of the folder pass over.
pub(crate) fn write_evidence(out: &Path, lines: &[u8], rows: u64) -> Result<Part> {
    write_lines(out, "removed.json", lines, rows)
}

pub(super) fn write_lines(out: &Path, name: &str, lines: &[u8], rows: u64) -> Result<Part> {
    let folder = out.join("evidence");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let part = corpus::write_whole(&folder.join(name), lines)?;
    Ok(Part { name: format!("evidence/{}", part.name), rows, ..part })
}
