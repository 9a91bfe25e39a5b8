//! What a server is, and what our role may do there.
//!
//! A managed database hides much from its owner: what our role may not see is `None`, never an error.

mod read;
mod slots;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use pg::control::WalLevel;
use pg::wal::SegmentSize;
use pg::{Lsn, Major, TimelineId};

use crate::connection::{Connection, ServerError};
use crate::pooler::Pooler;

pub(crate) use read::may_execute;
pub use slots::Slot;

/// What `archive_mode` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveMode {
    /// Nothing is archived.
    Off,
    /// A primary archives what it writes.
    On,
    /// A standby archives what it receives, too.
    Always,
}

/// A tablespace other than the two every cluster has inside its data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its number, by which `pg_tblspc` names its link.
    pub oid: u32,
    /// Its name in SQL.
    pub name: String,
    /// The directory the link points to.
    pub location: PathBuf,
}

/// What a server is and does, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `150020` for 15.20.
    pub version_num: u32,
    /// The version as the server spells it, with the packager's addition.
    pub version: String,
    /// The major version.
    pub major: Major,
    /// What tells this cluster from any other; made by `initdb`, kept by copies and standbys.
    pub system_identifier: Option<u64>,
    /// The version of the system catalogue, part of tablespace directories' names.
    pub catalog_version: Option<u32>,
    /// Where the cluster is on the server's machine.
    pub data_directory: Option<PathBuf>,
    /// `postgresql.conf`, which Debian keeps outside the data directory.
    pub config_file: Option<PathBuf>,
    /// `pg_hba.conf`.
    pub hba_file: Option<PathBuf>,
    /// `pg_ident.conf`.
    pub ident_file: Option<PathBuf>,
    /// How much the WAL holds.
    pub wal_level: WalLevel,
    /// Whether WAL is archived.
    pub archive_mode: ArchiveMode,
    /// The command that archives, empty when none is set.
    pub archive_command: Option<String>,
    /// The module that archives in the command's place, empty when none is set; `None` before 15, too.
    pub archive_library: Option<String>,
    /// After how long a segment is switched and archived though not full; zero for never.
    pub archive_timeout: Duration,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// The size of WAL segments.
    pub wal_segment_size: SegmentSize,
    /// The size of data pages in bytes.
    pub block_size: u32,
    /// After how many pages a relation continues in another file.
    pub blocks_per_segment: u32,
    /// Whether the server replays WAL: a standby, or a restored cluster on its way.
    pub in_recovery: bool,
    /// Whether the first change of a page after a checkpoint puts the whole page into the WAL.
    pub full_page_writes: bool,
    /// The role we are.
    pub role: String,
    /// Whether that role is a superuser.
    pub is_superuser: bool,
    /// Whether that role may use the replication protocol.
    pub may_replicate: bool,
    /// Whether that role may start and stop a base backup.
    pub can_backup: bool,
    /// Functions for listing and reading files that our role may not call; empty when it may call all.
    pub missing_file_functions: Vec<&'static str>,
    /// Whether our role may read files outside the data directory, too.
    pub reads_server_files: bool,
    /// Whether our role may end a segment of the WAL.
    pub may_switch_wal: bool,
    /// Physical replication slots, by name.
    pub slots: Vec<Slot>,
    /// What stands between us and the server, if anything does.
    pub pooler: Option<Pooler>,
    /// The timeline being written, or replayed.
    pub timeline: Option<TimelineId>,
    /// The end of the WAL written, or replayed.
    pub lsn: Option<Lsn>,
    /// The tablespaces that have a directory of their own, by number.
    pub tablespaces: Vec<Tablespace>,
    /// The server's clock.
    pub server_time: Timestamp,
    /// When the server was started, by its clock.
    pub started: Timestamp,
    /// The database we are in.
    pub database: String,
    /// That database's encoding, as PostgreSQL names it.
    pub encoding: String,
    /// The host name, address or socket directory we reached the server by.
    pub host: String,
    /// The port we reached it by.
    pub port: String,
    /// Whether we came over a socket, so that the server is on this machine (or shares a directory with it).
    pub over_socket: bool,
}

impl ServerFacts {
    /// Asks the server, in one read-only transaction that leaves the session as it was.
    ///
    /// The session must not be in a transaction. Works for every role that can log in.
    pub fn read(connection: &Connection) -> Result<Self, ServerError> {
        connection.execute("BEGIN TRANSACTION READ ONLY", &[])?;
        let facts = read::in_transaction(connection);
        // After a failed statement, too, this ends the transaction; when it cannot, the first error says more.
        let ended = connection.execute("ROLLBACK", &[]);
        let facts = facts?;
        ended?;
        Ok(facts)
    }
}

#[cfg(test)]
mod tests;
