//! Where to go on receiving: the end of what is stored, seen along the history of the server that streams.

use pg::timeline::TimelineHistory;
use pg::wal::{SegmentName, SegmentSize};
use pg::{Lsn, TimelineId};
use repository::{ClusterName, Repository, RepositoryError};

/// A place to begin at: the start of a segment, or where this process left off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) timeline: TimelineId,
    pub(super) lsn: Lsn,
}

/// The end of what the repository holds of the server's past: the start of the first segment that is not whole, on the
/// newest timeline that anything is stored of. `None` if nothing is stored of any.
pub(super) async fn stored(
    repository: &Repository,
    cluster: &ClusterName,
    history: &TimelineHistory,
    size: SegmentSize,
) -> Result<Option<Position>, RepositoryError> {
    let lineage: Vec<TimelineId> = history.lineage().collect();
    for timeline in lineage.into_iter().rev() {
        let left = history.switch_point(timeline).map_or(u64::MAX, Lsn::get);
        let is_before = |segment: &SegmentName| segment.fits(size) && segment.start(size) < left;
        let newest = repository.newest_wal(cluster, timeline, is_before).await?;
        // Somebody was stopped before he removed them. Whoever may not, goes on without.
        if let Err(error) = repository.remove_parts(cluster, &newest.leftover).await {
            tracing::warn!(%error, "parts that are no longer needed stay");
        }
        let end = match (newest.whole, newest.parts.first()) {
            (Some(whole), _) => whole.end(size),
            (None, Some(part)) => part.segment.start(size),
            (None, None) => continue,
        };
        // The segment in which the timeline was left counts up to there.
        if let Some(lsn) = Lsn::new(end.min(left)) {
            return Ok(Some(Position { timeline, lsn }));
        }
    }
    Ok(None)
}

/// Where to begin on a server with this history, when everything before `at` was received.
///
/// On a timeline that the server's past has left, receiving goes on to that point; past it begins the next one, whose first
/// segment repeats the bytes before. WAL that was received and that the server's past does not have (it was promoted without
/// it) stays in the archive, on its own timeline.
pub(super) fn begin(at: &Position, history: &TimelineHistory, size: SegmentSize) -> Position {
    if at.timeline == history.timeline {
        return at.clone();
    }
    let mut lineage = history.lineage().skip_while(|timeline| *timeline != at.timeline).peekable();
    match (lineage.next(), lineage.peek(), history.switch_point(at.timeline)) {
        (Some(_), Some(_), Some(left)) if at.lsn < left => at.clone(),
        (Some(_), Some(&next), Some(left)) => segment_start(next, left, size),
        // The server knows nothing of that timeline: it may have left our past earlier.
        _ => match history.entries.iter().rev().find(|entry| entry.timeline < at.timeline) {
            Some(entry) => {
                let left = entry.switch_lsn.filter(|left| *left <= at.lsn).unwrap_or(at.lsn);
                segment_start(history.timeline, left, size)
            }
            None => segment_start(history.timeline, at.lsn, size),
        },
    }
}

/// Where to begin on a server with this history, whose oldest WAL for us is at `kept`: the start of that segment, on the
/// timeline that wrote the byte there. The beginning of that segment has the bytes of the timeline before.
pub(super) fn kept(kept: Lsn, history: &TimelineHistory, size: SegmentSize) -> Position {
    segment_start(history.timeline_at(kept), kept, size)
}

/// The start of the segment that holds `lsn`.
pub(super) fn segment_start(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Position {
    let start = SegmentName::containing(timeline, lsn, size).start(size);
    Position { timeline, lsn: Lsn::new(start).unwrap_or(lsn) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline: TimelineId::new(timeline).unwrap(), lsn: Lsn::new(lsn).unwrap() }
    }

    fn history(timeline: u32, entries: &str) -> TimelineHistory {
        TimelineHistory::parse(TimelineId::new(timeline).unwrap(), entries.as_bytes()).unwrap()
    }

    #[test]
    fn on_its_own_timeline_receiving_goes_on_where_it_was() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(begin(&at(1, 5 * MIB), &history(1, ""), size), at(1, 5 * MIB));
        assert_eq!(begin(&at(3, 5 * MIB), &history(3, "1 0/100000\n2 0/200000\n"), size), at(3, 5 * MIB));
    }

    #[test]
    fn a_timeline_that_was_left_is_received_to_its_end_and_then_the_next_one() {
        let (size, path) = (SegmentSize::DEFAULT, history(3, "1 0/2100000\n2 0/4200000\n"));
        assert_eq!(begin(&at(1, 32 * MIB), &path, size), at(1, 32 * MIB));
        assert_eq!(begin(&at(1, 33 * MIB), &path, size), at(2, 32 * MIB));
        assert_eq!(begin(&at(2, 70 * MIB), &path, size), at(3, 64 * MIB));
        // What the old primary sent and the new one never had.
        assert_eq!(begin(&at(1, 50 * MIB), &path, size), at(2, 32 * MIB));
    }

    #[test]
    fn what_is_kept_begins_with_its_segment_on_the_timeline_that_wrote_it() {
        let (size, path) = (SegmentSize::DEFAULT, history(2, "1 0/2100000\n"));
        assert_eq!(kept(Lsn::new(32 * MIB + 5).unwrap(), &path, size), at(1, 32 * MIB));
        assert_eq!(kept(Lsn::new(34 * MIB).unwrap(), &path, size), at(2, 32 * MIB));
        assert_eq!(kept(Lsn::new(49 * MIB).unwrap(), &path, size), at(2, 48 * MIB));
    }

    #[test]
    fn a_timeline_that_the_server_never_was_on_is_left_where_its_past_did() {
        let (size, path) = (SegmentSize::DEFAULT, history(3, "1 0/2100000\n"));
        assert_eq!(begin(&at(2, 40 * MIB), &path, size), at(3, 32 * MIB));
    }
}
