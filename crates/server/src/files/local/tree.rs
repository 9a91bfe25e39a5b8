//! The directories of a cluster on this machine, as a walk asks for them.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Stat, readlinkat, statat};
use rustix::io::Errno;

use super::LocalFiles;
use crate::files::open::{io_error, metadata_of, open_directory, tablespace};
use crate::files::walk::{Look, Place};
use crate::files::{FileMetadata, FilesError};

impl Place for LocalFiles {
    type Directory = Arc<OwnedFd>;

    fn may_follow_links(&self) -> bool {
        false
    }

    fn version_directory(&self) -> &str {
        &self.version_directory
    }

    fn root(&self) -> Result<Self::Directory, FilesError> {
        let root = self.root.try_clone();
        let path = self.data_directory.clone();
        root.map(Arc::new).map_err(|source| FilesError::DataDirectory { path, source })
    }

    fn open(
        &self,
        parent: &Self::Directory,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Self::Directory>, FilesError> {
        unless_vanished(open_directory(parent.as_fd(), name).map(Arc::new), "open", path)
    }

    fn open_tablespace(&self, path: &[u8]) -> Result<Option<Self::Directory>, FilesError> {
        unless_vanished(tablespace(self, path), "open", path)
    }

    fn names<'d>(
        &self,
        directory: &'d Self::Directory,
        path: &[u8],
    ) -> Result<Option<Cow<'d, [Vec<u8>]>>, FilesError> {
        unless_vanished(names_in(directory.as_fd()).map(Cow::Owned), "list", path)
    }

    fn look(
        &self,
        directory: &Self::Directory,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Look>, FilesError> {
        let Some(stat) = stat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW, path)? else {
            return Ok(None);
        };
        let metadata = metadata_of(&stat);
        Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Look::File(metadata),
            FileType::Directory => Look::Directory(metadata),
            FileType::Symlink => match readlinkat(directory, name, Vec::new()) {
                Ok(target) => Look::Link { metadata, target: target.into_bytes() },
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(io_error("read the link", path, error)),
            },
            _ => Look::Special,
        }))
    }

    fn directory_at(&self, path: &[u8]) -> Result<Option<FileMetadata>, FilesError> {
        let stat = stat(self.root.as_fd(), path, AtFlags::empty(), path)?;
        let directory = stat.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        Ok(directory.as_ref().map(metadata_of))
    }
}

fn unless_vanished<T>(
    result: Result<T, Errno>,
    what: &'static str,
    path: &[u8],
) -> Result<Option<T>, FilesError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(io_error(what, path, error)),
    }
}

/// The names in a directory, in byte order.
fn names_in(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    // A directory that changes while it is read may show a name twice.
    names.dedup();
    Ok(names)
}

/// What the file system says of an entry; `None` when it has vanished.
fn stat(
    directory: BorrowedFd<'_>,
    name: &[u8],
    flags: AtFlags,
    path: &[u8],
) -> Result<Option<Stat>, FilesError> {
    match statat(directory, name, flags) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(io_error("look at", path, error)),
    }
}
