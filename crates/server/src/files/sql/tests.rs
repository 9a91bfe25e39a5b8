use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;

use super::*;
use crate::connection::ConnectionSettings;
use crate::files::{FileKind, Listing, LocalFiles, Warning};
use crate::throwaway::{Throwaway, testing};

fn paths(listing: &Listing) -> Vec<String> {
    listing.files.iter().map(|file| file.path.escape_ascii().to_string()).collect()
}

fn read_all(files: &dyn FileSource, path: &[u8], size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize + 10];
    let length = files.reader().open(path).unwrap().read_at(0, &mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

/// Ends the sessions that read files, and says how many there were.
fn end_readers(server: &Throwaway) -> i64 {
    let sql = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE application_name = 'pgkeep files'";
    server.connect().unwrap().query_one(sql, &[]).unwrap().first().unwrap().parse(0).unwrap()
}

/// A server with a tablespace elsewhere and one in place, an unlogged table, and a file of several rows.
fn furnished() -> Throwaway {
    let server = testing::started();
    let space = server.directory().join("space \\ x");
    fs::create_dir(&space).unwrap();
    server.run_as().give(&space).unwrap();
    let connection = server.connect().unwrap();
    connection.execute(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()), &[]).unwrap();
    connection
        .run_script(
            "CREATE TABLE far TABLESPACE s AS SELECT generate_series(1, 1000) i;
             CREATE TABLE long AS SELECT i, repeat(md5(i::text), 30) x FROM generate_series(1, 4000) i;
             CREATE UNLOGGED TABLE fleeting AS SELECT 1; SET allow_in_place_tablespaces = on",
        )
        .unwrap();
    if connection.server_version_num() >= 150_000 {
        connection.execute("CREATE TABLESPACE p LOCATION ''", &[]).unwrap();
        connection.run_script("CREATE TABLE near TABLESPACE p AS SELECT 1").unwrap();
    }
    connection.execute("CHECKPOINT", &[]).unwrap();
    server
}

#[test]
fn over_sql_a_cluster_is_listed_and_read_as_it_is_on_this_machine() {
    let server = furnished();
    let odd = server.data_directory().join("it's \\ odd é");
    fs::write(&odd, "odd").unwrap();
    server.run_as().give(&odd).unwrap();
    let connection = server.connect().unwrap();
    let (here, there) =
        (LocalFiles::new(server.data_directory()).unwrap(), SqlFiles::new(&connection).unwrap());
    let (local, sql) = (here.list().unwrap(), there.list().unwrap());
    assert_eq!(paths(&local), paths(&sql));
    assert_eq!((local.warnings, &sql.warnings), (Vec::new(), &Vec::new()));
    for (local, sql) in local.files.iter().zip(&sql.files) {
        let path = local.path.escape_ascii();
        assert_eq!((&local.kind, local.size), (&sql.kind, sql.size), "{path}");
        if local.kind == FileKind::File {
            let seconds = |time: i64| time / 1_000_000_000;
            let times = (seconds(local.mtime_ns), seconds(local.ctime_ns));
            assert_eq!(times, (seconds(sql.mtime_ns), seconds(sql.ctime_ns)), "{path}");
            assert_eq!(
                read_all(&here, &local.path, local.size),
                read_all(&there, &sql.path, sql.size),
                "{path}"
            );
        }
    }
    assert_eq!(here.major(), there.major());
    assert_eq!(here.directory().path, there.directory().path);
    assert_eq!(here.directory().mode, there.directory().mode);
    let (a, b) = (here.read_control_file().unwrap().0, there.read_control_file().unwrap().0);
    assert_eq!(a, b);
    assert!((here.clock_ns().unwrap() - there.clock_ns().unwrap()).abs() < 10_000_000_000);
    let hba = server.data_directory().join("pg_hba.conf");
    assert_eq!(there.read_outside(&hba, 1 << 20).unwrap(), fs::read(&hba).unwrap());
}

