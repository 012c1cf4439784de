//! What the scores files of a stage say together, in memory that does not grow with them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use xxhash_rust::xxh3::xxh3_64;

use super::filter::{GROUPS, number, read_scores, share_column};
use crate::Result;
use crate::corpus::{Corpus, ids, texts};

/// Steps that scores from 0 to 1 are counted in.
pub const BINS: usize = 10_000;
/// More values of a column than this are counted together.
const MOST_VALUES: usize = 20_000;
/// More sources than this are counted together.
const MOST_SOURCES: usize = 256;
/// Documents whose hashes of ids are smallest stand for all of them in correlations.
const SAMPLE: usize = 50_000;
const OTHER: &str = "(other)";

/// A unit, and a row of it.
type Place = (usize, u64);

/// Documents and bytes, of all and of those kept.
pub type Count = [u64; 4];

/// One document of the highest or lowest.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub struct Example {
    /// Its score.
    pub score: f64,
    /// Which file it stands in, and which row of it.
    pub unit: usize,
    /// The row of the unit, from 0.
    pub row: u64,
    /// Its id.
    pub id: String,
}

/// A histogram of scores: documents, bytes, and the lowest score of each step.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// Documents of each step.
    pub documents: Vec<u64>,
    /// Bytes of text of each step.
    pub bytes: Vec<u64>,
    /// The lowest score of each step; infinite for an empty one.
    pub lowest: Vec<f64>,
}

/// What scores files say together.
#[derive(Debug, Default)]
pub struct Tally {
    /// By source; one entry named `""` where there is no such column.
    pub histograms: BTreeMap<String, Histogram>,
    /// By column (`source`, `licence`, `repository`, `length`) and value.
    pub groups: BTreeMap<String, BTreeMap<String, Count>>,
    /// The highest scores, best first.
    pub highest: Vec<Example>,
    /// The lowest scores, worst first.
    pub lowest: Vec<Example>,
    /// Of a sample: score, bytes, docstring share.
    pub sample: Vec<(f64, f64, f32)>,
}

/// Reads scores files, those of an earlier pass or decided ones. `examples`: how many of either end.
pub fn tally(paths: &[PathBuf], examples: usize) -> Result<Tally> {
    let mut found = Tally::default();
    let mut sample: BinaryHeap<(u64, usize, u64, u64, u64, u32)> = BinaryHeap::new();
    // Ends of the order, the least extreme on top; scores are not negative, so bits order them.
    let mut high: BinaryHeap<Reverse<(u64, Reverse<Place>)>> = BinaryHeap::new();
    let mut low: BinaryHeap<(u64, Place)> = BinaryHeap::new();
    for (unit, path) in paths.iter().enumerate() {
        let mut row = 0;
        for batch in read_scores(path)? {
            let batch = batch?;
            let names = ids(&batch);
            let scores = number(&batch, "score");
            let shares = share_column(&batch);
            let sizes = batch.column_by_name("bytes").expect("a scores file has this column");
            let sizes = sizes.as_primitive::<Int64Type>();
            let keep = batch.column_by_name("keep").map(|column| column.as_boolean().clone());
            let groups = GROUPS.map(|(name, _)| {
                batch.column_by_name(name).map(|column| column.as_string::<i32>().clone())
            });
            for at in 0..batch.num_rows() {
                let (score, bytes) = (scores.value(at), sizes.value(at) as u64);
                let kept = keep.as_ref().is_some_and(|keep| keep.value(at));
                for ((name, _), column) in GROUPS.iter().zip(&groups) {
                    if let Some(column) = column {
                        let value = if column.is_valid(at) { column.value(at) } else { "(none)" };
                        found.count(name, value, bytes, kept);
                    }
                }
                found.count("length", &length_name(bytes), bytes, kept);
                let source = groups[0].as_ref().filter(|column| column.is_valid(at));
                found.bin(source.map_or("", |column| column.value(at)), score, bytes);
                let bits = score.max(0.0).to_bits();
                let hash = xxh3_64(names.value(at).as_bytes());
                sample.push((hash, unit, row, bits, bytes, shares.value(at).to_bits()));
                if sample.len() > SAMPLE {
                    sample.pop();
                }
                high.push(Reverse((bits, Reverse((unit, row)))));
                low.push((bits, (unit, row)));
                if high.len() > examples {
                    high.pop();
                    low.pop();
                }
                row += 1;
            }
        }
    }
    let chosen = sample.into_sorted_vec();
    found.sample = chosen
        .into_iter()
        .map(|(_, _, _, score, bytes, share)| {
            (f64::from_bits(score), bytes as f64, f32::from_bits(share))
        })
        .collect();
    let example = |bits: u64, unit: usize, row: u64| Example {
        score: f64::from_bits(bits),
        unit,
        row,
        id: String::new(),
    };
    found.highest = high
        .into_sorted_vec()
        .into_iter()
        .map(|Reverse((bits, Reverse((unit, row))))| example(bits, unit, row))
        .collect();
    found.lowest = low
        .into_sorted_vec()
        .into_iter()
        .map(|(bits, (unit, row))| example(bits, unit, row))
        .collect();
    for example in found.highest.iter_mut().chain(&mut found.lowest) {
        example.id = id_of(&paths[example.unit], example.row)?;
    }
    Ok(found)
}

