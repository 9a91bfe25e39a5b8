//! A directory as storage.
//!
//! Objects are plain files below the root, so a repository can be copied with any tool. `write` publishes and
//! deletes durably, `walk` lists. The root itself is made only by [`make_root`](crate::make_root), never by a
//! write: a mount that went away must not be mistaken for an empty repository, nor be written into from
//! below.

mod walk;
mod write;

use crate::error::{Action, Call, Cause};
use crate::memory::bad_prefix;
use crate::name::checked_prefix;
use crate::{Children, Entry, ObjectName, Parts, Storage, StorageError, Tail};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, try_unfold};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(crate) use write::make_directories;

/// Bytes that a stream reads at once.
const STREAM_PIECE: u64 = 1 << 20;

/// Objects as files below one directory.
///
/// A new object is written under a hidden temporary name, fsynced, renamed without replacing, and its
/// directories are fsynced. Directories get mode 0700, files 0600. Symbolic links are not objects.
#[derive(Clone, Debug)]
pub struct Filesystem {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Directories of objects whose own names this process knows to be durable.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Filesystem {
    /// A storage below `root`, which is looked at only when the first call comes.
    pub fn new(root: impl Into<PathBuf>) -> Filesystem {
        Filesystem { inner: Arc::new(Inner { root: root.into(), durable: Mutex::default() }) }
    }

    /// The directory that holds everything.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        call: Call,
        subject: &str,
        work: impl FnOnce(&Inner) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|source| {
            Err(StorageError::Other { action: Action::new(call, subject), source: Box::new(source) })
        })
    }
}

#[async_trait]
impl Storage for Filesystem {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        let (name, parts) = (name.clone(), parts.to_vec());
        self.blocking(Call::Create, name.clone().as_str(), move |inner| {
            inner.create(&name, parts.iter().map(Ok))
        })
        .await
    }

    async fn create_from(&self, name: &ObjectName, parts: Parts) -> Result<(), StorageError> {
        let name = name.clone();
        self.blocking(Call::Create, name.clone().as_str(), move |inner| inner.create(&name, parts)).await
    }

    async fn prepare(&self, name: &ObjectName) {
        let name = name.clone();
        let prepare = move |inner: &Inner| {
            inner.prepare(&name);
            Ok(())
        };
        let _ = self.blocking(Call::Create, "", prepare).await;
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let name = name.clone();
        self.blocking(Call::Read, name.clone().as_str(), move |inner| {
            let (file, size) = inner.open(Call::Read, &name)?;
            if range.start > range.end || range.end > size {
                return Err(StorageError::Truncated { name, range, size });
            }
            inner.read_range(Call::Read, &name, file, range)
        })
        .await
    }

    fn read_stream<'a>(
        &'a self,
        name: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxStream<'a, Result<Bytes, StorageError>> {
        try_unfold(range, move |rest| async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let end = rest.end.min(rest.start + STREAM_PIECE);
            Ok(Some((self.read(name, rest.start..end).await?, end..rest.end)))
        })
        .boxed()
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        let name = name.clone();
        self.blocking(Call::ReadTail, name.clone().as_str(), move |inner| {
            let (file, size) = inner.open(Call::ReadTail, &name)?;
            let bytes = inner.read_range(Call::ReadTail, &name, file, size.saturating_sub(max)..size)?;
            Ok(Tail { size, bytes })
        })
        .await
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        let name = name.clone();
        self.blocking(Call::ReadAll, name.clone().as_str(), move |inner| {
            let (file, size) = inner.open(Call::ReadAll, &name)?;
            if size > limit {
                return Err(StorageError::TooLarge { name, size, limit });
            }
            inner.read_range(Call::ReadAll, &name, file, 0..size)
        })
        .await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        let name = name.clone();
        self.blocking(Call::Size, name.clone().as_str(), move |inner| {
            inner.open(Call::Size, &name).map(|(_, size)| size)
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let prefix =
            checked_prefix(prefix).map_err(|error| bad_prefix(Call::List, prefix, error))?.to_owned();
        self.blocking(Call::List, &prefix.clone(), move |inner| inner.list(&prefix)).await
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        let prefix =
            checked_prefix(prefix).map_err(|error| bad_prefix(Call::ListChildren, prefix, error))?.to_owned();
        self.blocking(Call::ListChildren, &prefix.clone(), move |inner| inner.list_children(&prefix)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let name = name.clone();
        self.blocking(Call::Delete, name.clone().as_str(), move |inner| inner.delete(&name)).await
    }
}

impl Inner {
    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// The object's file and its size.
    fn open(&self, call: Call, name: &ObjectName) -> Result<(File, u64), StorageError> {
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(self.path(name));
        let file = opened.map_err(|error| self.failed_on(call, name, error))?;
        let metadata = file.metadata().map_err(|error| self.failed_on(call, name, error))?;
        if metadata.is_dir() {
            // A directory is a prefix of names, and no object.
            return Err(StorageError::NotFound { name: name.clone() });
        }
        if !metadata.is_file() {
            return Err(failed(call, name.as_str(), io::Error::other("not a regular file")));
        }
        Ok((file, metadata.len()))
    }

    /// Exactly the bytes of `range`, which lies inside the file as it was when opened.
    fn read_range(
        &self,
        call: Call,
        name: &ObjectName,
        mut file: File,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        let length = range.end - range.start;
        let mut bytes = Vec::with_capacity(length as usize);
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.take(length).read_to_end(&mut bytes))
            .map_err(|error| failed(call, name.as_str(), error))?;
        if bytes.len() as u64 != length {
            let size = range.start + bytes.len() as u64;
            return Err(StorageError::Truncated { name: name.clone(), range, size });
        }
        Ok(bytes.into())
    }

    /// The error of a call on one object, where a missing file is a missing object only if the root is there.
    fn failed_on(&self, call: Call, name: &ObjectName, error: io::Error) -> StorageError {
        if !is_absence(&error) {
            return failed(call, name.as_str(), error);
        }
        match self.check_root(call) {
            Ok(()) => StorageError::NotFound { name: name.clone() },
            Err(error) => error,
        }
    }

    /// Fails unless the root is a directory that can be looked at.
    fn check_root(&self, call: Call) -> Result<(), StorageError> {
        match std::fs::metadata(&self.root) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) => Err(failed(call, "", io::Error::other("the root is not a directory"))),
            Err(error) if is_absence(&error) => {
                Err(StorageError::RootMissing { root: self.root.display().to_string() })
            }
            Err(error) => Err(failed(call, "", error)),
        }
    }
}

/// Whether the operating system says that there is no such file: missing, or below something that is no
/// directory.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The error of a system call, by what a caller would do about it.
pub(crate) fn failed(call: Call, subject: &str, error: io::Error) -> StorageError {
    let action = Action::new(call, subject);
    let errno = Errno::from_io_error(&error);
    let source: Cause = Box::new(error);
    match errno {
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => StorageError::Refused { action, source },
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => StorageError::Full { action, source },
        // Of a network file system whose server is away for a while, or of a machine out of handles.
        Some(Errno::STALE | Errno::TIMEDOUT | Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
            StorageError::Transient { action, source }
        }
        _ => StorageError::Other { action, source },
    }
}
