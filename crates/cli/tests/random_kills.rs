//! C01: backups, pushes and restores of a busy server are killed at random times, as by `kill -9`. The plain command again
//! does the work, every acknowledged backup stays, and what is restored in the end is what was acknowledged.
//!
//! A few cycles run always; `./lab --what kills` runs on from a seed. Times are drawn from the seed; what they hit is up
//! to the machine.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use scene::{Scene, flush_wal, judges, ledger, text};
use server::throwaway::Throwaway;

/// What was drawn and done.
struct Campaign {
    scene: Scene,
    server: Throwaway,
    random: u64,
    backups: BTreeSet<String>,
    kills: u64,
    /// Commands that were done before they could be killed.
    escaped: u64,
    restored: u64,
}

impl Campaign {
    fn new(seed: u64) -> Self {
        let scene = Scene::any();
        scene.init();
        let server =
            scene.start_server(|builder| builder.wal_segment_size_mib(1).setting("wal_keep_size", "64"));
        ledger::make(&server);
        let random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Self { scene, server, random, backups: BTreeSet::new(), kills: 0, escaped: 0, restored: 0 }
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % end
    }

    /// Starts the command and kills it within `longest`; whether it was killed.
    fn kill(&mut self, arguments: &[&str], longest: Duration) -> bool {
        let wait = Duration::from_micros(self.below(longest.as_micros() as u64));
        let mut command = self.scene.command(arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(wait);
        child.kill().unwrap();
        let killed = !child.wait().unwrap().success();
        self.kills += u64::from(killed);
        self.escaped += u64::from(!killed);
        killed
    }

    fn listed(&self) -> BTreeSet<String> {
        let list = self.scene.json(&["list"]);
        let ids = list["backups"].as_array().unwrap().iter();
        ids.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
    }

    fn back_up(&mut self) {
        let url = self.server.conninfo();
        let full: &[&str] = if self.below(3) == 0 { &["--full"] } else { &[] };
        self.kill(&[&["backup", "--database-url", &url], full].concat(), Duration::from_millis(900));
        let whole = self.scene.backup(&self.server, full);
        assert_eq!(whole["damaged_pages"], 0);
        let there = self.listed();
        assert!(there.is_superset(&self.backups), "an acknowledged backup is gone");
        self.backups = there;
    }

    /// The server's own segments, into a stream beside its own.
    fn push(&mut self) {
        let folder = self.server.data_directory().join("pg_wal");
        let name = text(&self.server, "select pg_walfile_name(pg_switch_wal())");
        let copy = self.scene.make_folder(&format!("copy-{name}/pg_wal"));
        std::fs::copy(folder.join(&name), Path::new(&copy).join(&name)).unwrap();
        self.scene.run_as.give(Path::new(&copy)).unwrap();
        let file = format!("{copy}/{name}");
        let push = ["wal", "push", &file, "--cluster", "beside"];
        self.kill(&push, Duration::from_millis(120));
        self.scene.ok(&push);
        let target = format!("{copy}/got");
        let get = ["wal", "get", &name, &target, "--cluster", "beside"];
        self.kill(&get, Duration::from_millis(80));
        self.scene.ok(&get);
        assert!(
            std::fs::read(&file).unwrap() == std::fs::read(&target).unwrap(),
            "{name} came back different"
        );
        std::fs::remove_dir_all(Path::new(&copy).parent().unwrap()).unwrap();
    }

    fn restore(&mut self) {
        let into = self.scene.text_path("restored");
        let restore = ["restore", "--into", &into];
        let killed = self.kill(&restore, Duration::from_millis(1_200));
        let path = self.scene.path("restored");
        if killed {
            let again = self.scene.run(&restore);
            // Killed on its last steps it is done; nothing but a whole directory is refused.
            assert!(again.code() == 0 || path.join("global/pg_control").exists(), "{}", again.all());
        }
        judges::verify_backup(&self.scene, &path);
        std::fs::remove_dir_all(path).unwrap();
        self.restored += 1;
    }

    fn run(mut self, goes_on: impl Fn(u64) -> bool) -> String {
        self.backups.insert(self.scene.backup(&self.server, &[])["id"].as_str().unwrap().to_owned());
        let mut rows = 0;
        let mut cycles = 0;
        while goes_on(cycles) {
            ledger::add(&self.server, rows + 1, rows + 20);
            rows += 20;
            match cycles % 3 {
                0 => self.back_up(),
                1 => self.push(),
                _ => self.restore(),
            }
            cycles += 1;
        }
        flush_wal(&self.server);
        let source = judges::dump(&self.scene, &self.server);
        let into = self.scene.restore("last", &["--to", "latest"]);
        judges::verify_backup(&self.scene, &into);
        let restored = self.scene.start_restored(&into);
        ledger::assert_prefix(&restored, rows, "after all kills");
        judges::assert_same_dump(&source, &judges::dump(&self.scene, &restored));
        let Self { kills, escaped, restored, .. } = self;
        format!(
            "{cycles} cycles, {kills} killed, {escaped} done before, {restored} restores, the last one equal"
        )
    }
}

fn set(variable: &str, or: u64) -> u64 {
    std::env::var(variable).map_or(or, |text| text.parse().unwrap())
}

#[test]
fn c01_what_is_killed_at_random_times_is_done_by_the_plain_command_again() {
    Campaign::new(1).run(|cycles| cycles < 6);
}

#[test]
#[ignore = "minutes: ./lab --what kills"]
fn campaign() {
    let (seed, minutes) = (set("PGKEEP_LAB_SEED", 0), set("PGKEEP_LAB_MINUTES", 1));
    let begun = Instant::now();
    let said = Campaign::new(seed).run(|_| begun.elapsed() < Duration::from_secs(60 * minutes));
    eprintln!("LAB kills: seed {seed}: {said}");
}
