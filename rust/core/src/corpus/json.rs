//! JSON lines, fast: rows of plain values are read by a scanner of our own, all others by `serde_json`.
//!
//! The scanner gives up at anything that is not wholly plain (nested values, white space or escapes
//! where they are rare, anything malformed); `serde_json` then decides what the row is, and why it is
//! none. So the scanner only ever answers for rows on which both agree.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder,
};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use memchr::memchr2;
use serde_json::Value;

use super::text_id;

/// A row as `serde_json` has it.
pub type JsonRow = serde_json::Map<String, Value>;

/// A value of a row.
#[derive(Debug, PartialEq)]
pub enum Cell<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// Anything else.
    Other(Value),
}

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

/// The plain values of a line, or `None` where only `serde_json` can tell.
struct Scanner<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn new(line: &'a [u8]) -> Option<Self> {
        // Only white space between values may be a control character, and it seldom is.
        // Folded, not searched: so it is done many bytes at a time.
        let least = line.iter().fold(u8::MAX, |least, byte| least.min(*byte));
        if least < 0x20 {
            return None;
        }
        Some(Self { line: std::str::from_utf8(line).ok()?, at: 0 })
    }

    fn peek(&self) -> Option<u8> {
        self.line.as_bytes().get(self.at).copied()
    }

    /// Passes over spaces, then over this byte.
    fn pass(&mut self, byte: u8) -> Option<()> {
        self.spaces();
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    /// Calls `each(key, value)` for every pair; the value is `None` for a string that `skip`ped over.
    fn pairs(
        mut self,
        skip: bool,
        mut each: impl FnMut(&'a str, Option<Cell<'a>>) -> Option<()>,
    ) -> Option<()> {
        self.pass(b'{')?;
        loop {
            self.pass(b'"')?;
            let start = self.at;
            self.at += memchr2(b'"', b'\\', &self.line.as_bytes()[start..])?;
            let key = &self.line[start..self.at];
            self.pass(b'"')?;
            self.pass(b':')?;
            self.spaces();
            if self.peek()? == b'"' {
                self.at += 1;
                if skip {
                    self.skip_string()?;
                    each(key, None)?;
                } else {
                    let text = self.string()?;
                    each(key, Some(Cell::Text(text)))?;
                }
            } else {
                let start = self.at;
                let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                let length =
                    self.line.as_bytes()[start..].iter().take_while(|byte| plain(byte)).count();
                self.at += length;
                let value = serde_json::from_str(&self.line[start..self.at]).ok()?;
                each(key, Some(Cell::Other(value)))?;
            }
            self.spaces();
            let next = self.peek()?;
            self.at += 1;
            match next {
                b',' => self.spaces(),
                b'}' => break,
                _ => return None,
            }
        }
        self.spaces();
        (self.at == self.line.len()).then_some(())
    }

    fn skip_string(&mut self) -> Option<()> {
        loop {
            self.at += memchr2(b'"', b'\\', &self.line.as_bytes()[self.at..])?;
            if self.peek()? == b'"' {
                self.at += 1;
                return Some(());
            }
            self.at = (self.at + 2).min(self.line.len());
            // The escaped character may be of several bytes: the line is then no JSON.
            if !self.line.is_char_boundary(self.at) {
                return None;
            }
        }
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        let start = self.at;
        self.at += memchr2(b'"', b'\\', &self.line.as_bytes()[start..])?;
        if self.peek()? == b'"' {
            self.at += 1;
            return Some(Cow::Borrowed(&self.line[start..self.at - 1]));
        }
        // What is left of the line is mostly this string.
        let mut text = String::with_capacity(self.line.len() - start);
        text.push_str(&self.line[start..self.at]);
        loop {
            if self.peek()? == b'"' {
                self.at += 1;
                return Some(Cow::Owned(text));
            }
            self.escape(&mut text)?;
            let plain = memchr2(b'"', b'\\', &self.line.as_bytes()[self.at..])?;
            text.push_str(&self.line[self.at..self.at + plain]);
            self.at += plain;
        }
    }

    /// The character that an escape stands for.
    fn escape(&mut self, text: &mut String) -> Option<()> {
        self.at += 2;
        text.push(match self.line.as_bytes().get(self.at - 1)? {
            b'n' => '\n',
            b'"' => '"',
            b'\\' => '\\',
            b't' => '\t',
            b'/' => '/',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let first = self.hex()?;
                // Pairs of surrogates are one character; a lone one is for serde_json to refuse.
                if (0xd800..0xdc00).contains(&first) {
                    if !self.line[self.at..].starts_with("\\u") {
                        return None;
                    }
                    self.at += 2;
                    let second = self.hex()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                    char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)?
                } else {
                    char::from_u32(first)?
                }
            }
            _ => return None,
        });
        Some(())
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.line.as_bytes().get(self.at..self.at + 4)?;
        self.at += 4;
        digits
            .iter()
            .try_fold(0, |number, digit| Some(number << 4 | (*digit as char).to_digit(16)?))
    }
}

