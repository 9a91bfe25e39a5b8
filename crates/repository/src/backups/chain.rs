//! The chain of manifests and what this host saw: a bucket that was rolled back or robbed of a backup is noticed.

use serde::{Deserialize, Serialize};

use super::Listed;
use crate::expired::Expired;
use crate::layout::ClusterName;
use crate::local::Drawer;
use crate::manifest::Manifest;
use crate::repository::{Repository, RepositoryError};

/// What the chain of manifests and this host's memory say about a cluster's backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainFinding {
    /// A backup that a later one names as its predecessor is not there.
    Missing {
        /// The backup that is gone.
        id: String,
        /// The backup that names it.
        named_by: String,
    },
    /// The predecessor is not the one that was there when the later backup was made.
    Replaced {
        /// The backup that was exchanged.
        id: String,
        /// The backup that names it.
        named_by: String,
    },
    /// This host saw a newer backup than any that is there now.
    RolledBack {
        /// The newest that this host saw.
        newest_seen: String,
    },
}

impl std::fmt::Display for ChainFinding {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { id, named_by } => {
                write!(out, "backup {id}, which {named_by} follows, is missing")
            }
            Self::Replaced { id, named_by } => {
                write!(out, "backup {id} is not the one that {named_by} follows")
            }
            Self::RolledBack { newest_seen } => {
                write!(
                    out,
                    "backup {newest_seen}, which this host saw, is missing: the storage was rolled back"
                )
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Newest {
    id: String,
    sequence: u64,
}

impl Repository {
    /// Compares the chain of manifests with what is there and with what this host saw last, which is then brought up
    /// to date. What was expired is missed by nobody; `expired` must have been read after `listed`, because a note is
    /// written before its manifest goes.
    pub fn check_chain(
        &self,
        cluster: &ClusterName,
        listed: &[Listed],
        expired: &Expired,
    ) -> Vec<ChainFinding> {
        let mut findings = Vec::new();
        for backup in listed {
            let Ok(manifest) = &backup.manifest else { continue };
            let (id, named_by) = (manifest.previous_id.clone(), backup.id.clone());
            if id.is_empty() {
                continue;
            }
            match listed.iter().find(|other| other.id == id) {
                None if expired.backups.contains(&id) => {}
                None => findings.push(ChainFinding::Missing { id, named_by }),
                Some(other)
                    if other.digest.is_some_and(|digest| digest[..] != manifest.previous_digest[..]) =>
                {
                    findings.push(ChainFinding::Replaced { id, named_by });
                }
                Some(_) => {}
            }
        }
        // A host that did not look for long may have seen last what was expired since, with its note. Of what was stolen
        // the oldest that is left would name a predecessor that nobody expired.
        let oldest = listed.iter().find_map(|backup| Some(backup.manifest.as_ref().ok()?.sequence));
        if let Some(seen) = self.newest_seen(cluster)
            && !listed.iter().any(|backup| backup.id == seen.id)
            && !expired.backups.contains(&seen.id)
            && oldest.is_none_or(|oldest| seen.sequence >= oldest)
        {
            findings.push(ChainFinding::RolledBack { newest_seen: seen.id });
        } else if let Some(manifest) = listed.iter().rev().find_map(|backup| backup.manifest.as_ref().ok()) {
            self.remember_newest(cluster, manifest);
        }
        findings
    }

    /// The finding that the storage lacks the newest backup which this host saw.
    pub async fn rolled_back(&self, cluster: &ClusterName) -> Result<Option<ChainFinding>, RepositoryError> {
        let Some(seen) = self.newest_seen(cluster) else { return Ok(None) };
        let ids = self.backup_ids(cluster).await?;
        let there = ids.contains(&seen.id) || self.expired(cluster).await?.backups.contains(&seen.id);
        // Older than all that are left: expired together with its note.
        let outlived = ids.first().is_some_and(|oldest| *oldest > seen.id);
        Ok((!there && !outlived).then_some(ChainFinding::RolledBack { newest_seen: seen.id }))
    }

    fn newest_seen(&self, cluster: &ClusterName) -> Option<Newest> {
        let bytes = self.local().get(Drawer::Newest, cluster.as_str())?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn remember_newest(&self, cluster: &ClusterName, manifest: &Manifest) {
        let newest = Newest { id: manifest.id.clone(), sequence: manifest.sequence };
        if self.newest_seen(cluster).is_none_or(|seen| seen.sequence <= newest.sequence) {
            let bytes = serde_json::to_vec(&newest).expect("plain fields");
            self.local().put(Drawer::Newest, cluster.as_str(), &bytes);
        }
    }
}
