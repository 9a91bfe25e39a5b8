//! Reclaiming space that nobody names, in two steps with a time of grace between them.
//!
//! A pack that no backup names is first marked, and deleted by a later run, when the mark is old enough and still nobody
//! names it. A pack of which little is named has its named pages moved to a new pack, and goes the same way. Operations
//! at work name packs that no manifest names yet: they have claims, and nothing goes that was marked after an unfinished
//! claim began. So prune stays right when two of them run at once; its lease only saves them the work.

mod arrival;
mod live;
mod marked;
mod plan;
mod repack;
mod roots;
mod unlisted;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use repository::chunk::CodecError;
use repository::lease::{Lease, LeaseError};
use repository::mark::{MARK_PACKS, MarkNote};
use repository::{PackId, Repository, RepositoryError, layout};
use serde::Serialize;
use storage::{ObjectName, StorageError};

use crate::failpoint;
use crate::monitor::{Event, Monitor};
use arrival::Arrival;
use marked::{Marked, MarkedPacks};
pub use plan::{Plan, PlannedPack, RepackedPack, plan};
use repack::Mover;
use roots::Roots;
use usage::Wanted;

/// The lease for whatever deletes, moves or re-seals what is stored.
pub const MAINTENANCE: &str = "maintenance";
/// After so many deletes the lease is asked for again.
const DELETES: usize = 64;

/// How to prune.
#[derive(Clone, Debug)]
pub struct PruneRequest {
    /// How long after its mark a pack stays. Longer than a listing can be stale, and than a host's idea of what is stored.
    pub grace: Duration,
    /// Stored bytes that are moved at most out of packs that are mostly dead; 0 moves none.
    pub max_repack: u64,
    /// A pack is moved when less than this part of it, in percent, is named.
    pub repack_below: u8,
    /// zstd's level for what is moved, 1 to 19.
    pub level: i32,
}

impl Default for PruneRequest {
    fn default() -> Self {
        Self { grace: Duration::from_secs(2 * 24 * 3600), max_repack: 10 << 30, repack_below: 50, level: 1 }
    }
}

impl PruneRequest {
    fn grace(&self) -> SignedDuration {
        SignedDuration::try_from(self.grace).unwrap_or(SignedDuration::MAX)
    }
}

/// Why nothing, or nothing more, was pruned. What was done until then is right, and the next run goes on.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// What a backup names cannot be read, so that anything may be named by it.
    #[error("{what} is unreadable, and what it names is unknown; nothing is pruned while it is there")]
    Unreadable {
        /// The backup.
        what: String,
        /// Why.
        source: RepositoryError,
    },
    /// A listing left out what is stored.
    #[error("the storage's listing lacks {what}, which is stored: nothing can be decided by it")]
    Listing {
        /// What it lacks.
        what: String,
    },
    /// A compressed chunk did not survive its check.
    #[error(transparent)]
    Codec(CodecError),
    /// Somebody else is at it.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The repository could not be read or written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// What a run of prune did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Packs that are gone.
    pub deleted_packs: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Packs that were marked, to be deleted later.
    pub marked_packs: u64,
    /// Their bytes.
    pub marked_bytes: u64,
    /// Packs whose named pages were moved.
    pub moved_packs: u64,
    /// Stored bytes that were named in them.
    pub moved_bytes: u64,
    /// Packs that were found locked when they should go.
    pub locked_packs: u64,
    /// When the first of these locks ends.
    pub locked_until: Option<Timestamp>,
    /// Other objects that are gone: records of attempts, claims, marks and moves that tell nothing any more.
    pub deleted_others: u64,
}

