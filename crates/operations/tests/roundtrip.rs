//! A cluster is backed up and restored through the library, with `cp` as its archiver, on the newest PostgreSQL found.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::sync::Arc;

use operations::monitor::Silent;
use operations::restore::{execute, plan};
use scene::{Scene, number, start, verify_backup};
use server::throwaway::StopMode;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_incremental_and_restore_give_back_every_row() {
    let scene = Scene::new().await;
    scene.sql("create table t as select g id, repeat(md5(g::text), 5) x from generate_series(1, 200000) g");
    scene.sql("vacuum (freeze, analyze) t");
    let full = scene.backup(true).await;
    assert!(full.totals().bytes > 20 << 20);
    assert_eq!(full.findings_total, 0);

    scene.sql("update t set x = 'changed' where id % 5000 = 0");
    let incremental = scene.backup(false).await;
    assert_eq!(incremental.parent_id, full.id);
    assert!(incremental.totals().bytes_new * 5 < full.totals().bytes_new, "{:?}", incremental.totals());

    scene.sql("insert into t select g, 'late' from generate_series(200001, 200100) g");
    scene.flush_wal().await;

    let into = scene.folder.path().join("restored");
    let restore = plan(scene.repository.clone(), scene.restore_request(&into)).await.unwrap();
    assert_eq!(restore.backup, incremental.id);
    execute(restore, Arc::new(Silent)).await.unwrap();
    verify_backup(&into);

    let mut restored = start(&into);
    assert_eq!(number(&restored, "select count(*) from t"), 200_100);
    restored.stop(StopMode::Fast).unwrap();
    drop(restored);

    // Over the same directory: what recovery changed is put right again, by content.
    let mut request = scene.restore_request(&into);
    request.delta = true;
    request.backup = Some(full.id.clone());
    scene.restore(request).await;
    verify_backup(&into);
}
