use storage::{Call, Calls, Fault, Rule, Storage as _};

use super::*;
use crate::archive::testing::{World, archived, numbered, segment, segment_of};
use repository::ClusterName;

const FIRST: &str = "000000010000000000000001";

fn restored(world: &World) -> Vec<u8> {
    fs::read(world.restored()).unwrap()
}

#[tokio::test]
async fn what_was_pushed_comes_back_byte_for_byte() {
    let world = archived(2).await;
    fs::write(world.restored(), b"left by the call before").unwrap();
    fs::write(world.wal().join("pgkeep-RECOVERYXLOG.part"), b"left by a killed call").unwrap();
    assert_eq!(world.get(&numbered(1)).await.unwrap(), Got::Fetched);
    assert_eq!(restored(&world), segment(&numbered(1), 1));
    let mut left: Vec<_> =
        fs::read_dir(world.wal()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.retain(|name| name.to_str().unwrap().starts_with("pgkeep"));
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_history_file_comes_back_or_is_absent() {
    let world = archived(1).await;
    world.write("00000002.history", b"1\t0/3000000\treason\n");
    world.push("00000002.history").await.unwrap();
    world.get("00000002.history").await.unwrap();
    assert_eq!(restored(&world), b"1\t0/3000000\treason\n");
    assert_eq!(world.get("00000003.history").await.unwrap_err().exit_status(), 1);
}

#[tokio::test]
async fn the_end_of_the_archive_is_absence_and_nothing_is_written() {
    let world = archived(3).await;
    let error = world.get(&numbered(4)).await.unwrap_err();
    assert_eq!((error.exit_status(), error.to_string().contains(&numbered(4))), (1, true));
    assert!(!world.restored().exists());
    assert_eq!(world.asked.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_hole_is_no_absence() {
    let world = archived(3).await;
    world.store.delete(&world.object_of(&numbered(2))).await.unwrap();
    let error = world.get(&numbered(2)).await.unwrap_err();
    assert!(matches!(error, GetError::Hole { later, .. } if later.to_string() == numbered(3)));
    assert_eq!(error.exit_status(), 205);
    // Later in another log still counts; on another timeline it does not.
    let world = World::new().await;
    world.archive(&numbered(5000), 1).await;
    world.archive("000000020000000000000009", 1).await;
    assert_eq!(world.get(&numbered(1)).await.unwrap_err().exit_status(), 205);
    assert_eq!(world.get(&numbered(5001)).await.unwrap_err().exit_status(), 1);
}

#[tokio::test]
async fn a_segment_that_arrives_out_of_order_is_waited_for() {
    let mut world = archived(3).await;
    let late = world.object_of(&numbered(2));
    let bytes = world.store.read_all(&late, u64::MAX).await.unwrap();
    world.store.delete(&late).await.unwrap();
    world.context.limits.hole_wait = Duration::from_secs(5);
    let arrive = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.store.create(&late, &[bytes]).await.unwrap();
    };
    let name = numbered(2);
    let (got, ()) = tokio::join!(world.get(&name), arrive);
    assert_eq!(got.unwrap(), Got::Fetched);
}

#[tokio::test]
async fn nothing_is_absent_from_a_place_that_is_not_the_archive() {
    let world = archived(1).await;
    world.store.delete(&repository::layout::identity(&world.context.cluster)).await.unwrap();
    assert_eq!(world.get(&numbered(2)).await.unwrap_err().exit_status(), 203);
    let world = archived(1).await;
    world.store.delete(&repository::layout::description()).await.unwrap();
    assert_eq!(world.get("00000002.history").await.unwrap_err().exit_status(), 203);
    let mut world = archived(1).await;
    world.context.cluster = ClusterName::new("misspelt").unwrap();
    for name in [&numbered(1), &numbered(2), "00000002.history"] {
        assert_eq!(world.get(name).await.unwrap_err().exit_status(), 203, "{name}");
    }
}

#[tokio::test]
async fn no_failure_of_the_storage_is_taken_for_absence() {
    for fault in [Fault::Fail, Fault::Refuse, Fault::Hang, Fault::Truncate(10), Fault::Flip(60)] {
        for (name, skips) in [(numbered(1), 2), (numbered(2), 6), ("00000002.history".to_owned(), 4)] {
            for skip in 0..skips {
                let mut world = archived(1).await;
                world.context.limits.deadline = Duration::from_millis(100);
                world.faults.add(Rule { calls: Calls::Any, skip, hit: 1, fault: fault.clone() });
                let status = world.get(&name).await.map_or_else(|error| error.exit_status(), |_| 0);
                let counted = world.store.counts();
                let right = if name == numbered(1) { 0 } else { 1 };
                assert!(status == right || status >= 200, "{name} {fault:?} {skip}: {status} {counted:?}");
                if status == 0 {
                    assert_eq!(restored(&world), segment(&name, 1));
                }
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_or_exchanged_object_is_never_handed_out() {
    let world = archived(2).await;
    let (one, two) = (world.object_of(&numbered(1)), world.object_of(&numbered(2)));
    let bytes = world.store.read_all(&one, u64::MAX).await.unwrap();
    for at in [0, 20, 100, 140, 200, bytes.len() - 1] {
        let mut bad = bytes.to_vec();
        bad[at] ^= 1;
        world.store.delete(&one).await.unwrap();
        world.store.create(&one, &[bad.into()]).await.unwrap();
        assert_eq!(world.get(&numbered(1)).await.unwrap_err().exit_status(), 205, "byte {at}");
    }
    world.store.delete(&one).await.unwrap();
    world.store.create(&one, &[world.store.read_all(&two, u64::MAX).await.unwrap()]).await.unwrap();
    assert_eq!(world.get(&numbered(1)).await.unwrap_err().exit_status(), 205);
    assert!(!world.restored().exists());
}

#[tokio::test]
async fn a_stored_segment_of_another_place_is_refused() {
    let world = archived(1).await;
    for (system, other) in [(7, "000000010000000000000005"), (crate::archive::testing::SYSTEM, FIRST)] {
        let name: FileName = if system == 7 { other } else { "000000010000000000000006" }.parse().unwrap();
        let content = segment_of(system, other, crate::archive::testing::mib(), 3);
        let info = repository::archive::WalInfo {
            name: name.to_string(),
            length: content.len() as u64,
            ..Default::default()
        };
        world.context.repository.store_wal(&world.context.cluster, &name, &content, &info, 1).await.unwrap();
        assert_eq!(world.get(&name.to_string()).await.unwrap_err().exit_status(), 205);
    }
}

#[tokio::test]
async fn wrong_requests_stop_recovery() {
    let world = archived(1).await;
    for name in ["", "RECOVERYHISTORY", "../000000010000000000000001", "000000010000000000000001.gz"] {
        assert_eq!(world.get(name).await.unwrap_err().exit_status(), 202, "{name}");
    }
    let start = |_: &Background| Ok(());
    let nowhere = world.folder.path().join("absent/RECOVERYXLOG");
    assert_eq!(run(&world.context, FIRST, &nowhere, &start).await.unwrap_err().exit_status(), 204);
}

fn queue(world: &World) -> Vec<String> {
    let spool = Spool::open(&world.context, &world.wal()).unwrap();
    spool.fetched_names().iter().map(SegmentName::to_string).collect()
}

fn wanted(world: &World) -> (PathBuf, SegmentName) {
    match world.asked.lock().unwrap().pop() {
        Some(Background::Prefetch { wal_directory, after }) => (wal_directory, after),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_fetched_ahead_are_handed_out_without_a_request() {
    let mut world = archived(20).await;
    world.context.limits.prefetch = 4;
    world.get(&numbered(1)).await.unwrap();
    let (wal_directory, after) = wanted(&world);
    let context = world.context.clone();
    let prefetcher = tokio::spawn(async move { prefetch(&context, &wal_directory, after).await });
    let mut ahead = 0;
    for number in 2..=20 {
        let begun = Instant::now();
        while !queue(&world).contains(&numbered(number)) && begun.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(queue(&world).len() <= 4, "{:?}", queue(&world));
        ahead += u64::from(world.get(&numbered(number)).await.unwrap() == Got::Ahead);
        assert_eq!(restored(&world), segment(&numbered(number), number as u8));
    }
    assert_eq!(ahead, 19);
    assert_eq!(prefetcher.await.unwrap().unwrap(), Prefetched { segments: 19 });
    let reads = world.store.counts().calls(Call::ReadAll);
    assert!(reads < 2 * 20, "each was fetched once, and the end looked for: {reads}");
}

#[tokio::test]
async fn what_nobody_takes_is_removed_and_bounded() {
    let mut world = archived(6).await;
    world.context.limits.prefetch = 3;
    let (after, wal) = (numbered(1).parse().unwrap(), world.wal());
    let (done, most) = tokio::join!(prefetch(&world.context, &wal, after), async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        queue(&world).len()
    });
    assert_eq!((done.unwrap(), most), (Prefetched { segments: 3 }, 3));
    assert_eq!(queue(&world), [""; 0]);
}

#[tokio::test]
async fn a_second_prefetcher_leaves_at_once() {
    let world = archived(3).await;
    let after: SegmentName = numbered(1).parse().unwrap();
    let (wal, spool) = (world.wal(), Spool::open(&world.context, &world.wal()).unwrap());
    let lock = spool.lock(Role::Prefetch).await.unwrap();
    assert_eq!(prefetch(&world.context, &wal, after).await.unwrap(), Prefetched::default());
    drop(lock);
    assert_eq!(prefetch(&world.context, &wal, after).await.unwrap(), Prefetched { segments: 2 });
}

#[tokio::test]
async fn a15_no_damage_to_a_fetched_segment_is_handed_out() {
    let damage: [fn(&Path); 4] = [
        |path| fs::write(path, b"").unwrap(),
        |path| fs::write(path, vec![7; 1 << 20]).unwrap(),
        |path| {
            let mut bytes = fs::read(path).unwrap();
            if let Some(byte) = bytes.last_mut() {
                *byte ^= 1;
            }
            fs::write(path, bytes).unwrap();
        },
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ];
    for damage in damage {
        let files = spool_of_three().await.spool_files().len();
        for at in 0..files {
            let world = spool_of_three().await;
            damage(&world.spool_files()[at]);
            for number in 2..=4 {
                world.get(&numbered(number)).await.unwrap();
                assert_eq!(restored(&world), segment(&numbered(number), number as u8), "file {at}");
                fs::remove_file(world.restored()).unwrap();
            }
        }
    }
}

async fn keep_fetched(world: &World, spool: &Spool, name: &SegmentName, content: &[u8]) {
    let mut incoming = spool.announce(name).unwrap();
    incoming.take(content).unwrap();
    let digest = world.context.repository.digester().content(content);
    spool.keep_fetched(name, incoming, digest).await.unwrap();
}

/// A world whose prefetcher was killed with three segments in the spool.
async fn spool_of_three() -> World {
    let world = archived(4).await;
    let spool = Spool::open(&world.context, &world.wal()).unwrap();
    let _lock = spool.lock(Role::Prefetch).await.unwrap();
    for number in 2..=4 {
        let name = numbered(number).parse().unwrap();
        keep_fetched(&world, &spool, &name, &segment(&numbered(number), number as u8)).await;
    }
    world
}

#[tokio::test]
async fn an_announcement_of_a_dead_prefetcher_is_not_waited_for() {
    let world = archived(2).await;
    let spool = Spool::open(&world.context, &world.wal()).unwrap();
    std::mem::forget(spool.announce(&numbered(2).parse().unwrap()).unwrap());
    let begun = Instant::now();
    assert_eq!(world.get(&numbered(2)).await.unwrap(), Got::Fetched);
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_segment_of_another_repository_in_the_spool_is_not_believed() {
    let world = spool_of_three().await;
    let other = World::with_key(2).await;
    let context = Context { repository: other.context.repository.clone(), ..world.context.clone() };
    let spool = Spool::open(&context, &world.wal()).unwrap();
    assert!(spool.fetched(&numbered(2).parse().unwrap()).is_none());
}

#[tokio::test]
async fn a_storage_that_hangs_before_the_identity_is_known_is_not_waited_for_for_ever() {
    let mut world = archived(1).await;
    world.context.limits.deadline = Duration::from_millis(100);
    fs::remove_dir_all(world.folder.path().join("state")).unwrap();
    world.faults.add(Rule { calls: Calls::Any, skip: 0, hit: 1, fault: Fault::Hang });
    let name = numbered(1);
    let got = tokio::time::timeout(Duration::from_secs(10), world.get(&name)).await;
    assert_eq!(got.expect("it ends by its deadline").unwrap_err().exit_status(), 204);
}

#[tokio::test]
async fn what_an_earlier_recovery_left_does_not_keep_a_prefetcher_away() {
    let mut world = archived(20).await;
    world.context.limits.prefetch = 4;
    let spool = Spool::open(&world.context, &world.wal()).unwrap();
    for number in 11..=14 {
        let name = numbered(number).parse().unwrap();
        keep_fetched(&world, &spool, &name, &segment(&numbered(number), number as u8)).await;
    }
    world.get(&numbered(1)).await.unwrap();
    assert_eq!(wanted(&world).1.to_string(), numbered(1));
    // Those that are wanted next do.
    world.get(&numbered(10)).await.unwrap();
    assert_eq!(world.asked.lock().unwrap().len(), 0);
}
