//! Columns of a batch, filled row by row: from JSON lines by the scanner, or by `serde_json`.

// Whatever uses masks must become part of the function that is compiled for them.
#![allow(clippy::inline_always)]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, NullBufferBuilder, RecordBatch,
    StringArray, new_null_array,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use serde_json::Value;

use super::hash_bytes;
use super::scanner::{JsonRow, Scanner, json_row, kind_of};
use crate::tokenizer::simd::{self, BLOCK, Kernel, Level, Masks};

/// A column of strings; those of a row that is not added after all can be taken back.
struct Strings {
    values: Vec<u8>,
    ends: Vec<i32>,
    present: NullBufferBuilder,
}

impl Strings {
    /// None, to be written into `room`, which is empty.
    fn new(room: Vec<u8>) -> Self {
        Self { values: room, ends: vec![0], present: NullBufferBuilder::new(0) }
    }

    /// Bytes of the rows that were added.
    fn committed(&self) -> usize {
        self.ends[self.ends.len() - 1] as usize
    }

    /// What stands after the last row.
    fn pending(&self) -> &[u8] {
        &self.values[self.committed()..]
    }

    /// Makes what stands after the last row the next one.
    fn commit(&mut self, present: bool) {
        // A batch is closed long before, and a row is not that long.
        self.ends.push(i32::try_from(self.values.len()).expect("less than 2^31 bytes"));
        self.present.append(present);
    }

    #[allow(unsafe_code)]
    fn finish(mut self) -> StringArray {
        // Batches may be kept.
        if self.values.capacity() > self.values.len() / 2 * 3 {
            self.values.shrink_to_fit();
        }
        let ends = OffsetBuffer::new(ScalarBuffer::from(self.ends));
        let (values, present) = (Buffer::from_vec(self.values), self.present.finish());
        if cfg!(any(test, debug_assertions)) {
            let checked = StringArray::try_new(ends.clone(), values.clone(), present.clone());
            assert!(checked.is_ok(), "strings of UTF-8");
        }
        // SAFETY: every string came from a `str`, is ASCII, or was found to be UTF-8 before its end was
        // added, and what was not added was truncated; `Vec` checked every length.
        unsafe { StringArray::new_unchecked(ends, values, present) }
    }
}

enum Column {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(Strings),
    /// Of a type that no JSON value has, so that every row is without one; and their number.
    Absent(DataType, usize),
}

/// A value that a row has for a column.
enum Cell {
    /// Strings stand in their column already.
    Text,
    Other(Value),
}

/// Columns of a batch in the making.
pub struct Columns {
    schema: SchemaRef,
    cells: Vec<Column>,
    /// What the row at hand has for each.
    row: Vec<Option<Cell>>,
    id: usize,
    text: usize,
    rows: usize,
    level: Level,
    /// Which columns a line may have, where the schema may be wrong.
    strict: Option<Vec<bool>>,
}

/// Why a line was not added.
#[derive(Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is no row, for this reason.
    Row(String),
    /// It is one of another schema: only where [`Columns::strict`] asked for that.
    Schema,
}

impl Columns {
    /// None yet; texts will stand in `room`, which is empty.
    pub fn new(schema: SchemaRef, room: Vec<u8>) -> Self {
        let mut room = Some(room);
        let mut column = |name: &str, kind: &DataType| match kind {
            DataType::Boolean => Column::Bool(BooleanBuilder::new()),
            DataType::Int64 => Column::Int(Int64Builder::new()),
            DataType::Float64 => Column::Float(Float64Builder::new()),
            kind if *kind != DataType::Utf8 => Column::Absent(kind.clone(), 0),
            _ => {
                let room = room.take_if(|_| name == "text").unwrap_or_default();
                Column::Text(Strings::new(room))
            }
        };
        let fields = schema.fields();
        let cells = fields.iter().map(|field| column(field.name(), field.data_type())).collect();
        let place = |name| fields.iter().position(|field| field.name() == name);
        let (id, text) = place("id").zip(place("text")).expect("a corpus has ids and texts");
        let row = fields.iter().map(|_| None).collect();
        Self { cells, row, id, text, rows: 0, level: Level::best(), strict: None, schema }
    }

    /// The same, refusing rows that have other columns than these, or change the type of one.
    #[must_use]
    pub fn strict(self, columns: &[String]) -> Self {
        let known =
            |name: &String| matches!(name.as_str(), "id" | "text") || columns.contains(name);
        let known = self.schema.fields().iter().map(|field| known(field.name())).collect();
        Self { strict: Some(known), ..self }
    }

