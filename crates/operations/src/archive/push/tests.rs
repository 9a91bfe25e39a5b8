use std::sync::Arc;

use pg::wal::SegmentSize;
use storage::{Call, Calls, Fault, Rule};

use super::*;
use crate::archive::testing::{World, mib, numbered, segment, segment_of};

const FIRST: &str = "000000010000000000000001";

fn hit(calls: Calls, fault: Fault) -> Rule {
    Rule { calls, skip: 0, hit: u64::MAX, fault }
}

async fn stored_content(world: &World, name: &str) -> Vec<u8> {
    let name = name.parse().unwrap();
    world.context.repository.fetch_wal(&world.context.cluster, &name).await.unwrap().1
}

#[tokio::test]
async fn a01_segments_pushed_in_any_order_are_all_there_once() {
    let world = Arc::new(World::new().await);
    let mut pushes = tokio::task::JoinSet::new();
    for number in (1..=60).rev() {
        let name = numbered(number);
        world.write(&name, &segment(&name, number as u8));
        for _ in 0..2 {
            let (world, name) = (world.clone(), name.clone());
            pushes.spawn(async move {
                let path = world.wal().join(&name);
                push_file(&world.context, &path, &name.parse().unwrap(), 1).await.unwrap().0
            });
        }
    }
    let stored = pushes.join_all().await;
    assert_eq!(stored.iter().filter(|&&stored| stored == Stored::New).count(), 60);
    let state = crate::reachable::ArchiveState::read(&world.context.repository, &world.context.cluster).await;
    let (path, from) =
        (pg::timeline::TimelineHistory::root(pg::TimelineId::FIRST), pg::Lsn::new(1 << 20).unwrap());
    let reach = crate::reachable::continuous_until(&state.unwrap().inventory, &path, from, mib());
    assert_eq!((reach.end.get(), reach.hole()), (61 << 20, None));
}

#[tokio::test]
async fn a02_the_same_file_again_is_success_and_stores_nothing() {
    let world = World::new().await;
    world.write(FIRST, &segment(FIRST, 7));
    assert_eq!(world.push(FIRST).await.unwrap(), Pushed::Stored);
    let objects = world.stored().await;
    assert_eq!(world.push(FIRST).await.unwrap(), Pushed::AlreadyThere);
    assert_eq!(world.stored().await, objects);
}

#[tokio::test]
async fn a03_another_content_under_the_same_name_is_refused_and_the_first_kept() {
    let world = World::new().await;
    world.archive(FIRST, 7).await;
    let mut other = segment(FIRST, 7);
    other[500_000] ^= 1;
    world.write(FIRST, &other);
    let error = world.push(FIRST).await.unwrap_err();
    assert!(matches!(&error, PushError::Archive { source: ArchiveError::Conflict { .. }, .. }), "{error:?}");
    assert_eq!(error.exit_status(), 6);
    assert_eq!(stored_content(&world, FIRST).await, segment(FIRST, 7));
}

#[tokio::test]
async fn a05_a_push_that_dies_at_any_write_is_made_good_by_the_next() {
    for n in 0..3 {
        for fault in [Fault::Refuse, Fault::LoseReply] {
            let world = World::new().await;
            world.faults.add(Rule { calls: Calls::Writes, skip: n, hit: u64::MAX, fault: fault.clone() });
            world.write(FIRST, &segment(FIRST, 7));
            let first = world.push(FIRST).await;
            assert_eq!(first.is_ok(), n == 2, "write {n}, {fault:?}");
            world.faults.clear();
            world.push(FIRST).await.unwrap();
            assert_eq!(stored_content(&world, FIRST).await, segment(FIRST, 7), "write {n}, {fault:?}");
        }
    }
}

