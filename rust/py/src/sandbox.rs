//! `hornbook.evaluate.sandbox`: running programs in workers.

use std::time::Duration;

use hornbook_core::sandbox::{self, Failure, Job, Limits, Pool};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

fn to_py(failure: &Failure) -> PyErr {
    Python::attach(|py| {
        let make = || {
            let class = py.import("hornbook.errors")?.getattr("SandboxError")?;
            class.call1((failure.to_string(),))
        };
        make().map_or_else(|error| error, PyErr::from_value)
    })
}

type Row = (&'static str, bool, f64, f64, u64, Option<i32>, Py<PyBytes>);

/// Workers that are kept from one run to the next; a forked process needs a pool of its own.
#[pyclass(frozen)]
struct SandboxPool(Pool);

#[pymethods]
impl SandboxPool {
    #[new]
    fn new() -> Self {
        Self(Pool::default())
    }

    /// Runs `(source, tests or None, lasting)` payloads; see `hornbook.evaluate.sandbox.run_programs`.
    #[allow(clippy::too_many_arguments)] // of a Python method: most go by name
    #[pyo3(signature = (jobs, argv, *, cpu_s, wall_s, workers, progress=None))]
    fn run(
        &self,
        py: Python<'_>,
        jobs: Vec<(Vec<u8>, Option<Vec<u8>>, bool)>,
        argv: Vec<String>,
        cpu_s: f64,
        wall_s: f64,
        workers: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Row>> {
        let jobs: Vec<Job> = jobs
            .into_iter()
            .map(|(source, tests, lasting)| Job { source, tests, lasting })
            .collect();
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX / 4);
        let count = jobs.len();
        let limits = Limits { cpu: seconds(cpu_s), wall: seconds(wall_s) };
        let mut raised = None;
        let mut shown = 0;
        let tick = |done: usize| {
            // The caller's thread: Ctrl-C and the progress bar are its business.
            let outcome = Python::attach(|py| {
                py.check_signals()?;
                if let Some(progress) = progress.as_ref().filter(|_| done > shown) {
                    shown = done;
                    progress.call1(py, (done, count))?;
                }
                Ok(())
            });
            match outcome {
                Ok(()) => true,
                Err(error) => {
                    raised = Some(error);
                    false
                }
            }
        };
        let found = py.detach(|| self.0.run(jobs, &argv, limits, workers, tick));
        if let Some(error) = raised {
            return Err(error);
        }
        let rows = found.map_err(|failure| to_py(&failure))?;
        Ok(rows
            .into_iter()
            .map(|row| {
                (
                    row.status.name(),
                    row.tamper_proof,
                    row.cpu.as_secs_f64(),
                    row.wall.as_secs_f64(),
                    row.rss_kb,
                    row.signal,
                    PyBytes::new(py, &row.output).unbind(),
                )
            })
            .collect())
    }
}

/// Starts one worker and returns its description of its layers, as JSON.
#[pyfunction]
fn sandbox_describe(py: Python<'_>, argv: Vec<String>) -> PyResult<Py<PyBytes>> {
    let hello = py.detach(|| sandbox::describe(&argv)).map_err(|failure| to_py(&failure))?;
    Ok(PyBytes::new(py, &hello).unbind())
}

const _: () = {
    crate::fits_python::<SandboxPool>();
};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SandboxPool>()?;
    module.add_function(wrap_pyfunction!(sandbox_describe, module)?)
}
