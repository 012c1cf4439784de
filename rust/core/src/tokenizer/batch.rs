//! Many texts at once: cut into chunks, encoded by several threads, put together in order.

use std::ops::Range;

use rayon::prelude::*;

use super::{Id, Special, Tokenizer, parallel, simd};
use crate::Result;

/// Bytes of text that one thread takes at a time, at least and at most; in between, an eighth of its
/// share.
const CHUNK_BYTES: usize = 256 << 10;
const MOST_CHUNK_BYTES: usize = 8 << 20;
/// From here on the system's work on small pages would cost more than large pages waste.
const LARGE_BYTES: usize = 4 << 20;

/// A stretch of one text.
struct Part {
    text: usize,
    range: Range<usize>,
}

/// Ids of many texts, one after another, and where each ends.
pub fn encode<T: Id, S: AsRef<str> + Sync>(
    tokenizer: &Tokenizer,
    texts: &[S],
    special: Special,
    threads: Option<usize>,
) -> Result<(Vec<T>, Vec<i64>)> {
    let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
    let encode = |parts: &[Part]| {
        let mut ends = Vec::with_capacity(parts.len());
        // A token of source code is about three bytes.
        let bytes: usize = parts.iter().map(|part| part.range.len()).sum();
        let mut ids = Vec::with_capacity(bytes / 2 + 1024);
        if bytes > LARGE_BYTES {
            simd::advise_large_pages(&mut ids);
        }
        tokenizer.encoder.with_worker(|worker| {
            for Part { text, range } in parts {
                let text = texts[*text].as_ref();
                let last = range.end == text.len();
                tokenizer.encode_range(worker, text, range.clone(), special, &mut ids);
                if last {
                    ends.push(ids.len() as i64);
                }
            }
        });
        (ids, ends)
    };
    if threads == Some(1) || bytes < 2 * CHUNK_BYTES {
        let whole = |(text, string): (usize, &S)| Part { text, range: 0..string.as_ref().len() };
        let parts: Vec<Part> = texts.iter().enumerate().map(whole).collect();
        return Ok(encode(&parts));
    }
    let parts = parts(tokenizer, texts);
    let share = bytes / (8 * parallel::run(threads, rayon::current_num_threads)?);
    let most = share.clamp(CHUNK_BYTES, MOST_CHUNK_BYTES);
    let chunks = chunks_of(&parts, most, |part| part.range.len());
    let encoded: Vec<(Vec<T>, Vec<i64>)> = parallel::run(threads, || {
        chunks.into_par_iter().map(|range| encode(&parts[range])).collect()
    })?;
    let count = encoded.iter().map(|(ids, _)| ids.len()).sum();
    // The system's zeros: each thread is the first to write its part.
    let mut all = vec![T::of(0); count];
    if count > LARGE_BYTES {
        simd::advise_large_pages(&mut all);
    }
    let mut ends = Vec::with_capacity(texts.len());
    let mut copies = Vec::with_capacity(encoded.len());
    let (mut rest, mut start) = (all.as_mut_slice(), 0);
    for (ids, chunk_ends) in encoded {
        ends.extend(chunk_ends.into_iter().map(|end| start + end));
        start += ids.len() as i64;
        let (own, others) = rest.split_at_mut(ids.len());
        copies.push((own, ids));
        rest = others;
    }
    parallel::run(threads, || {
        copies.into_par_iter().for_each(|(own, ids)| own.copy_from_slice(&ids));
    })?;
    Ok((all, ends))
}

/// Texts in parts: whole, but for the very long, if the tokenizer allows a cut.
fn parts<S: AsRef<str>>(tokenizer: &Tokenizer, texts: &[S]) -> Vec<Part> {
    let mut parts = Vec::with_capacity(texts.len());
    for (text, string) in texts.iter().enumerate() {
        let string = string.as_ref();
        let mut start = 0;
        while tokenizer.can_cut && string.len() - start > 2 * CHUNK_BYTES {
            let Some(at) = cut(string.as_bytes(), start + CHUNK_BYTES) else { break };
            parts.push(Part { text, range: start..at });
            start = at;
        }
        parts.push(Part { text, range: start..string.len() });
    }
    parts
}

/// The first place from `from` on where a text may be cut with equal ids on either side: before a
/// single space or after a single newline between visible ASCII characters. A piece starts there
/// whatever else stands in the text, and the piece before ends the same without what follows.
fn cut(text: &[u8], from: usize) -> Option<usize> {
    let visible = |byte: u8| byte.is_ascii_graphic();
    let found = text[from..]
        .windows(3)
        .position(|around| matches!(around, [a, b' ' | b'\n', c] if visible(*a) && visible(*c)))?;
    let white = from + found + 1;
    Some(white + usize::from(text[white] == b'\n'))
}

/// Neighbouring texts of about [`CHUNK_BYTES`] together.
pub fn chunks<S: AsRef<str>>(texts: &[S]) -> Vec<Range<usize>> {
    chunks_of(texts, CHUNK_BYTES, |text| text.as_ref().len())
}

/// Neighbouring items of about so many bytes together.
fn chunks_of<P>(items: &[P], most: usize, size: impl Fn(&P) -> usize) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, item) in items.iter().enumerate() {
        bytes += size(item);
        if bytes >= most || i + 1 == items.len() {
            chunks.push(start..i + 1);
            (start, bytes) = (i + 1, 0);
        }
    }
    chunks
}
