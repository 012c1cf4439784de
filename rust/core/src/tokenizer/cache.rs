//! Pieces of text that were seen before, and their ids: bounded, one for each worker.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::simd;

/// Longest piece of the table of short pieces, in bytes.
pub const SHORT_BYTES: usize = 15;
/// 2^18 buckets of 64 bytes: 16 MiB.
const BUCKET_BITS: u32 = 18;
/// Longest indentation with a key of its own, and most ids of a piece whose ids but the first are alike.
const INDENT_BYTES: usize = 256;
/// Longest piece of the table of long pieces. A text without spaces (Chinese, a run of one character,
/// hexadecimal letters) can be one piece, and merging takes far longer than comparing.
const LONG_BYTES: usize = 1 << 20;
/// 2^17 places of 20 bytes: 2.5 MiB.
const PLACE_BITS: u32 = 17;
const PLACES: usize = (1 << PLACE_BITS) - 1;
/// Places that are looked at for one piece; a text can be made so that all its pieces meet in one.
const MOST_STEPS: usize = 16;
/// Places that are used before all long pieces are dropped.
const MOST_LONG: usize = 3 << (PLACE_BITS - 2);
/// Bytes and ids of long pieces that are kept before all are dropped: 3 MiB and 4 MiB.
const MOST_BYTES: usize = 3 << 20;
const MOST_IDS: usize = 1 << 20;
/// How many 16-bit numbers stand beside a short piece: ids, then how many.
pub const LANES: usize = 8;

/// The ids of a short piece: up to seven of 16 bits or three of 32 (low half first), and in the last
/// lane how many. More than seven of 16 bits where all but the first are the same: GPT-2 has no token
/// of several spaces but makes one of each, in every indentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed([u16; LANES]);

impl Packed {
    /// Packs some ids; `None` if they are too many.
    pub fn new<const WIDE: bool>(ids: &[u32]) -> Option<Self> {
        let width = if WIDE { 2 } else { 1 };
        let repeats =
            || !WIDE && ids.len() <= INDENT_BYTES && ids[1..].iter().all(|&id| id == ids[1]);
        if ids.len() * width >= LANES && !repeats() {
            return None;
        }
        let mut lanes = [0; LANES];
        for (pair, &id) in lanes[..LANES - 1].chunks_exact_mut(width).zip(ids) {
            pair[0] = id as u16;
            if WIDE {
                pair[1] = (id >> 16) as u16;
            }
        }
        lanes[LANES - 1] = ids.len() as u16;
        Some(Self(lanes))
    }

    /// How many ids.
    #[inline]
    pub fn count(self) -> usize {
        usize::from(self.0[LANES - 1])
    }

    /// The ids, of which only the first `count` are meant; if that is more than stand here, then all
    /// but the first are like the second.
    #[inline]
    pub fn narrow(self) -> [u16; LANES] {
        self.0
    }

    /// The ids where they have 32 bits, of which only the first `count` are meant.
    #[inline]
    pub fn wide(self) -> [u32; LANES / 2] {
        std::array::from_fn(|i| u32::from(self.0[2 * i]) | u32::from(self.0[2 * i + 1]) << 16)
    }
}

/// Keys of indentations have this in their highest byte, where short pieces have 0xFF.
const INDENT: u128 = 0xFE << 120;
/// Stands for any other long piece.
const LONG: u128 = 0xFD << 120;

/// Whether a key stands for one piece alone.
#[inline]
pub fn is_short(key: u128) -> bool {
    key != LONG
}

/// The key of a piece that is longer than short ones: indentations are frequent, and their length
/// says all.
#[inline(never)]
fn long_key(piece: &[u8]) -> u128 {
    let (first, rest) = (piece[0], &piece[1..]);
    let blank = || rest.chunks(8).all(|part| part.iter().fold(0, |bits, b| bits | (b ^ b' ')) == 0);
    let may_indent = matches!(first, b'\n' | b' ') && rest.starts_with(b"    ");
    if may_indent && piece.len() <= INDENT_BYTES && blank() {
        INDENT | (rest.len() as u128) << 8 | u128::from(first)
    } else {
        LONG
    }
}

