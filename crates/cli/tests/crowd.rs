//! C03: eight writers and two pruners on one repository, all of them real processes. Two servers, each the cluster of four
//! writers that back it up at the same time, while two processes expire and prune with next to no grace. What was
//! acknowledged and not expired is there in the end, and restores.
//!
//! Two rounds run always; `./lab --what crowd --minutes M` goes on for long.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use scene::{Scene, flush_wal, judges, ledger, text};
use serde_json::Value;
use server::settings_check::archive_command;
use server::throwaway::Throwaway;

const WRITERS: u64 = 8;
const PRUNERS: u64 = 2;
const CLUSTERS: [&str; 2] = ["left", "right"];
/// A small grace that is longer than a folder's listing is old.
const PRUNE: [&str; 3] = ["prune", "--grace", "1s"];

/// A backup: cluster and id.
type Backup = (usize, String);

#[derive(Default)]
struct Crowd {
    /// With the number of rows that were there when it began.
    acknowledged: Mutex<Vec<(Backup, i64)>>,
    /// What a plan of expire listed.
    expired: Mutex<BTreeSet<Backup>>,
    resting: AtomicBool,
    refused: AtomicU64,
    expirings: AtomicU64,
    prunings: AtomicU64,
    deleted_packs: AtomicU64,
    moved_packs: AtomicU64,
}

