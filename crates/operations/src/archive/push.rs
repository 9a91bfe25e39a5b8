//! `archive_command`: storing one file of `pg_wal`, durably or not at all.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pg::control::ControlFile;
use pg::timeline::TimelineHistory;
use pg::wal::{FileName, LongHeader, SegmentName, StreamIdentity};
use pg::wal::{check_segment, records::CommitWalk};
use repository::archive::{ArchiveError, Identity, MAX_WAL_FILE, Stored, WalInfo};
use tokio::time::Instant;

use super::beginning::is_marked;
use super::content::{Changed, HEAD, SegmentFile};
use super::spool::{FileIdentity, Role, Spool};
use super::{Background, Context, Start};
use crate::failpoint;

mod error;

pub use super::drain::{Drained, drain};
pub use error::PushError;

/// How many other files must wait before a drainer is worth its start.
const BACKLOG: usize = 2;
/// With less than this share of the notes that there may be, it is time to see whether a new drainer is needed.
const LOW_WATER: usize = 4;
/// How often a waiting call looks for its note.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How a push ended well; in each case the file is durable in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Stored by this call.
    Stored,
    /// It was there, with the same bytes.
    AlreadyThere,
    /// Stored ahead by a drainer, which left an authentic note of exactly this file.
    Ahead,
}

/// Stores the file at `path`, which is `%p` of `archive_command` and may be relative to the data directory.
///
/// `Ok` only when the file is durable in the repository. If several files wait, `start` is asked for a drainer and this
/// call answers from what that has done; if none comes, or it does not get there, this call stores the file itself.
pub async fn run(context: &Context, path: &Path, start: Start<'_>) -> Result<Pushed, PushError> {
    let name = file_name(path)?;
    let wal_directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Some(spool) = Spool::open(context, wal_directory)
        && let Ok(file) = fs::metadata(path).map(|metadata| FileIdentity::from(&metadata))
        && ahead(context, &spool, &name, &file, wal_directory, start).await
    {
        failpoint::reach("wal-push.answered");
        spool.forget_pushed(&name.to_string());
        return Ok(Pushed::Ahead);
    }
    let (stored, _) = push_file(context, path, &name, context.limits.workers).await?;
    Ok(match stored {
        Stored::New => Pushed::Stored,
        Stored::AlreadyThere => Pushed::AlreadyThere,
    })
}

fn file_name(path: &Path) -> Result<FileName, PushError> {
    let text = path.file_name().unwrap_or_default().to_string_lossy();
    text.parse().map_err(|source| PushError::Name { path: path.to_owned(), source })
}

