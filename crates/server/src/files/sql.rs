//! The files of a cluster over ordinary SQL sessions, with nothing of ours on the server's machine.
//!
//! One session lists, and reads what nobody announced; each reader has one of its own, over which a long `COPY` streams what
//! was announced. All must reach the server of the session that holds the backup. What SQL does not tell is left empty:
//! owner, device, and whether a directory is a link (`docs/decisions/0005-symbolic-links-over-sql.md`).

mod session;
mod stream;
mod tree;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pg::Major;
use pg::control::ControlFile;
use pg::datadir::tablespace_version_directory;

use super::{
    Batch, DirectoryFacts, FileMetadata, FileSource, FilesError, FoundFile, OpenFile, Range, Reader, Warning,
    cluster, walk,
};
use crate::connection::Connection;
use session::Sessions;
use stream::RangeStream;

/// What is asked for at once: enough that a round trip of 20 ms is little beside its transfer, so little that workers end
/// together.
const BATCH: Batch = Batch { bytes: 64 << 20, ranges: 2048 };

/// The files of a cluster, read through its server.
#[derive(Debug)]
pub struct SqlFiles {
    sessions: Arc<Sessions>,
    data_directory: PathBuf,
    directory_mode: u32,
    major: Major,
    /// The one directory in each tablespace that is this cluster's.
    version_directory: String,
    encoding: String,
    /// Tells one copy of a cluster from another where inode numbers are not to be had: the second in which this data
    /// directory's `PG_VERSION` was made. A standby has another, so that its files are not taken for the primary's.
    copy_id: u64,
}

impl SqlFiles {
    /// Opens the files of the server that `session` is connected to, by sessions of the same settings.
    ///
    /// Our role must be allowed `pg_ls_dir`, `pg_stat_file` and `pg_read_binary_file`.
    pub fn new(session: &Connection) -> Result<Self, FilesError> {
        let sessions = Arc::new(Sessions::beside(session)?);
        let (directory, mode, encoding) = sessions.server_settings()?;
        let mut files = Self {
            sessions,
            data_directory: directory,
            directory_mode: mode,
            major: Major::new(0),
            version_directory: String::new(),
            encoding,
            copy_id: 0,
        };
        files.major = cluster::read_major(|path, length| files.sessions.read(path, 0, length))?;
        let (_, control) = files.read_control_file()?;
        files.version_directory = tablespace_version_directory(files.major, control.catalog_version);
        let made = files.metadata(b"PG_VERSION")?.ctime_ns / 1_000_000_000;
        files.copy_id = made.cast_unsigned();
        Ok(files)
    }

    /// The major version in `PG_VERSION`.
    pub fn major(&self) -> Major {
        self.major
    }

    /// How many statements were sent to list and read, by all sessions.
    pub fn statements(&self) -> u64 {
        self.sessions.statements()
    }

    fn metadata(&self, path: &[u8]) -> Result<FileMetadata, FilesError> {
        match self.stat(path)? {
            Some((metadata, _)) => Ok(metadata),
            None => Err(FilesError::Vanished { path: path.to_owned() }),
        }
    }
}

impl FileSource for SqlFiles {
    fn walk(&self, visit: &mut dyn FnMut(FoundFile) -> ControlFlow<()>) -> Result<Vec<Warning>, FilesError> {
        walk::walk(self, visit)
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(SqlReader {
            stream: Arc::new(Mutex::new(RangeStream::new(self.sessions.clone()))),
            sessions: self.sessions.clone(),
        })
    }

    fn batch(&self) -> Batch {
        BATCH
    }

    fn read_control_file(&self) -> Result<(Vec<u8>, ControlFile), FilesError> {
        cluster::read_control_file(|path, length| self.sessions.read(path, 0, length))
    }

    fn read_outside(&self, path: &Path, limit: usize) -> Result<Vec<u8>, FilesError> {
        self.sessions.read(path.as_os_str().as_encoded_bytes(), 0, limit)
    }

    fn directory(&self) -> DirectoryFacts {
        DirectoryFacts { path: self.data_directory.clone(), mode: self.directory_mode, owner: None }
    }

    fn clock_ns(&self) -> Result<i64, FilesError> {
        self.sessions.clock_ns()
    }
}

#[derive(Debug)]
struct SqlReader {
    stream: Arc<Mutex<RangeStream>>,
    sessions: Arc<Sessions>,
}

impl Reader for SqlReader {
    fn announce(&mut self, ranges: &[Range<'_>]) -> Result<(), FilesError> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).announce(ranges)
    }

    fn open(&mut self, path: &[u8]) -> Result<Box<dyn OpenFile>, FilesError> {
        Ok(Box::new(SqlFile {
            path: path.to_owned(),
            stream: self.stream.clone(),
            sessions: self.sessions.clone(),
        }))
    }
}

/// A file of the server; there is nothing that is open.
#[derive(Debug)]
struct SqlFile {
    path: Vec<u8>,
    stream: Arc<Mutex<RangeStream>>,
    sessions: Arc<Sessions>,
}

impl OpenFile for SqlFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FilesError> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(length) = stream.read(&self.path, offset, buffer)? {
            return Ok(length);
        }
        let bytes = self.sessions.read(&self.path, offset, buffer.len())?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn metadata(&self) -> Result<FileMetadata, FilesError> {
        let found = tree::stat(&self.sessions, &self.path)?;
        let vanished = || FilesError::Vanished { path: self.path.clone() };
        found.map(|stat| stat.metadata(0, 0)).ok_or_else(vanished)
    }
}

#[cfg(test)]
mod tests;
