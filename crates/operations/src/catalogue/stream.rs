//! What the WAL archive of a cluster holds, by timeline.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pg::wal::{FileName, SegmentName, SegmentSize};
use pg::{Lsn, TimelineId};
use repository::archive::{ArchiveError, Gap, GapNote, Inventory, WalName, cover, covered, holes};
use repository::{ClusterName, Repository};
use serde::Serialize;

use super::CatalogueError;
use crate::reachable::ArchiveState;

/// The archive of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct WalContent {
    /// The cluster.
    pub cluster: String,
    /// What its stream is bound to.
    pub bound_to: Option<String>,
    /// Bytes of a segment.
    pub segment_size: Option<u32>,
    /// Each timeline that anything is stored of.
    pub timelines: Vec<TimelineContent>,
    /// `.partial` and `.backup` files.
    pub others: Vec<String>,
    /// WAL that a receiver could not have.
    pub gaps: Vec<GapContent>,
    /// Where the WAL ends that is stored, on the newest timeline of all.
    pub end: Option<End>,
}

/// Where the stored WAL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte that is not stored.
    pub lsn: Lsn,
    /// When the last object of it was stored, by the clock of the host that did.
    pub stored: Option<Timestamp>,
    /// The time of the last commit in that object's segment.
    pub last_commit: Option<Timestamp>,
}

/// WAL that a receiver could not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GapContent {
    /// The timeline that was received.
    pub timeline: TimelineId,
    /// The first byte that is missing.
    pub from: Lsn,
    /// The first byte that came again.
    pub to: Lsn,
    /// When it was noticed.
    pub noticed: Option<Timestamp>,
    /// What the server said.
    pub why: String,
    /// Whether all of it has come in another way since.
    pub filled: bool,
}

/// What is stored of one timeline.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineContent {
    /// The timeline.
    pub timeline: TimelineId,
    /// Whether its history file is stored.
    pub history: bool,
    /// Its segments, in runs without a gap.
    pub runs: Vec<Run>,
    /// Segments that are not stored whole.
    pub unfinished: Vec<Unfinished>,
}

/// A segment of which parts are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    /// The segment.
    pub segment: String,
    /// Bytes of it that are stored, from the first one on.
    pub length: u32,
    /// What is missing of it before its last stored byte: offsets of the first missing byte and of the first stored one after.
    pub holes: Vec<(u32, u32)>,
    /// How many parts of it there are.
    pub parts: usize,
    /// Bytes that they take in the repository.
    pub bytes: u64,
}

/// Segments that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// The first.
    pub first: String,
    /// The last.
    pub last: String,
    /// How many.
    pub segments: u64,
    /// Bytes that they take in the repository.
    pub bytes: u64,
}

