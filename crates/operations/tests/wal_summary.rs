//! WAL summaries that lie: a block that changed and is not named is found by the sample, and the backup is made without
//! them.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::sync::{Arc, Mutex, OnceLock};

use operations::backup::{BackupReport, ChangedBy, Tuning, backup_tuned};
use operations::monitor::{Event, Monitor};
use operations::probe::Mode;
use pg::wal::summary::ChangedBlocks;
use repository::manifest::Manifest;
use scene::{Scene, number};
use server::connection::{Connection, ConnectionSettings};
use server::throwaway::{Binaries, StopMode, Throwaway};

fn postgres_17() -> Binaries {
    Binaries::require(Some(pg::Major::new(17))).unwrap()
}

/// What was said while a backup ran.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Monitor for Heard {
    fn event(&self, event: Event) {
        if let Event::Warning(text) = event {
            self.0.lock().unwrap().push(text);
        }
    }
}

impl Scene {
    async fn by_summary(&self, alter_summary: Option<fn(&mut ChangedBlocks)>) -> (BackupReport, Vec<String>) {
        let mut request = self.backup_request(false);
        request.changed_by = ChangedBy::WalSummary;
        let tuning = Tuning { any_minor: true, alter_summary, partial_time: std::time::Duration::ZERO };
        let heard = Arc::new(Heard::default());
        let connection = self.server.connect().unwrap();
        let taking = backup_tuned(connection, self.repository.clone(), &request, heard.clone(), &tuning);
        let report = tokio::select! {
            report = taking => report.unwrap(),
            () = self.carry_for_ever() => unreachable!("it carries for ever"),
        };
        let heard = std::mem::take(&mut *heard.0.lock().unwrap());
        (report, heard)
    }