/// A short piece as one number: its bytes, then 0xFF, which no text has. Never 0; for longer pieces
/// [`LONG`], unless they are indentations.
pub fn key(text: &[u8], start: usize, end: usize) -> u128 {
    let length = end - start;
    if length > SHORT_BYTES {
        return long_key(&text[start..end]);
    }
    match text.get(start..start + WINDOW) {
        Some(window) => short_key(window.try_into().expect("16 bytes"), length),
        None => short_key(&tail(text, start), length),
    }
}

/// Bytes that [`short_key`] looks at.
pub const WINDOW: usize = SHORT_BYTES + 1;

/// The key of a piece of at most [`SHORT_BYTES`], given what stands from its start on; of a longer
/// one, a number that means nothing.
#[inline]
pub fn short_key(window: &[u8; WINDOW], length: usize) -> u128 {
    const FILLS: [u128; WINDOW] = {
        let mut fills = [u128::MAX; WINDOW];
        let mut length = 0;
        while length < WINDOW {
            fills[length] <<= 8 * length;
            length += 1;
        }
        fills
    };
    u128::from_le_bytes(*window) | FILLS[length % WINDOW]
}

/// The last bytes of a text, fewer than 16, with zeros behind.
fn tail(text: &[u8], start: usize) -> [u8; WINDOW] {
    let mut bytes = [0; WINDOW];
    let rest = &text[start..];
    bytes[..rest.len()].copy_from_slice(rest);
    bytes
}

#[inline]
fn fold(low: u64, high: u64) -> u64 {
    let product =
        u128::from(low ^ 0x9E37_79B9_7F4A_7C15) * u128::from(high ^ 0xD1B5_4A32_D192_ED03);
    product as u64 ^ (product >> 64) as u64
}

/// Two short pieces, in one line of the processor's cache. The first is the one that was asked for
/// last: hardly ever do two of them take turns, so one comparison nearly always does.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    keys: [u128; 2],
    ids: [Packed; 2],
}

/// Where a long piece and its ids are kept.
#[derive(Debug, Clone, Copy, Default)]
struct Long {
    /// The upper half of the hash.
    tag: u32,
    bytes: u32,
    ids: u32,
    /// 0: nothing is kept here.
    length: u32,
    count: u32,
}

/// Each short piece has one bucket of two places; long pieces are kept until there are too many.
pub struct Cache {
    short: Vec<Bucket>,
    long: Vec<Long>,
    used: usize,
    bytes: Vec<u8>,
    ids: Vec<u32>,
    /// Whether pieces that are short, but have too many ids, are among the long ones.
    short_among_long: bool,
    /// Chooses the place that a new piece takes from an old one.
    turn: u64,
}

impl Cache {
    /// An empty cache: 16 MiB, and up to 10 MiB more where there are long pieces.
    pub fn new() -> Self {
        let mut short = Vec::with_capacity(1 << BUCKET_BITS);
        simd::advise_large_pages(&mut short);
        short.resize(1 << BUCKET_BITS, Bucket { keys: [0; 2], ids: [Packed([0; LANES]); 2] });
        Self {
            short,
            long: Vec::new(),
            used: 0,
            bytes: Vec::new(),
            ids: Vec::new(),
            short_among_long: false,
            turn: 1,
        }
    }

