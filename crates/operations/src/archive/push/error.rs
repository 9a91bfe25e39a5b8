//! How a push fails.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use pg::timeline::HistoryError;
use pg::wal::{FileName, FileNameError, HeaderError, SegmentMismatch};
use repository::archive::ArchiveError;

use crate::archive::{archive_status, status};

/// Why a file was not stored. Whatever it was, PostgreSQL keeps the file and asks again.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Not a name that PostgreSQL archives.
    #[error("push {path}")]
    Name {
        /// What was to be pushed.
        path: PathBuf,
        /// What is wrong with its name.
        source: FileNameError,
    },
    /// The file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file changed while it was read.
    #[error("read {path}: it changed meanwhile")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Too long or too short for what it is.
    #[error("{name} has {found} bytes, not {expected}")]
    Length {
        /// The file.
        name: FileName,
        /// Its bytes.
        found: u64,
        /// The bytes that it should have, or at most may have.
        expected: u64,
    },
    /// Not a segment.
    #[error("{name} is not a WAL segment")]
    Header {
        /// The file.
        name: FileName,
        /// What is wrong.
        source: HeaderError,
    },
    /// A segment that is not what its name says.
    #[error(transparent)]
    Mismatch(#[from] SegmentMismatch),
    /// A history file that PostgreSQL would refuse.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Written by a PostgreSQL that this program does not know.
    #[error("{name} has WAL of an unknown PostgreSQL version (page magic {magic:04X})")]
    UnknownMajor {
        /// The file.
        name: FileName,
        /// The magic of its first page.
        magic: u16,
    },
    /// The repository refused it, or could not be reached.
    #[error("store {name}")]
    Archive {
        /// The file.
        name: FileName,
        /// Why.
        source: ArchiveError,
    },
    /// It took too long.
    #[error("store {name}: not done within {} s", .after.as_secs())]
    Timeout {
        /// The file.
        name: FileName,
        /// The limit.
        after: Duration,
    },
}

impl PushError {
    /// The exit status for `archive_command`: always 1 to 125, because PostgreSQL takes a higher one for a crash,
    /// restarts its archiver and counts no failure (`pgarch_archiveXlog`). 2 wrong request, 4 try again, 5 damaged data,
    /// 6 conflict.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Name { .. } | Self::UnknownMajor { .. } => status::WRONG_REQUEST,
            Self::Read { .. } | Self::Changed { .. } | Self::Timeout { .. } => status::TRY_AGAIN,
            Self::Length { .. } | Self::Header { .. } | Self::History(_) => status::DAMAGED,
            Self::Mismatch(SegmentMismatch::SystemIdentifier { .. }) => status::CONFLICT,
            Self::Mismatch(_) => status::DAMAGED,
            Self::Archive { source, .. } => archive_status(source),
        }
    }
}
