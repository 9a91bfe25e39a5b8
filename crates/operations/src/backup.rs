//! Capturing a cluster: files between `pg_backup_start` and `pg_backup_stop`, then the wait for the WAL they need.
//!
//! The manifest is written last: until it exists there is no backup, only chunks that the next one finds again.

mod collect;
mod copy;
mod earlier;
mod error;
mod live;
mod record;
mod upload;
mod wal;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pg::Lsn;
use pg::control::ControlFile;
use repository::archive::Identity;
use repository::backups::{ChainFinding, Predecessor};
use repository::manifest::{BackupKind, MAX_FINDINGS, Manifest, PackRef};
use repository::{ClusterName, PackId, Repository};
use server::backup::{BackupSession, Stopped};
use server::connection::Connection;
use server::facts::{ArchiveMode, ServerFacts};
use server::files::LocalFiles;
use tokio::runtime::Handle;

use crate::failpoint;
use crate::monitor::{Event, Monitor};
use collect::{Collected, PARTIAL_TIME};
use copy::{Copied, copy_files};
use earlier::{Earlier, EarlierPacks};
pub use error::BackupError;
pub(crate) use error::display_path;
use live::pack_refs;
use record::begin_manifest;
use upload::Uploader;

/// Findings and vanished files that one span or backup lists; more are counted.
const MAX_SPAN_FINDINGS: usize = 256;
/// Everything is read again, whatever the files' times say, when that was last done so long ago.
const REREAD_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
/// A change time within this of the backup's beginning is not trusted: two changes in one tick of the filesystem's
/// clock look the same, and network filesystems have clocks of their own.
const SETTLE: Duration = Duration::from_secs(2);
/// Tables and maps kept on this host's disk.
const LOCAL_LIMIT: u64 = 4 << 30;

/// What backup to take.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// The cluster's name in the repository.
    pub cluster: ClusterName,
    /// What the user calls it; `pgkeep` if empty.
    pub label: String,
    /// Read and store everything, independent of all earlier backups.
    pub full: bool,
    /// Read everything and compare it, instead of trusting the files' change times.
    pub reread: bool,
    /// Let the server spread its checkpoint over minutes instead of hurrying.
    pub spread_checkpoint: bool,
    /// Threads that read, compress and seal.
    pub workers: usize,
    /// zstd's level, 1 to 19.
    pub level: i32,
    /// How long to wait for the backup's WAL to arrive in the repository.
    pub wal_timeout: Duration,
}

/// A backup that exists.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// Its manifest.
    pub manifest: Manifest,
    /// How long it took.
    pub elapsed: Duration,
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
    /// Set by whoever fails first, and looked at by all before their next piece of work.
    pub(crate) stop: AtomicBool,
}

/// Takes a backup of the cluster behind `connection`, whose data directory must be on this machine.
pub async fn backup(
    connection: Connection,
    repository: Arc<Repository>,
    request: &BackupRequest,
    monitor: Arc<dyn Monitor>,
) -> Result<BackupReport, BackupError> {
    backup_noting(connection, repository, request, monitor, PARTIAL_TIME).await
}

/// As [`backup`], with another time between partial manifests, so that tests see them within seconds.
#[doc(hidden)]
pub async fn backup_noting(
    connection: Connection,
    repository: Arc<Repository>,
    request: &BackupRequest,
    monitor: Arc<dyn Monitor>,
    partial_time: Duration,
) -> Result<BackupReport, BackupError> {
    let began = Instant::now();
    let facts = ServerFacts::read(&connection)?;
    let files = Arc::new(open_files(&facts)?);
    let (_, control) = files.read_control_file()?;
    check_ready(&facts, &control)?;
    repository.bind(&request.cluster, &identity(&facts, &control)).await?;

    let predecessor = repository.predecessor(&request.cluster).await?;
    let plan = plan_backup(&repository, request, predecessor, &control).await?;
    for pack in &plan.packs.lost {
        let text =
            format!("pack {pack} of earlier backups is missing or damaged; what it held is stored again");
        monitor.event(Event::Warning(text));
    }
    if let Some(finding) = &plan.rolled_back {
        monitor.event(Event::Warning(finding.to_string()));
    }

    failpoint::reach("backup.bound");
    monitor.event(Event::Phase("checkpoint"));
    let label = if request.label.is_empty() { "pgkeep" } else { &request.label };
    let session = BackupSession::start(connection, label, !request.spread_checkpoint)?;
    let settled_before_ns = i64::try_from((Timestamp::now() - SETTLE).as_nanosecond()).unwrap_or(i64::MIN);
    let mut manifest = begin_manifest(&plan, request, &facts, &control, session.started(), settled_before_ns);

    failpoint::reach("backup.started");
    monitor.event(Event::Phase("copy files"));
    let uploader = Uploader::new(repository.clone(), Handle::current());
    let context = begin_context(&repository, request, &plan, &manifest, &files, partial_time)?;
    let copied = copy(context, &plan, &manifest, &files, &session, &uploader, &monitor).await?;
    failpoint::reach("backup.copied");
    let (control_bytes, _) = files.read_control_file()?;
    let stopped = session.stop(false)?;
    failpoint::reach("backup.stopped");
    let wal_timeout = request.wal_timeout;
    finish_manifest(&mut manifest, &plan, copied, control_bytes, &stopped, &uploader).await?;

    failpoint::reach("backup.list-stored");
    monitor.event(Event::Phase("wait for WAL"));
    let from = pg::wal::SegmentName::containing(
        stopped_timeline(&manifest),
        lsn(manifest.span().start_lsn),
        control.wal_segment_size,
    );
    wal::wait(
        &repository,
        &request.cluster,
        from,
        stopped.stop_segment,
        control.wal_segment_size,
        wal_timeout,
    )
    .await?;

    failpoint::reach("backup.wal-there");
    // Last on purpose: until the manifest exists there is no backup.
    let manifest = repository.publish(&request.cluster, manifest, plan.predecessor.as_ref()).await?;
    failpoint::reach("backup.published");
    repository.local().trim(LOCAL_LIMIT);
    Ok(BackupReport { manifest, elapsed: began.elapsed() })
}

