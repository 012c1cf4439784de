//! Classes of 64 bytes of text at a time, by the widest instructions the processor has.
//!
//! Every level gives the same masks; the binary needs none of them to start. A kernel pays for the masks
//! it uses alone; dedup's words, the features and strings in JSON are found with it too. This file holds
//! all of the tokenizer's `unsafe`: loads, prefetches, and calls of functions compiled for a processor
//! that was asked first.

#![allow(unsafe_code)]

use std::sync::LazyLock;

/// Bytes of text in a block.
pub const BLOCK: usize = 64;

/// A way to classify text; the names are those that `Tokenizer::simd` reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// One byte at a time, by a table: any processor.
    Scalar,
    /// 16 bytes at a time: every x86-64.
    #[cfg(target_arch = "x86_64")]
    Sse2,
    /// 32 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 64 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 16 bytes at a time: every 64-bit Arm.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// The levels that this processor can run, slowest first.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            levels.push(Self::Sse2);
            let common = is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            if common && is_x86_feature_detected!("avx2") {
                levels.push(Self::Avx2);
            }
            if common && is_x86_feature_detected!("avx512bw") {
                levels.push(Self::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Self::Neon);
        levels
    }

    /// The fastest level of this processor.
    pub fn best() -> Self {
        static BEST: LazyLock<Level> =
            LazyLock::new(|| Level::available().pop().unwrap_or(Level::Scalar));
        *BEST
    }

    /// Its name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Sse2 => "sse2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
        }
    }
}

/// What the bytes of a block are: bit `i` tells of byte `i`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Masks {
    /// ASCII letters.
    pub letter: u64,
    /// ASCII digits.
    pub number: u64,
    /// The space.
    pub space: u64,
    /// The tab.
    pub tab: u64,
    /// The other white space of ASCII: U+000A to U+000D.
    pub line: u64,
    /// The apostrophe.
    pub quote: u64,
    /// The underscore.
    pub underscore: u64,
    /// Bytes of characters beyond ASCII.
    pub high: u64,
    /// Control characters and the space: 0 to 32, and 127.
    pub blank: u64,
    /// The end of a line.
    pub newline: u64,
    /// The quotation mark.
    pub double: u64,
    /// The number sign.
    pub hash: u64,
    /// The backslash.
    pub backslash: u64,
    /// Opening round brackets.
    pub round: u64,
    /// Opening square brackets.
    pub square: u64,
    /// Opening curly brackets.
    pub curly: u64,
    /// Closing brackets of all kinds.
    pub close: u64,
    /// The full stop.
    pub dot: u64,
    /// The comma.
    pub comma: u64,
    /// The colon.
    pub colon: u64,
    /// The equals sign.
    pub equals: u64,
    /// What makes a comparison of an equals sign behind it: `<`, `=`, `>` and `!`.
    pub compare: u64,
    /// Control characters that JSON strings must not have: 0 to 31.
    pub control: u64,
}

/// Of backslashes in a block, those that start an escape; the byte before it is not one that does.
#[inline]
pub fn escapes(backslash: u64) -> u64 {
    const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    // In a run that starts at an even place those at even places escape, else those at odd ones. The
    // subtraction carries through runs that start at odd places.
    let after = backslash << 1;
    ((after | ODD).wrapping_sub(backslash) ^ ODD) & backslash
}

/// Bytes of a block that a backslash before them escapes, and whether (1 or 0) the first of the next
/// block is; `first`: the same of this block.
#[inline]
pub fn escaped(backslash: u64, first: u64) -> (u64, u64) {
    let escapes = escapes(backslash & !first);
    (escapes << 1 | first, escapes >> 63)
}

/// Work that needs masks and is compiled once for each level.
pub trait Kernel {
    /// Runs with a function that classifies a block.
    fn run(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks);
}

/// Runs a kernel compiled for a level of this processor.
pub fn run(level: Level, kernel: &mut impl Kernel) {
    match level {
        Level::Scalar => kernel.run(scalar),
        #[cfg(target_arch = "x86_64")]
        Level::Sse2 => kernel.run(x86::sse2),
        // SAFETY: these levels are only made by `available`, which asked for their features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::run_avx512(kernel) },
        #[cfg(target_arch = "aarch64")]
        Level::Neon => kernel.run(|block| neon::masks(block)),
    }
}

