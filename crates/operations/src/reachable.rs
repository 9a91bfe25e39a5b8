//! What can be restored: which stretch of WAL follows a backup without a hole, and along which timeline.
//!
//! [`ArchiveState`] is read once; everything after that is arithmetic on names, except the time of the last commit,
//! which is asked of the last few segments ([`window`]).

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use pg::recovery::TargetTimeline;
use pg::timeline::TimelineHistory;
use pg::wal::{FileName, SegmentName, SegmentSize};
use pg::{Lsn, TimelineId};
use repository::archive::{ArchiveError, Gap, GapNote, Identity, Inventory, cover};
use repository::manifest::Manifest;
use repository::{ClusterName, Repository, RepositoryError};

mod place;
mod stretch;

pub(crate) use place::BackupPlace;
pub use stretch::{Hole, Reach, continuous_until};

/// How many segments are asked, from the end back, for the time of the last commit. A server that writes WAL without
/// a commit for longer than this is idle, and the time is then unknown.
const COMMIT_SEARCH_SEGMENTS: u64 = 256;
/// Small requests under way at once.
const REQUESTS: usize = 8;

/// Why it could not be found out what is reachable.
#[derive(Debug, thiserror::Error)]
pub enum ReachableError {
    /// The repository could not be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A file of the archive could not be read.
    #[error("read {file} from the archive")]
    Archive {
        /// The file.
        file: FileName,
        /// Why.
        source: ArchiveError,
    },
    /// The manifest says something that cannot be.
    #[error("the manifest of backup {id} has no usable {what}")]
    Manifest {
        /// The backup.
        id: String,
        /// What is wrong in it.
        what: &'static str,
    },
    /// The timeline is not one that the backup can follow.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Why a timeline cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The archive has neither a history nor a segment of it.
    #[error("the archive has nothing of timeline {timeline}")]
    Unknown {
        /// What was asked for.
        timeline: TimelineId,
    },
    /// Its history file cannot be used.
    #[error("the history of timeline {timeline} is unusable: {why}")]
    Damaged {
        /// What was asked for.
        timeline: TimelineId,
        /// What is wrong with the file.
        why: String,
    },
    /// It left the backup's timeline before the backup's end, or never was on it.
    #[error("timeline {wanted} does not lead through {lsn} on timeline {timeline}")]
    NotADescendant {
        /// What was asked for.
        wanted: TimelineId,
        /// Where the backup ended.
        timeline: TimelineId,
        /// Where the backup ended.
        lsn: Lsn,
    },
}

/// What a cluster's archive holds at one moment.
#[derive(Clone, Debug, Default)]
pub struct ArchiveState {
    /// What the stream is bound to; `None` if nothing was ever stored.
    pub identity: Option<Identity>,
    /// Every file, by name.
    pub inventory: Inventory,
    /// The past of each timeline that has a history file, or segments and none: that is then its own beginning, as
    /// PostgreSQL takes it (`readTimeLineHistory`).
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// History files that are stored and cannot be used, with the reason.
    pub damaged_histories: BTreeMap<TimelineId, String>,
    /// WAL that a receiver could not have, in order, and what is noted of it. It may have come in another way since.
    pub gaps: Vec<(Gap, GapNote)>,
}

impl ArchiveState {
    /// Reads names and history files. Damage is a finding here; `Err` means that it could not be looked at.
    pub async fn read(repository: &Repository, cluster: &ClusterName) -> Result<Self, ReachableError> {
        let identity = repository.identity(cluster).await?;
        Self::read_bound(repository, cluster, identity).await
    }

    /// The same, where what the stream is bound to is known, or known to be unreadable.
    pub async fn read_bound(
        repository: &Repository,
        cluster: &ClusterName,
        identity: Option<Identity>,
    ) -> Result<Self, ReachableError> {
        let inventory = repository.wal_inventory(cluster).await?;
        let (histories, damaged_histories) = histories(repository, cluster, &inventory).await?;
        let gaps = repository.gaps(cluster).await?;
        Ok(Self { identity, inventory, histories, damaged_histories, gaps })
    }

    /// The size of the stream's segments, if anything was ever stored.
    pub fn segment_size(&self) -> Option<SegmentSize> {
        SegmentSize::new(self.identity.as_ref()?.segment_size).ok()
    }

