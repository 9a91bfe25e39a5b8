//! Capturing a cluster: files between `pg_backup_start` and `pg_backup_stop`, then the wait for the WAL they need.
//!
//! The manifest is written last: until it exists there is no backup, only chunks that the next one finds again.

mod changes;
mod collect;
mod copy;
pub(crate) mod earlier;
mod error;
pub(crate) mod live;
pub(crate) mod plan;
mod ready;
mod record;
mod region;
mod settled;
mod standby;
mod tuning;
pub(crate) mod upload;
pub(crate) mod wal;
mod watched;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use pg::control::ControlFile;
use repository::manifest::{MAX_FINDINGS, Manifest, PackRef};
use repository::{ClusterName, PackId, Repository};
use server::backup::{BackupSession, Stopped};
use server::connection::{Connection, ConnectionSettings};
use server::facts::ServerFacts;
use server::files::FileSource;
use tokio::runtime::Handle;

use crate::failpoint;
use crate::monitor::{Event, Monitor};
use crate::owner::holder;
use crate::probe::Mode;
pub use changes::{CHANGED_BY, ChangedBy};
use changes::{Summary, check_allowed};
use collect::{Collected, PARTIAL_TIME};
use copy::Copied;
pub use error::BackupError;
pub(crate) use error::display_path;
use live::pack_refs;
use plan::{Plan, plan_backup};
use ready::{check_ready, check_wal_comes, identity, open_files};
use record::begin_manifest;
#[doc(hidden)]
pub use tuning::Tuning;
use upload::Uploader;
use watched::{Copying, warn};

/// Findings and vanished files that one span or backup lists; more are counted.
const MAX_SPAN_FINDINGS: usize = 256;
/// Number of the partial manifest of a backup that lacked nothing but its WAL.
const LAST_PARTIAL: u32 = 999_999;
/// Tables and maps kept on this host's disk.
pub(crate) const LOCAL_LIMIT: u64 = 4 << 30;

/// What backup to take.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// The cluster's name in the repository.
    pub cluster: ClusterName,
    /// How the files are read.
    pub mode: Mode,
    /// What the user calls it; `pgkeep` if empty.
    pub label: String,
    /// Read and store everything, independent of all earlier backups.
    pub full: bool,
    /// Read everything and compare it, instead of trusting the files' change times.
    pub reread: bool,
    /// How it is known what changed.
    pub changed_by: ChangedBy,
    /// Let the server spread its checkpoint over minutes instead of hurrying.
    pub spread_checkpoint: bool,
    /// Threads that read, compress and seal.
    pub workers: usize,
    /// zstd's level, 1 to 19.
    pub level: i32,
    /// How long to wait for the backup's WAL to arrive in the repository.
    pub wal_timeout: Duration,
    /// Where the primary is, for a backup from a standby: it is asked to end the segment that the backup ends in.
    pub primary: Option<ConnectionSettings>,
}

/// A backup that exists.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// Its manifest.
    pub manifest: Manifest,
    /// How long it took.
    pub elapsed: Duration,
    /// Stored bytes of earlier backups that were read to compare rows with them.
    pub bytes_read_back: u64,
}

/// What all threads of one backup share.
pub(crate) struct Context {
    pub(crate) repository: Arc<Repository>,
    pub(crate) cluster: ClusterName,
    pub(crate) workers: usize,
    pub(crate) level: i32,
    pub(crate) verify_checksums: bool,
    pub(crate) segment_blocks: u32,
    pub(crate) start_lsn: u64,
    pub(crate) tail_lens: HashMap<PackId, u32>,
    pub(crate) references: HashMap<PackId, PackRef>,
    /// Least time between two partial manifests.
    pub(crate) partial_time: Duration,
    /// How many partial manifests this backup has already.
    pub(crate) first_partial: u32,
    /// Which blocks changed, if the server's summaries tell.
    pub(crate) summary: Option<Summary>,
    /// The clock of file times when the server had begun the backup, nanoseconds since 1970.
    pub(crate) started_ns: i64,
    /// Set by whoever fails first, and looked at by all before their next piece of work.
    pub(crate) stop: AtomicBool,
}

