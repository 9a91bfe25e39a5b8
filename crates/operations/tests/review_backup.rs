//! What a backup must survive around its edges: tablespaces made meanwhile, attempts of a later clock, a writer's lost
//! cache.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::sync::Arc;

use operations::backup::backup;
use operations::monitor::{Event, Monitor};
use repository::manifest::Manifest;
use repository::secrets::Access;
use scene::{Scene, number, start, text, verify_backup};

/// Makes a tablespace and a table in it while the backup begins.
struct MakesTablespace<'s>(&'s Scene, std::path::PathBuf);

struct AtCheckpoint(Box<dyn Fn() + Send + Sync>);

impl Monitor for AtCheckpoint {
    fn event(&self, event: Event) {
        if matches!(event, Event::Phase("checkpoint")) {
            (self.0)();
        }
    }
}

impl MakesTablespace<'_> {
    fn act(&self) -> Box<dyn Fn() + Send + Sync> {
        let connection = std::sync::Mutex::new(self.0.server.connect().unwrap());
        let place = self.1.display().to_string();
        Box::new(move || {
            let connection = connection.lock().unwrap();
            connection.execute(&format!("create tablespace late location '{place}'"), &[]).unwrap();
            connection.run_script("create table there tablespace late as select 7 x").unwrap();
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tablespace_made_while_the_backup_begins_is_restored() {
    let scene = Scene::new().await;
    let place = scene.folder.path().join("space");
    std::fs::create_dir(&place).unwrap();
    scene.server.run_as().give(&place).unwrap();
    let monitor = AtCheckpoint(MakesTablespace(&scene, place.clone()).act());
    let request = scene.backup_request(true);
    let taking =
        backup(scene.server.connect().unwrap(), scene.repository.clone(), &request, Arc::new(monitor));
    let manifest = tokio::select! {
        report = taking => report.unwrap().manifest,
        () = scene.carry_for_ever() => unreachable!("it carries for ever"),
    };
    assert_eq!(manifest.server().tablespaces.len(), 1);
    scene.flush_wal().await;
    let into = scene.folder.path().join("restored");
    let mut request = scene.restore_request(&into);
    request.tablespaces_under = Some(scene.folder.path().join("spaces/deep"));
    scene.restore(request).await;
    verify_backup(&into);
    assert_eq!(number(&start(&into), "select x from there"), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_checksum_is_said_by_every_backup_that_holds_the_page() {
    let scene = Scene::with(|builder| builder.checksums(true)).await;
    scene.sql("create table t as select generate_series(1, 10000) x; checkpoint");
    let path = scene.server.data_directory().join(text(&scene.server, "select pg_relation_filepath('t')"));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", 3 * 8192 + 8000).unwrap();
    drop(file);
    // Long enough ago that the next backup need not read the file.
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let full = scene.backup(true).await;
    let incremental = scene.backup(false).await;
    assert!(incremental.totals().bytes_read < full.totals().bytes_read / 2);
    for manifest in [full, incremental] {
        assert_eq!((manifest.findings_total, manifest.findings[0].block), (1, 3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_later_than_any_attempt_before_it() {
    let scene = Scene::new().await;
    let attempt = Manifest { id: "20990101T000000Z-full".into(), ..Manifest::default() };
    scene.repository.publish_partial(&scene.cluster, &attempt, 1).await.unwrap();
    assert_eq!(scene.backup(true).await.id, "20990101T000001Z-full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_whose_cache_is_lost_reads_and_stores_everything() {
    let scene = Scene::new().await;
    scene.sql("create table t as select g id, repeat(md5(g::text), 20) x from generate_series(1, 40000) g");
    let local = scene.local();
    let access = || Access::Write(scene.keyring.writer.clone());
    let writer = || scene.opened(scene.memory.clone(), access(), Some(&local));
    let full = scene.backup_to(writer(), true).await.unwrap();
    let incremental = scene.backup_to(writer(), false).await.unwrap();
    assert!(incremental.totals().bytes_new * 10 < full.totals().bytes_new);
    let root = local.join(scene.repository.id());
    std::fs::remove_dir_all(root.join("maps")).unwrap();
    let without = scene.backup_to(writer(), false).await.unwrap();
    assert!(without.totals().bytes_new >= full.totals().bytes_new);
    scene::read_everything(&scene.readable(scene.memory.clone()), &without).await;
}
