//! What is the case with each backup, as far as metadata tell. What a listing lacks is asked for by name before it counts as
//! missing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use pg::recovery::TargetTimeline;
use pg::wal::{FileName, SegmentName, SegmentSize};
use pg::{Lsn, TimelineId};
use repository::backups::{ChainFinding, Listed};
use repository::expired::Expired;
use repository::manifest::Manifest;
use repository::moved::StoredPack;
use repository::{ClusterName, PackId, Repository, layout};

use super::{ExpireError, ExpireRequest};
use crate::reachable::{ArchiveState, continuous_until};
use crate::retention::{Fact, SMALL_PART, Standing};

/// Backups that a verification or trial restore proved to be damaged, with what it found.
pub type Damaged = BTreeMap<String, String>;

/// After so many small ones the next is the new size: somebody has dropped what was large.
const SMALL_RUN: u32 = 7;

/// A backup as it was found.
pub(super) struct Backup {
    pub(super) fact: Fact,
    pub(super) bytes: u64,
    pub(super) digest: Vec<u8>,
    /// Whether its manifest can be read.
    is_readable: bool,
    /// Timeline, start and stop, if its manifest can be read and says something possible.
    pub(super) span: Option<(TimelineId, Lsn, Lsn)>,
}

/// What was found.
pub(super) struct Looked {
    /// In the order in which they were made.
    pub(super) backups: Vec<Backup>,
    pub(super) archive: ArchiveState,
    pub(super) storage_clock: Option<Timestamp>,
    /// Backups that may be at work, or have died.
    pub(super) at_work: Vec<String>,
    expired: Expired,
    /// The backups that manifests follow.
    previous: BTreeSet<String>,
}

impl Looked {
    /// Noted backups that no manifest follows, and older than all that are there: no chain and no host's memory leads to
    /// them. Manifests that go now still count, for somebody may be reading them.
    pub(super) fn idle_notes(&self) -> Vec<String> {
        // What is at work may have read any of them, and will follow it; what cannot be read follows nobody knows which.
        if !self.at_work.is_empty() || self.backups.iter().any(|backup| !backup.is_readable) {
            return Vec::new();
        }
        let Some(oldest) = self.backups.iter().map(|backup| &backup.fact.id).min() else { return Vec::new() };
        let idle = |id: &&String| *id < oldest && !self.previous.contains(*id);
        self.expired.backups.iter().filter(idle).cloned().collect()
    }
}

/// Looks at the backups, their packs and their WAL.
pub(super) async fn look(repository: &Repository, request: &ExpireRequest) -> Result<Looked, ExpireError> {
    let cluster = &request.cluster;
    let listed = in_order(repository.backups(cluster).await?);
    // Afterwards: a note is written before its manifest goes.
    let expired = repository.expired(cluster).await?;
    check_list(repository, cluster, &listed, &expired).await?;
    let storage_clock = repository.storage_clock().await?;
    let mut pins = pins(repository, cluster, storage_clock).await?;
    let archive = ArchiveState::read(repository, cluster).await?;
    let mut stored = repository.pack_sizes().await?;
    let (mut backups, mut sizes, mut previous) = (Vec::new(), Sizes::default(), BTreeSet::new());
    for one in listed {
        let mut standing = broken(repository, request, &archive, &mut stored, &one).await?;
        let manifest = one.manifest.as_ref().ok();
        if let (Some(manifest), Standing::Good) = (manifest, &standing) {
            standing = match manifest.findings_total {
                0 => sizes.standing(manifest.totals().bytes),
                pages => Standing::Suspect(format!("{pages} damaged pages")),
            };
        }
        previous.extend(manifest.map(|manifest| manifest.previous_id.clone()));
        let stop = |manifest: &Manifest| Timestamp::from_microsecond(manifest.span().stop_us).ok();
        backups.push(Backup {
            fact: Fact {
                stop: manifest.map_or_else(|| time_of(&one.id), stop),
                pin: pins.remove(&one.id),
                id: one.id.clone(),
                standing,
            },
            bytes: manifest.map_or(0, |manifest| manifest.totals().bytes),
            is_readable: manifest.is_some(),
            digest: one.digest.map(|digest| digest.to_vec()).unwrap_or_default(),
            span: manifest.and_then(span),
        });
    }
    let listed: BTreeSet<&str> = backups.iter().map(|backup| backup.fact.id.as_str()).collect();
    let at_work = unlisted(repository, cluster, &listed, pins.into_keys(), storage_clock).await?;
    Ok(Looked { backups, archive, storage_clock, at_work, expired, previous })
}

