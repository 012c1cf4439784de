//! Records sorted in bounded memory: runs on disk, merged when they are read.
//!
//! Everything that near-dedup shuffles is a pair of numbers, never text: (band key, document),
//! (group, document). Without a limit all of it stays in memory and nothing is written.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::grams::sort_distinct;
use crate::tokenizer::simd::advise_large_pages;
use crate::{Error, Result};

/// A key and the number of a document: 12 bytes on disk.
pub type Record = (u64, u32);

const RECORD: usize = 12;
/// Least memory for one run while merging.
const RUN_BUFFER: usize = 16 << 10;

/// A folder for temporary files, removed with everything in it when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes the folder.
    pub fn create(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        Ok(Self(path))
    }

    /// A new file in it, open for writing and reading.
    pub fn file(&self, name: &str) -> Result<(PathBuf, File)> {
        let path = self.0.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        Ok((path.clone(), file.map_err(Error::io(&path))?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Only temporary files are lost if this fails, and the folder's name says so.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Collects records and gives them back in order.
#[derive(Debug)]
pub struct Sorter<'a> {
    records: Vec<Record>,
    /// Most records in memory, and where the rest goes.
    spill: Option<(usize, &'a Scratch)>,
    file: Option<(PathBuf, BufWriter<File>)>,
    name: &'static str,
    /// Records in each run.
    runs: Vec<usize>,
}

impl<'a> Sorter<'a> {
    /// `spill`: bytes of memory, and the folder for what does not fit in them.
    pub fn new(name: &'static str, spill: Option<(usize, &'a Scratch)>) -> Self {
        let spill =
            spill.map(|(bytes, scratch)| ((bytes / size_of::<Record>()).max(1024), scratch));
        Self { records: Vec::new(), spill, file: None, name, runs: Vec::new() }
    }

    /// Adds one record.
    pub fn push(&mut self, record: Record) -> Result<()> {
        if let Some((most, scratch)) = self.spill {
            if self.records.len() == most {
                self.write_run(scratch)?;
            } else if self.records.len() == self.records.capacity() {
                // Twice the room each time, as a vector takes by itself, but never above the limit.
                let len = self.records.len();
                self.records.reserve_exact(len.max(1024).min(most - len));
            }
        }
        self.records.push(record);
        Ok(())
    }

    /// The records that are not on disk.
    pub fn in_memory(&self) -> &[Record] {
        &self.records
    }

    fn write_run(&mut self, scratch: &Scratch) -> Result<()> {
        self.records.par_sort_unstable();
        if self.file.is_none() {
            let (path, file) = scratch.file(self.name)?;
            self.file = Some((path, BufWriter::with_capacity(1 << 18, file)));
        }
        let (path, file) = self.file.as_mut().expect("just made");
        for (key, document) in &self.records {
            let mut bytes = [0; RECORD];
            bytes[..8].copy_from_slice(&key.to_le_bytes());
            bytes[8..].copy_from_slice(&document.to_le_bytes());
            file.write_all(&bytes).map_err(Error::io(&*path))?;
        }
        self.runs.push(self.records.len());
        self.records.clear();
        Ok(())
    }

    /// Calls `each` with the documents of every key, both in order; repeats are left out.
    pub fn for_each_key(mut self, mut each: impl FnMut(u64, &mut Vec<u32>)) -> Result<()> {
        let mut documents = Vec::new();
        if self.runs.is_empty() {
            self.records.par_sort_unstable();
            for chunk in self.records.chunk_by(|a, b| a.0 == b.0) {
                documents.clear();
                documents.extend(chunk.iter().map(|record| record.1));
                documents.dedup();
                each(chunk[0].0, &mut documents);
            }
            return Ok(());
        }
        let (most, scratch) = self.spill.expect("runs are only written with a folder");
        self.write_run(scratch)?;
        self.records = Vec::new();
        let (path, file) = self.file.expect("runs were written");
        file.into_inner().map_err(|e| Error::io(&path)(e.into_error()))?;
        let buffer = (most * size_of::<Record>() / self.runs.len()).clamp(RUN_BUFFER, 1 << 20);
        let mut runs = Vec::new();
        let mut start = 0;
        for count in &self.runs {
            runs.push(Run::open(&path, start, *count, buffer)?);
            start += (count * RECORD) as u64;
        }
        let mut next = BinaryHeap::new();
        for (number, run) in runs.iter_mut().enumerate() {
            next.extend(run.next(&path)?.map(|record| Reverse((record, number))));
        }
        let mut key = None;
        while let Some(Reverse((record, number))) = next.pop() {
            next.extend(runs[number].next(&path)?.map(|record| Reverse((record, number))));
            if key.is_some_and(|key| key != record.0) {
                each(key.unwrap_or_default(), &mut documents);
                documents.clear();
            }
            key = Some(record.0);
            if documents.last() != Some(&record.1) {
                documents.push(record.1);
            }
        }
        if let Some(key) = key {
            each(key, &mut documents);
        }
        std::fs::remove_file(&path).map_err(Error::io(&path))
    }
}

struct Run {
    reader: BufReader<File>,
    left: usize,
}

impl Run {
    fn open(path: &Path, start: u64, left: usize, buffer: usize) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        file.seek(SeekFrom::Start(start)).map_err(Error::io(path))?;
        Ok(Self { reader: BufReader::with_capacity(buffer, file), left })
    }

    fn next(&mut self, path: &Path) -> Result<Option<Record>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut bytes = [0; RECORD];
        self.reader.read_exact(&mut bytes).map_err(Error::io(path))?;
        let (key, document) = bytes.split_at(8);
        Ok(Some((
            u64::from_le_bytes(key.try_into().expect("8 bytes")),
            u32::from_le_bytes(document.try_into().expect("4 bytes")),
        )))
    }
}

