//! Scoring a corpus one unit at a time, and writing the documents whose score is high enough.
//!
//! A unit ([`Corpus::split`]) becomes `part-NNNNN.parquet` (what is kept) and
//! `__scores__/part-NNNNN.parquet` (id, score, decision of every document). The second is renamed into
//! place last, so that it tells that the unit is done. Units do not depend on each other: any number can
//! be under way, and memory is one batch and one row group each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch,
    StringArray,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{DOCSTRING_SHARE, Forest, docstring_share, embed, embedder_id};
use crate::corpus::{Corpus, FileWriter, Part, ids, texts, write_rejects};
use crate::{Error, Result};

/// The column that is added.
const COLUMN: &str = "quality_score";

/// Columns of a scores file that group documents in the report, and what they are called in inputs.
pub(super) const GROUPS: [(&str, &[&str]); 3] = [
    ("source", &["source"]),
    (
        "licence",
        &[
            "licence",
            "license",
            "licenses",
            "license_type",
            "detected_licenses",
            "max_stars_repo_licenses",
        ],
    ),
    ("repository", &["repository", "repo", "repo_name", "repository_name", "max_stars_repo_name"]),
];

/// From which score a document is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rule {
    /// For sources that are not named.
    pub threshold: f64,
    /// For sources that are.
    pub by_source: HashMap<String, f64>,
}

impl Rule {
    fn keeps(&self, source: Option<&str>, score: f64) -> bool {
        let own = source.and_then(|source| self.by_source.get(source));
        score >= *own.unwrap_or(&self.threshold)
    }
}

/// Where a unit's scores come from.
pub enum Scores<'a> {
    /// Features are made and scored here.
    Forest(&'a Forest),
    /// They were made elsewhere, in the unit's order.
    Given(&'a [f64]),
    /// An earlier pass wrote them.
    Pass,
}

/// Names of a unit's files in a stage's folder.
pub struct Out<'a> {
    /// The folder; `__scores__` and `rejected` in it are there.
    pub folder: &'a Path,
    /// The unit's number.
    pub unit: usize,
}

impl Out<'_> {
    /// What is kept of the unit.
    pub fn kept(&self) -> PathBuf {
        self.folder.join(format!("part-{:05}.parquet", self.unit))
    }

    /// Every document's id, score and decision.
    pub fn scores(&self) -> PathBuf {
        self.folder.join(format!("__scores__/part-{:05}.parquet", self.unit))
    }

    /// Scores without decisions, until the threshold is known.
    pub fn pass(&self) -> PathBuf {
        self.folder.join(format!("__scores__/.pass-{:05}.parquet", self.unit))
    }

    fn rejects(&self) -> PathBuf {
        self.folder.join(format!("rejected/.unit-{:05}.jsonl", self.unit))
    }
}

/// What was done with a unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Filtered {
    /// Usable documents.
    pub rows: u64,
    /// Documents kept.
    pub kept: u64,
    /// The file of what is kept and the file of scores, names relative to the folder; only the second
    /// when there is no rule yet.
    pub parts: Vec<Part>,
}