    /// Whether a value of this kind leaves the type of a column as it is. Ids may be of any.
    fn holds(&self, at: usize, kind: &DataType) -> bool {
        if !self.strict.as_ref().is_none_or(|known| known[at]) {
            return false;
        }
        match &self.cells[at] {
            Column::Text(_) => at == self.id || matches!(kind, DataType::Utf8 | DataType::Null),
            Column::Bool(_) => matches!(kind, DataType::Boolean | DataType::Null),
            Column::Int(_) => matches!(kind, DataType::Int64 | DataType::Null),
            Column::Float(_) => {
                matches!(kind, DataType::Float64 | DataType::Int64 | DataType::Null)
            }
            Column::Absent(..) => *kind == DataType::Null,
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a line, or tells why it is no row; returns how many bytes its strings have.
    pub fn add_line(&mut self, line: &[u8]) -> Result<usize, Unfit> {
        let level = self.level;
        let mut kernel = AddLine { line, columns: self, answer: None };
        simd::run(level, &mut kernel);
        if kernel.answer.is_some() {
            return Ok(self.commit());
        }
        self.take_back();
        let row = json_row(line).map_err(Unfit::Row)?;
        let fits = |(name, value): (&String, &Value)| {
            let at = self.schema.fields().iter().position(|field| field.name() == name);
            at.is_some_and(|at| self.holds(at, &kind_of(value)))
        };
        if self.strict.is_some() && !row.iter().all(fits) {
            return Err(Unfit::Schema);
        }
        Ok(self.add_row(&row))
    }

    /// Adds a row, which must have a `text`; returns how many bytes its strings have.
    pub fn add_row(&mut self, row: &JsonRow) -> usize {
        debug_assert!(row.get("text").is_some_and(Value::is_string));
        for (at, field) in self.schema.fields().iter().enumerate() {
            self.row[at] = match (row.get(field.name()), &mut self.cells[at]) {
                (Some(Value::String(text)), Column::Text(column)) => {
                    column.values.extend_from_slice(text.as_bytes());
                    Some(Cell::Text)
                }
                (value, _) => value.cloned().map(Cell::Other),
            };
        }
        self.commit()
    }

    /// Forgets the row at hand.
    fn take_back(&mut self) {
        for column in &mut self.cells {
            if let Column::Text(column) = column {
                column.values.truncate(column.committed());
            }
        }
        self.row.fill_with(|| None);
    }

    /// Adds the row at hand; returns how many bytes its strings have.
    fn commit(&mut self) -> usize {
        let named = match &self.row[self.id] {
            Some(Cell::Other(value)) => !value.is_null(),
            cell => cell.is_some(),
        };
        if let (false, Column::Text(text)) = (named, &self.cells[self.text]) {
            let id = hash_bytes(text.pending());
            self.row[self.id] = Some(Cell::Other(Value::String(id)));
        }
        let mut bytes = 0;
        for (column, cell) in self.cells.iter_mut().zip(&mut self.row) {
            let (at_hand, value) = match cell.take() {
                Some(Cell::Other(value)) => (false, value),
                cell => (cell.is_some(), Value::Null),
            };
            match column {
                Column::Bool(column) => column.append_option(value.as_bool()),
                Column::Int(column) => column.append_option(value.as_i64()),
                Column::Float(column) => column.append_option(value.as_f64()),
                Column::Absent(_, rows) => *rows += 1,
                Column::Text(column) => {
                    let present = at_hand || !value.is_null();
                    match value {
                        Value::Null => {}
                        Value::String(text) => column.values.extend_from_slice(text.as_bytes()),
                        other => column.values.extend_from_slice(other.to_string().as_bytes()),
                    }
                    bytes += column.pending().len();
                    column.commit(present);
                }
            }
        }
        self.rows += 1;
        bytes
    }

    /// Reads the values of a line into the row at hand.
    #[inline(always)]
    fn scan(&mut self, mut scanner: Scanner<'_, impl Fn(&[u8; BLOCK]) -> Masks>) -> Option<()> {
        let level = self.level;
        scanner.pass(b'{')?;
        loop {
            let key = scanner.key()?;
            let at = self.schema.fields().iter().position(|field| field.name() == key)?;
            // Of repeated keys the last counts in serde_json.
            if self.row[at].is_some() {
                return None;
            }
            if let Some(known) = &self.strict
                && !known[at]
            {
                return None;
            }
            self.row[at] = Some(if scanner.peek()? == b'"' {
                scanner.at += 1;
                let Column::Text(column) = &mut self.cells[at] else { return None };
                if scanner.string(level, &mut column.values)? {
                    simdutf8::basic::from_utf8(column.pending()).ok()?;
                }
                Cell::Text
            } else {
                let value = scanner.other()?;
                if self.strict.is_some() && !self.holds(at, &kind_of(&value)) {
                    return None;
                }
                Cell::Other(value)
            });
            if !scanner.another()? {
                return matches!(self.row[self.text], Some(Cell::Text)).then_some(());
            }
        }
    }

    /// Bytes of the texts so far.
    pub fn text_bytes(&self) -> usize {
        match &self.cells[self.text] {
            Column::Text(text) => text.committed(),
            _ => 0,
        }
    }

    /// The batch.
    pub fn finish(self) -> Result<RecordBatch, ArrowError> {
        let finish = |column| -> ArrayRef {
            match column {
                Column::Bool(mut column) => Arc::new(column.finish()),
                Column::Int(mut column) => Arc::new(column.finish()),
                Column::Float(mut column) => Arc::new(column.finish()),
                Column::Text(column) => Arc::new(column.finish()),
                Column::Absent(kind, rows) => new_null_array(&kind, rows),
            }
        };
        let columns = self.cells.into_iter().map(finish).collect();
        RecordBatch::try_new(self.schema, columns)
    }
}

struct AddLine<'a> {
    line: &'a [u8],
    columns: &'a mut Columns,
    answer: Option<()>,
}

impl Kernel for AddLine<'_> {
    #[inline(always)]
    fn run(&mut self, masks: impl Fn(&[u8; BLOCK]) -> Masks) {
        self.answer = self.columns.scan(Scanner::new(self.line, masks));
    }
}

