//! What earlier runs kept, on disk: ids, hashes, band keys and n-grams, never text.
//!
//! A folder of Parquet segments, one a run, and `index.json` that lists them and says how they were
//! made. Whatever the method of a run, all that any other compares is stored. Keys and n-grams made in
//! another way would silently match nothing, so an index with another stamp is refused. A segment counts once `index.json` names it, which is written last; a run that is
//! repeated replaces its own segment and is not compared with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, FixedSizeBinaryArray, ListArray, RecordBatch, StringArray, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, UInt64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use super::candidates::Removed;
use super::minhash::Sketcher;
use super::sign::{Signatures, Signed, Signer};
use super::{Documents, Input, Progress};
use crate::corpus::{Part, PartWriter, sync_folder, write_whole};
use crate::words::TOKEN_RULE;
use crate::{Error, Result};

const FILE: &str = "index.json";

/// How an index was made: equal for everything that is in it or compared with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Version of the layout.
    pub format: u32,
    /// What a word is.
    pub token_rule: String,
    /// How texts, words and n-grams are hashed.
    pub hash: String,
    /// Words in a shingle.
    pub ngram: usize,
    /// Bands of a signature.
    pub bands: usize,
    /// Values in a band.
    pub rows: usize,
    /// Decides the hash functions.
    pub seed: u64,
    /// Whether texts are compared up to white space.
    pub normalize: bool,
}

impl Stamp {
    /// What this version makes of these options.
    pub fn new(ngram: usize, bands: usize, rows: usize, seed: u64, normalize: bool) -> Self {
        Self {
            format: 3,
            token_rule: TOKEN_RULE.to_owned(),
            hash: "texts xxh3-128; words folded 128-bit products; n-grams rolling, splitmix64; \
                   fast similarity sketching by folded 128-bit products"
                .to_owned(),
            ngram,
            bands,
            rows,
            seed,
            normalize,
        }
    }

    /// Signs documents as everything with this stamp is signed: with all that any method compares.
    pub(super) fn signer(&self) -> Signer {
        Signer {
            ngram: Some(self.ngram),
            sketcher: Some(Sketcher::new(self.bands, self.rows, self.seed)),
            normalize: self.normalize,
            distinct: true,
        }
    }