    /// Where the bucket of a key stands.
    #[inline]
    pub fn bucket(key: u128) -> u32 {
        let mixed = key as u64 ^ ((key >> 64) as u64).rotate_right(23);
        (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - BUCKET_BITS)) as u32
    }

    /// Starts loading a bucket.
    #[inline]
    pub fn prefetch(&self, bucket: u32) {
        simd::prefetch(&self.short, bucket as usize);
    }

    /// The ids of a short piece, if it is the first of its bucket.
    #[inline]
    pub fn first(&self, bucket: u32, key: u128) -> Option<&Packed> {
        let Bucket { keys, ids } = &self.short[bucket as usize];
        (keys[0] == key).then_some(&ids[0])
    }

    /// The ids of a short piece, which becomes the first of its bucket.
    pub fn short(&mut self, bucket: u32, key: u128) -> Option<Packed> {
        let Bucket { keys, ids } = &mut self.short[bucket as usize];
        if keys[0] != key {
            if keys[1] != key {
                return None;
            }
            keys.swap(0, 1);
            ids.swap(0, 1);
        }
        Some(ids[0])
    }

    /// Keeps a short piece.
    pub fn keep_short(&mut self, bucket: u32, key: u128, ids: Packed) {
        let bucket = &mut self.short[bucket as usize];
        let free = |place: &usize| [0, key].contains(&bucket.keys[*place]);
        let place = (0..2).find(free).unwrap_or_else(|| {
            // Xorshift: any old piece is as good as another.
            self.turn ^= self.turn << 13;
            self.turn ^= self.turn >> 7;
            self.turn ^= self.turn << 17;
            (self.turn & 1) as usize
        });
        (bucket.keys[place], bucket.ids[place]) = (key, ids);
    }

    /// The hash of a piece of eight bytes or more, if it is not too long to be kept.
    #[inline]
    fn hash(piece: &[u8]) -> Option<u64> {
        match piece.len() {
            0..8 => None,
            8..=INDENT_BYTES => {
                let word = |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().expect("8 bytes"));
                let whole = piece
                    .chunks_exact(8)
                    .fold(piece.len() as u64, |hash, chunk| fold(hash, word(chunk)));
                Some(fold(whole, word(&piece[piece.len() - 8..])))
            }
            length if length <= LONG_BYTES => Some(xxh3_64(piece)),
            _ => None,
        }
    }

    /// Where the ids of a piece are ([`Self::ids`]) that is not among the short ones.
    #[inline]
    pub fn long(&self, piece: &[u8]) -> Option<Range<usize>> {
        if piece.len() <= SHORT_BYTES && !self.short_among_long {
            return None;
        }
        self.place(Self::hash(piece)?, piece).ok()
    }

    /// Where the ids of a long piece are, or the place where they may be kept.
    #[inline]
    fn place(&self, hash: u64, piece: &[u8]) -> Result<Range<usize>, usize> {
        let home = hash as usize & PLACES;
        for step in 0..MOST_STEPS {
            let place = (home + step) & PLACES;
            let Some(&Long { tag, bytes, ids, length, count }) = self.long.get(place) else {
                break;
            };
            if length == 0 {
                return Err(place);
            }
            let known = || &self.bytes[bytes as usize..][..length as usize] == piece;
            if tag == (hash >> 32) as u32 && known() {
                return Ok(ids as usize..(ids + count) as usize);
            }
        }
        Err(home)
    }

    /// The ids that stand where [`Self::long`] said.
    #[inline]
    pub fn ids(&self, range: Range<usize>) -> &[u32] {
        &self.ids[range]
    }

    /// Keeps a piece that [`Self::long`] did not find, unless it is too short or too long.
    pub fn keep_long(&mut self, piece: &[u8], ids: &[u32]) {
        if let Some(hash) = Self::hash(piece) {
            self.keep_hashed(hash, piece, ids);
        }
    }

    fn keep_hashed(&mut self, hash: u64, piece: &[u8], ids: &[u32]) {
        let full = self.used == MOST_LONG
            || self.bytes.len() + piece.len() > MOST_BYTES
            || self.ids.len() + ids.len() > MOST_IDS;
        if full || self.long.is_empty() {
            self.long.clear();
            self.long.resize(1 << PLACE_BITS, Long::default());
            self.bytes.clear();
            self.ids.clear();
            self.used = 0;
            self.short_among_long = false;
            // All at once: a vector that grows by itself takes up to twice what it needs. Pages that
            // nothing was written to cost nothing.
            self.bytes.reserve_exact(MOST_BYTES);
            self.ids.reserve_exact(MOST_IDS);
        }
        let Err(place) = self.place(hash, piece) else { return };
        self.long[place] = Long {
            tag: (hash >> 32) as u32,
            bytes: self.bytes.len() as u32,
            ids: self.ids.len() as u32,
            length: piece.len() as u32,
            count: ids.len() as u32,
        };
        self.used += 1;
        self.bytes.extend_from_slice(piece);
        self.ids.extend_from_slice(ids);
        self.short_among_long |= piece.len() <= SHORT_BYTES;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::{Cache, INDENT_BYTES, LONG_BYTES, PLACE_BITS, Packed, SHORT_BYTES, is_short, key};

    #[test]
    fn a_key_depends_on_the_piece_alone() {
        let text = b"abc def ghi jkl mno pqr";
        for start in 0..text.len() {
            for end in start + 1..=text.len() {
                let alone = key(&text[start..end], 0, end - start);
                assert_eq!(key(text, start, end), alone);
                assert_eq!(is_short(alone), end - start <= SHORT_BYTES);
            }
        }
        assert_ne!(key(b"a\0", 0, 2), key(b"a", 0, 1));
    }

    #[test]
    fn indentations_have_keys_of_their_own() {
        let mut known = std::collections::HashSet::new();
        for length in SHORT_BYTES + 1..=INDENT_BYTES {
            for first in [b'\n', b' '] {
                let mut piece = vec![b' '; length];
                piece[0] = first;
                let own = key(&piece, 0, length);
                assert!(is_short(own) && known.insert(own));
                for other in [b'\t', b'x', b'\n'] {
                    for at in 1..length {
                        piece[at] = other;
                        assert!(!is_short(key(&piece, 0, length)));
                        piece[at] = b' ';
                    }
                }
            }
        }
    }

    #[test]
    fn ids_are_packed_and_unpacked() {
        let ids: Vec<u32> = (65_529..65_536).collect();
        for count in 0..=7 {
            let packed = Packed::new::<false>(&ids[..count]).unwrap();
            assert_eq!(packed.count(), count);
            assert!(packed.narrow()[..count].iter().zip(&ids).all(|(&a, &b)| u32::from(a) == b));
        }
        let many = Packed::new::<false>(&[3, 1, 1, 1, 1, 1, 1, 1, 1]).unwrap();
        assert_eq!((many.count(), &many.narrow()[..7]), (9, &[3, 1, 1, 1, 1, 1, 1][..]));
        assert!(Packed::new::<false>(&[1, 1, 1, 1, 1, 1, 1, 2]).is_none());
        assert!(Packed::new::<true>(&[1; 4]).is_none());
        let wide = Packed::new::<true>(&[u32::MAX, 7]).unwrap();
        assert_eq!((wide.count(), &wide.wide()[..2]), (2, &[u32::MAX, 7][..]));
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_was_kept(
            pieces in prop::collection::vec("[ab]{1,3}|[ab]{8,9}|[abc]{14,18}|a{250,260}", 1..60),
        ) {
            let mut cache = Cache::new();
            let (mut known, mut long) = (HashMap::new(), HashMap::new());
            for (id, piece) in pieces.iter().enumerate() {
                let (bytes, id) = (piece.as_bytes(), id as u32);
                if bytes.len() <= SHORT_BYTES {
                    let key = key(bytes, 0, bytes.len());
                    let bucket = Cache::bucket(key);
                    let found = cache.short(bucket, key).map(|ids| u32::from(ids.narrow()[0]));
                    prop_assert_eq!(found, known.get(piece).copied());
                    cache.keep_short(bucket, key, Packed::new::<false>(&[id]).unwrap());
                    known.insert(piece, id);
                }
                if bytes.len() >= 8 {
                    // What is found here is what was kept first.
                    if let Some(at) = cache.long(bytes) {
                        prop_assert_eq!(cache.ids(at).first(), long.get(piece));
                    } else {
                        prop_assert!(!long.contains_key(piece));
                        cache.keep_long(bytes, &[id]);
                        long.insert(piece, id);
                    }
                }
            }
        }
    }

    #[test]
    fn long_pieces_of_every_length_are_bounded() {
        let mut cache = Cache::new();
        for (id, length) in (0..).zip([256, 257, 300_000, LONG_BYTES, LONG_BYTES - 1, LONG_BYTES]) {
            let (piece, ids) = (vec![b'a' + id as u8; length], vec![id; length]);
            assert!(cache.long(&piece).is_none());
            cache.keep_long(&piece, &ids);
            let at = cache.long(&piece).unwrap();
            assert_eq!(cache.ids(at), ids);
            assert!(
                cache.bytes.capacity() == super::MOST_BYTES
                    && cache.ids.capacity() == super::MOST_IDS
            );
        }
        assert!(Cache::hash(&vec![b'a'; LONG_BYTES + 1]).is_none());
    }

    #[test]
    fn pieces_that_meet_in_one_place_are_looked_for_a_few_steps() {
        let mut cache = Cache::new();
        for id in 0..100_u32 {
            let (hash, piece) = (7 | u64::from(id) << 32, id.to_le_bytes().repeat(4));
            let place = cache.place(hash, &piece).unwrap_err();
            assert!((7..7 + super::MOST_STEPS).contains(&place), "of {} places", 1 << PLACE_BITS);
            cache.keep_hashed(hash, &piece, &[id]);
            let at = cache.place(hash, &piece).unwrap();
            assert_eq!(cache.ids(at), [id]);
        }
    }
}
