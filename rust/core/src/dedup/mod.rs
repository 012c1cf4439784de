//! Deduplication: exact copies by hash; near copies by `MinHash` bands or by an exact join, each
//! verified; repeated spans of words.
//!
//! Guarantees: a document is removed only if a *kept* document has the same text (xxh3-128) or a true
//! Jaccard similarity of word n-grams of at least the threshold; the evidence names it. The result
//! depends on the documents, their order and the options, never on the number of threads, the shards
//! or the memory. Documents of fewer than n words have no n-gram and are only compared as whole texts.
//!
//! Memory: 8 bytes an n-gram and about 600 a document, and all texts where lines are compressed or every
//! document is a file; otherwise they are read a second time. With a limit about 100 bytes a document and
//! what the limit allows, at the price of reading the input once or twice more.

mod candidates;
mod evidence;
mod grams;
mod greedy;
mod index;
mod join;
mod measure;
mod minhash;
mod pieces;
mod sign;
mod spill;
mod substring;

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use rustc_hash::FxHashMap;

use crate::corpus::{self, Batches, Corpus, Part, Reject};
use crate::{Error, Result};
pub use candidates::Reference;
pub use evidence::SourceCount;
pub use index::{Index, Stamp};
pub use measure::Recall;
pub use minhash::{choose_bands, recall};
pub use pieces::{
    candidate_pairs, choose_removals, components, sign_batch, signatures, verify_pairs,
};
pub use substring::{Spans, substring};

use measure::Sample;
use minhash::Sketcher;
use sign::{Signature, Signatures, Signer};
use spill::{Grams, Names, Place, Scratch};

/// Which of several similar documents stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// The one with the most bytes of text; of equals the first.
    Longest,
    /// The first in input order.
    First,
    /// The one with the highest number in this column, null being lowest; of equals the first.
    Highest(String),
}

/// How near copies are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Near {
    /// Documents that share a band of a `MinHash` signature.
    Bands {
        /// Bands of the signature.
        bands: usize,
        /// Values in a band.
        rows: usize,
        /// Decides the hash functions.
        seed: u64,
    },
    /// Every pair at the threshold, by prefix filter.
    Join,
}

/// What decides the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// `None`: whole texts only.
    pub near: Option<Near>,
    /// Least Jaccard similarity of a removed document to a kept one.
    pub threshold: f64,
    /// Words in a shingle.
    pub ngram: usize,
    /// What stays.
    pub keep: Keep,
    /// Whether texts that differ in white space alone are exact copies.
    pub normalize: bool,
    /// The column by which removals are counted; without one, the input.
    pub source: Option<String>,
    /// Whether connected components of all verified pairs are written too.
    pub components: bool,
}

/// What a run works on and with.
pub struct Job<'a> {
    /// Documents to deduplicate.
    pub corpus: &'a Corpus,
    /// What each input is called.
    pub inputs: &'a [String],
    /// Where the result goes.
    pub out: &'a Path,
    /// Documents that stay and against which the others are compared.
    pub against: &'a [Reference],
    /// The index that kept documents are added to, and the name of their segment.
    pub index: Option<(&'a Index, &'a str)>,
    /// Bytes that sorting may use; without a limit nothing is sorted on disk.
    pub memory: Option<usize>,
    /// Called with what is being done, how many documents are, and how many there are if known.
    pub progress: Progress<'a>,
}

impl Job<'_> {
    /// Whether a row's fate is known once it is read, so that one pass does: copies go alone, and the
    /// first of them stays.
    fn one_pass(&self, options: &Options) -> bool {
        let first_stays = match options.keep {
            Keep::First => true,
            // Equal texts are equally long.
            Keep::Longest => !options.normalize,
            Keep::Highest(_) => false,
        };
        first_stays && options.near.is_none() && self.against.is_empty() && self.index.is_none()
    }
}

/// Takes (label, done, total); its error stops the work.
pub type Progress<'a> = &'a (dyn Fn(&str, u64, Option<u64>) -> Result<()> + Sync);

