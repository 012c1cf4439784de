//! One error type for the whole core: one variant for each kind of failure a caller can act on.

use std::path::{Path, PathBuf};

/// Result of every fallible function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and (in the message) what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed below us: missing file, no permission, full disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Input that cannot be used: the message names the row or field.
    #[error("{}: {message}", path.display())]
    Input {
        /// The file concerned.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// An option or argument that makes no sense.
    #[error("{0}")]
    Config(String),
    /// A row that does not fit the columns of the first rows; whoever opened the input by those alone
    /// opens it again by all.
    #[error("{}: row {row} has other columns than the rows before it", path.display())]
    Unsettled {
        /// The file concerned.
        path: PathBuf,
        /// The row, from 1.
        row: u64,
    },
    /// Output that belongs to something else, or does not fit what would be resumed.
    #[error("{}: {message}", path.display())]
    Resume {
        /// The folder or file concerned.
        path: PathBuf,
        /// What was found there.
        message: String,
    },
}

impl Error {
    /// Wraps an operating-system error with the path it concerns.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// An unusable input file or row.
    pub fn input(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// A senseless option.
    pub fn config(message: impl Into<String>) -> Self {
        Self::Config(message.into())
    }
}