fn lsn(value: u64) -> Lsn {
    Lsn::new(value).expect("the server gave it as an LSN")
}

fn stopped_timeline(manifest: &Manifest) -> pg::TimelineId {
    pg::TimelineId::new(manifest.span().timeline).expect("the server gave it as a timeline")
}

/// What a backup stands on.
struct Plan {
    id: String,
    kind: BackupKind,
    predecessor: Option<Predecessor>,
    earlier: Vec<Earlier>,
    packs: EarlierPacks,
    rolled_back: Option<ChainFinding>,
    reread: bool,
    now: Timestamp,
}

async fn plan_backup(
    repository: &Arc<Repository>,
    request: &BackupRequest,
    predecessor: Option<Predecessor>,
    control: &ControlFile,
) -> Result<Plan, BackupError> {
    let now = Timestamp::now();
    // A backup of the same name in another cluster's life says nothing about this one's files.
    let parent = predecessor.as_ref().map(|predecessor| &predecessor.manifest);
    let parent = parent
        .filter(|manifest| manifest.server().system_identifier == control.system_identifier && !request.full);
    let kind = if parent.is_some() { BackupKind::Incremental } else { BackupKind::Full };
    let age = parent.map(|manifest| now.as_microsecond() - manifest.reread_at_us);
    let reread = request.reread || age.is_none_or(|age| age < 0 || age as u128 >= REREAD_AFTER.as_micros());

    let after = predecessor.as_ref().map(|predecessor| predecessor.manifest.id.clone());
    let mut earlier = Vec::new();
    let partials = repository.partials(&request.cluster, after.as_deref()).await?;
    // Later than any attempt, too: the names of its partial manifests have its id.
    let attempts = partials.iter().flatten().map(|manifest| manifest.id.clone());
    // By name, and not by what can be read: a host that cannot read may know no predecessor, and its id must be new.
    let there = repository.backup_ids(&request.cluster).await?.pop();
    let id = backup_id(now, kind, attempts.chain(there).max().as_deref());
    for manifests in partials.into_iter().rev() {
        let same = |manifest: &Manifest| {
            manifest.server().system_identifier == control.system_identifier && manifest.backup_kind() == kind
        };
        if manifests.first().is_some_and(same) {
            earlier.push(Earlier { manifests, trust_times: !request.reread });
        }
    }
    earlier
        .extend(parent.map(|manifest| Earlier { manifests: vec![manifest.clone()], trust_times: !reread }));
    let packs = EarlierPacks::read(repository, &earlier).await?;
    // Said now and kept in the manifest: this backup becomes the newest that this host saw.
    let rolled_back = repository.rolled_back(&request.cluster).await?;
    Ok(Plan { id, kind, predecessor, earlier, packs, rolled_back, reread, now })
}

/// UTC start time and kind, later than any backup before it even if the clock was set back.
fn backup_id(now: Timestamp, kind: BackupKind, after: Option<&str>) -> String {
    let suffix = if kind == BackupKind::Full { "full" } else { "incremental" };
    let spell = |moment: Timestamp| format!("{}-{suffix}", moment.strftime("%Y%m%dT%H%M%SZ"));
    let previous = after
        .and_then(|after| after.split_once('-'))
        .and_then(|(time, _)| jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok())
        .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok())
        .map(|time| time.timestamp());
    match previous {
        Some(previous) if previous.as_second() >= now.as_second() => spell(previous + Duration::from_secs(1)),
        _ => spell(now),
    }
}