/// The beginnings of some documents of a unit, by their rows in it, at most so many characters.
pub fn excerpts(unit: &Corpus, rows: &[u64], longest: usize) -> Result<Vec<(u64, String)>> {
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    rows.dedup();
    let (mut found, mut first) = (Vec::with_capacity(rows.len()), 0);
    for batch in unit.batches() {
        let batch = batch?;
        let after = first + batch.num_rows() as u64;
        for &row in rows[found.len()..].iter().take_while(|&&row| row < after) {
            let text = texts(&batch).value((row - first) as usize);
            found.push((row, text.chars().take(longest).collect()));
        }
        if found.len() == rows.len() {
            break;
        }
        first = after;
    }
    Ok(found)
}

fn id_of(path: &std::path::Path, row: u64) -> Result<String> {
    let mut left = row as usize;
    for batch in read_scores(path)? {
        let batch = batch?;
        if left < batch.num_rows() {
            return Ok(ids(&batch).value(left).to_owned());
        }
        left -= batch.num_rows();
    }
    Ok(String::new())
}

/// The power of two that a length lies under.
fn length_name(bytes: u64) -> String {
    let top = bytes.max(1).ilog2() + 1;
    match top {
        0..10 => format!("under {} B", 1u64 << top),
        10..20 => format!("under {} KiB", 1u64 << (top - 10)),
        _ => format!("under {} MiB", 1u64 << (top - 20)),
    }
}

impl Tally {
    fn count(&mut self, column: &str, value: &str, bytes: u64, kept: bool) {
        if !self.groups.contains_key(column) {
            self.groups.insert(column.to_owned(), BTreeMap::new());
        }
        let values = self.groups.get_mut(column).expect("just there");
        let known = values.contains_key(value) || values.len() < MOST_VALUES;
        let value = if known { value } else { OTHER };
        if !values.contains_key(value) {
            values.insert(value.to_owned(), Count::default());
        }
        let count = values.get_mut(value).expect("just there");
        let kept = u64::from(kept);
        for (count, more) in count.iter_mut().zip([1, bytes, kept, kept * bytes]) {
            *count += more;
        }
    }

    fn bin(&mut self, source: &str, score: f64, bytes: u64) {
        let known = self.histograms.contains_key(source) || self.histograms.len() < MOST_SOURCES;
        let source = if known { source } else { OTHER };
        if !self.histograms.contains_key(source) {
            let empty = Histogram {
                documents: vec![0; BINS],
                bytes: vec![0; BINS],
                lowest: vec![f64::INFINITY; BINS],
            };
            self.histograms.insert(source.to_owned(), empty);
        }
        let histogram = self.histograms.get_mut(source).expect("just there");
        let at = ((score * BINS as f64) as usize).min(BINS - 1);
        histogram.documents[at] += 1;
        histogram.bytes[at] += bytes;
        histogram.lowest[at] = histogram.lowest[at].min(score);
    }
}
