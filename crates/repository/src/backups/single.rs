//! One manifest at a time, for those who look at many and keep none.

use storage::StorageError;

use super::{Listed, MANIFEST_LIMIT, decode_manifest};
use crate::layout::{self, ClusterName};
use crate::manifest::Manifest;
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Header, Kind, open_stream};

impl Repository {
    /// One backup of those that are listed; `None` if it was expired since. It is called damaged when it was read twice.
    pub async fn listed(&self, cluster: &ClusterName, id: String) -> Result<Option<Listed>, RepositoryError> {
        let mut read = self.read_manifest(cluster, &id).await;
        if read.as_ref().is_err_and(RepositoryError::is_damage) {
            read = self.read_manifest(cluster, &id).await;
        }
        match read {
            Ok((manifest, digest)) => Ok(Some(Listed { id, manifest: Ok(manifest), digest: Some(digest) })),
            Err(RepositoryError::Storage(StorageError::NotFound { .. }))
                if self.was_expired(cluster, &id).await? =>
            {
                Ok(None)
            }
            Err(error) if error.is_damage() => Ok(Some(Listed { id, manifest: Err(error), digest: None })),
            Err(error) => Err(error),
        }
    }

    /// Whether it is written down that a backup was expired.
    pub async fn was_expired(&self, cluster: &ClusterName, id: &str) -> Result<bool, RepositoryError> {
        Ok(self.stored_size(&layout::expired_note(cluster, id)).await?.is_some())
    }

    /// Reads and opens a partial manifest by its object's name, for those who ask whether it is whole.
    pub async fn open_partial(&self, name: &storage::ObjectName) -> Result<Manifest, RepositoryError> {
        let object = self.storage().read_all(name, MANIFEST_LIMIT).await?;
        let (_, content) = open_stream(self.access(), Kind::PartialManifest, name, &object)?;
        decode_manifest(name.as_str(), &content)
    }

    /// Whether a manifest was written by a holder of the writer secret, which its header tells a host that cannot open it.
    pub async fn manifest_header(&self, cluster: &ClusterName, id: &str) -> Result<(), RepositoryError> {
        let name = layout::manifest(cluster, id);
        let object = self.storage().read_all(&name, MANIFEST_LIMIT).await?;
        Header::parse(self.access().writer(), Kind::Manifest, &name, &object)?;
        Ok(())
    }
}