/// Whether every key and kind of value in a line is `known`. `false` also where that is hard to tell.
pub fn all_known(line: &[u8], known: impl Fn(&str, &DataType) -> bool) -> bool {
    let each = |key: &str, cell: Option<Cell<'_>>| {
        let kind = match cell {
            None => DataType::Utf8,
            Some(Cell::Text(_)) => unreachable!("strings are skipped"),
            Some(Cell::Other(value)) => kind_of(&value),
        };
        known(key, &kind).then_some(())
    };
    Scanner::new(line).and_then(|scanner| scanner.pairs(true, each)).is_some()
}

/// The column type that a value asks for.
pub fn kind_of(value: &Value) -> DataType {
    match value {
        Value::Null => DataType::Null,
        Value::Bool(_) => DataType::Boolean,
        Value::Number(number) if number.is_i64() => DataType::Int64,
        Value::Number(_) => DataType::Float64,
        _ => DataType::Utf8,
    }
}

enum Column {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
}

/// Columns of a batch in the making.
pub struct Columns {
    schema: SchemaRef,
    cells: Vec<Column>,
    rows: usize,
}

impl Columns {
    /// None yet.
    pub fn new(schema: SchemaRef) -> Self {
        let column = |kind: &DataType| match kind {
            DataType::Boolean => Column::Bool(BooleanBuilder::new()),
            DataType::Int64 => Column::Int(Int64Builder::new()),
            DataType::Float64 => Column::Float(Float64Builder::new()),
            _ => Column::Text(StringBuilder::new()),
        };
        let columns = schema.fields().iter().map(|field| column(field.data_type())).collect();
        Self { schema, cells: columns, rows: 0 }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a line; returns the length of its text, or why it is no row.
    pub fn add_line<'l>(&mut self, line: &'l [u8]) -> Result<usize, String> {
        let mut pairs: Vec<(&'l str, Cell<'l>)> = Vec::with_capacity(self.cells.len());
        let plain = Scanner::new(line).and_then(|scanner| {
            scanner.pairs(false, |key, cell| {
                pairs.push((key, cell?));
                Some(())
            })
        });
        // Of repeated keys the last counts, as in serde_json.
        let cell =
            |name: &str| pairs.iter().rev().find(|(key, _)| *key == name).map(|pair| &pair.1);
        match cell("text").filter(|_| plain.is_some()) {
            Some(Cell::Text(text)) => {
                self.add(text, cell);
                Ok(text.len())
            }
            _ => self.add_row(&json_row(line)?),
        }
    }

    /// Adds a row with a `text`; returns its length.
    pub fn add_row(&mut self, row: &JsonRow) -> Result<usize, String> {
        let cells: Vec<(&str, Cell<'_>)> = row
            .iter()
            .map(|(key, value)| {
                let cell = match value {
                    Value::String(text) => Cell::Text(Cow::Borrowed(text.as_str())),
                    other => Cell::Other(other.clone()),
                };
                (key.as_str(), cell)
            })
            .collect();
        let cell = |name: &str| cells.iter().find(|(key, _)| *key == name).map(|pair| &pair.1);
        let Some(Cell::Text(text)) = cell("text") else {
            return Err("no `text`".to_owned());
        };
        self.add(text, cell);
        Ok(text.len())
    }

    fn add<'c, 'l: 'c>(&mut self, text: &str, cell: impl Fn(&str) -> Option<&'c Cell<'l>>) {
        self.rows += 1;
        for (field, column) in self.schema.fields().iter().zip(&mut self.cells) {
            let found = cell(field.name());
            let value = match found {
                Some(Cell::Other(value)) => value,
                _ => &Value::Null,
            };
            match column {
                Column::Bool(column) => column.append_option(value.as_bool()),
                Column::Int(column) => column.append_option(value.as_i64()),
                Column::Float(column) => column.append_option(value.as_f64()),
                Column::Text(column) => match found {
                    Some(Cell::Text(text)) => column.append_value(text),
                    Some(Cell::Other(value)) if !value.is_null() => {
                        column.append_value(value.to_string());
                    }
                    _ if field.name() == "id" => column.append_value(text_id(text)),
                    _ => column.append_null(),
                },
            }
        }
    }

