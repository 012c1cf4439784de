//! Scoring a whole corpus, and writing the documents whose score is high enough.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema};

use super::{DOCSTRING_SHARE, Forest, embed, embedder_id};
use crate::corpus::{Corpus, Part, PartWriter, Reject, texts, write_rejected};
use crate::{Error, Result};

/// The column that is added.
const COLUMN: &str = "quality_score";

/// What scoring found, one entry for each usable document in order: 20 bytes a document.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Scored {
    /// The forest's score.
    pub scores: Vec<f64>,
    /// Bytes of text.
    pub bytes: Vec<i64>,
    /// Share of the text that is docstrings.
    pub docstring_share: Vec<f32>,
}

/// Scores every document, a batch at a time.
///
/// Fails when the forest was trained on other features than this version computes.
pub fn score_corpus(corpus: &Corpus, forest: &Forest) -> Result<Scored> {
    let header = forest.header();
    let dimensions = header.dimensions;
    if header.embedder != embedder_id(dimensions) {
        return Err(Error::config(format!(
            "the forest was trained on `{}` features, and this version makes `{}`: train it again",
            header.embedder,
            embedder_id(dimensions)
        )));
    }
    let mut scored = Scored::default();
    for batch in corpus.batches() {
        let batch = batch?;
        let column = texts(&batch);
        let rows: Vec<&str> = (0..column.len()).map(|row| column.value(row)).collect();
        let features = embed(&rows, dimensions)?;
        scored.scores.extend(forest.score(&features)?);
        scored.bytes.extend(rows.iter().map(|text| text.len() as i64));
        let row_shares = features.chunks_exact(header.features);
        scored.docstring_share.extend(row_shares.map(|row| row[dimensions + DOCSTRING_SHARE]));
    }
    Ok(scored)
}

/// Writes the documents whose score is at least `threshold`, with the score as a column; every other
/// column is carried through (an earlier `quality_score` is replaced).
///
/// Returns the parts, the rows set aside, and how many documents were kept. Fails when `scores` does
/// not belong to this corpus.
pub fn write_scored(
    corpus: &Corpus,
    out: &Path,
    scores: &[f64],
    threshold: f64,
) -> Result<(Vec<Part>, Vec<Reject>, u64)> {
    let changed =
        || Error::config("the documents changed while they were being filtered: run it again");
    let old = corpus.schema();
    let carried: Vec<usize> =
        (0..old.fields().len()).filter(|&at| old.field(at).name() != COLUMN).collect();
    let mut fields: Vec<Field> = carried.iter().map(|&at| old.field(at).clone()).collect();
    fields.push(Field::new(COLUMN, DataType::Float64, false));
    let schema = Arc::new(Schema::new(fields));
    let failed = |e: arrow::error::ArrowError| Error::config(e.to_string());

    let mut writer = PartWriter::create(out, schema.clone())?;
    let mut batches = corpus.batches();
    let mut rest = scores;
    let mut kept = 0;
    let mut rejects = Vec::new();
    while let Some(batch) = batches.next() {
        let batch = batch?;
        rejects.extend(batches.take_rejects());
        let (mine, after) = rest.split_at_checked(batch.num_rows()).ok_or_else(changed)?;
        rest = after;
        let mut columns: Vec<ArrayRef> =
            carried.iter().map(|&at| batch.column(at).clone()).collect();
        columns.push(Arc::new(Float64Array::from(mine.to_vec())));
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(failed)?;
        let mask: BooleanArray = mine.iter().map(|&score| Some(score >= threshold)).collect();
        let chosen = filter_record_batch(&batch, &mask).map_err(failed)?;
        kept += chosen.num_rows() as u64;
        writer.write(&chosen)?;
    }
    rejects.extend(batches.take_rejects());
    if !rest.is_empty() {
        return Err(changed());
    }
    write_rejected(out, &rejects)?;
    Ok((writer.finish()?, rejects, kept))
}
