//! A pool of threads that survives `fork`: made on first use, and made anew in a child process.

use std::sync::{Arc, Mutex, TryLockError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

struct Pool {
    process: u32,
    threads: Option<usize>,
    workers: Arc<ThreadPool>,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Runs `work` on a pool of so many threads (`None`: one a core, or `RAYON_NUM_THREADS`).
pub fn run<R: Send>(threads: Option<usize>, work: impl FnOnce() -> R + Send) -> Result<R> {
    if threads == Some(0) {
        return Err(Error::config("threads = 0: give at least 1, or none for one a core"));
    }
    Ok(pool(threads)?.install(work))
}

/// The pool that is there, if it fits, or a new one.
fn pool(threads: Option<usize>) -> Result<Arc<ThreadPool>> {
    let process = std::process::id();
    let fits = |known: &Pool| known.process == process && known.threads == threads;
    if let Some(workers) =
        slot(|slot| slot.as_ref().filter(|known| fits(known)).map(|p| p.workers.clone())).flatten()
    {
        return Ok(workers);
    }
    let workers = ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build()
        .map_err(|error| Error::config(format!("cannot start threads: {error}")))?;
    let workers = Arc::new(workers);
    let new = Pool { process, threads, workers: workers.clone() };
    if let Some(old) = slot(|slot| slot.replace(new)).flatten().filter(|old| old.process != process)
    {
        // Its threads live in the parent; there is nothing here to stop.
        std::mem::forget(old);
    }
    Ok(workers)
}

/// The kept pool. The lock is only ever held for an instant; where it cannot be had for long, a fork
/// has copied it locked, and the child keeps none.
fn slot<R>(work: impl FnOnce(&mut Option<Pool>) -> R) -> Option<R> {
    for _ in 0..1000 {
        match POOL.try_lock() {
            Ok(mut slot) => return Some(work(&mut slot)),
            Err(TryLockError::Poisoned(slot)) => return Some(work(&mut slot.into_inner())),
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
    None
}
