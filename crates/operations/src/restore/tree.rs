//! The directory tree being restored: every path is opened below its root, never through a link that somebody put there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::PlannedTablespace;
use super::directory::MARKER;
use super::error::RestoreError;

/// Roots of the data directory and of each tablespace.
pub(crate) struct Tree {
    data: Root,
    tablespaces: Vec<(Vec<u8>, Root)>,
    owner: Option<(u32, u32)>,
}

struct Root {
    path: PathBuf,
    directory: OwnedFd,
}

impl Tree {
    /// Makes the root directories, each with the mark of an unfinished restore as its first file.
    pub(crate) fn create(
        data: &Path,
        mode: u32,
        tablespaces: &[PlannedTablespace],
        owner: Option<(u32, u32)>,
        backup: &str,
    ) -> Result<Self, RestoreError> {
        let data = Root::create(data, mode, owner, backup)?;
        let mut roots = Vec::new();
        for space in tablespaces {
            let prefix = format!("pg_tblspc/{}/", space.oid).into_bytes();
            roots.push((prefix, Root::create(&space.to, 0o700, owner, backup)?));
        }
        Ok(Self { data, tablespaces: roots, owner })
    }

    /// The data directory.
    pub(crate) fn data_path(&self) -> &Path {
        &self.data.path
    }

    /// The path on disk of an entry, for messages.
    pub(crate) fn full_path(&self, path: &[u8]) -> PathBuf {
        let (root, rest) = self.locate(path);
        root.path.join(std::ffi::OsStr::from_bytes(rest))
    }

