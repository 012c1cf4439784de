//! A pool of threads that survives `fork`: made on first use, and made anew in a child process.

use std::sync::{Arc, Mutex};

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
    let process = std::process::id();
    let pool = {
        let mut slot = POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*slot {
            Some(known) if known.process == process && known.threads == threads => {
                known.workers.clone()
            }
            _ => {
                let pool = ThreadPoolBuilder::new()
                    .num_threads(threads.unwrap_or(0))
                    .build()
                    .map_err(|error| Error::config(format!("cannot start threads: {error}")))?;
                let pool = Arc::new(pool);
                let old = slot.replace(Pool { process, threads, workers: pool.clone() });
                if let Some(old) = old.filter(|old| old.process != process) {
                    // Its threads live in the parent; there is nothing here to stop.
                    std::mem::forget(old);
                }
                pool
            }
        }
    };
    Ok(pool.install(work))
}
