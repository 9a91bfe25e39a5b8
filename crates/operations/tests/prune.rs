//! Pruning: what nobody names goes, what is named stays whole, whatever happens on the way.
#![allow(clippy::unwrap_used)] // clippy.toml excuses test functions only, and all of this file is tests

mod scene;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use operations::check::check;
use operations::monitor::Silent;
use operations::prune::{Plan, PruneError, PruneReport, PruneRequest, execute, plan};
use operations::verify::{VerifyRequest, verify};
use repository::content::{EntryKind, Extent, LEAF_SPAN};
use repository::expired::ExpiredNote;
use repository::manifest::Manifest;
use repository::moved::Moved;
use repository::pack::OpenPack;
use repository::pages::pieces;
use repository::{PackId, Repository, layout};
use scene::Scene;
use storage::{Call, Calls, Fault, Faulty, Memory, Rule};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn request() -> PruneRequest {
    PruneRequest::default()
}

async fn prune(repository: &Arc<Repository>) -> PruneReport {
    let request = request();
    let plan = plan(repository, &request).await.unwrap();
    execute(repository, &plan, &request, "test", &Silent).await.unwrap()
}

/// A cluster with a table of incompressible rows, and three backups, of which the second differs from its neighbours in
/// most of the table. The backups' manifests, oldest first.
async fn three_backups(scene: &Scene) -> Vec<Manifest> {
    scene.sql(
        "create extension if not exists pgcrypto;
         create table kept (id int primary key, bytes bytea) with (autovacuum_enabled = off);
         alter table kept alter bytes set storage plain;
         insert into kept select i, gen_random_bytes(1024) from generate_series(1, 16000) i;
         create table changing as select i, gen_random_bytes(512) bytes from generate_series(1, 8000) i;
         checkpoint",
    );
    let first = scene.backup(true).await;
    // In place: most pages of `kept` are new, and here and there one is as it was.
    scene.sql("update kept set bytes = gen_random_bytes(1024) where id % 60 >= 14; checkpoint");
    let second = scene.backup(false).await;
    scene.sql("truncate changing; insert into changing select i, gen_random_bytes(512) from generate_series(1, 8000) i; checkpoint");
    let third = scene.backup(false).await;
    vec![first, second, third]
}

async fn expire(scene: &Scene, manifest: &Manifest) {
    let repository = scene.readable(scene.memory.clone());
    // By the storage's clock, which a test may have set back or ahead.
    let expired_us = repository.storage_clock().await.unwrap().unwrap().as_microsecond();
    let note = ExpiredNote { expired_us, ..ExpiredNote::default() };
    repository.note_expired(&scene.cluster, &manifest.id, &note).await.unwrap();
    repository.delete_manifest(&scene.cluster, &manifest.id).await.unwrap();
}

/// Neither check nor verify finds anything.
async fn assert_whole(scene: &Scene, memory: &Arc<Memory>) {
    let repository = scene.readable(memory.clone());
    let checked = check(&repository, &scene.cluster).await.unwrap();
    assert!(checked.findings.is_empty() && checked.not_looked_at.is_empty(), "{checked:?}");
    let request = VerifyRequest {
        cluster: scene.cluster.clone(),
        backups: Vec::new(),
        budget: None,
        older_than: None,
        workers: 2,
        host: "test".into(),
        stop: Arc::default(),
    };
    let verified = verify(&repository, &request, Arc::new(Silent)).await.unwrap();
    assert!(verified.report.findings.is_empty() && verified.stopped.is_none(), "{verified:?}");
    assert_eq!((verified.report.never_proved, verified.report.packs_proved), (0, verified.report.packs));
}

/// Every file of a backup, by the digest of its bytes, read as a restore reads it.
async fn contents(repository: &Repository, manifest: &Manifest) -> BTreeMap<Vec<u8>, blake3::Hash> {
    let (mut entries, mut files) = (repository.entries(manifest), BTreeMap::new());
    let mut chunks = Chunks { repository, packs: HashMap::new(), chunks: HashMap::new() };
    while let Some(entry) = entries.next().await.unwrap() {
        if entry.kind != EntryKind::File {
            continue;
        }
        let mut hasher = blake3::Hasher::new();
        for index in 0..entry.size.div_ceil(LEAF_SPAN) as u32 {
            for extent in repository.span_extents(&entry, index).await.unwrap() {
                chunks.read(extent, &mut hasher).await;
            }
        }
        files.insert(entry.path.clone(), hasher.finalize());
    }
    files
}

/// Chunks that were read, with all checks.
struct Chunks<'c> {
    repository: &'c Repository,
    packs: HashMap<PackId, Result<OpenPack, Arc<Moved>>>,
    chunks: HashMap<(PackId, u32), Vec<u8>>,
}

