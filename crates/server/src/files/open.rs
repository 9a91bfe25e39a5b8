//! Opening the files of a data directory without being led astray.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags, SeekFrom, Stat, fstat, fstatfs, openat, openat2, seek};
use rustix::io::Errno;

use super::{FileMetadata, FilesError, LocalFiles, OpenFile};

/// Never blocks, not even if somebody put a pipe where a file was.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);

/// Local file systems that take their times from the kernel's coarse clock, and whose `lseek(SEEK_DATA)` takes the lock that
/// a writer holds from its setting the change time until its bytes are there, or whose reads do: ext2 to ext4, XFS, Btrfs,
/// F2FS, tmpfs (`linux/magic.h`). ZFS is not among them: it would write out what is dirty first.
const LOCAL: [u64; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994];

/// A file of a data directory.
#[derive(Debug)]
pub(super) struct LocalFile {
    file: File,
    path: Vec<u8>,
}

/// Opens the ordinary file at `path`.
pub(super) fn open(files: &LocalFiles, path: &[u8]) -> Result<LocalFile, FilesError> {
    let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    if !path.split(|&byte| byte == b'/').all(plain) {
        return Err(FilesError::InvalidPath { path: path.to_owned() });
    }
    let failed = |error| io_error("open", path, error);
    let opened = match split_tablespace(path) {
        Some((link, below)) => {
            let tablespace = tablespace(files, link).map_err(failed)?;
            open_below(tablespace.as_fd(), below)
        }
        None => open_below(files.root.as_fd(), path),
    };
    let file = LocalFile { file: opened.map_err(failed)?.into(), path: path.to_owned() };
    let is_file = file.file.metadata().map_err(|source| file.error("look at", source))?.is_file();
    if is_file { Ok(file) } else { Err(FilesError::InvalidPath { path: path.to_owned() }) }
}

/// Opens a directory in `parent`, not through a link.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens the directory of a tablespace, through its link or, for one that lies in place, as it is.
pub(super) fn tablespace(files: &LocalFiles, link: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
    let mut known = files.tablespaces.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(directory) = known.get(link) {
        return Ok(Arc::clone(directory));
    }
    let directory = Arc::new(openat(&files.root, link, DIRECTORY, Mode::empty())?);
    known.insert(link.to_owned(), Arc::clone(&directory));
    Ok(directory)
}

/// What went wrong, a missing file told from all else.
pub(super) fn io_error(what: &'static str, path: &[u8], error: Errno) -> FilesError {
    let path = path.to_owned();
    match error {
        Errno::NOENT => FilesError::Vanished { path },
        error => FilesError::Io { what, path, source: error.into() },
    }
}

/// What matters to us of a `stat`.
pub(super) fn metadata_of(stat: &Stat) -> FileMetadata {
    // The fields have other types on other platforms; the casts are without loss where we run.
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    FileMetadata {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec as i64),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec as i64),
        inode: stat.st_ino,
        device: stat.st_dev,
    }
}

impl LocalFile {
    fn error(&self, what: &'static str, source: io::Error) -> FilesError {
        FilesError::Io { what, path: self.path.clone(), source }
    }
}

impl OpenFile for LocalFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FilesError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error("read", error)),
            }
        }
        Ok(filled)
    }

    fn has_local_times(&self) -> bool {
        fstatfs(&self.file).is_ok_and(|system| LOCAL.contains(&(system.f_type as u64)))
    }

    fn wait_for_writers(&self) {
        // Reads are by offset, so the position does not matter; an empty file has no data to seek.
        let _ = seek(&self.file, SeekFrom::Data(0));
    }

    fn metadata(&self) -> Result<FileMetadata, FilesError> {
        let stat = fstat(&self.file).map_err(|error| io_error("look at", &self.path, error))?;
        Ok(metadata_of(&stat))
    }
}

/// Splits `pg_tblspc/16385/PG_15…/5/1259` into the tablespace's link and the rest.
fn split_tablespace(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let below = path.strip_prefix(b"pg_tblspc/")?;
    let slash = below.iter().position(|&byte| byte == b'/')?;
    let link = path.len() - below.len() + slash;
    Some((&path[..link], &path[link + 1..]))
}

/// Opens a file below a directory, with no link followed on the way.
fn open_below(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let guarded = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(directory, path, READ, Mode::empty(), guarded) {
        // Kernels before 5.6 do not know the call, some sandboxes forbid it.
        Err(Errno::NOSYS | Errno::PERM) => open_step_by_step(directory, path),
        other => other,
    }
}

fn open_step_by_step(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut parts = path.split(|&byte| byte == b'/').peekable();
    let mut current: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        let parent = current.as_ref().map_or(directory, AsFd::as_fd);
        if parts.peek().is_none() {
            return openat(parent, part, READ, Mode::empty());
        }
        current = Some(open_directory(parent, part)?);
    }
    Err(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn both_ways_of_opening_stay_below_and_follow_no_link() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        fs::write(directory.path().join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        std::os::unix::fs::symlink("c", directory.path().join("a/b/last")).unwrap();
        let root = File::open(directory.path()).unwrap();
        for open in [open_below, open_step_by_step] {
            open(root.as_fd(), b"a/b/c").unwrap();
            assert!(matches!(open(root.as_fd(), b"link/b/c"), Err(Errno::LOOP | Errno::NOTDIR)));
            assert!(matches!(open(root.as_fd(), b"a/b/last"), Err(Errno::LOOP)));
            assert!(matches!(open(root.as_fd(), b"a/x/c"), Err(Errno::NOENT)));
        }
    }

    #[test]
    fn the_link_of_a_tablespace_is_told_from_what_is_below() {
        let path = b"pg_tblspc/16385/PG_15/5/1259";
        assert_eq!(split_tablespace(path), Some((&b"pg_tblspc/16385"[..], &b"PG_15/5/1259"[..])));
        assert_eq!(split_tablespace(b"pg_tblspc/16385"), None);
        assert_eq!(split_tablespace(b"base/5/1259"), None);
    }
}
