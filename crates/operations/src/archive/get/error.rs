//! Why a file was not brought, and what PostgreSQL is told then.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use pg::wal::{FileName, FileNameError, SegmentMismatch, SegmentName};
use repository::ClusterName;
use repository::archive::ArchiveError;

use super::super::{archive_status, status};
use super::FATAL;

/// Why a file was not brought.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// Proven absent: the repository and the stream are there, the file is not, and no later segment of its timeline.
    #[error("{name} is not in the archive")]
    Absent {
        /// The file.
        name: FileName,
    },
    /// The segment is missing and a later one is there.
    #[error("{name} is missing from the archive, which has {later} of the same timeline")]
    Hole {
        /// The missing segment.
        name: SegmentName,
        /// The next one stored.
        later: SegmentName,
    },
    /// The segment is not finished, and between the parts of it that are stored some bytes are missing.
    #[error("bytes {from} to {to} of {name} are missing from the archive, which has later ones")]
    Torn {
        /// The segment.
        name: SegmentName,
        /// Offset of the first missing byte.
        from: u32,
        /// Offset of the first stored one after it.
        to: u32,
    },
    /// Nothing of ours is where the archive should be, so nothing can be said to be absent from it.
    #[error("the repository has no stream {cluster}, so that {name} is missing means nothing")]
    NoStream {
        /// The stream.
        cluster: ClusterName,
        /// The file.
        name: FileName,
    },
    /// Not a name that PostgreSQL asks for.
    #[error("get {text}")]
    Name {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        source: FileNameError,
    },
    /// The repository could not be read, or what it has is damaged.
    #[error("fetch {name}")]
    Archive {
        /// The file.
        name: FileName,
        /// Why.
        source: ArchiveError,
    },
    /// The stored segment is not what its name says.
    #[error(transparent)]
    Mismatch(#[from] SegmentMismatch),
    /// The stored segment has another length than the cluster's segments.
    #[error("{name} has {found} bytes in the archive, not {expected}")]
    Length {
        /// The segment.
        name: SegmentName,
        /// Its bytes.
        found: u64,
        /// Bytes of a segment of this cluster.
        expected: u64,
    },
    /// The file could not be written where it was wanted.
    #[error("write {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("fetch {name}: not done within {} s", .after.as_secs())]
    Timeout {
        /// The file.
        name: FileName,
        /// The limit.
        after: Duration,
    },
}

impl GetError {
    /// The exit status for `restore_command`: 1 for a proven absence; anything else is 200 and the ordinary status (202
    /// wrong request, 203 not found, 204 try again, 205 damaged data).
    ///
    /// PostgreSQL takes 1 to 125 as "no such file", ends recovery there and opens for writing. Above 125 it stops. 129 to
    /// 192 are left to the shell, which reports signals so; 143 in particular means "told to stop" to PostgreSQL.
    /// Source: `RestoreArchivedFile`, `access/transam/xlogarchive.c`, and `wait_result_is_any_signal`.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Absent { .. } => 1,
            Self::Name { .. } => FATAL + status::WRONG_REQUEST,
            Self::NoStream { .. } => FATAL + status::NOT_FOUND,
            Self::Hole { .. } | Self::Torn { .. } | Self::Mismatch(_) | Self::Length { .. } => {
                FATAL + status::DAMAGED
            }
            Self::Archive { source, .. } => FATAL + archive_status(source),
            Self::Write { .. } | Self::Timeout { .. } => FATAL + status::TRY_AGAIN,
        }
    }
}