fn open_files(facts: &ServerFacts) -> Result<LocalFiles, BackupError> {
    let Some(directory) = &facts.data_directory else {
        return Err(BackupError::NotReady {
            what: format!("role {} may not see where the data directory is", facts.role),
            hint: "grant it pg_read_all_settings, or connect as a superuser".into(),
        });
    };
    LocalFiles::new(directory).map_err(|error| match error {
        server::files::FilesError::DataDirectory { path, source } => BackupError::NotReady {
            what: format!("the data directory {} cannot be read here: {source}", path.display()),
            hint: "run pgkeep on the database server, as the user that PostgreSQL runs as".into(),
        },
        other => other.into(),
    })
}

fn check_ready(facts: &ServerFacts, control: &ControlFile) -> Result<(), BackupError> {
    let not_ready = |what: String, hint: &str| Err(BackupError::NotReady { what, hint: hint.to_owned() });
    if facts.system_identifier.is_some_and(|id| id != control.system_identifier) {
        return not_ready(
            "the data directory on this machine belongs to another cluster than the server that answered"
                .into(),
            "run pgkeep on the machine of the server, or correct database_url",
        );
    }
    if facts.in_recovery {
        return not_ready("the server is a standby".into(), "take the backup from its primary");
    }
    if !facts.can_backup {
        let functions = if facts.version_num >= 150_000 { "pg_backup_start" } else { "pg_start_backup" };
        return not_ready(
            format!("role {} may not take backups", facts.role),
            &format!("grant it EXECUTE on {functions} and its counterpart, or connect as a superuser"),
        );
    }
    if facts.archive_mode == ArchiveMode::Off {
        return not_ready(
            "archive_mode is off, so the WAL that a backup needs would never arrive".into(),
            "set archive_mode = on and archive_command as `pgkeep init` prints them, then restart PostgreSQL",
        );
    }
    Ok(())
}

fn identity(facts: &ServerFacts, control: &ControlFile) -> Identity {
    Identity {
        system_identifier: control.system_identifier,
        segment_size: control.wal_segment_size.bytes(),
        major: u32::from(facts.major.number()),
    }
}

fn begin_context(
    repository: &Arc<Repository>,
    request: &BackupRequest,
    plan: &Plan,
    manifest: &Manifest,
    files: &LocalFiles,
    partial_time: Duration,
) -> Result<Context, BackupError> {
    let control = files.read_control_file()?.1;
    Ok(Context {
        repository: repository.clone(),
        cluster: request.cluster.clone(),
        workers: request.workers.max(1),
        level: request.level,
        verify_checksums: control.has_data_checksums() && control.block_size as usize == pg::page::PAGE_SIZE,
        segment_blocks: control.segment_blocks,
        start_lsn: manifest.span().start_lsn,
        tail_lens: plan.packs.references.iter().map(|(id, pack)| (*id, pack.tail_len)).collect(),
        references: plan.packs.references.clone(),
        partial_time,
        stop: AtomicBool::new(false),
    })
}

async fn copy(
    context: Context,
    plan: &Plan,
    manifest: &Manifest,
    files: &Arc<LocalFiles>,
    session: &BackupSession,
    uploader: &Uploader,
    monitor: &Arc<dyn Monitor>,
) -> Result<Copied, BackupError> {
    let known: Vec<_> = plan.known_pages();
    let handle = Handle::current();
    // The session is looked at now and then from here, while other threads work: without it all work is vain.
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let copying = scope.spawn(|| {
                copy_files(
                    &context,
                    &**files,
                    &plan.earlier,
                    &plan.packs,
                    &known,
                    manifest.clone(),
                    uploader,
                    &handle,
                    &**monitor,
                )
            });
            let mut looked = Instant::now();
            while !copying.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
                if looked.elapsed() > Duration::from_secs(10) {
                    looked = Instant::now();
                    session.check_alive().inspect_err(|_| context.stop.store(true, Ordering::Release))?;
                }
            }
            copying.join().expect("the copying thread does not panic")
        })
    })
}

impl Plan {
    /// List pages of the parent whose packs are all there.
    fn known_pages(&self) -> Vec<repository::manifest::PageRef> {
        let there = |page: &&repository::manifest::PageRef| {
            page.extent().is_ok_and(|at| !self.packs.lost.contains(&at.pack))
        };
        self.earlier
            .iter()
            .flat_map(|one| &one.manifests)
            .flat_map(|manifest| &manifest.pages)
            .filter(there)
            .cloned()
            .collect()
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

#[cfg(test)]
mod tests;