#[cfg(test)]
mod tests {
    use super::super::scanner::all_known;
    use super::*;
    use proptest::prelude::*;

    use arrow::datatypes::{Field, Schema};

    /// A schema for the columns of these tests.
    fn schema() -> SchemaRef {
        let field = |(name, kind)| Field::new(name, kind, true);
        let text = DataType::Utf8;
        Arc::new(Schema::new(
            [
                ("id", text.clone()),
                ("text", text.clone()),
                ("o", text),
                ("n", DataType::Float64),
                ("b", DataType::Boolean),
                ("m", DataType::Int64),
            ]
            .map(field)
            .to_vec(),
        ))
    }

    /// The batch of some rows that are added one after another.
    fn batch(add: impl FnOnce(&mut Columns)) -> RecordBatch {
        let mut columns = Columns::new(schema(), Vec::new());
        add(&mut columns);
        columns.finish().unwrap()
    }

    /// Where the scanner answers, it adds the row that `serde_json` gives, and else nothing, at every
    /// level. Whether it answers.
    fn check(line: &str) -> bool {
        let row = json_row(line.as_bytes()).ok();
        let answers = Level::available().into_iter().map(|level| {
            let mut answer = None;
            let found = batch(|columns| {
                columns.level = level;
                let before = JsonRow::from_iter([("text".to_owned(), "first".into())]);
                columns.add_row(&before);
                let mut kernel = AddLine { line: line.as_bytes(), columns, answer: None };
                simd::run(level, &mut kernel);
                answer = kernel.answer;
                match answer {
                    Some(()) => assert!(columns.commit() >= columns.text_bytes() - 5),
                    None => columns.take_back(),
                }
            });
            let expected = batch(|columns| {
                let before = JsonRow::from_iter([("text".to_owned(), "first".into())]);
                columns.add_row(&before);
                if answer.is_some() {
                    columns.add_row(row.as_ref().expect("serde_json reads it too"));
                }
            });
            assert_eq!(found, expected, "{line} at {}", level.name());
            // What serde_json reads, the scanner for kinds must not take for something else.
            let kinds = std::cell::RefCell::new(Vec::new());
            let all = all_known(line.as_bytes(), level, |key, kind| {
                kinds.borrow_mut().push((key.to_owned(), kind.clone()));
                true
            });
            let kinds = kinds.into_inner();
            for (key, value) in row.iter().flatten().filter(|_| all) {
                let last = kinds.iter().rev().find(|(name, _)| name == key);
                assert_eq!(last.map(|(_, kind)| kind), Some(&kind_of(value)), "{line}");
            }
            assert!(all || answer.is_none(), "{line}: kinds are easier than values");
            answer.is_some()
        });
        let answers: Vec<bool> = answers.collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{line}");
        answers[0]
    }

    #[test]
    fn plain_rows_are_scanned() {
        for line in [
            r#"{"text": "a\n\"b\\\t\/\b\f\r\u00e9\ud83d\ude00é", "n": -1.5e3, "b": true, "m": null}"#,
            r#"{"text":"","o":null}"#,
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
            r#"{"text":"","text":"twice"}"#,
            r#"{"text":"","unknown":"column"}"#,
            r#"{"text":"","n":"no number"}"#,
            "{\"text\": \"a\", \"o\": \"\u{1}\"}",
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
        fn runs_of_backslashes_read_alike(
            before in 0usize..130, run in 0usize..140, after in "[n\"]{0,3}"
        ) {
            let text = format!("{}{}{after}", "x".repeat(before), "\\".repeat(run));
            check(&format!(r#"{{"text": "{text}", "n": 1}}"#));
        }

        #[test]
        fn noise_reads_alike(line in "[{}\"\\\\:, a-fntu0-9.\\[\\]é-]{0,30}") {
            check(&format!("{{\"text\":{line}"));
            check(&line);
        }
    }
}
