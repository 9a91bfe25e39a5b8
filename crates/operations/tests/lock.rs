//! Object lock: what a backup needs is locked for as long as was promised, and what is locked is planned around.
#![allow(clippy::unwrap_used)] // clippy.toml excuses test functions only, and all of this file is tests

mod scene;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use operations::check::check;
use operations::monitor::Silent;
use operations::prune::{Plan, PruneReport, PruneRequest, execute, plan};
use pg::wal::{SegmentName, SegmentSize};
use pg::{Lsn, TimelineId};
use repository::expired::ExpiredNote;
use repository::manifest::Manifest;
use repository::secrets::Access;
use repository::{Repository, layout};
use scene::Scene;
use storage::{
    Call, Calls, Fault, Faulty, LockMode, LockRule, Memory, ObjectName, Recording, Rule, Storage,
    StorageError,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn lock(days: u32) -> Option<LockRule> {
    Some(LockRule { span: days * DAY, mode: LockMode::Governance, time_for: layout::lock_time })
}

async fn locks(memory: &Memory) -> BTreeMap<ObjectName, Option<Timestamp>> {
    let mut locks = BTreeMap::new();
    for name in memory.names() {
        let until = memory.locked_until(&name).await.unwrap();
        locks.insert(name, until);
    }
    locks
}

/// Everything that a restore of the backup needs is locked until then, and the manifest says nothing else of its packs.
async fn assert_locked(scene: &Scene, manifest: &Manifest, until: Timestamp) {
    let locks = locks(&scene.memory).await;
    let mut needed = vec![
        layout::description(),
        layout::identity(&scene.cluster),
        layout::manifest(&scene.cluster, &manifest.id),
    ];
    let below = |prefix: &str| -> Vec<ObjectName> {
        locks.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect()
    };
    let slots = below(layout::KEYS);
    let (size, span) = (SegmentSize::new(manifest.server().wal_segment_size).unwrap(), manifest.span());
    let segment = |lsn| SegmentName::containing(TimelineId::FIRST, Lsn::new(lsn).unwrap(), size).to_string();
    let (first, last) = (segment(span.start_lsn), segment(span.stop_lsn - 1));
    let mut wal = below(&layout::wal(&scene.cluster));
    wal.retain(|name| name.last_part() >= first.as_str() && name.last_part() <= last.as_str());
    assert!(slots.len() == 2 && !wal.is_empty() && !manifest.packs.is_empty());
    needed.extend(slots.into_iter().chain(wal));
    for pack in &manifest.packs {
        let name = layout::pack(pack.id().unwrap());
        assert!(pack.locked_until().unwrap() >= until, "{name}: {:?}", pack.locked_until());
        assert!(locks[&name] >= pack.locked_until(), "{name}: {:?}", locks[&name]);
    }
    for name in needed {
        assert!(locks[&name].is_some_and(|locked| locked >= until), "{name}: {:?}", locks[&name]);
    }
    let kept_in_order = ["claims/", "partial/", "leases/", "marks/"];
    for (name, locked) in &locks {
        let is_free = kept_in_order.iter().any(|part| name.as_str().contains(part));
        assert!(!is_free || locked.is_none(), "{name}");
    }
}

async fn pruned(repository: &Arc<Repository>, request: &PruneRequest) -> (Plan, PruneReport) {
    let plan = plan(repository, request).await.unwrap();
    let report = execute(repository, &plan, request, "test", &Silent).await.unwrap();
    (plan, report)
}

/// What expire would do if the manifest were not locked.
async fn gone(scene: &Scene, manifest: &Manifest) {
    // Later than its claim was made, by whichever clock.
    let expired_us = (Timestamp::now() + Duration::from_secs(3600)).as_microsecond();
    let note = ExpiredNote { expired_us, ..ExpiredNote::default() };
    scene.repository.note_expired(&scene.cluster, &manifest.id, &note).await.unwrap();
    scene.memory.damage(&layout::manifest(&scene.cluster, &manifest.id), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_locked_and_makes_only_those_locks_longer_that_would_end_too_early() {
    let scene = Scene::new().await;
    scene.memory.set_lock(lock(8));
    scene.sql("create table t as select i from generate_series(1, 20000) i; checkpoint");
    let began = Timestamp::now();
    let full = scene.backup(true).await;
    assert_locked(&scene, &full, began + 8 * DAY).await;

    // The slack of the packs is not used up: only what is small is locked anew.
    let recording = Arc::new(Recording::new(scene.memory.clone()));
    let began = Timestamp::now();
    let second = scene.backup_to(scene.readable(recording.clone()), false).await.unwrap();
    assert_eq!(recording.counts().calls(Call::Lock), 4, "description, identity and two slots");
    assert_locked(&scene, &second, began + 8 * DAY).await;

    // As after a fourth of the span: all of them would end too early.
    scene.memory.set_lock(lock(12));
    recording.reset();
    let began = Timestamp::now();
    let third = scene.backup_to(scene.readable(recording.clone()), false).await.unwrap();
    assert!(third.packs.len() > 1 && recording.counts().calls(Call::Lock) > 4, "{:?}", recording.counts());
    assert_locked(&scene, &third, began + 12 * DAY).await;
    let checked = check(&scene.readable(scene.memory.clone()), &scene.cluster).await.unwrap();
    assert!(checked.findings.is_empty(), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_locks_are_refused_or_whose_pack_is_gone_does_not_come_to_be() {
    let scene = Scene::new().await;
    scene.memory.set_lock(lock(8));
    let full = scene.backup(true).await;
    for skip in 0..4 {
        let faulty = Arc::new(Faulty::new(scene.memory.clone()));
        faulty.add(Rule { calls: Calls::Of(Call::Lock), skip, hit: 1, fault: Fault::Refuse });
        let failed = scene.backup_to(scene.readable(faulty), false).await.unwrap_err();
        assert!(scene::chain(&failed).contains("lock "), "{failed:?}");
    }
    // Absent and not moved, whatever a listing said before.
    let lost = Manifest { id: "20991122T020000Z-full".into(), ..full.clone() };
    scene.memory.set_lock(lock(20));
    scene.memory.damage(&layout::pack(full.packs[0].id().unwrap()), None);
    let failed = scene.repository.publish(&scene.cluster, lost, None).await.unwrap_err();
    assert!(failed.is_damage(), "{failed}");
    assert_eq!(scene.repository.backup_ids(&scene.cluster).await.unwrap(), [full.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_of_a_backup_that_is_not_locked_as_it_says() {
    let scene = Scene::new().await;
    let unlocked = scene.backup(true).await;
    scene.memory.set_lock(lock(8));
    let found = || async {
        let report = check(&scene.readable(scene.memory.clone()), &scene.cluster).await.unwrap();
        assert!(!report.is_damaged());
        report.findings.into_iter().map(|finding| finding.what).collect::<Vec<_>>()
    };
    assert_eq!(
        found().await,
        [format!("backup {} was made without the lock that is configured", unlocked.id)]
    );
    // Its packs are locked by the next backup that names them.
    let second = scene.backup(false).await;
    assert_eq!(found().await, [""; 0]);
    let name = layout::pack(second.packs[0].id().unwrap());
    let bytes = scene.memory.bytes(&name);
    scene.memory.damage(&name, bytes);
    let found = found().await;
    assert!(
        found.len() == 1 && found[0].contains("not locked for as long as it says, the first not at all"),
        "{found:?}"
    );
}

/// A cluster whose first backup is gone, and what of its packs nobody else names.
async fn dead_and_locked(scene: &Scene) -> [Manifest; 2] {
    scene.memory.set_lock(lock(8));
    scene.sql(
        "create extension if not exists pgcrypto;
         create table kept (id int primary key, bytes bytea) with (autovacuum_enabled = off);
         alter table kept alter bytes set storage plain;
         insert into kept select i, gen_random_bytes(1024) from generate_series(1, 16000) i;
         create table changing as select i, gen_random_bytes(512) bytes from generate_series(1, 60000) i;
         checkpoint",
    );
    let first = scene.backup(true).await;
    scene.sql(
        "update kept set bytes = gen_random_bytes(1024) where id % 60 >= 14;
         truncate changing; insert into changing select i, gen_random_bytes(512) from generate_series(1, 8000) i;
         checkpoint",
    );
    let second = scene.backup(false).await;
    gone(scene, &first).await;
    [first, second]
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_leaves_what_is_locked_to_a_later_run_and_says_until_when() {
    let scene = Scene::new().await;
    let [first, second] = dead_and_locked(&scene).await;
    let host = scene.readable(scene.memory.clone());
    let request = PruneRequest { max_repack: 0, ..PruneRequest::default() };
    let now = Timestamp::now() + Duration::from_secs(2 * 3600);
    scene.memory.set_clock(now);
    let (_, marked) = pruned(&host, &request).await;
    assert!(marked.marked_packs > 0);
    scene.memory.set_clock(now + 3 * DAY);
    let (locked, done) = pruned(&host, &request).await;
    assert_eq!(locked.locked.len() as u64, marked.marked_packs);
    assert!(locked.delete_dead.is_empty() && done.deleted_packs == 0, "{done:?}");
    let until = locked.locked_until.unwrap();
    let begun = Timestamp::from_microsecond(first.span().start_us).unwrap();
    assert!(until >= begun + 10 * DAY && until <= begun + 11 * DAY, "{until}");

    // Between plan and execution somebody makes a lock longer.
    scene.memory.set_clock(until + DAY);
    let planned = plan(&host, &request).await.unwrap();
    assert!(planned.locked.is_empty() && planned.delete_dead.len() as u64 == marked.marked_packs);
    let held = layout::pack(planned.delete_dead[0].id);
    scene.memory.lock_until(&held, until + 9 * DAY).await.unwrap();
    let report = execute(&host, &planned, &request, "test", &Silent).await.unwrap();
    assert_eq!((report.deleted_packs, report.locked_packs), (marked.marked_packs - 1, 1));
    assert_eq!(report.locked_until, Some(until + 9 * DAY));

    // A host that knows of no lock is refused by the storage and asks then.
    let unlocking = Arc::new(Faulty::new(scene.memory.clone()));
    scene.memory.set_lock(None);
    let unaware = scene.readable(unlocking);
    let (_, report) = pruned(&unaware, &request).await;
    assert_eq!((report.deleted_packs, report.locked_until), (0, Some(until + 9 * DAY)));
    scene.memory.set_clock(until + 10 * DAY);
    assert_eq!(pruned(&unaware, &request).await.1.deleted_packs, 1);
    scene::read_everything(&host, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_moved_is_locked_in_its_new_place_and_the_old_one_becomes_free() {
    let scene = Scene::new().await;
    let [_, second] = dead_and_locked(&scene).await;
    let host = scene.readable(scene.memory.clone());
    let now = Timestamp::now() + Duration::from_secs(2 * 3600);
    scene.memory.set_clock(now);
    let (moving, report) = pruned(&host, &PruneRequest::default()).await;
    assert!(report.moved_packs > 0, "{report:?}");
    let named = |manifest: &Manifest, id| manifest.packs.iter().any(|pack| pack.id().unwrap() == id);
    let old: Vec<_> = moving.repack.iter().map(|pack| pack.id).filter(|id| named(&second, *id)).collect();
    let before = locks(&scene.memory).await;

    // The next backup names the old place still.
    scene.memory.set_lock(lock(30));
    let began = Timestamp::now();
    let third = scene.backup_to(host.clone(), false).await.unwrap();
    let after = locks(&scene.memory).await;
    let old: Vec<_> = old.into_iter().filter(|id| named(&third, *id)).collect();
    assert!(!old.is_empty());
    for id in old {
        assert_eq!(after[&layout::pack(id)], before[&layout::pack(id)], "the old place");
        let until = Some(began + 30 * DAY);
        assert!(after[&layout::moved(id)] > until, "where it went");
        for to in host.moved(id).await.unwrap().unwrap().packs() {
            assert!(after[&layout::pack(to)] > until, "the new place");
        }
    }
    assert!(third.packs.iter().all(|pack| pack.locked_until().unwrap() >= began + 30 * DAY));

    // A writer cannot read where it went, and says so.
    let writer = scene.opened(scene.memory.clone(), Access::Write(scene.keyring.writer.clone()), None);
    scene.memory.set_lock(lock(60));
    let fourth = Manifest { id: "20991122T020000Z-full".into(), ..third.clone() };
    let fourth = writer.publish(&scene.cluster, fourth, None).await.unwrap();
    assert!(
        fourth.warnings.iter().any(|text| text.contains("locks were not made longer")),
        "{:?}",
        fourth.warnings
    );
    let short = fourth.packs.iter().filter(|pack| pack.locked_until().unwrap() < began + 60 * DAY).count();
    assert!(short > 0 && short < fourth.packs.len());
}

#[tokio::test]
async fn a_storage_without_locks_is_asked_nothing() {
    let memory = Memory::default();
    let failure = memory.lock_until(&layout::description(), Timestamp::MAX).await.unwrap_err();
    assert!(matches!(failure, StorageError::NoLock { .. }), "{failure:?}");
}
