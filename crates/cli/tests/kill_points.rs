//! C01, A05, B02, R08: the program is killed at every named point, as by `kill -9`; then the plain command again does the
//! work, a half-restored directory does not start, and nothing that was acknowledged is lost.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use scene::points::{backups, scene_with_ledger};
use scene::{Scene, flush_wal, judges, ledger, number, points, receiver, sql, text};
use server::throwaway::{StopMode, Throwaway};

const BACKUP: [&str; 10] = [
    "backup.bound",
    "backup.started",
    "backup.pack",
    "backup.pack-stored",
    "backup.copied",
    "backup.stopped",
    "backup.list-stored",
    "backup.wal-there",
    "backup.published",
    PARTIAL,
];
/// Comes after a minute or 512 MiB of a backup: `crates/operations/tests/resume.rs` has backups that end after it.
const PARTIAL: &str = "backup.partial";

const RESTORE: [&str; 9] = [
    "restore.control-removed",
    "restore.marked",
    "restore.piece",
    "restore.files-written",
    "restore.files-durable",
    "restore.settings",
    "restore.signal",
    "restore.all-but-control",
    "restore.control",
];

const PUSH: [&str; 4] = ["wal-push.read", "wal-push.bound", "wal-push.stored", "wal-push.answered"];
const DRAIN: [&str; 2] = ["wal-drain.stored", "wal-drain.noted"];
const GET: [&str; 2] = ["wal-get.written", "wal-get.placed"];
const GET_AHEAD: [&str; 2] = ["wal-get.ahead", "wal-get.taken"];
const PREFETCH: [&str; 2] = ["wal-prefetch.written", "wal-prefetch.noted"];