/// Does what the plan says, as far as it still holds: everything is looked at again before it goes.
pub async fn execute(
    repository: &Arc<Repository>,
    plan: &Plan,
    request: &PruneRequest,
    holder: &str,
    monitor: &dyn Monitor,
) -> Result<PruneReport, PruneError> {
    let mut lease = Lease::take(repository, MAINTENANCE, holder, Duration::from_secs(60)).await?;
    let mut run = Run { repository, plan, report: PruneReport::default(), lease: &mut lease, monitor };
    let outcome = run.everything(request).await;
    let report = run.report;
    if let Err(error) = lease.release().await {
        tracing::warn!(%error, "the lease is not given back; it ends by itself");
    }
    outcome.map(|()| report)
}

struct Run<'r> {
    repository: &'r Arc<Repository>,
    plan: &'r Plan,
    report: PruneReport,
    lease: &'r mut Lease,
    monitor: &'r dyn Monitor,
}

impl Run<'_> {
    async fn everything(&mut self, request: &PruneRequest) -> Result<(), PruneError> {
        self.monitor.event(Event::Phase("move"));
        let moved = self.repack(request).await?;
        self.monitor.event(Event::Phase("mark"));
        self.mark(&moved).await?;
        failpoint::reach("prune.marked");
        self.monitor.event(Event::Phase("delete"));
        // Claims first: whoever took longer than a claim holds finds it gone before anything else is.
        self.remove(&self.plan.ended).await?;
        self.sweep(request.grace()).await?;
        failpoint::reach("prune.swept");
        Ok(())
    }

    async fn repack(&mut self, request: &PruneRequest) -> Result<Vec<PackId>, PruneError> {
        let mut mover = Mover::new(self.repository, request.level, self.monitor);
        for pack in &self.plan.repack {
            match mover.take(pack.id, &pack.usage, self.lease).await {
                Err(PruneError::Repository(error)) if error.is_damage() => {
                    tracing::warn!(pack = %pack.id, %error, "a pack is not moved: it is damaged");
                    continue;
                }
                other => other?,
            }
            self.report.moved_packs += 1;
            self.report.moved_bytes += pack.named_bytes;
        }
        if !self.plan.repack.is_empty() {
            mover.finish(self.lease).await?;
        }
        Ok(mover.moved)
    }

    async fn mark(&mut self, moved: &[PackId]) -> Result<(), PruneError> {
        let plan = self.plan;
        let dead: Vec<PackId> = plan.mark_dead.iter().map(|pack| pack.id).collect();
        let moved: Vec<PackId> =
            plan.mark_moved.iter().map(|pack| pack.id).chain(moved.iter().copied()).collect();
        self.lease.confirm().await?;
        let groups = dead.len().max(moved.len()).div_ceil(MARK_PACKS);
        for group in 0..groups {
            let part = |ids: &[PackId]| -> Vec<PackId> {
                ids.iter().skip(group * MARK_PACKS).take(MARK_PACKS).copied().collect()
            };
            let note = MarkNote::new(&part(&dead), &part(&moved), plan.backups.clone());
            self.repository.write_mark(plan.made.unwrap_or_else(Timestamp::now), &note).await?;
        }
        self.report.marked_packs = (dead.len() + moved.len()) as u64;
        self.report.marked_bytes = plan.mark_dead.iter().chain(&plan.mark_moved).map(|pack| pack.bytes).sum();
        self.report.marked_bytes += plan.repack.iter().map(|pack| pack.bytes).sum::<u64>();
        Ok(())
    }

    /// Deletes what was planned, unless somebody names it by now or may be about to.
    async fn sweep(&mut self, grace: SignedDuration) -> Result<(), PruneError> {
        let plan = self.plan;
        if plan.delete_dead.is_empty() && plan.delete_moved.is_empty() {
            return Ok(());
        }
        let now = self.repository.storage_clock().await?;
        let roots = Roots::read(self.repository, &plan.marks, now).await?.add_moved(self.repository).await?;
        let marked = MarkedPacks::of(&plan.marks, &roots, grace, now);
        let is_dead = |pack: &&PlannedPack| {
            marked.dead.get(&pack.id) == Some(&Marked::Ripe) && !roots.live.contains(pack.id)
        };
        let still_dead: Vec<PlannedPack> = plan.delete_dead.iter().filter(is_dead).cloned().collect();
        self.delete_packs(&still_dead, true, now).await?;
        let is_ripe = |pack: &&PlannedPack| marked.moved.get(&pack.id) == Some(&Marked::Ripe);
        let ripe: Vec<&PlannedPack> = plan.delete_moved.iter().filter(is_ripe).collect();
        if ripe.is_empty() {
            return Ok(());
        }
        // A backup may have been published that names a page which was dead when the others were moved. It may name it where it
        // was before an earlier move: so the walk follows all of them.
        let all = roots.moved.iter().chain(&plan.moved).chain(ripe.iter().map(|pack| &pack.id));
        let wanted = Wanted { moved: all.map(|id| (*id, false)).collect(), ..Wanted::default() };
        let found = wanted.walk(self.repository, &roots).await?;
        let (mut arrival, mut unnamed) = (Arrival::new(self.repository), Vec::new());
        for pack in ripe.into_iter().filter(|pack| found.moved.get(&pack.id) == Some(&false)) {
            // Looking takes its time.
            self.lease.confirm().await?;
            match arrival.check(pack.id).await {
                Ok(true) => unnamed.push(pack.clone()),
                Ok(false) => {}
                Err(error) if error.is_damage() => {
                    tracing::warn!(pack = %pack.id, %error, "a pack stays, for its pages are not whole where they were moved to");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.delete_packs(&unnamed, false, now).await
    }

    /// Deletes packs that are not locked, and if nobody names them the record of where their pages were moved to.
    async fn delete_packs(
        &mut self,
        packs: &[PlannedPack],
        with_record: bool,
        now: Option<Timestamp>,
    ) -> Result<(), PruneError> {
        let now = now.unwrap_or_else(Timestamp::now);
        for batch in packs.chunks(DELETES) {
            self.lease.confirm().await?;
            let locks = plan::locks(self.repository, batch, with_record, now).await?;
            for (pack, lock) in batch.iter().zip(locks) {
                match lock {
                    Some(until) => self.found_locked(until),
                    None => self.delete_pack(pack, with_record, now).await?,
                }
            }
        }
        Ok(())
    }

    fn found_locked(&mut self, until: Timestamp) {
        self.report.locked_packs += 1;
        let first = self.report.locked_until.map_or(until, |first| first.min(until));
        self.report.locked_until = Some(first);
    }

    async fn delete_pack(
        &mut self,
        pack: &PlannedPack,
        with_record: bool,
        now: Timestamp,
    ) -> Result<(), PruneError> {
        let (storage, name) = (self.repository.storage(), layout::pack(pack.id));
        match storage.delete(&name).await {
            Ok(()) => {
                self.report.deleted_packs += 1;
                self.report.deleted_bytes += pack.bytes;
            }
            Err(StorageError::NotFound { .. }) => {}
            // Somebody else may have locked it: the bucket itself, by its default.
            Err(refused @ StorageError::Refused { .. }) => match storage.locked_until(&name).await {
                Ok(Some(until)) if until > now => {
                    self.found_locked(until);
                    return Ok(());
                }
                _ => return Err(RepositoryError::from(refused).into()),
            },
            Err(error) => return Err(RepositoryError::from(error).into()),
        }
        failpoint::reach("prune.deleted");
        if with_record {
            storage.remove(&layout::moved(pack.id)).await.map_err(RepositoryError::from)?;
        }
        Ok(())
    }

    async fn remove(&mut self, names: &[ObjectName]) -> Result<(), PruneError> {
        for (number, name) in names.iter().enumerate() {
            if number.is_multiple_of(DELETES) {
                self.lease.confirm().await?;
            }
            self.repository.storage().remove(name).await.map_err(RepositoryError::from)?;
            self.report.deleted_others += 1;
        }
        Ok(())
    }
}
