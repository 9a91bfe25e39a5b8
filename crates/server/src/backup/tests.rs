use std::fs;

use super::*;
use crate::throwaway::{StopMode, Throwaway, testing};

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
fn standbys_bad_labels_and_small_wal_are_refused() {
    let mut server = Throwaway::builder(&testing::binaries())
        .setting("wal_level", "minimal")
        .setting("max_wal_senders", "0")
        .start()
        .unwrap();
    let error = BackupSession::start(server.connect().unwrap(), "two\nlines", true).unwrap_err();
    assert!(matches!(error, BackupError::InvalidLabel { .. }), "{error:?}");
    let error = BackupSession::start(server.connect().unwrap(), "x", true).unwrap_err();
    assert!(matches!(error, BackupError::Refused { what: "start", .. }), "{error:?}");
    assert!(!error.is_transient());

    server.stop(StopMode::Fast).unwrap();
    let conf = server.data_directory().join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap() + "wal_level = replica\n";
    fs::write(&conf, text).unwrap();
    server.restart().unwrap();
    server.stop(StopMode::Fast).unwrap();
    let signal = server.data_directory().join("standby.signal");
    fs::write(&signal, "").unwrap();
    server.run_as().give(&signal).unwrap();
    server.start().unwrap();
    let error = BackupSession::start(server.connect().unwrap(), "x", true).unwrap_err();
    assert!(matches!(error, BackupError::InRecovery), "{error:?}");
}
