//! What a long operation tells while it runs.

/// One thing worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new phase begins: `start backup`, `copy files`, `wait for WAL`…
    Phase(&'static str),
    /// How much the phase has to do, in bytes and files.
    Total {
        /// Bytes.
        bytes: u64,
        /// Files.
        files: u64,
    },
    /// So much more was done.
    Advanced {
        /// Bytes.
        bytes: u64,
    },
    /// Something that the user should know, once it happens.
    Warning(String),
}

/// Whoever watches an operation; called from several threads.
pub trait Monitor: Send + Sync {
    /// Takes note of an event; must return quickly.
    fn event(&self, event: Event);
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&self, _: Event) {}
}