/// As [`Kernel`], with a function that also lists set bits.
pub trait ListingKernel {
    /// Runs with a function that classifies a block and one that lists the places of set bits: the
    /// number it is given and a bit's place, in order. What it leaves behind them means nothing.
    fn run(
        &mut self,
        masks: impl Fn(&[u8; BLOCK]) -> Masks,
        list: impl Fn(u64, u16, &mut [u16; BLOCK]),
    );
}

/// Runs a kernel compiled for a level of this processor.
pub fn run_listing(level: Level, kernel: &mut impl ListingKernel) {
    match level {
        Level::Scalar => kernel.run(scalar, list),
        #[cfg(target_arch = "x86_64")]
        Level::Sse2 => kernel.run(x86::sse2, list),
        // SAFETY: these levels are only made by `available`, which asked for their features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::run_listing_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if is_x86_feature_detected!("avx512vbmi2") => {
            // SAFETY: as above, and the processor was asked just now.
            unsafe { x86::run_listing_vbmi2(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { x86::run_listing_avx512(kernel) },
        #[cfg(target_arch = "aarch64")]
        Level::Neon => kernel.run(|block| neon::masks(block), list),
    }
}

/// The places of set bits by their definition.
#[inline]
fn list(mut bits: u64, base: u16, out: &mut [u16; BLOCK]) {
    let mut at = 0;
    while bits != 0 {
        out[at % BLOCK] = base + bits.trailing_zeros() as u16;
        bits &= bits - 1;
        at += 1;
    }
}

/// Asks the processor to load what stands at an index soon.
#[inline]
pub fn prefetch<T>(items: &[T], index: usize) {
    debug_assert!(index <= items.len());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch(items.as_ptr().wrapping_add(index).cast(), _MM_HINT_T0);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, index);
}

/// Asks the system to keep a vector's room in large pages; a hint only, and of use for what is not
/// written yet.
pub fn advise_large_pages<T>(items: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let first = items.as_mut_ptr() as usize;
        let start = first.next_multiple_of(PAGE);
        let end = (first + items.capacity() * size_of::<T>()) / PAGE * PAGE;
        if start < end {
            // SAFETY: whole pages inside one allocation of ours; the advice changes no content.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = items;
}

const LETTER: u8 = 1;
const NUMBER: u8 = 1 << 1;
const SPACE: u8 = 1 << 2;
const TAB: u8 = 1 << 3;
const LINE: u8 = 1 << 4;
const QUOTE: u8 = 1 << 5;
const HIGH: u8 = 1 << 6;
const UNDERSCORE: u8 = 1 << 7;

static KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b' ' => SPACE,
            b'\t' => TAB,
            10..=13 => LINE,
            b'\'' => QUOTE,
            b'_' => UNDERSCORE,
            128.. => HIGH,
            _ => 0,
        };
        byte += 1;
    }
    kinds
};