/// What a run did.
#[derive(Debug)]
pub struct Summary {
    /// Files of kept rows.
    pub parts: Vec<Part>,
    /// Files in `evidence/`: removed rows, clusters, samples, components.
    pub evidence: Vec<Part>,
    /// Usable rows read.
    pub rows: u64,
    /// Rows that are a copy of another row's text.
    pub exact: u64,
    /// Other rows removed for their similarity to a kept one.
    pub near: u64,
    /// Rows removed against documents of `against` or the index.
    pub against: u64,
    /// Rows with a text of their own but too few words for an n-gram.
    pub short: u64,
    /// Pairs whose true similarity was computed.
    pub compared: u64,
    /// Rows and removals by source.
    pub sources: Vec<SourceCount>,
    /// What a sample says of the pairs that the bands find.
    pub recall: Option<Recall>,
    /// Rows set aside.
    pub rejects: Vec<Reject>,
    /// xxh3-128 of files, as far as they were hashed while they were read.
    pub hashes: Vec<(PathBuf, String)>,
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

/// The corpus in memory, or read again for each pass.
struct Input<'a> {
    corpus: &'a Corpus,
    loaded: Option<Vec<RecordBatch>>,
    /// Whether a batch may be read ahead.
    room: bool,
}

impl Input<'_> {
    /// Calls `each(batch, rows)` for the wanted rows, in order: `rows[i]` is which of all row i of the
    /// batch is. Fails if there are not as many rows as documents.
    fn each_batch(
        &self,
        documents: &Documents<'_>,
        wanted: impl Fn(usize) -> bool,
        mut each: impl FnMut(&RecordBatch, &[usize]) -> Result<()> + Send,
    ) -> Result<()> {
        let Some(loaded) = &self.loaded else {
            let wanted = (0..documents.len()).map(wanted).collect();
            let mut batches = self.corpus.batches().only(wanted, &documents.rejects);
            let rows = |batches: &mut Batches| batches.rows().0.to_vec();
            ahead(self.room, &mut batches, rows, |batch, rows| each(batch, &rows))?;
            let complete = batches.rows().1 == documents.len();
            return if complete { Ok(()) } else { Err(self.corpus.changed()) };
        };
        let mut start = 0;
        for batch in loaded {
            let rows: Vec<usize> =
                (start..start + batch.num_rows()).filter(|row| wanted(*row)).collect();
            if rows.len() == batch.num_rows() {
                each(batch, &rows)?;
            } else if !rows.is_empty() {
                let mask = (start..start + batch.num_rows()).map(|row| Some(wanted(row)));
                let some = filter_record_batch(batch, &mask.collect());
                each(&some.map_err(|e| Error::config(e.to_string()))?, &rows)?;
            }
            start += batch.num_rows();
        }
        Ok(())
    }
}

/// Of a batch: rows and bytes for each thread, and at most so many of these.
const PIECE_ROWS: usize = 256;
const PIECE_BYTES: usize = 4 << 20;
const MOST_PIECES: usize = 16;

/// Calls `work` for every batch, with what `beside` says of the reader after it. The next one is read by
/// another thread of the pool meanwhile, unless there is no `room` for two.
fn ahead<B: Send>(
    room: bool,
    batches: &mut Batches,
    beside: impl Fn(&mut Batches) -> B + Sync,
    mut work: impl FnMut(&RecordBatch, B) -> Result<()> + Send,
) -> Result<()> {
    let read = |batches: &mut Batches| match batches.next() {
        Some(batch) => batch.map(|batch| Some((batch, beside(batches)))),
        None => Ok(None),
    };
    // Small, so that a batch is still in a near cache when it is looked at again; a piece for each thread.
    let pieces = rayon::current_num_threads().min(MOST_PIECES);
    batches.set_size(pieces * PIECE_ROWS, PIECE_BYTES * if room { pieces } else { 1 });
    let mut next = read(batches)?;
    while let Some((batch, beside)) = next {
        if room {
            let (after, done) = rayon::join(|| read(batches), || work(&batch, beside));
            done?;
            batches.reuse(&batch);
            next = after?;
        } else {
            work(&batch, beside)?;
            batches.reuse(&batch);
            // What is read next may stand in its place.
            drop(batch);
            next = read(batches)?;
        }
    }
    Ok(())
}

/// What stays in memory of the documents, by row.
struct Documents<'a> {
    names: Names,
    /// The more, the sooner it is kept; nothing if that is by position alone.
    weights: Vec<u64>,
    /// The first row with the same text: its own number if there is none before.
    first: Vec<u32>,
    /// The number of its source.
    source: Vec<u32>,
    sources: Vec<String>,
    /// First rows with at least one n-gram.
    signed: u64,
    /// Hashes of whole texts, each with its first row.
    seen: FxHashMap<u128, u32>,
    /// N-grams and where those of each row are, if everything is in memory.
    grams: Option<(Grams, Vec<Place>)>,
    candidates: candidates::Candidates<'a>,
    sample: Option<Sample>,
    rejects: Vec<Reject>,
    hashes: Vec<(PathBuf, String)>,
    /// The rows that stay, where they were written as they were read.
    parts: Option<Vec<Part>>,
}

