//! Byte-level BPE with GPT-2's pre-tokenizer, exact to HF tokenizers 0.23.
//!
//! Text is split on added tokens ([`added`]), each stretch between them into pieces ([`split`]), each
//! piece is merged by rank ([`bpe`]). No regular expression, no recursion; time is linear in the text,
//! `n log n` in one piece. Each thread keeps a 3 MiB cache of short pieces.

mod added;
mod bpe;
mod builtin;
mod cache;
mod classes;
mod json;
mod parallel;
mod split;
mod train;

pub use added::Added;
pub use train::Trainer;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::{Error, Result};
use added::Trie;
use bpe::Merges;
use cache::Cache;
use split::Pieces;

/// The token that ends a document.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Largest vocabulary whose ids fit 16 bits.
pub const MAX_U16_VOCAB: usize = 1 << 16;
/// Bytes of text that one thread takes at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// What to do with special tokens that stand in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// They become their token.
    Token,
    /// They are plain text, so that text cannot forge a document end.
    Text,
}

/// An integer that holds token ids.
pub trait Id: Copy + Send + Sync + 'static {
    /// The id as this type; the vocabulary is known to fit.
    fn of(id: u32) -> Self;
}

impl Id for u16 {
    fn of(id: u32) -> Self {
        id as Self
    }
}

impl Id for u32 {
    fn of(id: u32) -> Self {
        id
    }
}

/// A vocabulary and its merges: what a `tokenizer.json` says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// The model's tokens by id, in HF's form (one letter a byte); `None` where only an added token
    /// or nothing has this id.
    pub tokens: Vec<Option<String>>,
    /// Pairs of ids, best first.
    pub merges: Vec<(u32, u32)>,
    /// Added tokens, in order of addition.
    pub added: Vec<Added>,
}

/// A tokenizer; immutable, and shared between threads freely.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    merges: Merges,
    /// Added tokens that HF matches first, then the others.
    tries: [Trie; 2],
    /// The bytes each id stands for.
    bytes: Vec<Vec<u8>>,
    /// Tells tokenizers apart in the threads' caches.
    number: u32,
}

static NUMBERS: AtomicU32 = AtomicU32::new(1);