/// The masks by their definition.
pub fn scalar(block: &[u8; BLOCK]) -> Masks {
    let mut masks = Masks::default();
    for (i, &byte) in block.iter().enumerate() {
        let kind = KINDS[usize::from(byte)];
        let bit = |of: u8| u64::from(kind & of != 0) << i;
        masks.letter |= bit(LETTER);
        masks.number |= bit(NUMBER);
        masks.space |= bit(SPACE);
        masks.tab |= bit(TAB);
        masks.line |= bit(LINE);
        masks.quote |= bit(QUOTE);
        masks.underscore |= bit(UNDERSCORE);
        masks.high |= bit(HIGH);
        masks.blank |= u64::from(byte <= b' ' || byte == 127) << i;
        let is = |test: bool| u64::from(test) << i;
        masks.newline |= is(byte == b'\n');
        masks.double |= is(byte == b'"');
        masks.hash |= is(byte == b'#');
        masks.backslash |= is(byte == b'\\');
        masks.round |= is(byte == b'(');
        masks.square |= is(byte == b'[');
        masks.curly |= is(byte == b'{');
        masks.close |= is(matches!(byte, b')' | b']' | b'}'));
        masks.dot |= is(byte == b'.');
        masks.comma |= is(byte == b',');
        masks.colon |= is(byte == b':');
        masks.equals |= is(byte == b'=');
        masks.compare |= is(matches!(byte, b'<' | b'=' | b'>' | b'!'));
        masks.control |= u64::from(byte < b' ') << i;
    }
    masks
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports)] // some thirty intrinsics
    use std::arch::x86_64::*;

    use super::{BLOCK, Kernel, ListingKernel, Masks, list};

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub fn run_listing_avx2(kernel: &mut impl ListingKernel) {
        kernel.run(|block| avx2(block), list);
    }

    #[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2,lzcnt,popcnt")]
    pub fn run_listing_avx512(kernel: &mut impl ListingKernel) {
        kernel.run(|block| avx512(block), list);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    pub fn run_listing_vbmi2(kernel: &mut impl ListingKernel) {
        kernel.run(|block| avx512(block), |bits, base, out| list_vbmi2(bits, base, out));
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
    fn list_vbmi2(bits: u64, base: u16, out: &mut [u16; BLOCK]) {
        const PLACES: [u8; BLOCK] = {
            let mut places = [0; BLOCK];
            let mut at = 0;
            while at < BLOCK {
                places[at] = at as u8;
                at += 1;
            }
            places
        };
        let base = _mm512_set1_epi16(base as i16);
        // SAFETY: 64 bytes stand in `PLACES`, 128 in `out`, and neither needs alignment.
        unsafe {
            let all = _mm512_loadu_si512(PLACES.as_ptr().cast());
            let set = _mm512_maskz_compress_epi8(bits, all);
            let low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(set));
            let high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64::<1>(set));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_add_epi16(low, base));
            _mm512_storeu_si512(out.as_mut_ptr().add(32).cast(), _mm512_add_epi16(high, base));
        }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub fn run_avx2(kernel: &mut impl Kernel) {
        kernel.run(|block| avx2(block));
    }

    #[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2,lzcnt,popcnt")]
    pub fn run_avx512(kernel: &mut impl Kernel) {
        kernel.run(|block| avx512(block));
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn avx512(block: &[u8; BLOCK]) -> Masks {
        // SAFETY: 64 bytes are there, and the load needs no alignment.
        let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        let all = |byte: u8| _mm512_set1_epi8(byte as i8);
        let is = |byte: u8| _mm512_cmpeq_epi8_mask(bytes, all(byte));
        let within = |bytes: __m512i, first: u8, count: u8| {
            _mm512_cmplt_epu8_mask(_mm512_sub_epi8(bytes, all(first)), all(count))
        };
        Masks {
            letter: within(_mm512_or_si512(bytes, all(0x20)), b'a', 26),
            number: within(bytes, b'0', 10),
            space: is(b' '),
            tab: is(b'\t'),
            line: within(bytes, 10, 4),
            quote: is(b'\''),
            underscore: is(b'_'),
            high: _mm512_movepi8_mask(bytes),
            blank: within(bytes, 0, 33) | is(127),
            newline: is(b'\n'),
            double: is(b'"'),
            hash: is(b'#'),
            backslash: is(b'\\'),
            round: is(b'('),
            square: is(b'['),
            curly: is(b'{'),
            close: is(b')') | is(b']') | is(b'}'),
            dot: is(b'.'),
            comma: is(b','),
            colon: is(b':'),
            equals: is(b'='),
            compare: within(bytes, b'<', 3) | is(b'!'),
            control: within(bytes, 0, 32),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn avx2(block: &[u8; BLOCK]) -> Masks {
        let half = |offset: usize| {
            // SAFETY: 32 bytes stand at 0 and at 32, and the load needs no alignment.
            unsafe { _mm256_loadu_si256(block[offset..offset + 32].as_ptr().cast()) }
        };
        let (low, high) = (half(0), half(32));
        let all = |byte: u8| _mm256_set1_epi8(byte as i8);
        let join = |low: __m256i, high: __m256i| {
            u64::from(_mm256_movemask_epi8(low) as u32)
                | u64::from(_mm256_movemask_epi8(high) as u32) << 32
        };
        let is =
            |byte: u8| join(_mm256_cmpeq_epi8(low, all(byte)), _mm256_cmpeq_epi8(high, all(byte)));
        let within = |low: __m256i, high: __m256i, first: u8, count: u8| {
            let test = |bytes: __m256i| {
                let past = _mm256_sub_epi8(bytes, all(first));
                _mm256_cmpeq_epi8(_mm256_min_epu8(past, all(count - 1)), past)
            };
            join(test(low), test(high))
        };
        let lower = |bytes: __m256i| _mm256_or_si256(bytes, all(0x20));
        Masks {
            letter: within(lower(low), lower(high), b'a', 26),
            number: within(low, high, b'0', 10),
            space: is(b' '),
            tab: is(b'\t'),
            line: within(low, high, 10, 4),
            quote: is(b'\''),
            underscore: is(b'_'),
            high: join(low, high),
            blank: within(low, high, 0, 33) | is(127),
            newline: is(b'\n'),
            double: is(b'"'),
            hash: is(b'#'),
            backslash: is(b'\\'),
            round: is(b'('),
            square: is(b'['),
            curly: is(b'{'),
            close: is(b')') | is(b']') | is(b'}'),
            dot: is(b'.'),
            comma: is(b','),
            colon: is(b':'),
            equals: is(b'='),
            compare: within(low, high, b'<', 3) | is(b'!'),
            control: within(low, high, 0, 32),
        }
    }

    #[inline]
    pub fn sse2(block: &[u8; BLOCK]) -> Masks {
        let mut masks = Masks::default();
        for quarter in 0..4 {
            let at = quarter * 16;
            // SAFETY: x86-64 has SSE2; 16 bytes stand at each quarter, and the load needs no
            // alignment.
            unsafe {
                let bytes = _mm_loadu_si128(block[at..at + 16].as_ptr().cast());
                let all = |byte: u8| _mm_set1_epi8(byte as i8);
                let bits = |mask: __m128i| u64::from(_mm_movemask_epi8(mask) as u32) << at;
                let is = |byte: u8| bits(_mm_cmpeq_epi8(bytes, all(byte)));
                let within = |bytes: __m128i, first: u8, count: u8| {
                    let past = _mm_sub_epi8(bytes, all(first));
                    bits(_mm_cmpeq_epi8(_mm_min_epu8(past, all(count - 1)), past))
                };
                masks.letter |= within(_mm_or_si128(bytes, all(0x20)), b'a', 26);
                masks.number |= within(bytes, b'0', 10);
                masks.space |= is(b' ');
                masks.tab |= is(b'\t');
                masks.line |= within(bytes, 10, 4);
                masks.quote |= is(b'\'');
                masks.underscore |= is(b'_');
                masks.high |= bits(bytes);
                masks.blank |= within(bytes, 0, 33) | is(127);
                masks.newline |= is(b'\n');
                masks.double |= is(b'"');
                masks.hash |= is(b'#');
                masks.backslash |= is(b'\\');
                masks.round |= is(b'(');
                masks.square |= is(b'[');
                masks.curly |= is(b'{');
                masks.close |= is(b')') | is(b']') | is(b'}');
                masks.dot |= is(b'.');
                masks.comma |= is(b',');
                masks.colon |= is(b':');
                masks.equals |= is(b'=');
                masks.compare |= within(bytes, b'<', 3) | is(b'!');
                masks.control |= within(bytes, 0, 32);
            }
        }
        masks
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    #[allow(clippy::wildcard_imports)] // some ten intrinsics
    use std::arch::aarch64::*;

    use super::{BLOCK, Masks};

    #[inline]
    pub fn masks(block: &[u8; BLOCK]) -> Masks {
        const WEIGHTS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        // SAFETY: 64-bit Arm has NEON; 16 bytes stand at each quarter and in `WEIGHTS`.
        unsafe {
            let weights = vld1q_u8(WEIGHTS.as_ptr());
            let quarters: [uint8x16_t; 4] =
                std::array::from_fn(|i| vld1q_u8(block[i * 16..i * 16 + 16].as_ptr()));
            // Bits of 64 lanes: weigh each, then add neighbours three times.
            let bits = |test: &dyn Fn(uint8x16_t) -> uint8x16_t| {
                let [a, b, c, d] = quarters.map(|quarter| vandq_u8(test(quarter), weights));
                let pairs = vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d));
                vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)))
            };
            let is = |byte: u8| bits(&|bytes| vceqq_u8(bytes, vdupq_n_u8(byte)));
            let within = |flip: u8, first: u8, count: u8| {
                bits(&|bytes| {
                    let bytes = vorrq_u8(bytes, vdupq_n_u8(flip));
                    vcltq_u8(vsubq_u8(bytes, vdupq_n_u8(first)), vdupq_n_u8(count))
                })
            };
            Masks {
                letter: within(0x20, b'a', 26),
                number: within(0, b'0', 10),
                space: is(b' '),
                tab: is(b'\t'),
                line: within(0, 10, 4),
                quote: is(b'\''),
                underscore: is(b'_'),
                high: bits(&|bytes| vcgeq_u8(bytes, vdupq_n_u8(0x80))),
                blank: within(0, 0, 33) | is(127),
                newline: is(b'\n'),
                double: is(b'"'),
                hash: is(b'#'),
                backslash: is(b'\\'),
                round: is(b'('),
                square: is(b'['),
                curly: is(b'{'),
                close: is(b')') | is(b']') | is(b'}'),
                dot: is(b'.'),
                comma: is(b','),
                colon: is(b':'),
                equals: is(b'='),
                compare: within(0, b'<', 3) | is(b'!'),
                control: within(0, 0, 32),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BLOCK, Kernel, Level, ListingKernel, Masks, escapes, run, run_listing, scalar};

    struct List(u64, Vec<u16>);

    impl ListingKernel for List {
        fn run(
            &mut self,
            _: impl Fn(&[u8; BLOCK]) -> Masks,
            list: impl Fn(u64, u16, &mut [u16; BLOCK]),
        ) {
            let mut out = [0; BLOCK];
            list(self.0, 640, &mut out);
            self.1 = out[..self.0.count_ones() as usize].to_vec();
        }
    }

    fn check_list(bits: u64) {
        let expected: Vec<u16> =
            (0..64).filter(|at| bits >> at & 1 == 1).map(|at| 640 + at).collect();
        for level in Level::available() {
            let mut kernel = List(bits, Vec::new());
            run_listing(level, &mut kernel);
            assert_eq!(kernel.1, expected, "{}", level.name());
        }
    }

    struct Classify(Box<[u8; BLOCK]>, Masks);

    impl Kernel for Classify {
        fn run(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks) {
            self.1 = masks(&self.0);
        }
    }

    fn check(block: [u8; BLOCK]) {
        for level in Level::available() {
            let mut kernel = Classify(Box::new(block), Masks::default());
            run(level, &mut kernel);
            assert_eq!(kernel.1, scalar(&block), "{}", level.name());
        }
    }

    #[test]
    fn every_level_knows_every_byte_at_every_place() {
        for shift in 0..=255_usize {
            check(std::array::from_fn(|i| (i * 5 + shift) as u8));
        }
    }

    proptest! {
        #[test]
        fn levels_agree(bytes in prop::collection::vec(any::<u8>(), BLOCK)) {
            check(bytes.try_into().expect("64 bytes"));
        }

        #[test]
        fn levels_list_the_same_bits(bits in any::<u64>()) {
            check_list(bits);
            check_list(bits | bits << 7);
            check_list(if bits % 2 == 0 { 0 } else { u64::MAX });
        }
    }

    #[test]
    fn escapes_are_every_second_of_a_run() {
        for (backslash, expected) in [(0b111, 0b101), (0b1110, 0b1010), (0b110_0110, 0b010_0010)] {
            assert_eq!(escapes(backslash), expected, "{backslash:b}");
        }
        assert_eq!(escapes(u64::MAX), 0x5555_5555_5555_5555);
    }
}