/// Where a document's hashes stand in [`Grams`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    block: u32,
    start: u32,
    count: u32,
}

/// Hashes of many documents in memory, one document after another in large blocks: an allocation a
/// document would cost more than the hashes do.
#[derive(Debug, Default)]
pub struct Grams {
    blocks: Vec<Vec<u64>>,
}

/// Hashes in a block: 8 MB.
const BLOCK: usize = 1 << 20;

impl Grams {
    /// Adds a document's.
    pub fn push(&mut self, hashes: &[u64]) -> Place {
        let room = |block: &Vec<u64>| block.capacity() - block.len() >= hashes.len();
        if !self.blocks.last().is_some_and(room) {
            let mut block = Vec::with_capacity(BLOCK.max(hashes.len()));
            advise_large_pages(&mut block);
            self.blocks.push(block);
        }
        let number = self.blocks.len() - 1;
        let block = &mut self.blocks[number];
        let start = block.len() as u32;
        block.extend_from_slice(hashes);
        Place { block: number as u32, start, count: hashes.len() as u32 }
    }

    /// What stands at a place.
    pub fn get(&self, place: Place) -> &[u64] {
        let (start, count) = (place.start as usize, place.count as usize);
        self.blocks.get(place.block as usize).map_or(&[], |block| &block[start..start + count])
    }

    /// Sorts the hashes at `wanted` places, each place given once, and leaves out repeats.
    pub fn sort(&mut self, places: &mut [Place], wanted: impl Fn(usize) -> bool + Sync) {
        let mut of_block: Vec<Vec<&mut Place>> = self.blocks.iter().map(|_| Vec::new()).collect();
        for (_, place) in places.iter_mut().enumerate().filter(|(number, _)| wanted(*number)) {
            // Places without hashes may name a block that there never was.
            if place.count > 0 {
                of_block[place.block as usize].push(place);
            }
        }
        let work = self.blocks.par_iter_mut().zip(of_block);
        work.for_each_init(Vec::new, |room, (block, places)| {
            for place in places {
                let (start, count) = (place.start as usize, place.count as usize);
                place.count = sort_distinct(&mut block[start..start + count], room) as u32;
            }
        });
    }
}

/// Sets of hashes by number, in memory or in a file.
#[derive(Debug)]
pub enum Sets {
    /// All of them at hand, each by its place.
    Memory(Grams, Vec<Place>),
    /// One after another in a file, each by its place.
    Disk {
        /// The file.
        path: PathBuf,
        /// The same, open.
        file: File,
        /// Where set i starts, in hashes, and how many it has.
        places: Vec<(u64, u32)>,
        /// Hashes written.
        end: u64,
    },
}

impl Sets {
    /// Room for `count` sets, all empty, on disk.
    pub fn on_disk(count: usize, scratch: &Scratch) -> Result<Self> {
        let (path, file) = scratch.file("sets")?;
        Ok(Self::Disk { path, file, places: vec![(0, 0); count], end: 0 })
    }

    /// Sets in memory.
    #[cfg(test)]
    pub fn of(lists: &[Vec<u64>]) -> Self {
        let mut grams = Grams::default();
        let places = lists.iter().map(|list| grams.push(list)).collect();
        Self::Memory(grams, places)
    }

    /// Stores set `i`.
    pub fn put(&mut self, i: usize, set: &[u64]) -> Result<()> {
        match self {
            Self::Memory(grams, places) => places[i] = grams.push(set),
            Self::Disk { path, file, places, end } => {
                let bytes: Vec<u8> = set.iter().flat_map(|hash| hash.to_le_bytes()).collect();
                file.write_all(&bytes).map_err(Error::io(&*path))?;
                places[i] = (*end, set.len() as u32);
                *end += set.len() as u64;
            }
        }
        Ok(())
    }