/// The backups at work. Fails if any other that is not listed, and of which its claim, its pin or a mark of prune tells, is
/// stored.
async fn unlisted(
    repository: &Repository,
    cluster: &ClusterName,
    listed: &BTreeSet<&str>,
    pinned: impl Iterator<Item = String>,
    storage_clock: Option<Timestamp>,
) -> Result<Vec<String>, ExpireError> {
    let (mut at_work, mut told) = (Vec::new(), pinned.collect::<BTreeSet<String>>());
    told.extend(marked_backups(repository, cluster).await?);
    for claim in repository.claims(cluster).await? {
        if listed.contains(claim.backup.as_str()) {
            continue;
        }
        if claim.may_be_alive(storage_clock) && !repository.is_expired(cluster, &claim).await? {
            at_work.push(claim.backup);
        } else {
            told.insert(claim.backup);
        }
    }
    for id in told.iter().filter(|id| !listed.contains(id.as_str()) && !at_work.contains(id)) {
        if repository.has_backup(cluster, id).await? {
            return Err(ExpireError::Listing { what: format!("backup {id}") });
        }
    }
    Ok(at_work)
}

/// The backups that prune saw when it wrote the marks that there are.
async fn marked_backups(repository: &Repository, cluster: &ClusterName) -> Result<Vec<String>, ExpireError> {
    let marks = repository.marks().await?;
    let all =
        marks.iter().flat_map(|mark| mark.note.backups.iter()).filter_map(|backup| backup.split_once('/'));
    let ours = all.filter(|(of, id)| *of == cluster.as_str() && layout::is_backup_id(id));
    Ok(ours.map(|(_, id)| id.to_owned()).collect())
}

/// Refuses a list that lacks what is stored, or that was rolled back.
async fn check_list(
    repository: &Repository,
    cluster: &ClusterName,
    listed: &[Listed],
    expired: &Expired,
) -> Result<(), ExpireError> {
    for finding in repository.check_chain(cluster, listed, expired) {
        let missing = match &finding {
            ChainFinding::Missing { id, .. } | ChainFinding::RolledBack { newest_seen: id } => id,
            ChainFinding::Replaced { .. } => continue,
        };
        if repository.has_backup(cluster, missing).await? {
            return Err(ExpireError::Listing { what: format!("backup {missing}") });
        }
        if matches!(finding, ChainFinding::RolledBack { .. }) {
            return Err(ExpireError::RolledBack { finding });
        }
    }
    Ok(())
}

/// What the pins that hold say, by backup.
async fn pins(
    repository: &Repository,
    cluster: &ClusterName,
    storage_clock: Option<Timestamp>,
) -> Result<HashMap<String, String>, ExpireError> {
    let pins = repository.pins(cluster).await?.into_iter().filter(|pin| pin.holds(storage_clock));
    let text = |pin: &repository::pins::Pin| {
        let until = pin.until().map(|until| format!(" until {until:.0}")).unwrap_or_default();
        let note = Some(&pin.note.note).filter(|note| !note.is_empty());
        until + &note.map(|note| format!(": {note}")).unwrap_or_default()
    };
    Ok(pins.map(|pin| (pin.backup.clone(), text(&pin))).collect())
}

/// Readable ones by their place in the chain; one that cannot be read keeps its place among the ids.
fn in_order(listed: Vec<Listed>) -> Vec<Listed> {
    let (mut readable, unreadable): (Vec<_>, Vec<_>) =
        listed.into_iter().partition(|backup| backup.manifest.is_ok());
    readable.sort_by_key(|backup| backup.manifest.as_ref().map_or(0, |manifest| manifest.sequence));
    for backup in unreadable {
        let at = readable.iter().position(|other| other.id > backup.id).unwrap_or(readable.len());
        readable.insert(at, backup);
    }
    readable
}