impl Chunks<'_> {
    async fn read(&mut self, extent: Extent, hasher: &mut blake3::Hasher) {
        let mut open = vec![extent];
        while let Some(extent) = open.pop() {
            if !self.packs.contains_key(&extent.pack) {
                let found = match self.repository.open_pack(extent.pack, None).await {
                    Ok(pack) => Ok(pack),
                    Err(absent) => Err(self.repository.moved_or(extent.pack, absent).await.unwrap()),
                };
                self.packs.insert(extent.pack, found);
            }
            match &self.packs[&extent.pack] {
                Err(moved) => open.extend(moved.forward(extent).unwrap().into_iter().rev()),
                Ok(pack) => {
                    for piece in pieces(&pack.table, extent).unwrap() {
                        let place = (piece.pack, piece.chunk);
                        if !self.chunks.contains_key(&place) {
                            let plain = self.repository.read_chunk(piece.pack, piece.chunk).await.unwrap();
                            self.chunks.insert(place, plain);
                        }
                        hasher.update(&self.chunks[&place][piece.offset as usize..][..piece.length as usize]);
                    }
                }
            }
        }
    }
}

/// The whole way of what is dead: marked, waited for, deleted; until nothing is left to do.
async fn prune_to_the_end(repository: &Arc<Repository>, memory: &Memory, from: Timestamp) -> PruneReport {
    let mut sum = PruneReport::default();
    for day in 0..20 {
        memory.set_clock(from + 3 * day * DAY);
        let report = prune(repository).await;
        sum.deleted_packs += report.deleted_packs;
        sum.deleted_bytes += report.deleted_bytes;
        sum.moved_packs += report.moved_packs;
        sum.moved_bytes += report.moved_bytes;
        if report == PruneReport::default() {
            return sum;
        }
    }
    panic!("there is always something left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dead_goes_after_its_grace_and_what_is_named_is_moved_and_stays_whole() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    let host = scene.readable(scene.memory.clone());
    let kept = [contents(&host, &backups[1]).await, contents(&host, &backups[2]).await];
    let stored = |memory: &Memory| -> u64 {
        memory
            .names()
            .iter()
            .filter(|name| layout::parse_pack(name.as_str()).is_some())
            .map(|name| memory.bytes(name).unwrap().len() as u64)
            .sum()
    };
    let before = stored(&scene.memory);
    let nothing = plan(&host, &request()).await.unwrap();
    assert!(nothing.mark_dead.is_empty() && nothing.delete_dead.is_empty(), "everything is named");

    expire(&scene, &backups[0]).await;
    let now = Timestamp::now() + Duration::from_secs(2 * 3600);
    scene.memory.set_clock(now);
    let first = prune(&host).await;
    assert!(first.moved_packs > 0 && first.marked_packs > 0 && first.deleted_packs == 0, "{first:?}");
    scene.memory.set_clock(now + DAY);
    assert_eq!(prune(&host).await.deleted_packs, 0, "the grace is not over");
    let sum = prune_to_the_end(&host, &scene.memory, now + 3 * DAY).await;
    assert!(sum.deleted_packs > 0, "{sum:?}");
    let after = stored(&scene.memory);
    assert!(after < before, "{before} -> {after}");

    // Read by a host that has seen nothing of it, and by one with the old tables in its cache.
    for host in [scene.readable(scene.memory.clone()), scene.repository.clone()] {
        for (manifest, kept) in backups[1..].iter().zip(&kept) {
            assert!(contents(&host, manifest).await == *kept, "{}", manifest.id);
        }
    }
    assert_whole(&scene, &scene.memory).await;
    let restored = scene.restore_latest().await;
    assert_eq!(scene::number(&restored, "select count(*) from kept"), 16000);
    scene::run(restored.command("pg_amcheck").args(["--all", "--install-missing", "--heapallindexed"]));
    drop(restored);

    // A host without a cache compares with what was moved, and names it again.
    scene.sql("update kept set bytes = bytes where id = 7; checkpoint");
    let fourth = scene.backup_to(scene.readable(scene.memory.clone()), false).await.unwrap();
    assert!(fourth.totals().bytes_new < fourth.totals().bytes / 3, "{:?}", fourth.totals());
    contents(&host, &fourth).await;
    for manifest in &backups[1..] {
        expire(&scene, manifest).await;
    }
    let fourth_files = contents(&host, &fourth).await;
    prune_to_the_end(&host, &scene.memory, now + 90 * DAY).await;
    assert!(contents(&scene.readable(scene.memory.clone()), &fourth).await == fourth_files);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_write_and_run_again_it_ends_the_same() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    expire(&scene, &backups[0]).await;
    let kept = contents(&scene.repository, &backups[2]).await;
    let now = Timestamp::now() + Duration::from_secs(2 * 3600);
    let mut killed = 0;
    // Every second write; a crash between two of them leaves what the first left.
    for at in (0..).step_by(2) {
        let memory = Arc::new(scene.memory.snapshot());
        memory.set_clock(now);
        let faulty = Arc::new(Faulty::dying_at_write(at, memory.clone()));
        let dying = scene.readable(faulty.clone());
        let mut died = false;
        for run in 0..4 {
            memory.set_clock(now + 3 * run * DAY);
            let step = async {
                let plan = plan(&dying, &request()).await?;
                execute(&dying, &plan, &request(), "dying", &Silent).await
            };
            died = step.await.is_err();
            if died {
                break;
            }
        }
        if !died {
            break;
        }
        killed += 1;
        // Another host, when the lease is over.
        let host = scene.readable(memory.clone());
        prune_to_the_end(&host, &memory, now + 30 * DAY).await;
        assert!(contents(&host, &backups[2]).await == kept, "killed at write {at}");
    }
    assert!(killed > 8, "only {killed} writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_that_a_backup_at_work_may_name() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    let host = scene.readable(scene.memory.clone());
    let now = Timestamp::now() + Duration::from_secs(2 * 3600);
    scene.memory.set_clock(now);
    // It has read its parent, which goes only then.
    host.claim(&scene.cluster, "20991122T020000Z-incremental", "somebody").await.unwrap();
    expire(&scene, &backups[0]).await;
    expire(&scene, &backups[1]).await;
    let marked = prune(&host).await;
    assert!(marked.marked_packs > 0);
    for days in [3, 6] {
        scene.memory.set_clock(now + days * DAY);
        let plan = plan(&host, &request()).await.unwrap();
        assert!(plan.delete_dead.is_empty() && plan.delete_moved.is_empty() && !plan.waiting.is_empty());
        assert_eq!(plan.at_work.as_deref(), Some("20991122T020000Z-incremental"));
    }
    // It publishes what names the old packs again.
    let again = Manifest { id: "20991122T020000Z-incremental".into(), ..backups[0].clone() };
    let files = contents(&host, &backups[0]).await;
    host.publish(&scene.cluster, again.clone(), None).await.unwrap();
    prune_to_the_end(&host, &scene.memory, now + 9 * DAY).await;
    assert!(contents(&scene.readable(scene.memory.clone()), &again).await == files);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_lacks_backups_or_packs_lets_nothing_go() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    let now = Timestamp::now() + Duration::from_secs(2 * 3600);
    for keep in 0..4 {
        let memory = Arc::new(scene.memory.snapshot());
        let faulty = Arc::new(Faulty::new(memory.clone()));
        let host = scene.readable(faulty.clone());
        for run in 0..4 {
            memory.set_clock(now + 3 * run * DAY);
            // The claims and manifests are listed third and fourth, after the clock and the marks.
            for skip in [3, 4, 5] {
                faulty.add(Rule {
                    calls: Calls::Of(Call::List),
                    skip,
                    hit: u64::from(skip != 3 || keep > 1),
                    fault: Fault::Truncate(keep),
                });
            }
            let plan = plan(&host, &request()).await.unwrap();
            faulty.clear();
            execute(&host, &plan, &request(), "test", &Silent).await.unwrap();
        }
        let whole = scene.readable(memory);
        for manifest in &backups {
            contents(&whole, manifest).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_stops_it_and_two_at_once_are_told_apart() {
    let scene = Scene::new().await;
    let backups = three_backups(&scene).await;
    let host = scene.readable(scene.memory.clone());
    let name = layout::manifest(&scene.cluster, &backups[1].id);
    let whole = scene.memory.bytes(&name).unwrap();
    scene.memory.damage(&name, Some(whole.slice(..whole.len() - 1)));
    let stopped = plan(&host, &request()).await.err().unwrap();
    assert!(matches!(stopped, PruneError::Unreadable { .. }), "{stopped}");
    scene.memory.damage(&name, Some(whole));

    expire(&scene, &backups[0]).await;
    let now = Timestamp::now() + Duration::from_secs(2 * 3600);
    scene.memory.set_clock(now);
    let other = scene.readable(scene.memory.clone());
    let kept = contents(&host, &backups[2]).await;
    let plans: [Plan; 2] = [plan(&host, &request()).await.unwrap(), plan(&other, &request()).await.unwrap()];
    // Even with the same plan, and one after the other.
    for plan in &plans {
        execute(&host, plan, &request(), "test", &Silent).await.unwrap();
    }
    for day in 1..6 {
        scene.memory.set_clock(now + 3 * day * DAY);
        let (one, two) = (plan(&host, &request()).await.unwrap(), plan(&other, &request()).await.unwrap());
        let request = request();
        let (one, two) = tokio::join!(
            execute(&host, &one, &request, "one", &Silent),
            execute(&other, &two, &request, "two", &Silent),
        );
        for outcome in [one, two] {
            assert!(matches!(outcome, Ok(_) | Err(PruneError::Lease(_))));
        }
    }
    assert!(contents(&scene.readable(scene.memory.clone()), &backups[2]).await == kept);
}
