//! The files of a cluster, as a base backup needs them.
//!
//! A [`FileSource`] lists what belongs in a backup, in byte order of the paths, and opens what it listed. [`LocalFiles`]
//! reads a data directory on this machine, [`SqlFiles`] one on the server's through ordinary SQL sessions. What is left
//! out, and why, is decided by [`pg::datadir`]. The server keeps writing meanwhile: files appear, grow, shrink and vanish,
//! and the WAL puts that right; only a few must be there.

mod cluster;
mod local;
mod open;
mod sql;
mod walk;
mod warning;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use pg::control::{ControlError, ControlFile};
use pg::version::MajorError;

use crate::connection::ServerError;

pub use local::{LocalFiles, file_clock_ns};
pub use sql::SqlFiles;
pub use warning::Warning;

/// What sort of entry was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// An ordinary file.
    File,
    /// A directory; one that is to be kept but emptied is followed by nothing below it.
    Directory,
    /// The link of a tablespace. What it leads to is listed below its path.
    Symlink {
        /// Where it points, as written in it.
        target: Vec<u8>,
    },
}

/// What the file system says of an entry. Times are nanoseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileMetadata {
    /// Length in bytes.
    pub size: u64,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Number of the owner.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime_ns: i64,
    /// Last change of content or attributes; cannot be set by programs.
    pub ctime_ns: i64,
    /// Number of the inode.
    pub inode: u64,
    /// Number of the device.
    pub device: u64,
}

/// An entry of the cluster that belongs in a backup. Times are nanoseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FoundFile {
    /// Relative to the data directory, tablespaces seen through their links: `pg_tblspc/16385/PG_15_202209061/5/16390`.
    pub path: Vec<u8>,
    /// What sort of entry.
    pub kind: FileKind,
    /// Length in bytes when it was listed; 0 for directories and links.
    pub size: u64,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Number of the owner.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime_ns: i64,
    /// Last change of content or attributes; cannot be set by programs.
    pub ctime_ns: i64,
    /// Number of the inode.
    pub inode: u64,
    /// Number of the device.
    pub device: u64,
}

impl FoundFile {
    fn new(path: Vec<u8>, kind: FileKind, metadata: FileMetadata) -> Self {
        let FileMetadata { size, mode, uid, gid, mtime_ns, ctime_ns, inode, device } = metadata;
        let size = if kind == FileKind::File { size } else { 0 };
        Self { path, kind, size, mode, uid, gid, mtime_ns, ctime_ns, inode, device }
    }
}

