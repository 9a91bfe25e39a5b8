//! A cluster is backed up and restored through the library, with `cp` as its archiver, on the newest PostgreSQL found.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use operations::backup::{BackupRequest, backup};
use operations::monitor::Silent;
use operations::restore::{RestoreRequest, execute, plan};
use pg::recovery::{RecoveryTarget, TargetAction, TargetTimeline};
use repository::archive::WalInfo;
use repository::description::Description;
use repository::secrets::{Keyring, RepositoryId};
use repository::{ClusterName, Repository};
use server::throwaway::{Binaries, RunAs, StopMode, Throwaway};
use storage::Storage;

struct Scene {
    folder: tempfile::TempDir,
    server: Throwaway,
    repository: Arc<Repository>,
    cluster: ClusterName,
}

impl Scene {
    async fn new(storage: Arc<dyn Storage>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let wal = folder.path().join("wal");
        std::fs::create_dir(&wal).unwrap();
        RunAs::unprivileged().unwrap().give(&wal).unwrap();
        let binaries = Binaries::require(None).unwrap();
        let server = Throwaway::builder(&binaries)
            .checksums(true)
            .setting("archive_mode", "on")
            .setting("archive_command", &format!("cp %p {0}/%f.tmp && mv {0}/%f.tmp {0}/%f", wal.display()))
            .start()
            .unwrap();
        let keyring = Keyring::generate(RepositoryId::random());
        let description = Description::new(&keyring.writer, jiff::Timestamp::now(), true);
        let local = folder.path().join("local");
        let repository = Repository::create(storage, keyring, &[], description, Some(&local)).await.unwrap();
        let cluster = ClusterName::new("main").unwrap();
        Self { folder, server, repository: Arc::new(repository), cluster }
    }

    /// Carries what `cp` archived into the repository, for as long as the future runs.
    async fn carry_wal(&self) {
        let mut stored = std::collections::HashSet::new();
        loop {
            for entry in std::fs::read_dir(self.folder.path().join("wal")).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                let Ok(file) = name.parse::<pg::wal::FileName>() else { continue };
                if !stored.insert(name.clone()) {
                    continue;
                }
                let content = std::fs::read(&path).unwrap();
                let last = match &file {
                    pg::wal::FileName::Segment(segment) => {
                        pg::wal::records::commit_span(&content, segment, pg::wal::SegmentSize::DEFAULT)
                    }
                    _ => None,
                };
                let last_commit_us =
                    last.and_then(|span| span.last.to_timestamp()).map(|time| time.as_microsecond());
                let info = WalInfo {
                    name,
                    length: content.len() as u64,
                    stored_us: 0,
                    first_commit_us: None,
                    last_commit_us,
                };
                self.repository.store_wal(&self.cluster, &file, &content, &info, 2).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn backup(&self, full: bool) -> repository::manifest::Manifest {
        let request = BackupRequest {
            cluster: self.cluster.clone(),
            label: String::new(),
            full,
            reread: false,
            spread_checkpoint: false,
            workers: 2,
            level: 1,
            wal_timeout: Duration::from_secs(60),
        };
        let connection = self.server.connect().unwrap();
        let taking = backup(connection, self.repository.clone(), &request, Arc::new(Silent));
        tokio::select! {
            report = taking => report.unwrap().manifest,
            () = self.carry_wal() => unreachable!("it carries for ever"),
        }
    }

    fn request(&self, into: &Path) -> RestoreRequest {
        RestoreRequest {
            cluster: self.cluster.clone(),
            backup: None,
            into: into.to_owned(),
            target: RecoveryTarget::Latest,
            inclusive: true,
            timeline: TargetTimeline::Latest,
            action: TargetAction::Promote,
            tablespace_map: Vec::new(),
            tablespaces_under: None,
            delta: false,
            restore_command: format!("cp {}/%f %p", self.folder.path().join("wal").display()),
            keep_archiving: false,
            owner: None,
            workers: 2,
        }
    }

    fn count(&self, server: &Throwaway) -> i64 {
        server
            .connect()
            .unwrap()
            .query_one("select count(*) from t", &[])
            .unwrap()
            .first()
            .unwrap()
            .parse(0)
            .unwrap()
    }
}

fn execute_sql(server: &Throwaway, sql: &str) {
    server.connect().unwrap().run_script(sql).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_incremental_and_restore_give_back_every_row() {
    let scene = Scene::new(Arc::new(storage::Memory::default())).await;
    execute_sql(
        &scene.server,
        "create table t as select g id, repeat(md5(g::text), 5) x from generate_series(1, 200000) g",
    );
    execute_sql(&scene.server, "vacuum (freeze, analyze) t");
    let full = scene.backup(true).await;
    assert!(full.totals().bytes > 20 << 20);
    assert_eq!(full.findings_total, 0);

    execute_sql(&scene.server, "update t set x = 'changed' where id % 5000 = 0");
    let incremental = scene.backup(false).await;
    assert_eq!(incremental.parent_id, full.id);
    assert!(incremental.totals().bytes_new * 5 < full.totals().bytes_new, "{:?}", incremental.totals());

    execute_sql(&scene.server, "insert into t select g, 'late' from generate_series(200001, 200100) g");
    execute_sql(&scene.server, "select pg_switch_wal()");
    let _ = tokio::time::timeout(Duration::from_secs(3), scene.carry_wal()).await;

    let into = scene.folder.path().join("restored");
    let restore = plan(scene.repository.clone(), scene.request(&into)).await.unwrap();
    assert_eq!(restore.backup, incremental.id);
    execute(restore, Arc::new(Silent)).await.unwrap();
    verify_backup(&into);

    let binaries = Binaries::require(None).unwrap();
    let mut restored = Throwaway::builder(&binaries).start_existing(&into).unwrap();
    wait_until_promoted(&restored);
    assert_eq!(scene.count(&restored), 200_100);
    restored.stop(StopMode::Fast).unwrap();
    drop(restored);

    // Over the same directory: what recovery changed is put right again, by content.
    let mut request = scene.request(&into);
    request.delta = true;
    request.backup = Some(full.id.clone());
    let restore = plan(scene.repository.clone(), request).await.unwrap();
    execute(restore, Arc::new(Silent)).await.unwrap();
    verify_backup(&into);
}

fn wait_until_promoted(server: &Throwaway) {
    for _ in 0..300 {
        let recovering: bool = server
            .connect()
            .unwrap()
            .query_one("select pg_is_in_recovery()", &[])
            .unwrap()
            .first()
            .unwrap()
            .boolean(0)
            .unwrap();
        if !recovering {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("still in recovery: {}", server.log());
}

fn verify_backup(into: &Path) {
    let binaries = Binaries::require(None).unwrap();
    let output = binaries.command("pg_verifybackup").arg("-n").arg(into).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
