//! What was done ahead for one server: notes of files that are stored, and segments that were fetched.
//!
//! One folder for each `pg_wal`, below the repository's id. Notes are authenticated with the repository's local key, and
//! a fetched segment counts only with a note that says of exactly this file that its content was authentic. The segments
//! themselves lie there as they lie in `pg_wal`: readable by their owner, not encrypted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pg::wal::{FileName, SegmentName};
use repository::local::{Drawer, LocalStore};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use repository::archive::WalSink as _;

use super::Context;
use super::content::{Changed, Incoming};
use crate::failpoint;

/// A spool that nothing has touched for so long belongs to a server that is gone.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// A prober holds a lock for microseconds; whoever wants it in earnest tries for this long.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// The spool of one server.
pub struct Spool {
    folder: PathBuf,
    context: Context,
    notes: LocalStore,
}

/// Which of the two background processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Stores ahead.
    Drain,
    /// Fetches ahead.
    Prefetch,
}

/// The right to be the one background process of its role; given up when dropped, or when the process ends in any way.
pub struct Lock {
    _file: File,
}

/// What a file was when it was read: if all of it is the same now, so is its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    /// Bytes.
    pub size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&fs::Metadata> for FileIdentity {
    fn from(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl FileIdentity {
    /// Whether this is the same file with the same content, whatever name it has now: a rename sets the change time.
    pub fn is_still(&self, metadata: &fs::Metadata) -> bool {
        let now = Self::from(metadata);
        (self.device, self.inode, self.size, self.modified) == (now.device, now.inode, now.size, now.modified)
    }

    /// How long after its last change a file's identity tells of the next one: time stamps are taken from a clock that
    /// ticks every 10 ms at most, or have whole seconds on old file systems.
    fn settles_after(&self) -> Duration {
        if self.changed.1 == 0 { Duration::from_secs(2) } else { Duration::from_millis(20) }
    }
}

#[derive(Serialize, Deserialize)]
struct Pushed {
    cluster: String,
    file: FileIdentity,
}

#[derive(Serialize, Deserialize)]
struct Fetched {
    cluster: String,
    file: FileIdentity,
}

impl Spool {
    /// The spool of the server whose `pg_wal` this is; `None` when there is none or it cannot be made.
    pub fn open(context: &Context, wal_directory: &Path) -> Option<Self> {
        let root = context.spool.as_ref()?;
        let server = blake3::hash(fs::canonicalize(wal_directory).ok()?.as_os_str().as_bytes()).to_hex();
        let folder = root.join(format!("{}-{}", context.cluster, &server[..16]));
        let notes = LocalStore::new(Some(&folder), context.repository.access().writer());
        let folder = notes.root().expect("a folder was given").to_owned();
        if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
            tracing::debug!(path = %folder.display(), %error, "there is no spool");
            return None;
        }
        Some(Self { folder, context: context.clone(), notes })
    }

    /// Whether the file is stored, as far as an authentic note says so of exactly this file.
    pub fn is_pushed(&self, name: &FileName, file: &FileIdentity) -> bool {
        let note = self.notes.get(Drawer::Pushed, &name.to_string());
        let note = note.and_then(|bytes| serde_json::from_slice::<Pushed>(&bytes).ok());
        note.is_some_and(|note| note.cluster == self.context.cluster.as_str() && note.file == *file)
    }

    /// Notes that the file is stored; false when the note did not last.
    pub fn note_pushed(&self, name: &FileName, file: FileIdentity) -> bool {
        let note = Pushed { cluster: self.context.cluster.to_string(), file };
        let bytes = serde_json::to_vec(&note).expect("plain fields");
        self.notes.put(Drawer::Pushed, &name.to_string(), &bytes);
        self.is_pushed(name, &file)
    }

    /// How many files may have a note.
    pub fn ahead(&self) -> usize {
        self.context.limits.ahead
    }

    /// Removes the note of a file, if there is one.
    pub fn forget_pushed(&self, name: &str) {
        self.notes.remove(Drawer::Pushed, name);
    }

    /// Names of the files that have a note, good or bad.
    pub fn pushed(&self) -> Vec<String> {
        self.notes.names(Drawer::Pushed)
    }

    /// Whether a segment was fetched whole, good or bad.
    pub fn has_fetched(&self, name: &SegmentName) -> bool {
        self.notes.has(Drawer::Fetched, &name.to_string())
    }

    /// Whether the segment is being fetched at this moment, if a fetcher lives.
    pub fn is_being_fetched(&self, name: &SegmentName) -> bool {
        self.path(name).exists() && !self.has_fetched(name)
    }

    /// Says that the segment is being fetched, before the request is made.
    pub fn announce(&self, name: &SegmentName) -> io::Result<Incoming> {
        let path = self.path(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path.parent().expect("a folder is above"))?;
        self.notes.remove(Drawer::Fetched, &name.to_string());
        let mut incoming = Incoming::new(path);
        incoming.take(&[])?;
        Ok(incoming)
    }

    /// Keeps a fetched segment whose content has this digest. It is written to disk and read again here, so that handing
    /// it out is a rename: whatever happens to the file from now on changes its identity.
    pub async fn keep_fetched(
        &self,
        name: &SegmentName,
        incoming: Incoming,
        digest: [u8; 32],
    ) -> io::Result<()> {
        let path = incoming.finish()?;
        failpoint::reach("wal-prefetch.written");
        let written = FileIdentity::from(&fs::symlink_metadata(&path)?);
        tokio::time::sleep(written.settles_after()).await;
        let mut hasher = self.context.repository.digester().content_hasher();
        hasher.update_reader(File::open(&path)?)?;
        let file = FileIdentity::from(&fs::symlink_metadata(&path)?);
        if file != written || *hasher.finalize().as_bytes() != digest {
            return Err(io::Error::other(Changed));
        }
        let note = Fetched { cluster: self.context.cluster.to_string(), file };
        let bytes = serde_json::to_vec(&note).expect("plain fields");
        self.notes.put(Drawer::Fetched, &name.to_string(), &bytes);
        failpoint::reach("wal-prefetch.noted");
        // Notes are counted to bound the queue: one that cannot be kept must end the fetching.
        self.fetched(name).map(drop).ok_or_else(|| io::Error::other("its note could not be kept"))
    }

    /// Where a fetched segment lies, and which file it is, if it is what an authentic note says that it is.
    pub fn fetched(&self, name: &SegmentName) -> Option<(PathBuf, FileIdentity)> {
        let note = self.notes.get(Drawer::Fetched, &name.to_string())?;
        let note = serde_json::from_slice::<Fetched>(&note).ok()?;
        let path = self.path(name);
        let metadata = fs::symlink_metadata(&path).ok()?;
        let good = metadata.is_file()
            && note.cluster == self.context.cluster.as_str()
            && note.file == FileIdentity::from(&metadata);
        good.then_some((path, note.file))
    }

    /// Removes what there is of a fetched segment.
    pub fn forget_fetched(&self, name: &SegmentName) {
        let _ = fs::remove_file(self.path(name));
        self.notes.remove(Drawer::Fetched, &name.to_string());
    }

    /// Segments that were fetched whole, in order.
    pub fn fetched_names(&self) -> Vec<SegmentName> {
        let names = self.notes.names(Drawer::Fetched);
        let mut names: Vec<SegmentName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort_unstable();
        names
    }

    /// Removes every fetched segment that is not wanted, and whatever else lies between them: what a fetcher that was
    /// killed left unfinished, too.
    pub fn keep_only(&self, wanted: impl Fn(&SegmentName) -> bool) {
        for entry in fs::read_dir(self.folder.join("segments")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let parsed = name.to_str().and_then(|text| text.parse().ok());
            if !parsed.is_some_and(|name| wanted(&name) && self.has_fetched(&name)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        for name in self.notes.names(Drawer::Fetched) {
            if !name.parse().is_ok_and(|name| wanted(&name)) {
                self.notes.remove(Drawer::Fetched, &name);
            }
        }
    }

    /// Removes the spools of this folder that nobody has used for a day.
    pub fn sweep(&self) {
        let Some(root) = &self.context.spool else { return };
        for server in fs::read_dir(root).into_iter().flatten().flatten() {
            let newest = ["", "segments", "pushed", "fetched"].map(|below| {
                let folder = server.path().join(self.folder.file_name().unwrap_or_default()).join(below);
                folder.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
            });
            let newest = newest.into_iter().max().expect("four folders");
            let ours = self.folder.starts_with(server.path());
            // A folder without the one of our repository is not ours to judge.
            if !ours && newest > SystemTime::UNIX_EPOCH && newest.elapsed().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_dir_all(server.path().join(self.folder.file_name().unwrap_or_default()));
                let _ = fs::remove_dir(server.path());
            }
        }
    }

    /// Becomes the one background process of this role; `None` if another is.
    pub async fn lock(&self, role: Role) -> Option<Lock> {
        let started = tokio::time::Instant::now();
        loop {
            let file = self.lock_file(role).ok()?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Some(Lock { _file: file });
            }
            if started.elapsed() > LOCK_PATIENCE {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether a background process of this role lives.
    pub fn is_locked(&self, role: Role) -> bool {
        let file = self.lock_file(role);
        file.is_ok_and(|file| held_by_another(flock(&file, FlockOperation::NonBlockingLockShared)))
    }

    fn lock_file(&self, role: Role) -> io::Result<File> {
        let name = match role {
            Role::Drain => "drain.lock",
            Role::Prefetch => "prefetch.lock",
        };
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.folder.join(name))
    }

    /// Where a fetched segment lies, or would.
    pub fn path(&self, name: &SegmentName) -> PathBuf {
        self.folder.join("segments").join(name.to_string())
    }
}

/// Whether a lock was refused because somebody has it. On a file system without locks every try fails, nobody works
/// ahead, and a call that took that for a drainer would wait for it in vain, segment after segment.
fn held_by_another(tried: rustix::io::Result<()>) -> bool {
    tried == Err(Errno::WOULDBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_locks_is_no_sign_of_life() {
        assert!(held_by_another(Err(Errno::WOULDBLOCK)));
        assert!(
            [Ok(()), Err(Errno::NOLCK), Err(Errno::NOSYS), Err(Errno::OPNOTSUPP)]
                .into_iter()
                .all(|tried| !held_by_another(tried))
        );
    }
}
