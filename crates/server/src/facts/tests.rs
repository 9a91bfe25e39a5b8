use std::fs;

use super::*;
use crate::connection::ConnectionSettings;
use crate::throwaway::{Throwaway, testing};

#[test]
fn a_superuser_sees_the_server_as_it_is() {
    let server = Throwaway::builder(&testing::binaries())
        .wal_segment_size_mib(4)
        .setting("archive_mode", "on")
        .setting("archive_command", "false # é")
        .setting("archive_timeout", "1min")
        .start()
        .unwrap();
    let spaces = server.directory().join("spaces");
    fs::create_dir(&spaces).unwrap();
    server.run_as().give(&spaces).unwrap();
    let connection = server.connect().unwrap();
    connection.execute(&format!("CREATE TABLESPACE far LOCATION '{}'", spaces.display()), &[]).unwrap();

    let facts = ServerFacts::read(&connection).unwrap();
    assert_eq!(facts.major, server.binaries().major);
    let control = fs::read(server.data_directory().join("global/pg_control")).unwrap();
    let control = pg::control::ControlFile::parse(&control).unwrap();
    assert_eq!(facts.system_identifier, Some(control.system_identifier));
    assert_eq!(facts.catalog_version, Some(control.catalog_version));
    assert_eq!(facts.data_directory.as_deref(), Some(server.data_directory()));
    assert_eq!(facts.hba_file, Some(server.data_directory().join("pg_hba.conf")));
    assert_eq!((facts.wal_level, facts.archive_mode), (WalLevel::Replica, ArchiveMode::On));
    assert_eq!(facts.archive_command.as_deref(), Some("false # é"));
    assert_eq!(facts.archive_timeout, Duration::from_secs(60));
    assert_eq!(facts.wal_segment_size.bytes(), 4 << 20);
    assert_eq!((facts.block_size, facts.blocks_per_segment), (8192, 131_072));
    assert!(facts.data_checksums && facts.full_page_writes && !facts.in_recovery);
    assert!(facts.is_superuser && facts.may_replicate && facts.can_backup && facts.over_socket);
    assert_eq!(facts.timeline, TimelineId::new(1));
    assert!(facts.lsn.is_some());
    let [far] = &facts.tablespaces[..] else { panic!("{:?}", facts.tablespaces) };
    assert_eq!((far.name.as_str(), &far.location), ("far", &spaces));
    assert!(facts.server_time.duration_since(Timestamp::now()).abs() < jiff::SignedDuration::from_mins(1));

    // The session is as it was.
    assert_eq!(connection.parameter("client_encoding").as_deref(), Some("UTF8"));
    connection.execute("CREATE TABLE t (i int)", &[]).unwrap();
}

#[test]
fn a_role_without_privileges_gets_answers_with_holes() {
    let server = testing::shared();
    let superuser = server.connect().unwrap();
    superuser.run_script("CREATE ROLE nobody_much LOGIN").unwrap();
    let settings = ConnectionSettings::new(server.conninfo()).with("user", "nobody_much");
    let facts = ServerFacts::read(&Connection::connect(&settings).unwrap()).unwrap();
    assert!(!facts.is_superuser && !facts.can_backup && !facts.may_replicate);
    assert_eq!(facts.role, "nobody_much");
    assert_eq!((facts.data_directory, facts.hba_file), (None, None));

    let functions = facts.major.facts().unwrap().backup_functions;
    for signature in [functions.start_signature(), functions.stop_signature()] {
        superuser.execute(&format!("GRANT EXECUTE ON FUNCTION {signature} TO nobody_much"), &[]).unwrap();
    }
    superuser.run_script("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").unwrap();
    let facts = ServerFacts::read(&Connection::connect(&settings).unwrap()).unwrap();
    assert!(facts.can_backup);
    assert_eq!((facts.system_identifier, facts.catalog_version), (None, None));
}

#[test]
fn a_standby_tells_what_it_replays() {
    let mut server = testing::started();
    server.stop(crate::throwaway::StopMode::Fast).unwrap();
    let signal = server.data_directory().join("standby.signal");
    fs::write(&signal, "").unwrap();
    server.run_as().give(&signal).unwrap();
    server.start().unwrap();
    let facts = ServerFacts::read(&server.connect().unwrap()).unwrap();
    assert!(facts.in_recovery);
    assert_eq!(facts.timeline, TimelineId::new(1));
    assert!(facts.lsn.is_some());
}

#[test]
fn functions_in_a_hostile_search_path_are_not_called() {
    let server = testing::started();
    let connection = server.connect().unwrap();
    connection
        .run_script(
            "CREATE SCHEMA evil;
             CREATE FUNCTION evil.same(name, name) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE ''called''; END';
             CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.same);
             ALTER DATABASE postgres SET search_path = evil, pg_catalog",
        )
        .unwrap();
    ServerFacts::read(&server.connect().unwrap()).unwrap();
}

#[test]
fn a_standby_that_is_fed_by_an_archive_tells_what_a_slot_keeps() {
    let archive = tempfile::Builder::new().prefix("pgkeep-archive-").tempdir_in("/tmp").unwrap();
    let folder = archive.path().display().to_string();
    let primary = Throwaway::builder(&testing::binaries())
        .wal_segment_size_mib(1)
        .setting("archive_mode", "on")
        .setting("archive_command", &format!("cp %p {folder}/%f"))
        .start()
        .unwrap();
    primary.run_as().give(archive.path()).unwrap();
    let standby = Throwaway::builder(&testing::binaries())
        .setting("primary_conninfo", "")
        .setting("restore_command", &format!("cp {folder}/%f %p"))
        .start_standby_of(&primary)
        .unwrap();
    let (writes, replays) = (primary.connect().unwrap(), standby.connect().unwrap());
    replays.execute("SELECT pg_create_physical_replication_slot('keep', true)", &[]).unwrap();
    let begun = std::time::Instant::now();
    loop {
        writes.execute("SELECT pg_logical_emit_message(false, 'x', 'x'), pg_switch_wal()", &[]).unwrap();
        let slot = Slot::named(&replays, "keep").unwrap().unwrap();
        if slot.retained_bytes > 2 << 20 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{slot:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    // It never received anything.
    let received = replays.query_one("SELECT pg_last_wal_receive_lsn()", &[]).unwrap();
    assert_eq!(received.first().unwrap().text(0).unwrap(), None);
}
