//! Pieces to ids: what a worker has seen before from its cache, the rest by merging.
//!
//! A window of pieces is looked up in two passes, so that the processor loads all of the window's
//! buckets at once instead of waiting for each.

use std::ops::Range;
use std::sync::{Mutex, TryLockError};

use super::backtrack::Backtrack;
use super::boundaries::{Boundaries, Ends, MOST_PIECES, Runs, Window};
use super::bpe::{Merges, SCAN_BYTES};
use super::cache::{self, Cache, LANES, Packed, SHORT_BYTES};
use super::simd::Level;
use super::{Id, MAX_U16_VOCAB};

/// Ids that a worker keeps room for between two texts: 1 MiB.
const MOST_ROOM: usize = 1 << 18;

/// A cache and room to work in; each thread that encodes takes one and gives it back.
pub struct Worker {
    cache: Cache,
    ends: Ends,
    keys: [u128; MOST_PIECES],
    buckets: [u32; MOST_PIECES],
    ids: Vec<u32>,
}

/// The merges of a vocabulary, ready for use on text without added tokens but for runs.
pub struct Encoder {
    merges: Merges,
    /// For long pieces, where the vocabulary allows.
    backtrack: Option<Backtrack>,
    level: Level,
    runs: Runs,
    /// Ids of runs by length, from two on.
    space_ids: Vec<u32>,
    tab_ids: Vec<u32>,
    /// Short pieces that every worker knows from the start.
    seeds: Vec<(u128, Packed)>,
    /// Whether ids need 32 bits.
    wide: bool,
    idle: Mutex<Vec<Box<Worker>>>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Encoder {
    /// Prepares merges. `space_ids` and `tab_ids` are those of runs of two, three, ...; `words` are
    /// the bytes of each id.
    pub fn new(
        merges: Merges,
        backtrack: Option<Backtrack>,
        [space_ids, tab_ids]: [Vec<u32>; 2],
        words: &[Vec<u8>],
    ) -> Self {
        let longest = |ids: &[u32]| if ids.is_empty() { 0 } else { ids.len() + 1 };
        let runs = Runs { spaces: longest(&space_ids), tabs: longest(&tab_ids) };
        let wide = words.len() > MAX_U16_VOCAB;
        let mut new = Self {
            merges,
            backtrack,
            level: Level::best(),
            runs,
            space_ids,
            tab_ids,
            seeds: Vec::new(),
            wide,
            idle: Mutex::default(),
        };
        let mut ids = Vec::new();
        for word in words.iter().filter(|word| (1..=SHORT_BYTES).contains(&word.len())) {
            ids.clear();
            new.merge(word, &mut ids);
            if let Some(packed) = new.pack(&ids) {
                new.seeds.push((cache::key(word, 0, word.len()), packed));
            }
        }
        // The first text should not wait for it.
        let first = new.worker();
        new.idle(|idle| idle.push(first));
        new
    }

    /// The merges.
    pub fn merges(&self) -> &Merges {
        &self.merges
    }

    /// The instructions in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Uses other instructions; for tests and benchmarks.
    pub fn set_level(&mut self, level: Level) {
        self.level = level;
        self.merges.set_level(level);
    }

    fn pack(&self, ids: &[u32]) -> Option<Packed> {
        if self.wide { Packed::new::<true>(ids) } else { Packed::new::<false>(ids) }
    }

    /// Runs `work` with a worker that no other thread uses.
    pub fn with_worker<R>(&self, work: impl FnOnce(&mut Worker) -> R) -> R {
        let mut worker = self.idle(Vec::pop).flatten().unwrap_or_else(|| self.worker());
        let result = work(&mut worker);
        self.idle(|idle| idle.push(worker));
        result
    }

    /// A new worker, which knows the words of the vocabulary.
    fn worker(&self) -> Box<Worker> {
        let mut cache = Cache::new();
        for &(key, packed) in &self.seeds {
            cache.keep_short(Cache::bucket(key), key, packed);
        }
        Box::new(Worker {
            cache,
            ends: [0; MOST_PIECES],
            keys: [0; MOST_PIECES],
            buckets: [0; MOST_PIECES],
            ids: Vec::new(),
        })
    }

    /// The idle workers. The lock is only ever held for an instant; where it cannot be had for long,
    /// a fork has copied it locked, and the child goes without.
    fn idle<R>(&self, work: impl FnOnce(&mut Vec<Box<Worker>>) -> R) -> Option<R> {
        for _ in 0..1000 {
            match self.idle.try_lock() {
                Ok(mut idle) => return Some(work(&mut idle)),
                Err(TryLockError::Poisoned(idle)) => return Some(work(&mut idle.into_inner())),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        None
    }

    /// Appends the ids of a stretch of text.
    pub fn encode<T: Id>(
        &self,
        worker: &mut Worker,
        text: &str,
        range: Range<usize>,
        out: &mut Vec<T>,
    ) {
        if self.wide {
            self.encode_as::<T, true>(worker, text, range, out);
        } else {
            self.encode_as::<T, false>(worker, text, range, out);
        }
    }

    fn encode_as<T: Id, const WIDE: bool>(
        &self,
        worker: &mut Worker,
        text: &str,
        range: Range<usize>,
        out: &mut Vec<T>,
    ) {
        let Worker { cache, ends, keys, buckets, ids } = worker;
        let mut boundaries = Boundaries::new(self.level, self.runs, text, range, ends);
        let text = text.as_bytes();
        let mut at = out.len();
        while let Some(window) = boundaries.window() {
            let count = window.ends.len();
            request(cache, text, window, &mut keys[..count], &mut buckets[..count]);
            // Each piece writes all its lanes, and the next overwrites those that are too many.
            out.resize(at + count * LANES + LANES, T::of(0));
            let (keys, buckets) = (&keys[..count], &buckets[..count]);
            let mut done = 0;
            loop {
                let known;
                (known, at) = emit::<T, WIDE>(cache, &keys[done..], &buckets[done..], out, at);
                done += known;
                if done == count {
                    break;
                }
                if let Some(packed) = cache.short(buckets[done], keys[done]) {
                    // It is the first of its bucket now; or there was no room for that many ids.
                    let room = packed.count() + (count - done) * LANES + 2 * LANES;
                    if out.len() < at + room {
                        out.resize(at + room, T::of(0));
                    }
                    continue;
                }
                let piece = &text[window.piece(done)];
                let new = self.other(piece, (buckets[done], keys[done]), cache, ids);
                done += 1;
                let room = new.len() + (count - done) * LANES + LANES;
                if out.len() < at + room {
                    out.resize(at + room, T::of(0));
                }
                for (id, &new) in out[at..].iter_mut().zip(new) {
                    *id = T::of(new);
                }
                at += new.len();
            }
        }
        out.truncate(at);
        // A huge piece leaves no huge worker behind.
        ids.clear();
        ids.shrink_to(MOST_ROOM);
    }

    /// The ids of a piece that is not among the short ones: short pieces of too many ids for their
    /// table are kept with the long ones.
    #[inline(never)]
    fn other<'a>(
        &self,
        piece: &[u8],
        short: (u32, u128),
        cache: &'a mut Cache,
        ids: &'a mut Vec<u32>,
    ) -> &'a [u32] {
        // A run takes less time to cut than to compare.
        if !self.is_run(piece)
            && let Some(known) = cache.long(piece)
        {
            return cache.ids(known);
        }
        self.learn(piece, short, cache, ids);
        ids
    }

    /// Merges a piece that the cache lacks into `ids`, and keeps it: with the short ones if it is one
    /// and has few ids, else with the long ones.
    #[cold]
    fn learn(
        &self,
        piece: &[u8],
        (bucket, key): (u32, u128),
        cache: &mut Cache,
        ids: &mut Vec<u32>,
    ) {
        ids.clear();
        self.merge(piece, ids);
        let packed = if cache::is_short(key) { self.pack(ids) } else { None };
        if let Some(packed) = packed {
            cache.keep_short(bucket, key, packed);
        } else if !self.is_run(piece) {
            cache.keep_long(piece, ids);
        }
    }

    /// Whether a piece is a run of spaces or tabs whose pieces are tokens.
    fn is_run(&self, piece: &[u8]) -> bool {
        match piece {
            [b' ', b' ', ..] => self.runs.spaces > 0,
            [b'\t', b'\t', ..] => self.runs.tabs > 0,
            _ => false,
        }
    }

    /// Appends the ids of a piece.
    fn merge(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if self.is_run(piece) {
            run(if piece[0] == b' ' { &self.space_ids } else { &self.tab_ids }, piece.len(), ids);
            return;
        }
        let long = piece.len() > SCAN_BYTES;
        let found = self.backtrack.as_ref().filter(|_| long);
        match found.and_then(|backtrack| backtrack.encode(&self.merges, piece)) {
            Some(found) => ids.extend(found),
            None => self.merges.encode(piece, |id| ids.push(id)),
        }
    }
}

/// Keys and buckets of the pieces of a window, and asks the processor to load the buckets.
#[inline(never)]
fn request(cache: &Cache, text: &[u8], window: Window, keys: &mut [u128], buckets: &mut [u32]) {
    // Pieces behind whose start a whole window of the key's stands.
    let ends = window.ends;
    let whole = match text.len().checked_sub(cache::WINDOW) {
        Some(last) if window.start <= last => {
            let before = |end: &u16| window.base + usize::from(*end) <= last;
            let all = ends.last().is_some_and(before);
            if all { ends.len() } else { ends.partition_point(before) + 1 }
        }
        _ => 0,
    };
    let (mut long, mut longs) = ([0_u16; MOST_PIECES], 0);
    let mut start = window.start;
    let pieces = ends[..whole].iter().zip(&mut *keys).zip(&mut *buckets);
    for (i, ((&end, key), bucket)) in (0..).zip(pieces) {
        let end = window.base + usize::from(end);
        let around = text[start..start + cache::WINDOW].try_into().expect("16 bytes");
        *key = cache::short_key(around, end - start);
        *bucket = Cache::bucket(*key);
        cache.prefetch(*bucket);
        // Long pieces are few: set aside without a branch, and seen to afterwards.
        long[longs] = i;
        longs += usize::from(end - start > SHORT_BYTES);
        start = end;
    }
    for i in long[..longs].iter().map(|&i| usize::from(i)).chain(whole..ends.len()) {
        let Range { start, end } = window.piece(i);
        keys[i] = cache::key(text, start, end);
        buckets[i] = Cache::bucket(keys[i]);
        cache.prefetch(buckets[i]);
    }
}

/// Writes the ids of short pieces from `at` on, as far as they are first in their buckets and there is
/// room for pieces of more ids than lanes; how many pieces those are, and where their ids end. A function of
/// its own, so that nothing else takes its registers.
#[inline(never)]
fn emit<T: Id, const WIDE: bool>(
    cache: &Cache,
    keys: &[u128],
    buckets: &[u32],
    out: &mut [T],
    mut at: usize,
) -> (usize, usize) {
    for (i, (&key, &bucket)) in keys.iter().zip(buckets).enumerate() {
        let Some(packed) = cache.first(bucket, key) else { return (i, at) };
        let room: &mut [T; LANES] = out[at..].first_chunk_mut().expect("room for every lane");
        if WIDE {
            *room.first_chunk_mut().expect("half as many") = packed.wide().map(T::of);
        } else {
            *room = packed.narrow().map(|id| T::of(u32::from(id)));
        }
        let count = packed.count();
        if count >= LANES {
            let rest = (keys.len() - i) * LANES;
            let more = &mut out[at + LANES - 1..];
            if more.len() < count + rest {
                return (i, at);
            }
            let second = T::of(u32::from(packed.narrow()[1]));
            for lanes in more.chunks_exact_mut(LANES).take(count / LANES) {
                lanes.fill(second);
            }
        }
        at += count;
    }
    (keys.len(), at)
}

/// Cuts a run into its longest token and what is left, which is never one character.
fn run(run_ids: &[u32], length: usize, ids: &mut Vec<u32>) {
    let longest = run_ids.len() + 1;
    ids.resize(ids.len() + length / longest, run_ids[longest - 2]);
    if let Some(left) = (length % longest).checked_sub(2) {
        ids.push(run_ids[left]);
    }
}
