//! A server's `pg_wal` in a temporary folder and a repository in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use pg::wal::{FileName, SegmentName, SegmentSize};
use repository::description::Description;
use repository::secrets::{Access, Keyring};
use repository::{ClusterName, Repository, layout};
use storage::{Faulty, Memory, Recording, Storage};

use super::*;

pub const SYSTEM: u64 = 7_700_000_000_000_000_001;

pub type Store = Recording<Arc<Faulty<Memory>>>;

pub struct World {
    pub folder: tempfile::TempDir,
    pub store: Arc<Store>,
    pub faults: Arc<Faulty<Memory>>,
    pub context: Context,
    /// What was asked to be started.
    pub asked: Mutex<Vec<Background>>,
}

/// A segment of PostgreSQL 15 with a true header and nothing true behind it.
pub fn segment_of(system: u64, name: &str, size: SegmentSize, filling: u8) -> Vec<u8> {
    let name: SegmentName = name.parse().unwrap();
    let mut bytes = vec![filling; size.bytes() as usize];
    bytes[..2].copy_from_slice(&0xD110u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&name.timeline.get().to_le_bytes());
    bytes[8..16].copy_from_slice(&name.start(size).to_le_bytes());
    bytes[16..24].fill(0);
    bytes[24..32].copy_from_slice(&system.to_le_bytes());
    bytes[32..36].copy_from_slice(&size.bytes().to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    bytes
}

pub fn mib() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub fn segment(name: &str, filling: u8) -> Vec<u8> {
    segment_of(SYSTEM, name, mib(), filling)
}

/// The `number`-th segment of timeline 1 by name, with 1 MiB segments.
pub fn numbered(number: u64) -> String {
    SegmentName::from_number(pg::TimelineId::FIRST, number, mib()).to_string()
}

/// Makes or finds the folders of a server and the repository in `store`.
pub async fn context_in(folder: &Path, store: Arc<dyn Storage>, seed: u8) -> Context {
    fs::create_dir_all(folder.join("data/pg_wal/archive_status")).unwrap();
    let keyring = Keyring::for_test_vectors(seed);
    let description = Description::new(&keyring.writer, "2026-11-22T00:00:00Z".parse().unwrap(), true);
    let created = store.create(&layout::description(), &[Bytes::from(description.encode())]).await;
    assert!(matches!(created, Ok(()) | Err(StorageError::NameTaken { .. })));
    let local = folder.join("state");
    let repository = Repository::assemble(store, description, Access::Full(keyring), Some(&local));
    let limits = Limits {
        deadline: Duration::from_secs(5),
        hole_wait: Duration::ZERO,
        start_grace: Duration::from_millis(50),
        idle: Duration::from_millis(300),
        ..Limits::default()
    };
    Context {
        repository: Arc::new(repository),
        cluster: ClusterName::new("main").unwrap(),
        spool: Some(folder.join("spool")),
        limits,
        up_to_gap: None,
        now: || "2026-11-22T01:00:00Z".parse().unwrap(),
    }
}

/// A world in whose archive the first segments are.
pub async fn archived(count: u64) -> World {
    let world = World::new().await;
    for number in 1..=count {
        world.archive(&numbered(number), number as u8).await;
    }
    world
}

impl World {
    pub async fn new() -> Self {
        Self::with_key(1).await
    }

    pub async fn with_key(seed: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faulty::new(Memory::new()));
        let store = Arc::new(Recording::new(faults.clone()));
        let context = context_in(folder.path(), store.clone(), seed).await;
        Self { folder, store, faults, context, asked: Mutex::default() }
    }

    pub fn wal(&self) -> PathBuf {
        self.folder.path().join("data/pg_wal")
    }

    /// Puts a file where the server has it, waiting to be archived.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.wal().join(name);
        fs::write(&path, content).unwrap();
        fs::write(self.wal().join("archive_status").join(format!("{name}.ready")), b"").unwrap();
        path
    }

    /// What PostgreSQL does once a file is archived.
    pub fn done(&self, name: &str) {
        let status = self.wal().join("archive_status");
        fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done"))).unwrap();
    }

    /// One `archive_command`.
    pub async fn push(&self, name: &str) -> Result<push::Pushed, push::PushError> {
        push::run(&self.context, &self.wal().join(name), &|work| self.start(work)).await
    }

    /// Writes the segment and archives it.
    pub async fn archive(&self, name: &str, filling: u8) {
        self.write(name, &segment(name, filling));
        self.push(name).await.unwrap();
        self.done(name);
    }

    /// One `restore_command`.
    pub async fn get(&self, name: &str) -> Result<get::Got, get::GetError> {
        get::run(&self.context, name, &self.restored(), &|work| self.start(work)).await
    }

    pub fn restored(&self) -> PathBuf {
        self.wal().join("RECOVERYXLOG")
    }

    pub async fn stored(&self) -> usize {
        self.store.list(layout::CLUSTERS).await.unwrap().len()
    }

    pub fn object_of(&self, name: &str) -> storage::ObjectName {
        layout::wal_file(&self.context.cluster, &name.parse::<FileName>().unwrap())
    }

    fn start(&self, work: &Background) -> io::Result<()> {
        self.asked.lock().unwrap().push(work.clone());
        Ok(())
    }

    /// Every file of the spool.
    pub fn spool_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().join("spool")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}
