//! B04, B12, B13: tablespaces with names that begin alike, damaged pages of the source, clusters without checksums.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use operations::monitor::Silent;
use operations::probe::Mode;
use operations::restore::{RestoreError, execute, plan};
use scene::{Scene, chain, number, run, start, text, verify_backup};

impl Scene {
    /// Changes bytes of a table's block on disk, under the server; the block's LSN.
    fn corrupt(&self, table: &str, block: u64) -> (String, u64) {
        self.sql("checkpoint");
        let path = text(&self.server, &format!("select pg_relation_filepath('{table}')"));
        let full = self.server.data_directory().join(&path);
        let file = std::fs::File::options().read(true).write(true).open(full).unwrap();
        let mut page = [0; 8192];
        file.read_exact_at(&mut page, block * 8192).unwrap();
        let half = |at: usize| u64::from(u32::from_le_bytes(page[at..at + 4].try_into().unwrap()));
        let lsn = half(0) << 32 | half(4);
        page[8000] ^= 0x40;
        file.write_all_at(&page, block * 8192).unwrap();
        (path, lsn)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b04_tablespaces_whose_names_begin_alike_go_where_the_map_says() {
    tablespaces(Mode::Local).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b04_tablespaces_whose_names_begin_alike_go_where_the_map_says_over_sql() {
    tablespaces(Mode::Sql).await;
}

async fn tablespaces(mode: Mode) {
    let scene = Scene::reading(mode).await;
    let old = scene.server.directory().join("d");
    let place = |name: &str| old.join(name);
    for name in ["a", "ab", "behind"] {
        std::fs::create_dir_all(place(name)).unwrap();
        scene.server.run_as().give(&place(name)).unwrap();
    }
    std::os::unix::fs::symlink(place("behind"), place("link")).unwrap();
    let names = ["a", "ab", "link"];
    for name in names {
        scene.sql(&format!("create tablespace {name} location '{}'", place(name).display()));
        let fill = "select g id from generate_series(1, 5000) g";
        scene.sql(&format!("create table t_{name} tablespace {name} as {fill}"));
    }
    scene.backup(true).await;
    for name in names {
        scene.sql(&format!("insert into t_{name} select generate_series(5001, 5100)"));
    }
    scene.backup(false).await;
    scene.flush_wal().await;

    // Without a map the old places are in the way, and stay as they are.
    let into = scene.folder.path().join("restored");
    let refused = plan(scene.repository.clone(), scene.restore_request(&into)).await.err().unwrap();
    assert!(matches!(refused, RestoreError::Tablespace { .. }), "{}", chain(&refused));
    assert!(!into.exists());
    let before = place_content(&old);

    let new = scene.folder.path().join("n");
    let mut request = scene.restore_request(&into);
    let by_location = |name: &str| (place(name).display().to_string(), new.join(name));
    request.tablespace_map = vec![by_location("a"), by_location("ab")];
    let oid = text(&scene.server, "select oid::text from pg_tablespace where spcname = 'link'");
    request.tablespace_map.push((oid.clone(), new.join("link")));
    scene.restore(request).await;
    verify_backup(&into);
    assert_eq!(std::fs::read_link(into.join("pg_tblspc").join(&oid)).unwrap(), new.join("link"));
    assert_eq!(place_content(&old), before, "the old places were touched");
    let restored = start(&into);
    for name in names {
        assert_eq!(number(&restored, &format!("select count(*) from t_{name}")), 5100);
        let location =
            format!("select pg_tablespace_location(oid) from pg_tablespace where spcname = '{name}'");
        assert_eq!(text(&restored, &location), new.join(name).display().to_string());
    }
}

fn place_content(folder: &std::path::Path) -> Vec<PathBuf> {
    scene::tree(folder).into_keys().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b12_a_damaged_page_is_reported_with_its_file_block_and_lsn() {
    damaged_page(Mode::Local).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b12_a_damaged_page_is_reported_with_its_file_block_and_lsn_over_sql() {
    damaged_page(Mode::Sql).await;
}

async fn damaged_page(mode: Mode) {
    let scene = Scene::reading(mode).await;
    scene.sql("create table t as select g id, repeat(md5(g::text), 5) x from generate_series(1, 20000) g");
    scene.sql("vacuum (freeze, analyze) t");
    let good = scene.backup(true).await;
    assert_eq!((good.findings.len(), good.findings_total), (0, 0));
    let (path, lsn) = scene.corrupt("t", 3);
    scene.flush_wal().await;

    for full in [false, true] {
        let bad = scene.backup(full).await;
        assert_eq!(bad.findings_total, 1, "full: {full}");
        let finding = &bad.findings[0];
        assert_eq!((finding.path.as_slice(), finding.block, finding.lsn), (path.as_bytes(), 3, lsn));
        assert_ne!(finding.found, finding.computed);
    }
    // The backup from before still gives the good page.
    let into = scene.folder.path().join("restored");
    let mut request = scene.restore_request(&into);
    request.backup = Some(good.id.clone());
    let restore = plan(scene.repository.clone(), request).await.unwrap();
    execute(restore, Arc::new(Silent)).await.unwrap();
    run(scene::binaries().command("pg_verifybackup").arg("-n").arg(&into));
    assert_eq!(number(&start(&into), "select count(*) from t where x = repeat(md5(id::text), 5)"), 20_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b13_without_checksums_there_is_no_alarm_and_with_them_switched_on_pages_are_checked() {
    let mut scene = Scene::with(|builder| builder.checksums(false)).await;
    scene.sql("create table t as select g id, repeat(md5(g::text), 5) x from generate_series(1, 20000) g");
    scene.corrupt("t", 1);
    let off = scene.backup(true).await;
    assert!(!off.server().data_checksums);
    assert_eq!((off.totals().pages_verified, off.findings_total), (0, 0));

    scene.server.stop(server::throwaway::StopMode::Fast).unwrap();
    run(scene
        .server
        .binaries()
        .command("pg_checksums")
        .arg("--enable")
        .arg("-D")
        .arg(scene.server.data_directory()));
    scene.server.run_as().give(&scene.server.data_directory().join("global/pg_control")).unwrap();
    scene.server.start().unwrap();
    let on = scene.backup(false).await;
    assert!(on.server().data_checksums);
    assert!(on.totals().pages_verified > 1000, "{:?}", on.totals());
    assert_eq!(on.findings_total, 0);
    scene.corrupt("t", 2);
    assert_eq!(scene.backup(false).await.findings_total, 1);
}