    /// What differs from another stamp, in words.
    fn difference(&self, other: &Self) -> Option<String> {
        let parts = |stamp: &Self| match serde_json::to_value(stamp) {
            Ok(serde_json::Value::Object(parts)) => parts,
            _ => serde_json::Map::new(),
        };
        let (mine, theirs) = (parts(self), parts(other));
        let differs = mine.iter().find(|(name, value)| theirs.get(*name) != Some(value));
        differs.map(|(name, value)| {
            let theirs = theirs.get(name).unwrap_or(&serde_json::Value::Null);
            format!("was made with {name} {value}, and this run has {theirs}")
        })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Listing {
    stamp: Stamp,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Segment {
    name: String,
    folder: String,
    parts: Vec<Part>,
}

/// An index on disk. While one is open for adding, nobody else may add to it.
#[derive(Debug, Clone)]
pub struct Index {
    folder: PathBuf,
    label: String,
    listing: Listing,
    /// Held while it is open for adding.
    lock: Option<Arc<File>>,
    /// Comparing with it leaves this segment out.
    without: Option<String>,
}

impl Index {
    /// Whether a folder is one.
    pub fn is_index(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }

    /// Opens an index that must be there.
    pub fn open(folder: &Path, stamp: &Stamp) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let listing: Listing = serde_json::from_slice(&bytes)
            .map_err(|e| Error::input(&path, format!("is not an index of dedup: {e}")))?;
        if let Some(difference) = listing.stamp.difference(stamp) {
            let message = format!(
                "{difference}: nothing in it could be found. Use the same options, or another folder"
            );
            return Err(Error::Resume { path, message });
        }
        let label = super::shown(folder);
        Ok(Self { folder: folder.to_owned(), label, listing, lock: None, without: None })
    }

    /// Opens an index to add `segment` to it, made if need be.
    pub fn open_to_add(folder: &Path, stamp: &Stamp, segment: &str) -> Result<Self> {
        let is_foreign = |folder: &Path| -> std::io::Result<bool> {
            // What a first run has that is not yet, or will never be, as far as its listing.
            let ours = ["lock".to_owned(), format!("{FILE}.tmp")];
            let mut files =
                std::fs::read_dir(folder)?.map(|file| file.map(|file| file.file_name()));
            files.try_fold(false, |foreign, name| {
                let name = name?;
                Ok(foreign || !ours.iter().any(|known| name == known.as_str()))
            })
        };
        if folder.is_file()
            || folder.is_dir()
                && !Self::is_index(folder)
                && is_foreign(folder).map_err(Error::io(folder))?
        {
            let message = "holds something else than an index: name another folder".to_owned();
            return Err(Error::Resume { path: folder.to_owned(), message });
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let lock = folder.join("lock");
        let file = File::create(&lock).map_err(Error::io(&lock))?;
        if file.try_lock().is_err() {
            let message = "another run is adding to this index: wait for it to end".to_owned();
            return Err(Error::Resume { path: folder.to_owned(), message });
        }
        if !Self::is_index(folder) {
            let listing = Listing { stamp: stamp.clone(), segments: Vec::new() };
            save(folder, &listing)?;
        }
        let mut index = Self::open(folder, stamp)?;
        index.lock = Some(Arc::new(file));
        index.without = Some(segment.to_owned());
        Ok(index)
    }

    /// Whether there is an index that lists a segment, with all that belongs to it.
    pub fn lists(folder: &Path, segment: &str) -> bool {
        let listing = std::fs::read(folder.join(FILE)).unwrap_or_default();
        let Ok(listing) = serde_json::from_slice::<Listing>(&listing) else {
            return false;
        };
        let whole = |within: &str, part: &Part| {
            let path = folder.join(within).join(&part.name);
            std::fs::metadata(path).is_ok_and(|meta| meta.len() == part.bytes)
        };
        listing.segments.iter().any(|known| {
            known.name == segment && known.parts.iter().all(|part| whole(&known.folder, part))
        })
    }

    /// What it is called in the evidence.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Calls `each` with documents by batch: id and n-grams of the wanted, or hash and keys of all.
    pub fn each_batch(
        &self,
        grams: Option<&(dyn Fn(u32) -> bool + Sync)>,
        mut each: impl FnMut(Vec<(u32, String, Signed)>) -> Result<()>,
    ) -> Result<()> {
        let columns: &[&str] =
            if grams.is_some() { &["id", "grams"] } else { &["id", "hash", "keys"] };
        let mut row = 0u32;
        let segments =
            self.listing.segments.iter().filter(|s| Some(&s.name) != self.without.as_ref());
        for part in segments.flat_map(|segment| {
            segment.parts.iter().map(|part| self.folder.join(&segment.folder).join(&part.name))
        }) {
            let damaged = |e: String| Error::input(&part, format!("damaged index: {e}"));
            let file = File::open(&part).map_err(Error::io(&part))?;
            let reader = ParquetRecordBatchReaderBuilder::try_new(file)
                .map_err(|e| damaged(e.to_string()))?;
            let mask = ProjectionMask::columns(reader.parquet_schema(), columns.iter().copied());
            let reader = reader.with_projection(mask).with_batch_size(1024).build();
            for batch in reader.map_err(|e| damaged(e.to_string()))? {
                let batch = batch.map_err(|e| damaged(e.to_string()))?;
                let found = documents_of(&batch, row, grams)
                    .ok_or_else(|| damaged("a column is missing or of another type".to_owned()))?;
                row += batch.num_rows() as u32;
                each(found)?;
            }
        }
        Ok(())
    }

    /// Adds what a run kept as a segment.
    pub(super) fn add(
        &self,
        segment: &str,
        input: &Input<'_>,
        documents: &Documents<'_>,
        removed: &Removed,
        progress: Progress<'_>,
    ) -> Result<()> {
        // What is listed stays until the list is another: of a segment's two folders the other one is used.
        let before = self.listing.segments.iter().find(|known| known.name == segment);
        let again = format!("{segment}-again");
        let name = match before.map(|known| &known.folder) {
            Some(folder) if folder == segment => &again,
            _ => segment,
        };
        let folder = self.folder.join(name);
        if folder.is_dir() {
            // Left by a run that was stopped.
            std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        let mut writer = PartWriter::create(&folder, schema())?.quick(true);
        let total = documents.len() as u64;
        // Not the run's own, which may leave out what a later run by another method looks for.
        let signer = self.listing.stamp.signer();
        input.each_batch(
            documents,
            |row| !removed.contains(row),
            |batch, rows| {
                let hashes = signer.hashes(batch);
                let mut found: Vec<(String, Signed)> = Vec::with_capacity(rows.len());
                for (row, hash) in rows.iter().zip(hashes) {
                    let signed = Signed { hash, ..Signed::default() };
                    found.push((documents.names.get(*row)?, signed));
                }
                for signature in
                    signer.sign(batch, true, |_| true).iter().flat_map(Signatures::iter)
                {
                    let mut signed = signature.to_signed();
                    signed.hash = found[signature.row].1.hash;
                    found[signature.row].1 = signed;
                }
                writer.write(&to_batch(&found))?;
                progress(
                    "adding to the index",
                    rows.last().map_or(0, |row| *row as u64 + 1),
                    Some(total),
                )
            },
        )?;
        let parts = writer.finish()?;
        sync_folder(&self.folder)?;
        let mut segments = self.listing.segments.clone();
        segments.retain(|known| known.name != segment);
        segments.push(Segment { name: segment.to_owned(), folder: name.to_owned(), parts });
        save(&self.folder, &Listing { stamp: self.listing.stamp.clone(), segments })?;
        if let Some(before) = before {
            let folder = self.folder.join(&before.folder);
            std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        Ok(())
    }
}

fn save(folder: &Path, listing: &Listing) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(listing).map_err(|e| Error::config(e.to_string()))?;
    write_whole(&folder.join(FILE), &bytes).map(|_| ())?;
    sync_folder(folder)
}

/// Columns of a segment, and of what [`super::sign_batch`] returns.
pub fn schema() -> Arc<Schema> {
    let list = DataType::List(Arc::new(Field::new("item", DataType::UInt64, false)));
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("hash", DataType::FixedSizeBinary(16), false),
        Field::new("keys", list.clone(), false),
        Field::new("grams", list, false),
    ]))
}

/// Signed documents as a batch of that schema.
pub fn to_batch(documents: &[(String, Signed)]) -> RecordBatch {
    let ids: StringArray = documents.iter().map(|(id, _)| Some(id.as_str())).collect();
    let mut hashes = Vec::with_capacity(documents.len() * 16);
    for (_, signed) in documents {
        hashes.extend(signed.hash.to_le_bytes());
    }
    let hashes = FixedSizeBinaryArray::new(16, hashes.into(), None);
    let list = |of: fn(&Signed) -> &Vec<u64>| -> ArrayRef {
        let lists = documents.iter().map(|(_, signed)| of(signed));
        let values: UInt64Array = lists.clone().flatten().copied().collect::<Vec<_>>().into();
        let offsets = OffsetBuffer::from_lengths(lists.map(Vec::len));
        let field = Arc::new(Field::new("item", DataType::UInt64, false));
        Arc::new(ListArray::new(field, offsets, Arc::new(values), None))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids),
        Arc::new(hashes),
        list(|signed| &signed.keys),
        list(|signed| &signed.grams),
    ];
    RecordBatch::try_new(schema(), columns).expect("columns of one length")
}