/// Copies a corpus without its duplicates into `out`. Runs on the current rayon pool.
pub fn run(job: &Job<'_>, options: &Options) -> Result<Summary> {
    match run_once(job, options) {
        // Of what had been written by then, nothing is left but temporary files.
        Err(Error::Unsettled { .. }) => {
            let corpus = job.corpus.settled()?;
            run_once(&Job { corpus: &corpus, ..*job }, options)
        }
        done => done,
    }
}

fn run_once(job: &Job<'_>, options: &Options) -> Result<Summary> {
    let scratch = match job.memory {
        Some(_) => Some(Scratch::create(job.out.join("scratch"))?),
        None => None,
    };
    let signer = Signer {
        ngram: options.near.map(|_| options.ngram),
        sketcher: match options.near {
            Some(Near::Bands { bands, rows, seed }) => Some(Sketcher::new(bands, rows, seed)),
            _ => None,
        },
        normalize: options.normalize,
        // Bands need the n-grams of candidates alone in order.
        distinct: options.near == Some(Near::Join),
    };
    let again = !job.one_pass(options);
    let keep = again && job.memory.is_none() && !job.corpus.cheap_to_read_again();
    let room = job.memory.is_none();
    let mut input = Input { corpus: job.corpus, loaded: keep.then(Vec::new), room };
    let mut documents = read(job, options, &signer, &mut input, scratch.as_ref())?;
    let outcome =
        candidates::decide(job, options, &signer, &input, &mut documents, scratch.as_ref())?;
    let summary = evidence::write(job, options, &input, &documents, &outcome)?;
    if let Some((index, segment)) = job.index {
        index.add(segment, &input, &documents, &outcome.removed, job.progress)?;
    }
    Ok(summary)
}

/// First pass: ids, exact copies, and the signatures of the rest; where one pass does, the rows that stay
/// are written on the way.
fn read<'a>(
    job: &Job<'_>,
    options: &Options,
    signer: &Signer,
    input: &mut Input<'_>,
    scratch: Option<&'a Scratch>,
) -> Result<Documents<'a>> {
    let mut documents = Documents {
        names: Names::new(scratch)?,
        weights: Vec::new(),
        first: Vec::new(),
        source: Vec::new(),
        sources: Vec::new(),
        signed: 0,
        seen: FxHashMap::default(),
        grams: (job.memory.is_none() && options.near.is_some()).then(Default::default),
        candidates: candidates::Candidates::new(job, scratch),
        sample: signer.sketcher.as_ref().map(|_| Sample::new(job.memory.is_some())),
        rejects: Vec::new(),
        hashes: Vec::new(),
        parts: None,
    };
    let mut writer = if job.one_pass(options) { Some(job.writer()?) } else { None };
    let mut numbers: FxHashMap<String, u32> = FxHashMap::default();
    let banded = signer.sketcher.is_some();
    // With a limit, the join has no use for n-grams before it knows how often each occurs.
    let sign_now = banded || documents.grams.is_some();
    let mut batches = job.corpus.batches().hashing();
    let beside = |batches: &mut Batches| (batches.input(), batches.take_rejects());
    let read = |batch: &RecordBatch, (number_of_input, rejects)| {
        let start = documents.first.len();
        if start + batch.num_rows() > u32::MAX as usize / 2 {
            return Err(Error::config("more than 2^31 rows: split the input"));
        }
        let ids = corpus::ids(batch);
        for (i, hash) in signer.hashes(batch).into_iter().enumerate() {
            let row = (start + i) as u32;
            documents.names.push(ids.value(i))?;
            documents.first.push(*documents.seen.entry(hash).or_insert(row));
        }
        // Of equal texts the first stays, where what stays is written at once.
        if writer.is_none() {
            add_weights(batch, &options.keep, &mut documents.weights)?;
        }
        let labels = source_labels(batch, options.source.as_deref())?;
        for i in 0..batch.num_rows() {
            let label = match &labels {
                Some(labels) if labels.is_valid(i) => labels.value(i),
                Some(_) => "",
                None => job.inputs.get(number_of_input).map_or("", String::as_str),
            };
            let number = if let Some(number) = numbers.get(label) {
                *number
            } else {
                documents.sources.push(label.to_owned());
                numbers.insert(label.to_owned(), documents.sources.len() as u32 - 1);
                documents.sources.len() as u32 - 1
            };
            documents.source.push(number);
        }
        if let Some((_, places)) = &mut documents.grams {
            places.resize(start + batch.num_rows(), Place::default());
        }
        let is_first = |i: usize| documents.first[start + i] as usize == start + i;
        if let Some(writer) = &mut writer {
            writer.write_where(batch, is_first)?;
        }
        if sign_now {
            let signed = signer.sign(batch, banded, is_first);
            for signature in signed.iter().flat_map(Signatures::iter) {
                documents.add_signed((start + signature.row) as u32, signature)?;
            }
        }
        if let Some(loaded) = &mut input.loaded {
            loaded.push(batch.clone());
        }
        documents.rejects.extend(rejects);
        (job.progress)("reading", documents.first.len() as u64, None)
    };
    let done = ahead(job.memory.is_none(), &mut batches, beside, read);
    if let Some(writer) = writer {
        if let Err(error) = done {
            writer.discard();
            return Err(error);
        }
        documents.parts = Some(writer.finish()?);
    }
    done?;
    documents.rejects.extend(batches.take_rejects());
    documents.hashes = batches.into_hashes();
    Ok(documents)
}