#[test]
fn c01_every_point_of_the_source_has_its_scenario() {
    let mut named = BTreeSet::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../operations/src")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let source = std::fs::read_to_string(path).unwrap();
            let points = source.split("failpoint::reach(\"").skip(1);
            named.extend(points.map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    let here: [&[&str]; 7] = [&BACKUP, &RESTORE, &PUSH, &DRAIN, &GET, &GET_AHEAD, &PREFETCH];
    let care = points::CARE.concat();
    let received = receiver::POINTS.map(|(point, _)| point);
    let rare = receiver::TIMELINE_POINTS.into_iter().chain([receiver::GAP_POINT]);
    let here: BTreeSet<String> =
        here.concat().into_iter().chain(care).chain(received).chain(rare).map(str::to_owned).collect();
    assert_eq!(named, here, "points in the source, points in the scenarios");
}

#[test]
fn c01_b02_a_backup_that_was_killed_anywhere_is_followed_by_a_whole_one() {
    let (scene, server) = scene_with_ledger(10);
    let url = server.conninfo();
    let (mut rows, mut there) = (10, 0);
    for point in BACKUP.into_iter().filter(|point| *point != PARTIAL) {
        // Something new to store, more than what goes into a manifest.
        sql(
            &server,
            &format!("create table t{rows} as select g, md5(g::text) x from generate_series(1, 3000) g"),
        );
        scene.killed_at(point, &["backup", "--full", "--database-url", &url]);
        there += usize::from(point == "backup.published");
        assert_eq!(
            if there == 0 { 0 } else { backups(&scene) },
            there,
            "{point}: a killed backup counts only when published"
        );
        ledger::add(&server, rows + 1, rows + 10);
        rows += 10;
        let whole = scene.backup(&server, &[]);
        assert_eq!(whole["damaged_pages"], 0, "{point}");
        there += 1;
        assert_eq!(backups(&scene), there, "{point}");
    }
    flush_wal(&server);
    let source = judges::dump(&scene, &server);
    let into = scene.restore("restored", &[]);
    judges::verify_backup(&scene, &into);
    let restored = scene.start_restored(&into);
    ledger::assert_prefix(&restored, rows, "after all kills");
    judges::assert_same_dump(&source, &judges::dump(&scene, &restored));
}

#[test]
fn c01_r08_a_restore_that_was_killed_anywhere_does_not_start_and_goes_on() {
    let (scene, server) = scene_with_ledger(200);
    scene.backup(&server, &[]);
    ledger::add(&server, 201, 220);
    flush_wal(&server);
    for point in RESTORE.into_iter().chain(["restore.piece:100", "restore.piece:400"]) {
        let into = scene.text_path("restored");
        scene.killed_at(point, &["restore", "--into", &into]);
        let path = scene.path("restored");
        if point != "restore.control" {
            assert_does_not_start(&scene, &path, point);
        }
        scene.restore("restored", &[]);
        judges::verify_backup(&scene, &path);
        let mut restored = scene.start_restored(&path);
        ledger::assert_prefix(&restored, 220, point);
        restored.stop(StopMode::Immediate).unwrap();
        std::fs::remove_dir_all(path).unwrap();
    }
}

#[test]
fn c01_r07_r08_a_delta_that_was_killed_does_not_start_and_goes_on() {
    let (scene, server) = scene_with_ledger(200);
    scene.backup(&server, &[]);
    ledger::add(&server, 201, 220);
    flush_wal(&server);
    let path = scene.restore("restored", &[]);
    let into = scene.text_path("restored");
    for point in
        ["restore.control-removed", "restore.marked", "restore.files-written", "restore.all-but-control"]
    {
        // The restored cluster goes its own way, and somebody lays hands on its files.
        let mut restored = scene.start_restored(&path);
        sql(
            &restored,
            "delete from ledger where id % 2 = 0; create table own as select 1 as one; checkpoint",
        );
        let relation = text(&restored, "select pg_relation_filepath('ledger')");
        restored.stop(StopMode::Fast).unwrap();
        std::fs::write(path.join(relation), b"not a relation").unwrap();
        scene.killed_at(point, &["restore", "--into", &into, "--delta"]);
        // Once marked, and before anything is taken away, it is still the cluster that it was.
        if point != "restore.marked" {
            assert_does_not_start(&scene, &path, point);
        }
        scene.ok(&["restore", "--into", &into, "--delta"]);
        judges::verify_backup(&scene, &path);
        let mut restored = scene.start_restored(&path);
        ledger::assert_prefix(&restored, 220, point);
        assert_eq!(number(&restored, "select count(*) from pg_class where relname = 'own'"), 0);
        restored.stop(StopMode::Fast).unwrap();
    }
}

fn assert_does_not_start(scene: &Scene, path: &Path, point: &str) {
    if path.exists() {
        let started = Throwaway::builder(&scene.binaries).start_existing(path);
        assert!(started.is_err(), "{point}: a server started on a half-restored directory");
    }
}

/// Finished segments of a server, in folders that look like a `pg_wal` in which all of them wait.
struct Segments {
    scene: Scene,
    names: Vec<String>,
    /// The folder that has them all.
    pristine: PathBuf,
}

fn segments() -> Segments {
    let (scene, server) = scene_with_ledger(5);
    let mut names = Vec::new();
    for id in 6..=10 {
        ledger::add(&server, id, id);
        names.push(text(&server, "select pg_walfile_name(pg_switch_wal())"));
    }
    flush_wal(&server);
    let pristine = scene.path("pristine");
    std::fs::create_dir(&pristine).unwrap();
    for name in &names {
        std::fs::copy(server.data_directory().join("pg_wal").join(name), pristine.join(name)).unwrap();
    }
    Segments { scene, names, pristine }
}

impl Segments {
    /// A `pg_wal` of its own with all of them.
    fn waiting(&self, place: &str) -> PathBuf {
        let wal = self.scene.path(place).join("pg_wal");
        std::fs::create_dir_all(wal.join("archive_status")).unwrap();
        for name in &self.names {
            std::fs::copy(self.pristine.join(name), wal.join(name)).unwrap();
            std::fs::write(wal.join(format!("archive_status/{name}.ready")), "").unwrap();
        }
        self.scene.run_as.give(&self.scene.path(place)).unwrap();
        wal
    }

    fn push_all(&self, wal: &Path, cluster: &str) {
        for name in &self.names {
            let file = wal.join(name);
            self.scene.ok(&["wal", "push", file.to_str().unwrap(), "--cluster", cluster]);
            std::fs::remove_file(wal.join(format!("archive_status/{name}.ready"))).unwrap();
        }
    }

    /// Gets all of them into a folder, and compares each byte.
    fn get_all(&self, place: &str, cluster: &str) {
        let target = self.target(place);
        for name in &self.names {
            self.get(name, &target, cluster);
        }
    }

    fn target(&self, place: &str) -> PathBuf {
        PathBuf::from(self.scene.make_folder(&format!("{place}/pg_wal"))).join("RECOVERYXLOG")
    }

    fn get(&self, name: &str, target: &Path, cluster: &str) {
        self.scene.ok(&["wal", "get", name, target.to_str().unwrap(), "--cluster", cluster]);
        self.assert_exact(name, target);
    }

    fn assert_exact(&self, name: &str, target: &Path) {
        let (found, expected) =
            (std::fs::read(target).unwrap(), std::fs::read(self.pristine.join(name)).unwrap());
        assert!(found == expected, "{name} came back different");
    }
}

#[test]
fn c01_a05_a_push_that_was_killed_anywhere_is_finished_by_the_next() {
    let segments = segments();
    for (number, point) in PUSH.into_iter().chain(DRAIN).enumerate() {
        let (place, cluster) = (format!("push-{number}"), format!("cluster-{number}"));
        let wal = segments.waiting(&place);
        let (folder, first) = (wal.to_str().unwrap(), wal.join(&segments.names[0]));
        let push = ["wal", "push", first.to_str().unwrap(), "--cluster", &cluster];
        let drain = ["wal", "drain", folder, "--cluster", &cluster];
        segments.scene.killed_at(point, if point.starts_with("wal-drain") { &drain } else { &push });
        segments.push_all(&wal, &cluster);
        segments.get_all(&format!("get-{number}"), &cluster);
        // A02: what PostgreSQL sends again is there already.
        segments.scene.ok(&push);
    }
}

#[test]
fn c01_a_get_that_was_killed_anywhere_leaves_a_whole_file_or_none() {
    let segments = segments();
    let names = &segments.names;
    segments.push_all(&segments.waiting("push"), "get");
    for (number, point) in GET.into_iter().chain(GET_AHEAD).enumerate() {
        let target = segments.target(&format!("get-{number}"));
        let mut name = &names[0];
        if GET_AHEAD.contains(&point) {
            segments.get(name, &target, "get");
            std::fs::remove_file(&target).unwrap();
            name = &names[1];
            scene::wait_for("the prefetch", || lies_ready(&segments.scene.path("state"), name).then_some(()));
        }
        segments.scene.killed_at(point, &["wal", "get", name, target.to_str().unwrap(), "--cluster", "get"]);
        if target.exists() {
            segments.assert_exact(name, &target);
        }
        segments.get_all(&format!("get-{number}"), "get");
        forget(&segments.scene.path("state/spool"));
    }
    for (number, point) in PREFETCH.into_iter().enumerate() {
        let place = format!("prefetch-{number}");
        let target = segments.target(&place);
        let folder = target.parent().unwrap().to_str().unwrap().to_owned();
        segments.scene.killed_at(point, &["wal", "prefetch", &folder, &names[0], "--cluster", "get"]);
        segments.get_all(&place, "get");
    }
}

/// Whether a file of this name lies somewhere below.
fn lies_ready(folder: &Path, name: &str) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        entry.file_name().to_str() == Some(name)
            || entry.file_type().is_ok_and(|kind| kind.is_dir()) && lies_ready(&entry.path(), name)
    })
}

/// Empties the spool, so that what lies ready there is of the next scenario.
fn forget(spool: &Path) {
    drop(std::fs::remove_dir_all(spool));
}
