//! The WAL archive from PostgreSQL's side: what `archive_command` and `restore_command` run.
//!
//! [`push::run`] stores one file and returns only when it is durable; [`get::run`] brings one file, and says "absent"
//! only when that is proven. Each may ask its [`Background`] starter for a process that works ahead: [`push::drain`]
//! stores what waits in `archive_status`, [`get::prefetch`] fetches the next segments. The two sides meet in the
//! [`spool`], of which nothing is needed and nothing is believed unless it is authentic: whatever happens to it costs
//! time only.
//!
//! What this does not do: it starts no process itself, sets no exit status (errors say which one they mean), and never
//! deletes anything from the repository.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pg::wal::{SegmentName, SegmentSize};
use repository::archive::ArchiveError;
use repository::{ClusterName, Repository, RepositoryError};
use storage::StorageError;

mod beginning;
pub(crate) mod content;
mod drain;
pub mod get;
mod prefetch;
pub mod push;
pub mod spool;

/// Bytes of segments that one background process holds in memory at once, as far as a single segment allows.
const MEMORY_BYTES: u64 = 64 << 20;

/// What every call needs.
#[derive(Clone)]
pub struct Context {
    /// The repository. A call that is answered from the spool sends it no request.
    pub repository: Arc<Repository>,
    /// The stream in it.
    pub cluster: ClusterName,
    /// The folder for what is done ahead; `None` does nothing ahead.
    pub spool: Option<PathBuf>,
    /// Limits.
    pub limits: Limits,
    /// The segment whose beginning is brought, or at which WAL ends, though later WAL is stored: for a recovery whose target lies before that gap.
    /// PostgreSQL refuses to open when it does not reach its target, but one without a target would. It stays in the settings
    /// of the restored cluster, for which the one name means nothing any more.
    pub up_to_gap: Option<SegmentName>,
    /// The clock by which files are stamped.
    pub now: fn() -> Timestamp,
}

/// Limits of a call, each with a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long one file may take, if it has at most 16 MiB; a larger one gets a second more for each 4 MiB. Default one
    /// minute: PostgreSQL asks again anyway, and an archiver that hangs tells nobody why.
    pub deadline: Duration,
    /// Threads that compress one file, and files that a background process has under way at once. Default 2.
    pub workers: usize,
    /// Files that a drainer stores before PostgreSQL asks, at most. Default 64.
    pub ahead: usize,
    /// Segments fetched ahead, at most; 256 MiB bound it too. Zero turns it off. Default 8.
    pub prefetch: usize,
    /// How long a missing segment is waited for when a later one is stored: segments that are pushed in parallel arrive
    /// out of order. Default 5 s.
    pub hole_wait: Duration,
    /// How long a drainer that was started may take to be there. Default 1 s.
    pub start_grace: Duration,
    /// How long a background process waits for its work to be made use of before it ends. Default one minute, which
    /// outlasts a checkpoint during replay.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60),
            workers: 2,
            ahead: 64,
            prefetch: 8,
            hole_wait: Duration::from_secs(5),
            start_grace: Duration::from_secs(1),
            idle: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// How long a file of this size may take.
    pub fn deadline_for(&self, bytes: u64) -> Duration {
        self.deadline + Duration::from_secs(bytes.saturating_sub(16 << 20) / (4 << 20))
    }

    /// Files of this size that may be in memory at once.
    fn files_at_once(&self, bytes: u64) -> usize {
        let fitting = usize::try_from(MEMORY_BYTES / bytes.max(1)).unwrap_or(usize::MAX);
        fitting.clamp(1, self.workers.max(1))
    }

    /// How many segments of this size the spool may hold.
    fn queue(&self, size: SegmentSize) -> usize {
        let fitting = (256 << 20) / size.bytes().max(1);
        self.prefetch.min(fitting.max(1) as usize)
    }
}

/// Work for a process of its own, which outlives the call that asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Background {
    /// Run [`push::drain`] on this directory.
    Drain {
        /// The server's `pg_wal`, absolute.
        wal_directory: PathBuf,
    },
    /// Run [`get::prefetch`] for this directory.
    Prefetch {
        /// The recovering server's `pg_wal`, absolute.
        wal_directory: PathBuf,
        /// The segment that was just handed out; those after it are wanted.
        after: SegmentName,
    },
}

/// Starts background work and returns without waiting for it. The process must be detached: a session of its own, and
/// none of the caller's standard streams, or PostgreSQL waits for it. A failure costs time only.
pub type Start<'a> = &'a (dyn Fn(&Background) -> io::Result<()> + Send + Sync);

/// Exit statuses as the whole program uses them, so that both commands mean the same by them.
mod status {
    pub const WRONG_REQUEST: u8 = 2;
    pub const NOT_FOUND: u8 = 3;
    pub const TRY_AGAIN: u8 = 4;
    pub const DAMAGED: u8 = 5;
    pub const CONFLICT: u8 = 6;
}

fn repository_status(error: &RepositoryError) -> u8 {
    match error {
        RepositoryError::Absent => status::NOT_FOUND,
        RepositoryError::Seal(repository::seal::SealError::NoPrivateKey { .. }) => status::WRONG_REQUEST,
        RepositoryError::Storage(StorageError::RootMissing { .. }) => status::NOT_FOUND,
        error if error.is_damage() => status::DAMAGED,
        _ => status::TRY_AGAIN,
    }
}

fn archive_status(error: &ArchiveError) -> u8 {
    match error {
        ArchiveError::Conflict { .. } | ArchiveError::OtherCluster { .. } => status::CONFLICT,
        ArchiveError::Absent { .. } => status::NOT_FOUND,
        ArchiveError::Content { .. } => status::TRY_AGAIN,
        ArchiveError::Repository(error) => repository_status(error),
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