/// Whether the file was stored ahead; waits for a drainer that lives or was just started.
async fn ahead(
    context: &Context,
    spool: &Spool,
    name: &FileName,
    file: &FileIdentity,
    wal_directory: &Path,
    start: Start<'_>,
) -> bool {
    let noted = spool.is_pushed(name, file);
    let running = spool.is_locked(Role::Drain);
    let started = !running && start_drainer(spool, name, wal_directory, BACKLOG, start);
    if noted || !(running || started) {
        return noted;
    }
    let begun = Instant::now();
    // Half of the time is left for storing the file here.
    let patience = context.limits.deadline_for(file.size) / 2;
    let mut alive = running;
    while begun.elapsed() < patience {
        // Looked at before the note: a drainer that ended in between has left its note by then.
        let locked = spool.is_locked(Role::Drain);
        if spool.is_pushed(name, file) {
            return true;
        }
        alive |= locked;
        if !locked && (alive || begun.elapsed() > context.limits.start_grace) {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    false
}

/// Has whatever waits behind this file stored ahead, if anything does: for a repository that works while the one that
/// PostgreSQL waits for does not, and that would get nothing more before that does.
pub fn store_rest(context: &Context, path: &Path, start: Start<'_>) {
    let wal_directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let wal_directory = wal_directory.unwrap_or(Path::new("."));
    if let Ok(name) = file_name(path)
        && let Some(spool) = Spool::open(context, wal_directory)
        && !spool.is_locked(Role::Drain)
    {
        start_drainer(&spool, &name, wal_directory, 1, start);
    }
}

/// Asks for a drainer if at least `backlog` other files wait, and few are stored ahead.
fn start_drainer(
    spool: &Spool,
    name: &FileName,
    wal_directory: &Path,
    backlog: usize,
    start: Start<'_>,
) -> bool {
    // Links stay: a `pg_wal` that is one is below the data directory by this path only, see `server_identity`.
    let Ok(wal_directory) = std::path::absolute(wal_directory) else { return false };
    let status = wal_directory.join("archive_status");
    let mut noted = spool.pushed();
    // Notes of files that wait no longer are removed by a drainer, so they must not keep one away.
    noted.retain(|name| status.join(format!("{name}.ready")).exists());
    if noted.len() >= spool.ahead() / LOW_WATER {
        return false;
    }
    let ready = ready_files(&wal_directory).unwrap_or_default();
    let waiting = ready.iter().filter(|other| *other != name && !noted.contains(&other.to_string())).count();
    if waiting < backlog {
        return false;
    }
    let started = start(&Background::Drain { wal_directory });
    started.inspect_err(|error| tracing::warn!(%error, "cannot start a process that stores ahead")).is_ok()
}

/// The files that wait to be archived, in PostgreSQL's order: histories first, then by name (`pgarch_readyXlog`).
pub(super) fn ready_files(wal_directory: &Path) -> io::Result<Vec<FileName>> {
    let entries = fs::read_dir(wal_directory.join("archive_status"))?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok());
    let mut names: Vec<FileName> = names.collect();
    names.sort_by_cached_key(|name| (!matches!(name, FileName::History(_)), name.to_string()));
    Ok(names)
}

/// Reads, checks and stores one file with so many threads; also says which file it was.
pub(super) async fn push_file(
    context: &Context,
    path: &Path,
    name: &FileName,
    threads: usize,
) -> Result<(Stored, FileIdentity), PushError> {
    let fail = |source| PushError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(fail)?;
    let identity = FileIdentity::from(&file.metadata().map_err(fail)?);
    if identity.size > MAX_WAL_FILE {
        return Err(PushError::Length { name: *name, found: identity.size, expected: MAX_WAL_FILE });
    }
    let limit = context.limits.deadline_for(identity.size);
    let store = async {
        match name {
            FileName::Segment(segment) | FileName::Partial(segment) => {
                store_segment(context, path, name, segment, file, identity, threads).await
            }
            _ => store_note(context, path, name, file, identity).await,
        }
    };
    match tokio::time::timeout(limit, store).await {
        Ok(stored) => Ok((stored?, identity)),
        Err(_) => Err(PushError::Timeout { name: *name, after: limit }),
    }
}

async fn store_segment(
    context: &Context,
    path: &Path,
    name: &FileName,
    segment: &SegmentName,
    file: File,
    identity: FileIdentity,
    threads: usize,
) -> Result<Stored, PushError> {
    // PostgreSQL archives a beginning that we gave it only with `archive_mode = always`. It is kept as PostgreSQL keeps what its
    // own recovery left unfinished, and the segment's name stays free for the whole.
    let partial = FileName::Partial(*segment);
    let is_beginning = is_marked(&file, identity.size).map_err(|source| unread(path, source))?;
    let name = if is_beginning { &partial } else { name };
    let mut head = vec![0; HEAD.min(identity.size as usize)];
    file.read_exact_at(&mut head, 0).map_err(|source| unread(path, source))?;
    let cluster = segment_identity(name, segment, &head, identity.size)?;
    failpoint::reach("wal-push.read");
    bind(context, name, &cluster).await?;
    let size = pg::wal::SegmentSize::new(cluster.segment_size).expect("the header was checked");
    let walk = CommitWalk::new(segment, size);
    let content = Arc::new(SegmentFile::new(file, identity, info(context, name, identity.size), walk));
    let stored = context.repository.store_wal_file(&context.cluster, name, content, threads).await;
    failpoint::reach("wal-push.stored");
    if is_beginning && matches!(stored, Err(ArchiveError::Conflict { .. })) {
        // Another restore's, longer or shorter. Nothing is lost with this one: it came out of parts, and the timeline that was
        // begun in it has a copy of what was replayed.
        tracing::warn!(%segment, "another beginning of the segment is archived, and stays");
        return Ok(Stored::AlreadyThere);
    }
    stored.map_err(|source| match source {
        ArchiveError::Content { source, .. } => unread(path, source),
        source => PushError::Archive { name: *name, source },
    })
}

/// Stores a history file or what PostgreSQL notes of a base backup; both are small.
async fn store_note(
    context: &Context,
    path: &Path,
    name: &FileName,
    mut file: File,
    identity: FileIdentity,
) -> Result<Stored, PushError> {
    let fail = |source| PushError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    // One byte more than there should be, to see a file that grows.
    file.by_ref().take(identity.size + 1).read_to_end(&mut content).map_err(fail)?;
    let after = FileIdentity::from(&file.metadata().map_err(fail)?);
    if identity != after || content.len() as u64 != identity.size {
        return Err(PushError::Changed { path: path.to_owned() });
    }
    failpoint::reach("wal-push.read");
    if let FileName::History(timeline) = name {
        TimelineHistory::parse(*timeline, &content)?;
    }
    if let Some(cluster) = server_identity(path) {
        bind(context, name, &cluster).await?;
    }
    let info = info(context, name, identity.size);
    let stored = context.repository.store_wal(&context.cluster, name, &content, &info, 1).await;
    failpoint::reach("wal-push.stored");
    stored.map_err(|source| PushError::Archive { name: *name, source })
}

async fn bind(context: &Context, name: &FileName, cluster: &Identity) -> Result<(), PushError> {
    let bound = context.repository.bind(&context.cluster, cluster).await;
    failpoint::reach("wal-push.bound");
    bound.map_err(|source| PushError::Archive { name: *name, source })
}

fn info(context: &Context, name: &FileName, length: u64) -> WalInfo {
    WalInfo::new(name, length, (context.now)())
}

fn unread(path: &Path, source: io::Error) -> PushError {
    let path = path.to_owned();
    if source.get_ref().is_some_and(|inner| inner.is::<Changed>()) {
        return PushError::Changed { path };
    }
    PushError::Read { path, source }
}

/// The cluster that a segment is of, after everything that its header can tell was compared with its name.
fn segment_identity(
    name: &FileName,
    segment: &SegmentName,
    head: &[u8],
    length: u64,
) -> Result<Identity, PushError> {
    let header = LongHeader::parse(head).map_err(|source| PushError::Header { name: *name, source })?;
    let LongHeader { system_identifier, segment_size, magic, .. } = header;
    check_segment(head, segment, &StreamIdentity { system_identifier, segment_size })?;
    let expected = u64::from(segment_size.bytes());
    if length != expected {
        return Err(PushError::Length { name: *name, found: length, expected });
    }
    let major = header.major().ok_or(PushError::UnknownMajor { name: *name, magic })?;
    Ok(Identity {
        system_identifier,
        segment_size: segment_size.bytes(),
        major: u32::from(major.number()),
        logical: false,
    })
}

/// The cluster whose data directory the file is in. A history file does not say whose it is, so the control file is
/// asked: else a foreign cluster's could come into the stream before its segments are refused. `None` if it cannot be
/// read, as under a `pg_wal` given by another path.
fn server_identity(path: &Path) -> Option<Identity> {
    let data_directory = path.parent()?.parent()?;
    let control = data_directory.join("global/pg_control");
    // The server may be writing it: a torn read has a wrong checksum, and the next one is whole.
    let control = (0..3).find_map(|_| ControlFile::parse(&fs::read(&control).ok()?).ok())?;
    Some(Identity {
        system_identifier: control.system_identifier,
        segment_size: control.wal_segment_size.bytes(),
        major: u32::from(control.major()?.number()),
        logical: false,
    })
}

#[cfg(test)]
mod tests;
