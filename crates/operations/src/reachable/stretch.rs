//! How far stored WAL goes without a hole: arithmetic on names.

use std::collections::BTreeMap;

use pg::timeline::TimelineHistory;
use pg::wal::SegmentSize;
use pg::{Lsn, TimelineId};
use repository::archive::{Inventory, stretches};

/// WAL that is missing although later WAL of the same past is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The timeline that the first missing byte belongs to.
    pub timeline: TimelineId,
    /// The first missing byte.
    pub from: Lsn,
    /// The first stored byte after it.
    pub to: Lsn,
}

impl std::fmt::Display for Hole {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "WAL is missing from {} to {} on timeline {}", self.from, self.to, self.timeline)
    }
}

/// How far replay gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The first byte that is not stored; the starting point itself when nothing is.
    pub end: Lsn,
    /// Every stretch missing between the starting point and the last stored byte, in order. The first begins at `end`.
    pub holes: Vec<Hole>,
}

impl Reach {
    /// The hole that replay would fall into; `None` when the WAL simply ends.
    pub fn hole(&self) -> Option<Hole> {
        self.holes.first().copied()
    }
}

/// How far replay from `from` gets along `path`, and what is missing after that.
///
/// A segment of a timeline counts up to the point where the path leaves it. The segment in which the path changes
/// timelines counts whole on the newer one, which begins as a copy of the older (`XLogFileCopy`), and up to the change on
/// the older. Of an unfinished segment its parts count, with holes between them; `.partial` files never do.
pub fn continuous_until(
    inventory: &Inventory,
    path: &TimelineHistory,
    from: Lsn,
    size: SegmentSize,
) -> Reach {
    let mut stored = stored_ranges(inventory, path, size);
    stored.sort_unstable();
    let (mut position, mut end, mut holes) = (from.get(), None, Vec::new());
    for (first, after) in stored {
        if after <= position {
            continue;
        }
        if first > position {
            end.get_or_insert(position);
            holes.extend(hole(path, position, first));
        }
        position = after;
    }
    let end = Lsn::new(end.unwrap_or(position)).unwrap_or(from);
    Reach { end, holes }
}

fn hole(path: &TimelineHistory, from: u64, to: u64) -> Option<Hole> {
    let (from, to) = (Lsn::new(from)?, Lsn::new(to)?);
    Some(Hole { timeline: path.timeline_at(from), from, to })
}

/// The parts of the path's past that are stored, as half-open ranges of positions.
fn stored_ranges(inventory: &Inventory, path: &TimelineHistory, size: SegmentSize) -> Vec<(u64, u64)> {
    let mut stored = Vec::new();
    let unfinished = inventory.unfinished();
    for (timeline, begin, left) in reigns(path) {
        for (segment, parts) in unfinished.iter().filter(|(segment, _)| segment.timeline == timeline) {
            let start = segment.start(size);
            for (from, to) in stretches(parts) {
                let (from, to) = (start + u64::from(from), (start + u64::from(to)).min(left));
                if segment.fits(size) && to > begin.max(from) {
                    stored.push((from, to));
                }
            }
        }
        let segments = inventory.segments.get(&timeline).into_iter().flat_map(BTreeMap::keys);
        for segment in segments.filter(|segment| segment.fits(size)) {
            let (start, end) = (segment.start(size), segment.end(size));
            if end > begin && start < left {
                stored.push((start, end.min(left)));
            }
        }
    }
    stored
}

/// Each timeline of the path with the positions where it begins and where it is left.
fn reigns(path: &TimelineHistory) -> impl Iterator<Item = (TimelineId, u64, u64)> + '_ {
    let mut begin = 0;
    path.lineage().map(move |timeline| {
        let left = if timeline == path.timeline {
            u64::MAX
        } else {
            path.switch_point(timeline).map_or(0, Lsn::get)
        };
        (timeline, std::mem::replace(&mut begin, left), left)
    })
}