#[tokio::test]
async fn a06_an_unreachable_repository_fails_in_time_and_recovers_alone() {
    let mut world = World::new().await;
    world.context.limits.deadline = Duration::from_millis(100);
    world.write(FIRST, &segment(FIRST, 7));
    for fault in [Fault::Hang, Fault::Fail, Fault::Refuse, Fault::Full] {
        world.faults.add(hit(Calls::Any, fault));
        let begun = Instant::now();
        let error = world.push(FIRST).await.unwrap_err();
        assert_eq!(error.exit_status(), 4, "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(3));
        world.faults.clear();
    }
    assert_eq!(world.push(FIRST).await.unwrap(), Pushed::Stored);
}

#[tokio::test]
async fn a08_another_cluster_cannot_push_to_the_stream() {
    let world = World::new().await;
    world.archive(FIRST, 7).await;
    let second = "000000010000000000000002";
    world.write(second, &segment_of(1, second, mib(), 0));
    let error = world.push(second).await.unwrap_err();
    assert!(
        matches!(&error, PushError::Archive { source: ArchiveError::OtherCluster { .. }, .. }),
        "{error:?}"
    );
    // A history file does not say whose it is; the control file beside it does.
    let global = world.folder.path().join("data/global");
    fs::create_dir_all(&global).unwrap();
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../pg/testdata/pg_control_15"), global.join("pg_control"))
        .unwrap();
    world.write("00000002.history", b"1\t0/3000000\treason\n");
    let error = world.push("00000002.history").await.unwrap_err();
    assert_eq!(error.exit_status(), 6, "{error:?}");
}

#[tokio::test]
async fn a10_segments_of_every_size_come_back_across_a_log_boundary() {
    for mib in [1u32, 16, 64] {
        let size = SegmentSize::new(mib << 20).unwrap();
        let last: SegmentName = format!("0000000100000000{:08X}", size.per_log() - 1).parse().unwrap();
        let world = World::new().await;
        for name in [last, last.next(size).unwrap()].map(|name| name.to_string()) {
            let content = segment_of(5, &name, size, mib as u8);
            world.write(&name, &content);
            assert_eq!(world.push(&name).await.unwrap(), Pushed::Stored);
            world.get(&name).await.unwrap();
            assert!(fs::read(world.restored()).unwrap() == content, "{name}");
        }
    }
}

#[tokio::test]
async fn what_is_not_the_segment_of_its_name_is_refused_and_binds_nothing() {
    let world = World::new().await;
    let good = segment(FIRST, 7);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let bad = [
        vec![],
        vec![0; 1 << 20],
        good[..1 << 19].to_vec(),
        [&good[..], &good[..]].concat(),
        changed(0, 0xFF),
        changed(4, 2),
        changed(10, 9),
        changed(34, 0x20),
    ];
    for (at, content) in bad.iter().enumerate() {
        world.write(FIRST, content);
        let status = world.push(FIRST).await.unwrap_err().exit_status();
        assert!((1..=125).contains(&status), "{at}");
    }
    for name in ["000000010000000000000001.gz", ""] {
        assert_eq!(world.push(name).await.unwrap_err().exit_status(), 2);
    }
    world.write("00000002.history", b"nonsense");
    for (name, status) in [("00000002.history", 5), ("000000010000000000000009", 4)] {
        assert_eq!(world.push(name).await.unwrap_err().exit_status(), status);
    }
    assert_eq!(world.stored().await, 0);
}

#[tokio::test]
async fn files_that_share_a_prefix_do_not_meet() {
    let world = World::new().await;
    let partial = format!("{FIRST}.partial");
    let note = format!("{FIRST}.00000028.backup");
    world.write(&partial, &segment(FIRST, 9));
    world.write(&note, b"START WAL LOCATION: 0/100028\n");
    world.write("00000001.history", b"");
    for name in [&partial, &note, "00000001.history"] {
        assert_eq!(world.push(name).await.unwrap(), Pushed::Stored);
    }
    assert_eq!(world.get(FIRST).await.unwrap_err().exit_status(), 1);
    world.write(FIRST, &segment(FIRST, 7));
    assert_eq!(world.push(FIRST).await.unwrap(), Pushed::Stored);
    assert_eq!(stored_content(&world, &partial).await, segment(FIRST, 9));
    assert_eq!(stored_content(&world, FIRST).await, segment(FIRST, 7));
}

fn write_backlog(world: &World, count: u64) {
    for number in 1..=count {
        world.write(&numbered(number), &segment(&numbered(number), number as u8));
    }
}

#[tokio::test]
async fn what_a_drainer_stored_is_answered_without_a_request() {
    let world = World::new().await;
    write_backlog(&world, 10);
    assert_eq!(drain(&world.context, &world.wal()).await.unwrap(), Drained { files: 10 });
    let before = world.store.counts().total();
    for number in 1..=10 {
        assert_eq!(world.push(&numbered(number)).await.unwrap(), Pushed::Ahead);
        world.done(&numbered(number));
    }
    assert_eq!(world.store.counts().total(), before);
    // PostgreSQL crashed before it knew, and asks again.
    assert_eq!(world.push(&numbered(3)).await.unwrap(), Pushed::AlreadyThere);
    assert_eq!(world.asked.lock().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_starts_a_drainer_and_every_call_answers_from_it() {
    let world = Arc::new(World::new().await);
    // Else the first two files would race to bind the stream.
    world.archive(&numbered(100), 0).await;
    write_backlog(&world, 40);
    let runtime = tokio::runtime::Handle::current();
    let start = |work: &Background| {
        let Background::Drain { wal_directory } = work.clone() else { panic!("{work:?}") };
        let world = world.clone();
        runtime.spawn(async move { drain(&world.context, &wal_directory).await });
        Ok(())
    };
    let mut ahead = 0;
    for number in 1..=40 {
        let pushed = run(&world.context, &world.wal().join(numbered(number)), &start).await.unwrap();
        world.done(&numbered(number));
        ahead += u64::from(pushed == Pushed::Ahead);
    }
    assert!(ahead >= 37, "{ahead} of 40: the last two are too few for a drainer of their own");
    assert_eq!(world.store.counts().calls(Call::Create), 1 + 1 + 1 + 40, "each was stored once");
}

#[tokio::test]
async fn a_single_waiting_file_starts_nothing() {
    let world = World::new().await;
    write_backlog(&world, 2);
    world.push(&numbered(1)).await.unwrap();
    assert_eq!(world.asked.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_drainer_that_never_comes_costs_only_time() {
    let world = World::new().await;
    write_backlog(&world, 5);
    assert_eq!(world.push(&numbered(1)).await.unwrap(), Pushed::Stored);
    assert_eq!(world.asked.lock().unwrap().len(), 1);
    let cannot = |_: &Background| Err(io::Error::other("no process"));
    assert_eq!(run(&world.context, &world.wal().join(numbered(2)), &cannot).await.unwrap(), Pushed::Stored);
}

#[tokio::test]
async fn a_drainer_stays_within_its_bound_when_nobody_asks() {
    let world = World::new().await;
    write_backlog(&world, 70);
    assert_eq!(drain(&world.context, &world.wal()).await.unwrap(), Drained { files: 64 });
    assert_eq!(Spool::open(&world.context, &world.wal()).unwrap().pushed().len(), 64);
}

#[tokio::test]
async fn a_drainer_ends_at_a_file_that_fails_and_the_call_for_it_tells_why() {
    let world = World::new().await;
    write_backlog(&world, 3);
    world.write(&numbered(2), b"not WAL");
    assert_eq!(drain(&world.context, &world.wal()).await.unwrap_err().exit_status(), 5);
    world.push(&numbered(1)).await.unwrap();
    assert_eq!(world.push(&numbered(2)).await.unwrap_err().exit_status(), 5);
}

#[tokio::test]
async fn a_note_answers_only_for_the_file_that_was_stored() {
    let world = World::new().await;
    write_backlog(&world, 1);
    drain(&world.context, &world.wal()).await.unwrap();
    let mut other = segment(&numbered(1), 1);
    other[70_000] ^= 1;
    world.write(&numbered(1), &other);
    assert_eq!(world.push(&numbered(1)).await.unwrap_err().exit_status(), 6);
}

#[tokio::test]
async fn a_note_of_another_cluster_or_repository_says_nothing() {
    let mut world = World::new().await;
    write_backlog(&world, 1);
    drain(&world.context, &world.wal()).await.unwrap();
    world.context.cluster = repository::ClusterName::new("other").unwrap();
    assert_eq!(world.push(&numbered(1)).await.unwrap(), Pushed::Stored);
}

#[tokio::test]
async fn notes_of_files_that_wait_no_longer_are_removed() {
    let world = World::new().await;
    write_backlog(&world, 4);
    drain(&world.context, &world.wal()).await.unwrap();
    (1..=4).for_each(|number| world.done(&numbered(number)));
    drain(&world.context, &world.wal()).await.unwrap();
    assert_eq!(Spool::open(&world.context, &world.wal()).unwrap().pushed(), [""; 0]);
}

#[tokio::test]
async fn a15_no_damage_to_a_local_file_makes_a_push_wrong() {
    let damage: [fn(&Path); 4] = [
        |path| fs::write(path, b"").unwrap(),
        |path| fs::write(path, b"\xff\x00 random").unwrap(),
        |path| {
            let mut bytes = fs::read(path).unwrap();
            if let Some(byte) = bytes.first_mut() {
                *byte ^= 1;
            }
            fs::write(path, bytes).unwrap();
        },
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ];
    let world = World::new().await;
    for (round, damage) in damage.iter().enumerate() {
        let names = [round as u64 * 2 + 1, round as u64 * 2 + 2].map(numbered);
        for name in &names {
            world.write(name, &segment(name, 1));
        }
        drain(&world.context, &world.wal()).await.unwrap();
        world.spool_files().iter().for_each(|path| damage(path));
        for name in &names {
            world.push(name).await.unwrap();
            world.done(name);
            assert_eq!(stored_content(&world, name).await, segment(name, 1));
        }
    }
}

#[tokio::test]
async fn a_spool_that_cannot_be_made_is_done_without() {
    let mut world = World::new().await;
    world.context.spool = Some("/dev/null/spool".into());
    world.write(FIRST, &segment(FIRST, 7));
    world.push(FIRST).await.unwrap();
    drain(&world.context, &world.wal()).await.unwrap();
    world.get(FIRST).await.unwrap();
}

#[test]
fn a_failed_push_is_never_taken_for_a_crash() {
    let missing = storage::StorageError::RootMissing { root: "/mnt".into() };
    for error in [missing.into(), repository::RepositoryError::Absent] {
        let error =
            PushError::Archive { name: FIRST.parse().unwrap(), source: ArchiveError::Repository(error) };
        assert_eq!(error.exit_status(), 3);
    }
}
