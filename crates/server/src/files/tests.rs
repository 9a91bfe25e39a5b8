use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::throwaway::{StopMode, Throwaway, testing};

fn paths(listing: &Listing) -> Vec<String> {
    listing.files.iter().map(|file| file.path.escape_ascii().to_string()).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_running_cluster_is_listed_without_what_does_not_belong() {
    let server = testing::started();
    let space = server.directory().join("space");
    fs::create_dir(&space).unwrap();
    server.run_as().give(&space).unwrap();
    let connection = server.connect().unwrap();
    connection.execute(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()), &[]).unwrap();
    connection
        .run_script(
            "CREATE TABLE kept AS SELECT generate_series(1, 10000) i;
             CREATE TABLE far TABLESPACE s AS SELECT 1;
             CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 10000) i;
             CREATE TEMP TABLE mine AS SELECT 1; CHECKPOINT",
        )
        .unwrap();
    // VACUUM makes the other forks, and cannot run in a script.
    connection.execute("VACUUM fleeting", &[]).unwrap();
    fs::create_dir_all(space.join("PG_9.6_201608131/1")).unwrap();
    let path_of = |table: &str| {
        let rows = connection.query_one("SELECT pg_relation_filepath($1::regclass)", &[table]).unwrap();
        rows.first().unwrap().required(0).unwrap().to_owned()
    };
    let (kept, far, fleeting, mine) = (path_of("kept"), path_of("far"), path_of("fleeting"), path_of("mine"));
    for name in ["_fsm", "_vm", "_init", ""] {
        assert!(server.data_directory().join(format!("{fleeting}{name}")).exists(), "{name}");
    }

    let files = LocalFiles::new(server.data_directory()).unwrap();
    let listing = files.list().unwrap();
    assert_eq!(listing.warnings, []);
    let listed: HashMap<_, _> = paths(&listing).into_iter().zip(&listing.files).collect();
    assert_eq!(listed.len(), listing.files.len());
    assert!(listing.files.windows(2).all(|pair| pair[0].path < pair[1].path));
    for path in
        [&kept, &far, &format!("{fleeting}_init"), "global/pg_control", "pg_wal", "pg_wal/archive_status"]
    {
        assert!(listed.contains_key(path), "{path}");
    }
    for path in [&mine, &fleeting, &format!("{fleeting}_fsm"), &format!("{fleeting}_vm"), "postmaster.pid"] {
        assert!(!listed.contains_key(path), "{path}");
    }
    let below_wal = listed.keys().filter(|path| path.starts_with("pg_wal/"));
    assert!(below_wal.into_iter().all(|path| path == "pg_wal/archive_status" || path == "pg_wal/summaries"));
    assert!(!listed.keys().any(|path| path.contains("PG_9.6")));
    let link = Path::new(&far).ancestors().nth(3).unwrap().to_str().unwrap();
    assert_eq!(listed[link].kind, FileKind::Symlink { target: space.as_os_str().as_bytes().to_owned() });

    for path in [&kept, &far] {
        let (expected, found) = (fs::read(server.data_directory().join(path)).unwrap(), listed[path]);
        assert_eq!((found.size, found.mode), (expected.len() as u64, 0o600));
        let mut bytes = vec![0; expected.len() + 100];
        let file = files.open(path.as_bytes()).unwrap();
        assert_eq!(file.read_at(0, &mut bytes).unwrap(), expected.len());
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(file.read_at(8000, &mut bytes[..100]).unwrap(), 100);
        assert_eq!(bytes[..100], expected[8000..8100]);
        assert_eq!(file.read_at(expected.len() as u64 + 1, &mut bytes).unwrap(), 0);
        assert_eq!(file.metadata().unwrap().inode, found.inode);
    }
    let (bytes, control) = files.read_control_file().unwrap();
    assert_eq!((bytes.len(), Some(files.major())), (8192, control.major()));
}

