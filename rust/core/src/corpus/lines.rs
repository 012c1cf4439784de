//! Lines of JSON files, plain or compressed.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::PathBuf;

use flate2::bufread::GzDecoder;
use memchr::memchr;
use xxhash_rust::xxh3::Xxh3;

use super::MAX_ROW_BYTES;
use super::find::{Format, InputFile};
use crate::{Error, Result};

/// Lines of a possibly compressed file, each at most [`MAX_ROW_BYTES`].
pub struct Lines {
    path: PathBuf,
    packed: bool,
    first: bool,
    reader: Box<dyn Read + Send>,
    /// What was read and not yet given out stands from `start` to `end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Of what was read so far, if anybody asked.
    pub hash: Option<Box<Xxh3>>,
}

/// The members of a gzip file, one after another; zeros behind one are padding, as in gzip itself.
struct Members(Option<GzDecoder<BufReader<File>>>);

impl Read for Members {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let count = member.read(out)?;
            if count > 0 || out.is_empty() {
                return Ok(count);
            }
            let mut rest = self.0.take().expect("it was there").into_inner();
            loop {
                let bytes = match rest.fill_buf() {
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    bytes => bytes?,
                };
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                if zeros == 0 {
                    self.0 = (!bytes.is_empty()).then(|| GzDecoder::new(rest));
                    break;
                }
                rest.consume(zeros);
            }
        }
        Ok(0)
    }
}

/// What some editors put before a file of UTF-8.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

/// Read at a time: it must stay in a near cache while its lines are looked at.
const READ_BYTES: usize = 256 << 10;

impl Lines {
    pub fn open(file: &InputFile) -> Result<Self> {
        let path = file.path.clone();
        let opened = File::open(&path).map_err(Error::io(&path))?;
        let reader: Box<dyn Read + Send> = match file.format {
            Format::JsonlGzip => Box::new(Members(Some(GzDecoder::new(BufReader::new(opened))))),
            Format::JsonlZstd => Box::new(zstd::Decoder::new(opened).map_err(Error::io(&path))?),
            _ => Box::new(opened),
        };
        let packed = file.format != Format::Jsonl;
        let buffer = vec![0; READ_BYTES];
        Ok(Self { path, packed, first: true, reader, buffer, start: 0, end: 0, hash: None })
    }

    /// The next line without its end, or why it is set aside; `None` at the end of the file.
    pub fn next_line(&mut self) -> Result<Option<std::result::Result<&[u8], String>>> {
        let mut too_long = false;
        let mut searched = 0;
        let (line, next) = loop {
            let from = self.start + searched;
            if let Some(length) = memchr(b'\n', &self.buffer[from..self.end]) {
                break (self.start..from + length, from + length + 1);
            }
            searched = self.end - self.start;
            if searched > MAX_ROW_BYTES {
                too_long = true;
                (self.start, searched) = (self.end, 0);
            }
            if self.fill()? == 0 {
                if searched == 0 && !too_long {
                    return Ok(None);
                }
                break (self.start..self.end, self.end);
            }
        };
        self.start = next;
        if too_long || line.len() > MAX_ROW_BYTES {
            return Ok(Some(Err(format!("longer than {MAX_ROW_BYTES} bytes"))));
        }
        let mut line = &self.buffer[line];
        if std::mem::take(&mut self.first) {
            line = line.strip_prefix(BOM).unwrap_or(line);
        }
        let ends = line.iter().rev().take_while(|byte| **byte == b'\r').count();
        Ok(Some(Ok(&line[..line.len() - ends])))
    }

    /// Reads on; returns how many bytes came.
    fn fill(&mut self) -> Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        // Room for a long line, which is not kept for short ones.
        let room = (2 * self.end).max(READ_BYTES);
        if self.buffer.len() != room {
            self.buffer.resize(room, 0);
            self.buffer.shrink_to(room);
        }
        loop {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(count) => {
                    if let Some(hash) = &mut self.hash {
                        hash.update(&self.buffer[self.end..self.end + count]);
                    }
                    self.end += count;
                    return Ok(count);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if self.packed => {
                    let message = format!("damaged or cut off ({e}): make or fetch it again");
                    return Err(Error::input(&self.path, message));
                }
                Err(e) => return Err(Error::io(&self.path)(e)),
            }
        }
    }
}
