//! Files of `pg_wal` on their way: read for a push, and written for a get.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pg::wal::records::CommitWalk;
use repository::archive::{WalContent, WalInfo, WalSink};

use super::spool::FileIdentity;

/// Bytes of a segment that its header is read from.
pub const HEAD: usize = 512;

/// The file is not what it was when it was opened.
#[derive(Debug, thiserror::Error)]
#[error("it changed meanwhile")]
pub struct Changed;

/// An open segment that is being pushed, looked through for the times of commits as it is read.
pub struct SegmentFile {
    file: File,
    identity: FileIdentity,
    info: WalInfo,
    walk: Mutex<Option<CommitWalk>>,
}

impl SegmentFile {
    /// `identity` is what the file was before the first byte of it was read.
    pub fn new(file: File, identity: FileIdentity, info: WalInfo, walk: CommitWalk) -> Self {
        Self { file, identity, info, walk: Mutex::new(Some(walk)) }
    }
}

impl WalContent for SegmentFile {
    fn length(&self) -> u64 {
        self.identity.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other(Changed),
            _ => error,
        })
    }

    fn see(&self, piece: &[u8]) {
        if let Some(walk) = &mut *self.walk.lock().unwrap_or_else(PoisonError::into_inner) {
            walk.see(piece);
        }
    }

    fn info(&self) -> io::Result<WalInfo> {
        if FileIdentity::from(&self.file.metadata()?) != self.identity {
            return Err(io::Error::other(Changed));
        }
        let walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner).take();
        let span = walk.and_then(CommitWalk::finish);
        Ok(self.info.clone().with_commits(span))
    }
}

/// A file that is being fetched. It is made with its first byte, and removed again unless it is finished.
pub struct Incoming {
    path: PathBuf,
    file: Option<File>,
    /// The first bytes of the content.
    pub head: Vec<u8>,
    /// Bytes that came.
    pub length: u64,
    finished: bool,
}

impl Incoming {
    /// Will be written at `path`, over what is there.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, head: Vec::new(), length: 0, finished: false }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            self.file = Some(options.open(&self.path)?);
        }
        Ok(self.file.as_mut().expect("it was just opened"))
    }

    /// Makes the content durable; its name is not yet.
    pub fn finish(mut self) -> io::Result<PathBuf> {
        self.file()?.sync_all()?;
        self.finished = true;
        Ok(std::mem::take(&mut self.path))
    }
}

impl WalSink for Incoming {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        let wanted = HEAD.saturating_sub(self.head.len()).min(piece.len());
        self.head.extend_from_slice(&piece[..wanted]);
        self.length += piece.len() as u64;
        self.file()?.write_all(piece)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.finished && self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
