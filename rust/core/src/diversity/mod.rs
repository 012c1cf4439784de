//! How varied a corpus is: structures of its functions, its words, what a long-window compressor
//! finds to repeat, and exact duplicates.
//!
//! One pass. Memory: one batch, at most [`LIMIT`] hashes for each distinct count (beyond that the count
//! is an estimate with a relative error of about 0.06%), and about 100 bytes for each distinct
//! structure. The result does not depend on the thread count.

mod distinct;
mod structure;

pub use distinct::{Distinct, LIMIT};
pub use structure::{Hill, Structures, hill, signature};

use std::io::Write;

use arrow::array::Array;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::corpus::{Corpus, texts};
use crate::dedup::Progress;
use crate::features::{is_word_byte, lexemes};
use crate::{Error, Result};

/// Names that [`measure`] takes.
pub const METRICS: [&str; 4] = ["structure", "words", "compression", "duplicates"];
/// Text that one compressor sees, which is as far back as it can look.
pub const BLOCK_BYTES: usize = 1 << BLOCK_LOG;
const BLOCK_LOG: u32 = 26;
const LEVEL: i32 = 9;
/// Lengths of word sequences that are counted.
const ORDERS: [usize; 3] = [1, 2, 4];

/// What was measured; a metric that was not asked for is absent.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Diversity {
    /// What the figures rest on.
    pub sample: Sample,
    /// Structures of functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structure: Option<structure::Summary>,
    /// Words and sequences of words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<Words>,
    /// Long-window compression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Documents that are another one again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<Duplicates>,
}

impl Diversity {
    /// The figures as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("figures have a JSON form")
    }
}

/// Sample size.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Sample {
    /// Documents.
    pub documents: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Rows that were set aside.
    pub rejected: u64,
}

/// Distinct word sequences over all of them. Falls as a corpus grows: compare equal sizes only.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Words {
    /// Words in all.
    pub total: u64,
    /// Distinct words over words.
    pub distinct_1: f64,
    /// Distinct pairs over pairs.
    pub distinct_2: f64,
    /// Distinct sequences of four over such sequences.
    pub distinct_4: f64,
    /// Whether no count had to be estimated.
    pub exact: bool,
}

/// Bytes before over bytes after.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Compression {
    /// Text over compressed text; higher is more repetitive.
    pub ratio: f64,
    /// Compressed bytes.
    pub compressed_bytes: u64,
    /// Blocks of at most [`BLOCK_BYTES`].
    pub blocks: u64,
}

/// Exact duplicates.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Duplicates {
    /// Distinct texts.
    pub distinct: u64,
    /// Share of documents that repeat an earlier one.
    pub rate: f64,
    /// Whether `distinct` had not to be estimated.
    pub exact: bool,
}

/// Measures a corpus.
///
/// `metrics` are among [`METRICS`]; `top` heavy structures are listed; `progress` hears of documents.
/// Fails on an unknown metric, and where `progress` does.
pub fn measure(
    corpus: &Corpus,
    metrics: &[String],
    top: usize,
    progress: Progress<'_>,
) -> Result<Diversity> {
    for name in metrics {
        if !METRICS.contains(&name.as_str()) {
            return Err(Error::config(format!(
                "metric `{name}` is unknown: choose among {}",
                METRICS.join(", ")
            )));
        }
    }
    let wants = |name: &str| metrics.iter().any(|known| known == name);
    let (structure, words) = (wants("structure"), wants("words"));
    let mut sample = Sample::default();
    let mut structures = Structures::default();
    let mut grams = [(); 3].map(|()| (0u64, Distinct::new(LIMIT)));
    let mut documents = Distinct::new(LIMIT);
    let mut compressor = wants("compression").then(Blocks::default);

    let mut batches = corpus.batches();
    for batch in batches.by_ref() {
        let batch = batch?;
        let column = texts(&batch);
        let rows: Vec<&str> = (0..column.len()).map(|row| column.value(row)).collect();
        let look = |text: &&str| {
            let found = if structure { structure::functions(text) } else { Vec::new() };
            let counted = if words { word_grams(text) } else { Grams::default() };
            (found, counted, xxh3_64(text.as_bytes()))
        };
        let (seen, packed) = rayon::join(
            || rows.par_iter().map(look).collect::<Vec<_>>(),
            || compressor.as_mut().map_or(Ok(()), |blocks| blocks.add(&rows)),
        );
        packed?;
        for (functions, counted, hash) in seen {
            structures.add(functions);
            for ((total, distinct), (count, hashes)) in grams.iter_mut().zip(counted) {
                *total += count;
                distinct.extend(hashes);
            }
            documents.extend([hash]);
        }
        sample.documents += rows.len() as u64;
        sample.bytes += rows.iter().map(|text| text.len() as u64).sum::<u64>();
        progress("documents", sample.documents, None)?;
    }
    sample.rejected = batches.take_rejects().len() as u64;

    let share =
        |(total, distinct): &(u64, Distinct)| distinct.count() as f64 / (*total).max(1) as f64;
    Ok(Diversity {
        structure: structure.then(|| structures.summary(top)),
        words: words.then(|| Words {
            total: grams[0].0,
            distinct_1: share(&grams[0]),
            distinct_2: share(&grams[1]),
            distinct_4: share(&grams[2]),
            exact: grams.iter().all(|(_, distinct)| distinct.is_exact()),
        }),
        compression: compressor.map(|blocks| blocks.finish(sample.bytes)).transpose()?,
        duplicates: wants("duplicates").then(|| Duplicates {
            distinct: documents.count(),
            rate: match sample.documents {
                0 => 0.0,
                all => (1.0 - documents.count() as f64 / all as f64).max(0.0),
            },
            exact: documents.is_exact(),
        }),
        sample,
    })
}

