//! Logical backups: rows and definitions of databases to which nothing but SQL leads.
//!
//! Under one exported snapshot `pg_dump` writes all definitions, and several sessions stream rows out of tables, a range of pages
//! at a time. What comes is cut where its content says so and compared with what the same range had in the backup before, so that
//! only what changed is stored. In the repository it is a tree of files like any other backup: [`repository::logical`].

mod backup;
mod before;
mod capture;
mod check;
mod content;
mod error;
pub mod export;
mod known;
mod plan;
mod reader;
pub mod restore;
mod rows;
mod runs;
mod selection;

pub use backup::back_up;
pub use error::LogicalError;
pub use reader::FileReader;
pub use selection::Selection;

use std::time::Duration;

use repository::ClusterName;

/// What logical backup to take.
#[derive(Clone, Debug)]
pub struct LogicalRequest {
    /// The stream's name in the repository.
    pub cluster: ClusterName,
    /// What the user calls it.
    pub label: String,
    /// Compare with no earlier backup.
    pub full: bool,
    /// What of the server is wanted.
    pub selection: Selection,
    /// Sessions, and threads, that read rows.
    pub workers: usize,
    /// zstd's level, 1 to 19.
    pub level: i32,
    /// How long to wait for a lock that somebody holds against readers.
    pub lock_timeout: Duration,
}
