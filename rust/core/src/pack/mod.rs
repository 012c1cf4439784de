//! Token files and the samples cut from them.
//!
//! [`Documents`] and [`Writer`] write documents as one stream of ids with small sidecars; [`Dataset`]
//! maps such files and makes sample number `g` a pure function of the files, the options and a seed.
//! [`plan`] places whole documents into rows, [`order`] shuffles epochs and mixes sources, [`blocks`]
//! checks what is read.

mod blocks;
mod dataset;
mod documents;
mod order;
mod part;
mod plan;
mod write;

pub use dataset::{Dataset, Fields, Method, Options, SourceFiles};
pub use documents::{Documents, end_of_text};
pub use order::{Permutation, Schedule};
pub use part::{Number, PartFiles};
pub use plan::{Piece, Plan};
pub use write::{Count, PackOptions, Packed, Token, Writer};

/// The label that a loss leaves out.
pub const IGNORED: i64 = -100;

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
