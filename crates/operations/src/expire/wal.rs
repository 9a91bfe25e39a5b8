//! Which WAL goes.
//!
//! One position decides on all timelines: where the first backup of the window begins. What replay from any backup of the
//! window needs lies behind it, whichever timeline it follows, so no history has to be understood for that. Before it only
//! the WAL from start to stop of backups that are kept alone stays. An abandoned timeline goes when the window has passed it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pg::wal::{FileName, SegmentName};
use pg::{Lsn, TimelineId};
use repository::archive::{Gap, Part};
use repository::{ClusterName, Repository, RepositoryError, layout};
use serde::Serialize;
use storage::ObjectName;

use super::facts::Backup;
use super::{BATCH, BackupLine, ExpireError};
use crate::reachable::ArchiveState;

/// A file or note of the archive that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WalLine {
    /// Its name.
    pub name: String,
    /// Bytes of its object, where they are known.
    pub bytes: u64,
    #[serde(skip)]
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    File(FileName),
    Part(Part),
    Gap(Gap),
}

impl WalLine {
    fn new(name: impl ToString, bytes: u64, what: What) -> Self {
        Self { name: name.to_string(), bytes, what }
    }

    fn object(&self, cluster: &ClusterName) -> ObjectName {
        match &self.what {
            What::File(file) => layout::wal_file(cluster, file),
            What::Part(part) => layout::wal_file(cluster, part),
            What::Gap(gap) => layout::gap(cluster, gap),
        }
    }

    /// Deletes it. What is gone already is no error.
    pub(super) async fn delete(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
    ) -> Result<(), ExpireError> {
        Ok(repository.storage().remove(&self.object(cluster)).await.map_err(RepositoryError::from)?)
    }
}

/// WAL that could go, and is locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LockedWal {
    /// Objects.
    pub objects: usize,
    /// When the first of their locks ends.
    pub until: Option<Timestamp>,
}

/// Leaves out of the WAL that goes what is locked at `now`. Behind so many locked ones in a row as are asked for at once nobody
/// asks further: they are the newer.
pub(super) async fn leave_locked(
    repository: &Repository,
    cluster: &ClusterName,
    now: Timestamp,
    wal: &mut Vec<WalLine>,
) -> Result<LockedWal, ExpireError> {
    let (mut locked, mut free) = (LockedWal::default(), Vec::new());
    let mut batches = wal.chunks(BATCH);
    for batch in batches.by_ref() {
        let locks = repository.locks(batch.iter().map(|line| line.object(cluster)), now).await?;
        let before = free.len();
        for (line, lock) in batch.iter().zip(locks) {
            match lock {
                Some(until) => {
                    locked.objects += 1;
                    locked.until = Some(locked.until.map_or(until, |first| first.min(until)));
                }
                None => free.push(line.clone()),
            }
        }
        if batch.len() == BATCH && free.len() == before {
            break;
        }
    }
    locked.objects += batches.map(<[WalLine]>::len).sum::<usize>();
    *wal = free;
    Ok(locked)
}

/// The position before which WAL goes, and the WAL that goes, oldest first.
pub(super) fn plan(
    archive: &ArchiveState,
    backups: &[Backup],
    lines: &[BackupLine],
) -> (Option<Lsn>, Vec<WalLine>) {
    let (Some(size), Some(needs)) = (archive.segment_size(), Needs::of(backups, lines)) else {
        return (None, Vec::new());
    };
    // A timeline that has no backup yet may have begun before the window: its WAL is only just coming.
    let newest = backups.iter().filter_map(|backup| backup.span.map(|(timeline, ..)| timeline)).max();
    let is_known = |timeline: TimelineId| newest.is_some_and(|newest| timeline <= newest);
    let unneeded = |segment: &SegmentName| {
        is_known(segment.timeline) && segment.fits(size) && needs.lack(segment.start(size), segment.end(size))
    };
    let inventory = &archive.inventory;
    let segments = inventory.segments.values().flatten().map(|(&segment, &bytes)| {
        let file = FileName::Segment(segment);
        (segment, WalLine::new(file, bytes, What::File(file)))
    });
    let parts = inventory
        .parts
        .iter()
        .map(|(&part, &bytes)| (part.segment, WalLine::new(part, bytes, What::Part(part))));
    let others = inventory
        .others
        .iter()
        .filter_map(|&file| Some((file.segment()?, WalLine::new(file, 0, What::File(file)))));
    let mut gone: Vec<(u64, WalLine)> = segments
        .chain(parts)
        .chain(others)
        .filter(|(segment, _)| unneeded(segment))
        .map(|(segment, line)| (segment.start(size), line))
        .collect();
    let is_past = |gap: &Gap| is_known(gap.timeline) && needs.lack(gap.from.get(), gap.to.get());
    for (gap, _) in archive.gaps.iter().filter(|(gap, _)| is_past(gap)) {
        gone.push((gap.from.get(), WalLine::new(format!("note of a gap {gap}"), 0, What::Gap(*gap))));
    }
    gone.sort_by(|one, other| (one.0, &one.1.name).cmp(&(other.0, &other.1.name)));
    let mut gone: Vec<WalLine> = gone.into_iter().map(|(_, line)| line).collect();
    gone.extend(idle_histories(archive, backups, &needs, &gone).into_iter().map(|timeline| {
        let file = FileName::History(timeline);
        WalLine::new(file, 0, What::File(file))
    }));
    (Some(needs.horizon), gone)
}

