//! Bringing a past moment back: a plan that refuses what cannot be done, then pack-ordered parallel fetching.
//!
//! A half-restored directory carries a mark and has no control file, so that no server starts on it; the same command
//! run again goes on where it stopped.

mod delta;
mod directory;
mod error;
pub(crate) mod fetch;
mod finish;
mod plan;
mod tree;
mod writeback;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use pg::Major;
use pg::recovery::{RecoveryTarget, TargetAction, TargetTimeline};
use pg::wal::{SegmentName, SegmentSize};
use repository::content::{Entry, EntryKind};
use repository::manifest::Manifest;
use repository::{ClusterName, PackId, Repository, RepositoryError};
use tokio::runtime::Handle;

use crate::failpoint;
use crate::monitor::{Event, Monitor};
use crate::reachable;
use delta::Belonging;
pub use directory::MARKER;
pub use error::RestoreError;
use fetch::{Fetcher, FileTarget, Window};
pub use finish::OUTSIDE_CONFIG;
pub use plan::{describe_moment, plan};
use tree::Tree;

/// A window of the restore has at most so many pieces and files; with 40 bytes a piece that is 16 MiB.
const WINDOW_PIECES: usize = 400_000;
const WINDOW_FILES: usize = 100_000;
/// In a delta restore a window is bounded by the pages that may turn out to be wrong: a million at most, 48 MiB.
const WINDOW_DELTA_BYTES: u64 = 8 << 30;

/// What to restore, and to where.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The cluster's name in the repository.
    pub cluster: ClusterName,
    /// The backup; if not given, the newest that ends before the target.
    pub backup: Option<String>,
    /// The data directory to make.
    pub into: PathBuf,
    /// Where replay stops.
    pub target: RecoveryTarget,
    /// Whether what lies exactly at the target is replayed.
    pub inclusive: bool,
    /// Which timeline is followed.
    pub timeline: TargetTimeline,
    /// What the server does at the target.
    pub action: TargetAction,
    /// New places of tablespaces, by OID or old location.
    pub tablespace_map: Vec<(String, PathBuf)>,
    /// A folder for all tablespaces that are not mapped, each below its OID.
    pub tablespaces_under: Option<PathBuf>,
    /// Go over an existing directory of the same cluster and keep what is right in it.
    pub delta: bool,
    /// The `restore_command` of the restored cluster.
    pub restore_command: String,
    /// Leave `archive_mode` as the backup has it. By default it is turned off.
    pub keep_archiving: bool,
    /// Who gets the files when run as root; the user that owned the cluster if not given.
    pub owner: Option<String>,
    /// Threads that open, decompress and write.
    pub workers: usize,
}

/// Where a tablespace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTablespace {
    /// Its OID.
    pub oid: u32,
    /// Where it was.
    pub from: PathBuf,
    /// Where it will be.
    pub to: PathBuf,
}

/// A restore that can be done, as far as that can be known before.
pub struct RestorePlan {
    /// The chosen backup.
    pub backup: String,
    /// True if what stands in the target is compared and kept where it is right.
    pub reuse: bool,
    /// True if an interrupted restore is resumed.
    pub resumed: bool,
    /// Bytes of files.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
    /// Packs that hold them.
    pub packs: u64,
    /// Bytes of those packs, which is the most that is fetched.
    pub fetch_bytes: u64,
    /// The server's major version.
    pub major: Major,
    /// From where to where replay can go.
    pub window: reachable::Window,
    /// Tablespaces.
    pub tablespaces: Vec<PlannedTablespace>,
    /// User and group of the files, when run as root.
    pub owner: Option<(u32, u32)>,
    /// The backup's manifest.
    pub manifest: Manifest,
    /// What was asked for.
    pub request: RestoreRequest,
    repository: Arc<Repository>,
}

impl RestorePlan {
    /// The segment that a gap in the WAL begins in, if the target lies before it: its beginning is wanted then. Only a target
    /// makes it safe to bring that: PostgreSQL does not open when it does not reach its target, but without one it would at the
    /// gap.
    pub fn segment_before_gap(&self) -> Option<SegmentName> {
        let size = SegmentSize::new(self.manifest.server().wal_segment_size).ok()?;
        let hole = self.window.holes.first().filter(|_| self.request.target != RecoveryTarget::Latest)?;
        Some(SegmentName::containing(hole.timeline, hole.from, size))
    }

    /// The one directory in each tablespace that is this cluster's.
    fn version_directory(&self) -> String {
        pg::datadir::tablespace_version_directory(self.major, self.manifest.server().catalog_version)
    }
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// The backup.
    pub backup: String,
    /// The data directory.
    pub into: PathBuf,
    /// Bytes of files in it.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
    /// Where configuration was put that lay outside the data directory.
    pub outside_configuration: Option<PathBuf>,
    /// How long it took.
    pub elapsed: Duration,
}

#[derive(Default)]
pub(crate) struct Summary {
    pub(crate) outside_configuration: Option<PathBuf>,
}

