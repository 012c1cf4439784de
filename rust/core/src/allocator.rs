//! How the C library's allocator treats what was freed.

/// Keeps up to 64 MiB of freed memory a thread for what is allocated next, and takes buffers of less than
/// 8 MiB from there, as batches and pages of Parquet are.
///
/// By its own rule glibc gives a batch's buffers back at the end of every batch and asks for them
/// again at the start of the next; each page of that is a fault that clears 4 KiB, which was a fifth
/// of the time of [`dedup`](crate::dedup)'s exact mode. It is a setting of the whole process, and
/// stays undone where the environment sets the allocator (`mallopt(3)`). Elsewhere it does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const MIB: libc::c_int = 1 << 20;
        let set = ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"];
        if set.iter().all(|name| std::env::var_os(name).is_none()) {
            // SAFETY: glibc takes its own lock; the call changes no memory that is in use.
            #[allow(unsafe_code)]
            unsafe {
                libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * MIB);
                libc::mallopt(libc::M_MMAP_THRESHOLD, 8 * MIB);
            }
        }
    }
}
