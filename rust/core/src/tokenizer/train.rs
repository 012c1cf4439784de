//! Learning merges: HF's `BpeTrainer` with the `ByteLevel` pre-tokenizer and its full alphabet,
//! result for result. Words are counted in parallel; merging is one thread and touches only the words
//! that hold the merged pair.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::batch::chunks;
use super::split::Pieces;
use super::{Added, MAX_VOCAB, Vocabulary, builtin, parallel};
use crate::{Error, Result};

type Pair = (u32, u32);

/// Counts words, then learns a vocabulary from the counts.
#[derive(Debug, Default)]
pub struct Trainer {
    counts: FxHashMap<String, u64>,
}

/// A pair in the queue: the most frequent first, then the smaller ids.
#[derive(PartialEq, Eq)]
struct Candidate {
    count: i64,
    pair: Pair,
    words: Vec<u32>,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.count.cmp(&other.count).then_with(|| other.pair.cmp(&self.pair))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Where each pair's count changes, and in which words it newly stands.
#[derive(Default)]
struct Pairs {
    counts: FxHashMap<Pair, i64>,
    new: FxHashMap<Pair, Vec<u32>>,
}

impl Pairs {
    fn change(&mut self, pair: Pair, by: i64, word: u32) {
        *self.counts.entry(pair).or_default() += by;
        if by > 0 {
            let words = self.new.entry(pair).or_default();
            if words.last() != Some(&word) {
                words.push(word);
            }
        }
    }

    /// Queues every pair that newly stands somewhere.
    fn queue(&mut self, heap: &mut BinaryHeap<Candidate>) {
        let mut new: Vec<(Pair, Vec<u32>)> = self.new.drain().collect();
        new.sort_unstable_by_key(|(pair, _)| *pair);
        for (pair, words) in new {
            let count = self.counts[&pair];
            if count > 0 {
                heap.push(Candidate { count, pair, words });
            }
        }
    }
}

impl Trainer {
    /// Counts the words of some texts.
    pub fn feed<S: AsRef<str> + Sync>(&mut self, texts: &[S]) -> Result<()> {
        let count = |range: &std::ops::Range<usize>| {
            let mut counts: FxHashMap<&str, u64> = FxHashMap::default();
            for text in &texts[range.clone()] {
                let text = text.as_ref();
                for (start, end) in Pieces::new(text) {
                    *counts.entry(&text[start..end]).or_default() += 1;
                }
            }
            counts
        };
        let chunks = chunks(texts);
        let counted: Vec<_> = if chunks.len() < 2 {
            chunks.iter().map(count).collect()
        } else {
            parallel::run(None, || chunks.par_iter().map(count).collect())?
        };
        for (word, count) in counted.into_iter().flatten() {
            match self.counts.get_mut(word) {
                Some(known) => *known += count,
                None => {
                    self.counts.insert(word.to_owned(), count);
                }
            }
        }
        Ok(())
    }

