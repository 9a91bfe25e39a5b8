//! What this host keeps for itself: a cache of immutable tables and maps, and the newest manifest that it saw.
//!
//! Nothing here is needed: a file that is missing, truncated or changed is as good as none. Each file carries a MAC
//! under a key derived from the writer secret, so that what it says can be trusted.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zeroize::Zeroizing;

use crate::secrets::{Purpose, RepositoryId, WriterCredential, random_bytes};

const MAC_LEN: usize = 32;

/// Authenticated files below one folder of this host, or nothing when no folder is given.
#[derive(Clone)]
pub struct LocalStore {
    root: Option<PathBuf>,
    key: Zeroizing<[u8; 32]>,
    repository: RepositoryId,
}

/// What a local file is about; the name of its folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drawer {
    /// Pack tables.
    Tables,
    /// Map chunks.
    Maps,
    /// Roots of manifests that this host wrote.
    Manifests,
    /// Newest manifest seen of each cluster.
    Newest,
    /// What a cluster's stream is bound to.
    Identities,
    /// WAL files that were stored ahead of being asked for.
    Pushed,
    /// WAL files that were fetched ahead of being asked for.
    Fetched,
}

impl Drawer {
    fn folder(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::Maps => "maps",
            Self::Manifests => "manifests",
            Self::Newest => "newest",
            Self::Identities => "identities",
            Self::Pushed => "pushed",
            Self::Fetched => "fetched",
        }
    }
}

impl LocalStore {
    /// Files below `folder/<repository id>`; `None` keeps nothing.
    pub fn new(folder: Option<&Path>, writer: &WriterCredential) -> Self {
        Self {
            root: folder.map(|folder| folder.join(writer.repository.to_string())),
            key: writer.derive(Purpose::Local),
            repository: writer.repository,
        }
    }

    /// The folder of this repository's local files.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The file's content, if it is there and authentic.
    pub fn get(&self, drawer: Drawer, name: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(drawer, name)?).ok()?;
        let content_len = bytes.len().checked_sub(MAC_LEN)?;
        let stored = blake3::Hash::from_bytes(*bytes.last_chunk()?);
        bytes.truncate(content_len);
        (self.mac(drawer, name, &bytes) == stored).then_some(bytes)
    }

    /// Whether there is a file of this name, authentic or not.
    pub fn has(&self, drawer: Drawer, name: &str) -> bool {
        self.path(drawer, name).is_some_and(|path| path.exists())
    }

    /// Keeps a file; a failure is logged and otherwise ignored, for nothing depends on it.
    pub fn put(&self, drawer: Drawer, name: &str, content: &[u8]) {
        let Some(path) = self.path(drawer, name) else { return };
        if let Err(error) = self.write(&path, drawer, name, content) {
            tracing::debug!(path = %path.display(), %error, "cannot keep a local copy");
        }
    }

    fn write(&self, path: &Path, drawer: Drawer, name: &str, content: &[u8]) -> std::io::Result<()> {
        let folder = path.parent().expect("a drawer is above");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let temporary = folder.join(format!(".{:016x}", u64::from_le_bytes(random_bytes())));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written = file
            .write_all(content)
            .and_then(|()| file.write_all(self.mac(drawer, name, content).as_bytes()))
            .and_then(|()| fs::rename(&temporary, path));
        written.inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Names of the drawer's files, authentic or not, in no order; temporary ones begin with a dot and are left out.
    pub fn names(&self, drawer: Drawer) -> Vec<String> {
        let folder = self.root.as_ref().map(|root| root.join(drawer.folder()));
        let entries = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, drawer: Drawer, name: &str) {
        if let Some(path) = self.path(drawer, name) {
            let _ = fs::remove_file(path);
        }
    }

    /// Removes the oldest tables and maps until they take at most `limit` bytes.
    pub fn trim(&self, limit: u64) {
        let Some(root) = &self.root else { return };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for drawer in [Drawer::Tables, Drawer::Maps] {
            let entries = fs::read_dir(root.join(drawer.folder())).into_iter().flatten().flatten();
            for entry in entries {
                if let Ok(metadata) = entry.metadata() {
                    files.push((
                        metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                        metadata.len(),
                        entry.path(),
                    ));
                }
            }
        }
        let mut total: u64 = files.iter().map(|file| file.1).sum();
        files.sort();
        for (_, len, path) in files {
            if total <= limit {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= len;
            }
        }
    }

    fn path(&self, drawer: Drawer, name: &str) -> Option<PathBuf> {
        debug_assert!(!name.contains('/') && !name.is_empty());
        Some(self.root.as_ref()?.join(drawer.folder()).join(name))
    }

    fn mac(&self, drawer: Drawer, name: &str, content: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher
            .update(&self.repository.0)
            .update(drawer.folder().as_bytes())
            .update(b"/")
            .update(name.as_bytes());
        hasher.update(b"\0").update(content);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Keyring;

    #[test]
    fn a_changed_moved_or_truncated_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Some(folder.path()), &Keyring::for_test_vectors(1).writer);
        store.put(Drawer::Tables, "a", b"content");
        assert_eq!(store.get(Drawer::Tables, "a").as_deref(), Some(&b"content"[..]));
        assert_eq!(store.get(Drawer::Maps, "a"), None);
        let path = store.path(Drawer::Tables, "a").unwrap();
        fs::copy(&path, store.path(Drawer::Tables, "b").unwrap()).unwrap();
        assert_eq!(store.get(Drawer::Tables, "b"), None);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            assert_eq!(store.get(Drawer::Tables, "a"), None);
            fs::write(&path, &good[..at]).unwrap();
            assert_eq!(store.get(Drawer::Tables, "a"), None);
        }
        let other = LocalStore::new(Some(folder.path()), &Keyring::for_test_vectors(2).writer);
        fs::write(&path, &good).unwrap();
        assert_eq!(other.get(Drawer::Tables, "a"), None);
    }

    #[test]
    fn files_are_named_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Some(folder.path()), &Keyring::for_test_vectors(1).writer);
        assert!(store.names(Drawer::Pushed).is_empty());
        store.put(Drawer::Pushed, "a", b"");
        assert_eq!(store.names(Drawer::Pushed), ["a"]);
        store.remove(Drawer::Pushed, "a");
        store.remove(Drawer::Pushed, "a");
        assert!(store.names(Drawer::Pushed).is_empty());
    }

    #[test]
    fn trimming_removes_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Some(folder.path()), &Keyring::for_test_vectors(1).writer);
        for name in ["a", "b", "c"] {
            store.put(Drawer::Maps, name, &[0; 100]);
            std::thread::sleep(std::time::Duration::from_millis(12));
        }
        store.trim(2 * 132);
        let kept = ["a", "b", "c"].map(|name| store.get(Drawer::Maps, name).is_some());
        assert_eq!(kept, [false, true, true]);
    }
}
