//! Copying into another repository: what is restored from it is what the source gives, each page goes once, and whatever
//! happens on the way is made good by the next run.
#![allow(clippy::unwrap_used)] // clippy.toml excuses test functions only, and all of this file is tests

mod scene;

use std::collections::BTreeMap;
use std::sync::Arc;

use operations::copy::{CopyError, CopyReport, CopyRequest, execute, plan};
use operations::monitor::Silent;
use pg::recovery::RecoveryTarget;
use pg::wal::FileName;
use repository::archive::{Part, WalInfo};
use repository::description::Description;
use repository::manifest::Manifest;
use repository::secrets::{Access, Keyring, RepositoryId};
use repository::{Repository, layout};
use scene::{Scene, chain, read_everything, tree};
use storage::{Faulty, Memory, Storage};

/// A fresh repository, as `init` makes it.
struct Target {
    memory: Arc<Memory>,
    keyring: Keyring,
    description: Description,
}

impl Target {
    async fn new() -> Self {
        let (memory, keyring) = (Arc::new(Memory::default()), Keyring::generate(RepositoryId::random()));
        let description = Description::new(&keyring.writer, jiff::Timestamp::now(), true);
        Repository::create(memory.clone(), keyring.clone(), &[], description.clone(), None).await.unwrap();
        Self { memory, keyring, description }
    }

    /// As a host opens it that has seen nothing of it.
    fn open(&self) -> Arc<Repository> {
        self.over(self.memory.clone())
    }

    fn over(&self, storage: Arc<dyn Storage>) -> Arc<Repository> {
        let access = Access::Full(self.keyring.clone());
        Arc::new(Repository::assemble(storage, self.description.clone(), access, None))
    }

    fn pack_bytes(&self) -> u64 {
        pack_bytes(&self.memory)
    }
}

fn pack_bytes(memory: &Memory) -> u64 {
    let names = memory.names().into_iter().filter(|name| layout::parse_pack(name.as_str()).is_some());
    names.map(|name| memory.bytes(&name).unwrap().len() as u64).sum()
}

fn request(scene: &Scene, backups: &[&str]) -> CopyRequest {
    let backups = backups.iter().map(|id| (*id).to_owned()).collect();
    CopyRequest {
        cluster: scene.cluster.clone(),
        backups,
        only_wal: false,
        workers: 2,
        level: 1,
        note_every: 8 << 20,
    }
}

async fn copy(
    source: &Arc<Repository>,
    target: &Arc<Repository>,
    request: &CopyRequest,
) -> Result<CopyReport, CopyError> {
    let plan = plan(source, target, request).await?;
    execute(source, target, &plan, request, &Silent).await
}

/// A full backup and two incrementals of a cluster with files above 16 MiB and rows that do not compress.
async fn three_backups(scene: &Scene) -> Vec<Manifest> {
    scene.sql(
        "create extension if not exists pgcrypto;
         create table big (id int, bytes bytea) with (autovacuum_enabled = off);
         alter table big alter bytes set storage plain;
         insert into big select i, gen_random_bytes(1024) from generate_series(1, 24000) i;
         checkpoint",
    );
    let first = scene.backup(true).await;
    scene.sql("update big set bytes = gen_random_bytes(1024) where id % 400 = 0; checkpoint");
    let second = scene.backup(false).await;
    scene.sql("create table more as select i, gen_random_bytes(512) bytes from generate_series(1, 4000) i; checkpoint");
    let third = scene.backup(false).await;
    scene.flush_wal().await;
    vec![first, second, third]
}