    /// Learns a vocabulary of at most `vocab_size` tokens: the special tokens, the 256 bytes, merges.
    pub fn finish(self, vocab_size: usize, special: &[String]) -> Result<Vocabulary> {
        if vocab_size > MAX_VOCAB {
            return Err(Error::config(format!("vocab_size = {vocab_size}: at most {MAX_VOCAB}")));
        }
        let mut tokens: Vec<String> = Vec::new();
        let mut ids: FxHashMap<String, u32> = FxHashMap::default();
        let letters = builtin::alphabet().into_iter().map(String::from);
        for token in special.iter().cloned().chain(letters) {
            if token.is_empty() {
                return Err(Error::config("a special token is empty"));
            }
            if !ids.contains_key(&token) {
                ids.insert(token.clone(), tokens.len() as u32);
                tokens.push(token);
            }
        }
        if vocab_size < tokens.len() {
            return Err(Error::config(format!(
                "vocab_size = {vocab_size}: the special tokens and the 256 bytes alone are {}",
                tokens.len()
            )));
        }
        let merges = learn(self.counts, vocab_size, &mut tokens, &mut ids);
        let mut added: Vec<Added> = Vec::new();
        for content in special {
            if !added.iter().any(|token| token.content == *content) {
                let id = ids[content];
                added.push(Added {
                    content: content.clone(),
                    id,
                    special: true,
                    normalized: false,
                });
            }
        }
        Ok(Vocabulary { tokens: tokens.into_iter().map(Some).collect(), merges, added })
    }
}

fn learn(
    counts: FxHashMap<String, u64>,
    vocab_size: usize,
    tokens: &mut Vec<String>,
    ids: &mut FxHashMap<String, u32>,
) -> Vec<Pair> {
    let byte_ids: Vec<u32> =
        builtin::byte_letters().iter().map(|letter| ids[letter.to_string().as_str()]).collect();
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_unstable();
    let mut words: Vec<Vec<u32>> = counts
        .iter()
        .map(|(word, _)| word.bytes().map(|byte| byte_ids[usize::from(byte)]).collect())
        .collect();
    let counts: Vec<i64> = counts.into_iter().map(|(_, count)| count as i64).collect();
    let mut pairs = Pairs::default();
    for (index, word) in words.iter().enumerate() {
        for pair in word.windows(2) {
            pairs.change((pair[0], pair[1]), counts[index], index as u32);
        }
    }
    let mut heap = BinaryHeap::new();
    pairs.queue(&mut heap);
    let mut merges = Vec::new();
    while tokens.len() < vocab_size
        && let Some(mut top) = heap.pop()
    {
        let count = pairs.counts[&top.pair];
        if top.count != count {
            // Queued before other merges took some of its places.
            top.count = count;
            heap.push(top);
            continue;
        }
        if count < 1 {
            break;
        }
        let joined = format!("{}{}", tokens[top.pair.0 as usize], tokens[top.pair.1 as usize]);
        let id = *ids.entry(joined).or_insert_with_key(|joined| {
            tokens.push(joined.clone());
            tokens.len() as u32 - 1
        });
        merges.push(top.pair);
        for &index in &top.words {
            let word = index as usize;
            merge(&mut words[word], top.pair, id, |pair, by| {
                pairs.change(pair, by * counts[word], index);
            });
        }
        pairs.queue(&mut heap);
    }
    merges
}

/// Replaces a pair in a word, left to right, and reports which neighbouring pairs come and go.
fn merge(word: &mut Vec<u32>, pair: Pair, id: u32, mut change: impl FnMut(Pair, i64)) {
    let (mut read, mut write) = (0, 0);
    while read < word.len() {
        if word[read] == pair.0 && word.get(read + 1) == Some(&pair.1) {
            if write > 0 {
                change((word[write - 1], pair.0), -1);
                change((word[write - 1], id), 1);
            }
            if let Some(&next) = word.get(read + 2) {
                change((pair.1, next), -1);
                change((id, next), 1);
            }
            word[write] = id;
            read += 2;
        } else {
            word[write] = word[read];
            read += 1;
        }
        write += 1;
    }
    word.truncate(write);
}

#[cfg(test)]
mod tests {
    use super::Trainer;
    use crate::tokenizer::{END_OF_TEXT, Special, Tokenizer};

    #[test]
    fn learns_the_frequent_and_fits_the_size() {
        let mut trainer = Trainer::default();
        trainer.feed(&["low lower lowest low", "newest newest"]).unwrap();
        let vocabulary = trainer.finish(262, &[END_OF_TEXT.to_owned()]).unwrap();
        let tokens: Vec<&str> = vocabulary.tokens.iter().flatten().map(String::as_str).collect();
        // Equal counts go to the smaller pair of ids.
        assert_eq!(tokens[0], END_OF_TEXT);
        assert_eq!(&tokens[257..], ["lo", "we", "st", "Ġlo", "west"]);
        let tokenizer = Tokenizer::new(vocabulary).unwrap();
        let mut ids = Vec::<u16>::new();
        tokenizer.encode("lo<|endoftext|>", Special::Token, &mut ids);
        assert_eq!(ids, [257, 0]);
    }

    #[test]
    fn a_size_below_the_alphabet_is_refused() {
        assert!(Trainer::default().finish(100, &[]).is_err());
    }
}
