use std::fs;

use super::*;
use crate::throwaway::{Throwaway, testing};

#[test]
fn a_backup_gives_what_a_restore_needs() {
    let server = Throwaway::builder(&testing::binaries()).wal_segment_size_mib(1).start().unwrap();
    let space = server.directory().join("space é");
    fs::create_dir(&space).unwrap();
    server.run_as().give(&space).unwrap();
    let other = server.connect().unwrap();
    other.execute(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()), &[]).unwrap();

    let session = BackupSession::start(server.connect().unwrap(), "Sunday", true).unwrap();
    let started = session.started().clone();
    other.run_script("CREATE TABLE t AS SELECT generate_series(1, 50000) i").unwrap();
    session.check_alive().unwrap();
    let stopped = session.stop(false).unwrap();

    assert_eq!(stopped.label.label, "Sunday");
    assert_eq!(stopped.label.start_segment, started.start_segment);
    assert!(stopped.stop_lsn > started.start_lsn && stopped.at > started.at);
    let size = started.wal_segment_size;
    assert!(stopped.stop_segment.number(size) > started.start_segment.number(size) + 2, "{stopped:?}");
    assert!(stopped.label_file.starts_with(b"START WAL LOCATION: "));
    assert!(String::from_utf8(stopped.tablespace_map).unwrap().contains("space é"));
    assert!(server.data_directory().join("pg_wal").join(stopped.stop_segment.to_string()).exists());
}

#[test]
fn a_lost_session_is_a_lost_backup() {
    let server = testing::started();
    let session = BackupSession::start(server.connect().unwrap(), "doomed", true).unwrap();
    let pid = session.connection().query_one("SELECT pg_catalog.pg_backend_pid()", &[]).unwrap();
    let pid = pid.first().unwrap().required(0).unwrap();
    server.connect().unwrap().query_one("SELECT pg_terminate_backend($1::int, 10000)", &[pid]).unwrap();
    assert!(matches!(session.check_alive(), Err(BackupError::SessionLost { .. })));
    let error = session.stop(false).unwrap_err();
    assert!(matches!(error, BackupError::SessionLost { .. }) && error.is_transient(), "{error:?}");
}

#[test]
fn bad_labels_and_small_wal_are_refused() {
    let server = Throwaway::builder(&testing::binaries())
        .setting("wal_level", "minimal")
        .setting("max_wal_senders", "0")
        .start()
        .unwrap();
    let error = BackupSession::start(server.connect().unwrap(), "two\nlines", true).unwrap_err();
    assert!(matches!(error, BackupError::InvalidLabel { .. }), "{error:?}");
    let error = BackupSession::start(server.connect().unwrap(), "x", true).unwrap_err();
    assert!(matches!(error, BackupError::Refused { what: "start", .. }), "{error:?}");
    assert!(!error.is_transient());
}

#[test]
fn a_standby_gives_a_backup_of_its_own_and_none_once_it_is_promoted() {
    let primary = testing::started();
    primary.connect().unwrap().run_script("CREATE TABLE t AS SELECT generate_series(1, 10000) i").unwrap();
    let standby = Throwaway::builder(&testing::binaries()).start_standby_of(&primary).unwrap();
    let session = BackupSession::start(standby.connect().unwrap(), "aside", true).unwrap();
    let started = session.started().clone();
    assert!(started.from_standby);
    assert_eq!(Some(started.timeline), TimelineId::new(1));
    let stopped = session.stop(false).unwrap();
    assert_eq!(
        (stopped.label.start_lsn, stopped.label.start_timeline),
        (started.start_lsn, started.timeline)
    );
    assert!(stopped.stop_lsn >= started.start_lsn);
    assert!(String::from_utf8_lossy(&stopped.label_file).contains("BACKUP FROM: standby"));

    let session = BackupSession::start(standby.connect().unwrap(), "doomed", true).unwrap();
    standby.connect().unwrap().query_one("SELECT pg_promote(true, 60)", &[]).unwrap();
    let error = session.stop(false).unwrap_err();
    assert!(matches!(error, BackupError::Promoted { .. }) && error.is_transient(), "{error:?}");
}

#[test]
fn a_standby_whose_upstream_is_promoted_meanwhile_says_so_and_gives_the_next_backup() {
    let primary = testing::started();
    primary.connect().unwrap().run_script("CREATE TABLE t AS SELECT generate_series(1, 10000) i").unwrap();
    let upstream = Throwaway::builder(&testing::binaries()).start_standby_of(&primary).unwrap();
    let standby = Throwaway::builder(&testing::binaries()).start_standby_of(&upstream).unwrap();
    let session = BackupSession::start(standby.connect().unwrap(), "over a promotion", true).unwrap();
    assert!(session.started().from_standby);
    let (writes, replays) = (upstream.connect().unwrap(), standby.connect().unwrap());
    writes.query("SELECT pg_promote()", &[]).unwrap();
    // A restart point on the new timeline, after which a restore needs WAL of both.
    let begun = std::time::Instant::now();
    loop {
        writes.run_script("UPDATE t SET i = i + 1 WHERE i % 100 = 0; CHECKPOINT").unwrap();
        replays.run_script("CHECKPOINT").unwrap();
        let sql = "SELECT min_recovery_end_timeline FROM pg_control_recovery()";
        if replays.query_one(sql, &[]).unwrap().first().unwrap().parse::<u32>(0).unwrap() == 2 {
            break;
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "it does not follow its upstream");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let error = session.stop(false).unwrap_err();
    assert!(matches!(error, BackupError::Torn { .. }), "{error:?}");
    assert!(error.to_string().contains("timeline 2"), "{error}");

    let session = BackupSession::start(standby.connect().unwrap(), "after it", true).unwrap();
    assert_eq!(session.started().timeline, TimelineId::new(2).unwrap());
    assert_eq!(session.stop(false).unwrap().stop_segment.timeline, TimelineId::new(2).unwrap());
}
