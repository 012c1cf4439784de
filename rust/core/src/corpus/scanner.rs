//! JSON lines, fast: rows of plain values are read by a scanner of our own, all others by `serde_json`.
//!
//! The scanner walks strings 64 bytes at a time and writes them where they stay. It gives up at
//! anything that is not wholly plain (nested values, keys given twice, anything malformed); `serde_json`
//! then decides what the row is, and why it is none. So the scanner only ever answers for rows on which
//! both agree.

// Whatever uses masks must become part of the function that is compiled for them.
#![allow(clippy::inline_always)]

use arrow::datatypes::DataType;
use memchr::memchr2;
use serde_json::Value;

use super::strings::{block_at, copy_string, plain_escape};
use crate::tokenizer::simd::{self, BLOCK, Kernel, Level, Masks};

/// A row as `serde_json` has it.
pub type JsonRow = serde_json::Map<String, Value>;

/// One JSON line as a row with a `text`, or the reason why it is none.
pub fn json_row(line: &[u8]) -> Result<JsonRow, String> {
    let value: Value = match std::str::from_utf8(line) {
        Ok(text) => serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?,
        Err(e) => return Err(format!("not UTF-8 at byte {}", e.valid_up_to())),
    };
    let Value::Object(row) = value else {
        return Err("not a JSON object".to_owned());
    };
    match row.get("text") {
        Some(Value::String(_)) => Ok(row),
        Some(_) => Err("`text` is not a string".to_owned()),
        None => Err("no `text`".to_owned()),
    }
}

/// Walks a line; every step is `None` where only `serde_json` can tell.
pub struct Scanner<'a, M> {
    line: &'a [u8],
    /// Where the walk is.
    pub at: usize,
    masks: M,
}

impl<'a, M: Fn(&[u8; BLOCK]) -> Masks> Scanner<'a, M> {
    /// At the start of a line.
    pub fn new(line: &'a [u8], masks: M) -> Self {
        Self { line, at: 0, masks }
    }

    /// The byte that is next.
    #[inline(always)]
    pub fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    /// Passes over spaces, then over this byte.
    #[inline(always)]
    pub fn pass(&mut self, byte: u8) -> Option<()> {
        self.spaces();
        (self.peek()? == byte).then(|| self.at += 1)
    }

    #[inline(always)]
    fn spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    /// The next key, up to where its value begins. Call [`Scanner::another`] after the value.
    #[inline(always)]
    pub fn key(&mut self) -> Option<&'a str> {
        self.pass(b'"')?;
        let start = self.at;
        // Keys are short; one with an escape is refused as its quote is then not next.
        self.at += memchr2(b'"', b'\\', &self.line[start..])?;
        let key = &self.line[start..self.at];
        self.pass(b'"')?;
        self.pass(b':')?;
        self.spaces();
        let plain = key.iter().all(|byte| *byte >= 0x20);
        std::str::from_utf8(key).ok().filter(|_| plain)
    }

    /// Whether another pair follows, and not the end of the line.
    #[inline(always)]
    pub fn another(&mut self) -> Option<bool> {
        self.spaces();
        let next = self.peek()?;
        self.at += 1;
        match next {
            b',' => Some(true),
            b'}' => {
                self.spaces();
                (self.at == self.line.len()).then_some(false)
            }
            _ => None,
        }
    }

    /// A value that is no string.
    pub fn other(&mut self) -> Option<Value> {
        let rest = &self.line[self.at..];
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let length = rest.iter().take_while(|byte| plain(byte)).count();
        self.at += length;
        serde_json::from_slice(&rest[..length]).ok()
    }

    /// Passes over a string whose first quote has been passed. With `PLAIN` it must be a good one, without
    /// `\\u`; else that is not asked.
    #[inline(always)]
    fn skip_string<const PLAIN: bool>(&mut self) -> Option<()> {
        let mut copy = [0; BLOCK];
        // Whether the first byte of the block is escaped by the one before.
        let mut carry = 0;
        loop {
            let (block, length) = block_at(self.line, self.at, &mut copy);
            let found = (self.masks)(block);
            let letters;
            (letters, carry) = simd::escaped(found.backslash, carry);
            let quotes = found.double & !letters;
            let ends = if PLAIN { quotes | found.control } else { quotes };
            let mut left = if PLAIN { letters & before(ends) } else { 0 };
            while left != 0 {
                plain_escape(block[left.trailing_zeros() as usize])?;
                left &= left - 1;
            }
            if ends != 0 {
                let place = ends.trailing_zeros() as usize;
                self.at += place + 1;
                return (block[place] == b'"').then_some(());
            }
            if length < BLOCK {
                return None;
            }
            self.at += BLOCK;
        }
    }

    /// Appends a string whose first quote has been passed; returns whether it may not be ASCII.
    #[inline(always)]
    pub fn string(&mut self, level: Level, out: &mut Vec<u8>) -> Option<bool> {
        let (taken, high) = copy_string(level, &self.line[self.at..], out)?;
        self.at += taken;
        Some(high)
    }
}

/// The bits below the lowest of these, or all.
#[inline(always)]
fn before(bits: u64) -> u64 {
    (bits & bits.wrapping_neg()).wrapping_sub(1)
}

/// Whether every key and kind of value in a line is `known`. `false` also where that is hard to tell.
pub fn all_known(line: &[u8], level: Level, known: impl Fn(&str, &DataType) -> bool) -> bool {
    let mut kernel = AllKnown { line, known: &known, answer: None };
    simd::run(level, &mut kernel);
    kernel.answer.is_some()
}

struct AllKnown<'a, F> {
    line: &'a [u8],
    known: &'a F,
    answer: Option<()>,
}