type Grams = [(u64, Vec<u64>); ORDERS.len()];

/// For each of [`ORDERS`]: how many word sequences a text has, and hashes of the distinct ones.
fn word_grams(text: &str) -> Grams {
    let words: Vec<u64> =
        lexemes(text).filter(|lexeme| is_word_byte(lexeme[0])).map(xxh3_64).collect();
    ORDERS.map(|order| {
        let gram = |window: &[u64]| {
            let mut bytes = [0u8; 32];
            for (slot, word) in bytes.chunks_exact_mut(8).zip(window) {
                slot.copy_from_slice(&word.to_le_bytes());
            }
            xxh3_64(&bytes[..8 * order])
        };
        let mut hashes: Vec<u64> = words.windows(order).map(gram).collect();
        let count = hashes.len() as u64;
        hashes.sort_unstable();
        hashes.dedup();
        (count, hashes)
    })
}

/// Counts what is written to it.
#[derive(Default)]
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.0 += buffer.len() as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Compresses texts end to end, beginning anew every [`BLOCK_BYTES`].
#[derive(Default)]
struct Blocks {
    encoder: Option<zstd::Encoder<'static, Counter>>,
    filled: usize,
    begun: u64,
    compressed: u64,
}

impl Blocks {
    fn add(&mut self, texts: &[&str]) -> Result<()> {
        self.feed(texts).map_err(|e| Error::config(format!("compression failed: {e}")))
    }

    fn feed(&mut self, texts: &[&str]) -> std::io::Result<()> {
        for text in texts {
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let encoder = match &mut self.encoder {
                    Some(encoder) => encoder,
                    slot => {
                        let mut encoder = zstd::Encoder::new(Counter::default(), LEVEL)?;
                        encoder.long_distance_matching(true)?;
                        encoder.window_log(BLOCK_LOG)?;
                        self.begun += 1;
                        slot.insert(encoder)
                    }
                };
                let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - self.filled));
                encoder.write_all(now)?;
                self.filled += now.len();
                rest = later;
                if self.filled == BLOCK_BYTES {
                    self.close()?;
                }
            }
        }
        Ok(())
    }

    fn close(&mut self) -> std::io::Result<()> {
        if let Some(encoder) = self.encoder.take() {
            self.compressed += encoder.finish()?.0;
        }
        self.filled = 0;
        Ok(())
    }

    fn finish(mut self, bytes: u64) -> Result<Compression> {
        self.close().map_err(|e| Error::config(format!("compression failed: {e}")))?;
        Ok(Compression {
            ratio: bytes as f64 / self.compressed.max(1) as f64,
            compressed_bytes: self.compressed,
            blocks: self.begun,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(folder: &std::path::Path, texts: &[String]) -> Corpus {
        let path = folder.join("d.jsonl");
        let line = |text: &String| serde_json::json!({ "text": text }).to_string();
        std::fs::write(&path, texts.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
        Corpus::open(&[path], &[]).unwrap()
    }

    fn all() -> Vec<String> {
        METRICS.map(str::to_owned).to_vec()
    }

    #[test]
    fn measures_repetition() {
        let folder = tempfile::tempdir().unwrap();
        let one = "def f(x):\n    return x + 1\n".to_owned();
        let two = "def g(x):\n    return x * 2\n".to_owned();
        let texts = vec![one.clone(), one.clone(), two, one];
        let found = measure(&corpus(folder.path(), &texts), &all(), 5, &|_, _, _| Ok(())).unwrap();
        assert_eq!(found.sample.documents, 4);
        let duplicates = found.duplicates.unwrap();
        assert_eq!((duplicates.distinct, duplicates.exact), (2, true));
        assert!((duplicates.rate - 0.5).abs() < 1e-12);
        let structure = found.structure.unwrap();
        assert_eq!((structure.functions, structure.richness), (4, 2));
        assert_eq!((structure.top[0].count, structure.top[0].example.as_str()), (3, "f"));
        assert_eq!(found.words.unwrap().total, 4 * 6);
        assert!(found.compression.unwrap().ratio > 1.0);
    }

    #[test]
    fn only_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(folder.path(), &["x = 1".to_owned()]);
        let found = measure(&corpus, &["words".to_owned()], 5, &|_, _, _| Ok(())).unwrap();
        assert!(found.words.is_some() && found.structure.is_none());
        assert!(found.compression.is_none() && found.duplicates.is_none());
        assert!(measure(&corpus, &["wrods".to_owned()], 5, &|_, _, _| Ok(())).is_err());
    }

    #[test]
    fn thread_count_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            |i: usize| format!("def f{i}(x):\n    return x + {}\n", "1 * ".repeat(i % 7) + "1");
        let texts: Vec<String> = (0..3000).map(text).collect();
        let corpus = corpus(folder.path(), &texts);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let alone = one.install(|| measure(&corpus, &all(), 5, &|_, _, _| Ok(()))).unwrap();
        assert_eq!(alone, measure(&corpus, &all(), 5, &|_, _, _| Ok(())).unwrap());
    }
}
