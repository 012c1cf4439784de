//! Many texts at once: cut into chunks, encoded by several threads, put together in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::encoder::Worker;
use super::{Id, Special, Tokenizer, parallel, simd};
use crate::Result;

/// Bytes of text that one thread takes at a time, at least and at most; in between, an eighth of its
/// share.
const CHUNK_BYTES: usize = 256 << 10;
const MOST_CHUNK_BYTES: usize = 1 << 20;
/// From here on the system's work on small pages would cost more than large pages waste.
const LARGE_BYTES: usize = 4 << 20;

/// A stretch of one text.
struct Part {
    text: usize,
    range: Range<usize>,
}

/// Room for the ids of so much text: a token of source code is about three bytes.
fn room(bytes: usize) -> usize {
    bytes / 2 + 1024
}

/// Ids of many texts, one after another, and where each ends.
pub fn encode<T: Id, S: AsRef<str> + Sync>(
    tokenizer: &Tokenizer,
    texts: &[S],
    special: Special,
    threads: Option<usize>,
) -> Result<(Vec<T>, Vec<i64>)> {
    let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
    let encode = |worker: &mut Worker, parts: &[Part], (ids, ends): &mut Encoded<T>| {
        for Part { text, range } in parts {
            let text = texts[*text].as_ref();
            let last = range.end == text.len();
            tokenizer.encode_range(worker, text, range.clone(), special, ids);
            if last {
                ends.push(ids.len() as i64);
            }
        }
    };
    if threads == Some(1) || bytes < 2 * CHUNK_BYTES {
        let whole = |(text, string): (usize, &S)| Part { text, range: 0..string.as_ref().len() };
        let parts: Vec<Part> = texts.iter().enumerate().map(whole).collect();
        let mut encoded = (Vec::with_capacity(room(bytes)), Vec::with_capacity(parts.len()));
        if bytes > LARGE_BYTES {
            simd::advise_large_pages(&mut encoded.0);
        }
        tokenizer.encoder.with_worker(|worker| encode(worker, &parts, &mut encoded));
        return Ok(encoded);
    }
    let parts = parts(tokenizer, texts);
    let workers = parallel::run(threads, rayon::current_num_threads)?;
    let most = (bytes / (8 * workers)).clamp(CHUNK_BYTES, MOST_CHUNK_BYTES);
    let chunks = chunks_of(&parts, most, |part| part.range.len());
    // The system's zeros: the thread that fills a part is the first to write to it.
    let mut all = vec![T::of(0); room(bytes)];
    if bytes > LARGE_BYTES {
        simd::advise_large_pages(&mut all);
    }
    let next = AtomicUsize::new(0);
    let joined = Mutex::new(Joined::new(&mut all, texts.len()));
    let work = || {
        tokenizer.encoder.with_worker(|worker| {
            let mut encoded = (Vec::with_capacity(room(most)), Vec::new());
            while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                encode(worker, &parts[chunk.clone()], &mut encoded);
                encoded = Joined::add(&joined, chunk.start, chunk.end, encoded);
            }
        });
    };
    // Chunks are taken in order, so that hardly any waits for one before it.
    parallel::run(threads, || {
        rayon::scope(|scope| (0..workers).for_each(|_| scope.spawn(|_| work())));
    })?;
    let Joined { ends, start, late, .. } =
        joined.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.truncate(start);
    for ids in late {
        all.extend_from_slice(&ids);
    }
    Ok((all, ends))
}

/// Ids, and where texts end among them.
type Encoded<T> = (Vec<T>, Vec<i64>);

/// Chunks put together in order, each copied by the thread that finds it to be the next, while it is
/// still in a near cache.
struct Joined<'a, T> {
    /// The first part of the chunk that comes next.
    part: usize,
    /// Ids in their place, and the room behind them.
    start: usize,
    rest: &'a mut [T],
    ends: Vec<i64>,
    /// Chunks by their first part, with the part behind them, that wait for one before them.
    waiting: BTreeMap<usize, (usize, Encoded<T>)>,
    /// Where tokens are so short that the room is not enough: what comes after.
    late: Vec<Vec<T>>,
    late_ids: usize,
}

impl<'a, T: Id> Joined<'a, T> {
    fn new(rest: &'a mut [T], texts: usize) -> Self {
        Self {
            part: 0,
            start: 0,
            rest,
            ends: Vec::with_capacity(texts),
            waiting: BTreeMap::new(),
            late: Vec::new(),
            late_ids: 0,
        }
    }

    /// Adds what `part..end` became, and whatever waited for it; returns room for another chunk.
    fn add(joined: &Mutex<Self>, part: usize, end: usize, encoded: Encoded<T>) -> Encoded<T> {
        let mut copies = Vec::new();
        let mut locked: MutexGuard<Self> = joined.lock().unwrap_or_else(PoisonError::into_inner);
        locked.waiting.insert(part, (end, encoded));
        loop {
            let part = locked.part;
            let Some((end, (ids, ends))) = locked.waiting.remove(&part) else { break };
            locked.part = end;
            let before = (locked.start + locked.late_ids) as i64;
            locked.ends.extend(ends.iter().map(|end| before + end));
            if locked.late.is_empty() && ids.len() <= locked.rest.len() {
                let (own, rest) = std::mem::take(&mut locked.rest).split_at_mut(ids.len());
                (locked.rest, locked.start) = (rest, locked.start + ids.len());
                copies.push((own, ids, ends));
            } else {
                locked.late_ids += ids.len();
                locked.late.push(ids);
            }
        }
        drop(locked);
        let mut free = Encoded::default();
        for (own, mut ids, mut ends) in copies {
            own.copy_from_slice(&ids);
            ids.clear();
            ends.clear();
            free = (ids, ends);
        }
        free
    }
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

#[cfg(test)]
mod tests {
    use super::super::{Special, Tokenizer};

    #[test]
    fn threads_give_what_one_gives() {
        let codegen = Tokenizer::codegen();
        // Control characters are a token each: more ids than there is room for, after texts of few.
        let texts: Vec<String> = (0..4000)
            .map(|i| match i % 4 {
                _ if i < 2000 => format!("def f_{i}(x):\n    return x + {i}\n").repeat(i % 50),
                0 => String::new(),
                _ => "\u{1}\u{2}\u{3}".repeat(700 + i % 97),
            })
            .collect();
        let expected = codegen.encode_batch::<u16, _>(&texts, Special::Token, Some(1)).unwrap();
        assert_eq!(expected.1.len(), texts.len());
        for threads in [2, 3, 8] {
            let found = codegen.encode_batch::<u16, _>(&texts, Special::Token, Some(threads));
            assert!(found.unwrap() == expected, "{threads} threads");
        }
    }
}