impl Documents<'_> {
    fn add_signed(&mut self, row: u32, signed: Signature<'_>) -> Result<()> {
        if signed.grams.is_empty() {
            return Ok(());
        }
        self.signed += 1;
        for key in signed.keys {
            self.candidates.add(*key, row)?;
        }
        if let Some(sample) = &mut self.sample {
            sample.offer(signed);
        }
        if let Some((grams, places)) = &mut self.grams {
            places[row as usize] = grams.push(signed.grams);
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.first.len()
    }
}

/// The order in which documents are kept: the more weight the sooner, then by position.
fn add_weights(batch: &RecordBatch, keep: &Keep, weights: &mut Vec<u64>) -> Result<()> {
    match keep {
        Keep::First => {}
        Keep::Longest => {
            let texts = corpus::texts(batch);
            weights.extend((0..batch.num_rows()).map(|i| texts.value_length(i) as u64));
        }
        Keep::Highest(name) => {
            let column = batch.column_by_name(name).ok_or_else(|| {
                let known: Vec<_> =
                    batch.schema().fields().iter().map(|f| f.name().clone()).collect();
                Error::config(format!("column: no `{name}`; there are {}", known.join(", ")))
            })?;
            if !column.data_type().is_numeric() && *column.data_type() != DataType::Boolean {
                let kind = column.data_type();
                return Err(Error::config(format!("column: `{name}` is {kind}, not a number")));
            }
            match column.data_type() {
                // Beyond 2^53 a double would make equals of different integers.
                DataType::Int64 => weights.extend(
                    column
                        .as_primitive::<Int64Type>()
                        .iter()
                        .map(|n| n.map_or(0, sortable_integer)),
                ),
                DataType::UInt64 => weights.extend(
                    column.as_primitive::<UInt64Type>().iter().map(|n| n.map_or(0, above_null)),
                ),
                _ => {
                    let numbers = cast(column, &DataType::Float64)
                        .map_err(|e| Error::config(format!("column: `{name}`: {e}")))?;
                    let numbers = numbers.as_primitive::<Float64Type>();
                    weights.extend(numbers.iter().map(|number| number.map_or(0, sortable)));
                }
            }
        }
    }
    Ok(())
}

/// A number's bits in the order of numbers; NaN is lowest, as null is.
fn sortable(number: f64) -> u64 {
    if number.is_nan() {
        return 0;
    }
    // -0 and 0 are the same weight.
    let bits = (number + 0.0).to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// The same of an integer.
fn sortable_integer(number: i64) -> u64 {
    above_null(number as u64 ^ 1 << 63)
}

/// Makes 0 the place of null alone, at the price of one tie at the other end.
fn above_null(place: u64) -> u64 {
    place.saturating_add(1)
}

fn source_labels(batch: &RecordBatch, name: Option<&str>) -> Result<Option<StringArray>> {
    let Some(name) = name else {
        return Ok(None);
    };
    let Some(column) = batch.column_by_name(name) else {
        return Err(Error::config(format!("source: there is no column `{name}`")));
    };
    Ok(Some(corpus::as_text(column)?))
}

/// A path shown to people.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Opens what to compare against: folders with an `index.json` as an index, anything else as documents.
pub fn reference(path: &PathBuf, extensions: &[String], stamp: &Stamp) -> Result<Reference> {
    if Index::is_index(path) {
        return Ok(Reference::Index(Index::open(path, stamp)?));
    }
    Ok(Reference::Corpus(shown(path), Corpus::open(std::slice::from_ref(path), extensions)?))
}

#[cfg(test)]
mod tests;
