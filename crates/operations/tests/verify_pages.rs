//! Pages of relations are judged by their checksums from the repository alone, for servers with and without them.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use operations::findings::Severity;
use operations::monitor::Silent;
use operations::verify::{VerifyReport, VerifyRequest, known_damage, verify};
use pg::Major;
use scene::{Scene, text};
use server::throwaway::Binaries;

async fn verified(scene: &Scene, backups: &[&str]) -> VerifyReport {
    let request = VerifyRequest {
        cluster: scene.cluster.clone(),
        backups: backups.iter().map(|id| (*id).to_owned()).collect(),
        budget: None,
        older_than: None,
        workers: 2,
        host: "test".into(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let verified = verify(&scene.repository, &request, Arc::new(Silent)).await.unwrap();
    assert!(verified.stopped.is_none(), "{:?}", verified.stopped);
    verified.report
}

async fn a_clean_cluster(major: u16, checksums: bool) {
    let binaries = Binaries::require(Some(Major::new(major))).unwrap();
    let scene = Scene::of(&binaries, |builder| builder.checksums(checksums)).await;
    scene.sql("create table t as select g, repeat(md5(g::text), 8) x from generate_series(1, 60000) g");
    scene.sql("create index on t (g); checkpoint");
    let full = scene.backup(true).await;
    scene.sql("update t set x = 'other' where g % 50 = 0");
    scene.backup(false).await;
    scene.flush_wal().await;
    let report = verified(&scene, &[]).await;
    assert_eq!(report.findings, [], "{major}, checksums {checksums}");
    assert_eq!((report.never_proved, report.packs_proved), (0, report.packs));
    assert_eq!(report.segments_proved, report.segments);
    assert!(if checksums { report.pages_verified > 2000 } else { report.pages_verified == 0 }, "{report:?}");
    let one = verified(&scene, &[&full.id]).await;
    assert!(one.backups == 1 && one.packs < report.packs && one.segments < report.segments, "{one:?}");
    // A manifest that says something else of the server than its control file does.
    let mut other = full.clone();
    other.id.push('x');
    other.server.as_mut().unwrap().system_identifier += 1;
    scene.repository.publish(&scene.cluster, other, None).await.unwrap();
    let report = verified(&scene, &[]).await;
    assert_eq!(report.findings.len(), 1);
    assert!(report.findings[0].what.contains("pg_control has system identifier"), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_cluster_of_15_proves_clean() {
    a_clean_cluster(15, true).await;
    a_clean_cluster(15, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_cluster_of_18_proves_clean() {
    a_clean_cluster(18, true).await;
    a_clean_cluster(18, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_was_damaged_on_the_server_is_named_and_its_pack_is_whole() {
    let scene = Scene::with(|builder| builder.checksums(true)).await;
    scene.sql("create table t as select g, repeat(md5(g::text), 8) x from generate_series(1, 9000) g");
    scene.sql("checkpoint");
    let whole = scene.backup(true).await;
    let path = text(&scene.server, "select pg_relation_filepath('t')");
    let file = scene.server.data_directory().join(&path);
    std::fs::File::options().write(true).open(file).unwrap().write_all_at(b"#", 5 * 8192 + 8000).unwrap();
    let bad = scene.backup(false).await;
    assert_eq!(bad.findings_total, 1);
    scene.flush_wal().await;
    let report = verified(&scene, &[]).await;
    let [found] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!((found.severity, &found.backups[..]), (Severity::Damage, &[bad.id.clone()][..]));
    assert_eq!((&found.files[0].path, found.files[0].from, found.files[0].blocks), (&path, 5 * 8192, (5, 5)));

    // The same page in a backup that did not tell of it, as one of an older program.
    let mut silent = bad.clone();
    silent.id.push('x');
    (silent.findings, silent.findings_total) = (Vec::new(), 0);
    let silent = scene.repository.publish(&scene.cluster, silent, None).await.unwrap();
    let report = verified(&scene, &[&silent.id]).await;
    let [found] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!((&found.files[0].path, found.files[0].blocks), (&path, (5, 5)));
    assert_eq!(known_damage(&scene.repository, &scene.cluster).await.unwrap().packs, []);
    assert_eq!(verified(&scene, &[&whole.id]).await.findings, []);
}