/// The numbers of a list column's row.
pub fn list_of(batch: &RecordBatch, name: &str, row: usize) -> Option<Vec<u64>> {
    let list = batch.column_by_name(name)?.as_list_opt::<i32>()?.value(row);
    Some(list.as_primitive_opt::<UInt64Type>()?.values().to_vec())
}

/// Documents of a batch that was projected to some columns.
fn documents_of(
    batch: &RecordBatch,
    start: u32,
    grams: Option<&(dyn Fn(u32) -> bool + Sync)>,
) -> Option<Vec<(u32, String, Signed)>> {
    let ids = batch.column_by_name("id")?.as_string_opt::<i32>()?;
    let mut found = Vec::new();
    for i in 0..batch.num_rows() {
        let row = start + i as u32;
        if grams.is_some_and(|wanted| !wanted(row)) {
            continue;
        }
        let signed = if grams.is_some() {
            Signed { grams: list_of(batch, "grams", i)?, ..Signed::default() }
        } else {
            let hashes = batch.column_by_name("hash")?.as_fixed_size_binary_opt()?;
            Signed {
                hash: u128::from_le_bytes(hashes.value(i).try_into().ok()?),
                keys: list_of(batch, "keys", i)?,
                grams: Vec::new(),
            }
        };
        found.push((row, ids.value(i).to_owned(), signed));
    }
    Some(found)
}
