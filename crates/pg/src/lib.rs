//! PostgreSQL as values: what the server's files, names and numbers mean, with no I/O and no clock.
//!
//! Reading order:
//! - [`Lsn`], [`TimelineId`] and [`timeline::TimelineHistory`]: places in the write-ahead log and which past they belong to.
//! - [`wal`]: segment sizes and names, the header of a segment, and the commits inside one.
//! - [`version::Major`]: what differs between the supported majors, as a table.
//! - [`control::ControlFile`], [`label::BackupLabel`]: the two files that say what a cluster is and where its replay begins.
//! - [`page`]: data pages and their checksums. [`datadir`]: which files of a data directory belong in a backup.
//! - [`recovery`], [`conf`]: what a restored cluster is told. [`manifest`]: the `backup_manifest` that comes with it.
//!
//! What this crate does not do: it opens no file, runs no server, asks no environment. Rules that come from
//! PostgreSQL name their source file, so that a reader can check them against the release in question.
//! Layouts are those of little-endian 64-bit machines with 8 KiB pages; another layout is refused by name,
//! never guessed.

pub mod conf;
pub mod control;
pub mod datadir;
pub mod label;
pub mod lsn;
pub mod manifest;
pub mod page;
pub mod recovery;
pub mod timeline;
pub mod timestamp;
pub mod version;
pub mod wal;

pub use lsn::Lsn;
pub use timeline::TimelineId;
pub use timestamp::PgTimestamp;
pub use version::Major;
