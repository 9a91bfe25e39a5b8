use pg::timeline::HistoryEntry;
use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB as u32).unwrap()
}

fn id(timeline: u32) -> TimelineId {
    TimelineId::new(timeline).unwrap()
}

fn lsn(position: u64) -> Lsn {
    Lsn::new(position).unwrap()
}

/// A path with the given points of change, in bytes; timelines count from 1.
fn path(switches: &[u64]) -> TimelineHistory {
    let entries: Vec<_> = (1..)
        .zip(switches)
        .map(|(number, &at)| HistoryEntry { timeline: id(number), switch_lsn: Lsn::new(at) })
        .collect();
    TimelineHistory { timeline: id(switches.len() as u32 + 1), entries }
}

fn inventory(stored: &[(u32, u64)]) -> Inventory {
    let mut inventory = Inventory::default();
    for &(timeline, number) in stored {
        let segment = SegmentName::from_number(id(timeline), number, size());
        inventory.segments.entry(id(timeline)).or_default().insert(segment, 1);
    }
    inventory
}

fn reach(stored: &[(u32, u64)], switches: &[u64], from: u64) -> (u64, Vec<(u32, u64, u64)>) {
    let reach = continuous_until(&inventory(stored), &path(switches), lsn(from), size());
    let holes =
        reach.holes.iter().map(|hole| (hole.timeline.get(), hole.from.get(), hole.to.get())).collect();
    (reach.end.get(), holes)
}

#[test]
fn wal_reaches_to_the_end_of_the_last_segment_before_a_hole() {
    assert_eq!(reach(&[(1, 3), (1, 4)], &[], 3 * MIB + 40), (5 * MIB, vec![]));
    let holes = vec![(1, 5 * MIB, 7 * MIB), (1, 8 * MIB, 9 * MIB)];
    assert_eq!(reach(&[(1, 3), (1, 4), (1, 7), (1, 9)], &[], 3 * MIB + 40), (5 * MIB, holes));
    assert_eq!(reach(&[], &[], 77), (77, vec![]));
    assert_eq!(reach(&[(1, 4)], &[], 3 * MIB + 40), (3 * MIB + 40, vec![(1, 3 * MIB + 40, 4 * MIB)]));
}

#[test]
fn the_segment_of_a_change_counts_whole_on_the_newer_timeline_only() {
    let switch = 5 * MIB + 100;
    assert_eq!(reach(&[(1, 4), (2, 5), (2, 6)], &[switch], 4 * MIB), (7 * MIB, vec![]));
    assert_eq!(reach(&[(1, 4), (1, 5)], &[switch], 4 * MIB), (switch, vec![]));
    assert_eq!(reach(&[(1, 4), (1, 5), (2, 6)], &[switch], 4 * MIB), (switch, vec![(2, switch, 6 * MIB)]));
    // The abandoned future of the older timeline is nothing to us, nor a segment of the newer one before it began.
    assert_eq!(reach(&[(1, 4), (1, 5), (1, 6), (2, 3)], &[switch], 4 * MIB), (switch, vec![]));
}

#[test]
fn a_change_on_a_boundary_needs_the_older_segment_before_and_the_newer_after() {
    assert_eq!(reach(&[(1, 4), (2, 5)], &[5 * MIB], 4 * MIB), (6 * MIB, vec![]));
    assert_eq!(reach(&[(2, 4), (2, 5)], &[5 * MIB], 4 * MIB), (4 * MIB, vec![(1, 4 * MIB, 5 * MIB)]));
}

#[test]
fn several_changes_in_one_segment() {
    let switches = [5 * MIB + 10, 5 * MIB + 20];
    assert_eq!(reach(&[(1, 4), (3, 5)], &switches, 4 * MIB), (6 * MIB, vec![]));
    assert_eq!(reach(&[(1, 4), (2, 5)], &switches, 4 * MIB), (5 * MIB + 20, vec![]));
}

