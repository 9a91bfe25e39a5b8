use std::sync::Arc;

use pg::wal::FileName;
use repository::archive::{Identity, WalInfo};
use repository::description::Description;
use repository::manifest::{ServerRecord, Span};
use repository::secrets::{Keyring, RepositoryId};
use storage::{Memory, ObjectName, Storage as _};

use super::*;

const SEGMENT: u64 = 1 << 20;
/// Microseconds since 1970 of 2026-11-22 00:00.
const MIDNIGHT: i64 = 1_795_305_600_000_000;

async fn repository(storage: Arc<Memory>) -> Repository {
    let keyring = Keyring::generate(RepositoryId::random());
    let description = Description::new(&keyring.writer, MIDNIGHT_TEXT.parse().unwrap(), true);
    Repository::create(storage, keyring, &[], description, None).await.unwrap()
}

const MIDNIGHT_TEXT: &str = "2026-11-22T00:00:00Z";

fn cluster() -> ClusterName {
    ClusterName::new("main").unwrap()
}

/// A backup that begins in segment `at` and ends in it, `minutes` after midnight.
async fn add_backup(repository: &Repository, id: &str, at: u64, minutes: i64) {
    let previous = repository.predecessor(&cluster()).await.unwrap();
    let stop_us = MIDNIGHT + minutes * 60_000_000;
    let manifest = Manifest {
        id: id.into(),
        cluster: "main".into(),
        server: Some(ServerRecord {
            wal_segment_size: SEGMENT as u32,
            version_num: 150_020,
            ..Default::default()
        }),
        span: Some(Span {
            start_lsn: at * SEGMENT + 40,
            stop_lsn: at * SEGMENT + 4000,
            timeline: 1,
            start_us: stop_us - 1_000_000,
            stop_us,
            ..Default::default()
        }),
        ..Default::default()
    };
    repository.publish(&cluster(), manifest, previous.as_ref()).await.unwrap();
}

async fn add_segment(repository: &Repository, at: u64, minutes: i64) {
    let identity = Identity { system_identifier: 7, segment_size: SEGMENT as u32, major: 15, logical: false };
    repository.bind(&cluster(), &identity).await.unwrap();
    let file: FileName = format!("00000001{:08X}{:08X}", 0, at).parse().unwrap();
    let commit = MIDNIGHT + minutes * 60_000_000;
    let info = WalInfo {
        name: file.to_string(),
        length: 5,
        stored_us: commit,
        first_commit_us: Some(commit),
        last_commit_us: Some(commit),
    };
    repository.store_wal(&cluster(), &file, &at.to_le_bytes()[..5], &info, 1).await.unwrap();
}

async fn seen(repository: &Repository) -> Status {
    status(repository, &cluster(), "2026-11-22T01:00:00Z".parse().unwrap()).await.unwrap()
}

#[tokio::test]
async fn status_tells_from_when_to_when_and_how_old_the_newest_moment_is() {
    let repository = repository(Arc::new(Memory::default())).await;
    let empty = seen(&repository).await;
    assert!(empty.ranges.is_empty() && empty.newest_moment.is_none() && empty.bound_to.is_none());
    for at in 1..=6 {
        add_segment(&repository, at, at as i64 * 5).await;
    }
    add_backup(&repository, "20261122T000500Z-full", 1, 5).await;
    add_backup(&repository, "20261122T001500Z-incremental", 3, 15).await;
    let status = seen(&repository).await;
    assert_eq!(status.ranges.len(), 1);
    assert_eq!((status.ranges[0].backups, &*status.ranges[0].first_backup), (2, "20261122T000500Z-full"));
    assert_eq!(status.ranges[0].from.time.unwrap().to_string(), "2026-11-22T00:05:00Z");
    assert_eq!(status.newest_moment.unwrap().to_string(), "2026-11-22T00:30:00Z");
    assert_eq!(status.newest_moment_age_s, Some(1800));
    assert_eq!((status.segments, status.problems.len()), (6, 0));
}

