//! The memory of `wal push` and `wal get` does not grow with the segment: 16 MiB, 64 MiB and 1 GiB each pass under the
//! same limit on writable memory, and with what cannot be compressed in front, zeros behind.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "000000010000000000000001";
/// Of writable memory, stacks of threads and all. What is read of the program itself comes to some 13 MiB, so that no
/// call takes more than 96.
const LIMIT_KIB: u32 = 80 << 10;
/// Of noise in a segment, if it has as much: more than may be in memory.
const NOISE: usize = 160 << 20;

struct Place(tempfile::TempDir);

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the program where it may take no more memory than the limit.
    fn run(&self, arguments: &[&str]) {
        let mut command = Command::new("sh");
        command.env_clear().current_dir(self.0.path()).arg("-c");
        command.arg(format!("ulimit -d {LIMIT_KIB} && exec \"$0\" \"$@\"")).arg(env!("CARGO_BIN_EXE_pgkeep"));
        let key = [
            "--repository",
            "./repository",
            "--key-file",
            "key",
            "--set",
            "state_dir=state",
            "--set",
            "workers=2",
        ];
        let done = command.args(key).args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// A segment of PostgreSQL 15 with a true header.
fn write_segment(path: &Path, size: u32) {
    let mut head = [0x10u8, 0xD1, 2, 0, 1, 0, 0, 0].to_vec();
    head.extend(u64::from(size).to_le_bytes());
    head.extend([0; 8]);
    head.extend(7_700_000_000_000_000_001u64.to_le_bytes());
    head.extend(size.to_le_bytes());
    head.extend(8192u32.to_le_bytes());
    let file = File::create(path).unwrap();
    file.set_len(size.into()).unwrap();
    let mut noise = vec![0; 1 << 20];
    let mut random = File::open("/dev/urandom").unwrap();
    for at in (0..NOISE.min(size as usize)).step_by(noise.len()) {
        random.read_exact(&mut noise).unwrap();
        file.write_all_at(&noise, at as u64).unwrap();
    }
    file.write_all_at(&head, 0).unwrap();
}

fn same(one: &Path, other: &Path) -> bool {
    let (mut one, mut other) = (File::open(one).unwrap(), File::open(other).unwrap());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = one.read(&mut left).unwrap();
        if other.read_exact(&mut right[..read]).is_err() || left[..read] != right[..read] {
            return false;
        }
        if read == 0 {
            return other.read(&mut right).unwrap() == 0;
        }
    }
}

#[test]
fn a_segment_of_any_size_passes_in_the_same_memory() {
    for mib in [16, 64, 1024] {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir_all(place.path("data/pg_wal")).unwrap();
        place.run(&["init", "--no-server", "--recovery-key-file", "recovery"]);
        let (segment, target) =
            (place.path("data/pg_wal").join(NAME), place.path("data/pg_wal/RECOVERYXLOG"));
        write_segment(&segment, mib << 20);
        place.run(&["wal", "push", segment.to_str().unwrap()]);
        place.run(&["wal", "get", NAME, target.to_str().unwrap()]);
        assert!(same(&segment, &target), "{mib} MiB");
    }
}