/// Takes a backup of the cluster behind `connection`, by its files here or through the server, as the request says.
pub async fn backup(
    connection: Connection,
    repository: Arc<Repository>,
    request: &BackupRequest,
    monitor: Arc<dyn Monitor>,
) -> Result<BackupReport, BackupError> {
    backup_tuned(connection, repository, request, monitor, &Tuning::default()).await
}

/// As [`backup`], in another way that tests need.
#[doc(hidden)]
pub async fn backup_tuned(
    connection: Connection,
    repository: Arc<Repository>,
    request: &BackupRequest,
    monitor: Arc<dyn Monitor>,
    tuning: &Tuning,
) -> Result<BackupReport, BackupError> {
    let began = Instant::now();
    let facts = ServerFacts::read(&connection)?;
    let files = open_files(&facts, &connection, request.mode)?;
    let files = &*files;
    let (_, control) = files.read_control_file()?;
    check_ready(&facts, &control)?;
    check_allowed(request.changed_by, &connection, &facts, tuning)?;
    repository.bind(&request.cluster, &identity(&facts, &control)).await?;
    check_wal_comes(&repository, &request.cluster, &facts, &*monitor).await?;

    let predecessor = repository.predecessor(&request.cluster).await?;
    let plan = plan_backup(&repository, request, predecessor, &control).await?;
    plan.tell(&*monitor);

    // Before anything that is stored is named anew: prune leaves it alone from here on.
    repository.claim(&request.cluster, &plan.id, &holder()).await?;
    failpoint::reach("backup.bound");
    let ready =
        Ready { repository: &repository, request, facts: &facts, files, control: &control, plan: &plan };
    match ready.capture(connection, monitor, tuning).await {
        Ok(manifest) => Ok(BackupReport { manifest, elapsed: began.elapsed(), bytes_read_back: 0 }),
        Err(error) => {
            repository.withdraw_claim(&request.cluster, &plan.id).await;
            Err(error)
        }
    }
}

/// A backup that may begin.
struct Ready<'r> {
    repository: &'r Arc<Repository>,
    request: &'r BackupRequest,
    facts: &'r ServerFacts,
    files: &'r dyn FileSource,
    control: &'r ControlFile,
    plan: &'r Plan,
}

impl Ready<'_> {
    async fn capture(
        &self,
        connection: Connection,
        monitor: Arc<dyn Monitor>,
        tuning: &Tuning,
    ) -> Result<Manifest, BackupError> {
        let Self { repository, request, facts, files, control, plan } = *self;
        monitor.event(Event::Phase("checkpoint"));
        let label = if request.label.is_empty() { "pgkeep" } else { &request.label };
        let session = BackupSession::start(connection, label, !request.spread_checkpoint)?;
        let mut manifest = begin_manifest(plan, request, facts, control, session.started(), files);

        failpoint::reach("backup.started");
        let clock_ns = files.clock_ns()?;
        let mut context = begin_context(repository, request, plan, &manifest, control, clock_ns);
        context.partial_time = tuning.partial_time;
        context.summary = tokio::task::block_in_place(|| {
            let unusable = &mut |why| warn(why, &mut manifest, &*monitor);
            changes::collect(request.changed_by, &session, plan, control, tuning, unusable)
        })?;

        monitor.event(Event::Phase("copy files"));
        let uploader = Uploader::new(repository.clone(), Handle::current());
        let copying = Copying { plan, files, session: &session, uploader: &uploader, monitor: &*monitor };
        let copied = copying.run(context, &mut manifest)?;
        failpoint::reach("backup.copied");
        let (control_bytes, _) = files.read_control_file()?;
        let started = session.started().clone();
        let stopped = session.stop(false)?;
        failpoint::reach("backup.stopped");
        let wal_timeout = request.wal_timeout;
        finish_manifest(&mut manifest, plan, copied, control_bytes, &stopped, &uploader).await?;

        failpoint::reach("backup.list-stored");
        monitor.event(Event::Phase("wait for WAL"));
        if started.from_standby {
            standby::end_segment(request.primary.as_ref(), control.system_identifier, &*monitor).await;
        }
        let (from, stop, size) = (started.start_segment, stopped.stop_lsn, control.wal_segment_size);
        let waited = wal::wait(repository, &request.cluster, from, stop, size, wal_timeout).await;
        if let Err(error) = waited {
            self.keep_attempt(&manifest).await;
            return Err(if started.from_standby { standby::explain(error) } else { error });
        }

        failpoint::reach("backup.wal-there");
        // Last on purpose: until the manifest exists there is no backup.
        let published =
            repository.publish_claimed(&request.cluster, manifest.clone(), plan.predecessor.as_ref()).await;
        let published = match published {
            Ok(published) => published,
            Err(error) => {
                self.keep_attempt(&manifest).await;
                return Err(error.into());
            }
        };
        failpoint::reach("backup.published");
        repository.local().trim(LOCAL_LIMIT);
        Ok(published)
    }

    /// Notes for the next backup that everything is stored.
    async fn keep_attempt(&self, manifest: &Manifest) {
        let kept = self.repository.publish_partial(&self.request.cluster, manifest, LAST_PARTIAL).await;
        if let Err(error) = kept {
            tracing::warn!(%error, "what was stored is not noted for the next backup");
        }
    }
}

