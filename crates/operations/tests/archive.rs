//! Push, drain and get of what a real server writes, across a promotion.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use operations::archive::{Background, Context, Limits, get, push};
use operations::reachable::{ArchiveState, continuous_until};
use pg::recovery::TargetTimeline;
use pg::wal::{FileName, SegmentName};
use pg::{Lsn, TimelineId};
use repository::description::Description;
use repository::secrets::{Keyring, RepositoryId};
use repository::{ClusterName, Repository};
use server::throwaway::{Binaries, StopMode, Throwaway};
use storage::Memory;

async fn context(folder: &Path) -> Context {
    let keyring = Keyring::generate(RepositoryId::random());
    let description = Description::new(&keyring.writer, jiff::Timestamp::now(), true);
    let local = folder.join("state");
    let storage = Arc::new(Memory::new());
    let repository = Repository::create(storage, keyring, &[], description, Some(&local)).await.unwrap();
    Context {
        repository: Arc::new(repository),
        cluster: ClusterName::new("main").unwrap(),
        spool: Some(folder.join("spool")),
        up_to_gap: None,
        limits: Limits { start_grace: Duration::ZERO, hole_wait: Duration::ZERO, ..Limits::default() },
        now: jiff::Timestamp::now,
    }
}

fn start_nothing(_: &Background) -> io::Result<()> {
    Err(io::Error::other("no process in this test"))
}

/// Carries everything that waits, as PostgreSQL's archiver would, after a drainer went ahead of it.
async fn archive_all(context: &Context, wal: &Path) -> Vec<PathBuf> {
    push::drain(context, wal).await.unwrap();
    let status = wal.join("archive_status");
    let mut files = Vec::new();
    for entry in fs::read_dir(&status).unwrap() {
        let ready = entry.unwrap().path();
        if ready.extension().is_some_and(|extension| extension == "ready") {
            let path = wal.join(ready.file_stem().unwrap());
            assert_eq!(
                push::run(context, &path, &start_nothing).await.unwrap(),
                push::Pushed::Ahead,
                "{path:?}"
            );
            fs::rename(&ready, ready.with_extension("done")).unwrap();
            files.push(path);
        }
    }
    files
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn write_and_switch(server: &Throwaway, rows: u32) {
    let connection = server.connect().unwrap();
    connection.execute("create table if not exists t (x text)", &[]).unwrap();
    for _ in 0..4 {
        let insert =
            format!("insert into t select repeat(md5(g::text), 9) from generate_series(1, {rows}) g");
        connection.execute(&insert, &[]).unwrap();
        connection.query("select pg_switch_wal()", &[]).unwrap();
    }
}

/// Compares what comes back with the files as they lie in `pg_wal`.
async fn assert_all_come_back(context: &Context, folder: &Path, files: &[PathBuf]) {
    let target = folder.join("restored/RECOVERYXLOG");
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        get::run(context, name, &target, &start_nothing).await.unwrap();
        assert!(fs::read(&target).unwrap() == fs::read(path).unwrap(), "{name}");
    }
}

#[tokio::test]
async fn a09_the_stream_goes_on_after_a_promotion() {
    let folder = tempfile::tempdir().unwrap();
    let context = context(folder.path()).await;
    let builder = Throwaway::builder(&Binaries::require(None).unwrap()).wal_segment_size_mib(1);
    // Nothing is archived by the server itself, and nothing that waits is recycled.
    let mut server = builder
        .setting("archive_mode", "on")
        .setting("archive_command", "false")
        .setting("restore_command", "false")
        .start()
        .unwrap();
    let wal = server.data_directory().join("pg_wal");
    let before = jiff::Timestamp::now();
    write_and_switch(&server, 3000);
    let first = archive_all(&context, &wal).await;
    assert!(first.len() >= 4, "{first:?}");
    assert_all_come_back(&context, folder.path(), &first).await;

    server.stop(StopMode::Fast).unwrap();
    let signal = server.data_directory().join("standby.signal");
    fs::write(&signal, b"").unwrap();
    server.run_as().give(&signal).unwrap();
    server.start().unwrap();
    server.connect().unwrap().query("select pg_promote()", &[]).unwrap();
    write_and_switch(&server, 3000);
    wait_for("the new timeline's files", || {
        let status = wal.join("archive_status");
        ["00000002.history.ready", "00000002.history.done"].iter().any(|name| status.join(name).exists())
    });
    let second = archive_all(&context, &wal).await;
    assert_all_come_back(&context, folder.path(), &second).await;
    let names: Vec<FileName> =
        second.iter().map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect();
    assert!(names.iter().any(|name| matches!(name, FileName::History(_))), "{names:?}");
    assert!(names.iter().any(|name| matches!(name, FileName::Partial(_))), "{names:?}");

    // From the first segment of the first timeline to the last of the second, without a hole.
    let state = ArchiveState::read(&context.repository, &context.cluster).await.unwrap();
    let size = state.segment_size().unwrap();
    let oldest = *state.inventory.segments[&TimelineId::FIRST].keys().next().unwrap();
    let newest = *state.inventory.segments[&TimelineId::new(2).unwrap()].keys().last().unwrap();
    let from = Lsn::new(oldest.start(size)).unwrap();
    let path = state.path(TargetTimeline::Latest, TimelineId::FIRST, from).unwrap();
    assert_eq!(path.timeline.get(), 2);
    let reach = continuous_until(&state.inventory, &path, from, size);
    assert_eq!((reach.end.get(), reach.hole()), (newest.end(size), None));

    assert_commit_times(&context, newest, before).await;
    let next = newest.next(size).unwrap().to_string();
    let absent = get::run(&context, &next, &folder.path().join("x"), &start_nothing).await;
    assert_eq!(absent.unwrap_err().exit_status(), 1);
}

async fn assert_commit_times(context: &Context, segment: SegmentName, before: jiff::Timestamp) {
    let info = context.repository.wal_info(&context.cluster, &FileName::Segment(segment)).await.unwrap();
    let (first, last) = (info.first_commit_us.unwrap(), info.last_commit_us.unwrap());
    assert!(before.as_microsecond() < first && first <= last && last <= info.stored_us, "{info:?}");
}
