//! Backups whose files come over SQL: what they share with local ones, what they skip, and which of their sessions may end.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use operations::backup::{BackupError, BackupReport, backup};
use operations::monitor::{Event, Monitor};
use operations::probe::Mode;
use scene::{Scene, number};
use server::connection::{Connection, ConnectionSettings};

const FILL: &str =
    "create table t as select g id, repeat(md5(g::text), 5) x from generate_series(1, 200000) g";

/// Long enough for every change time so far to be settled by the coarse rule.
async fn let_times_settle(scene: &Scene) {
    scene.sql("vacuum (freeze, analyze) t");
    scene.sql("checkpoint");
    tokio::time::sleep(Duration::from_millis(3100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_backup_and_one_over_sql_of_the_same_moment_share_what_they_store() {
    for (first, second) in [(Mode::Local, Mode::Sql), (Mode::Sql, Mode::Local)] {
        let mut scene = Scene::reading(first).await;
        scene.sql(FILL);
        let_times_settle(&scene).await;
        let full = scene.backup(true).await;
        assert!(full.totals().bytes_new > 20 << 20);
        scene.mode = second;
        let other = scene.backup(false).await;
        let (read, new) = (other.totals().bytes_read, other.totals().bytes_new);
        assert!(read > 20 << 20, "{first:?}, then {second:?}: times of one are nothing to the other: {read}");
        assert!(
            new < 512 << 10,
            "{first:?}, then {second:?}: {new} bytes of the same moment were stored again"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchanged_files_are_skipped_by_their_change_time() {
    let scene = Scene::reading(Mode::Sql).await;
    scene.sql(FILL);
    let_times_settle(&scene).await;
    let full = scene.backup(true).await;
    let idle = scene.backup(false).await;
    assert!(idle.totals().bytes_read * 10 < full.totals().bytes_read, "{:?}", idle.totals());
    scene.sql("update t set x = 'changed' where id % 5000 = 0");
    let changed = scene.backup(false).await;
    assert!(changed.totals().bytes_read > 20 << 20);
    assert!(changed.totals().bytes_new * 5 < full.totals().bytes_new, "{:?}", changed.totals());
    scene.flush_wal().await;
    let restored = scene.restore_latest().await;
    assert_eq!(number(&restored, "select count(*) from t where x = 'changed'"), 40);
}

/// Ends sessions of a backup when it copies files.
struct Killer {
    conninfo: String,
    /// Which sessions, by their name.
    victim: &'static str,
    /// At which of its events.
    at: u32,
    events: AtomicU32,
    killed: AtomicU32,
}

impl Monitor for Killer {
    fn event(&self, event: Event) {
        let counts = matches!(event, Event::Advanced { .. });
        if !counts || self.events.fetch_add(1, Ordering::SeqCst) % self.at != self.at - 1 {
            return;
        }
        let sql =
            "select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity where application_name = $1
                   and pid <> pg_backend_pid()";
        let settings = ConnectionSettings::new(self.conninfo.clone()).application_name("killer");
        let rows = Connection::connect(&settings).unwrap().query_one(sql, &[self.victim]).unwrap();
        self.killed.fetch_add(rows.first().unwrap().parse::<u32>(0).unwrap(), Ordering::SeqCst);
    }
}

async fn backup_with_killer(
    scene: &Scene,
    victim: &'static str,
    at: u32,
) -> (Result<BackupReport, BackupError>, u32) {
    let killer = Arc::new(Killer {
        conninfo: scene.server.conninfo(),
        victim,
        at,
        events: AtomicU32::new(0),
        killed: AtomicU32::new(0),
    });
    let request = scene.backup_request(true);
    let taking = backup(scene.server.connect().unwrap(), scene.repository.clone(), &request, killer.clone());
    let taken = tokio::select! {
        taken = taking => taken,
        () = scene.carry_for_ever() => unreachable!("it carries for ever"),
    };
    (taken, killer.killed.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_read_may_end_at_any_time() {
    let scene = Scene::reading(Mode::Sql).await;
    scene.sql(FILL);
    scene.sql("checkpoint");
    let (taken, killed) = backup_with_killer(&scene, "pgkeep files", 150).await;
    assert!(killed >= 4, "{killed} sessions were ended");
    assert_eq!(taken.unwrap().manifest.findings_total, 0);
    scene.flush_wal().await;
    let restored = scene.restore_latest().await;
    assert_eq!(number(&restored, "select count(*) from t"), 200_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_that_holds_the_backup_may_not() {
    let scene = Scene::reading(Mode::Sql).await;
    scene.sql(FILL);
    let (taken, killed) = backup_with_killer(&scene, "pgkeep", 20).await;
    assert!(killed >= 1);
    let error = taken.unwrap_err();
    assert!(
        matches!(error, BackupError::Session(server::backup::BackupError::SessionLost { .. })),
        "{error:?}"
    );
    assert_eq!(scene.repository.backup_ids(&scene.cluster).await.unwrap(), [] as [String; 0]);
}