impl Tokenizer {
    /// Checks a vocabulary and prepares it for use; the error says what is missing.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, String> {
        let ids: FxHashMap<&str, u32> = vocabulary
            .tokens
            .iter()
            .enumerate()
            .filter_map(|(id, token)| Some((token.as_deref()?, id as u32)))
            .collect();
        let mut byte_ids = [0; 256];
        for (byte, letter) in builtin::byte_letters().into_iter().enumerate() {
            let id = ids.get(letter.to_string().as_str());
            byte_ids[byte] = *id.ok_or_else(|| {
                format!("no token for byte {byte:#04x}: not a byte-level vocabulary")
            })?;
        }
        let mut joined = String::new();
        let mut merges = Vec::with_capacity(vocabulary.merges.len());
        for (rank, &(left, right)) in vocabulary.merges.iter().enumerate() {
            joined.clear();
            for id in [left, right] {
                let token = vocabulary.tokens.get(id as usize).and_then(Option::as_deref);
                joined.push_str(token.ok_or_else(|| format!("merge {rank} names no token"))?);
            }
            let id = *ids
                .get(joined.as_str())
                .ok_or_else(|| format!("merge {rank} makes `{joined}`, which is no token"))?;
            merges.push((left, right, id));
        }
        let size = vocabulary.added.iter().map(|token| token.id as usize + 1).max().unwrap_or(0);
        let mut bytes = vec![Vec::new(); size.max(vocabulary.tokens.len())];
        let letters = builtin::letter_bytes();
        for (id, token) in vocabulary.tokens.iter().enumerate() {
            if let Some(token) = token {
                bytes[id] = builtin::token_bytes(token, &letters);
            }
        }
        for token in &vocabulary.added {
            bytes[token.id as usize] = builtin::token_bytes(&token.content, &letters);
        }
        Ok(Self {
            merges: Merges::new(&byte_ids, merges),
            tries: [false, true]
                .map(|second| Trie::new(&vocabulary.added, |token| token.normalized == second)),
            bytes,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            vocabulary,
        })
    }

    /// Reads a `tokenizer.json`; refuses what is not byte-level BPE with GPT-2's pattern.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => Error::input(path, "is not UTF-8 text"),
            _ => Error::io(path)(error),
        })?;
        Self::from_json(&text).map_err(|message| Error::input(path, message))
    }

    /// Reads the text of a `tokenizer.json`; the error says what was refused.
    pub fn from_json(text: &str) -> Result<Self, String> {
        json::read(text).and_then(Self::new)
    }

    /// The text of a `tokenizer.json` that HF opens with equal ids.
    pub fn to_json(&self) -> String {
        json::write(&self.vocabulary)
    }

    /// GPT-2's tokenizer: 50,257 tokens.
    pub fn gpt2() -> Self {
        Self::new(builtin::gpt2()).expect("the built-in vocabulary is whole")
    }

    /// The tokenizer of codegen-350M-mono and phi-1: GPT-2's and 38 runs of spaces and tabs, 50,295
    /// tokens.
    pub fn codegen() -> Self {
        Self::new(builtin::codegen()).expect("the built-in vocabulary is whole")
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The id of `<|endoftext|>`.
    pub fn end_of_text(&self) -> Option<u32> {
        let added = &self.vocabulary.added;
        added.iter().find(|token| token.content == END_OF_TEXT).map(|token| token.id)
    }

    /// Whether plain text can become the token `id`.
    pub fn can_come_from_text(&self, id: u32) -> bool {
        self.vocabulary.added.iter().any(|token| token.id == id && !token.special)
            || self.merges.makes(id)
    }

    /// xxh3-128 of tokens, merges and added tokens: equal for equal tokenizers, however the file was
    /// laid out.
    pub fn hash(&self) -> String {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let mut add = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for token in &self.vocabulary.tokens {
            add(token.as_deref().unwrap_or_default().as_bytes());
        }
        add(b"merges");
        for &(left, right) in &self.vocabulary.merges {
            add(&(u64::from(left) << 32 | u64::from(right)).to_le_bytes());
        }
        for token in &self.vocabulary.added {
            add(token.content.as_bytes());
            // Which pass finds a token only matters where there are two.
            let second = token.normalized != self.vocabulary.added[0].normalized;
            let flags = u32::from(token.special) | u32::from(second) << 1;
            add(&(u64::from(token.id) << 32 | u64::from(flags)).to_le_bytes());
        }
        format!("{:032x}", hash.digest128())
    }

    /// Appends the ids of a text.
    pub fn encode<T: Id>(&self, text: &str, special: Special, out: &mut Vec<T>) {
        Cache::with(|cache| {
            let [first, second] = &self.tries;
            self.split(first, text, special, out, &mut |text, out| {
                self.split(second, text, special, out, &mut |text, out| {
                    self.encode_plain(text, cache, out);
                });
            });
        });
    }

    /// Cuts a text at the added tokens of one trie and hands what lies between them to `rest`.
    fn split<T: Id>(
        &self,
        trie: &Trie,
        text: &str,
        special: Special,
        out: &mut Vec<T>,
        rest: &mut impl FnMut(&str, &mut Vec<T>),
    ) {
        let (mut done, mut from) = (0, 0);
        if !trie.is_empty() {
            while let Some((start, end, index)) = trie.find(text.as_bytes(), from) {
                from = end;
                let token = &self.vocabulary.added[index];
                // As in HF, an unwanted special token is text, but still hides what it overlaps.
                if token.special && special == Special::Text {
                    continue;
                }
                rest(&text[done..start], out);
                out.push(T::of(token.id));
                done = end;
            }
        }
        rest(&text[done..], out);
    }

    fn encode_plain<T: Id>(&self, text: &str, cache: &mut Cache, out: &mut Vec<T>) {
        for (start, end) in Pieces::new(text) {
            if end - start == 1 {
                out.push(T::of(self.merges.byte(text.as_bytes()[start])));
                continue;
            }
            let Some(key) = cache::key(text.as_bytes(), start, end) else {
                self.merges.encode(&text.as_bytes()[start..end], |id| out.push(T::of(id)));
                continue;
            };
            let slot = cache.slot(key, self.number);
            if !slot.holds(key, self.number) {
                slot.fill(key, self.number);
                self.merges.encode(&text.as_bytes()[start..end], |id| {
                    slot.push(id);
                    out.push(T::of(id));
                });
                continue;
            }
            out.extend(slot.ids().iter().map(|&id| T::of(id)));
        }
    }

    /// Ids of many texts, one after another, and where each ends. The same for any thread count
    /// (`None`: one thread a core).
    pub fn encode_batch<T: Id, S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        special: Special,
        threads: Option<usize>,
    ) -> Result<(Vec<T>, Vec<i64>)> {
        let encode = |range: &Range<usize>| {
            let (mut ids, mut ends) = (Vec::new(), Vec::with_capacity(range.len()));
            for text in &texts[range.clone()] {
                self.encode(text.as_ref(), special, &mut ids);
                ends.push(ids.len() as i64);
            }
            (ids, ends)
        };
        let chunks = chunks(texts);
        let encoded: Vec<(Vec<T>, Vec<i64>)> = if chunks.len() < 2 || threads == Some(1) {
            chunks.iter().map(encode).collect()
        } else {
            parallel::run(threads, || chunks.par_iter().map(encode).collect())?
        };
        let mut all = Vec::with_capacity(encoded.iter().map(|(ids, _)| ids.len()).sum());
        let mut ends = Vec::with_capacity(texts.len());
        for (ids, chunk_ends) in encoded {
            let start = all.len() as i64;
            ends.extend(chunk_ends.into_iter().map(|end| start + end));
            all.extend_from_slice(&ids);
        }
        Ok((all, ends))
    }

    /// The bytes of some ids; ids outside the vocabulary stand for none, as in HF.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect()
    }

    /// The bytes one id stands for.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }
}

