//! B01, B05, B06: a backup of a server that is at work: tables come, go, grow and shrink under it.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use operations::probe::Mode;
use scene::{Scene, number, run, text};
use server::connection::Connection;
use server::throwaway::{StopMode, Throwaway};

/// Statements that other sessions run until they are told to stop.
struct Load {
    stop: AtomicBool,
    ddl: AtomicU64,
    /// Ids whose COMMIT was answered.
    acknowledged: Mutex<Vec<i64>>,
}

impl Load {
    fn new() -> Self {
        Self { stop: AtomicBool::new(false), ddl: AtomicU64::new(0), acknowledged: Mutex::default() }
    }

    /// Makes, fills, truncates and drops tables, about two hundred statements a second.
    fn ddl(&self, connection: &Connection) {
        let mut number = 0u64;
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            connection.run_script(&format!("create table d{number} (id int primary key, x text)")).unwrap();
            let fill = "select g, md5(g::text) from generate_series(1, 200) g";
            connection.run_script(&format!("insert into d{number} {fill}")).unwrap();
            if number.is_multiple_of(2) {
                connection.run_script(&format!("truncate d{number}")).unwrap();
            }
            if number >= 5 {
                connection.run_script(&format!("drop table d{}", number - 5)).unwrap();
            }
            number += 1;
            self.ddl.fetch_add(4, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(18).saturating_sub(began.elapsed()));
        }
    }

    fn ledger(&self, connection: &Connection) {
        for id in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            connection.run_script(&format!("insert into ledger values ({id}, md5('{id}'))")).unwrap();
            self.acknowledged.lock().unwrap().push(id);
        }
    }

    /// A table that grows past a leaf of the file list, is truncated, and loses its end to VACUUM.
    fn breathe(&self, connection: &Connection) {
        while !self.stop.load(Ordering::Relaxed) {
            let fill = "select g, repeat(md5(g::text), 6) from generate_series(1, 80000) g";
            connection.run_script(&format!("insert into breathing {fill}")).unwrap();
            connection.run_script("delete from breathing where id > 20000").unwrap();
            connection.run_script("vacuum breathing").unwrap();
            connection.run_script("truncate breathing").unwrap();
        }
    }
}

/// Every index against its table, and every page's checksum.
fn judge(mut restored: Throwaway, into: &Path) {
    run(restored.command("pg_amcheck").args(["--all", "--install-missing", "--heapallindexed"]));
    restored.stop(StopMode::Fast).unwrap();
    run(restored.binaries().command("pg_checksums").arg("--check").arg("-D").arg(into));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b01_b06_every_acknowledged_row_is_in_the_restored_cluster_though_tables_came_went_grew_and_shrank() {
    under_load(Mode::Local).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b01_b06_every_acknowledged_row_is_in_the_restored_cluster_though_tables_came_went_grew_and_shrank_over_sql()
 {
    under_load(Mode::Sql).await;
}

async fn under_load(mode: Mode) {
    let scene = Scene::reading(mode).await;
    scene.sql("create table ledger (id bigint primary key, x text)");
    scene.sql("create table breathing (id int, x text)");
    let load = Load::new();
    let sessions: Vec<Connection> = (0..3).map(|_| scene.server.connect().unwrap()).collect();
    let [first, second, third] = <[Connection; 3]>::try_from(sessions).ok().unwrap();
    let handle = tokio::runtime::Handle::current();
    let (manifests, elapsed) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| load.ddl(&first));
            scope.spawn(|| load.ledger(&second));
            scope.spawn(|| load.breathe(&third));
            let began = Instant::now();
            let mut manifests = Vec::new();
            for full in [true, false, false, true, false] {
                manifests.push(handle.block_on(scene.backup(full)));
            }
            load.stop.store(true, Ordering::Relaxed);
            (manifests, began.elapsed())
        })
    });
    let rate = load.ddl.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64();
    let ids = load.acknowledged.lock().unwrap().clone();
    assert!(rate > 40.0 && ids.len() > 100, "{rate} statements a second, {} rows", ids.len());
    for manifest in &manifests {
        assert_eq!(manifest.findings, [], "the server's own pages are sound");
        assert!(manifest.totals().pages_verified > 0);
    }
    scene.flush_wal().await;
    let restored = scene.restore_latest().await;
    let expected = ids.last().unwrap() + 1;
    assert_eq!(number(&restored, "select count(*) from ledger where x = md5(id::text)"), expected);
    let tables = "select count(*) from pg_class where relkind = 'r' and relname ~ '^d[0-9]+$'";
    assert_eq!(number(&restored, tables), number(&scene.server, tables));
    judge(restored, &scene.folder.path().join("restored"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b05_unlogged_and_temporary_tables_are_left_out_and_usable_after() {
    unlogged_and_temporary(Mode::Local).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b05_unlogged_and_temporary_tables_are_left_out_and_usable_after_over_sql() {
    unlogged_and_temporary(Mode::Sql).await;
}

async fn unlogged_and_temporary(mode: Mode) {
    let scene = Scene::reading(mode).await;
    let fill = "select g id, repeat(md5(g::text), 5) x from generate_series(1, 20000) g";
    scene.sql(&format!("create unlogged table u as {fill}"));
    scene.sql("create index on u (id)");
    let session = scene.server.connect().unwrap();
    session.run_script(&format!("create temp table s as {fill}")).unwrap();
    scene.sql("checkpoint");
    let path = text(&scene.server, "select pg_relation_filepath('u')");
    let manifest = scene.backup(true).await;

    let mut entries = scene.repository.entries(&manifest);
    let mut found = Vec::new();
    while let Some(entry) = entries.next().await.unwrap() {
        found.push(String::from_utf8(entry.path).unwrap());
    }
    assert!(!found.contains(&path) && found.contains(&format!("{path}_init")), "{path}");
    assert!(!found.contains(&format!("{path}_fsm")));
    let temporary = |path: &String| path.rsplit('/').next().unwrap().starts_with('t');
    let left: Vec<&String> =
        found.iter().filter(|path| temporary(path) && path.starts_with("base/")).collect();
    assert_eq!(left, [] as [&String; 0]);
    scene.flush_wal().await;
    let restored = scene.restore_latest().await;
    assert_eq!(number(&restored, "select count(*) from u"), 0);
    restored.connect().unwrap().run_script("insert into u values (1, 'again')").unwrap();
    assert_eq!(number(&restored, "select count(*) from u where id = 1"), 1);
    judge(restored, &scene.folder.path().join("restored"));
    drop(session);
}