    /// The gaps that nothing has filled since.
    pub fn open_gaps(&self) -> impl Iterator<Item = &(Gap, GapNote)> {
        let is_open = |gap: &Gap| {
            let Some(size) = self.segment_size() else { return true };
            let path = self.histories.values().rev().find(|path| path.contains(gap.timeline, gap.from));
            let path = path.cloned().unwrap_or(TimelineHistory::root(gap.timeline));
            continuous_until(&self.inventory, &path, gap.from, size).end < gap.to
        };
        self.gaps.iter().filter(move |(gap, _)| is_open(gap))
    }

    /// The newest timeline that leads through `lsn` on `timeline`, where a backup ended: what `latest` must mean.
    ///
    /// PostgreSQL's own `latest` takes the highest number in the archive even if that timeline left the backup's past
    /// earlier, and then refuses to start; so a restore writes the number found here.
    pub fn newest_descendant(&self, timeline: TimelineId, lsn: Lsn) -> TimelineHistory {
        let mut newest_first = self.histories.values().rev();
        newest_first
            .find(|path| path.contains(timeline, lsn))
            .cloned()
            .unwrap_or(TimelineHistory::root(timeline))
    }

    /// The past that `choice` means for a backup that ended at `lsn` on `timeline`.
    pub fn path(
        &self,
        choice: TargetTimeline,
        timeline: TimelineId,
        lsn: Lsn,
    ) -> Result<TimelineHistory, PathError> {
        let wanted = match choice {
            TargetTimeline::Latest => return Ok(self.newest_descendant(timeline, lsn)),
            TargetTimeline::Current => timeline,
            TargetTimeline::Id(wanted) => wanted,
        };
        match (self.histories.get(&wanted), self.damaged_histories.get(&wanted)) {
            (Some(path), _) if path.contains(timeline, lsn) => Ok(path.clone()),
            (Some(_), _) => Err(PathError::NotADescendant { wanted, timeline, lsn }),
            // The backup knows its own timeline: without a file, and to its end, it needs no other.
            (None, _) if wanted == timeline => Ok(TimelineHistory::root(timeline)),
            (None, Some(why)) => Err(PathError::Damaged { timeline: wanted, why: why.clone() }),
            (None, None) => Err(PathError::Unknown { timeline: wanted }),
        }
    }
}

/// The history of each timeline of the inventory, and the history files that cannot be used.
pub async fn histories(
    repository: &Repository,
    cluster: &ClusterName,
    inventory: &Inventory,
) -> Result<(BTreeMap<TimelineId, TimelineHistory>, BTreeMap<TimelineId, String>), ReachableError> {
    let (mut usable, mut damaged) = (BTreeMap::new(), BTreeMap::new());
    let fetch = |&timeline: &TimelineId| async move {
        let file = FileName::History(timeline);
        match repository.fetch_wal(cluster, &file).await {
            Ok((_, content)) => {
                Ok((timeline, TimelineHistory::parse(timeline, &content).map_err(|e| e.to_string())))
            }
            Err(ArchiveError::Repository(error)) if error.is_damage() => {
                Ok((timeline, Err(error.to_string())))
            }
            Err(source) => Err(ReachableError::Archive { file, source }),
        }
    };
    let fetched: Vec<_> =
        stream::iter(inventory.histories.iter().map(fetch)).buffered(REQUESTS).try_collect().await?;
    for (timeline, history) in fetched {
        match history {
            Ok(history) => {
                usable.insert(timeline, history);
            }
            Err(why) => {
                damaged.insert(timeline, why);
            }
        }
    }
    let parts = inventory.parts.keys().map(|part| part.segment.timeline);
    for timeline in inventory.segments.keys().copied().chain(parts) {
        if !inventory.histories.contains(&timeline) {
            usable.insert(timeline, TimelineHistory::root(timeline));
        }
    }
    Ok((usable, damaged))
}

/// A place in the log and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The place.
    pub lsn: Lsn,
    /// The server's clock there, if it is known.
    pub time: Option<Timestamp>,
}

/// What one backup can be brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The timeline that replay follows, to be written into the restored cluster's settings.
    pub timeline: TimelineId,
    /// The earliest target: the backup's end.
    pub from: Moment,
    /// The end of continuous WAL and the last commit before it; a later time or position cannot be a target. The time
    /// is `None` when no commit was found after the backup's end. The whole is `None` when WAL that the backup itself
    /// needs is missing: then it cannot be restored at all.
    pub to: Option<Moment>,
    /// What is missing after the backup's start although later WAL is stored, in order.
    pub holes: Vec<Hole>,
    /// The past that replay follows.
    pub path: TimelineHistory,
}

