//! A repository with every kind of object that a backup, an attempt at one and an archiver make.

use repository::manifest::Manifest;

use super::Scene;

impl Scene {
    /// A full and an incremental backup, what an attempt at another left, and WAL behind them; nothing is damaged.
    pub async fn with_every_kind() -> (Self, Vec<Manifest>) {
        let scene = Self::with(|builder| builder.wal_segment_size_mib(1)).await;
        scene
            .sql("create table t as select g id, repeat(md5(g::text), 5) x from generate_series(1, 20000) g");
        let full = scene.backup(true).await;
        scene.sql("update t set x = 'changed' where id % 100 = 0");
        let incremental = scene.backup(false).await;
        let unfinished = Manifest { id: format!("{}x", incremental.id), ..incremental.clone() };
        scene.repository.publish_partial(&scene.cluster, &unfinished, 1).await.unwrap();
        scene.sql("insert into t select g, 'late' from generate_series(20001, 20100) g");
        scene.flush_wal().await;
        (scene, vec![full, incremental])
    }
}
