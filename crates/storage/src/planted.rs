//! Bugs on purpose, by which the tests are tested: a suite that stays green with one of them proves nothing.
//!
//! Only builds with debug assertions have them, and only where a test planted one.

use std::sync::OnceLock;

static PLANTED: OnceLock<String> = OnceLock::new();

/// Every bug that can be planted, and what it does.
pub const BUGS: &[(&str, &str)] = &[
    ("file.unsynced", "a file is not made durable before it gets its name"),
    ("create.unread", "a taken name counts as our own object whenever an earlier try may have arrived"),
    ("answer.unjudged", "whatever comes with status 200 confirms a write"),
    ("list-page.dropped", "the pages of a file list are left out of the manifest"),
    ("wal.swapped", "a WAL file whose name other bytes have counts as stored"),
    ("lease.unchecked", "whoever holds a lease never asks whether it still does"),
    ("expire.unnoted", "a backup is expired without a note of it"),
    ("expire.wal-greedy", "WAL goes as if only the newest backup needed some"),
    ("prune.no-grace", "what is marked goes with the next run, whoever is at work"),
    ("prune.claims-ignored", "an operation at work holds no mark back"),
];

/// Plants a bug in this process, once and for ever.
pub fn plant(name: &str) {
    assert!(BUGS.iter().any(|bug| bug.0 == name), "there is no bug {name}");
    drop(PLANTED.set(name.to_owned()));
}

/// Whether this bug is planted.
#[inline]
pub fn has(name: &str) -> bool {
    cfg!(debug_assertions) && PLANTED.get().is_some_and(|planted| planted == name)
}
