//! Named points at which a test can have the process killed, to prove that nothing is lost there.
//!
//! Only in builds with debug assertions; in a release build reaching a point costs nothing and does nothing.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

static ARMED: OnceLock<(String, u32)> = OnceLock::new();
static REACHED: AtomicU32 = AtomicU32::new(0);

/// Has the process killed when the point is reached the given time: `restore.file` or `restore.file:3`.
pub fn arm(text: &str) {
    let (name, count) = text.split_once(':').unwrap_or((text, "1"));
    drop(ARMED.set((name.to_owned(), count.parse().unwrap_or(1))));
}

/// A named point. Kills the process as `kill -9` would if a test armed it.
#[inline]
pub fn reach(name: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    if let Some((armed, count)) = ARMED.get()
        && armed == name
        && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *count
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is on its way; nothing more may happen.
        loop {
            std::thread::park();
        }
    }
}