#[tokio::test]
async fn a_hole_ends_one_range_and_the_next_backup_begins_another() {
    let repository = repository(Arc::new(Memory::default())).await;
    for at in [1, 2, 4, 5] {
        add_segment(&repository, at, at as i64 * 5).await;
    }
    add_backup(&repository, "20261122T000500Z-full", 1, 5).await;
    add_backup(&repository, "20261122T002000Z-full", 4, 20).await;
    add_backup(&repository, "20261122T003000Z-full", 9, 30).await;
    let status = seen(&repository).await;
    let ends: Vec<_> = status.ranges.iter().map(|range| range.to.lsn.get() / SEGMENT).collect();
    assert_eq!(ends, [3, 6]);
    let problems: Vec<_> = status.problems.iter().map(|problem| problem.what.as_str()).collect();
    assert_eq!(
        problems,
        [
            "WAL is missing from 0/300000 to 0/400000 on timeline 1",
            "backup 20261122T003000Z-full cannot be restored: WAL that it needs is missing",
        ]
    );
}

#[tokio::test]
async fn damaged_and_missing_backups_are_named() {
    let storage = Arc::new(Memory::default());
    let repository = repository(storage.clone()).await;
    add_segment(&repository, 1, 1).await;
    for (minute, id) in
        ["20261122T000100Z-full", "20261122T000200Z-full", "20261122T000300Z-full"].iter().enumerate()
    {
        add_backup(&repository, id, 1, minute as i64).await;
    }
    let name = |id: &str| ObjectName::new(format!("clusters/main/backups/{id}")).unwrap();
    storage.delete(&name("20261122T000100Z-full")).await.unwrap();
    let mut bytes = storage.read_all(&name("20261122T000300Z-full"), 1 << 20).await.unwrap().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    storage.delete(&name("20261122T000300Z-full")).await.unwrap();
    storage.create(&name("20261122T000300Z-full"), &[bytes.into()]).await.unwrap();

    let listing = list(&repository, &cluster()).await.unwrap();
    assert_eq!((listing.backups.len(), listing.damaged.len()), (1, 1));
    assert_eq!(listing.damaged[0].id, "20261122T000300Z-full");
    assert!(listing.chain[0].contains("20261122T000100Z-full"), "{:?}", listing.chain);
    let status = seen(&repository).await;
    assert_eq!((status.backups, status.damaged.len()), (1, 1));
    assert!(status.problems.len() >= 2);
}

#[tokio::test]
async fn ids_are_found_by_their_beginning() {
    let repository = repository(Arc::new(Memory::default())).await;
    let found = |text: &'static str| resolve(&repository, cluster_static(), text);
    assert!(matches!(found("latest").await, Err(CatalogueError::NoBackup { .. })));
    add_backup(&repository, "20261121T000100Z-full", 1, 1).await;
    add_backup(&repository, "20261122T000200Z-full", 1, 2).await;
    assert_eq!(found("latest").await.unwrap(), "20261122T000200Z-full");
    assert_eq!(found("20261121").await.unwrap(), "20261121T000100Z-full");
    assert!(matches!(found("2026").await, Err(CatalogueError::Ambiguous { .. })));
    assert!(matches!(found("x").await, Err(CatalogueError::Unknown { .. })));
    assert_eq!(clusters(&repository).await.unwrap(), [cluster()]);
    let detail = info(&repository, &cluster(), "20261122").await.unwrap();
    assert_eq!((detail.summary.postgresql, detail.previous.as_deref()), (15, Some("20261121T000100Z-full")));
    assert!(detail.reaches.is_none(), "no WAL is stored");
}

fn cluster_static() -> &'static ClusterName {
    static CLUSTER: std::sync::OnceLock<ClusterName> = std::sync::OnceLock::new();
    CLUSTER.get_or_init(cluster)
}
