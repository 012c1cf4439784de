//! Token files and the samples cut from them.
//!
//! [`pack()`] writes documents as one stream of ids with three small sidecars; [`Dataset`] maps such files
//! and makes sample number `g` a pure function of the files, the options and a seed. [`plan`] places
//! whole documents into rows, [`order`] shuffles epochs and mixes sources.

mod dataset;
mod order;
mod plan;
mod write;

pub use dataset::{Batch, Dataset, Method, Options, PartFiles, SourceFiles};
pub use order::{Permutation, Schedule};
pub use plan::{Piece, Plan};
pub use write::{PackOptions, Packed, pack};

/// Bytes of one stored id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// uint16.
    Two,
    /// uint32.
    Four,
}

impl Width {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}
