//! Publishing and deleting files so that power loss leaves the old state or the new one.

use super::walk::{TEMPORARY_PREFIX, remove_stale_temporaries};
use super::{Inner, failed, is_absence};
use crate::error::Call;
use crate::{DirectFile, ObjectName, StorageError};
use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How often a write makes its directory again after a delete took it away for being empty.
const DIRECTORY_ATTEMPTS: u32 = 8;

/// Directories remembered as durable; past this all are forgotten, which only costs a few fsyncs.
const DURABLE_MAX: usize = 4096;

impl Inner {
    /// Makes the directories of an object durable, if the root is there.
    pub(super) fn prepare(&self, name: &ObjectName) {
        if self.check_root(Call::Create).is_ok()
            && let Some(directory) = self.path(name).parent()
        {
            let _ = self.make_durable(directory);
        }
    }

    /// Writes parts that may be made meanwhile, publishes without replacing, and makes durable.
    pub(super) fn create<B: AsRef<[u8]>>(
        &self,
        name: &ObjectName,
        parts: impl Iterator<Item = io::Result<B>>,
    ) -> Result<(), StorageError> {
        let fail = |error| failed(Call::Create, name.as_str(), error);
        self.check_root(Call::Create)?;
        let path = self.path(name);
        let directory = path.parent().expect("the path of an object has the root above it");
        if path.symlink_metadata().is_ok() {
            return self.taken(name, directory);
        }
        let (temporary, file) = self.open_temporary(directory).map_err(fail)?;
        // An error of fsync is final for this file: the kernel may have dropped the pages it could not write.
        let written = write_parts(file, parts).and_then(|()| publish(&temporary, &path));
        match written {
            Ok(()) => {}
            Err(error) => {
                // The temporary name is ours alone; what cannot be removed now is removed when it is a day
                // old.
                let _ = std::fs::remove_file(&temporary);
                if error.kind() == io::ErrorKind::AlreadyExists {
                    return self.taken(name, directory);
                }
                return Err(fail(error));
            }
        }
        // The object is whole and stays, even if the directory could not be synced: another writer of the same bytes may
        // have found it, synced it and reported success. Our own next try finds it and syncs again.
        sync_directory(directory).map_err(fail)
    }

    /// Removes the object, then the directories it leaves empty, durably.
    pub(super) fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let path = self.path(name);
        let is_object = path.symlink_metadata().map(|metadata| !metadata.is_dir());
        match is_object
            .and_then(|is_object| if is_object { std::fs::remove_file(&path) } else { Err(absent()) })
        {
            Ok(()) => {}
            Err(error) => return Err(self.failed_on(Call::Delete, name, error)),
        }
        let mut directory = path.parent();
        while let Some(here) = directory.filter(|here| *here != self.root && here.starts_with(&self.root)) {
            if std::fs::remove_dir(here).is_err() {
                break;
            }
            directory = here.parent();
        }
        match directory.map(sync_directory) {
            // Someone else removed the directory too, and synced the one above.
            Some(Err(error)) if !is_absence(&error) => Err(failed(Call::Delete, name.as_str(), error)),
            _ => Ok(()),
        }
    }

    /// The answer to a taken name. Whoever published it may have died before the directory was durable, and
    /// the caller may find the bytes to be its own and call them safe: so the directory is made durable
    /// first.
    fn taken(&self, name: &ObjectName, directory: &Path) -> Result<(), StorageError> {
        self.make_durable(directory)
            .and_then(|()| sync_directory(directory))
            .map_err(|error| failed(Call::Create, name.as_str(), error))?;
        Err(StorageError::NameTaken { name: name.clone() })
    }

    /// A new file under a hidden name in `directory`, which is made if need be.
    fn open_temporary(&self, directory: &Path) -> io::Result<(PathBuf, File)> {
        let mut attempt = 0;
        loop {
            self.make_durable(directory)?;
            let path = directory.join(format!("{TEMPORARY_PREFIX}{:016x}", rand::random::<u64>()));
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            match opened {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < DIRECTORY_ATTEMPTS => {
                    attempt += 1;
                    self.known_durable().remove(directory);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes `directory` and those above it up to the root, and makes their names durable, once for each
    /// process.
    ///
    /// A directory found in place is synced too: another process may have died between making and syncing it.
    fn make_durable(&self, directory: &Path) -> io::Result<()> {
        if self.known_durable().contains(directory) {
            return Ok(());
        }
        make_directories(directory, &self.root)?;
        remove_stale_temporaries(directory);
        let mut known = self.known_durable();
        if known.len() >= DURABLE_MAX {
            known.clear();
        }
        known.insert(directory.to_owned());
        Ok(())
    }

    fn known_durable(&self) -> std::sync::MutexGuard<'_, std::collections::HashSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Makes `directory` and what is missing between it and `top` (which must exist), mode 0700, each name
/// fsynced.
pub(crate) fn make_directories(directory: &Path, top: &Path) -> io::Result<()> {
    if directory == top {
        return Ok(());
    }
    let parent = directory.parent().ok_or_else(absent)?;
    for _ in 0..DIRECTORY_ATTEMPTS {
        make_directories(parent, top)?;
        match DirBuilder::new().mode(0o700).create(directory) {
            // A delete took the parent away again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match sync_directory(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            result => return result,
        }
    }
    Err(absent())
}

fn write_parts<B: AsRef<[u8]>>(file: File, parts: impl Iterator<Item = io::Result<B>>) -> io::Result<()> {
    let mut file = DirectFile::new(file);
    let mut offset = 0;
    for part in parts {
        let part = part?;
        file.write_all_at(part.as_ref(), offset)?;
        offset += part.as_ref().len() as u64;
    }
    if crate::planted::has("file.unsynced") { Ok(()) } else { file.file().sync_all() }
}

/// Gives the file its name unless the name is taken (`AlreadyExists`).
fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(()),
        // File systems (NFS among them) and kernels without the flag; a hard link is create-only as well.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::linkat(CWD, temporary, CWD, path, AtFlags::empty())?;
    // The object is published; a second name that stays is removed when it is a day old.
    let _ = std::fs::remove_file(temporary);
    Ok(())
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}
