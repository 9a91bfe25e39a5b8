//! What stands in a directory before a restore, and the mark of an unfinished one.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use pg::control::ControlFile;

use super::error::RestoreError;

/// Marks a directory whose restore has not ended: its first file, and the last that goes.
pub const MARKER: &str = "pgkeep-restore-incomplete";
/// The control file's name until everything else is durable.
pub(crate) const CONTROL_UNFINISHED: &str = "global/pg_control.pgkeep";

/// What a directory holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DirectoryState {
    Absent,
    Empty,
    /// The rest of an interrupted restore.
    Incomplete {
        backup: String,
    },
    /// A cluster whose server runs.
    Running {
        pid: u32,
    },
    /// A cluster at rest.
    Cluster {
        system_identifier: u64,
    },
    Other,
}

/// Looks at a directory without changing it.
pub(crate) fn inspect(path: &Path) -> Result<DirectoryState, RestoreError> {
    let looked = |source| RestoreError::Disk { action: "look at", path: path.to_owned(), source };
    let mut entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DirectoryState::Absent),
        Err(error) => return Err(looked(error)),
    };
    // A filesystem made for the purpose holds this directory and nothing else.
    let is_content = |entry: &io::Result<fs::DirEntry>| {
        entry.as_ref().map_or(true, |entry| entry.file_name() != "lost+found")
    };
    if !entries.any(|entry| is_content(&entry)) {
        return Ok(DirectoryState::Empty);
    }
    if let Some(pid) = running_server(path) {
        return Ok(DirectoryState::Running { pid });
    }
    if let Ok(text) = fs::read_to_string(path.join(MARKER)) {
        let backup = text.lines().next().unwrap_or_default().to_owned();
        return Ok(DirectoryState::Incomplete { backup });
    }
    let mut control = Vec::new();
    let read = fs::File::open(path.join("global/pg_control"))
        .and_then(|file| file.take(8192).read_to_end(&mut control));
    match read.ok().and_then(|_| ControlFile::parse(&control).ok()) {
        Some(control) => Ok(DirectoryState::Cluster { system_identifier: control.system_identifier }),
        None => Ok(DirectoryState::Other),
    }
}

/// How many files of a cluster's `pg_wal` wait for its archiver.
pub(crate) fn unarchived(path: &Path) -> usize {
    let status = fs::read_dir(path.join("pg_wal/archive_status"));
    let is_ready =
        |entry: &fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "ready");
    status.into_iter().flatten().flatten().filter(is_ready).count()
}

/// The process of a server that runs in this directory, by its `postmaster.pid`; one whose process is gone does not run.
fn running_server(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let process = rustix::process::Pid::from_raw(pid)?;
    let alive = match rustix::process::test_kill_process(process) {
        Ok(()) => true,
        Err(error) => error == rustix::io::Errno::PERM,
    };
    alive.then_some(pid.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        assert_eq!(inspect(&path).unwrap(), DirectoryState::Absent);
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("lost+found")).unwrap();
        assert_eq!(inspect(&path).unwrap(), DirectoryState::Empty);
        fs::write(path.join("notes.txt"), "mine").unwrap();
        assert_eq!(inspect(&path).unwrap(), DirectoryState::Other);
        fs::write(path.join(MARKER), "20261122T000000Z-full\n").unwrap();
        assert_eq!(
            inspect(&path).unwrap(),
            DirectoryState::Incomplete { backup: "20261122T000000Z-full".into() }
        );
        fs::write(path.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert_eq!(inspect(&path).unwrap(), DirectoryState::Running { pid: std::process::id() });
        fs::write(path.join("postmaster.pid"), "2147483646\n").unwrap();
        assert!(matches!(inspect(&path).unwrap(), DirectoryState::Incomplete { .. }));
    }
}
