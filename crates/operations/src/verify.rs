//! Verify: whether what is stored is whole, by reading, opening and digesting it again.
//!
//! Manifests and file lists are read each time, for they tell what everything else is; packs and WAL segments as far as the
//! request allows, those first that were proved longest ago. Packs are shared by backups, so a proof is one of packs. What was
//! proved is written down ([`repository::proof`]), also when the run ends early.
//!
//! Nothing is called damaged that was looked at once: a second look must see the same. A storage that does not answer says
//! nothing about what it holds, and ends the run.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use repository::proof::{Look, Proofs};
use repository::{ClusterName, PackId, Repository, RepositoryError, layout};
use serde::Serialize;

use crate::failpoint;
use crate::findings::{Finding, Severity};
use crate::monitor::{Event, Monitor};
use crate::reachable::ReachableError;

pub(crate) mod known;
mod naming;
mod packs;
mod selection;
mod subjects;
mod wal;
mod walk;

use known::standing_damage;
pub use known::{KnownDamage, known_damage};
pub use selection::Budget;

/// Packs that are read between two walks through the file lists, which say what is in them: 20 GiB.
const BATCH_PACKS: usize = 1024;

/// What to verify.
#[derive(Clone, Debug)]
pub struct VerifyRequest {
    /// The cluster.
    pub cluster: ClusterName,
    /// Ids of backups; all of them, and all WAL, when there is none.
    pub backups: Vec<String>,
    /// How much to read.
    pub budget: Option<Budget>,
    /// Leaves out what was proved within this time.
    pub older_than: Option<Duration>,
    /// How many threads' worth of work at the same time.
    pub workers: usize,
    /// Who verifies, for the proof.
    pub host: String,
    /// Set to end the run early; what was proved is written down.
    pub stop: Arc<AtomicBool>,
}

/// Why it could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A writer credential opens nothing.
    #[error("verifying reads what is stored, and a writer credential only adds")]
    WriterOnly,
    /// Somebody wanted it to end.
    #[error("it was interrupted")]
    Interrupted,
    /// The repository could not be read or written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The WAL archive could not be read.
    #[error(transparent)]
    Reachable(#[from] ReachableError),
}

/// What a verification saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VerifyReport {
    /// The cluster.
    pub cluster: String,
    /// Backups whose manifests and file lists were read.
    pub backups: usize,
    /// Packs and segments of WAL that there are to verify.
    pub packs: usize,
    /// Segments of WAL that there are to verify.
    pub segments: usize,
    /// Bytes of both.
    pub bytes: u64,
    /// Packs that were found whole.
    pub packs_proved: usize,
    /// Segments of WAL that were found whole.
    pub segments_proved: usize,
    /// Stored bytes of packs and WAL that were read.
    pub bytes_read: u64,
    /// Pages whose checksums match, or which WAL repairs.
    pub pages_verified: u64,
    /// Of packs and segments the one that was proved longest ago, after this run; `None` while one was never proved.
    pub oldest_proof: Option<Timestamp>,
    /// Packs and segments that were never proved, after this run.
    pub never_proved: usize,
    /// What was found, the gravest first.
    pub findings: Vec<Finding>,
    /// Whether everything that was asked for was looked at.
    pub complete: bool,
}

impl VerifyReport {
    /// Whether something is damaged.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Damage)
    }
}

/// How a verification ended.
#[derive(Debug)]
pub struct Verified {
    /// What it saw.
    pub report: VerifyReport,
    /// Why it ended early.
    pub stopped: Option<VerifyError>,
}

/// Verifies. Damage is part of the report; what cannot be looked at ends the run, and what was seen until then is written
/// down and reported all the same. `Err` means that it could not begin.
pub async fn verify(
    repository: &Repository,
    request: &VerifyRequest,
    monitor: Arc<dyn Monitor>,
) -> Result<Verified, VerifyError> {
    if !repository.access().can_read() {
        return Err(VerifyError::WriterOnly);
    }
    // What this host has kept must not stand in for what the storage has.
    let repository = Arc::new(repository.without_cache());
    let now = Timestamp::now();
    let clock = repository.storage_clock().await?.unwrap_or(now);
    let look = Look {
        at_us: clock.as_microsecond(),
        host_us: now.as_microsecond(),
        host: request.host.clone(),
        ..Look::default()
    };
    let proofs = repository.proofs(&request.cluster).await?;
    let report = VerifyReport { cluster: request.cluster.to_string(), complete: true, ..Default::default() };
    let mut run = Run { repository, request, monitor, report, proofs, look };
    let ended = run.everything().await;
    let recorded = run.record(true).await;
    let stopped = ended.err().or(recorded.err());
    run.report.complete = stopped.is_none();
    run.report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(Verified { report: run.report, stopped })
}

