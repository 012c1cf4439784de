//! The module `hornbook._core`: thin functions that convert, release the GIL, call the core, convert.

// PyO3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use pyo3::prelude::*;

mod corpus;
mod decontaminate;
mod dedup;
mod error;
mod packing;
mod quality;
#[cfg(unix)]
mod sandbox;
mod tokens;
mod watch;

/// Stops the build where a class holds what Python's allocator has no place for: it gives 16 bytes of
/// alignment, and a vector of 32 that stands elsewhere ends the process.
const fn fits_python<T>() {
    assert!(align_of::<T>() <= 16, "box what needs more alignment");
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    hornbook_core::allocator::keep_freed_memory();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    corpus::register(module)?;
    decontaminate::register(module)?;
    dedup::register(module)?;
    packing::register(module)?;
    quality::register(module)?;
    #[cfg(unix)]
    sandbox::register(module)?;
    tokens::register(module)
}
