//! Expiring: backups that the policy keeps no longer go, and the WAL that nothing which is kept needs.
//!
//! [`plan`] looks and decides, [`execute`] does what a plan lists and nothing else. It looks again, alone by a lease, before
//! it deletes, so one false answer of a storage is not enough to lose anything. A backup goes note first, then manifest; WAL
//! goes after the backups, oldest first. Whatever is interrupted is finished by the next run. Packs are prune's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pg::Lsn;
use repository::backups::ChainFinding;
use repository::expired::ExpiredNote;
use repository::lease::{Lease, LeaseError};
use repository::{ClusterName, Repository, RepositoryError, layout};
use serde::Serialize;

use crate::failpoint;
use crate::prune::MAINTENANCE;
use crate::reachable::ReachableError;
use crate::retention::{Policy, decide, policy_now};

mod facts;
mod wal;

pub use facts::Damaged;
pub use wal::{LockedWal, WalLine};

use facts::look;

/// WAL objects that are deleted between two questions whether the lease is still ours.
const BATCH: usize = 200;

/// Why nothing was planned, or not everything done.
#[derive(Debug, thiserror::Error)]
pub enum ExpireError {
    /// The repository could not be read or written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The WAL archive could not be read.
    #[error(transparent)]
    Reachable(#[from] ReachableError),
    /// The lease was not to be had, or was lost.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A listing left out what is stored.
    #[error("the storage's listing lacks {what}, which is stored: nothing can be decided by it")]
    Listing {
        /// What it lacks.
        what: String,
    },
    /// Backups that this host saw are missing.
    #[error("{finding}: nothing is expired from such a repository")]
    RolledBack {
        /// What is missing.
        finding: ChainFinding,
    },
    /// Something is not as it was when the plan was made.
    #[error("since the plan was made, {what}; nothing was deleted")]
    Changed {
        /// What happened.
        what: String,
    },
}

/// What becomes of one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackupLine {
    /// Its id.
    pub id: String,
    /// Whether it stays.
    pub keep: bool,
    /// Whether every moment from its end on stays restorable.
    pub in_window: bool,
    /// When it was consistent, by the server's clock.
    pub ended: Option<Timestamp>,
    /// Bytes of the database's files in it.
    pub bytes: u64,
    /// Why.
    pub reason: String,
    /// Until when it is locked, of one that would go if it were not.
    pub locked_until: Option<Timestamp>,
    #[serde(skip)]
    digest: Vec<u8>,
}

/// What is going to be deleted, and what stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The cluster.
    pub cluster: String,
    /// The time by which was decided; `None` without a good backup.
    pub now: Option<Timestamp>,
    /// Every backup, in the order in which they were made.
    pub backups: Vec<BackupLine>,
    /// WAL before this position goes where no backup that is kept needs it; `None` if none goes.
    pub wal_before: Option<Lsn>,
    /// The WAL that goes, oldest first.
    pub wal: Vec<WalLine>,
    /// WAL that would go if it were not locked.
    pub wal_locked: LockedWal,
    /// Expired backups whose notes nothing asks for any more.
    pub notes: Vec<String>,
}

impl Plan {
    /// The backups that go.
    pub fn expired(&self) -> impl Iterator<Item = &BackupLine> {
        self.backups.iter().filter(|line| !line.keep)
    }

    /// Whether there is nothing to delete.
    pub fn is_empty(&self) -> bool {
        self.expired().next().is_none() && self.wal.is_empty() && self.notes.is_empty()
    }

    /// Bytes of the WAL that goes.
    pub fn wal_bytes(&self) -> u64 {
        self.wal.iter().map(|line| line.bytes).sum()
    }
}

/// What to expire, and by whom.
#[derive(Clone, Debug)]
pub struct ExpireRequest {
    /// The cluster.
    pub cluster: ClusterName,
    /// The policy.
    pub policy: Policy,
    /// This host's clock; others may hold it back, none drives it ahead.
    pub host_clock: Timestamp,
    /// Backups that are proved to be damaged.
    pub damaged: Damaged,
    /// Who does it, for people.
    pub holder: String,
    /// How long to wait for somebody else who keeps the repository in order.
    pub patience: Duration,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Backups that are gone.
    pub backups_expired: Vec<String>,
    /// WAL objects that are gone.
    pub wal_objects: usize,
    /// Their bytes.
    pub wal_bytes: u64,
}

/// Looks at the repository and decides.
pub async fn plan(repository: &Repository, request: &ExpireRequest) -> Result<Plan, ExpireError> {
    let looked = look(repository, request).await?;
    let facts: Vec<_> = looked.backups.iter().map(|backup| backup.fact.clone()).collect();
    let clocks: Vec<_> = looked.storage_clock.into_iter().chain([request.host_clock]).collect();
    let now = policy_now(&facts, &clocks);
    let decisions = decide(&request.policy, now, &facts);
    let mut lines: Vec<_> = looked
        .backups
        .iter()
        .zip(decisions)
        .map(|(backup, decision)| BackupLine {
            id: backup.fact.id.clone(),
            keep: decision.keep,
            in_window: decision.in_window,
            ended: backup.fact.stop,
            bytes: backup.bytes,
            reason: decision.reason,
            locked_until: None,
            digest: backup.digest.clone(),
        })
        .collect();
    let lock_clock = looked.storage_clock.unwrap_or(request.host_clock);
    keep_locked(repository, &request.cluster, lock_clock, &mut lines).await?;
    let (mut wal_before, mut wal, mut notes) = (None, Vec::new(), Vec::new());
    // A backup at work needs WAL from where it began, which nobody knows but itself.
    let first_in_window = lines.iter().find(|line| line.keep && line.in_window).map(|line| line.id.as_str());
    let began_before = |id: &String| first_in_window.is_some_and(|first| id.as_str() < first);
    let all_wal_may_be_needed = looked.at_work.iter().any(began_before);
    if now.is_some() && !all_wal_may_be_needed {
        (wal_before, wal) = wal::plan(&looked.archive, &looked.backups, &lines);
    }
    if now.is_some() {
        notes = looked.idle_notes();
    }
    let wal_locked = wal::leave_locked(repository, &request.cluster, lock_clock, &mut wal).await?;
    Ok(Plan { cluster: request.cluster.to_string(), now, backups: lines, wal_before, wal, wal_locked, notes })
}