#[test]
fn odd_things_are_named_and_never_hang_or_fail_a_listing() {
    let server = testing::started();
    let data = server.data_directory();
    let closed = server.directory().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    symlink(".", data.join("round")).unwrap();
    symlink("itself", data.join("itself")).unwrap();
    symlink("gone", data.join("dangling")).unwrap();
    fs::write(data.join(OsStr::from_bytes(b"\xff\xfe")), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(data.join(".s.PGSQL.1")).unwrap();
    let files = SqlFiles::new(&server.connect().unwrap()).unwrap();
    let listing = files.list().unwrap();
    let warned: Vec<String> = listing.warnings.iter().map(Warning::to_string).collect();
    for what in [
        "itself cannot be looked at",
        "\\xff\\xfe has a name that is not valid in UTF8",
        ".s.PGSQL.1 is no file",
        "round/round leads back",
    ] {
        assert!(warned.iter().any(|warning| warning.starts_with(what)), "{what}: {warned:?}");
    }
    assert!(listing.files.windows(2).all(|pair| pair[0].path < pair[1].path));
    assert!(!paths(&listing).iter().any(|path| path.contains("dangling") || path.contains("itself")));
}

#[test]
fn what_was_announced_comes_in_few_statements_and_anything_else_is_asked_for() {
    let server = furnished();
    let files = SqlFiles::new(&server.connect().unwrap()).unwrap();
    let local = LocalFiles::new(server.data_directory()).unwrap();
    let listing = files.list().unwrap();
    let whole: Vec<&FoundFile> =
        listing.files.iter().filter(|file| file.kind == FileKind::File && file.size > 0).collect();
    assert!(whole.len() > 500 && whole.iter().any(|file| file.size > 600_000));
    let ranges: Vec<Range<'_>> =
        whole.iter().map(|file| Range { path: &file.path, offset: 0, length: file.size }).collect();
    let before = files.statements();
    let mut reader = files.reader();
    reader.announce(&ranges).unwrap();
    for (number, file) in whole.iter().enumerate() {
        if number % 7 == 3 {
            continue;
        }
        let open = reader.open(&file.path).unwrap();
        let (mut bytes, mut at) = (vec![0; file.size as usize], 0);
        // In steps that fit no row.
        while at < bytes.len() {
            let end = (at + 100_000).min(bytes.len());
            let length = open.read_at(at as u64, &mut bytes[at..end]).unwrap();
            assert!(length > 0);
            at += length;
        }
        assert_eq!(bytes, read_all(&local, &file.path, file.size), "{}", file.path.escape_ascii());
        if number % 100 == 0 && file.size >= 8192 {
            // As a worker does for a torn page.
            let mut page = [0; 8192];
            assert_eq!(open.read_at(0, &mut page).unwrap(), 8192);
            assert_eq!(page, bytes[..8192]);
        }
    }
    reader.announce(&[]).unwrap();
    let asked = files.statements() - before;
    assert!(asked < 20, "{asked} statements for {} files", whole.len());
}

#[test]
fn twenty_thousand_small_files_take_few_statements() {
    const COUNT: u64 = 20_000;
    let server = testing::started();
    let folder = server.data_directory().join("base/many");
    fs::create_dir(&folder).unwrap();
    for number in 0..COUNT {
        fs::write(folder.join(format!("{number}")), format!("{number}").repeat(20)).unwrap();
    }
    server.run_as().give(&folder).unwrap();
    let files = SqlFiles::new(&server.connect().unwrap()).unwrap();
    let listing = files.list().unwrap();
    assert!(files.statements() < 40, "{} statements to list", files.statements());
    let before = files.statements();
    let (mut reader, mut buffer, mut found) = (files.reader(), vec![0; 8192], 0);
    let whole: Vec<_> = listing.files.iter().filter(|file| file.size > 0).collect();
    for batch in whole.chunks(files.batch().ranges) {
        let ranges: Vec<_> =
            batch.iter().map(|file| Range { path: &file.path, offset: 0, length: file.size }).collect();
        reader.announce(&ranges).unwrap();
        for file in batch.iter().filter(|file| file.path.starts_with(b"base/many/")) {
            let length = reader.open(&file.path).unwrap().read_at(0, &mut buffer).unwrap();
            assert_eq!(buffer[..length], file.path["base/many/".len()..].repeat(20));
            found += 1;
        }
    }
    assert_eq!(found, COUNT);
    assert!(files.statements() - before < 20, "{} statements to read", files.statements() - before);
}

#[test]
fn files_that_went_away_or_shrank_are_told_from_others() {
    let server = testing::started();
    let data = server.data_directory();
    for (name, length) in [("a", 700_000), ("b", 10), ("c", 700_000), ("d", 10)] {
        fs::write(data.join(name), vec![b'x'; length]).unwrap();
        server.run_as().give(&data.join(name)).unwrap();
    }
    let files = SqlFiles::new(&server.connect().unwrap()).unwrap();
    fs::remove_file(data.join("b")).unwrap();
    fs::write(data.join("c"), vec![b'y'; 300_000]).unwrap();
    let mut reader = files.reader();
    let range = |path: &'static [u8], length| Range { path, offset: 0, length };
    reader.announce(&[range(b"a", 700_000), range(b"b", 10), range(b"c", 700_000), range(b"d", 10)]).unwrap();
    let mut buffer = vec![0; 800_000];
    let mut read = |path: &[u8]| reader.open(path).unwrap().read_at(0, &mut buffer);
    assert_eq!(read(b"a").unwrap(), 700_000);
    assert!(read(b"b").unwrap_err().is_vanished());
    assert_eq!(read(b"c").unwrap(), 300_000);
    assert_eq!(read(b"d").unwrap(), 10);
    assert!(read(b"nothing").unwrap_err().is_vanished());
}

#[test]
fn a_reader_whose_session_ends_goes_on_where_it_was() {
    let server = furnished();
    let files = SqlFiles::new(&server.connect().unwrap()).unwrap();
    let listing = files.list().unwrap();
    let long = listing.files.iter().max_by_key(|file| file.size).unwrap();
    let mut reader = files.reader();
    // Far more than the sockets hold, so that the server is in the middle of it.
    let range = Range { path: &long.path, offset: 0, length: long.size };
    reader.announce(&[range; 40]).unwrap();
    let open = reader.open(&long.path).unwrap();
    let mut bytes = vec![0; long.size as usize];
    let half = bytes.len() / 2;
    assert_eq!(open.read_at(0, &mut bytes[..half]).unwrap(), half);
    assert!(end_readers(&server) >= 2, "the reader and the session at its side");
    let rest = bytes.len() - half;
    assert_eq!(open.read_at(half as u64, &mut bytes[half..]).unwrap(), rest);
    assert_eq!(bytes, fs::read(server.data_directory().join(OsStr::from_bytes(&long.path))).unwrap());
    // A larger buffer is not filled with the next range, which begins anew.
    bytes.extend([0; 1000]);
    for _ in 1..40 {
        assert_eq!(open.read_at(0, &mut bytes).unwrap(), half + rest);
    }
    reader.announce(&[]).unwrap();
}

#[test]
fn another_server_at_the_same_address_is_refused() {
    let mut server = testing::started();
    let files = SqlFiles::new(&server.connect().unwrap()).unwrap();
    server.restart().unwrap();
    let mut reader = files.reader();
    let error = reader.announce(&[Range { path: b"PG_VERSION", offset: 0, length: 3 }]).unwrap_err();
    assert!(matches!(error, FilesError::OtherServer), "{error:?}");
}

#[test]
fn no_setting_of_the_role_reaches_a_reader() {
    let server = testing::shared();
    let settings = ConnectionSettings::new(server.conninfo())
        .with("options", "-c statement_timeout=50 -c standard_conforming_strings=off -c search_path=x");
    let session = Connection::connect(&settings).unwrap();
    let files = SqlFiles::new(&session).unwrap();
    let reader = files.sessions.open().unwrap();
    for (name, value) in [("statement_timeout", "0"), ("search_path", ""), ("client_encoding", "SQL_ASCII")] {
        let rows = reader.query_one("SELECT pg_catalog.current_setting($1)", &[name]).unwrap();
        assert_eq!(rows.first().unwrap().required(0).unwrap(), value, "{name}");
    }
    assert_eq!(reader.host(), session.host());
    assert!(files.list().unwrap().files.len() > 500);
}

#[test]
fn a_standbys_files_are_not_taken_for_its_primarys() {
    let primary = testing::started();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let standby = Throwaway::builder(&testing::binaries()).start_standby_of(&primary).unwrap();
    let ids = |server: &Throwaway| {
        let files = SqlFiles::new(&server.connect().unwrap()).unwrap();
        let inodes: std::collections::BTreeSet<u64> =
            files.list().unwrap().files.iter().map(|file| file.inode).filter(|inode| *inode != 0).collect();
        assert_eq!(inodes.len(), 1);
        inodes
    };
    assert_eq!(ids(&primary), ids(&primary));
    assert_ne!(ids(&primary), ids(&standby));
}

#[test]
fn names_are_judged_by_the_encoding_of_the_database() {
    let server = testing::started();
    let superuser = server.connect().unwrap();
    superuser.execute("CREATE DATABASE old ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", &[]).unwrap();
    superuser.execute("CREATE DATABASE japan ENCODING 'EUC_JP' LOCALE 'C' TEMPLATE template0", &[]).unwrap();
    for name in [&b"caf\xe9"[..], b"\xa4\xa2"] {
        fs::write(server.data_directory().join(OsStr::from_bytes(name)), "x").unwrap();
        server.run_as().give(server.data_directory()).unwrap();
    }
    let found = |database: &str| -> BTreeMap<Vec<u8>, Vec<u8>> {
        let files = SqlFiles::new(&server.connect_to(database).unwrap()).unwrap();
        let listing = files.list().unwrap();
        let odd = listing.files.into_iter().filter(|file| !file.path.is_ascii());
        odd.map(|file| (file.path.clone(), read_all(&files, &file.path, file.size))).collect()
    };
    assert_eq!(found("old").into_keys().collect::<Vec<_>>(), [&b"caf\xe9"[..], b"\xa4\xa2"]);
    assert_eq!(found("japan").into_keys().collect::<Vec<_>>(), [b"\xa4\xa2"]);
    assert_eq!(found("postgres").into_keys().collect::<Vec<_>>(), [] as [Vec<u8>; 0]);
}

#[test]
fn a_role_that_lacks_a_right_is_told_by_the_server() {
    let server = testing::shared();
    let superuser = server.connect().unwrap();
    superuser.run_script("CREATE ROLE reads_nothing LOGIN").unwrap();
    let settings = ConnectionSettings::new(server.conninfo()).with("user", "reads_nothing");
    let error = SqlFiles::new(&Connection::connect(&settings).unwrap()).unwrap_err();
    let FilesError::Sql { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.is_permission_denied());
    superuser.run_script("DROP ROLE reads_nothing").unwrap();
}
