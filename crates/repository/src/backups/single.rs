//! One manifest at a time, for those who look at many and keep none.

use super::{Listed, MANIFEST_LIMIT, decode_manifest};
use crate::layout::{self, ClusterName};
use crate::manifest::Manifest;
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Header, Kind, open_stream};

impl Repository {
    /// One backup of those that are listed.
    pub async fn listed(&self, cluster: &ClusterName, id: String) -> Result<Listed, RepositoryError> {
        match self.read_manifest(cluster, &id).await {
            Ok((manifest, digest)) => Ok(Listed { id, manifest: Ok(manifest), digest: Some(digest) }),
            Err(error) if error.is_damage() => Ok(Listed { id, manifest: Err(error), digest: None }),
            Err(error) => Err(error),
        }
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