/// Scores a unit and, once there is a rule, writes what it keeps.
///
/// Without a rule the scores go to [`Out::pass`]. `parallel`: one unit on all threads; the files are the
/// same. Fails when the forest was trained on other features than this version makes, and when given
/// scores do not belong to the unit.
pub fn filter_unit(
    unit: &Corpus,
    scores: &Scores<'_>,
    rule: Option<&Rule>,
    out: &Out<'_>,
    parallel: bool,
) -> Result<Filtered> {
    if let Scores::Forest(forest) = scores {
        check(forest)?;
    }
    let plan = Plan::new(&unit.schema(), rule.is_some());
    let path = if rule.is_some() { out.scores() } else { out.pass() };
    let mut writer = FileWriter::create(&path, plan.scores.clone())?;
    let mut kept = match rule {
        Some(_) => Some(FileWriter::create(&out.kept(), plan.kept.clone())?),
        None => None,
    };
    let mut given = Given::open(scores, out)?;
    let mut rejects = Vec::new();
    let (mut rows, mut count) = (0, 0);
    let mut batches = unit.batches();
    while let Some(batch) = batches.next() {
        let batch = batch?;
        rejects.extend(batches.take_rejects());
        let (found, shares) = match (scores, &mut given) {
            (Scores::Forest(forest), _) => score_batch(&batch, forest, parallel)?,
            (_, Some(given)) => given.take(&batch)?,
            _ => unreachable!("scores that no forest makes are given"),
        };
        let sources = plan.group(&batch, 0);
        let decisions: Option<Vec<bool>> = rule.map(|rule| {
            let source = |row| sources.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row));
            found.iter().enumerate().map(|(row, &score)| rule.keeps(source(row), score)).collect()
        });
        if let (Some(kept), Some(decisions)) = (&mut kept, &decisions) {
            let chosen = plan.chosen(&batch, &found, decisions)?;
            count += chosen.num_rows() as u64;
            kept.write(&chosen)?;
        }
        rows += batch.num_rows() as u64;
        writer.write(&plan.scored(&batch, found, shares, decisions, sources)?)?;
    }
    rejects.extend(batches.take_rejects());
    if given.is_some_and(|given| !given.is_empty()) {
        return Err(changed());
    }
    if !rejects.is_empty() {
        write_rejects(&out.rejects(), &rejects)?;
    }
    let mut parts = Vec::new();
    if let Some(kept) = kept {
        parts.push(kept.finish()?);
    }
    let scores = writer.finish()?;
    parts.push(Part { name: format!("__scores__/{}", scores.name), ..scores });
    Ok(Filtered { rows, kept: count, parts })
}

fn check(forest: &Forest) -> Result<()> {
    let header = forest.header();
    let ours = embedder_id(header.dimensions);
    if header.embedder == ours {
        return Ok(());
    }
    Err(Error::config(format!(
        "the forest was trained on `{}` features, and this version makes `{ours}`: train it again",
        header.embedder
    )))
}

fn changed() -> Error {
    Error::config("the documents changed while they were being filtered: run it again")
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::config(e.to_string())
}

fn score_batch(
    batch: &RecordBatch,
    forest: &Forest,
    parallel: bool,
) -> Result<(Vec<f64>, Vec<f32>)> {
    let column = texts(batch);
    let rows: Vec<&str> = (0..column.len()).map(|row| column.value(row)).collect();
    let header = forest.header();
    let features = embed(&rows, header.dimensions, parallel)?;
    let shares = features.chunks_exact(header.features);
    let shares = shares.map(|row| row[header.dimensions + DOCSTRING_SHARE]).collect();
    Ok((forest.score(&features, parallel)?, shares))
}

/// Scores that were there before.
enum Given<'a> {
    Slice(&'a [f64]),
    Rows { scores: Vec<f64>, shares: Vec<f32>, at: usize },
}

impl<'a> Given<'a> {
    fn open(scores: &Scores<'a>, out: &Out<'_>) -> Result<Option<Self>> {
        Ok(match scores {
            Scores::Forest(_) => None,
            Scores::Given(slice) => Some(Self::Slice(slice)),
            Scores::Pass => {
                let (mut scores, mut shares) = (Vec::new(), Vec::new());
                for batch in read_scores(&out.pass())? {
                    let batch = batch?;
                    scores.extend_from_slice(number(&batch, "score").values());
                    shares.extend_from_slice(share_column(&batch).values());
                }
                Some(Self::Rows { scores, shares, at: 0 })
            }
        })
    }

