//! What this host remembers of what failed last: WAL in a further repository, or a backup.
//!
//! PostgreSQL waits for each call, and one that waits for a repository that is away, segment after segment, would fill the
//! server's disk in the end. So a further repository that failed is left alone for a while; the WAL that it misses is
//! copied into it later. A backup that failed may have left nothing in the repository that tells of it: `status` tells by this.
//! A lost or forged note costs a try or a line more or less.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use repository::ClusterName;
use serde::{Deserialize, Serialize};

/// How long a repository that failed is left alone.
pub const REST: Duration = Duration::from_secs(60);

/// What is noted about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// WAL that could not be stored in a further repository.
    Wal,
    /// A backup that was not made.
    Backup,
}

/// A failure that nothing has made good since, as this host saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedFailure {
    /// Where the repository is.
    pub location: String,
    /// When it failed first.
    pub since: Timestamp,
    /// When it failed last.
    pub tried: Timestamp,
    /// How.
    pub why: String,
}

/// The note about one cluster in one repository.
pub struct FailureNote {
    path: Option<PathBuf>,
    location: String,
}

impl FailureNote {
    /// In this folder, without which nothing is remembered.
    pub fn new(
        folder: Option<&Path>,
        about: About,
        cluster: &ClusterName,
        name: &str,
        location: String,
    ) -> Self {
        let place = match about {
            About::Wal => "outages",
            About::Backup => "failed-backups",
        };
        let path = folder.map(|folder| folder.join(place).join(format!("{cluster}-{name}")));
        Self { path, location }
    }

    /// What is noted.
    pub fn read(&self) -> Option<NotedFailure> {
        let bytes = fs::read(self.path.as_ref()?).ok()?;
        let noted = serde_json::from_slice(&bytes).ok();
        noted.filter(|noted: &NotedFailure| noted.location == self.location)
    }

    /// Whether the repository is left alone for now.
    pub fn rests(&self, now: Timestamp) -> bool {
        let age = self.read().map(|noted| now.duration_since(noted.tried));
        age.is_some_and(|age| !age.is_negative() && age.unsigned_abs() < REST)
    }

    /// Notes that it failed.
    pub fn failed(&self, now: Timestamp, why: String) {
        let Some(path) = &self.path else { return };
        let since = self.read().map_or(now, |noted| noted.since);
        let noted = NotedFailure { location: self.location.clone(), since, tried: now, why };
        let bytes = serde_json::to_vec(&noted).expect("plain fields");
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        let kept = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            fs::write(&temporary, bytes)?;
            fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))
        });
        if let Err(error) = kept {
            tracing::debug!(path = %path.display(), %error, "cannot note a failure");
        }
    }

    /// Notes that it works.
    pub fn worked(&self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_failed_rests_for_a_while_and_no_clock_makes_that_longer() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterName::new("main").unwrap();
        let note = |place: &str| {
            FailureNote::new(Some(folder.path()), About::Wal, &cluster, "away", place.to_owned())
        };
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        assert!(!note("/a").rests(at(0)));
        note("/a").failed(at(0), "timeout".to_owned());
        note("/a").failed(at(10), "reset".to_owned());
        assert!(note("/a").rests(at(10)) && note("/a").rests(at(69)));
        assert!(!note("/a").rests(at(70)), "it is tried again");
        assert!(!note("/a").rests(at(9)), "a clock that was ahead does not count");
        assert!(!note("/b").rests(at(10)), "another repository under the same name");
        let noted = note("/a").read().unwrap();
        assert_eq!((noted.since, noted.tried, &*noted.why), (at(0), at(10), "reset"));
        note("/a").worked();
        assert_eq!(note("/a").read(), None);
        let nowhere = FailureNote::new(None, About::Wal, &cluster, "away", "/a".to_owned());
        nowhere.failed(at(0), String::new());
        assert!(!nowhere.rests(at(0)));
    }
}
