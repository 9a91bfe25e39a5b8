//! What a directory does beyond the contract.
#![allow(clippy::unwrap_used)] // Helpers of tests, outside of test functions.

mod support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime};
use storage::{Filesystem, Location, Settings, Storage, StorageError, make_root, open};
use support::{bytes, name};

#[tokio::test]
async fn a_root_that_went_away_is_neither_an_absence_nor_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let storage = Filesystem::new(&root);
    let missing =
        |failure: StorageError| assert!(matches!(failure, StorageError::RootMissing { .. }), "{failure:?}");
    missing(storage.size(&name("a")).await.unwrap_err());
    missing(storage.read(&name("a"), 0..1).await.unwrap_err());
    missing(storage.read_all(&name("a"), 1).await.unwrap_err());
    missing(storage.list("").await.unwrap_err());
    missing(storage.list_children("a").await.unwrap_err());
    missing(storage.delete(&name("a")).await.unwrap_err());
    missing(storage.create(&name("a"), &bytes("x")).await.unwrap_err());
    assert!(!root.exists());
    let location = Location::parse(root.to_str().unwrap()).unwrap();
    make_root(&location).await.unwrap();
    make_root(&location).await.unwrap();
    open(&location, &Settings::default()).unwrap().create(&name("a"), &bytes("x")).await.unwrap();
    assert!(storage.size(&name("b")).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn nobody_else_can_read() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Filesystem::new(directory.path());
    storage.create(&name("a/b/c"), &bytes("x")).await.unwrap();
    let mode = |path: &str| directory.path().join(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/b"), mode("a/b/c")), (0o700, 0o700, 0o600));
}

#[tokio::test]
async fn leftovers_are_hidden_and_removed_when_a_day_old() {
    let directory = tempfile::tempdir().unwrap();
    let leave = |file: &str, hours: u64| {
        std::fs::create_dir_all(directory.path().join("a")).unwrap();
        let path = directory.path().join("a").join(file);
        std::fs::write(&path, "half").unwrap();
        let then = SystemTime::now() - Duration::from_secs(hours * 3600);
        std::fs::File::open(&path).unwrap().set_modified(then).unwrap();
        path
    };
    let (old, young, foreign) = (leave(".tmp-old", 25), leave(".tmp-young", 1), leave(".hidden", 99));
    let storage = Filesystem::new(directory.path());
    assert_eq!(storage.list("").await.unwrap(), []);
    assert_eq!(storage.list_children("").await.unwrap(), Default::default());
    storage.create(&name("a/object"), &bytes("x")).await.unwrap();
    assert!(!old.exists() && young.exists() && foreign.exists());
    assert_eq!(storage.list("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn links_and_directories_are_no_objects() {
    let directory = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let root = directory.path();
    symlink(outside.path(), root.join("link")).unwrap();
    symlink("/etc", root.join("linked")).unwrap();
    std::fs::create_dir(root.join("directory")).unwrap();
    let storage = Filesystem::new(root);
    let failure = storage.read_all(&name("link"), 1 << 20).await.unwrap_err();
    assert!(matches!(failure, StorageError::Other { .. }), "{failure:?}");
    assert!(storage.size(&name("directory")).await.unwrap_err().is_not_found());
    assert!(storage.delete(&name("directory")).await.unwrap_err().is_not_found());
    assert_eq!(storage.list("").await.unwrap(), []);
    let taken = storage.create(&name("link"), &bytes("x")).await.unwrap_err();
    assert!(matches!(taken, StorageError::NameTaken { .. }), "{taken:?}");
    assert_eq!(std::fs::read(outside.path()).unwrap(), b"");
}

#[tokio::test]
async fn an_object_below_an_object_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Filesystem::new(directory.path());
    storage.create(&name("a"), &bytes("x")).await.unwrap();
    assert!(storage.create(&name("a/b"), &bytes("x")).await.is_err());
    assert!(storage.size(&name("a/b")).await.unwrap_err().is_not_found());
    assert_eq!(storage.read_all(&name("a"), 1).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_and_deletes_beside_each_other_never_fail() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Filesystem::new(directory.path());
    let tasks = (0..8).map(|task| {
        let storage = storage.clone();
        tokio::spawn(async move {
            for round in 0..40 {
                let object = name(&format!("deep/{}/{task}", round % 2));
                storage.create(&object, &bytes("x")).await.unwrap();
                storage.delete(&object).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(storage.list("").await.unwrap(), []);
}
