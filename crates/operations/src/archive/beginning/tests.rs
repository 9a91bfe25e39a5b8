use std::fs;
use std::time::Duration;

use repository::archive::WalInfo;
use storage::Storage as _;

use super::*;
use crate::archive::get::Got;
use crate::archive::testing::{World, archived, numbered, segment};

fn restored(world: &World) -> Vec<u8> {
    fs::read(world.restored()).unwrap()
}

async fn store_bytes(world: &World, part: Part, content: &[u8]) {
    let info = WalInfo::new(&part, content.len() as u64, (world.context.now)());
    let (repository, cluster) = (&world.context.repository, &world.context.cluster);
    repository.store_wal(cluster, &part, content, &info, 1).await.unwrap();
}

async fn store_part(world: &World, number: u64, from: u32, to: u32) {
    let content = segment(&numbered(number), number as u8);
    let part = Part { segment: numbered(number).parse().unwrap(), from, to };
    store_bytes(world, part, &content[from as usize..to as usize]).await;
}

/// The first bytes of a segment, and zeros and the mark in place of the rest.
fn beginning(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = segment(&numbered(number), number as u8);
    bytes[length..].fill(0);
    let at = bytes.len() - MARK.len();
    bytes[at..].copy_from_slice(MARK);
    bytes
}

async fn damage(world: &World, number: u64, from: u32, to: u32) {
    let part = Part { segment: numbered(number).parse().unwrap(), from, to };
    let name = repository::layout::wal_file(&world.context.cluster, &part);
    let mut bytes = world.store.read_all(&name, 1 << 20).await.unwrap().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    world.store.delete(&name).await.unwrap();
    world.store.create(&name, &[bytes.into()]).await.unwrap();
}

#[tokio::test]
async fn at_the_end_of_the_stream_parts_make_the_beginning_of_a_segment() {
    let world = archived(2).await;
    store_part(&world, 3, 0, 10_000).await;
    store_part(&world, 3, 4_000, 30_000).await;
    assert_eq!(world.get(&numbered(3)).await.unwrap(), Got::Beginning { bytes: 30_000 });
    assert!(restored(&world) == beginning(3, 30_000));
    assert_eq!(world.get(&numbered(4)).await.unwrap_err().exit_status(), 1);
    // As soon as it is whole, the whole is brought.
    world.archive(&numbered(3), 3).await;
    assert_eq!(world.get(&numbered(3)).await.unwrap(), Got::Fetched);
    assert!(restored(&world) == segment(&numbered(3), 3));
}

#[tokio::test]
async fn a_beginning_without_a_header_is_nothing() {
    let world = archived(2).await;
    store_part(&world, 3, 0, 39).await;
    assert_eq!(world.get(&numbered(3)).await.unwrap_err().exit_status(), 1);
}

