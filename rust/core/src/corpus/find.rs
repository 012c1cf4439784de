//! Which files an input is: itself, or a folder's tables or source files.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::read::parquet_reader;
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Parquet,
    Jsonl,
    JsonlGzip,
    JsonlZstd,
    /// A source file: the whole file is one document.
    Source,
}

impl Format {
    pub fn of(path: &Path) -> Self {
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase());
        let name = name.unwrap_or_default();
        let ends = |suffixes: &[&str]| suffixes.iter().any(|s| name.ends_with(s));
        if ends(&[".parquet"]) {
            Self::Parquet
        } else if ends(&[".jsonl", ".ndjson"]) {
            Self::Jsonl
        } else if ends(&[".jsonl.gz", ".ndjson.gz"]) {
            Self::JsonlGzip
        } else if ends(&[".jsonl.zst", ".ndjson.zst"]) {
            Self::JsonlZstd
        } else {
            Self::Source
        }
    }
}

#[derive(Debug, Clone)]
pub struct InputFile {
    pub path: PathBuf,
    pub format: Format,
    /// What the document's `path` column says: relative to the folder that was named.
    pub label: String,
    /// Which of the inputs it belongs to.
    pub input: usize,
    /// Only these of a Parquet file's row groups; none for all of them.
    pub groups: Option<Range<usize>>,
    /// The columns of the first lines, where the schema is by those alone.
    pub sampled: Option<Vec<String>>,
}

impl InputFile {
    /// Bytes of its text, roughly: of Parquet those of all columns as they are encoded; compressed lines
    /// count four times.
    pub fn text_bytes(&self) -> Result<u64> {
        if self.format == Format::Parquet {
            let reader = parquet_reader(&self.path)?;
            let groups = reader.metadata().row_groups();
            let range = self.groups.clone().unwrap_or(0..groups.len());
            return Ok(groups[range]
                .iter()
                .map(|group| group.total_byte_size().max(0) as u64)
                .sum());
        }
        let disk = std::fs::metadata(&self.path).map_err(Error::io(&self.path))?.len();
        let packed = matches!(self.format, Format::JsonlGzip | Format::JsonlZstd);
        Ok(if packed { 4 * disk } else { disk })
    }
}

pub fn find(inputs: &[PathBuf], extensions: &[String]) -> Result<Vec<InputFile>> {
    let mut files = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let meta = std::fs::metadata(input).map_err(Error::io(input))?;
        if meta.is_dir() {
            files.extend(files_of_folder(input, number, extensions)?);
        } else {
            if Format::of(input) == Format::Source && !is_source(input, extensions) {
                return Err(Error::input(input, unknown_kind(extensions)));
            }
            let name = input.file_name().unwrap_or(input.as_os_str());
            files.push(InputFile {
                path: input.clone(),
                format: Format::of(input),
                label: name.to_string_lossy().into_owned(),
                input: number,
                groups: None,
                sampled: None,
            });
        }
    }
    if files.is_empty() {
        return Err(Error::config("no input given: name at least one file or folder"));
    }
    Ok(files)
}

/// How tables end, for people.
const TABLES: &str = ".parquet, .jsonl, .jsonl.gz or .jsonl.zst";

fn list(extensions: &[String]) -> String {
    extensions.iter().map(|end| format!(".{end}")).collect::<Vec<_>>().join(", ")
}

fn is_source(path: &Path, extensions: &[String]) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    extensions.iter().any(|wanted| *wanted == extension)
}

fn unknown_kind(extensions: &[String]) -> String {
    format!(
        "neither a table ({TABLES}; JSON must be one object a line) nor a source file ending in {}: \
         rename or convert it",
        list(extensions)
    )
}

/// What a stage said of its folder in a JSON file, and the stage's name. Others may have a file of this
/// name too.
fn said_by_stage(file: &Path) -> Option<(String, serde_json::Value)> {
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    value["key"].as_str()?;
    Some((value["stage"].as_str()?.to_owned(), value))
}

/// Which stage has begun to write a folder and not ended, if one has.
fn unfinished(folder: &Path) -> Option<String> {
    if folder.join("manifest.json").exists() {
        return None;
    }
    said_by_stage(&folder.join("started.json")).map(|(stage, _)| stage)
}

