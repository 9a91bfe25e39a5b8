//! What is to be copied.

use std::collections::BTreeSet;

use pg::wal::{FileName, SegmentName};
use repository::archive::{ArchiveError, Identity, Inventory, Part, WalName, cover};
use repository::manifest::{Manifest, Span};
use repository::{Repository, RepositoryError};
use serde::Serialize;

use super::{CopyError, CopyRequest};
use crate::catalogue::{DamagedBackup, resolve};
use crate::reachable::BackupPlace;

/// What is to be copied, and what need not be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// Backups that the target lacks, oldest first.
    pub backups: Vec<PlannedBackup>,
    /// Backups that both have.
    pub shared: Vec<String>,
    /// Backups that cannot be read.
    pub damaged: Vec<DamagedBackup>,
    /// How many files of the archive the target lacks, parts of segments included.
    pub wal_files: u64,
    #[serde(skip)]
    pub(crate) wal: Vec<WalName>,
    /// Parts in the target that nobody needs when the rest is there.
    #[serde(skip)]
    pub(crate) old_parts: Vec<Part>,
    #[serde(skip)]
    pub(crate) identity: Identity,
}

/// A backup that is to be copied.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedBackup {
    /// Its id.
    pub id: String,
    /// Bytes of its files.
    pub bytes: u64,
}

impl Plan {
    /// True if the target has everything.
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty() && self.wal.is_empty()
    }
}

/// Looks at both repositories; changes nothing.
pub async fn plan(
    source: &Repository,
    target: &Repository,
    request: &CopyRequest,
) -> Result<Plan, CopyError> {
    let cluster = &request.cluster;
    if source.id() == target.id() {
        return Err(CopyError::SameRepository);
    }
    let identity = source.identity(cluster).await.map_err(CopyError::Source)?;
    let identity = identity.ok_or_else(|| CopyError::NoCluster { cluster: cluster.clone() })?;
    if let Some(found) = target.identity(cluster).await.map_err(CopyError::Target)?
        && found != identity
    {
        let (found, expected) = (found.to_string(), identity.to_string());
        let cluster = cluster.clone();
        return Err(CopyError::TargetWal(ArchiveError::OtherCluster { cluster, found, expected }));
    }
    let mut plan = Plan { identity, ..Plan::default() };
    let needed = plan_backups(source, target, request, &mut plan).await?;
    // After the backups, so that none is among them whose WAL is not.
    let inventory = source.wal_inventory(cluster).await.map_err(CopyError::Source)?;
    let there = target.wal_inventory(cluster).await.map_err(CopyError::Target)?;
    plan_wal(&inventory, &there, needed.as_ref(), &mut plan);
    Ok(plan)
}

/// Plans the backups; returns the segments that they need if no other WAL is wanted.
async fn plan_backups(
    source: &Repository,
    target: &Repository,
    request: &CopyRequest,
    plan: &mut Plan,
) -> Result<Option<BTreeSet<SegmentName>>, CopyError> {
    let cluster = &request.cluster;
    if request.only_wal {
        return Ok(None);
    }
    let mut wanted = BTreeSet::new();
    for text in &request.backups {
        wanted.insert(resolve(source, cluster, text).await?);
    }
    let there = target.backup_ids(cluster).await.map_err(CopyError::Target)?;
    let expired = target.expired(cluster).await.map_err(CopyError::Target)?.backups;
    let mut needed = BTreeSet::new();
    for id in source.backup_ids(cluster).await.map_err(CopyError::Source)? {
        // What was expired there is brought again only when it is asked for.
        let is_wanted = wanted.contains(&id) || wanted.is_empty() && !expired.contains(&id);
        let is_there = there.contains(&id);
        if !is_wanted && !is_there {
            continue;
        }
        let manifest = match source.manifest(cluster, &id).await {
            Err(RepositoryError::Storage(storage::StorageError::NotFound { .. })) => continue,
            Err(error) if error.is_damage() => {
                if is_wanted {
                    plan.damaged.push(DamagedBackup { id, why: error.to_string() });
                }
                continue;
            }
            other => other.map_err(CopyError::Source)?,
        };
        if is_wanted {
            needed.extend(segments_of(&manifest));
        }
        if !is_there {
            plan.backups.push(PlannedBackup { id, bytes: manifest.totals().bytes });
            continue;
        }
        let other = target.manifest(cluster, &id).await.map_err(CopyError::Target)?;
        if identity_of(&manifest) != identity_of(&other) {
            return Err(CopyError::Conflict { id });
        }
        plan.shared.push(id);
    }
    Ok((!wanted.is_empty()).then_some(needed))
}

/// By what two backups of one id are told apart: the cluster, and the place in its WAL.
pub(crate) fn identity_of(manifest: &Manifest) -> (u64, Span) {
    (manifest.server().system_identifier, manifest.span())
}

/// The segments from a backup's start to its stop.
fn segments_of(manifest: &Manifest) -> Vec<SegmentName> {
    // A manifest that says nonsense needs none.
    let Ok(place) = BackupPlace::of(manifest) else { return Vec::new() };
    let last = SegmentName::last_before(place.timeline, place.stop, place.size);
    std::iter::successors(Some(place.first_segment()), |segment| segment.next(place.size))
        .take_while(|segment| *segment <= last)
        .collect()
}

/// Plans the WAL: history files first, then in order. Of unfinished segments the fewest parts are taken that hold their beginning.
fn plan_wal(source: &Inventory, target: &Inventory, needed: Option<&BTreeSet<SegmentName>>, plan: &mut Plan) {
    let is_needed = |segment: &SegmentName| needed.is_none_or(|needed| needed.contains(segment));
    for timeline in source.histories.iter().filter(|timeline| !target.histories.contains(timeline)) {
        plan.wal.push(WalName::File(FileName::History(*timeline)));
    }
    let others = source.others.iter().filter(|file| !target.others.contains(file));
    plan.wal.extend(others.filter(|file| file.segment().is_none_or(|of| is_needed(&of))).map(WalName::from));
    let has = |inventory: &Inventory, segment: &SegmentName| {
        inventory.segments.get(&segment.timeline).is_some_and(|there| there.contains_key(segment))
    };
    let mut unfinished = source.unfinished();
    unfinished.retain(|segment, _| is_needed(segment) && !has(target, segment));
    let segments = source.segments.values().flat_map(|segments| segments.keys());
    let segments = segments.filter(|segment| is_needed(segment) && !has(target, segment));
    plan.wal.extend(segments.map(|segment| WalName::File(FileName::Segment(*segment))));
    for part in unfinished.values().flat_map(|parts| cover(parts)) {
        if !target.parts.contains_key(&part) {
            plan.wal.push(WalName::Part(part));
        }
    }
    let is_old = |part: &&Part| has(source, &part.segment) && is_needed(&part.segment);
    plan.old_parts = target.parts.keys().filter(is_old).copied().collect();
    plan.wal_files = plan.wal.len() as u64;
}
