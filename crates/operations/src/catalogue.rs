//! What a repository holds: the backups, what each says, and from when to when can be restored.
//!
//! Everything here is a value that can be shown to people or programs. Damage is part of the answer; `Err` means that it
//! could not be looked at.

mod backup;
mod status;
mod stream;

pub use backup::{BackupDetail, BackupSummary, DamagedBackup, DamagedPage, PackUse, TablespaceDetail};
pub use status::{Place, Problem, Range, Severity, Status, status};
pub use stream::{End, GapContent, Run, TimelineContent, Unfinished, WalContent, wal_content};

use repository::manifest::Manifest;
use repository::{ClusterName, Repository, RepositoryError, layout};
use serde::Serialize;

use crate::pin::{self, PinContent};

/// Why the catalogue has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The repository could not be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// What can be restored could not be found out.
    #[error(transparent)]
    Reachable(#[from] crate::reachable::ReachableError),
    /// The cluster has no backup.
    #[error("cluster {cluster} has no backup")]
    NoBackup {
        /// The cluster.
        cluster: ClusterName,
    },
    /// No backup has this id.
    #[error("cluster {cluster} has no backup {text}")]
    Unknown {
        /// The cluster.
        cluster: ClusterName,
        /// What was asked for.
        text: String,
    },
    /// Several ids begin like this.
    #[error("{text} is the beginning of several backups: {}", .ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// The backups.
        ids: Vec<String>,
    },
}

/// The backups of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Listing {
    /// The cluster.
    pub cluster: String,
    /// Those that can be read, oldest first.
    pub backups: Vec<BackupSummary>,
    /// Those that cannot.
    pub damaged: Vec<DamagedBackup>,
    /// What the chain of manifests and this host's memory say about backups that are gone.
    pub chain: Vec<String>,
    /// What keeps backups from being expired.
    pub pins: Vec<PinContent>,
}

/// Lists the backups of a cluster.
pub async fn list(repository: &Repository, cluster: &ClusterName) -> Result<Listing, CatalogueError> {
    let listed = repository.backups(cluster).await?;
    let expired = repository.expired(cluster).await?;
    let chain = repository.check_chain(cluster, &listed, &expired).iter().map(ToString::to_string).collect();
    let pins = pin::shown(repository, cluster).await?;
    let mut listing =
        Listing { cluster: cluster.to_string(), backups: Vec::new(), damaged: Vec::new(), chain, pins };
    for backup in listed {
        match backup.manifest {
            Ok(manifest) => listing.backups.push(BackupSummary::of(&manifest)),
            Err(error) => listing.damaged.push(DamagedBackup { id: backup.id, why: error.to_string() }),
        }
    }
    Ok(listing)
}

/// The names of the clusters in a repository.
pub async fn clusters(repository: &Repository) -> Result<Vec<ClusterName>, CatalogueError> {
    Ok(cluster_names(repository).await?)
}

/// The same, for whoever has no other question.
pub(crate) async fn cluster_names(repository: &Repository) -> Result<Vec<ClusterName>, RepositoryError> {
    let children = repository.storage().list_children(layout::CLUSTERS).await?;
    let last = |prefix: &String| prefix.trim_end_matches('/').rsplit('/').next().map(str::to_owned);
    Ok(children.prefixes.iter().filter_map(last).filter_map(|name| ClusterName::new(&name).ok()).collect())
}

/// The id of the backup that `text` means: an id, the beginning of one, or `latest`.
pub async fn resolve(
    repository: &Repository,
    cluster: &ClusterName,
    text: &str,
) -> Result<String, CatalogueError> {
    let ids = repository.backup_ids(cluster).await?;
    let Some(newest) = ids.last() else {
        return Err(CatalogueError::NoBackup { cluster: cluster.clone() });
    };
    if text == "latest" {
        return Ok(newest.clone());
    }
    let matching: Vec<String> = ids.iter().filter(|id| id.starts_with(text)).cloned().collect();
    match (ids.iter().find(|id| *id == text), &matching[..]) {
        (Some(id), _) | (None, [id]) => Ok(id.clone()),
        (None, []) => Err(CatalogueError::Unknown { cluster: cluster.clone(), text: text.to_owned() }),
        (None, _) => Err(CatalogueError::Ambiguous { text: text.to_owned(), ids: matching }),
    }
}

/// Everything about one backup; `id` as for [`resolve`].
pub async fn info(
    repository: &Repository,
    cluster: &ClusterName,
    id: &str,
) -> Result<BackupDetail, CatalogueError> {
    let id = resolve(repository, cluster, id).await?;
    let manifest: Manifest = repository.manifest(cluster, &id).await?;
    let state = crate::reachable::ArchiveState::read(repository, cluster).await?;
    BackupDetail::of(repository, cluster, &state, &manifest).await
}

#[cfg(test)]
mod tests;
