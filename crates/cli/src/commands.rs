//! One module for each command: its arguments, and how it shows what an operation returned.

pub mod backup;
pub mod check;
pub mod config;
pub mod copy;
pub mod demo;
pub mod expire;
pub mod export;
pub mod history;
pub mod info;
pub mod init;
pub mod key;
pub mod list;
pub mod pin;
pub mod prune;
pub mod restore;
pub mod round;
pub mod serve;
mod signals;
pub mod status;
pub mod verify;
pub mod wal;

use std::ffi::OsString;

use crate::output::Output;
use crate::settings::Settings;

/// What every command works with.
pub struct Session {
    /// What pgkeep was told.
    pub settings: Settings,
    /// Where results go.
    pub output: Output,
    /// Whether to tell no progress.
    pub quiet: bool,
    /// The options that give another process of ours the same settings.
    pub options: Vec<OsString>,
}