/// What the archive of a cluster holds.
pub async fn wal_content(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<WalContent, CatalogueError> {
    let state = ArchiveState::read(repository, cluster).await?;
    let (identity, inventory) = (state.identity.as_ref(), &state.inventory);
    let open: Vec<Gap> = state.open_gaps().map(|(gap, _)| *gap).collect();
    let gap = |(gap, note): &(Gap, GapNote)| GapContent {
        timeline: gap.timeline,
        from: gap.from,
        to: gap.to,
        noticed: Timestamp::from_microsecond(note.noticed_us).ok(),
        why: note.why.clone(),
        filled: !open.contains(gap),
    };
    let end = match state.segment_size() {
        Some(size) => end(repository, cluster, inventory, size).await?,
        None => None,
    };
    Ok(WalContent {
        cluster: cluster.to_string(),
        bound_to: identity.map(ToString::to_string),
        segment_size: identity.map(|identity| identity.segment_size),
        timelines: timelines(inventory, state.segment_size()),
        others: inventory.others.iter().map(ToString::to_string).collect(),
        gaps: state.gaps.iter().map(gap).collect(),
        end,
    })
}

/// Where the stored WAL of the newest timeline ends, and when that was stored.
async fn end(
    repository: &Repository,
    cluster: &ClusterName,
    inventory: &Inventory,
    size: SegmentSize,
) -> Result<Option<End>, CatalogueError> {
    let whole = inventory.segments.values().rev().find_map(|segments| segments.keys().next_back().copied());
    let unfinished = inventory.unfinished().into_iter().map(|(segment, parts)| (segment, cover(&parts)));
    let begun = unfinished.rev().find(|(_, parts)| !parts.is_empty());
    let (segment, name, length) = match (whole, &begun) {
        (Some(whole), Some((segment, _))) if *segment < whole => {
            (whole, WalName::File(FileName::Segment(whole)), size.bytes())
        }
        (_, Some((segment, parts))) => {
            let last = parts[parts.len() - 1];
            (*segment, WalName::Part(last), last.to)
        }
        (Some(whole), None) => (whole, WalName::File(FileName::Segment(whole)), size.bytes()),
        (None, None) => return Ok(None),
    };
    let info = match repository.wal_info(cluster, name).await {
        Ok(info) => Some(info),
        // A part that was replaced since the archive was listed.
        Err(ArchiveError::Absent { .. }) => None,
        Err(ArchiveError::Repository(error)) => return Err(error.into()),
        Err(_) => None,
    };
    let moment = |us: Option<i64>| us.and_then(|us| Timestamp::from_microsecond(us).ok());
    let lsn = Lsn::new(segment.start(size) + u64::from(length));
    Ok(lsn.map(|lsn| End {
        timeline: segment.timeline,
        lsn,
        stored: moment(info.as_ref().map(|info| info.stored_us)),
        last_commit: moment(info.and_then(|info| info.last_commit_us)),
    }))
}

fn timelines(inventory: &Inventory, size: Option<SegmentSize>) -> Vec<TimelineContent> {
    let mut timelines: BTreeMap<TimelineId, TimelineContent> = BTreeMap::new();
    let mut of = |timeline, change: &mut dyn FnMut(&mut TimelineContent)| {
        let empty = || TimelineContent { timeline, history: false, runs: Vec::new(), unfinished: Vec::new() };
        change(timelines.entry(timeline).or_insert_with(empty));
    };
    for (&timeline, segments) in &inventory.segments {
        of(timeline, &mut |content| content.runs = runs(segments, size));
    }
    for &timeline in &inventory.histories {
        of(timeline, &mut |content| content.history = true);
    }
    for (segment, parts) in inventory.unfinished() {
        let unfinished = Unfinished {
            segment: segment.to_string(),
            length: covered(&parts),
            holes: holes(&parts),
            parts: parts.len(),
            bytes: parts.iter().filter_map(|part| inventory.parts.get(part)).sum(),
        };
        of(segment.timeline, &mut |content| content.unfinished.push(unfinished.clone()));
    }
    timelines.into_values().collect()
}

fn runs(segments: &BTreeMap<SegmentName, u64>, size: Option<SegmentSize>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut expected = None;
    for (segment, &bytes) in segments {
        match runs.last_mut().filter(|_| expected == Some(*segment)) {
            Some(run) => {
                run.last = segment.to_string();
                run.segments += 1;
                run.bytes += bytes;
            }
            None => {
                let name = segment.to_string();
                runs.push(Run { first: name.clone(), last: name, segments: 1, bytes });
            }
        }
        expected = size.filter(|&size| segment.fits(size)).and_then(|size| segment.next(size));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_follow_each_other_are_one_run() {
        let names = ["00000001000000000000000A", "00000001000000000000000B", "00000001000000000000000D"];
        let segments = names.iter().map(|name| (name.parse().unwrap(), 10)).collect();
        let found = runs(&segments, Some(SegmentSize::new(16 << 20).unwrap()));
        let shown: Vec<_> =
            found.iter().map(|run| (&run.first[22..], &run.last[22..], run.segments, run.bytes)).collect();
        assert_eq!(shown, [("0A", "0B", 2, 20), ("0D", "0D", 1, 10)]);
    }
}