fn begin_context(
    repository: &Arc<Repository>,
    request: &BackupRequest,
    plan: &Plan,
    manifest: &Manifest,
    control: &ControlFile,
    started_ns: i64,
) -> Context {
    Context {
        repository: repository.clone(),
        cluster: request.cluster.clone(),
        workers: request.workers.max(1),
        level: request.level,
        verify_checksums: control.has_data_checksums() && control.block_size as usize == pg::page::PAGE_SIZE,
        segment_blocks: control.segment_blocks,
        start_lsn: manifest.span().start_lsn,
        tail_lens: plan.packs.references.iter().map(|(id, pack)| (*id, pack.tail_len)).collect(),
        references: plan.packs.references.clone(),
        partial_time: PARTIAL_TIME,
        first_partial: 0,
        summary: None,
        started_ns,
        stop: AtomicBool::new(false),
    }
}

async fn finish_manifest(
    manifest: &mut Manifest,
    plan: &Plan,
    copied: Copied,
    mut control: Vec<u8>,
    stopped: &Stopped,
    uploader: &Uploader,
) -> Result<(), BackupError> {
    let Copied { collected, warnings } = copied;
    let Collected { list, live, mut totals, findings, findings_left_out, vanished, tablespaces } = collected;
    let uploader = uploader.clone();
    let packs = list.packs;
    tokio::task::block_in_place(|| {
        packs.into_iter().for_each(|pack| uploader.submit(pack));
        uploader.wait()
    })?;
    if stopped.label.start_timeline.get() != manifest.span().timeline {
        return Err(BackupError::Changed { what: "the timeline changed".into() });
    }
    let mut span = manifest.span();
    span.stop_lsn = stopped.stop_lsn.get();
    span.stop_us = stopped.at.as_microsecond();
    // A page changed after the start is repaired by the WAL, whatever its checksum was when it was read.
    let mut findings: Vec<_> =
        findings.into_iter().filter(|page| page.lsn < span.start_lsn || page.lsn > span.stop_lsn).collect();
    manifest.findings_total = findings.len() as u64 + findings_left_out;
    findings.truncate(MAX_FINDINGS);
    manifest.findings = findings;
    // Those of the list and not those of the beginning: a tablespace may have been made meanwhile.
    if let Some(server) = &mut manifest.server {
        server.tablespaces = tablespaces;
    }
    manifest.span = Some(span);
    manifest.backup_label = stopped.label_file.clone();
    manifest.tablespace_map = stopped.tablespace_map.clone();
    manifest.pages = list.pages;
    manifest.packs = pack_refs(&live, &uploader, &plan.packs)?;
    totals.bytes_stored = uploader.stored_bytes();
    manifest.totals = Some(totals);
    manifest.warnings.extend(warnings);
    if !vanished.is_empty() {
        manifest
            .warnings
            .push(format!("{} files that are no relations went away while they were copied", vanished.len()));
    }
    let used = control.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    control.truncate(used);
    manifest.control_file = control;
    Ok(())
}
