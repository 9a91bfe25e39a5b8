//! A bucket that was rolled back or robbed is noticed; a host with a writer credential adds and cannot read.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::sync::{Arc, Mutex};

use operations::backup::backup;
use operations::monitor::{Event, Monitor};
use operations::{catalogue, restore};
use repository::backups::ChainFinding;
use repository::manifest::BackupKind;
use repository::seal::SealError;
use repository::secrets::Access;
use repository::{RepositoryError, layout};
use scene::{Scene, chain, number, read_everything};

#[derive(Default)]
struct Listening(Mutex<Vec<String>>);

impl Monitor for Listening {
    fn event(&self, event: Event) {
        if let Event::Warning(text) = event {
            self.0.lock().unwrap().push(text);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x06_a_backup_that_is_gone_is_reported_by_the_chain_or_by_this_hosts_memory() {
    let scene = Scene::new().await;
    let (empty, mut copies) = (scene.memory.snapshot(), Vec::new());
    let mut ids = Vec::new();
    for full in [true, false, false] {
        ids.push(scene.backup(full).await.id);
        copies.push(scene.memory.snapshot());
    }
    let findings = async |memory: storage::Memory, with_memory: bool| {
        let local = scene.local();
        let access = Access::Full(scene.keyring.clone());
        let repository = scene.opened(Arc::new(memory), access, with_memory.then_some(&*local));
        let listed = repository.backups(&scene.cluster).await.unwrap();
        repository.check_chain(&scene.cluster, &listed, &repository.expired(&scene.cluster).await.unwrap())
    };
    let without = |at: usize| {
        let memory = scene.memory.snapshot();
        memory.damage(&layout::manifest(&scene.cluster, &ids[at]), None);
        memory
    };
    let rolled_back = [ChainFinding::RolledBack { newest_seen: ids[2].clone() }];
    assert_eq!(findings(scene.memory.snapshot(), true).await, []);
    assert_eq!(findings(without(2), true).await, rolled_back);
    assert_eq!(findings(copies[0].snapshot(), true).await, rolled_back);
    assert_eq!(findings(empty, true).await, rolled_back);
    for at in [0, 1] {
        let missing = ChainFinding::Missing { id: ids[at].clone(), named_by: ids[at + 1].clone() };
        assert_eq!(findings(without(at), false).await, [missing]);
    }
    // A host that never saw the newest cannot miss it, and one that looked does not forget.
    assert_eq!(findings(copies[0].snapshot(), false).await, []);
    assert_eq!(findings(copies[1].snapshot(), true).await, rolled_back);
    let access = Access::Full(scene.keyring.clone());
    let repository = scene.opened(Arc::new(without(2)), access, Some(&scene.local()));
    let listing = catalogue::list(&repository, &scene.cluster).await.unwrap();
    assert!(listing.chain[0].contains(&ids[2]));
}

/// The backup after a rollback is taken, for it protects; but what it noticed must not be lost with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x06_a_backup_into_a_bucket_that_was_rolled_back_says_so() {
    let scene = Scene::new().await;
    scene.backup(true).await;
    let old = scene.memory.snapshot();
    let lost = scene.backup(false).await;
    // The WAL that the server will not send again stays.
    for name in scene.memory.names() {
        if name.as_str().contains("/wal/") {
            old.damage(&name, scene.memory.bytes(&name));
        }
    }
    let repository = scene.opened(Arc::new(old), Access::Full(scene.keyring.clone()), Some(&scene.local()));
    let listening = Arc::new(Listening::default());
    let mut request = scene.backup_request(false);
    request.wal_timeout = std::time::Duration::from_millis(100);
    // Its own WAL goes to the other bucket, so this one is not published; it has warned before that.
    let taken = backup(scene.server.connect().unwrap(), repository, &request, listening.clone()).await;
    assert!(taken.is_err());
    let warnings = listening.0.lock().unwrap().clone();
    assert!(warnings.iter().any(|text| text.contains(&lost.id)), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_credential_adds_from_its_cache_and_reads_nothing() {
    let scene = Scene::new().await;
    scene.sql("create table t as select g id, repeat(md5(g::text), 5) x from generate_series(1, 50000) g");
    scene.sql("vacuum (freeze, analyze) t");
    let local = scene.folder.path().join("writer");
    let writer = |local: Option<&std::path::Path>| {
        scene.opened(scene.memory.clone(), Access::Write(scene.keyring.writer.clone()), local)
    };
    let full = scene.backup_to(writer(Some(&local)), false).await.unwrap();
    assert_eq!(full.backup_kind(), BackupKind::Full);
    scene.sql("update t set x = 'changed' where id = 1");
    let incremental = scene.backup_to(writer(Some(&local)), false).await.unwrap();
    assert_eq!((incremental.backup_kind(), &incremental.parent_id), (BackupKind::Incremental, &full.id));
    assert!(incremental.totals().bytes_new * 10 < full.totals().bytes_new, "{:?}", incremental.totals());

    let robbed = writer(Some(&local));
    let refused = robbed.manifest(&scene.cluster, &full.id).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::Seal(SealError::NoPrivateKey { .. })), "{refused}");
    assert!(robbed.open_pack(full.packs[0].id().unwrap(), None).await.is_err());
    let file = "000000010000000000000001".parse().unwrap();
    assert!(robbed.fetch_wal(&scene.cluster, &file).await.is_err());
    let into = scene.folder.path().join("robbed");
    let refused = restore::plan(robbed, scene.restore_request(&into)).await.err().unwrap();
    assert!(chain(&refused).contains("writer credential"), "{}", chain(&refused));

    // Without its cache nothing can be compared, so everything is stored; damage to the cache costs no more than that.
    let blind = scene.backup_to(writer(None), false).await.unwrap();
    assert!(blind.totals().bytes_new >= full.totals().bytes_new * 9 / 10);
    for entry in walk(&local) {
        std::fs::write(entry, b"garbage").unwrap();
    }
    let confused = scene.backup_to(writer(Some(&local)), false).await.unwrap();
    assert!(confused.totals().bytes_new >= full.totals().bytes_new * 9 / 10);
    for manifest in [&full, &incremental, &blind, &confused] {
        read_everything(&scene.readable(scene.memory.clone()), manifest).await;
    }
    scene.flush_wal().await;
    let restored = scene.restore_latest().await;
    assert_eq!(number(&restored, "select count(*) from t where x = 'changed'"), 1);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let (mut files, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files
}