/// The time that a backup's id begins with.
fn time_of(id: &str) -> Option<Timestamp> {
    let (date, time) = id.get(..16)?.strip_suffix('Z')?.split_once('T')?;
    let part = |text: &'_ str, from: usize, to: usize| text.get(from..to).map(str::to_owned);
    let date = format!("{}-{}-{}", part(date, 0, 4)?, part(date, 4, 6)?, part(date, 6, 8)?);
    format!("{date}T{}:{}:{}Z", part(time, 0, 2)?, part(time, 2, 4)?, part(time, 4, 6)?).parse().ok()
}

fn span(manifest: &Manifest) -> Option<(TimelineId, Lsn, Lsn)> {
    let span = manifest.span();
    let (start, stop) = (Lsn::new(span.start_lsn)?, Lsn::new(span.stop_lsn)?);
    Some((TimelineId::new(span.timeline)?, start, stop)).filter(|_| start <= stop)
}

/// The size that good backups have.
#[derive(Default)]
struct Sizes {
    last_good: u64,
    small: u32,
}

impl Sizes {
    fn standing(&mut self, bytes: u64) -> Standing {
        if bytes >= self.last_good / SMALL_PART || self.small >= SMALL_RUN {
            (self.last_good, self.small) = (bytes, 0);
            return Standing::Good;
        }
        self.small += 1;
        Standing::Suspect(format!("it has {bytes} bytes, the good backup before it {}", self.last_good))
    }
}

/// Why a backup cannot be restored; good for all that is known here if it can.
async fn broken(
    repository: &Repository,
    request: &ExpireRequest,
    archive: &ArchiveState,
    stored: &mut HashMap<PackId, u64>,
    backup: &Listed,
) -> Result<Standing, ExpireError> {
    if let Some(why) = request.damaged.get(&backup.id) {
        return Ok(Standing::Broken(why.clone()));
    }
    let manifest = match &backup.manifest {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Standing::Broken(error.to_string())),
    };
    if manifest.id != backup.id {
        return Ok(Standing::Broken(format!("its manifest is that of {}", manifest.id)));
    }
    let missing = match missing_pack(repository, stored, manifest).await? {
        None => missing_wal(repository, &request.cluster, archive, manifest).await?,
        missing => missing,
    };
    Ok(missing.map_or(Standing::Good, Standing::Broken))
}

/// What of a backup's packs is not stored. A pack whose live pages were moved elsewhere is.
async fn missing_pack(
    repository: &Repository,
    stored: &mut HashMap<PackId, u64>,
    manifest: &Manifest,
) -> Result<Option<String>, ExpireError> {
    for pack in &manifest.packs {
        let Ok(id) = pack.id() else { return Ok(Some("its manifest names no usable pack".to_owned())) };
        if stored.get(&id) == Some(&pack.size) {
            continue;
        }
        match repository.stored_pack(id).await? {
            StoredPack::As(size) if size != pack.size => {
                return Ok(Some(format!("pack {id} has {size} bytes instead of {}", pack.size)));
            }
            StoredPack::As(_) | StoredPack::Moved => {}
            StoredPack::No(lost) => return Ok(Some(format!("pack {lost} is missing"))),
        }
        stored.insert(id, pack.size);
    }
    Ok(None)
}

/// What of the WAL from a backup's start to its stop is not stored.
async fn missing_wal(
    repository: &Repository,
    cluster: &ClusterName,
    archive: &ArchiveState,
    manifest: &Manifest,
) -> Result<Option<String>, ExpireError> {
    if manifest.is_logical() {
        return Ok(None);
    }
    let size = SegmentSize::new(manifest.server().wal_segment_size).ok();
    let Some(((timeline, start, stop), size)) = span(manifest).zip(size) else {
        return Ok(Some("its manifest has no usable place in the WAL".to_owned()));
    };
    let path = match archive.path(TargetTimeline::Current, timeline, stop) {
        Ok(path) => path,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let end = continuous_until(&archive.inventory, &path, start, size).end;
    if end >= stop {
        return Ok(None);
    }
    let file = FileName::Segment(SegmentName::containing(path.timeline_at(end), end, size));
    if repository.has_wal(cluster, &file).await? {
        return Err(ExpireError::Listing { what: format!("WAL {file}") });
    }
    Ok(Some(format!("WAL {file}, which it needs, is missing")))
}
