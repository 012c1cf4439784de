//! One schema over every input.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::find::{Format, InputFile};
use super::lines::Lines;
use super::read::parquet_reader;
use super::scanner::{all_known, json_row, kind_of};
use crate::tokenizer::simd::Level;
use crate::{Error, Result};

fn base_fields() -> Vec<Field> {
    vec![Field::new("id", DataType::Utf8, false), Field::new("text", DataType::Utf8, false)]
}

/// The schema over all files by at most so many bytes of lines of each. Files that have more are marked
/// with the columns that were seen.
pub fn unified_schema(files: &mut [InputFile], bytes: usize) -> Result<SchemaRef> {
    let mut fields = base_fields();
    for file in files {
        let found = match file.format {
            Format::Parquet => parquet_fields(&file.path)?,
            Format::Source => vec![Field::new("path", DataType::Utf8, true)],
            _ => {
                let (found, all) = json_fields(file, bytes)?;
                let names = || found.iter().map(|field| field.name().clone()).collect();
                file.sampled = (!all).then(names);
                found
            }
        };
        for field in found {
            if field.name() == "id" || field.name() == "text" {
                continue;
            }
            let Some(known) = fields.iter_mut().find(|known| known.name() == field.name()) else {
                fields.push(field.with_nullable(true));
                continue;
            };
            let joined = join_types(known.data_type(), field.data_type()).ok_or_else(|| {
                let message = format!(
                    "column `{}` is {} here and {} in an earlier input: make them one type",
                    field.name(),
                    field.data_type(),
                    known.data_type()
                );
                Error::input(&file.path, message)
            })?;
            *known = Field::new(known.name(), joined, true);
        }
    }
    for field in &mut fields {
        if *field.data_type() == DataType::Null {
            *field = Field::new(field.name(), DataType::Utf8, true);
        }
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The type that holds both, or none.
fn join_types(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{Float64, Int64, Null};
    match (a, b) {
        _ if a == b => Some(a.clone()),
        (Null, other) | (other, Null) => Some(other.clone()),
        (Int64, Float64) | (Float64, Int64) => Some(Float64),
        _ => None,
    }
}

/// One type for each kind of value, whatever width or encoding the file chose.
fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Dictionary(_, value) => plain_type(value),
        t if t.is_integer() && *t != DataType::UInt64 => DataType::Int64,
        t if t.is_floating() => DataType::Float64,
        other => other.clone(),
    }
}

fn parquet_fields(path: &Path) -> Result<Vec<Field>> {
    let reader = parquet_reader(path)?;
    let fields = reader.schema().fields();
    let plain: Vec<Field> = fields
        .iter()
        .map(|field| Field::new(field.name(), plain_type(field.data_type()), true))
        .collect();
    for (place, field) in plain.iter().enumerate() {
        if plain[..place].iter().any(|other| other.name() == field.name()) {
            let message = format!("two columns are called `{}`: rename one", field.name());
            return Err(Error::input(path, message));
        }
    }
    let has_text = plain.iter().any(|f| f.name() == "text" && *f.data_type() == DataType::Utf8);
    if !has_text {
        let names: Vec<&str> = fields.iter().map(|f| f.name().as_str()).collect();
        return Err(Error::input(
            path,
            format!("no string column `text`; it has: {}", names.join(", ")),
        ));
    }
    Ok(plain)
}

/// The columns by at most so many bytes of lines, and whether those are all.
fn json_fields(file: &InputFile, bytes: usize) -> Result<(Vec<Field>, bool)> {
    let mut fields: Vec<Field> = Vec::new();
    let mut lines = Lines::open(file)?;
    let level = Level::best();
    let (mut seen, mut most) = (0, bytes);
    let mut all = true;
    while let Some(line) = lines.next_line()? {
        let Ok(line) = line else {
            continue; // set aside when it is read in earnest
        };
        if seen > most {
            // What was null so far may yet become anything.
            if fields.iter().any(|field| *field.data_type() == DataType::Null) {
                most = usize::MAX;
            } else {
                all = false;
                break;
            }
        }
        seen += line.len();
        // A line that could add nothing, usable or not, is not looked at any closer.
        let known = |name: &str, kind: &DataType| {
            fields.iter().find(|field| field.name() == name).is_some_and(|field| {
                let joined = join_types(field.data_type(), kind).unwrap_or(DataType::Utf8);
                joined == *field.data_type()
            })
        };
        if all_known(line, level, known) {
            continue;
        }
        let Ok(row) = json_row(line) else {
            continue;
        };
        for (name, value) in &row {
            let found = kind_of(value);
            match fields.iter_mut().find(|field| field.name() == name) {
                None => fields.push(Field::new(name, found, true)),
                Some(field) => {
                    // Two kinds in one file: keep both, as their JSON text.
                    let joined = join_types(field.data_type(), &found).unwrap_or(DataType::Utf8);
                    *field = Field::new(name, joined, true);
                }
            }
        }
    }
    Ok((fields, all))
}