#[test]
fn odd_things_in_a_data_directory_are_named_or_kept_but_not_followed() {
    let mut server = testing::started();
    server.stop(StopMode::Fast).unwrap();
    let data = server.data_directory();
    let elsewhere = server.directory().join("elsewhere");
    fs::create_dir_all(elsewhere.join("archive_status")).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o750)).unwrap();
    write(&elsewhere.join("secret"), b"x");
    fs::remove_dir_all(data.join("pg_wal")).unwrap();
    for (target, link) in [
        (elsewhere.to_str().unwrap(), "pg_wal"),
        (elsewhere.to_str().unwrap(), "log"),
        ("secret", "base/1/link"),
        ("gone", "pg_stat_tmp/x"),
        ("/nowhere", "pg_tblspc/77777"),
        (elsewhere.to_str().unwrap(), "pg_tblspc/odd"),
        ("x", "postmaster.pid"),
    ] {
        symlink(target, data.join(link)).unwrap();
    }
    write(&data.join(OsStr::from_bytes(b"base/1/\xff\xfe")), b"odd name");
    let _socket = std::os::unix::net::UnixListener::bind(data.join("s")).unwrap();

    let files = LocalFiles::new(data).unwrap();
    let listing = files.list().unwrap();
    let warned: Vec<String> = listing.warnings.iter().map(Warning::to_string).collect();
    let expected =
        ["base/1/link is a", "log is a", "pg_tblspc/odd is a", "pg_tblspc/77777 leads", "s is no file"];
    for what in expected {
        assert!(warned.iter().any(|warning| warning.starts_with(what)), "{what}: {warned:?}");
    }
    assert_eq!(warned.len(), expected.len(), "{warned:?}");
    let found = |path: &[u8]| listing.files.iter().find(|file| file.path == path);
    let wal = found(b"pg_wal").unwrap();
    assert_eq!((&wal.kind, wal.mode), (&FileKind::Directory, 0o750));
    assert!(found(b"pg_wal/archive_status").is_some() && found(b"pg_wal/secret").is_none());
    assert!(matches!(found(b"pg_tblspc/77777").unwrap().kind, FileKind::Symlink { .. }));
    assert_eq!(found(b"base/1/\xff\xfe").unwrap().size, 8);

    let open = |path: &[u8]| files.open(path).unwrap_err();
    assert!(open(b"base/1/nothing").is_vanished());
    assert!(matches!(open(b"log/secret"), FilesError::Io { .. }));
    for path in [&b"../x"[..], b"/etc/passwd", b"base//1", b"", b"base/1", b"a\0b", b"base/./1"] {
        assert!(matches!(open(path), FilesError::InvalidPath { .. }), "{}", path.escape_ascii());
    }
}

#[test]
fn what_is_not_a_whole_cluster_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let new = || LocalFiles::new(directory.path());
    assert!(matches!(LocalFiles::new("/nonexistent"), Err(FilesError::DataDirectory { .. })));
    assert!(matches!(new(), Err(FilesError::Missing { .. })));
    write(&directory.path().join("PG_VERSION"), b"x\n");
    assert!(matches!(new(), Err(FilesError::Version(_))));
    assert!(matches!(
        LocalFiles::new(directory.path().join("PG_VERSION")),
        Err(FilesError::DataDirectory { .. })
    ));

    let mut server = testing::started();
    server.stop(StopMode::Fast).unwrap();
    let files = LocalFiles::new(server.data_directory()).unwrap();
    fs::remove_file(server.data_directory().join("global/pg_filenode.map")).unwrap();
    let missing = files.list().unwrap_err();
    assert!(
        matches!(&missing, FilesError::Missing { path } if path == b"global/pg_filenode.map"),
        "{missing}"
    );
    let mut visited = 0;
    files
        .walk(&mut |_| {
            visited += 1;
            if visited == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(visited, 3);
    fs::write(server.data_directory().join("global/pg_control"), [1; 8192]).unwrap();
    assert!(matches!(LocalFiles::new(server.data_directory()), Err(FilesError::Control(_))));
}

#[test]
fn files_that_come_and_go_do_not_disturb_a_listing() {
    let server: Throwaway = testing::started();
    let files = LocalFiles::new(server.data_directory()).unwrap();
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let connection = server.connect().unwrap();
            for _ in 0..200 {
                connection.run_script("CREATE TABLE t AS SELECT 1").unwrap();
                connection.run_script("DROP TABLE t; CREATE TEMP TABLE u AS SELECT 1; DROP TABLE u").unwrap();
            }
        });
        while !storm.is_finished() {
            for file in files.list().unwrap().files.iter().filter(|file| file.kind == FileKind::File) {
                match files.open(&file.path) {
                    Ok(open) => drop(open.read_at(0, &mut [0; 8]).unwrap()),
                    Err(error) => assert!(error.is_vanished(), "{error}"),
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn paths_come_in_byte_order_and_none_is_lost(tree in prop::collection::btree_set("[ab!.-]{1,3}(/[ab!.-]{1,3}){0,3}", 1..30)) {
        let directory = tempfile::tempdir().unwrap();
        let mut expected = BTreeSet::new();
        for path in tree.iter().filter(|path| !path.split('/').any(|part| part == "." || part == "..")) {
            if fs::create_dir_all(directory.path().join(path)).is_ok() {
                let parts: Vec<&str> = path.split('/').collect();
                expected.extend((1..=parts.len()).map(|count| parts[..count].join("/").into_bytes()));
            }
        }
        let files = LocalFiles {
            data_directory: directory.path().to_owned(),
            root: fs::File::open(directory.path()).unwrap().into(),
            major: pg::Major::new(15),
            version_directory: "PG_15_1".to_owned(),
            tablespaces: Mutex::default(),
        };
        let mut found = Vec::new();
        let outcome = files.walk(&mut |file| { found.push(file.path); ControlFlow::Continue(()) });
        let incomplete = matches!(outcome, Err(FilesError::Missing { .. }));
        prop_assert!(incomplete);
        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }
}