/// Whether a folder holds no documents, though it may hold tables: what a stage set aside or beside.
fn is_aside(name: &str) -> bool {
    matches!(name, "rejected" | "__pycache__" | "__scores__")
}

/// The tables that a stage's manifest in this folder names, if there is one; each must be as large as
/// it says. What else lies there is no part of the stage's result.
fn parts_of_stage(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    let manifest = said_by_stage(&folder.join("manifest.json")).map(|(_, manifest)| manifest);
    let Some(parts) = manifest.as_ref().and_then(|manifest| manifest["parts"].as_array()) else {
        return Ok(None);
    };
    let mut tables = Vec::new();
    for part in parts {
        let (Some(name), Some(bytes)) = (part["name"].as_str(), part["bytes"].as_u64()) else {
            return Ok(None);
        };
        let path = folder.join(name);
        let aside = name.split('/').next().is_some_and(is_aside);
        if aside || Format::of(&path) == Format::Source {
            continue;
        }
        let wrong = match std::fs::metadata(&path) {
            Ok(meta) if meta.len() == bytes => {
                tables.push(path);
                continue;
            }
            Ok(meta) => format!("{} bytes, but the manifest says {bytes}", meta.len()),
            Err(_) => "missing, though the manifest names it".to_owned(),
        };
        return Err(Error::input(&path, format!("{wrong}: run the stage that made it again")));
    }
    Ok((!tables.is_empty()).then_some(tables))
}

fn files_of_folder(folder: &Path, input: usize, extensions: &[String]) -> Result<Vec<InputFile>> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(current) = pending.pop() {
        if let Some(tables) = parts_of_stage(&current)? {
            found.extend(tables);
            continue;
        }
        for entry in std::fs::read_dir(&current).map_err(Error::io(&current))? {
            let path = entry.map_err(Error::io(&current))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let mut kind = std::fs::symlink_metadata(&path).map_err(Error::io(&path))?;
            if name.starts_with('.') {
                continue;
            }
            if kind.is_symlink() {
                // Links to folders are not followed, which could loop, nor those to source files, which
                // are copies. A table may be kept elsewhere, as the Hugging Face cache does.
                match std::fs::metadata(&path) {
                    Ok(meta) if meta.is_file() && Format::of(&path) != Format::Source => {
                        kind = meta;
                    }
                    _ => continue,
                }
            }
            if kind.is_dir() {
                if !is_aside(&name) {
                    pending.push(path);
                }
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    for started in found.iter().filter(|path| path.ends_with("started.json")) {
        let output = started.parent().unwrap_or(folder);
        if let Some(stage) = unfinished(output) {
            let message = format!(
                "the run of `{stage}` that writes it has not ended: run it again, or name single files",
            );
            return Err(Error::input(output, message));
        }
    }
    let is_table = |path: &Path| Format::of(path) != Format::Source;
    // Tables at the top are what the folder is for; deeper ones among source files are somebody's
    // test data, which must not hide a folder of repositories.
    let table_on_top = found.iter().find(|p| p.parent() == Some(folder) && is_table(p));
    let source = found.iter().find(|path| is_source(path, extensions));
    if let (Some(table), Some(source)) = (table_on_top, source) {
        let message = format!(
            "holds both tables ({}) and source files ({}): name the files or a folder of one kind",
            table.strip_prefix(folder).unwrap_or(table).display(),
            source.strip_prefix(folder).unwrap_or(source).display(),
        );
        return Err(Error::input(folder, message));
    }
    let tables = source.is_none();
    found.retain(|path| if tables { is_table(path) } else { is_source(path, extensions) });
    if found.is_empty() {
        let message =
            format!("no {TABLES} file in it, and no source file ending in {}", list(extensions));
        return Err(Error::input(folder, message));
    }
    let file = |path: PathBuf| InputFile {
        format: Format::of(&path),
        label: path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned(),
        input,
        groups: None,
        sampled: None,
        path,
    };
    Ok(found.into_iter().map(file).collect())
}
