//! One part's files, mapped and checked as they are read.

use std::path::{Path, PathBuf};

use super::Width;
use super::blocks::{CheckedMap, block_count, u64_at};
use crate::corpus::hash_bytes;
use crate::{Error, Result};

/// The files of one part and what their manifest says of them.
#[derive(Debug, Clone)]
pub struct PartFiles {
    /// Ids.
    pub tokens: PathBuf,
    /// Document ends.
    pub index: PathBuf,
    /// Prompt tokens of each document.
    pub prompts: Option<PathBuf>,
    /// Hashes of the blocks of the three.
    pub hashes: PathBuf,
    /// xxh3-128 of that file, as the manifest has it.
    pub hashes_xxh3: String,
    /// Documents in it.
    pub documents: u64,
    /// Size of the ids.
    pub bytes: u64,
    /// How ids are stored.
    pub width: Width,
}

/// A number type of training batches.
pub trait Number: Copy + Send + From<u16> {
    /// The label that a loss leaves out.
    const IGNORED: Self;
    /// An id, known to fit.
    fn of(id: u32) -> Self;
}

impl Number for i64 {
    const IGNORED: Self = super::IGNORED;

    fn of(id: u32) -> Self {
        Self::from(id)
    }
}

impl Number for i32 {
    const IGNORED: Self = super::IGNORED as Self;

    fn of(id: u32) -> Self {
        id as Self
    }
}

/// A document: its first token, the one after its last, and how many are prompt.
#[derive(Debug, Clone, Copy)]
pub struct Document {
    /// Its first token.
    pub start: u64,
    /// The one after its last.
    pub end: u64,
    /// Leading tokens that are prompt.
    pub prompt: u64,
}

/// A part's files.
pub struct Part {
    tokens: CheckedMap,
    ends: CheckedMap,
    prompts: Option<CheckedMap>,
    width: Width,
    documents: usize,
    /// Tokens of the source before this part.
    pub first: u64,
    /// Tokens in it.
    pub count: u64,
}

fn read_hashes(files: &PartFiles, blocks: usize) -> Result<Vec<u64>> {
    let path: &Path = &files.hashes;
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    if hash_bytes(&bytes) != files.hashes_xxh3 || bytes.len() != blocks * 8 {
        let message = "the hashes of this part changed since they were written: torn or damaged; \
                       bring the file back, or pack again";
        return Err(Error::input(path, message));
    }
    Ok(bytes.chunks_exact(8).map(|hash| u64_at(hash, 0)).collect())
}

impl Part {
    /// Maps the files; reads the hashes and the end of ids and index, whatever the size of the rest.
    pub fn open(files: &PartFiles, first: u64, end_of_text: u32) -> Result<Self> {
        let sizes = [
            files.bytes,
            files.documents * 8,
            files.prompts.as_ref().map_or(0, |_| files.documents * 4),
        ];
        let blocks = sizes.map(block_count);
        let mut hashes = read_hashes(files, blocks.iter().sum())?.into_iter();
        let mut map = |path: &Path, which: usize| {
            let hashes = hashes.by_ref().take(blocks[which]).collect();
            CheckedMap::open(path, sizes[which], sizes[which] as usize, hashes)
        };
        let part = Self {
            tokens: map(&files.tokens, 0)?,
            ends: map(&files.index, 1)?,
            prompts: files.prompts.as_ref().map(|path| map(path, 2)).transpose()?,
            width: files.width,
            documents: files.documents as usize,
            first,
            count: files.bytes / files.width.bytes(),
        };
        let last = part.end(part.documents - 1)?;
        if last.checked_mul(files.width.bytes()) != Some(files.bytes) {
            let message = format!(
                "its documents have {last} tokens, the .bin {}: they do not belong together",
                part.count
            );
            return Err(Error::input(&files.index, message));
        }
        let mut last = [0_i64];
        part.copy(part.count - 1, &mut last)?;
        if last[0] != i64::from(end_of_text) {
            let message = format!(
                "ends with token {}, but the manifest says that {end_of_text} ends documents: \
                 the manifest belongs to other files, or is damaged",
                last[0]
            );
            return Err(Error::input(&files.tokens, message));
        }
        Ok(part)
    }

    /// Whether documents say what of them is prompt.
    pub fn has_prompts(&self) -> bool {
        self.prompts.is_some()
    }

    fn end(&self, document: usize) -> Result<u64> {
        self.ends.u64(document * 8)
    }

