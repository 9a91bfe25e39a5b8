//! The backups of a cluster: publishing a manifest, listing, and noticing that some are gone.
//!
//! Each manifest carries the digest of the cluster's previous one, and this host remembers the newest that it saw; so a
//! bucket that was rolled back or robbed of a backup is noticed.

mod single;

use bytes::Bytes;
use prost::Message as _;
use storage::StorageError;

use crate::content::Entry;
use crate::layout::{self, ClusterName};
use crate::local::Drawer;
use crate::manifest::Manifest;
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Kind, open_stream, seal_stream};

mod chain;

pub use chain::ChainFinding;

/// A manifest of 10 TB in 16 MiB packs has about 25 MiB; anything past this is hostile.
pub(crate) const MANIFEST_LIMIT: u64 = 64 << 20;

/// One backup that is listed: its manifest, or why it cannot be read.
pub struct Listed {
    /// The backup's id.
    pub id: String,
    /// The root, or the damage.
    pub manifest: Result<Manifest, RepositoryError>,
    /// Content digest of the manifest's object, if it can be read.
    pub digest: Option<[u8; 32]>,
}

/// The cluster's newest manifest, for the next one to follow.
#[derive(Clone)]
pub struct Predecessor {
    /// Its root.
    pub manifest: Manifest,
    digest: [u8; 32],
}

impl Repository {
    /// The ids of a cluster's backups, oldest first.
    pub async fn backup_ids(&self, cluster: &ClusterName) -> Result<Vec<String>, RepositoryError> {
        let prefix = layout::backups(cluster);
        let entries = self.storage().list(&prefix).await?;
        Ok(entries
            .iter()
            .filter_map(|entry| entry.name.as_str().strip_prefix(&prefix).map(str::to_owned))
            .collect())
    }

    /// Reads one backup's manifest.
    pub async fn manifest(&self, cluster: &ClusterName, id: &str) -> Result<Manifest, RepositoryError> {
        Ok(self.read_manifest(cluster, id).await?.0)
    }

    async fn read_manifest(
        &self,
        cluster: &ClusterName,
        id: &str,
    ) -> Result<(Manifest, [u8; 32]), RepositoryError> {
        let name = layout::manifest(cluster, id);
        let object = self.storage().read_all(&name, MANIFEST_LIMIT).await?;
        let (_, content) = open_stream(self.access(), Kind::Manifest, &name, &object)?;
        let manifest = decode_manifest(name.as_str(), &content)?;
        Ok((manifest, self.digester().content(&object)))
    }

    /// Every backup of a cluster, oldest first, each with its manifest or its damage.
    pub async fn backups(&self, cluster: &ClusterName) -> Result<Vec<Listed>, RepositoryError> {
        let mut listed = Vec::new();
        for id in self.backup_ids(cluster).await? {
            listed.push(self.listed(cluster, id).await?);
        }
        Ok(listed)
    }

