//! What the WAL archive of a cluster holds, by timeline.

use std::collections::BTreeMap;

use pg::TimelineId;
use pg::wal::{SegmentName, SegmentSize};
use repository::archive::Inventory;
use repository::{ClusterName, Repository};
use serde::Serialize;

use super::CatalogueError;

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
    let identity = repository.identity(cluster).await?;
    let inventory = repository.wal_inventory(cluster).await?;
    let size = identity.as_ref().and_then(|identity| SegmentSize::new(identity.segment_size).ok());
    Ok(WalContent {
        cluster: cluster.to_string(),
        bound_to: identity.as_ref().map(ToString::to_string),
        segment_size: identity.as_ref().map(|identity| identity.segment_size),
        timelines: timelines(&inventory, size),
        others: inventory.others.iter().map(ToString::to_string).collect(),
    })
}

fn timelines(inventory: &Inventory, size: Option<SegmentSize>) -> Vec<TimelineContent> {
    let mut timelines: BTreeMap<TimelineId, TimelineContent> = BTreeMap::new();
    let empty = |timeline| TimelineContent { timeline, history: false, runs: Vec::new() };
    for (&timeline, segments) in &inventory.segments {
        timelines.entry(timeline).or_insert_with(|| empty(timeline)).runs = runs(segments, size);
    }
    for &timeline in &inventory.histories {
        timelines.entry(timeline).or_insert_with(|| empty(timeline)).history = true;
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
