//! Byte-level BPE with GPT-2's pre-tokenizer, exact to HF tokenizers 0.23.
//!
//! Text is cut at added tokens ([`added`]) and into pieces ([`boundaries`], 64 bytes at a time by
//! [`simd`]); a piece's ids come from the worker's [`cache`], or are merged by rank ([`bpe`], long
//! pieces by [`backtrack`]). No regular expression, no recursion; time is linear in the text. A worker
//! keeps at most 27 MiB. The definition stands beside all this: [`split`], one character at a time,
//! and [`Tokenizer::encode_by_definition`].

mod added;
mod backtrack;
mod batch;
mod boundaries;
mod bpe;
mod builtin;
mod cache;
mod classes;
mod encoder;
mod json;
mod parallel;
mod perfect;
pub(crate) mod simd;
mod split;
mod train;

pub use added::Added;
pub use simd::Level;
pub use train::Trainer;

use std::ops::Range;
use std::path::Path;

use rustc_hash::FxHashMap;

use crate::{Error, Result};
use added::Trie;
use backtrack::Backtrack;
use bpe::Merges;
use encoder::{Encoder, Worker};
use split::Pieces;

/// The token that ends a document.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Largest vocabulary whose ids fit 16 bits.
pub const MAX_U16_VOCAB: usize = 1 << 16;
/// Most tokens and merges of a vocabulary, so that a pair of ids and its rank fit 64 bits.
pub const MAX_VOCAB: usize = 1 << bpe::ID_BITS;

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
    encoder: Encoder,
    /// Added tokens that are looked for before pieces are: those HF matches first, then the others,
    /// without the runs of white space that pieces are cut at anyway.
    tries: [Trie; 2],
    /// The same with the runs, as the definition has it.
    all_tries: [Trie; 2],
    /// Whether no added token holds white space, runs aside, so that a text may be cut beside it.
    can_cut: bool,
    /// The bytes each id stands for.
    bytes: Vec<Vec<u8>>,
}

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
        if bytes.len().max(merges.len()) > MAX_VOCAB {
            return Err(format!("more than {MAX_VOCAB} tokens or merges"));
        }
        let letters = builtin::letter_bytes();
        for (id, token) in vocabulary.tokens.iter().enumerate() {
            if let Some(token) = token {
                bytes[id] = builtin::token_bytes(token, &letters);
            }
        }
        for token in &vocabulary.added {
            bytes[token.id as usize] = builtin::token_bytes(&token.content, &letters);
        }
        let tries = |wanted: &dyn Fn(&Added) -> bool| {
            [false, true].map(|second| {
                Trie::new(&vocabulary.added, |token| token.normalized == second && wanted(token))
            })
        };
        let list = merges;
        let merges = Merges::new(&byte_ids, &list);
        let backtrack = Backtrack::new(&merges, &list, &bytes);
        let runs = added::runs(&vocabulary.added);
        let in_run = |token: &Added| runs.iter().any(|ids| ids.contains(&token.id));
        let can_cut = |token: &Added| in_run(token) || !token.content.contains(char::is_whitespace);
        Ok(Self {
            tries: tries(&|token| !in_run(token)),
            all_tries: tries(&|_| true),
            can_cut: vocabulary.added.iter().all(can_cut),
            encoder: Encoder::new(merges, backtrack, runs.clone(), &bytes),
            bytes,
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
            || self.encoder.merges().makes(id)
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

    /// The instructions that split text here: `avx512`, `avx2`, `sse2`, `neon` or `scalar`.
    pub fn level(&self) -> Level {
        self.encoder.level()
    }

    /// The same tokenizer with other instructions; for tests and benchmarks.
    #[must_use]
    pub fn with_level(mut self, level: Level) -> Self {
        self.encoder.set_level(level);
        self
    }

    /// Appends the ids of a text.
    pub fn encode<T: Id>(&self, text: &str, special: Special, out: &mut Vec<T>) {
        self.encoder
            .with_worker(|worker| self.encode_range(worker, text, 0..text.len(), special, out));
    }

    /// Appends the ids of a stretch of a text, with a worker at hand.
    fn encode_range<T: Id>(
        &self,
        worker: &mut Worker,
        text: &str,
        range: Range<usize>,
        special: Special,
        out: &mut Vec<T>,
    ) {
        let [first, second] = &self.tries;
        let mut plain = |range, out: &mut Vec<T>| self.encoder.encode(worker, text, range, out);
        self.cut(first, text, range, special, out, &mut |range, out| {
            self.cut(second, text, range, special, out, &mut plain);
        });
    }

    /// Appends the ids of a text by the definition: one character at a time, each piece merged anew.
    /// What the fast way is tested against.
    pub fn encode_by_definition<T: Id>(&self, text: &str, special: Special, out: &mut Vec<T>) {
        let [first, second] = &self.all_tries;
        let mut plain = |range: Range<usize>, out: &mut Vec<T>| {
            let text = &text[range];
            for (start, end) in Pieces::new(text) {
                let piece = &text.as_bytes()[start..end];
                self.encoder.merges().encode_by_heap(piece, |id| out.push(T::of(id)));
            }
        };
        self.cut(first, text, 0..text.len(), special, out, &mut |range, out| {
            self.cut(second, text, range, special, out, &mut plain);
        });
    }

    /// Cuts a stretch of text at the added tokens of one trie and hands what lies between them to
    /// `rest`.
    fn cut<T: Id>(
        &self,
        trie: &Trie,
        text: &str,
        range: Range<usize>,
        special: Special,
        out: &mut Vec<T>,
        rest: &mut impl FnMut(Range<usize>, &mut Vec<T>),
    ) {
        let (mut done, mut from) = (range.start, range.start);
        if !trie.is_idle(special) {
            let bytes = &text.as_bytes()[..range.end];
            while let Some((start, end, index)) = trie.find(bytes, from) {
                from = end;
                let token = &self.vocabulary.added[index];
                // As in HF, an unwanted special token is text, but still hides what it overlaps.
                if token.special && special == Special::Text {
                    continue;
                }
                if done < start {
                    rest(done..start, out);
                }
                out.push(T::of(token.id));
                done = end;
            }
        }
        if done < range.end {
            rest(done..range.end, out);
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
        batch::encode(self, texts, special, threads)
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::{Level, Special, Tokenizer};

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
    fn long_pieces_are_the_same_the_second_time() {
        let (gpt2, codegen) = (Tokenizer::gpt2(), Tokenizer::codegen());
        for tokenizer in [&gpt2, &codegen] {
            for unit in ["a", "ab", " ", "\t", "\n", " \t", "漢", "🙂", "^"] {
                let most = (1 << 20) / unit.len();
                let far = (1 << 16) / unit.len();
                for count in
                    [200, 255 / unit.len(), 256 / unit.len(), far - 7, 2 * far, most, most + 1]
                {
                    let text =
                        format!("def f{}x = 1 + {}y", unit.repeat(count), unit.repeat(count / 2));
                    let first = ids(tokenizer, &text);
                    assert_eq!(ids(tokenizer, &text), first);
                    assert_eq!(tokenizer.decode(&first), text.as_bytes());
                    if count <= 2 * far {
                        let mut expected = Vec::<u32>::new();
                        tokenizer.encode_by_definition(&text, Special::Token, &mut expected);
                        assert_eq!(first, expected);
                    }
                }
            }
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

    /// Text made of what the rules are about, long enough to cross blocks at every place.
    fn texts() -> impl Strategy<Value = String> {
        let repeat = |unit: &'static str, most: usize| (0..most).prop_map(move |n| unit.repeat(n));
        let word = prop_oneof![
            4 => "[a-zA-Z]{1,9}|[0-9]{1,5}|[-+*/=<>(){}.,:'\"#|]{1,4}",
            4 => prop_oneof![repeat(" ", 70), repeat("\t", 30), repeat("\n", 5), Just(" ".into())],
            2 => "'(s|t|re|ve|m|ll|d|S|x)?",
            1 => prop_oneof![repeat("a", 90), repeat("-", 90), repeat("\u{3000}", 25)],
            2 => "(\u{85}|\u{a0}|\u{2028}|\u{3000}|\r\n| \t|\u{b}|\u{1c}|\0){1,3}",
            2 => "\\PC{1,12}",
            1 => prop::collection::vec(any::<char>(), 1..30).prop_map(String::from_iter),
            1 => "<\\|endoftext\\|>|<\\|endof|\\|>",
        ];
        prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn every_level_follows_the_definition(text in texts(), as_text in any::<bool>()) {
            static ALL: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
                let levels = Level::available().into_iter();
                levels
                    .flat_map(|l| [Tokenizer::gpt2().with_level(l), Tokenizer::codegen().with_level(l)])
                    .collect()
            });
            let special = if as_text { Special::Text } else { Special::Token };
            for tokenizer in &*ALL {
                let (mut fast, mut plain) = (Vec::<u32>::new(), Vec::<u32>::new());
                tokenizer.encode(&text, special, &mut fast);
                tokenizer.encode_by_definition(&text, special, &mut plain);
                prop_assert_eq!(&fast, &plain, "{}", tokenizer.level().name());
                prop_assert_eq!(tokenizer.decode(&fast), text.as_bytes());
                let mut narrow = Vec::<u16>::new();
                tokenizer.encode(&text, special, &mut narrow);
                prop_assert!(narrow.iter().map(|&id| u32::from(id)).eq(fast));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_long_text_is_cut_where_ids_stay_equal(seed in texts(), unit in texts()) {
            static CODEGEN: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::codegen);
            let text = seed + &unit.repeat(1_000_000 / unit.len().max(1));
            let expected = ids(&CODEGEN, &text);
            let (all, ends) = CODEGEN.encode_batch::<u32, _>(&[text], Special::Token, Some(2)).unwrap();
            prop_assert_eq!(&ends, &[expected.len() as i64]);
            prop_assert!(all == expected);
        }
    }

    proptest! {
        #[test]
        fn decode_inverts_encode(text in "(\\PC|[ \t\n']|<\\|endoftext\\|>){0,60}") {
            static CODEGEN: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::codegen);
            prop_assert_eq!(CODEGEN.decode(&ids(&CODEGEN, &text)), text.as_bytes());
        }
    }
}
