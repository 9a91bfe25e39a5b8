//! Why a backup was not made.

use std::time::Duration;

use pg::wal::SegmentName;
use repository::RepositoryError;
use repository::archive::ArchiveError;
use repository::chunk::CodecError;
use server::connection::ServerError;
use server::files::FilesError;

/// Why a backup was not made; nothing that was stored before is harmed by any of these.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The server could not be asked.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The server refused, or the session was lost; without its session there is no backup.
    #[error(transparent)]
    Session(#[from] server::backup::BackupError),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The stream is bound to another cluster.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A compressed chunk did not survive its check.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The server cannot be backed up as it is set.
    #[error("{what}")]
    NotReady {
        /// What is missing.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A file of the cluster could not be listed or read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A file without which no cluster starts was not there.
    #[error("{path} disappeared from the data directory")]
    Vanished {
        /// Path below the data directory.
        path: String,
    },
    /// The WAL that the backup needs did not arrive in time.
    #[error("WAL segment {missing} did not arrive in the repository within {} s", .waited.as_secs())]
    WalMissing {
        /// The first segment that is missing.
        missing: SegmentName,
        /// How long was waited.
        waited: Duration,
    },
    /// The same for a backup from a standby, which does not archive its own WAL.
    #[error("WAL segment {missing} did not arrive in the repository from the primary within {} s", .waited.as_secs())]
    StandbyWalMissing {
        /// The first segment that is missing.
        missing: SegmentName,
        /// How long was waited.
        waited: Duration,
    },
    /// The server's WAL summaries say nothing of a block that changed. The backup goes on without them.
    #[error("the WAL summaries say nothing of block {block} of {path}, which changed")]
    SummaryMissed {
        /// Path below the data directory.
        path: String,
        /// Number of the block in that file.
        block: u64,
    },
    /// Another part of the backup failed, and says why.
    #[error("copying was stopped")]
    Stopped,
    /// The server was promoted or changed its settings meanwhile.
    #[error("{what} during the backup")]
    Changed {
        /// What changed.
        what: String,
    },
}

impl BackupError {
    /// True if another repository may well take the backup: this one failed, or is bound to another cluster.
    pub fn is_of_the_repository(&self) -> bool {
        matches!(self, Self::Repository(_) | Self::Archive(_))
    }
}

/// A path for people: bytes that are no text are escaped.
pub(crate) fn display_path(path: &[u8]) -> String {
    path.escape_ascii().to_string().replace("\\'", "'").replace("\\\"", "\"")
}