    /// The next batch's scores and docstring shares.
    fn take(&mut self, batch: &RecordBatch) -> Result<(Vec<f64>, Vec<f32>)> {
        let rows = batch.num_rows();
        match self {
            Self::Slice(slice) => {
                let (mine, rest) = slice.split_at_checked(rows).ok_or_else(changed)?;
                *slice = rest;
                let column = texts(batch);
                let shares = (0..rows).map(|row| docstring_share(column.value(row))).collect();
                Ok((mine.to_vec(), shares))
            }
            Self::Rows { scores, shares, at } => {
                let range = *at..*at + rows;
                *at += rows;
                let mine = scores.get(range.clone()).ok_or_else(changed)?.to_vec();
                Ok((mine, shares.get(range).ok_or_else(changed)?.to_vec()))
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Slice(slice) => slice.is_empty(),
            Self::Rows { scores, at, .. } => *at == scores.len(),
        }
    }
}

/// Columns of what is written.
struct Plan {
    carried: Vec<usize>,
    kept: SchemaRef,
    scores: SchemaRef,
    /// For each of [`GROUPS`], the column of the input.
    groups: [Option<usize>; GROUPS.len()],
}

impl Plan {
    fn new(input: &SchemaRef, decided: bool) -> Self {
        let carried: Vec<usize> =
            (0..input.fields().len()).filter(|&at| input.field(at).name() != COLUMN).collect();
        let mut kept: Vec<Field> = carried.iter().map(|&at| input.field(at).clone()).collect();
        kept.push(Field::new(COLUMN, DataType::Float64, false));
        let mut scores = vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("score", DataType::Float64, false),
            Field::new("bytes", DataType::Int64, false),
            Field::new("docstring_share", DataType::Float32, false),
        ];
        if decided {
            scores.insert(2, Field::new("keep", DataType::Boolean, false));
        }
        let groups =
            GROUPS.map(|(_, names)| names.iter().find_map(|name| input.index_of(name).ok()));
        for ((name, _), group) in GROUPS.iter().zip(groups) {
            if group.is_some() {
                scores.push(Field::new(*name, DataType::Utf8, true));
            }
        }
        Self {
            carried,
            kept: Arc::new(Schema::new(kept)),
            scores: Arc::new(Schema::new(scores)),
            groups,
        }
    }

    /// A grouping column as strings; other types in the form they are printed in.
    fn group(&self, batch: &RecordBatch, group: usize) -> Option<StringArray> {
        let column = batch.column(self.groups[group]?);
        if let Some(strings) = column.as_string_opt::<i32>() {
            return Some(strings.clone());
        }
        let options = FormatOptions::default();
        let format = ArrayFormatter::try_new(column, &options).ok()?;
        let shown =
            |row| column.is_valid(row).then(|| format.value(row).try_to_string().ok()).flatten();
        Some((0..column.len()).map(shown).collect())
    }

    fn chosen(&self, batch: &RecordBatch, scores: &[f64], keep: &[bool]) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> =
            self.carried.iter().map(|&at| batch.column(at).clone()).collect();
        columns.push(Arc::new(Float64Array::from(scores.to_vec())));
        let whole = RecordBatch::try_new(self.kept.clone(), columns).map_err(failed)?;
        filter_record_batch(&whole, &BooleanArray::from(keep.to_vec())).map_err(failed)
    }

    fn scored(
        &self,
        batch: &RecordBatch,
        scores: Vec<f64>,
        shares: Vec<f32>,
        decisions: Option<Vec<bool>>,
        sources: Option<StringArray>,
    ) -> Result<RecordBatch> {
        let column = texts(batch);
        let bytes: Int64Array =
            (0..column.len()).map(|row| column.value(row).len() as i64).collect();
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(ids(batch).clone()), Arc::new(Float64Array::from(scores))];
        if let Some(decisions) = decisions {
            columns.push(Arc::new(BooleanArray::from(decisions)));
        }
        columns.push(Arc::new(bytes));
        columns.push(Arc::new(Float32Array::from(shares)));
        let mut sources = sources;
        for group in 0..GROUPS.len() {
            let found = if group == 0 { sources.take() } else { self.group(batch, group) };
            if self.groups[group].is_some() {
                let empty = || StringArray::new_null(column.len());
                columns.push(Arc::new(found.unwrap_or_else(empty)));
            }
        }
        RecordBatch::try_new(self.scores.clone(), columns).map_err(failed)
    }
}

/// The batches of a scores file.
pub(super) fn read_scores(
    path: &Path,
) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    let path = path.to_path_buf();
    let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(ParquetRecordBatchReaderBuilder::build)
        .map_err(|e| Error::input(&path, format!("not a readable scores file: {e}")))?;
    Ok(reader.map(move |batch| batch.map_err(|e| Error::input(&path, format!("damaged: {e}")))))
}

/// A number column of a scores file.
pub(super) fn number<'a>(batch: &'a RecordBatch, name: &str) -> &'a Float64Array {
    batch.column_by_name(name).expect("a scores file has this column").as_primitive::<Float64Type>()
}

/// The docstring shares of a scores file.
pub(super) fn share_column(batch: &RecordBatch) -> &Float32Array {
    batch
        .column_by_name("docstring_share")
        .expect("a scores file has this column")
        .as_primitive::<Float32Type>()
}