    async fn restored(&self, name: &str) -> Throwaway {
        let into = self.folder.path().join(name);
        self.restore(self.restore_request(&into)).await;
        scene::run(postgres_17().command("pg_verifybackup").arg("-n").arg(&into));
        let server = Throwaway::builder(&postgres_17()).start_existing(&into).unwrap();
        for _ in 0..600 {
            if number(&server, "select pg_is_in_recovery()::int") == 0 {
                return server;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("still in recovery: {}", server.log());
    }
}

async fn lying_summaries_are_found(mode: Mode) {
    let mut scene = Scene::of(&postgres_17(), |builder| builder.setting("summarize_wal", "on")).await;
    scene.mode = mode;
    scene.sql("create table t with (autovacuum_enabled = off) as select g as id, repeat(md5(g::text), 20) as x from generate_series(1, 60000) g");
    scene.sql("create table same as select g as id from generate_series(1, 50000) g");
    scene.sql("vacuum");
    scene.backup(true).await;

    scene.sql("update t set x = md5(x) || substr(x, 33) where id % 2 = 0");
    let forget: fn(&mut ChangedBlocks) = |changed| *changed = ChangedBlocks::default();
    let (report, heard) = scene.by_summary(Some(forget)).await;
    let told = "everything is compared by content";
    assert!(
        heard.iter().any(|text| text.contains("say nothing of block") && text.contains(told)),
        "{heard:?}"
    );
    assert!(
        report.manifest.warnings.iter().any(|text| text.contains(told)),
        "{:?}",
        report.manifest.warnings
    );
    let sum = "select sum(hashtext(x)::int8)::int8 from t";
    scene.flush_wal().await;
    let mut restored = scene.restored("after-a-lie").await;
    assert_eq!(number(&restored, sum), number(&scene.server, sum));
    restored.stop(StopMode::Fast).unwrap();

    // The next one believes again: those summaries tell the truth.
    scene.sql("update t set x = md5(x) || substr(x, 33) where id % 700 = 0");
    let (report, heard) = scene.by_summary(None).await;
    assert_eq!((heard, report.manifest.warnings.len()), (Vec::new(), 0));
    scene.flush_wal().await;
    let restored = scene.restored("after-the-truth").await;
    assert_eq!(number(&restored, sum), number(&scene.server, sum));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lying_summaries_are_found_and_the_backup_goes_by_content() {
    lying_summaries_are_found(Mode::Local).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lying_summaries_are_found_over_sql_too() {
    lying_summaries_are_found(Mode::Sql).await;
}

/// Without checksums a hint is not in the WAL: pages that differ by hints alone are no lie, and what is restored is the
/// same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_differ_by_hints_alone_are_no_lie() {
    let scene = Scene::of(&postgres_17(), |builder| {
        builder.checksums(false).setting("summarize_wal", "on").setting("autovacuum", "off")
    })
    .await;
    scene.sql(
        "create table t as select g as id, repeat(md5(g::text), 20) as x from generate_series(1, 60000) g",
    );
    scene.backup(true).await;
    // The first to look at a row notes on its page that it was committed.
    assert_eq!(number(&scene.server, "select count(*) from t"), 60_000);
    let (report, heard) = scene.by_summary(None).await;
    assert_eq!((heard, report.manifest.warnings.len()), (Vec::new(), 0));
    let totals = report.manifest.totals.unwrap();
    assert!(totals.bytes_read < 8 << 20, "{totals:?}");
    scene.flush_wal().await;
    let restored = scene.restored("hints").await;
    assert_eq!(number(&restored, "select count(*) from t where x = repeat(md5(id::text), 20)"), 60_000);
}

/// A change between the start of the backup and the listing is in the WAL of that backup, and not in the pages that it took
/// over: the next backup must not take the file for one that did not change since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_backup_reads_files_that_were_taken_over_in_part() {
    static SERVER: OnceLock<String> = OnceLock::new();
    let scene = Scene::of(&postgres_17(), |builder| builder.setting("summarize_wal", "on")).await;
    scene.sql("create table t with (autovacuum_enabled = off) as select g as id, 1 as x, repeat('t', 300) from generate_series(1, 60000) g");
    scene.sql("create index on t (id)");
    scene.sql("vacuum (freeze) t");
    scene.backup(true).await;
    scene.sql("update t set x = 2 where id = 1");
    SERVER.set(scene.server.conninfo()).unwrap();
    // Called when the summaries were read.
    let change: fn(&mut ChangedBlocks) = |_| {
        let connection = Connection::connect(&ConnectionSettings::new(SERVER.get().unwrap())).unwrap();
        connection.execute("update t set x = 3 where id between 30000 and 30100", &[]).unwrap();
        connection.execute("checkpoint", &[]).unwrap();
    };
    let (_, heard) = scene.by_summary(Some(change)).await;
    assert!(heard.is_empty(), "{heard:?}");
    let by_content = scene.backup(false).await;
    assert!(by_content.totals.unwrap().bytes_read > 16 << 20);
    scene.flush_wal().await;
    let restored = scene.restored("by-content").await;
    let sum = "select sum(x)::int8 from t";
    assert_eq!((number(&restored, sum), number(&scene.server, sum)), (60_203, 60_203));
    assert_eq!(number(&restored, "select count(*) from t where id between 30000 and 30100 and x = 3"), 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_what_is_taken_over_unread_is_told_again() {
    use std::os::unix::fs::FileExt as _;
    let scene = Scene::of(&postgres_17(), |builder| {
        builder.checksums(true).setting("summarize_wal", "on").setting("autovacuum", "off")
    })
    .await;
    scene.sql("create table t as select g as id, repeat('t', 300) from generate_series(1, 60000) g");
    scene.sql("vacuum (freeze) t");
    scene.sql("checkpoint");
    let file =
        scene.server.data_directory().join(scene::text(&scene.server, "select pg_relation_filepath('t')"));
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    // Several, for the sample reads some of them.
    (1000..1020).for_each(|block| file.write_all_at(b"damage", block * 8192 + 5000).unwrap());
    let full = scene.backup(true).await;
    assert_eq!(full.findings.len(), 20);
    scene.sql("update t set id = -1 where ctid = '(3,3)'");
    let (report, heard) = scene.by_summary(None).await;
    assert!(heard.is_empty(), "{heard:?}");
    let blocks = |manifest: &Manifest| {
        let mut blocks: Vec<_> = manifest.findings.iter().map(|page| page.block).collect();
        blocks.sort_unstable();
        blocks
    };
    assert_eq!(blocks(&report.manifest), blocks(&full));
    assert!(report.manifest.totals.unwrap().bytes_read < 8 << 20);
}