/// What `manifest`'s backup can be brought to along the chosen timeline.
pub async fn window(
    repository: &Repository,
    cluster: &ClusterName,
    state: &ArchiveState,
    manifest: &Manifest,
    choice: TargetTimeline,
) -> Result<Window, ReachableError> {
    let unusable = |what| ReachableError::Manifest { id: manifest.id.clone(), what };
    let BackupPlace { timeline, start, stop, size } = BackupPlace::of(manifest).map_err(unusable)?;
    let from = Moment { lsn: stop, time: Timestamp::from_microsecond(manifest.span().stop_us).ok() };
    let path = state.path(choice, timeline, stop)?;
    let reach = continuous_until(&state.inventory, &path, start, size);
    let to = if reach.end < stop {
        None
    } else {
        let last = last_commit(repository, cluster, &state.inventory, &path, start, reach.end, size).await?;
        Some(Moment { lsn: reach.end, time: last.filter(|last| from.time.is_none_or(|stop| *last >= stop)) })
    };
    Ok(Window { timeline: path.timeline, from, to, holes: reach.holes, path })
}

/// When the last transaction before `end` ended, as the descriptions of the segments tell it.
async fn last_commit(
    repository: &Repository,
    cluster: &ClusterName,
    inventory: &Inventory,
    path: &TimelineHistory,
    start: Lsn,
    end: Lsn,
    size: SegmentSize,
) -> Result<Option<Timestamp>, ReachableError> {
    if let Some(last) = last_commit_of_unfinished(repository, cluster, inventory, path, end, size).await? {
        return Ok(Some(last));
    }
    let newest = SegmentName::last_before(path.timeline, end, size).number(size);
    let oldest = SegmentName::containing(path.timeline, start, size).number(size);
    let numbers = (oldest..=newest).rev().take(COMMIT_SEARCH_SEGMENTS as usize);
    let segments = numbers.filter_map(|number| whole_segment(inventory, path, number, size));
    let ask = |segment| async move {
        let file = FileName::Segment(segment);
        let info = repository.wal_info(cluster, &file).await;
        info.map_err(|source| ReachableError::Archive { file, source })
    };
    let mut infos = stream::iter(segments.map(ask)).buffered(REQUESTS);
    while let Some(info) = infos.next().await {
        if let Some(last) = info?.last_commit_us {
            return Ok(Timestamp::from_microsecond(last).ok());
        }
    }
    Ok(None)
}

/// The same of the parts of an unfinished segment that `end` lies in.
async fn last_commit_of_unfinished(
    repository: &Repository,
    cluster: &ClusterName,
    inventory: &Inventory,
    path: &TimelineHistory,
    end: Lsn,
    size: SegmentSize,
) -> Result<Option<Timestamp>, ReachableError> {
    let Some(last_byte) = Lsn::new(end.get() - 1) else { return Ok(None) };
    let segment = SegmentName::containing(path.timeline_at(last_byte), last_byte, size);
    let Some(parts) = inventory.unfinished().remove(&segment) else { return Ok(None) };
    for part in cover(&parts).iter().rev() {
        // One that reaches past `end` may speak of commits that this past does not have.
        if segment.start(size) + u64::from(part.to) > end.get() {
            continue;
        }
        match repository.wal_info(cluster, part).await {
            Ok(info) => {
                return Ok(info.last_commit_us.and_then(|last| Timestamp::from_microsecond(last).ok()));
            }
            // Its segment, or a longer part, was stored since the archive was listed.
            Err(ArchiveError::Absent { .. }) => {}
            Err(source) => return Err(ReachableError::Archive { file: FileName::Segment(segment), source }),
        }
    }
    Ok(None)
}

/// The stored segment with this number that lies in the path's past to its last byte. One that the path leaves midway
/// may speak of commits that this past does not have.
fn whole_segment(
    inventory: &Inventory,
    path: &TimelineHistory,
    number: u64,
    size: SegmentSize,
) -> Option<SegmentName> {
    let last_byte = Lsn::new(SegmentName::from_number(path.timeline, number, size).end(size) - 1)?;
    let segment = SegmentName::from_number(path.timeline_at(last_byte), number, size);
    inventory.segments.get(&segment.timeline)?.contains_key(&segment).then_some(segment)
}

#[cfg(test)]
mod tests;
