//! Letting the disk work while the processor does.
//!
//! The kernel keeps gigabytes of written pages before it begins to write them to disk. A restore that waited for that would
//! use the processor first and the disk afterwards; this has the disk begin at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::error::RestoreError;
use super::tree::Tree;

/// So many bytes are worth a call.
const STEP: u64 = 128 << 20;

/// Runs `work` while another thread has what was `written` so far put on disk, step by step.
///
/// A disk's error is the restore's, whenever it shows: the kernel reports each only once.
pub(crate) fn alongside<T>(
    tree: &Tree,
    written: &AtomicU64,
    work: impl FnOnce() -> Result<T, RestoreError>,
) -> Result<T, RestoreError> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<(), RestoreError> {
            let mut on_disk = 0;
            while !done.load(Ordering::Acquire) {
                let now = written.load(Ordering::Relaxed);
                if now >= on_disk + STEP {
                    tree.sync()?;
                    on_disk = now;
                } else {
                    std::thread::park_timeout(Duration::from_millis(50));
                }
            }
            Ok(())
        });
        let result = work();
        done.store(true, Ordering::Release);
        writer.thread().unpark();
        writer.join().expect("it does not panic")?;
        result
    })
}