    /// The newest backup that can be read, for the next backup to follow and to compare with. A host that cannot read
    /// takes it from its own cache, and only while the repository still has it.
    pub async fn predecessor(&self, cluster: &ClusterName) -> Result<Option<Predecessor>, RepositoryError> {
        for id in self.backup_ids(cluster).await?.iter().rev() {
            let found = if self.access().can_read() {
                self.read_manifest(cluster, id).await
            } else {
                match self.cached_manifest(cluster, id).await? {
                    Some(found) => Ok(found),
                    None => continue,
                }
            };
            match found {
                Ok((manifest, digest)) => return Ok(Some(Predecessor { manifest, digest })),
                Err(error) if error.is_damage() => {
                    tracing::warn!(backup = %id, %error, "a damaged manifest is passed over")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn cached_manifest(
        &self,
        cluster: &ClusterName,
        id: &str,
    ) -> Result<Option<(Manifest, [u8; 32])>, RepositoryError> {
        let Some(content) = self.local().get(Drawer::Manifests, &format!("{cluster}-{id}")) else {
            return Ok(None);
        };
        let name = layout::manifest(cluster, id);
        let object = self.storage().read_all(&name, MANIFEST_LIMIT).await?;
        // The header's MAC tells that the stored object is one of ours even where it cannot be opened.
        crate::seal::Header::parse(self.access().writer(), Kind::Manifest, &name, &object)?;
        Ok(Some((decode_manifest(name.as_str(), &content)?, self.digester().content(&object))))
    }

    /// Makes a backup exist: completes the manifest by its place in the chain, sees to the locks of what it names, and
    /// stores it.
    pub async fn publish(
        &self,
        cluster: &ClusterName,
        mut manifest: Manifest,
        predecessor: Option<&Predecessor>,
    ) -> Result<Manifest, RepositoryError> {
        if let Some(Predecessor { manifest: previous, digest }) = predecessor {
            manifest.sequence = previous.sequence + 1;
            manifest.previous_id = previous.id.clone();
            manifest.previous_digest = digest.to_vec();
        }
        // Before it exists: a backup that says that it is locked is.
        self.lock_needed(cluster, &mut manifest).await?;
        let name = layout::manifest(cluster, &manifest.id);
        let content = manifest.encode_to_vec();
        let mut public = manifest.sequence.to_le_bytes().to_vec();
        public.extend_from_slice(&manifest.previous_digest);
        let object = seal_stream(self.access().writer(), Kind::Manifest, &name, &public, &content);
        self.storage().create(&name, &[object]).await?;
        self.keep_manifest(&format!("{cluster}-{}", manifest.id), &manifest);
        self.remember_newest(cluster, &manifest);
        Ok(manifest)
    }

    /// Keeps a manifest for a host that cannot read it back, without the configuration, which may hold secrets and is not
    /// compared with.
    fn keep_manifest(&self, name: &str, manifest: &Manifest) {
        let kept = Manifest { config_files: Vec::new(), ..manifest.clone() };
        self.local().put(Drawer::Manifests, name, &kept.encode_to_vec());
    }

    /// Records what an unfinished backup has stored so far; the next backup takes it as a further parent.
    pub async fn publish_partial(
        &self,
        cluster: &ClusterName,
        manifest: &Manifest,
        number: u32,
    ) -> Result<(), RepositoryError> {
        let name = layout::partial_manifest(cluster, &manifest.id, number);
        let content = manifest.encode_to_vec();
        let object = seal_stream(self.access().writer(), Kind::PartialManifest, &name, &[], &content);
        self.storage().create(&name, &[object]).await?;
        self.keep_manifest(&format!("{cluster}-{}-{number:06}", manifest.id), manifest);
        Ok(())
    }

    /// The partial manifests of unfinished backups begun after the backup `after`, oldest first, by attempt.
    pub async fn partials(
        &self,
        cluster: &ClusterName,
        after: Option<&str>,
    ) -> Result<Vec<Vec<Manifest>>, RepositoryError> {
        let prefix = layout::partials(cluster);
        let mut attempts: Vec<(String, Vec<Manifest>)> = Vec::new();
        for entry in self.storage().list(&prefix).await? {
            let Some((id, number)) = entry.name.as_str()[prefix.len()..].split_once('/') else { continue };
            if after.is_some_and(|after| id <= after) {
                continue;
            }
            match self.read_partial(cluster, &entry.name, id, number).await {
                Ok(Some(manifest)) => match attempts.last_mut() {
                    Some((last, parts)) if last == id => parts.push(manifest),
                    _ => attempts.push((id.to_owned(), vec![manifest])),
                },
                Ok(None) => {}
                Err(error) if error.is_damage() => {
                    tracing::warn!(object = %entry.name, %error, "a partial manifest is passed over")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(attempts.into_iter().map(|attempt| attempt.1).collect())
    }

    async fn read_partial(
        &self,
        cluster: &ClusterName,
        name: &storage::ObjectName,
        id: &str,
        number: &str,
    ) -> Result<Option<Manifest>, RepositoryError> {
        if !self.access().can_read() {
            let content = self.local().get(Drawer::Manifests, &format!("{cluster}-{id}-{number}"));
            return content.map(|content| decode_manifest(name.as_str(), &content)).transpose();
        }
        match self.open_partial(name).await {
            Err(RepositoryError::Storage(StorageError::NotFound { .. })) => Ok(None),
            other => other.map(Some),
        }
    }

    /// The entry of one path, if the backup has it.
    pub async fn find_entry(
        &self,
        manifest: &Manifest,
        path: &[u8],
    ) -> Result<Option<Entry>, RepositoryError> {
        let after = manifest.pages.partition_point(|page| page.first_path[..] <= *path);
        let Some(page) = after.checked_sub(1).map(|at| &manifest.pages[at]) else { return Ok(None) };
        let entries = self.list_page(page).await?;
        Ok(entries.into_iter().find(|entry| entry.path == path))
    }

    /// The entries of a backup in path order, page by page.
    pub fn entries<'r>(&'r self, manifest: &'r Manifest) -> EntryStream<'r> {
        EntryStream { repository: self, pages: manifest.pages.iter(), entries: Vec::new().into_iter() }
    }
}

/// A backup's entries in path order; one list page is in memory at a time.
pub struct EntryStream<'r> {
    repository: &'r Repository,
    pages: std::slice::Iter<'r, crate::manifest::PageRef>,
    entries: std::vec::IntoIter<Entry>,
}

impl EntryStream<'_> {
    /// The next entry.
    pub async fn next(&mut self) -> Result<Option<Entry>, RepositoryError> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Ok(Some(entry));
            }
            let Some(page) = self.pages.next() else { return Ok(None) };
            self.entries = self.repository.list_page(page).await?.into_iter();
        }
    }
}

fn decode_manifest(name: &str, content: &[u8]) -> Result<Manifest, RepositoryError> {
    Manifest::read(content).map_err(|source| RepositoryError::Content { place: name.to_owned(), source })
}

/// A message's stored bytes, as tests and fuzzing of readers want them.
#[doc(hidden)]
pub fn encode_for_tests(manifest: &Manifest) -> Bytes {
    Bytes::from(manifest.encode_to_vec())
}