    fn locate<'p>(&self, path: &'p [u8]) -> (&Root, &'p [u8]) {
        let found =
            self.tablespaces.iter().find_map(|(prefix, root)| Some((root, path.strip_prefix(&prefix[..])?)));
        found.unwrap_or((&self.data, path))
    }

    /// Removes what stands in the place of a file, directory or link that is to be made: a link itself, never what it
    /// leads to; a directory with everything in it.
    pub(crate) fn make_way(&self, path: &[u8]) -> io::Result<()> {
        let (root, rest) = self.locate(path);
        let (parent, name) = root.parent(rest)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => std::fs::remove_dir_all(self.full_path(path)),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a directory, or sets the mode of the one that is there. Anything else in its place is removed: a `pg_wal`
    /// that was a link becomes a directory.
    pub(crate) fn make_directory(&self, path: &[u8], mode: u32) -> Result<(), RestoreError> {
        let (root, rest) = self.locate(path);
        let failed = |error: Errno| RestoreError::disk("make directory", self.full_path(path))(error.into());
        let (parent, name) = root.parent(rest).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => rustix::fs::openat(&parent, name, flags, Mode::empty()),
            Err(error) => Err(error),
        };
        let opened = match open() {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(failed)?;
                open()
            }
            opened => opened,
        };
        let directory = opened.map_err(failed)?;
        self.settle(&directory.into(), mode)
            .map_err(RestoreError::disk("make directory", self.full_path(path)))
    }

    /// Makes the link of a tablespace, or puts the right one in the place of a wrong one.
    pub(crate) fn make_link(&self, path: &[u8], target: &Path) -> Result<(), RestoreError> {
        let failed = |error: Errno| RestoreError::disk("make link", self.full_path(path))(error.into());
        let (parent, name) = self.data.parent(path).map_err(failed)?;
        self.make_way(path).map_err(RestoreError::disk("make link", self.full_path(path)))?;
        rustix::fs::symlinkat(target, &parent, name).map_err(failed)?;
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Opens a file for writing, making it if it is not there.
    pub(crate) fn open_for_writing(&self, path: &[u8]) -> io::Result<File> {
        let (root, rest) = self.locate(path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(root.open(rest, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// Opens a file that may be there already; `None` if there is none, or something that is no file or must not be
    /// written to, as a key file of mode 0400.
    pub(crate) fn open_existing(&self, path: &[u8]) -> io::Result<Option<File>> {
        let (root, rest) = self.locate(path);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match root.open(rest, flags, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                Ok(file.metadata()?.is_file().then_some(file))
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives an open file or directory its mode and owner.
    pub(crate) fn settle(&self, file: &File, mode: u32) -> io::Result<()> {
        // Files are made 0600; most stay so.
        if std::os::unix::fs::PermissionsExt::mode(&file.metadata()?.permissions()) & 0o7777 != mode {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        }
        self.give(file)
    }

    fn give(&self, file: &File) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        Ok(())
    }

    /// Writes a whole small file of the data directory in place of any other: temporary file, fsync, rename.
    pub(crate) fn put(&self, path: &str, mode: u32, content: &[u8]) -> Result<(), RestoreError> {
        let failed = RestoreError::disk("write", self.data.path.join(path));
        self.put_with(path, mode, |file| io::Write::write_all(file, content).map_err(failed))
    }

    /// As [`Tree::put`], with content that is written piece by piece.
    pub(crate) fn put_with(
        &self,
        path: &str,
        mode: u32,
        write: impl FnOnce(&mut File) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let full = self.data.path.join(path);
        let temporary = self.data.path.join(format!("{path}.pgkeep"));
        let failed = || RestoreError::disk("write", full.clone());
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = self.data.open(format!("{path}.pgkeep").as_bytes(), flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(opened.map_err(|error| failed()(error.into()))?);
        write(&mut file)?;
        let end = || -> io::Result<()> {
            self.settle(&file, mode)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &full)
        };
        end().map_err(failed())
    }

    /// Makes everything written below the roots durable: one call for each filesystem. Its errors are those of every
    /// write since the roots were opened (Linux 5.8 and later).
    pub(crate) fn sync(&self) -> Result<(), RestoreError> {
        for root in std::iter::once(&self.data).chain(self.tablespaces.iter().map(|(_, root)| root)) {
            rustix::fs::syncfs(&root.directory)
                .map_err(|error| RestoreError::disk("sync", &root.path)(error.into()))?;
        }
        Ok(())
    }

    /// Takes the marks of the unfinished restore away, the data directory's last.
    pub(crate) fn unmark(&self) -> Result<(), RestoreError> {
        for root in self.tablespaces.iter().map(|(_, root)| root).chain(std::iter::once(&self.data)) {
            let path = root.path.join(MARKER);
            std::fs::remove_file(&path).map_err(RestoreError::disk("remove", path.clone()))?;
            rustix::fs::fsync(&root.directory)
                .map_err(|error| RestoreError::disk("sync", &root.path)(error.into()))?;
        }
        Ok(())
    }

    /// The roots' paths: the data directory, then the tablespaces with the prefix of their entries.
    pub(crate) fn roots(&self) -> impl Iterator<Item = (&[u8], &Path)> {
        let spaces = self.tablespaces.iter().map(|(prefix, root)| (&prefix[..], root.path.as_path()));
        std::iter::once((&b""[..], self.data.path.as_path())).chain(spaces)
    }
}

impl Root {
    fn create(path: &Path, mode: u32, owner: Option<(u32, u32)>, backup: &str) -> Result<Self, RestoreError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let failed = || RestoreError::disk("make directory", path);
        // The folders above are not ours alone: the server's user must get through them also when root makes them.
        if let Some(above) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(above).map_err(failed())?;
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed())?;
        let directory = File::open(path).map_err(failed())?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(|error| failed()(error.into()))?;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|error| failed()(error.into()))?;
        }
        let marker = path.join(MARKER);
        let text = format!(
            "{backup}\nThis directory holds an unfinished restore by pgkeep. Run the same command again.\n"
        );
        let write = || -> io::Result<()> {
            std::fs::write(&marker, text)?;
            File::open(&marker)?.sync_all()?;
            directory.sync_all()
        };
        write().map_err(RestoreError::disk("write", marker.clone()))?;
        Ok(Self { path: path.to_owned(), directory: directory.into() })
    }

    /// Opens `path` below this root without following any link.
    fn open(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(self.directory.as_fd(), path, flags, mode, resolve) {
            // Old kernels and strict sandboxes lack this call; links were then looked for when directories were made.
            Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(self.directory.as_fd(), path, flags, mode),
            other => other,
        }
    }

    /// The directory that holds `path`, and the last part of it.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => Ok((self.open(&path[..at], flags, Mode::empty())?, &path[at + 1..])),
            None => Ok((self.directory.try_clone().map_err(|_| Errno::MFILE)?, path)),
        }
    }
}