/// What WAL is needed.
struct Needs {
    /// Everything from here on.
    horizon: Lsn,
    /// Before that, from start to stop of these.
    alone: Vec<(Lsn, Lsn)>,
}

impl Needs {
    /// `None` if all WAL may be needed: a backup that stays does not say from where on, and none before it does.
    fn of(backups: &[Backup], lines: &[BackupLine]) -> Option<Self> {
        let (mut horizon, mut alone, mut before) = (None::<Lsn>, Vec::new(), None);
        for (backup, line) in backups.iter().zip(lines) {
            let place = backup.span.map(|(_, start, stop)| (start, stop));
            // Whoever cannot say where it begins began after the one before it.
            let start = place.map(|(start, _)| start).or(before);
            match place.filter(|_| !line.in_window) {
                _ if !line.keep => {}
                Some(place) => alone.push(place),
                None => horizon = Some(horizon.unwrap_or(start?).min(start?)),
            }
            before = start;
        }
        Some(Self { horizon: horizon?, alone })
    }

    /// Whether nothing from `from` up to `to` is needed.
    fn lack(&self, from: u64, to: u64) -> bool {
        let needed = |(start, stop): &(Lsn, Lsn)| to > start.get() && from < stop.get();
        to <= self.horizon.get() && !self.alone.iter().any(needed)
    }
}

/// Timelines with a history file that nothing of what stays has to do with. While any history is unusable none can be told.
fn idle_histories(
    archive: &ArchiveState,
    backups: &[Backup],
    needs: &Needs,
    gone: &[WalLine],
) -> Vec<TimelineId> {
    if !archive.damaged_histories.is_empty() {
        return Vec::new();
    }
    let names: BTreeSet<&str> = gone.iter().map(|line| line.name.as_str()).collect();
    let stays = |name: String| !names.contains(name.as_str());
    let inventory = &archive.inventory;
    let segments = inventory.segments.values().flat_map(|segments| segments.keys());
    let segments = segments.filter(|segment| stays(segment.to_string())).map(|segment| segment.timeline);
    let parts = inventory.parts.keys().filter(|part| stays(part.to_string()));
    let others = inventory.others.iter().filter(|file| stays(file.to_string())).map(FileName::timeline);
    // WAL of the newest one, and of one that has only begun, may be on its way.
    let begun = archive.histories.iter().filter(|(_, path)| {
        path.entries.last().and_then(|entry| entry.switch_lsn).is_some_and(|begin| begin >= needs.horizon)
    });
    let alive: BTreeSet<TimelineId> = segments
        .chain(parts.map(|part| part.segment.timeline))
        .chain(others)
        .chain(backups.iter().filter_map(|backup| backup.span.map(|(timeline, ..)| timeline)))
        .chain(begun.map(|(timeline, _)| *timeline))
        .chain(archive.histories.keys().next_back().copied())
        .collect();
    let leads_to = |other: &TimelineId, timeline: TimelineId| {
        let path = archive.histories.get(other);
        *other == timeline || path.is_some_and(|path| path.lineage().any(|one| one == timeline))
    };
    // A promotion takes the first number that has no history behind the one it knows (`findNewestTimeLine`): none may be
    // missing between those that stay.
    let is_older = |timeline: &TimelineId| alive.first().is_some_and(|oldest| timeline < oldest);
    let idle =
        |timeline: &TimelineId| is_older(timeline) && !alive.iter().any(|other| leads_to(other, *timeline));
    inventory.histories.iter().copied().filter(idle).collect()
}