/// Keeps what would go and is locked: a bucket would only hide it.
async fn keep_locked(
    repository: &Repository,
    cluster: &ClusterName,
    now: Timestamp,
    lines: &mut [BackupLine],
) -> Result<(), ExpireError> {
    let going: Vec<&mut BackupLine> = lines.iter_mut().filter(|line| !line.keep).collect();
    let names = going.iter().map(|line| layout::manifest(cluster, &line.id)).collect::<Vec<_>>();
    let locks = repository.locks(names, now).await?;
    for (line, until) in going.into_iter().zip(locks).filter_map(|(line, lock)| Some((line, lock?))) {
        line.keep = true;
        line.locked_until = Some(until);
        line.reason = format!("locked until {until:.0}; then: {}", line.reason);
    }
    Ok(())
}

/// Does what the plan lists. Nothing is deleted before the lease is had and the repository was looked at again.
pub async fn execute(
    repository: &Arc<Repository>,
    planned: &Plan,
    request: &ExpireRequest,
) -> Result<Report, ExpireError> {
    if planned.is_empty() {
        return Ok(Report::default());
    }
    let mut lease = Lease::take(repository, MAINTENANCE, &request.holder, request.patience).await?;
    failpoint::reach("expire.leased");
    let done = delete(repository, planned, request, &mut lease).await;
    // What went wrong before matters more than whether the lease could be given back.
    match (done, lease.release().await) {
        (Ok(report), Ok(())) => Ok(report),
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(error), _) => Err(error),
    }
}

async fn delete(
    repository: &Repository,
    planned: &Plan,
    request: &ExpireRequest,
    lease: &mut Lease,
) -> Result<Report, ExpireError> {
    let fresh = plan(repository, request).await?;
    confirm(planned, &fresh)?;
    let mut report = Report::default();
    let when = repository.storage_clock().await?.unwrap_or(request.host_clock).as_microsecond();
    let note = |why: &str, digest: &[u8]| ExpiredNote {
        who: request.holder.clone(),
        expired_us: when,
        why: why.to_owned(),
        digest: digest.to_vec(),
    };
    for line in planned.expired().filter(|line| fresh.expired().any(|still| still.id == line.id)) {
        lease.confirm().await?;
        repository.note_expired(&request.cluster, &line.id, &note(&line.reason, &line.digest)).await?;
        failpoint::reach("expire.noted");
        repository.delete_manifest(&request.cluster, &line.id).await?;
        failpoint::reach("expire.manifest-deleted");
        report.backups_expired.push(line.id.clone());
    }
    // What another run has deleted since is not there any more.
    let there: BTreeSet<&str> = fresh.wal.iter().map(|line| line.name.as_str()).collect();
    let wal: Vec<&WalLine> = planned.wal.iter().filter(|line| there.contains(line.name.as_str())).collect();
    if let Some(position) = planned.wal_before.filter(|_| !wal.is_empty()) {
        lease.confirm().await?;
        repository.note_expired_wal(&request.cluster, position, &note("WAL", &[])).await?;
        failpoint::reach("expire.wal-noted");
        for batch in wal.chunks(BATCH) {
            lease.confirm().await?;
            for line in batch {
                line.delete(repository, &request.cluster).await?;
                failpoint::reach("expire.wal-deleted");
                report.wal_objects += 1;
                report.wal_bytes += line.bytes;
            }
        }
        repository.remove_older_wal_notes(&request.cluster, position).await?;
    }
    for id in &planned.notes {
        // First the claim: without the note it would look like that of a backup at work.
        repository.remove_claim(&request.cluster, id).await?;
        repository.remove_expired_note(&request.cluster, id).await?;
    }
    Ok(report)
}

/// Refuses to go on if what is there now would not have led to this plan.
fn confirm(planned: &Plan, fresh: &Plan) -> Result<(), ExpireError> {
    let changed = |what: String| Err(ExpireError::Changed { what });
    let now: BTreeMap<&str, &BackupLine> =
        fresh.backups.iter().map(|line| (line.id.as_str(), line)).collect();
    for line in &planned.backups {
        match now.get(line.id.as_str()) {
            None if line.keep => {
                return changed(format!("backup {}, which was to be kept, has gone", line.id));
            }
            Some(found) if found.keep && !line.keep => {
                return changed(format!("backup {} has come to be kept: {}", line.id, found.reason));
            }
            // Or somebody else expired it.
            _ => {}
        }
    }
    if fresh.wal_before < planned.wal_before {
        return changed("WAL of the plan has come to be needed".to_owned());
    }
    Ok(())
}