/// Why the files of a cluster could not be listed or read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file is no longer there: normal for relations, which the WAL will account for.
    #[error("read {}: it has vanished", .path.escape_ascii())]
    Vanished {
        /// Which.
        path: Vec<u8>,
    },
    /// The path is not one that a listing gives.
    #[error("open {}: not a plain path below the data directory", .path.escape_ascii())]
    InvalidPath {
        /// As given.
        path: Vec<u8>,
    },
    /// The file system refused.
    #[error("{what} {}", .path.escape_ascii())]
    Io {
        /// Verb of what was tried.
        what: &'static str,
        /// On which path below the data directory.
        path: Vec<u8>,
        /// The cause.
        source: io::Error,
    },
    /// The server would not list or read it.
    #[error("{what} {} over SQL", .path.escape_ascii())]
    Sql {
        /// Verb of what was tried.
        what: &'static str,
        /// On which path below the data directory.
        path: Vec<u8>,
        /// The cause.
        source: ServerError,
    },
    /// A session for reading files cannot be opened.
    #[error("open a session for reading files")]
    Session {
        /// The cause.
        source: ServerError,
    },
    /// A session for reading files came to another server than the one that is backed up.
    #[error("read files over SQL: the session reached another server than the one being backed up")]
    OtherServer,
    /// The data directory cannot be opened.
    #[error("open the data directory {}", .path.display())]
    DataDirectory {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file without which no cluster starts is not there.
    #[error("{} is missing: this is not a complete cluster", .path.escape_ascii())]
    Missing {
        /// Which.
        path: Vec<u8>,
    },
    /// `PG_VERSION` cannot be read as a version.
    #[error("PG_VERSION")]
    Version(#[from] MajorError),
    /// `pg_control` cannot be understood, even after several tries.
    #[error("global/pg_control")]
    Control(#[from] ControlError),
}

impl FilesError {
    /// True when the file is gone, rather than unreadable.
    pub fn is_vanished(&self) -> bool {
        matches!(self, Self::Vanished { .. })
    }
}

/// A place where the files of a cluster can be listed and read, from any thread.
pub trait FileSource: fmt::Debug + Send + Sync {
    /// Hands every entry that belongs in a backup to `visit`, in strictly rising byte order of the paths, so that a
    /// directory comes before what is in it. Ends early, without an error, when `visit` breaks.
    ///
    /// Entries that vanish while listed are left out. Memory follows the largest directory, not the cluster.
    fn walk(&self, visit: &mut dyn FnMut(FoundFile) -> ControlFlow<()>) -> Result<Vec<Warning>, FilesError>;

    /// A way to read what was listed, for one thread.
    fn reader(&self) -> Box<dyn Reader + '_>;

    /// How much a reader should be told at once of what it will read.
    fn batch(&self) -> Batch {
        Batch { bytes: 4 << 20, ranges: 64 }
    }

    /// The bytes of `pg_control`, whole and with the right CRC, and what they say.
    ///
    /// A backup takes them last, and takes these: the file itself may be caught half written.
    fn read_control_file(&self) -> Result<(Vec<u8>, ControlFile), FilesError>;

    /// The first `limit` bytes of a file outside the data directory, by its absolute path on the server's machine.
    fn read_outside(&self, path: &Path, limit: usize) -> Result<Vec<u8>, FilesError>;

    /// What there is to know of the data directory itself.
    fn directory(&self) -> DirectoryFacts;

    /// The clock that the files' times are taken from, nanoseconds since 1970.
    fn clock_ns(&self) -> Result<i64, FilesError>;

    /// All entries at once, for tests and small clusters.
    fn list(&self) -> Result<Listing, FilesError> {
        let mut files = Vec::new();
        let warnings = self.walk(&mut |file| {
            files.push(file);
            ControlFlow::Continue(())
        })?;
        Ok(Listing { files, warnings })
    }
}

/// The data directory itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryFacts {
    /// Where it is on the server's machine.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// The number of its owner, where that can be known.
    pub owner: Option<u32>,
}

/// A piece of a listed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<'p> {
    /// Of which file.
    pub path: &'p [u8],
    /// From this byte.
    pub offset: u64,
    /// So many bytes; the file may have fewer by now.
    pub length: u64,
}

/// How much of what will be read is announced at once; a single range may be more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// In all.
    pub bytes: u64,
    /// Of files or parts of them.
    pub ranges: usize,
}

/// Reads listed files, for one thread.
pub trait Reader: fmt::Debug + Send {
    /// Says what will be read next, in this order; what was announced before and not read is forgotten. A source that is
    /// far away sends all of it without being asked again. Anything else may be read, too, at the cost of a question.
    fn announce(&mut self, ranges: &[Range<'_>]) -> Result<(), FilesError>;

    /// Opens a listed file. That it has vanished may show here, or when it is first read.
    fn open(&mut self, path: &[u8]) -> Result<Box<dyn OpenFile>, FilesError>;
}

/// Everything that a source listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// In byte order of their paths.
    pub files: Vec<FoundFile>,
    /// What was left out and should not be.
    pub warnings: Vec<Warning>,
}

/// A file open for reading. Several threads may read it at once.
pub trait OpenFile: fmt::Debug + Send + Sync {
    /// Fills `buffer` from the byte at `offset`; returns how much, less than asked only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FilesError>;

    /// What the file system says of it now.
    fn metadata(&self) -> Result<FileMetadata, FilesError>;

    /// Whether file times are taken from this machine's clock for them, and writers can be waited for.
    fn has_local_times(&self) -> bool {
        false
    }

    /// Waits for writes that have begun: each gives the file its change time first, and its bytes later. Of no effect where
    /// times are not local.
    fn wait_for_writers(&self) {}
}

#[cfg(test)]
mod tests;
