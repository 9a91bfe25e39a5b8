//! What a restore must leave alone, and what it must get out of its way.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use operations::monitor::Silent;
use operations::restore::{RestoreError, execute, plan};
use repository::manifest::Manifest;
use scene::{Scene, number, start, verify_backup};
use server::throwaway::StopMode;

/// A cluster with a tablespace, backed up.
async fn with_tablespace() -> (Scene, Manifest, PathBuf) {
    let scene = Scene::new().await;
    let place = scene.folder.path().join("space");
    fs::create_dir(&place).unwrap();
    scene.server.run_as().give(&place).unwrap();
    let connection = scene.server.connect().unwrap();
    connection.execute(&format!("create tablespace far location '{}'", place.display()), &[]).unwrap();
    scene.sql("create table there tablespace far as select generate_series(1, 1000) x");
    // Somebody meant to make a standby of the cluster at its next start.
    fs::write(scene.server.data_directory().join("standby.signal"), "").unwrap();
    scene.server.run_as().give(&scene.server.data_directory().join("standby.signal")).unwrap();
    let manifest = scene.backup(true).await;
    scene.flush_wal().await;
    (scene, manifest, place)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_restore_keeps_to_its_own_and_clears_its_way() {
    let (scene, manifest, _) = with_tablespace().await;
    let oid = manifest.server().tablespaces[0].oid;
    let into = scene.folder.path().join("deep/er/data");
    let mut request = scene.restore_request(&into);
    request.tablespaces_under = Some(scene.folder.path().join("deep/spaces"));
    scene.restore(request.clone()).await;
    // The server's user gets through what root made.
    assert_eq!(
        (mode(into.parent().unwrap()), mode(&scene.folder.path().join("deep/spaces"))),
        (0o755, 0o755)
    );
    assert!(!into.join("standby.signal").exists());
    let mut server = start(&into);
    server.stop(StopMode::Fast).unwrap();
    drop(server);

    let space = scene.folder.path().join(format!("deep/spaces/{oid}"));
    let foreign = space.join("PG_9.6_201608131/5");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("1259"), "another cluster's").unwrap();
    let disk = scene.folder.path().join("waldisk");
    fs::rename(into.join("pg_wal"), &disk).unwrap();
    symlink(&disk, into.join("pg_wal")).unwrap();
    fs::remove_file(into.join("PG_VERSION")).unwrap();
    symlink("/etc/hostname", into.join("PG_VERSION")).unwrap();
    fs::remove_dir_all(into.join("pg_xact")).unwrap();
    fs::write(into.join("pg_xact"), "no directory").unwrap();

    request.delta = true;
    scene.restore(request).await;
    assert_eq!(fs::read_to_string(foreign.join("1259")).unwrap(), "another cluster's");
    fs::remove_dir_all(space.join("PG_9.6_201608131")).unwrap();
    verify_backup(&into);
    assert!(fs::symlink_metadata(into.join("pg_wal")).unwrap().is_dir());
    assert!(disk.join("archive_status").is_dir());
    assert_eq!(number(&start(&into), "select count(*) from there"), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_restore_never_takes_the_tablespace_of_the_cluster_beside_it() {
    let (scene, _, place) = with_tablespace().await;
    let into = scene.folder.path().join("copy");
    let mut request = scene.restore_request(&into);
    request.tablespaces_under = Some(scene.folder.path().join("spaces"));
    scene.restore(request.clone()).await;
    // Without the mapping the tablespace would go to where the running cluster has it.
    request.delta = true;
    request.tablespaces_under = None;
    let refused = plan(scene.repository.clone(), request).await.err();
    assert!(matches!(refused, Some(RestoreError::Tablespace { path, .. }) if path == place));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_restore_that_cannot_begin_takes_nothing_away() {
    let (scene, _, _) = with_tablespace().await;
    let into = scene.folder.path().join("copy");
    let mut request = scene.restore_request(&into);
    request.tablespaces_under = Some(scene.folder.path().join("spaces"));
    scene.restore(request.clone()).await;
    request.delta = true;
    request.tablespaces_under = Some(scene.folder.path().join("blocked"));
    let planned = plan(scene.repository.clone(), request.clone()).await.unwrap();
    fs::write(scene.folder.path().join("blocked"), "a file").unwrap();
    assert!(execute(planned, Arc::new(Silent)).await.is_err());
    assert!(into.join("global/pg_control").exists());
    // And it can go on once the obstacle is gone.
    fs::remove_file(scene.folder.path().join("blocked")).unwrap();
    scene.restore(request).await;
    verify_backup(&into);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_restore_never_removes_wal_that_was_not_archived() {
    let (scene, _, _) = with_tablespace().await;
    let into = scene.folder.path().join("copy");
    let mut request = scene.restore_request(&into);
    request.tablespaces_under = Some(scene.folder.path().join("spaces"));
    scene.restore(request.clone()).await;
    let waiting = into.join("pg_wal/archive_status/000000010000000000000009.ready");
    fs::write(&waiting, "").unwrap();
    request.delta = true;
    let refused = plan(scene.repository.clone(), request.clone()).await.err();
    assert!(
        matches!(refused, Some(RestoreError::NotOurs { ref what, .. }) if what.contains("never archived")),
        "{refused:?}"
    );
    fs::remove_file(waiting).unwrap();
    scene.restore(request).await;
}
