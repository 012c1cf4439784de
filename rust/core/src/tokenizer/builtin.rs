//! GPT-2's byte alphabet and merges, and the two vocabularies made of them.
//!
//! A vocabulary writes each byte as a visible letter: itself where Latin-1 has one, else a letter from
//! U+0100 on. In GPT-2 the ids 0..256 are the bytes in the order of their letters, and id `256 + i`
//! is what merge `i` makes.

use rustc_hash::FxHashMap;

use super::{Added, END_OF_TEXT, Vocabulary};

/// 50,000 times `u16 left, u16 right`; see `build.rs`.
static GPT2_MERGES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gpt2_merges.bin"));

/// The letter of each byte.
pub fn byte_letters() -> [char; 256] {
    let mut hidden = 256_u32..;
    std::array::from_fn(|byte| match byte as u8 {
        33..=126 | 161..=172 | 174..=255 => char::from(byte as u8),
        _ => hidden.next().and_then(char::from_u32).expect("letters below U+0200"),
    })
}

/// The byte of each letter.
pub fn letter_bytes() -> FxHashMap<char, u8> {
    byte_letters().into_iter().enumerate().map(|(byte, letter)| (letter, byte as u8)).collect()
}

/// The bytes a token stands for: by its letters if all are letters of bytes, else its own.
pub fn token_bytes(token: &str, letters: &FxHashMap<char, u8>) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| letters.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Letters in the order of their code points, as GPT-2 and HF's trainer number them.
pub fn alphabet() -> Vec<char> {
    let mut letters = byte_letters().to_vec();
    letters.sort_unstable();
    letters
}

/// GPT-2's vocabulary.
pub fn gpt2() -> Vocabulary {
    let mut tokens: Vec<String> = alphabet().into_iter().map(String::from).collect();
    let mut merges = Vec::with_capacity(GPT2_MERGES.len() / 4);
    for pair in GPT2_MERGES.chunks_exact(4) {
        let left = u16::from_le_bytes([pair[0], pair[1]]);
        let right = u16::from_le_bytes([pair[2], pair[3]]);
        tokens.push(format!("{}{}", tokens[usize::from(left)], tokens[usize::from(right)]));
        merges.push((u32::from(left), u32::from(right)));
    }
    tokens.push(END_OF_TEXT.to_owned());
    let end = Added {
        content: END_OF_TEXT.to_owned(),
        id: tokens.len() as u32 - 1,
        special: true,
        normalized: false,
    };
    Vocabulary { tokens: tokens.into_iter().map(Some).collect(), merges, added: vec![end] }
}

/// codegen-350M-mono's vocabulary: GPT-2's, 31 to 2 spaces, 9 to 2 tabs.
pub fn codegen() -> Vocabulary {
    let mut vocabulary = gpt2();
    let spaces = (2..32).rev().map(|count| " ".repeat(count));
    let tabs = (2..10).rev().map(|count| "\t".repeat(count));
    let first = vocabulary.tokens.len();
    for (content, id) in spaces.chain(tabs).zip(first as u32..) {
        vocabulary.added.push(Added { content, id, special: false, normalized: true });
    }
    vocabulary
}
