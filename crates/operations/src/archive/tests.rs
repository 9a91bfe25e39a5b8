//! A05, C01: killed at every named point, the plain run after it finishes the work and nothing is lost.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use storage::Filesystem;

use super::testing::{context_in, numbered, segment};
use super::*;
use crate::failpoint;

/// How the parent test tells the child which folder and which point.
const FOLDER: &str = "PGKEEP_TEST_KILL_FOLDER";
const POINT: &str = "PGKEEP_TEST_KILL_POINT";
const SEGMENTS: u64 = 5;

const POINTS: [&str; 13] = [
    "wal-push.read",
    "wal-push.bound",
    "wal-push.stored",
    "wal-push.answered",
    "wal-drain.stored",
    "wal-drain.stored:3",
    "wal-drain.noted",
    "wal-get.written",
    "wal-get.placed",
    "wal-get.ahead",
    "wal-get.taken",
    "wal-prefetch.written",
    "wal-prefetch.noted",
];

/// Archives and restores a few segments in every way; each may have happened before.
async fn archive_and_restore(folder: &Path) {
    let context = context_in(folder, Arc::new(Filesystem::new(folder.join("repository"))), 1).await;
    let wal = folder.join("data/pg_wal");
    let target = wal.join("RECOVERYXLOG");
    let start = |_: &Background| Err(io::Error::other("the test starts it itself"));
    push::run(&context, &wal.join(numbered(1)), &start).await.unwrap();
    push::drain(&context, &wal).await.unwrap();
    for number in 1..=SEGMENTS {
        push::run(&context, &wal.join(numbered(number)), &start).await.unwrap();
    }
    get::run(&context, &numbered(1), &target, &start).await.unwrap();
    let prefetch = get::prefetch(&context, &wal, numbered(1).parse().unwrap());
    let take = async {
        for number in 2..=SEGMENTS {
            let spool = spool::Spool::open(&context, &wal).unwrap();
            let begun = tokio::time::Instant::now();
            // Time for the prefetcher, so that its points are reached.
            while !spool.has_fetched(&numbered(number).parse().unwrap()) && begun.elapsed().as_secs() < 5 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            get::run(&context, &numbered(number), &target, &start).await.unwrap();
            assert!(
                fs::read(&target).unwrap() == segment(&numbered(number), number as u8),
                "segment {number}"
            );
        }
    };
    let (prefetched, ()) = tokio::join!(prefetch, take);
    prefetched.unwrap();
}

#[tokio::test]
async fn child() {
    let (Ok(folder), Ok(point)) = (std::env::var(FOLDER), std::env::var(POINT)) else { return };
    failpoint::arm(&point);
    archive_and_restore(Path::new(&folder)).await;
}

#[tokio::test]
async fn killed_anywhere_the_next_run_finishes() {
    for point in POINTS {
        let folder = tempfile::tempdir().unwrap();
        let status = folder.path().join("data/pg_wal/archive_status");
        fs::create_dir_all(&status).unwrap();
        fs::create_dir(folder.path().join("repository")).unwrap();
        for name in (1..=SEGMENTS).map(numbered) {
            let number = name.parse::<SegmentName>().unwrap().segment as u8;
            fs::write(folder.path().join("data/pg_wal").join(&name), segment(&name, number)).unwrap();
            fs::write(status.join(format!("{name}.ready")), b"").unwrap();
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["archive::tests::child", "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(POINT, point);
        let killed = child.output().unwrap();
        assert_eq!(killed.status.signal(), Some(9), "{point}: {killed:?}");
        archive_and_restore(folder.path()).await;
    }
}
