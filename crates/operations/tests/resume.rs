//! B02: a backup that failed midway costs time only; what it stored is found again by content, never by name, size or
//! time.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use operations::backup::{BackupError, BackupRequest, Tuning, backup_tuned};
use operations::monitor::Silent;
use repository::Repository;
use repository::manifest::Manifest;
use repository::secrets::Access;
use scene::{Scene, number, read_everything, text};
use storage::{Faulty, Memory};

/// Tables of 6 MB that do not compress, in files of their own.
const TABLES: usize = 9;

impl Scene {
    fn fill(&self) {
        self.sql(
            "create function noise(seed int) returns bytea language sql immutable as \
             $$ select string_agg(decode(md5(seed::text || g), 'hex'), '') from generate_series(1, 100) g $$",
        );
        for table in 0..TABLES {
            let storage = "set storage external";
            self.sql(&format!("create table t{table} (id int, x bytea) with (fillfactor = 80)"));
            self.sql(&format!("alter table t{table} alter x {storage}"));
            self.sql(&format!(
                "insert into t{table} select g, noise({table} * 10000 + g) from generate_series(1, 3600) g"
            ));
        }
        self.sql("vacuum (freeze) ");
        self.sql("checkpoint");
    }

    fn file_of(&self, table: &str) -> PathBuf {
        let path = text(&self.server, &format!("select pg_relation_filepath('{table}')"));
        self.server.data_directory().join(path)
    }

    /// A backup by one worker that writes a partial manifest whenever it has something to say.
    async fn noting(&self, repository: Arc<Repository>, full: bool) -> Result<Manifest, BackupError> {
        let mut request = self.backup_request(full);
        request.workers = 1;
        let connection = self.server.connect().unwrap();
        let tuning = Tuning { partial_time: Duration::ZERO, ..Tuning::default() };
        let taking = backup_tuned(connection, repository, &request, Arc::new(Silent), &tuning);
        tokio::select! {
            report = taking => report.map(|report| report.manifest),
            () = self.carry_for_ever() => unreachable!("it carries for ever"),
        }
    }

    /// The repository over a storage that dies for ever at the `n`-th write.
    fn dying(&self, n: u64) -> Arc<Repository> {
        let faulty: Faulty<Arc<Memory>> = Faulty::dying_at_write(n, self.memory.clone());
        self.opened(Arc::new(faulty), Access::Full(self.keyring.clone()), None)
    }

    fn count(&self, part: &str) -> usize {
        self.memory.names().iter().filter(|name| name.as_str().contains(part)).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b02_the_backup_after_one_that_died_stores_only_what_is_missing() {
    let scene = Scene::new().await;
    scene.fill();
    scene.backup(true).await;
    scene.sql(&format!("create table t{TABLES} as select g, noise(g) x from generate_series(1, 100) g"));
    // Files settle: a change time within two seconds of a backup's beginning is not trusted.
    tokio::time::sleep(Duration::from_millis(2500)).await;

    let mut stored_whole = 0;
    for writes in 0.. {
        let partials = scene.count("/partial/");
        if let Ok(manifest) = scene.noting(scene.dying(writes), true).await {
            stored_whole = manifest.totals().bytes_stored;
            assert!(writes > 4, "it died {writes} times only");
            break;
        }
        let left = scene.count("/partial/") > partials;
        assert!(left || writes < 5, "write {writes} left no partial manifest");
        // The claim and two packs come first.
        if writes < 4 {
            continue;
        }
        // What the attempt left is used by the next one, and is not made again.
        let resumed = scene.noting(scene.readable(scene.memory.clone()), true).await.unwrap();
        assert!(resumed.totals().bytes_stored < 40 << 20, "{writes}: {:?}", resumed.totals());
        read_everything(&scene.repository, &resumed).await;
    }
    assert!(stored_whole > 50 << 20, "{stored_whole}");
}

/// Row 18 of the list of real failures: a resumed backup that trusted size and time was wrong for three years.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b02_a_file_that_changed_under_its_size_and_time_is_read_again() {
    let scene = Scene::new().await;
    scene.fill();
    let file = scene.file_of("t0");
    let before = std::fs::metadata(&file).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(scene.noting(scene.dying(5), true).await.is_err());
    assert!(scene.count("/partial/") > 0);

    scene.sql("update t0 set id = -1 where id = 7");
    scene.sql("checkpoint");
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(before.modified().unwrap())
        .unwrap();
    let after = std::fs::metadata(&file).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));

    let resumed = scene.noting(scene.readable(scene.memory.clone()), true).await.unwrap();
    assert!(resumed.totals().bytes_stored < 40 << 20, "nothing was resumed: {:?}", resumed.totals());
    scene.flush_wal().await;
    let restored = scene.restore_latest().await;
    assert_eq!(number(&restored, "select count(*) from t0 where id = -1"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b02_a_backup_whose_wal_came_too_late_costs_the_next_one_nothing() {
    let scene = Scene::new().await;
    scene.fill();
    // Nobody carries WAL into the repository meanwhile.
    let request = BackupRequest { wal_timeout: Duration::from_millis(300), ..scene.backup_request(true) };
    let connection = scene.server.connect().unwrap();
    let late =
        operations::backup::backup(connection, scene.repository.clone(), &request, Arc::new(Silent)).await;
    assert!(matches!(late, Err(BackupError::WalMissing { .. })), "{late:?}");
    assert!(scene.repository.backup_ids(&scene.cluster).await.unwrap().is_empty());
    let next = scene.backup(true).await;
    assert!(next.totals().bytes_stored < 2 << 20, "{:?}", next.totals());
}