    /// Documents from the one that holds `token` on, in tokens of this part.
    pub fn documents_from(&self, token: u64) -> impl Iterator<Item = Result<Document>> + '_ {
        let first = self.document_of(token);
        let range = *first.as_ref().unwrap_or(&0)..self.documents;
        let failed = first.err().map(Err);
        failed.into_iter().chain(range.map(|document| self.document(document)))
    }

    fn document(&self, document: usize) -> Result<Document> {
        let prompt = match &self.prompts {
            None => 0,
            Some(prompts) => {
                let bytes = prompts.get(document * 4..document * 4 + 4)?;
                u64::from(u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
            }
        };
        let start = document.checked_sub(1).map_or(Ok(0), |before| self.end(before))?;
        Ok(Document { start, end: self.end(document)?, prompt })
    }

    fn document_of(&self, token: u64) -> Result<usize> {
        let (mut low, mut high) = (0, self.documents);
        while low < high {
            let middle = low.midpoint(high);
            if self.end(middle)? <= token { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// Start and length of every document, in tokens of the source.
    pub fn lengths(&self) -> impl Iterator<Item = Result<(u64, u64)>> + '_ {
        let mut last = 0;
        let all = self.ends.all();
        let (ends, failed) = match all {
            Ok(ends) => (ends, None),
            Err(error) => (&[][..], Some(Err(error))),
        };
        failed.into_iter().chain(ends.chunks_exact(8).map(move |end| {
            let (start, end) = (last, u64_at(end, 0));
            last = end;
            if end <= start || end > self.count {
                let message = format!("a document from token {start} to {end}: damaged");
                return Err(Error::input(self.ends.path(), message));
            }
            Ok((self.first + start, end - start))
        }))
    }

    fn bytes(&self, from: u64, to: u64) -> Result<&[u8]> {
        let at = |token: u64| (token * self.width.bytes()) as usize;
        self.tokens.get(at(from)..at(to))
    }

    /// Copies tokens from `from` on, as many as `out` holds.
    pub fn copy<N: Number>(&self, from: u64, out: &mut [N]) -> Result<()> {
        widen(self.width, self.bytes(from, from + out.len() as u64)?, out);
        Ok(())
    }

    /// Appends `shift` plus the place after every `end_of_text` among tokens `from..to`: where the
    /// next document begins. (The writer makes sure that it stands nowhere else.)
    pub fn ends(
        &self,
        from: u64,
        to: u64,
        end_of_text: u32,
        shift: i32,
        out: &mut Vec<i32>,
    ) -> Result<()> {
        find(self.width, self.bytes(from, to)?, end_of_text, |at| out.push(shift + at as i32 + 1));
        Ok(())
    }
}

/// Writes 0, 1, 2, ...
pub fn positions<N: Number>(out: &mut [N]) {
    count_up(out);
}

/// Defines a function and the same once more for processors with AVX2, chosen when it is called: the
/// loops below are then twice as wide, which makes reading a fifth faster (`benchmarks/packing.py`).
macro_rules! widest {
    (fn $name:ident[$($generic:tt)*]($($argument:ident: $type:ty),*) $body:block) => {
        fn $name<$($generic)*>($($argument: $type),*) {
            #[inline(always)]
            fn plain<$($generic)*>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                #[target_feature(enable = "avx2")]
                fn wide<$($generic)*>($($argument: $type),*) {
                    plain($($argument),*);
                }
                // SAFETY: the processor has what the function was compiled for.
                #[allow(unsafe_code)]
                return unsafe { wide($($argument),*) };
            }
            plain($($argument),*);
        }
    };
}

fn id_of_two(id: &[u8]) -> u16 {
    u16::from_le_bytes([id[0], id[1]])
}

fn id_of_four(id: &[u8]) -> u32 {
    u32::from_le_bytes([id[0], id[1], id[2], id[3]])
}

widest! {
    fn widen[N: Number](width: Width, stored: &[u8], out: &mut [N]) {
        match width {
            Width::Two => {
                for (place, id) in out.iter_mut().zip(stored.chunks_exact(2)) {
                    *place = N::from(id_of_two(id));
                }
            }
            Width::Four => {
                for (place, id) in out.iter_mut().zip(stored.chunks_exact(4)) {
                    *place = N::of(id_of_four(id));
                }
            }
        }
    }
}

widest! {
    fn count_up[N: Number](out: &mut [N]) {
        for (at, place) in out.iter_mut().enumerate() {
            *place = N::of(at as u32);
        }
    }
}

widest! {
    fn find[F: FnMut(usize)](width: Width, stored: &[u8], wanted: u32, found: F) {
        // In strides, so that for most of them the search is a few comparisons of vectors.
        const STRIDE: usize = 64;
        let mut found = found;
        for (number, stride) in stored.chunks(STRIDE * width.bytes() as usize).enumerate() {
            let at = number * STRIDE;
            match width {
                Width::Two => {
                    let same = |id: &[u8]| id_of_two(id) == wanted as u16;
                    if stride.chunks_exact(2).fold(false, |any, id| any | same(id)) {
                        let places = stride.chunks_exact(2).enumerate();
                        places.filter(|(_, id)| same(id)).for_each(|(i, _)| found(at + i));
                    }
                }
                Width::Four => {
                    let same = |id: &[u8]| id_of_four(id) == wanted;
                    if stride.chunks_exact(4).fold(false, |any, id| any | same(id)) {
                        let places = stride.chunks_exact(4).enumerate();
                        places.filter(|(_, id)| same(id)).for_each(|(i, _)| found(at + i));
                    }
                }
            }
        }
    }
}
