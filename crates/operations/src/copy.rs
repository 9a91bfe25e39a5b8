//! Copying backups and WAL into another repository, sealed anew under its keys.
//!
//! Digests and seals are each repository's own, so that nothing is copied as it is stored: pages are opened, checked and
//! added to packs of the target, and the file lists are written anew with the new places. What stands in the target is
//! remembered for the next backup, and found again by a later run in the backups that both have.
//! WAL comes first: it is what a second repository is the fresher for. A manifest comes last.

mod attempt;
mod backup;
mod carry;
mod error;
mod places;
mod plan;
pub(crate) mod reader;
mod share;
mod wal;
mod writer;

use std::sync::Arc;

use repository::{ClusterName, Repository};
use serde::Serialize;

use crate::catalogue::DamagedBackup;
use crate::monitor::{Event, Monitor};
use crate::owner::holder;
use backup::Copier;
pub use carry::{Carried, carry};
pub use error::CopyError;
pub use plan::{Plan, PlannedBackup, plan};

/// What to copy.
#[derive(Clone, Debug)]
pub struct CopyRequest {
    /// The cluster, which has the same name in both repositories.
    pub cluster: ClusterName,
    /// Backups as people name them, with the WAL between start and stop of each; none of them: all, with all WAL.
    pub backups: Vec<String>,
    /// All WAL and no backup.
    pub only_wal: bool,
    /// Files of the archive that are copied at once.
    pub workers: usize,
    /// zstd's level in the target, 1 to 19.
    pub level: i32,
    /// Stored bytes after which it is noted what there is of a backup on its way.
    pub note_every: u64,
}

/// What a copy did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CopyReport {
    /// Backups that the target has now.
    pub backups: Vec<String>,
    /// Bytes of packs that were stored.
    pub stored_bytes: u64,
    /// Files of the archive that the target has now, parts of segments included.
    pub wal_files: u64,
    /// Backups that were not copied because they are damaged, or lack their WAL.
    pub damaged: Vec<DamagedBackup>,
    /// Files of the archive that were not copied because they are damaged.
    pub damaged_wal: Vec<String>,
}

impl CopyReport {
    /// True if everything that was planned is in the target.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.damaged_wal.is_empty()
    }
}

/// Copies what the plan says.
pub async fn execute(
    source: &Arc<Repository>,
    target: &Arc<Repository>,
    plan: &Plan,
    request: &CopyRequest,
    monitor: &dyn Monitor,
) -> Result<CopyReport, CopyError> {
    let mut report = CopyReport { damaged: plan.damaged.clone(), ..CopyReport::default() };
    target.bind(&request.cluster, &plan.identity).await.map_err(CopyError::TargetWal)?;
    monitor.event(Event::Phase("copy WAL"));
    wal::copy(source, target, plan, request, monitor, &mut report).await?;
    monitor.event(Event::Phase("copy backups"));
    let bytes = plan.backups.iter().map(|backup| backup.bytes).sum();
    monitor.event(Event::Total { bytes, files: 0 });
    for backup in &plan.backups {
        claim(target, request, &backup.id).await.map_err(CopyError::Target)?;
    }
    let mut copier = Copier::new(source, target, plan, request, monitor);
    let outcome = copier.everything(&mut report).await;
    for backup in plan.backups.iter().filter(|backup| !report.backups.contains(&backup.id)) {
        target.withdraw_claim(&request.cluster, &backup.id).await;
    }
    report.stored_bytes = copier.stored_bytes();
    target.local().trim(crate::backup::LOCAL_LIMIT);
    outcome.map(|()| report)
}

/// Claims a backup, before anything that the target has is named for it. A run that died left its claim, which may be about
/// to end.
async fn claim(
    target: &Repository,
    request: &CopyRequest,
    id: &str,
) -> Result<(), repository::RepositoryError> {
    if target.has_claim(&request.cluster, id).await? {
        target.withdraw_claim(&request.cluster, id).await;
    }
    target.claim(&request.cluster, id, &holder()).await
}
