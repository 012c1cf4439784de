//! The one map from core errors to Python exceptions: variant for variant, into `hornbook.errors`.

use hornbook_core::Error;
use pyo3::prelude::*;

/// Turns a core error into the Python exception of the same kind.
pub fn to_py(error: &Error) -> PyErr {
    let class = match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => "InputError",
        Error::Io { .. } => "StorageError",
        Error::Input { .. } | Error::Unsettled { .. } => "InputError",
        Error::Config(_) => "ConfigError",
        Error::Resume { .. } => "ResumeError",
    };
    Python::attach(|py| {
        let make = || py.import("hornbook.errors")?.getattr(class)?.call1((error.to_string(),));
        make().map_or_else(|failure| failure, PyErr::from_value)
    })
}

/// `result.py()?` in a binding.
pub trait IntoPyResult<T> {
    /// Maps the error.
    fn py(self) -> PyResult<T>;
}

impl<T> IntoPyResult<T> for hornbook_core::Result<T> {
    fn py(self) -> PyResult<T> {
        self.map_err(|error| to_py(&error))
    }
}