    /// How many hashes set `i` has.
    pub fn len_of(&self, i: usize) -> usize {
        match self {
            Self::Memory(_, places) => places[i].count as usize,
            Self::Disk { places, .. } => places[i].1 as usize,
        }
    }

    /// Set `i`; `room` may be used for it.
    pub fn get<'a>(&'a self, i: usize, room: &'a mut Vec<u64>) -> Result<&'a [u64]> {
        match self {
            Self::Memory(grams, places) => Ok(grams.get(places[i])),
            Self::Disk { path, file, places, .. } => {
                let (start, count) = places[i];
                let mut bytes = vec![0; count as usize * 8];
                read_at(file, &mut bytes, start * 8).map_err(Error::io(path))?;
                room.clear();
                room.extend(bytes.as_chunks::<8>().0.iter().map(|hash| u64::from_le_bytes(*hash)));
                Ok(room)
            }
        }
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(not(unix))]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    // A handle of its own: threads must not share one cursor.
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(bytes)
}

/// Short texts by number: ids, in memory or in a file.
#[derive(Debug, Default)]
pub struct Names {
    bytes: Vec<u8>,
    ends: Vec<u64>,
    file: Option<(PathBuf, File)>,
    flushed: u64,
}

impl Names {
    /// None yet; with a folder they go to disk.
    pub fn new(scratch: Option<&Scratch>) -> Result<Self> {
        let file = scratch.map(|scratch| scratch.file("ids")).transpose()?;
        Ok(Self { file, ..Self::default() })
    }

    /// Adds one.
    pub fn push(&mut self, name: &str) -> Result<()> {
        self.bytes.extend_from_slice(name.as_bytes());
        self.ends.push(self.flushed + self.bytes.len() as u64);
        if let Some((path, file)) = self.file.as_mut().filter(|_| self.bytes.len() > 1 << 16) {
            file.write_all(&self.bytes).map_err(Error::io(&*path))?;
            self.flushed += self.bytes.len() as u64;
            self.bytes.clear();
        }
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The `i`-th.
    pub fn get(&self, i: usize) -> Result<String> {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        let mut name = vec![0; (self.ends[i] - start) as usize];
        if let Some((path, file)) = self.file.as_ref().filter(|_| start < self.flushed) {
            read_at(file, &mut name, start).map_err(Error::io(path))?;
        } else {
            let from = (start - self.flushed) as usize;
            let length = name.len();
            name.copy_from_slice(&self.bytes[from..from + length]);
        }
        Ok(String::from_utf8(name).expect("names are text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Any records come back by key and in order, from memory and from runs on disk.
        #[test]
        fn runs_give_back_what_was_put_in(records in vec((0u64..200, 0u32..50), 0..6000)) {
            let folder = tempfile::tempdir().unwrap();
            let scratch = Scratch::create(folder.path().join("scratch")).unwrap();
            let mut truth: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
            for (key, document) in &records {
                truth.entry(*key).or_default().insert(*document);
            }
            for spill in [None, Some((1, &scratch))] {
                let mut sorter = Sorter::new("records", spill);
                records.iter().try_for_each(|record| sorter.push(*record)).unwrap();
                let mut found = Vec::new();
                sorter.for_each_key(|key, list| found.push((key, list.clone()))).unwrap();
                let truth: Vec<(u64, Vec<u32>)> = truth
                    .iter()
                    .map(|(key, set)| (*key, set.iter().copied().collect()))
                    .collect();
                prop_assert_eq!(found, truth);
            }
        }
    }

    #[test]
    fn sets_and_names_come_back_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scratch");
        let scratch = Scratch::create(path.clone()).unwrap();
        for place in [None, Some(&scratch)] {
            let mut sets = match place {
                None => Sets::of(&vec![Vec::new(); 3]),
                Some(scratch) => Sets::on_disk(3, scratch).unwrap(),
            };
            sets.put(2, &[5, 6]).unwrap();
            sets.put(0, &[u64::MAX]).unwrap();
            let mut room = Vec::new();
            assert_eq!(sets.get(0, &mut room).unwrap(), [u64::MAX]);
            assert_eq!(sets.get(1, &mut room).unwrap(), [0; 0]);
            assert_eq!(sets.get(2, &mut room).unwrap(), [5, 6]);
            let mut names = Names::new(place).unwrap();
            (0..9000).try_for_each(|i| names.push(&format!("é{i}"))).unwrap();
            assert!([0, 7, 4095, 8999].iter().all(|i| names.get(*i).unwrap() == format!("é{i}")));
        }
        drop(scratch);
        assert!(!path.exists());
    }
}