/// Neighbouring texts of about [`CHUNK_BYTES`] together.
fn chunks<S: AsRef<str>>(texts: &[S]) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, text) in texts.iter().enumerate() {
        bytes += text.as_ref().len();
        if bytes >= CHUNK_BYTES || i + 1 == texts.len() {
            chunks.push(start..i + 1);
            (start, bytes) = (i + 1, 0);
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::{Special, Tokenizer};

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        tokenizer.encode(text, Special::Token, &mut out);
        out
    }

    #[test]
    fn codegen_and_gpt2_by_hand() {
        let (gpt2, codegen) = (Tokenizer::gpt2(), Tokenizer::codegen());
        assert_eq!((gpt2.vocab_size(), codegen.vocab_size()), (50_257, 50_295));
        assert_eq!(ids(&gpt2, "hello world"), [31_373, 995]);
        assert_eq!(ids(&codegen, "hello world"), [31_373, 995]);
        assert_eq!(ids(&codegen, "a<|endoftext|>b"), [64, 50_256, 65]);
        let spaces = " ".repeat(32) + "b";
        assert_eq!(ids(&codegen, &spaces), [50_257, 275]);
        assert_eq!(ids(&codegen, "\t\tx"), [50_294, 87]);
        let mut text = Vec::<u16>::new();
        codegen.encode("<|endoftext|>", Special::Text, &mut text);
        assert!(text.len() > 1 && !text.contains(&50_256));
        assert!(!codegen.can_come_from_text(50_256) && codegen.can_come_from_text(50_286));
    }

    #[test]
    fn pathological_texts_are_quick() {
        let codegen = Tokenizer::codegen();
        for unit in ["a", " ", "\n", "\u{2003}", " \t", "漢", "'", "<"] {
            let text = unit.repeat(200_000);
            let encoded = ids(&codegen, &text);
            assert_eq!(codegen.decode(&encoded), text.as_bytes());
        }
    }

    #[test]
    fn json_round_trip_keeps_everything() {
        let codegen = Tokenizer::codegen();
        let again = Tokenizer::from_json(&codegen.to_json()).unwrap();
        assert_eq!(again.vocabulary(), codegen.vocabulary());
        assert_eq!(again.hash(), codegen.hash());
        assert_ne!(again.hash(), Tokenizer::gpt2().hash());
    }

    proptest! {
        #[test]
        fn decode_inverts_encode(text in "(\\PC|[ \t\n']|<\\|endoftext\\|>){0,60}") {
            static CODEGEN: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::codegen);
            prop_assert_eq!(CODEGEN.decode(&ids(&CODEGEN, &text)), text.as_bytes());
        }
    }
}