/// A verification on its way.
struct Run<'r> {
    repository: Arc<Repository>,
    request: &'r VerifyRequest,
    monitor: Arc<dyn Monitor>,
    report: VerifyReport,
    /// All that is known to be proved.
    proofs: Proofs,
    /// What this run saw and has not written down yet.
    look: Look,
}

impl Run<'_> {
    async fn everything(&mut self) -> Result<(), VerifyError> {
        self.monitor.event(Event::Phase("read manifests"));
        let mut subjects = subjects::read(self).await?;
        let (repository, cluster) = (&self.repository, &self.request.cluster);
        let state = crate::check::wal::state(repository, cluster, &mut self.report.findings).await?;
        let selection = selection::select(self, &subjects, &state)?;
        let total = selection.bytes();
        let mut damaged = packs::DamagedPacks::default();
        let mut batches: VecDeque<Vec<PackId>> =
            selection.packs.chunks(BATCH_PACKS).map(<[PackId]>::to_vec).collect();
        if batches.is_empty() {
            // The lists are read all the same.
            batches.push_back(Vec::new());
        }
        let mut taken: HashSet<PackId> = selection.packs.iter().copied().collect();
        let (mut ended, mut number) = (Ok(()), 0);
        while let Some(batch) = batches.pop_front() {
            self.monitor.event(Event::Phase("read file lists"));
            let pieces = walk::pieces(self, &subjects, &batch, number == 0).await?;
            self.monitor.event(Event::Phase("verify packs"));
            self.monitor.event(Event::Total { bytes: total, files: 0 });
            let moved;
            (moved, ended) = packs::verify(self, &subjects, &batch, pieces, &mut damaged).await;
            self.record(false).await?;
            if ended.is_err() {
                break;
            }
            number += 1;
            // Prune is at work as well: what it moved is read where it is now.
            if !moved.is_empty() {
                subjects.place(self).await?;
                let now = moved.iter().flat_map(|id| subjects.places.packs(*id));
                batches.push_back(now.filter(|id| taken.insert(*id)).collect());
            }
        }
        // What was found so far is named whatever ended the reading; a storage that is gone cannot tell the names.
        let named = naming::name(self, &subjects, &damaged).await;
        ended?;
        named?;
        wal::verify(self, &subjects, &state, &selection.segments).await?;
        selection::tell_rest(self, &subjects, &state);
        self.tell_known(&subjects).await
    }

    /// Adds what was found damaged earlier and was not looked at this time.
    async fn tell_known(&mut self, subjects: &subjects::Subjects) -> Result<(), VerifyError> {
        let mut proofs = self.proofs.clone();
        proofs.add(&self.look);
        for (object, damage) in standing_damage(&self.repository, &proofs).await? {
            let hurt: Vec<String> = subjects.hurt_by(damage).cloned().collect();
            let concerns =
                if damage.backups.is_empty() { self.request.backups.is_empty() } else { !hurt.is_empty() };
            if concerns {
                let known = "it was found so earlier, and not looked at this time";
                known::tell(&mut self.report.findings, object, damage, known, hurt);
            }
        }
        Ok(())
    }

    /// Writes down what was seen; at the end, many proofs become one.
    async fn record(&mut self, is_end: bool) -> Result<(), VerifyError> {
        let next = Look {
            at_us: self.look.at_us,
            host_us: self.look.host_us,
            host: self.look.host.clone(),
            ..Look::default()
        };
        let cluster = &self.request.cluster;
        if self.look != next {
            let look = std::mem::replace(&mut self.look, next);
            failpoint::reach("verify.seen");
            self.repository.record_proof(cluster, &look, &mut self.proofs).await?;
            failpoint::reach("verify.recorded");
        }
        if is_end && self.proofs.are_many() {
            let keep = self.packs_to_keep().await?;
            let superseded =
                self.repository.merge_proofs(cluster, &mut self.proofs, |id| keep.contains(&id)).await?;
            failpoint::reach("verify.merged");
            self.repository.remove_proofs(&superseded).await;
            failpoint::reach("verify.removed");
        }
        Ok(())
    }

    /// The packs that somebody may still ask for: those that are stored, and those that a backup misses.
    async fn packs_to_keep(&self) -> Result<HashSet<PackId>, VerifyError> {
        let mut keep: HashSet<PackId> = self.repository.pack_sizes().await?.into_keys().collect();
        let ids: HashSet<String> =
            self.repository.backup_ids(&self.request.cluster).await?.into_iter().collect();
        let known = standing_damage(&self.repository, &self.proofs).await?;
        let missed = known.iter().filter(|(_, damage)| damage.backups.iter().any(|id| ids.contains(id)));
        keep.extend(missed.filter_map(|(object, _)| layout::parse_pack(object)));
        Ok(keep)
    }

    fn check_stop(&self) -> Result<(), VerifyError> {
        if self.request.stop.load(Ordering::Acquire) { Err(VerifyError::Interrupted) } else { Ok(()) }
    }
}
