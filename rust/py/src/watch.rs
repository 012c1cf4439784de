//! Work that shows how far it is, and that Ctrl-C ends.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use hornbook_core::dedup::{Progress, on_threads};
use pyo3::panic::PanicException;
use pyo3::prelude::*;

use crate::error::IntoPyResult;

/// Runs work on other threads while this one passes progress on and listens for Ctrl-C.
pub fn watched<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    progress: &Py<PyAny>,
    work: impl FnOnce(Progress<'_>) -> hornbook_core::Result<T> + Send,
) -> PyResult<T> {
    let stopped = AtomicBool::new(false);
    let (say, heard) = mpsc::channel::<(String, u64, Option<u64>)>();
    let (say, heard) = (Mutex::new(say), Mutex::new(heard));
    let tell = |label: &str, done: u64, total: Option<u64>| {
        if stopped.load(Ordering::Relaxed) {
            return Err(hornbook_core::Error::config("interrupted"));
        }
        if let Ok(say) = say.lock() {
            // Nobody listens any more only when the work has been given up.
            let _ = say.send((label.to_owned(), done, total));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| on_threads(threads, || work(&tell)));
        let mut shown = Instant::now();
        let interrupted = loop {
            let finished = worker.is_finished();
            let next = py.detach(|| {
                let heard = heard.lock().map_err(|_| mpsc::RecvTimeoutError::Disconnected)?;
                heard.recv_timeout(Duration::from_millis(20))
            });
            if let Ok((label, done, total)) = next
                && (shown.elapsed() > Duration::from_millis(100) || Some(done) == total)
            {
                shown = Instant::now();
                if let Err(error) = progress.call1(py, (label, done, total)) {
                    break Err(error);
                }
            } else if finished {
                break Ok(());
            }
            if let Err(error) = py.check_signals() {
                break Err(error);
            }
        };
        stopped.store(true, Ordering::Relaxed);
        let result = py.detach(|| worker.join());
        interrupted?;
        let said = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("a panic").to_owned(),
        };
        result.map_err(|panic| PanicException::new_err(said(panic)))?.py()
    })
}
