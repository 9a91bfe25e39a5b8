use super::testing::binaries;
use super::*;

fn count(server: &Throwaway) -> i64 {
    let rows = server.connect().unwrap().query_one("SELECT count(*) FROM t", &[]).unwrap();
    rows.first().unwrap().parse(0).unwrap()
}

#[test]
fn a_server_lives_crashes_recovers_and_leaves_nothing() {
    let mut server =
        Throwaway::builder(&binaries()).wal_segment_size_mib(1).setting("work_mem", "5MB").start().unwrap();
    let directory = server.directory().to_owned();
    let connection = server.connect().unwrap();
    connection.run_script("CREATE TABLE t AS SELECT generate_series(1, 1000) i").unwrap();
    for (name, value) in [("work_mem", "5MB"), ("wal_segment_size", "1MB"), ("data_checksums", "on")] {
        let rows = connection.query_one("SELECT current_setting($1)", &[name]).unwrap();
        assert_eq!(rows.first().unwrap().required(0).unwrap(), value);
    }
    server.kill();
    assert!(!server.is_running());
    server.start().unwrap();
    assert_eq!(count(&server), 1000);
    server.restart().unwrap();
    server.stop(StopMode::Immediate).unwrap();
    server.start().unwrap();
    assert_eq!(count(&server), 1000);
    assert!(server.log().contains("ready to accept connections"));

    let output = server.command("psql").args(["-XAtc", "SELECT 1 + 1"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "2");
    drop(server);
    assert!(!directory.exists());
}

#[test]
fn an_existing_directory_is_served_without_its_own_access_rules_or_archive() {
    let mut first = Throwaway::builder(&binaries())
        .setting("archive_mode", "on")
        .setting("archive_command", "false")
        .start()
        .unwrap();
    first.connect().unwrap().run_script("CREATE TABLE t AS SELECT 1").unwrap();
    first.stop(StopMode::Fast).unwrap();
    std::fs::write(first.data_directory().join("pg_hba.conf"), "local all all reject\n").unwrap();

    let second = Throwaway::builder(&binaries()).start_existing(first.data_directory()).unwrap();
    assert_eq!(count(&second), 1);
    let rows = second.connect().unwrap().query_one("SELECT current_setting('archive_mode')", &[]).unwrap();
    assert_eq!(rows.first().unwrap().required(0).unwrap(), "off");
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let error = Throwaway::builder(&binaries()).setting("no_such_setting", "1").start().unwrap_err();
    assert!(matches!(error, ThrowawayError::Ended { .. }), "{error:?}");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}