/// Carries out a plan.
pub async fn execute(plan: RestorePlan, monitor: Arc<dyn Monitor>) -> Result<RestoreReport, RestoreError> {
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || execute_blocking(&plan, &handle, &*monitor))
        .await
        .expect("the restore does not panic")
}

fn execute_blocking(
    plan: &RestorePlan,
    handle: &Handle,
    monitor: &dyn Monitor,
) -> Result<RestoreReport, RestoreError> {
    let began = Instant::now();
    monitor.event(Event::Phase("restore files"));
    monitor.event(Event::Total { bytes: plan.bytes, files: plan.files });
    // Marked before anything is taken away: what is neither marked nor a cluster is nobody's to go over.
    let tree = Tree::create(
        &plan.request.into,
        plan.manifest.server().directory_mode,
        &plan.tablespaces,
        plan.owner,
        &plan.backup,
    )?;
    failpoint::reach("restore.marked");
    if plan.reuse {
        remove_control(plan)?;
    }
    failpoint::reach("restore.control-removed");
    let tail_lens = tail_lens(&plan.manifest)?;
    let fetcher = Fetcher {
        repository: &plan.repository,
        tail_lens: &tail_lens,
        tree: &tree,
        handle,
        monitor,
        workers: plan.request.workers.max(1),
        written: AtomicU64::new(0),
    };
    let belonging = writeback::alongside(&tree, &fetcher.written, || restore_files(plan, &fetcher))?;
    if plan.reuse {
        delta::remove_others(&tree, &belonging, &plan.version_directory())?;
    }
    failpoint::reach("restore.files-written");
    monitor.event(Event::Phase("make durable"));
    tree.sync()?;
    failpoint::reach("restore.files-durable");
    let mut summary = Summary::default();
    finish::finish(plan, &tree, handle, &mut summary)?;
    Ok(RestoreReport {
        backup: plan.backup.clone(),
        into: plan.request.into.clone(),
        bytes: plan.bytes,
        files: plan.files,
        outside_configuration: summary.outside_configuration,
        elapsed: began.elapsed(),
    })
}

/// A cluster that is gone over must not be started halfway: its control file goes first, and for good, or a power loss
/// could bring it back beside files that are already another backup's.
fn remove_control(plan: &RestorePlan) -> Result<(), RestoreError> {
    let folder = plan.request.into.join("global");
    let path = folder.join("pg_control");
    match std::fs::remove_file(&path) {
        Ok(()) => std::fs::File::open(&folder)
            .and_then(|opened| opened.sync_all())
            .map_err(RestoreError::disk("sync", folder)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RestoreError::disk("remove", path)(error)),
    }
}

fn tail_lens(manifest: &Manifest) -> Result<HashMap<PackId, u32>, RestoreError> {
    let read = |pack: &repository::manifest::PackRef| {
        let id =
            pack.id().map_err(|source| RepositoryError::Content { place: manifest.id.clone(), source })?;
        Ok((id, pack.tail_len))
    };
    manifest.packs.iter().map(read).collect()
}

/// Restores directories, links and files, window by window.
fn restore_files(plan: &RestorePlan, fetcher: &Fetcher<'_>) -> Result<Belonging, RestoreError> {
    let mut belonging = Belonging::default();
    let mut entries = plan.repository.entries(&plan.manifest);
    let mut window = Window::default();
    let mut compared: Vec<Entry> = Vec::new();
    let mut compared_bytes = 0;
    while let Some(entry) = fetcher.handle.block_on(entries.next())? {
        if finish::is_written_last(&entry.path) {
            continue;
        }
        if plan.reuse {
            belonging.add(&entry.path);
        }
        match entry.kind {
            EntryKind::Directory => fetcher.tree.make_directory(&entry.path, entry.mode)?,
            EntryKind::TablespaceLink => make_link(plan, fetcher, &entry)?,
            EntryKind::File if plan.reuse => {
                compared_bytes += entry.size;
                compared.push(entry);
            }
            EntryKind::File => {
                delta::whole(fetcher, &entry, window.files.len() as u32, &mut window.pieces)?;
                window.files.push(FileTarget { path: entry.path, size: entry.size, mode: entry.mode });
            }
        }
        if window.pieces.len() >= WINDOW_PIECES || window.files.len() >= WINDOW_FILES {
            fetcher.run(&mut std::mem::take(&mut window))?;
        }
        if compared_bytes >= WINDOW_DELTA_BYTES || compared.len() >= WINDOW_FILES {
            fetcher.run(&mut delta::compare(fetcher, std::mem::take(&mut compared))?)?;
            compared_bytes = 0;
        }
    }
    fetcher.run(&mut window)?;
    fetcher.run(&mut delta::compare(fetcher, compared)?)?;
    Ok(belonging)
}

fn make_link(plan: &RestorePlan, fetcher: &Fetcher<'_>, entry: &Entry) -> Result<(), RestoreError> {
    let unknown = || RepositoryError::Content {
        place: plan.backup.clone(),
        source: repository::content::ContentError {
            what: "link of a tablespace that the backup does not list",
        },
    };
    let target = finish::link_target(plan, entry).ok_or_else(unknown)?;
    fetcher.tree.make_link(&entry.path, target)
}
