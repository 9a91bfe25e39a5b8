//! The scene of expiring: a repository in memory with a backup and some WAL of each day, without a server.

mod hiding;

pub use hiding::Hiding;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use operations::catalogue;
use operations::expire::{Damaged, ExpireError, ExpireRequest, Report, execute, plan};
use operations::retention::Policy;
use pg::wal::FileName;
use repository::archive::{Identity, WalInfo};
use repository::description::Description;
use repository::manifest::{Manifest, PackRef, ServerRecord, Span, Totals};
use repository::secrets::{Access, Keyring, RepositoryId};
use repository::{ClusterName, PackId, Repository, layout};
use storage::{Memory, ObjectName, Storage};

const SEGMENT: u64 = 1 << 20;
/// Segments that a server writes in a day.
const PER_DAY: u64 = 3;
const START: &str = "2026-09-01T02:00:00Z";

/// A repository with a backup on each day.
pub struct Scene {
    pub memory: Arc<Memory>,
    keyring: Keyring,
    description: Description,
    pub repository: Arc<Repository>,
}

pub fn cluster() -> ClusterName {
    ClusterName::new("main").unwrap()
}

pub fn day(number: i64) -> Timestamp {
    START.parse::<Timestamp>().unwrap() + SignedDuration::from_hours(24 * number)
}

pub fn id(number: i64) -> String {
    day(number).strftime("%Y%m%dT%H%M%SZ-full").to_string()
}

/// The segment in which the backup of a day begins and ends.
pub fn first_segment(number: i64) -> u64 {
    number as u64 * PER_DAY + 1
}

pub fn segment(at: u64) -> FileName {
    format!("0000000100000000{at:08X}").parse().unwrap()
}

impl Scene {
    /// A repository with a backup on each of so many days, and all WAL.
    pub async fn of(days: i64) -> Self {
        let memory = Arc::new(Memory::default());
        let keyring = Keyring::generate(RepositoryId::random());
        let description = Description::new(&keyring.writer, day(0), true);
        let repository = Repository::create(memory.clone(), keyring.clone(), &[], description.clone(), None)
            .await
            .unwrap();
        let scene = Self { memory, keyring, description, repository: Arc::new(repository) };
        let identity =
            Identity { system_identifier: 7, segment_size: SEGMENT as u32, major: 15, logical: false };
        scene.repository.bind(&cluster(), &identity).await.unwrap();
        for number in 0..days {
            scene.memory.set_clock(day(number));
            scene.add(number, 1000, 0).await;
        }
        scene
    }

    pub async fn add(&self, number: i64, bytes: u64, damaged_pages: u64) {
        let first = first_segment(number);
        for at in first..first + PER_DAY {
            let info = WalInfo::new(&segment(at), 5, day(number));
            let content = at.to_le_bytes();
            self.repository.store_wal(&cluster(), &segment(at), &content[..5], &info, 1).await.unwrap();
        }
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&number.to_le_bytes());
        self.memory.create(&layout::pack(PackId(raw)), &["pack".into()]).await.unwrap();
        let stop_us = day(number).as_microsecond();
        let manifest = Manifest {
            id: id(number),
            cluster: "main".into(),
            server: Some(ServerRecord { wal_segment_size: SEGMENT as u32, ..Default::default() }),
            span: Some(Span {
                start_lsn: first * SEGMENT + 40,
                stop_lsn: first * SEGMENT + 4000,
                timeline: 1,
                start_us: stop_us - 1_000_000,
                stop_us,
                ..Default::default()
            }),
            packs: vec![PackRef::new(PackId(raw), 4, 4)],
            totals: Some(Totals { bytes, ..Default::default() }),
            findings_total: damaged_pages,
            ..Default::default()
        };
        let previous = self.repository.predecessor(&cluster()).await.unwrap();
        self.repository.publish(&cluster(), manifest, previous.as_ref()).await.unwrap();
    }

    pub fn over(&self, storage: Arc<dyn Storage>) -> Arc<Repository> {
        let access = Access::Full(self.keyring.clone());
        Arc::new(Repository::assemble(storage, self.description.clone(), access, None))
    }

    /// The same, with an independent copy of everything stored.
    pub fn copy(&self) -> Self {
        let memory = Arc::new(self.memory.snapshot());
        let repository = self.over(memory.clone());
        Self { memory, keyring: self.keyring.clone(), description: self.description.clone(), repository }
    }

    pub async fn expire(&self, request: &ExpireRequest) -> Result<Report, ExpireError> {
        expire_with(&self.repository, request).await
    }

    pub async fn ids(&self) -> Vec<String> {
        self.repository.backup_ids(&cluster()).await.unwrap()
    }

    pub fn wal(&self) -> BTreeSet<u64> {
        let number = |name: &ObjectName| {
            let text = name.as_str().rsplit('/').next()?;
            (name.as_str().contains("/wal/")).then(|| u64::from_str_radix(text.get(16..)?, 16).ok())?
        };
        self.memory.names().iter().filter_map(number).collect()
    }

    /// Everything but leases and notes of expired things.
    pub fn content(&self) -> BTreeSet<ObjectName> {
        let counts = |name: &ObjectName| !name.as_str().starts_with(layout::LEASES);
        self.memory.names().into_iter().filter(counts).collect()
    }

    pub async fn assert_healthy(&self) {
        let status = catalogue::status(&self.repository, &cluster(), day(100)).await.unwrap();
        assert_eq!(status.problems, []);
    }
}

pub async fn expire_with(
    repository: &Arc<Repository>,
    request: &ExpireRequest,
) -> Result<Report, ExpireError> {
    let planned = plan(repository, request).await?;
    execute(repository, &planned, request).await
}

pub fn request(keep: &str) -> ExpireRequest {
    let policy =
        Policy { keep: keep.parse().unwrap(), daily: 0, weekly: 0, monthly: 0, yearly: 0, at_least: 3 };
    ExpireRequest {
        cluster: cluster(),
        policy,
        host_clock: day(59),
        damaged: Damaged::new(),
        holder: "a test".into(),
        patience: Duration::ZERO,
    }
}