#[tokio::test]
async fn a_hole_between_parts_stops_recovery_unless_its_target_lies_before() {
    let mut world = archived(2).await;
    store_part(&world, 3, 4_000, 30_000).await;
    let hole_of = async |world: &World| match world.get(&numbered(3)).await {
        Err(error @ GetError::Torn { from, to, .. }) => {
            assert_eq!(error.exit_status(), 205);
            (from, to)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(hole_of(&world).await, (0, 4_000));
    store_part(&world, 3, 0, 3_000).await;
    assert_eq!(hole_of(&world).await, (3_000, 4_000));
    world.context.up_to_gap = Some(numbered(3).parse().unwrap());
    assert_eq!(world.get(&numbered(3)).await.unwrap(), Got::Beginning { bytes: 3_000 });
    world.context.up_to_gap = None;
    // Whoever sees a longer part replace shorter ones looks again.
    world.context.limits.hole_wait = Duration::from_millis(300);
    let fill = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        store_part(&world, 3, 0, 20_000).await;
    };
    let third = numbered(3);
    let (got, ()) = tokio::join!(world.get(&third), fill);
    assert_eq!(got.unwrap(), Got::Beginning { bytes: 30_000 });
}

#[tokio::test]
async fn a_beginning_that_is_archived_leaves_the_name_to_its_segment() {
    let world = archived(2).await;
    store_part(&world, 3, 0, 30_000).await;
    world.get(&numbered(3)).await.unwrap();
    // As PostgreSQL does with `archive_mode = always`.
    let (name, stored) = (numbered(3), world.stored().await);
    world.write(&name, &restored(&world));
    world.push(&name).await.unwrap();
    world.push(&name).await.unwrap();
    assert_eq!(world.stored().await, stored + 1);
    let partial = world.object_of(&format!("{name}.partial"));
    assert!(world.store.size(&partial).await.is_ok());
    assert!(world.store.size(&world.object_of(&name)).await.is_err());
    // A second restore gets further; it can archive as well.
    store_part(&world, 3, 30_000, 35_000).await;
    world.get(&numbered(3)).await.unwrap();
    world.write(&name, &restored(&world));
    world.push(&name).await.unwrap();
    // A segment that its server switched away from ends in zeros as well.
    let mut switched = segment(&name, 3);
    switched[40_000..].fill(0);
    world.write(&name, &switched);
    world.push(&name).await.unwrap();
    assert!(world.store.size(&world.object_of(&name)).await.is_ok());
}

#[tokio::test]
async fn before_a_gap_a_beginning_is_brought_only_to_whoever_asks_for_it() {
    let mut world = archived(2).await;
    store_part(&world, 3, 0, 30_000).await;
    world.archive(&numbered(5), 5).await;
    let refused = world.get(&numbered(3)).await.unwrap_err();
    assert!(matches!(refused, GetError::Hole { .. }) && refused.exit_status() > 125, "{refused:?}");
    world.context.up_to_gap = Some(numbered(1).parse().unwrap());
    assert!(world.get(&numbered(3)).await.is_err(), "another gap than the one that was meant");
    world.context.up_to_gap = Some(numbered(3).parse().unwrap());
    assert_eq!(world.get(&numbered(3)).await.unwrap(), Got::Beginning { bytes: 30_000 });
    // Nothing of a backup that is kept alone lies behind it: for its target, WAL ends there.
    world.context.up_to_gap = Some(numbered(4).parse().unwrap());
    let absent = world.get(&numbered(4)).await.unwrap_err();
    assert!(matches!(absent, GetError::Absent { .. }) && absent.exit_status() == 1, "{absent:?}");
}

#[tokio::test]
async fn a_damaged_part_is_not_an_absent_one() {
    let world = archived(2).await;
    store_part(&world, 3, 0, 30_000).await;
    damage(&world, 3, 0, 30_000).await;
    let refused = world.get(&numbered(3)).await.unwrap_err();
    assert_eq!(refused.exit_status(), 205, "{refused:?}");
}

#[tokio::test]
async fn a_damaged_part_is_done_without_where_others_reach_as_far() {
    let world = archived(2).await;
    for (from, to) in [(0, 30_000), (0, 20_000), (20_000, 30_000)] {
        store_part(&world, 3, from, to).await;
    }
    damage(&world, 3, 0, 30_000).await;
    assert_eq!(world.get(&numbered(3)).await.unwrap(), Got::Beginning { bytes: 30_000 });
    assert!(restored(&world) == beginning(3, 30_000));
}

#[tokio::test]
async fn a_standby_is_given_no_beginning_and_keeps_what_it_has() {
    let world = archived(2).await;
    store_part(&world, 3, 0, 30_000).await;
    let signal = world.wal().parent().unwrap().join("standby.signal");
    fs::write(&signal, b"").unwrap();
    assert_eq!(world.get(&numbered(3)).await.unwrap_err().exit_status(), 1);
    fs::remove_file(signal).unwrap();
    assert_eq!(world.get(&numbered(3)).await.unwrap(), Got::Beginning { bytes: 30_000 });
}

#[tokio::test]
async fn more_of_a_segment_is_not_replaced_by_less() {
    let world = archived(2).await;
    store_part(&world, 3, 0, 30_000).await;
    let local = world.wal().join(numbered(3));
    fs::write(&local, segment(&numbered(3), 3)).unwrap();
    assert_eq!(world.get(&numbered(3)).await.unwrap_err().exit_status(), 1, "the server takes its own");
    // As much or less, or the rest of another segment, is none of it.
    for other in [beginning(3, 30_000), beginning(3, 20_000), segment(&numbered(1), 1)] {
        fs::write(&local, other).unwrap();
        assert_eq!(world.get(&numbered(3)).await.unwrap(), Got::Beginning { bytes: 30_000 });
    }
}

#[tokio::test]
async fn a_beginning_that_ends_before_its_timeline_begins_is_none() {
    let world = archived(2).await;
    let third: pg::wal::SegmentName = numbered(3).parse().unwrap();
    let name = third.on_timeline(pg::TimelineId::new(2).unwrap()).to_string();
    world.write("00000002.history", b"1\t0/305000\treason\n");
    world.push("00000002.history").await.unwrap();
    for (to, status) in [(0x5000u32, Some(1)), (0x5100, None)] {
        let part = Part { segment: name.parse().unwrap(), from: 0, to };
        store_bytes(&world, part, &segment(&name, 3)[..to as usize]).await;
        assert_eq!(world.get(&name).await.err().map(|error| error.exit_status()), status, "{to:X}");
    }
}

#[tokio::test]
async fn before_parts_behind_a_gap_nothing_is_absent() {
    let world = archived(2).await;
    store_part(&world, 5, 0, 30_000).await;
    let refused = world.get(&numbered(3)).await.unwrap_err();
    assert!(matches!(refused, GetError::Hole { .. }), "{refused:?}");
}