impl<F: Fn(&str, &DataType) -> bool> Kernel for AllKnown<'_, F> {
    #[inline(always)]
    fn run(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks) {
        self.answer = self.scan(Scanner::new(self.line, masks));
    }
}

impl<F: Fn(&str, &DataType) -> bool> AllKnown<'_, F> {
    #[inline(always)]
    fn scan(&self, mut scanner: Scanner<'_, impl Fn(&[u8; BLOCK]) -> Masks>) -> Option<()> {
        scanner.pass(b'{')?;
        loop {
            let key = scanner.key()?;
            let kind = if scanner.peek()? == b'"' {
                scanner.at += 1;
                scanner.skip_string::<false>()?;
                DataType::Utf8
            } else {
                kind_of(&scanner.other()?)
            };
            if !(self.known)(key, &kind) {
                return None;
            }
            if !scanner.another()? {
                return Some(());
            }
        }
    }
}

/// `text` and `id` of a row as they stand in its line, where every string is plain and without `\\u`, and
/// every other value a number, a truth or a null. None for anything else, sound or not.
pub fn raw_row(line: &str, level: Level) -> Option<(&str, Option<&str>)> {
    let mut kernel = RawRow { line, answer: None };
    simd::run(level, &mut kernel);
    kernel.answer
}

struct RawRow<'a> {
    line: &'a str,
    answer: Option<(&'a str, Option<&'a str>)>,
}

impl Kernel for RawRow<'_> {
    #[inline(always)]
    fn run(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks) {
        self.answer = self.scan(Scanner::new(self.line.as_bytes(), masks));
    }
}

impl<'a> RawRow<'a> {
    #[inline(always)]
    fn scan(
        &self,
        mut scanner: Scanner<'a, impl Fn(&[u8; BLOCK]) -> Masks>,
    ) -> Option<(&'a str, Option<&'a str>)> {
        let (mut text, mut id) = (None, None);
        scanner.pass(b'{')?;
        loop {
            let key = scanner.key()?;
            let start = scanner.at;
            if scanner.peek()? == b'"' {
                scanner.at += 1;
                scanner.skip_string::<true>()?;
            } else {
                scanner.other()?;
            }
            let twice = match key {
                "text" => text.replace(&self.line[start..scanner.at]),
                "id" => id.replace(&self.line[start..scanner.at]),
                _ => None,
            };
            if twice.is_some() {
                return None;
            }
            if !scanner.another()? {
                return Some((text?, id));
            }
        }
    }
}

/// The column type that a value asks for. An integer that is too large for its column's type would lose
/// digits as a float: it is kept as text.
pub fn kind_of(value: &Value) -> DataType {
    match value {
        Value::Null => DataType::Null,
        Value::Bool(_) => DataType::Boolean,
        Value::Number(number) if number.is_i64() => DataType::Int64,
        Value::Number(number) if number.is_f64() => DataType::Float64,
        _ => DataType::Utf8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    /// What every level answers.
    fn row(line: &str) -> Option<(&str, Option<&str>)> {
        let mut rows = Level::available().into_iter().map(|level| raw_row(line, level));
        let first = rows.next()?;
        assert!(rows.all(|other| other == first), "{line}");
        first
    }

    #[derive(serde::Deserialize)]
    struct Row<'a> {
        #[serde(borrow)]
        text: Option<&'a RawValue>,
        #[serde(borrow)]
        id: Option<&'a RawValue>,
    }

    fn serde_row(line: &str) -> Option<(&str, Option<&str>)> {
        let row: Row<'_> = serde_json::from_str(line).ok()?;
        Some((row.text?.get(), row.id.map(RawValue::get)))
    }

    #[test]
    fn plain_rows_and_others() {
        let plain = r#" {"id": "7", "n": -1.5e3 , "ok":true,"none" : null, "text":"a\n\"b\\"} "#;
        assert_eq!(row(plain), Some((r#""a\n\"b\\""#, Some(r#""7""#))));
        for line in [
            r#"{"text": "a\u0041"}"#,
            r#"{"text": "a", "x": [1, 2]}"#,
            r#"{"text": "a", "x": {}}"#,
            r#"{"text": "a", "text": "b"}"#,
            r#"{"t\u0065xt": "a"}"#,
            r#"{"text": "a\q"}"#,
            "{\"text\": \"a\tb\"}",
            r#"{"text": "a"} x"#,
            r#"{"text": "a",}"#,
            r#"{"text": "a", "n": 01}"#,
            r#"{"text": "a"#,
            r#"{"id": 3}"#,
            "{}",
            "",
        ] {
            assert_eq!(row(line), None, "{line}");
        }
    }

    proptest! {
        /// Whatever the quick way reads, the sound way reads the same.
        #[test]
        fn reads_what_serde_reads(
            text in "[a\"\\\\\n\té/]{0,150}", id in "[a\\\\]{0,70}", number in any::<i32>(), cut in 0usize..400,
            wrong in "[\"\\\\,}{: a\u{1}]"
        ) {
            let text = serde_json::to_string(&text).unwrap();
            let id = serde_json::to_string(&id).unwrap();
            let line = format!("{{\"n\":{number}, \"text\": {text},\"id\":{id}}}");
            prop_assert_eq!(row(&line), Some((text.as_str(), Some(id.as_str()))));
            let mut broken = line.clone();
            if broken.is_char_boundary(cut) && cut < broken.len() {
                broken.insert_str(cut, &wrong);
                if let Some(found) = row(&broken) {
                    prop_assert_eq!(Some(found), serde_row(&broken));
                }
            }
        }
    }
}