#[test]
fn a_hole_between_parts_is_a_hole() {
    let mut inventory = inventory(&[(1, 4)]);
    let segment = SegmentName::from_number(id(1), 5, size());
    for (from, to) in [(0, 300), (100, 500), (800, 900)] {
        inventory.parts.insert(repository::archive::Part { segment, from, to }, 1);
    }
    let reach = continuous_until(&inventory, &path(&[]), lsn(4 * MIB), size());
    let hole = Hole { timeline: id(1), from: lsn(5 * MIB + 500), to: lsn(5 * MIB + 800) };
    assert_eq!((reach.end, reach.hole()), (hole.from, Some(hole)));
    // What a newer timeline has of the bytes before its beginning only does not count, nor what an older one wrote past its end.
    let reach = continuous_until(&inventory, &path(&[5 * MIB + 600]), lsn(4 * MIB), size());
    assert_eq!((reach.end.get(), reach.holes), (5 * MIB + 500, vec![]));
}

fn state(histories: &[TimelineHistory]) -> ArchiveState {
    let histories = histories.iter().map(|history| (history.timeline, history.clone())).collect();
    ArchiveState { histories, ..ArchiveState::default() }
}

#[test]
fn latest_is_the_newest_that_leads_through_the_backup() {
    let sibling = TimelineHistory { timeline: id(3), ..path(&[2 * MIB]) };
    let state = state(&[path(&[]), path(&[5 * MIB]), sibling]);
    assert_eq!(state.newest_descendant(id(1), lsn(4 * MIB)).timeline, id(2));
    assert_eq!(state.newest_descendant(id(1), lsn(2 * MIB)).timeline, id(3));
    assert_eq!(state.newest_descendant(id(1), lsn(6 * MIB)).timeline, id(1));
    assert_eq!(state.newest_descendant(id(9), lsn(MIB)), TimelineHistory::root(id(9)));
}

#[test]
fn a_timeline_that_cannot_be_followed_is_refused() {
    let mut state = state(&[path(&[]), path(&[5 * MIB])]);
    state.damaged_histories.insert(id(4), "cut short".into());
    let ask = |number| state.path(TargetTimeline::Id(id(number)), id(1), lsn(6 * MIB));
    assert_eq!(ask(2), Err(PathError::NotADescendant { wanted: id(2), timeline: id(1), lsn: lsn(6 * MIB) }));
    assert_eq!(ask(3), Err(PathError::Unknown { timeline: id(3) }));
    assert!(matches!(ask(4), Err(PathError::Damaged { .. })));
    assert_eq!(ask(1), Ok(path(&[])));
    let current = state.path(TargetTimeline::Current, id(7), lsn(6 * MIB));
    assert_eq!(current, Ok(TimelineHistory::root(id(7))));
}

#[test]
fn a_segment_left_midway_is_not_asked_for_its_commits() {
    let inventory = inventory(&[(1, 4), (1, 5), (2, 6)]);
    let path = path(&[5 * MIB + 100]);
    let ask = |number| whole_segment(&inventory, &path, number, size()).map(|segment| segment.timeline.get());
    assert_eq!([ask(4), ask(5), ask(6), ask(7)], [Some(1), None, Some(2), None]);
}

proptest! {
    /// Compared with a model that looks at each quarter of a segment by itself.
    #[test]
    fn ranges_agree_with_single_positions(
        stored in proptest::collection::vec((1u32..4, 1u64..12), 0..24),
        switches in proptest::collection::btree_set(4u64..48, 0..3),
        from in 4u64..48,
    ) {
        let quarter = MIB / 4;
        let switches: Vec<u64> = switches.into_iter().map(|at| at * quarter).collect();
        let (path, from) = (path(&switches), from * quarter);
        let is_stored = |position: u64| {
            let owner = path.timeline_at(lsn(position)).get();
            stored.iter().any(|&(timeline, number)| {
                let left = switches.get(timeline as usize - 1).copied().unwrap_or(u64::MAX);
                let begins = timeline.checked_sub(2).map_or(0, |before| {
                    switches.get(before as usize).copied().unwrap_or(u64::MAX)
                });
                number == position / MIB && timeline >= owner && position < left && begins < (number + 1) * MIB
            })
        };
        let mut end = from;
        while is_stored(end) {
            end += quarter;
        }
        let reach = continuous_until(&inventory(&stored), &path, lsn(from), size());
        prop_assert_eq!(reach.end.get(), end);
        for at in (from..13 * MIB).step_by(quarter as usize) {
            let in_hole = reach.holes.iter().any(|hole| (hole.from.get()..hole.to.get()).contains(&at));
            let later = (at..13 * MIB).step_by(quarter as usize).any(is_stored);
            prop_assert_eq!(in_hole, !is_stored(at) && later, "at {}", at);
        }
    }
}
