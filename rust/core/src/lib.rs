//! Hornbook's data core. It knows nothing of Python: the crate `hornbook-py` binds it.
//!
//! Data flows `corpus -> features -> dedup -> decontaminate -> tokenizer -> pack`; each module
//! reads documents through [`corpus`] and writes parts through it.

pub mod allocator;
pub mod corpus;
pub mod decontaminate;
pub mod dedup;
pub mod diversity;
pub mod error;
pub mod features;
pub mod pack;
#[cfg(unix)]
pub mod sandbox;
pub mod syntax;
pub mod tokenizer;
pub mod words;

pub use error::{Error, Result};
