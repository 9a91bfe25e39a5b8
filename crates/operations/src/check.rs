//! Check: whether everything that a repository's manifests name is there, and what can be restored, from names, sizes and
//! manifests alone. What is *in* packs, list pages and WAL is the matter of [`crate::verify`].
//!
//! One manifest is in memory at a time, and of each only which packs it names; so memory follows the number of different
//! packs.

use std::sync::Arc;

use repository::{ClusterName, Repository, RepositoryError};
use serde::Serialize;

use crate::findings::{Finding, Severity};
use crate::reachable::ReachableError;

mod locks;
mod manifests;
mod packs;
mod rest;
pub(crate) mod wal;

/// Why it could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The repository could not be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The WAL archive could not be read.
    #[error(transparent)]
    Reachable(#[from] ReachableError),
}

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// The cluster.
    pub cluster: String,
    /// Backups that are listed.
    pub backups: usize,
    /// Different packs that they name.
    pub packs: usize,
    /// WAL segments that are stored.
    pub segments: u64,
    /// What was found, the gravest first.
    pub findings: Vec<Finding>,
    /// Objects of no known name.
    pub strays: Vec<String>,
    /// What could not be looked at, and why; empty when everything was.
    pub not_looked_at: Vec<String>,
}

impl CheckReport {
    /// Whether something cannot be restored.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Damage)
    }
}

/// Checks a cluster's backups and WAL. Damage is part of the report; `Err` means that it could not be looked at.
pub async fn check(repository: &Arc<Repository>, cluster: &ClusterName) -> Result<CheckReport, CheckError> {
    // What this host has kept must not stand in for what the storage has.
    let stored = repository.without_cache();
    let mut report = CheckReport {
        cluster: cluster.to_string(),
        backups: 0,
        packs: 0,
        segments: 0,
        findings: Vec::new(),
        strays: Vec::new(),
        not_looked_at: Vec::new(),
    };
    rest::description_and_slots(&stored, &mut report.findings).await?;
    if !repository.access().can_read() {
        manifests::headers(&stored, cluster, &mut report).await?;
        return Ok(report);
    }
    let (uses, listed) = manifests::read(&stored, cluster, &mut report).await?;
    // Afterwards: a note is written before its manifest goes.
    let expired = repository.expired(cluster).await?;
    for finding in repository.check_chain(cluster, &listed, &expired) {
        report.findings.push(manifests::chain(&finding));
    }
    packs::check(&stored, uses, &listed, &mut report).await?;
    locks::check(&stored, cluster, &listed, &mut report).await?;
    let state = wal::state(&stored, cluster, &mut report.findings).await?;
    wal::check(&state, cluster, &listed, &expired, &mut report);
    rest::small_objects(&stored, cluster, &listed, &mut report).await?;
    rest::strays(&stored, cluster, &state, &mut report).await?;
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(report)
}