/// What a restore of each backup gives.
async fn trees(
    scene: &Scene,
    repository: &Arc<Repository>,
    backups: &[Manifest],
) -> Vec<BTreeMap<std::path::PathBuf, (u32, String)>> {
    let mut trees = Vec::new();
    for (number, backup) in backups.iter().enumerate() {
        let into = scene.folder.path().join(format!("tree-{number}"));
        let mut request = scene.restore_request(&into);
        request.backup = Some(backup.id.clone());
        // A copy of single backups has no more WAL than that.
        request.target = RecoveryTarget::Immediate;
        let restore = operations::restore::plan(repository.clone(), request).await.unwrap();
        operations::restore::execute(restore, Arc::new(Silent)).await.unwrap();
        scene::verify_backup(&into);
        trees.push(tree(&into));
        std::fs::remove_dir_all(&into).unwrap();
    }
    trees
}

async fn assert_whole(target: &Target) {
    let repository = target.open();
    for cluster in operations::catalogue::clusters(&repository).await.unwrap() {
        let listed = repository.backups(&cluster).await.unwrap();
        assert_eq!(repository.check_chain(&cluster, &listed, &Default::default()), []);
        for backup in listed {
            read_everything(&repository, &backup.manifest.unwrap()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_copied_restores_the_same_each_page_once_and_a_second_copy_does_nothing() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    let target = Target::new().await;
    let everything = request(&scene, &[]);
    let report = copy(&scene.repository, &target.open(), &everything).await.unwrap();
    assert!(report.is_whole() && report.backups.len() == 3 && report.wal_files > 3, "{report:?}");
    assert_eq!(
        trees(&scene, &target.open(), &backups).await,
        trees(&scene, &scene.repository, &backups).await
    );
    assert_whole(&target).await;
    let (from, to) = (pack_bytes(&scene.memory), target.pack_bytes());
    assert!(to < from + from / 20, "{from} bytes of packs became {to}");

    let before = target.memory.names();
    let again = plan(&scene.repository, &target.open(), &everything).await.unwrap();
    assert!(again.is_empty() && again.shared.len() == 3, "{again:?}");
    execute(&scene.repository, &target.open(), &again, &everything, &Silent).await.unwrap();
    assert_eq!(target.memory.names(), before);

    // A later run finds in the target what earlier ones copied; so does a backup that is taken into it.
    scene.sql("update big set bytes = gen_random_bytes(1024) where id = 77; checkpoint");
    let fourth = scene.backup(false).await;
    let report = copy(&scene.repository, &target.open(), &everything).await.unwrap();
    assert_eq!(report.backups, std::slice::from_ref(&fourth.id));
    assert!(report.stored_bytes < to / 10, "{} of {to} bytes were stored again", report.stored_bytes);
    assert_whole(&target).await;
    let fourth = std::slice::from_ref(&fourth);
    assert_eq!(trees(&scene, &target.open(), fourth).await, trees(&scene, &scene.repository, fourth).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_that_are_named_come_alone_with_their_wal_and_others_join_them() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    let target = Target::new().await;
    let report = copy(&scene.repository, &target.open(), &request(&scene, &[&backups[2].id])).await.unwrap();
    assert_eq!(report.backups, [backups[2].id.clone()]);
    let all: usize = scene
        .repository
        .wal_inventory(&scene.cluster)
        .await
        .unwrap()
        .segments
        .values()
        .map(|of| of.len())
        .sum();
    assert!((report.wal_files as usize) < all, "{} of {all}", report.wal_files);
    assert_eq!(
        trees(&scene, &target.open(), &backups[2..]).await,
        trees(&scene, &scene.repository, &backups[2..]).await
    );
    let one = target.pack_bytes();
    copy(&scene.repository, &target.open(), &request(&scene, &[&backups[1].id])).await.unwrap();
    assert!(target.pack_bytes() < one + one / 5, "{one} -> {}", target.pack_bytes());
    assert_whole(&target).await;
    assert_eq!(
        trees(&scene, &target.open(), &backups[1..]).await,
        trees(&scene, &scene.repository, &backups[1..]).await
    );

    let unknown = copy(&scene.repository, &target.open(), &request(&scene, &["2001"])).await.unwrap_err();
    assert!(matches!(unknown, CopyError::Catalogue(_)), "{unknown}");
    let itself = copy(&scene.repository, &scene.repository, &request(&scene, &[])).await.unwrap_err();
    assert!(matches!(itself, CopyError::SameRepository), "{itself}");
    // The same id, and another backup.
    let mut other = backups[0].clone();
    other.span.as_mut().unwrap().start_lsn += 8;
    target.open().publish(&scene.cluster, other, None).await.unwrap();
    let conflict = copy(&scene.repository, &target.open(), &request(&scene, &[])).await.unwrap_err();
    assert!(matches!(conflict, CopyError::Conflict { .. }), "{conflict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_write_and_run_again_it_ends_the_same() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    let expected = trees(&scene, &scene.repository, &backups).await;
    let everything = request(&scene, &[]);
    let whole = Target::new().await;
    let clean = copy(&scene.repository, &whole.open(), &everything).await.unwrap().stored_bytes;
    let (mut killed, mut resumed) = (0, 0);
    for at in 0.. {
        let target = Target::new().await;
        let dying = target.over(Arc::new(Faulty::dying_at_write(at, target.memory.clone())));
        let died = copy(&scene.repository, &dying, &everything).await;
        // Whatever is published is whole.
        assert_whole(&target).await;
        match died {
            Ok(_) => break,
            Err(error) => assert!(chain(&error).contains("copied into"), "{}", chain(&error)),
        }
        killed += 1;
        let attempt = layout::partials(&scene.cluster);
        let is_noted = target.memory.names().iter().any(|name| name.as_str().starts_with(&attempt));
        let report = copy(&scene.repository, &target.open(), &everything).await.unwrap();
        assert!(report.is_whole(), "killed at write {at}: {report:?}");
        if is_noted {
            resumed += 1;
            assert!(report.stored_bytes < clean * 2 / 3, "{} of {clean} bytes again", report.stored_bytes);
        }
        assert_whole(&target).await;
        let ids = target.open().backup_ids(&scene.cluster).await.unwrap();
        assert_eq!(ids, backups.iter().map(|backup| backup.id.clone()).collect::<Vec<_>>());
        if at % 5 == 0 {
            assert!(trees(&scene, &target.open(), &backups).await == expected, "killed at write {at}");
        }
    }
    assert!(killed > 12 && resumed > 1, "{killed} writes, {resumed} of them after a note");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_is_named_and_only_what_needs_it_stays_behind() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    let own = backups[2].packs.iter().map(|pack| pack.id().unwrap());
    let before: Vec<_> = backups[1].packs.iter().map(|pack| pack.id().unwrap()).collect();
    let new = own.filter(|id| !before.contains(id)).collect::<Vec<_>>();
    for pack in new {
        let name = layout::pack(pack);
        let mut bytes = scene.memory.bytes(&name).unwrap().to_vec();
        bytes[100] ^= 1;
        scene.memory.damage(&name, Some(bytes.into()));
    }
    let target = Target::new().await;
    let source = scene.readable(scene.memory.clone());
    let report = copy(&source, &target.open(), &request(&scene, &[])).await.unwrap();
    assert_eq!(report.backups, [backups[0].id.clone(), backups[1].id.clone()]);
    assert_eq!(report.damaged[0].id, backups[2].id);
    assert!(report.damaged[0].why.contains("packs/"), "{report:?}");
    assert_eq!(target.open().backup_ids(&scene.cluster).await.unwrap().len(), 2);
    assert!(!target.open().has_claim(&scene.cluster, &backups[2].id).await.unwrap());
    assert_whole(&target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_its_wal_stays_behind_and_the_beginning_of_a_segment_comes_too() {
    let scene = Scene::new().await;
    let first = scene.backup(true).await;
    scene.flush_wal().await;
    let size = pg::wal::SegmentSize::new(first.server().wal_segment_size).unwrap();
    let timeline = pg::TimelineId::new(first.span().timeline).unwrap();
    let start = pg::Lsn::new(first.span().start_lsn).unwrap();
    let segment = pg::wal::SegmentName::containing(timeline, start, size);
    let name = layout::wal_file(&scene.cluster, &FileName::Segment(segment));
    let whole = scene.memory.bytes(&name).unwrap();
    scene.memory.damage(&name, Some(whole.slice(..whole.len() - 1)));

    let later = segment.on_timeline(timeline);
    let later = (0..40).fold(later, |at, _| at.next(size).unwrap());
    let part = |to| Part { segment: later, from: 0, to };
    for to in [4096, 8192] {
        let info = WalInfo::new(&part(to), to.into(), jiff::Timestamp::now());
        scene.repository.store_wal(&scene.cluster, &part(to), &vec![1; to as usize], &info, 1).await.unwrap();
    }
    let target = Target::new().await;
    let report = copy(&scene.repository, &target.open(), &request(&scene, &[])).await.unwrap();
    assert_eq!(
        (report.damaged_wal.len(), report.damaged.len(), report.backups.len()),
        (1, 1, 0),
        "{report:?}"
    );
    let parts = target.open().parts_of(&scene.cluster, &later).await.unwrap();
    assert_eq!(parts, [part(8192)]);

    // Repaired, and the segment is whole by now: its part goes.
    scene.memory.damage(&name, Some(whole));
    let info = WalInfo::new(&FileName::Segment(later), 8200, jiff::Timestamp::now());
    scene
        .repository
        .store_wal(&scene.cluster, &FileName::Segment(later), &vec![1; 8200], &info, 1)
        .await
        .unwrap();
    let report = copy(&scene.repository, &target.open(), &request(&scene, &[])).await.unwrap();
    assert!(report.is_whole() && report.backups.len() == 1, "{report:?}");
    assert!(target.open().parts_of(&scene.cluster, &later).await.unwrap().is_empty());
    assert_whole(&target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_prune_moved_is_found_where_it_is_now() {
    let scene = Scene::new().await;
    scene.sql(
        "create extension if not exists pgcrypto;
         create table kept (id int primary key, bytes bytea) with (autovacuum_enabled = off);
         alter table kept alter bytes set storage plain;
         insert into kept select i, gen_random_bytes(1024) from generate_series(1, 6000) i;
         checkpoint",
    );
    let first = scene.backup(true).await;
    scene.sql("update kept set bytes = gen_random_bytes(1024) where id % 60 >= 14; checkpoint");
    scene.sql("create table changing as select i, gen_random_bytes(512) bytes from generate_series(1, 9000) i; checkpoint");
    let second = scene.backup(false).await;
    scene.sql("truncate changing; insert into changing select i, gen_random_bytes(512) from generate_series(1, 9000) i; checkpoint");
    let third = scene.backup(false).await;
    scene.flush_wal().await;
    for gone in [&first, &second] {
        scene.memory.delete(&layout::manifest(&scene.cluster, &gone.id)).await.unwrap();
    }
    let pruning = operations::prune::PruneRequest::default();
    let source = scene.readable(scene.memory.clone());
    let (mut moved, now) = (0, jiff::Timestamp::now());
    for day in 1..8 {
        scene.memory.set_clock(now + jiff::SignedDuration::from_hours(24 * 3 * day));
        let plan = operations::prune::plan(&source, &pruning).await.unwrap();
        moved +=
            operations::prune::execute(&source, &plan, &pruning, "test", &Silent).await.unwrap().moved_packs;
    }
    assert!(moved > 0);
    let target = Target::new().await;
    let source = scene.readable(scene.memory.clone());
    let report = copy(&source, &target.open(), &request(&scene, &[])).await.unwrap();
    assert!(report.is_whole() && report.backups == [third.id.clone()], "{report:?}");
    let third = std::slice::from_ref(&third);
    assert_eq!(trees(&scene, &target.open(), third).await, trees(&scene, &source, third).await);
    assert_whole(&target).await;
}
