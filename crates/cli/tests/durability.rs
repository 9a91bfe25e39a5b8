//! C03: `wal push` exits 0 only when the segment would survive power loss. The calls of a real push are recorded, a
//! folder is made of what POSIX promises to keep of them, and `wal get` brings the segment from it. With any fsync left
//! out that matters, it does not.
#![allow(clippy::unwrap_used, missing_docs)]

mod crash;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crash::{Call, Model, trace};

const FIRST: &str = "000000010000000000000001";
const SECOND: &str = "000000010000000000000002";

/// A folder with a repository and a `pg_wal` whose segments have so many MiB.
struct Place {
    folder: tempfile::TempDir,
    mib: u32,
}

impl Place {
    fn new(mib: u32) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), mib };
        let (repository, state) = (place.path("repository"), place.path("state"));
        let config = format!(
            "repository = {repository:?}\nkey_file = {:?}\nstate_dir = {state:?}\nworkers = 2\n",
            place.path("key")
        );
        fs::write(place.path("pgkeep.toml"), config).unwrap();
        fs::create_dir_all(place.path("data/pg_wal/archive_status")).unwrap();
        let made =
            place.command(&["init", "--no-server", "--recovery-key-file", "recovery"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgkeep"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(std::env::var_os("PGKEEP_TEST_BUG").map(|bug| ("PGKEEP_TEST_BUG", bug)));
        command.current_dir(self.folder.path()).arg("--config").arg(self.path("pgkeep.toml")).args(arguments);
        command
    }

    /// A segment of PostgreSQL 15 with a true header, some noise and zeros, waiting to be archived.
    fn write_segment(&self, name: &str) -> String {
        let (number, size) = (u64::from_str_radix(&name[16..], 16).unwrap(), self.mib << 20);
        let mut head = [0x10u8, 0xD1, 2, 0, 1, 0, 0, 0].to_vec();
        head.extend((number * u64::from(size)).to_le_bytes());
        head.extend([0; 8]);
        head.extend(7_700_000_000_000_000_001u64.to_le_bytes());
        head.extend(size.to_le_bytes());
        head.extend(8192u32.to_le_bytes());
        let noise: Vec<u8> =
            (0..300_000u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let path = self.path("data/pg_wal").join(name);
        let file = File::create(&path).unwrap();
        file.set_len(size.into()).unwrap();
        file.write_all_at(&noise[..noise.len().min(size as usize / 2)], 8192).unwrap();
        file.write_all_at(&head, 0).unwrap();
        fs::write(self.path("data/pg_wal/archive_status").join(format!("{name}.ready")), "").unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The calls of a push that exits 0, and what was durable before them.
    fn push(&self, name: &str) -> (Model, Vec<Call>) {
        let path = self.write_segment(name);
        let before = Model::of(&self.path("repository"));
        let calls = trace(&self.command(&["wal", "push", &path]), &self.path("strace.log"));
        (before, calls)
    }

    fn object(&self, name: &str) -> PathBuf {
        self.path("repository/clusters/main/wal/00000001/00000000").join(name)
    }

    /// What `wal get` says when the repository is what survived, on a host that knows nothing of it.
    fn get_after_crash(&self, model: &Model, name: &str) -> bool {
        let survived = tempfile::tempdir().unwrap();
        let (repository, state) = (survived.path().join("repository"), survived.path().join("state"));
        model.materialise(&repository);
        let target = survived.path().join("RECOVERYXLOG");
        let mut command = self.command(&["--repository", repository.to_str().unwrap()]);
        command.args(["--set", &format!("state_dir={}", state.display()), "wal"]);
        let got = command.args(["get", name]).arg(&target).status().unwrap().success();
        assert_eq!(got, target.exists());
        if got {
            assert!(fs::read(&target).unwrap() == fs::read(self.path("data/pg_wal").join(name)).unwrap());
        }
        got
    }
}

/// The calls, but for one.
fn after(mut model: Model, calls: &[Call], but: Option<usize>) -> Model {
    for (at, call) in calls.iter().enumerate() {
        if Some(at) != but {
            model.apply(call);
        }
    }
    model
}

fn whole(model: &Model, object: &Path) -> bool {
    model.surviving(object) == Some(object.metadata().unwrap().len())
}

/// Of a push of this size: with all fsyncs the segment survives, and each of those that matter is missed.
fn a_push_survives(mib: u32) {
    let place = Place::new(mib);
    // The first also makes the folders and the stream's identity; the second finds them.
    for (name, least) in [(FIRST, 5), (SECOND, 2)] {
        let (before, calls) = place.push(name);
        let object = place.object(name);
        let fresh = |but| after(before.clone(), &calls, but);
        assert!(whole(&fresh(None), &object), "{name} does not survive");
        assert!(place.get_after_crash(&fresh(None), name), "{name} cannot be fetched");
        let syncs = (0..calls.len()).filter(|&at| calls[at].is_sync());
        let missed: Vec<usize> = syncs.filter(|&at| !whole(&fresh(Some(at)), &object)).collect();
        assert!(missed.len() >= least, "only {} of the fsyncs of {name} are noticed", missed.len());
        for at in missed {
            assert!(!place.get_after_crash(&fresh(Some(at)), name), "{name} without {:?}", calls[at]);
        }
    }
}

#[test]
fn c03_a_segment_that_was_pushed_survives_power_loss() {
    a_push_survives(1);
}

#[test]
fn c03_a_large_segment_that_was_pushed_survives_power_loss() {
    a_push_survives(32);
}

/// A push is answered from a drainer's note, so the segment must be durable before there is one.
#[test]
fn c03_a_drainer_notes_only_what_survives_power_loss() {
    let place = Place::new(1);
    let names: Vec<String> = (1..=6).map(|number| format!("00000001000000000000000{number}")).collect();
    names.iter().for_each(|name| drop(place.write_segment(name)));
    let mut model = Model::of(&place.path("repository"));
    let wal = place.path("data/pg_wal");
    let calls = trace(&place.command(&["wal", "drain", wal.to_str().unwrap()]), &place.path("strace.log"));
    let mut noted = 0;
    for call in &calls {
        let note = call
            .paths()
            .pop()
            .filter(|path| call.name.starts_with("rename") && path.starts_with(place.path("state")));
        let name = note.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        if let Some(name) = name.filter(|name| names.contains(name)) {
            assert!(whole(&model, &place.object(&name)), "{name} is noted and would not survive");
            noted += 1;
        }
        model.apply(call);
    }
    assert_eq!(noted, names.len());
}

/// A suite that stays green when a file is not made durable proves nothing.
#[test]
fn a_planted_bug_turns_it_red() {
    let mut suite = Command::new(std::env::current_exe().unwrap());
    suite.args(["c03_", "--test-threads=1"]).env("PGKEEP_TEST_BUG", "file.unsynced");
    assert!(!suite.output().unwrap().status.success(), "green with file.unsynced");
}