    /// The batch.
    pub fn finish(self) -> Result<RecordBatch, ArrowError> {
        let finish = |column| -> ArrayRef {
            match column {
                Column::Bool(mut column) => Arc::new(column.finish()),
                Column::Int(mut column) => Arc::new(column.finish()),
                Column::Float(mut column) => Arc::new(column.finish()),
                Column::Text(mut column) => Arc::new(column.finish()),
            }
        };
        RecordBatch::try_new(self.schema, self.cells.into_iter().map(finish).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the scanner makes of a line, as `serde_json` would have it; `None` if it gives up.
    fn scanned(line: &str) -> Option<JsonRow> {
        let mut row = JsonRow::new();
        Scanner::new(line.as_bytes())?.pairs(false, |key, cell| {
            let value = match cell? {
                Cell::Text(text) => Value::String(text.into_owned()),
                Cell::Other(value) => value,
            };
            row.insert(key.to_owned(), value);
            Some(())
        })?;
        Some(row)
    }

    /// Where the scanner answers, `serde_json` gives the same row.
    fn check(line: &str) -> bool {
        let Some(row) = scanned(line) else {
            return false;
        };
        assert_eq!(serde_json::from_str::<Value>(line).ok(), Some(Value::Object(row)), "{line}");
        true
    }

    #[test]
    fn plain_rows_are_scanned() {
        for line in [
            r#"{"text": "a\n\"b\\\t\/\b\f\r\u00e9\ud83d\ude00é", "n": -1.5e3, "b": true, "z": null}"#,
            r#"{"text":"","text":"twice"}"#,
            r#" { "id" : 7 , "text" : "x" } "#,
        ] {
            assert!(check(line), "{line}");
        }
    }

    #[test]
    fn the_rest_is_left_to_serde_json() {
        for line in [
            "",
            "{",
            "{}",
            "[1]",
            r#"{"text": "a""#,
            r#"{"text": "a"} x"#,
            r#"{"text": "a",}"#,
            r#"{"text": [1]}"#,
            r#"{"text": "\ud800"}"#,
            r#"{"text": "\x"}"#,
            r#"{"text": 01}"#,
            r#"{"te\u0078t": "a"}"#,
            "{\"text\": \"a\tb\"}",
            r#"{"text": "\é"}"#,
            r#"{"text": "a\"#,
            r#"{"text": "\u12"}"#,
            r#"{"text": tru}"#,
            r#"{"text": "\ud800\u0041"}"#,
        ] {
            assert!(!check(line), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_row_reads_alike(
            text in "(\\PC|[\\n\\t\"\\\\]){0,40}", other in "[a-z]{0,3}", number in any::<f64>(),
            escape in any::<bool>(), cut in 0usize..200
        ) {
            let row = serde_json::json!({"text": text, "o": other, "n": number, "m": null});
            let mut line = row.to_string();
            if escape {
                line = line.chars().map(|c| match c as u32 {
                    0x80..=0xffff => format!("\\u{:04X}", c as u32),
                    0x10000.. => {
                        let v = c as u32 - 0x10000;
                        format!("\\u{:04x}\\u{:04x}", 0xd800 + (v >> 10), 0xdc00 + (v & 0x3ff))
                    }
                    _ => c.to_string(),
                }).collect();
            }
            prop_assert!(check(&line));
            check(&line[..line.floor_char_boundary(cut.min(line.len()))]);
        }

        #[test]
        fn noise_reads_alike(line in "[{}\"\\\\:, a-fntu0-9.\\[\\]é-]{0,30}") {
            check(&format!("{{\"text\":{line}"));
            check(&line);
        }
    }
}