fn parsed(out: &str) -> Value {
    serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

fn id_of(line: &Value) -> String {
    line["id"].as_str().unwrap().to_owned()
}

impl Crowd {
    /// One writer's backup. Two of one second may want the same id: then one is told to try again.
    fn back_up(&self, scene: &Scene, servers: &[Throwaway], writer: u64, round: u64, rows: i64) {
        let at = (writer % 2) as usize;
        std::thread::sleep(Duration::from_millis((writer * 7 + round * 5) % 11 * 90));
        let full: &[&str] = if (writer + round).is_multiple_of(5) { &["--full"] } else { &[] };
        let url = servers[at].conninfo();
        let backup = ["backup", "--database-url", &url, "--cluster", CLUSTERS[at], "--json"];
        loop {
            let said = scene.run(&[&backup, full].concat());
            match said.code() {
                0 => {
                    let id = id_of(&parsed(&said.out)["backup"]);
                    self.acknowledged.lock().unwrap().push(((at, id), rows));
                    return;
                }
                6 => drop(self.refused.fetch_add(1, Relaxed)),
                code => panic!("writer {writer}, code {code}: {}", said.all()),
            }
        }
    }

    /// Expires both clusters and prunes, again and again; another that is at it (4) and a plan that no longer holds (6) are none
    /// of its business.
    fn keep_in_order(&self, scene: &Scene, done: &AtomicBool) {
        while !done.load(Relaxed) {
            for (at, cluster) in CLUSTERS.into_iter().enumerate() {
                let keep = ["--set", "retention.keep=3", "--set", "retention.keep_at_least=1"];
                let expire = [&["expire", "--cluster", cluster, "--json"], &keep[..]].concat();
                // What it lists may go, also where it is stopped in the middle.
                let dry = scene.run(&[&expire[..], &["--dry-run"]].concat());
                let said = scene.run(&expire);
                assert!([0, 4, 6].contains(&said.code()), "{}", said.all());
                let plans = [dry, said].into_iter().filter(|said| said.code() == 0);
                for plan in plans.map(|said| parsed(&said.out)["plan"].clone()) {
                    let lines = plan["backups"].as_array().unwrap().iter();
                    let gone = lines.filter(|line| line["keep"] == false).map(|line| (at, id_of(line)));
                    self.expired.lock().unwrap().extend(gone);
                }
                self.expirings.fetch_add(1, Relaxed);
            }
            let said = scene.run(&[&PRUNE[..], &["--json"]].concat());
            assert!([0, 4].contains(&said.code()), "{}", said.all());
            if said.code() == 0 {
                let report = parsed(&said.out)["report"].clone();
                self.prunings.fetch_add(1, Relaxed);
                self.deleted_packs.fetch_add(report["deleted_packs"].as_u64().unwrap_or(0), Relaxed);
                self.moved_packs.fetch_add(report["moved_packs"].as_u64().unwrap_or(0), Relaxed);
            }
            // A claim of a backup at work holds what was marked: they delete when writers rest, and when they begin again.
            let pause = if self.resting.load(Relaxed) { 50 } else { 400 };
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    /// All writers at the same time, and a rest; until `goes_on` says no. How many rows each server has in the end.
    fn work(&self, scene: &Scene, servers: &[Throwaway], goes_on: impl Fn(u64) -> bool) -> i64 {
        let (done, mut rows, mut round) = (AtomicBool::new(false), 0, 0);
        std::thread::scope(|scope| {
            let _stop = Stop(&done);
            for _ in 0..PRUNERS {
                scope.spawn(|| self.keep_in_order(scene, &done));
            }
            while goes_on(round) {
                servers.iter().for_each(|server| ledger::add(server, rows + 1, rows + 40));
                rows += 40;
                self.resting.store(false, Relaxed);
                std::thread::scope(|writers| {
                    for writer in 0..WRITERS {
                        writers.spawn(move || self.back_up(scene, servers, writer, round, rows));
                    }
                    servers.iter().for_each(|server| ledger::add(server, rows + 1, rows + 10));
                });
                rows += 10;
                self.resting.store(true, Relaxed);
                std::thread::sleep(Duration::from_millis(2_500));
                round += 1;
            }
        });
        rows
    }

    /// What must be there in the end is, and restores: every backup by `pg_verifybackup`, the newest by its rows and to the end
    /// of its WAL by a dump.
    fn judge(self, scene: &Scene, servers: &[Throwaway], rows: i64) -> String {
        let (acknowledged, expired) =
            (self.acknowledged.into_inner().unwrap(), self.expired.into_inner().unwrap());
        let mut restored = 0;
        for (at, cluster) in CLUSTERS.into_iter().enumerate() {
            let list = scene.json(&["list", "--cluster", cluster]);
            let there: Vec<String> = list["backups"].as_array().unwrap().iter().map(id_of).collect();
            let acknowledged = acknowledged.iter().filter(|(backup, _)| backup.0 == at);
            for ((_, id), _) in acknowledged.clone().filter(|(backup, _)| !expired.contains(backup)) {
                assert!(
                    there.contains(id),
                    "{id} of {cluster} was acknowledged and not expired, and is gone"
                );
            }
            assert!(there.len() >= 3, "{cluster} has only {there:?}");
            for id in &there {
                let into = format!("{cluster}-{id}");
                let into = scene.restore(&into, &[id, "--cluster", cluster, "--to", "immediate"]);
                judges::verify_backup(scene, &into);
                if Some(id) == there.last() {
                    let begun = acknowledged.clone().find(|(backup, _)| backup.1 == *id).unwrap().1;
                    let found = ledger::ids(&scene.start_restored(&into));
                    assert!(found.iter().copied().eq(1..=found.len() as i64) && found.len() as i64 >= begun);
                }
                std::fs::remove_dir_all(into).unwrap();
                restored += 1;
            }
            flush_wal(&servers[at]);
            let source = judges::dump(scene, &servers[at]);
            let into = scene.restore(&format!("{cluster}-last"), &["--cluster", cluster, "--to", "latest"]);
            let last = scene.start_restored(&into);
            ledger::assert_prefix(&last, rows, cluster);
            judges::assert_same_dump(&source, &judges::dump(scene, &last));
            scene.ok(&["check", "--cluster", cluster]);
            scene.ok(&["verify", "--cluster", cluster]);
        }
        let (deleted, moved) = (self.deleted_packs.into_inner(), self.moved_packs.into_inner());
        assert!(!expired.is_empty() && deleted > 0, "nothing was ever deleted");
        format!(
            "{} backups acknowledged, {} expired, {restored} restored equal; {} refused for their id; {} runs of expire, {} of \
             prune, {deleted} packs deleted, {moved} moved",
            acknowledged.len(),
            expired.len(),
            self.refused.into_inner(),
            self.expirings.into_inner(),
            self.prunings.into_inner(),
        )
    }
}

/// Tells the pruners that it is over, also when a writer failed.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn run(goes_on: impl Fn(u64) -> bool) -> String {
    let scene = Scene::any();
    scene.init();
    let (program, config) = (scene.program(), scene.text_path("pgkeep.toml"));
    let servers = CLUSTERS.map(|cluster| {
        let command = archive_command(&program, &["--config", &config, "--cluster", cluster]);
        let server = scene.start_server(|builder| {
            builder
                .wal_segment_size_mib(1)
                .setting("wal_keep_size", "64")
                .setting("archive_command", &command)
        });
        ledger::make(&server);
        assert!(text(&server, "show archive_command").contains(cluster));
        server
    });
    let crowd = Crowd::default();
    let rows = crowd.work(&scene, &servers, goes_on);
    crowd.judge(&scene, &servers, rows)
}

#[test]
fn c03_eight_writers_and_two_pruners_lose_nothing() {
    run(|round| round < 2);
}

#[test]
#[ignore = "minutes: ./lab --what crowd"]
fn campaign() {
    let minutes: u64 = std::env::var("PGKEEP_LAB_MINUTES").map_or(1, |text| text.parse().unwrap());
    let begun = Instant::now();
    let said = run(|_| begun.elapsed() < Duration::from_secs(60 * minutes));
    eprintln!("LAB crowd: {minutes} minutes: {said}");
}
