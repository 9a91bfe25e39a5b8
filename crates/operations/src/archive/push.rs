//! `archive_command`: storing one file of `pg_wal`, durably or not at all.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pg::control::ControlFile;
use pg::timeline::{HistoryError, TimelineHistory};
use pg::wal::{
    FileName, FileNameError, HeaderError, LongHeader, SegmentMismatch, SegmentName, StreamIdentity,
};
use pg::wal::{check_segment, records};
use repository::archive::{ArchiveError, Identity, MAX_WAL_FILE, Stored, WalInfo};
use tokio::time::Instant;

use super::spool::{FileIdentity, Role, Spool};
use super::{Background, Context, Start, archive_status, status};
use crate::failpoint;

pub use super::drain::{Drained, drain};

/// How many other files must wait before a drainer is worth its start.
const BACKLOG: usize = 2;
/// With fewer notes than this, it is time to see whether a new drainer is needed.
const LOW_WATER: usize = 16;
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

/// Why a file was not stored. Whatever it was, PostgreSQL keeps the file and asks again.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Not a name that PostgreSQL archives.
    #[error("push {path}")]
    Name {
        /// What was to be pushed.
        path: PathBuf,
        /// What is wrong with its name.
        source: FileNameError,
    },
    /// The file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file changed while it was read.
    #[error("read {path}: it changed meanwhile")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Too long or too short for what it is.
    #[error("{name} has {found} bytes, not {expected}")]
    Length {
        /// The file.
        name: FileName,
        /// Its bytes.
        found: u64,
        /// The bytes that it should have, or at most may have.
        expected: u64,
    },
    /// Not a segment.
    #[error("{name} is not a WAL segment")]
    Header {
        /// The file.
        name: FileName,
        /// What is wrong.
        source: HeaderError,
    },
    /// A segment that is not what its name says.
    #[error(transparent)]
    Mismatch(#[from] SegmentMismatch),
    /// A history file that PostgreSQL would refuse.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Written by a PostgreSQL that this program does not know.
    #[error("{name} has WAL of an unknown PostgreSQL version (page magic {magic:04X})")]
    UnknownMajor {
        /// The file.
        name: FileName,
        /// The magic of its first page.
        magic: u16,
    },
    /// The repository refused it, or could not be reached.
    #[error("store {name}")]
    Archive {
        /// The file.
        name: FileName,
        /// Why.
        source: ArchiveError,
    },
    /// It took too long.
    #[error("store {name}: not done within {} s", .after.as_secs())]
    Timeout {
        /// The file.
        name: FileName,
        /// The limit.
        after: Duration,
    },
}

impl PushError {
    /// The exit status for `archive_command`: always 1 to 125, because PostgreSQL takes a higher one for a crash,
    /// restarts its archiver and counts no failure (`pgarch_archiveXlog`). 2 wrong request, 4 try again, 5 damaged data,
    /// 6 conflict.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Name { .. } | Self::UnknownMajor { .. } => status::WRONG_REQUEST,
            Self::Read { .. } | Self::Changed { .. } | Self::Timeout { .. } => status::TRY_AGAIN,
            Self::Length { .. } | Self::Header { .. } | Self::History(_) => status::DAMAGED,
            Self::Mismatch(SegmentMismatch::SystemIdentifier { .. }) => status::CONFLICT,
            Self::Mismatch(_) => status::DAMAGED,
            Self::Archive { source, .. } => archive_status(source),
        }
    }
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
    let (stored, _) = push_file(context, path, &name).await?;
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
    let started = !running && start_drainer(spool, name, wal_directory, start);
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

/// Asks for a drainer if enough other files wait, and few are stored ahead.
fn start_drainer(spool: &Spool, name: &FileName, wal_directory: &Path, start: Start<'_>) -> bool {
    // Links stay: a `pg_wal` that is one is below the data directory by this path only, see `server_identity`.
    let Ok(wal_directory) = std::path::absolute(wal_directory) else { return false };
    let status = wal_directory.join("archive_status");
    let mut noted = spool.pushed();
    // Notes of files that wait no longer are removed by a drainer, so they must not keep one away.
    noted.retain(|name| status.join(format!("{name}.ready")).exists());
    if noted.len() >= LOW_WATER {
        return false;
    }
    let ready = ready_files(&wal_directory).unwrap_or_default();
    let waiting = ready.iter().filter(|other| *other != name && !noted.contains(&other.to_string())).count();
    if waiting < BACKLOG {
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

/// Reads, checks and stores one file; also says which file it was.
pub(super) async fn push_file(
    context: &Context,
    path: &Path,
    name: &FileName,
) -> Result<(Stored, FileIdentity), PushError> {
    let (content, identity) = read_file(path, name)?;
    failpoint::reach("wal-push.read");
    let limit = context.limits.deadline_for(content.len() as u64);
    let store = store_file(context, path, name, &content);
    match tokio::time::timeout(limit, store).await {
        Ok(stored) => Ok((stored?, identity)),
        Err(_) => Err(PushError::Timeout { name: *name, after: limit }),
    }
}

fn read_file(path: &Path, name: &FileName) -> Result<(Vec<u8>, FileIdentity), PushError> {
    let fail = |source| PushError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(fail)?;
    let before = FileIdentity::from(&file.metadata().map_err(fail)?);
    if before.size > MAX_WAL_FILE {
        return Err(PushError::Length { name: *name, found: before.size, expected: MAX_WAL_FILE });
    }
    let mut content = Vec::with_capacity(before.size as usize + 1);
    // One byte more than there should be, to see a file that grows.
    file.by_ref().take(before.size + 1).read_to_end(&mut content).map_err(fail)?;
    let after = FileIdentity::from(&file.metadata().map_err(fail)?);
    if before != after || content.len() as u64 != before.size {
        return Err(PushError::Changed { path: path.to_owned() });
    }
    Ok((content, before))
}

async fn store_file(
    context: &Context,
    path: &Path,
    name: &FileName,
    content: &[u8],
) -> Result<Stored, PushError> {
    let archive = |source| PushError::Archive { name: *name, source };
    let mut info = WalInfo {
        name: name.to_string(),
        length: content.len() as u64,
        stored_us: (context.now)().as_microsecond(),
        ..WalInfo::default()
    };
    let identity = match name {
        FileName::Segment(segment) | FileName::Partial(segment) => {
            let identity = segment_identity(name, segment, content)?;
            let size = pg::wal::SegmentSize::new(identity.segment_size).expect("the header was checked");
            let span = records::commit_span(content, segment, size);
            let unix_us = |moment: pg::PgTimestamp| Some(moment.to_timestamp()?.as_microsecond());
            info.first_commit_us = span.and_then(|span| unix_us(span.first));
            info.last_commit_us = span.and_then(|span| unix_us(span.last));
            Some(identity)
        }
        FileName::History(timeline) => {
            TimelineHistory::parse(*timeline, content)?;
            server_identity(path)
        }
        FileName::BackupHistory { .. } => server_identity(path),
    };
    if let Some(identity) = identity {
        context.repository.bind(&context.cluster, &identity).await.map_err(archive)?;
    }
    failpoint::reach("wal-push.bound");
    let threads = context.limits.workers;
    let stored = context.repository.store_wal(&context.cluster, name, content, &info, threads).await;
    failpoint::reach("wal-push.stored");
    stored.map_err(archive)
}

/// The cluster that a segment is of, after everything that its header can tell was compared with its name.
fn segment_identity(name: &FileName, segment: &SegmentName, content: &[u8]) -> Result<Identity, PushError> {
    let header = LongHeader::parse(content).map_err(|source| PushError::Header { name: *name, source })?;
    let LongHeader { system_identifier, segment_size, magic, .. } = header;
    check_segment(content, segment, &StreamIdentity { system_identifier, segment_size })?;
    let expected = u64::from(segment_size.bytes());
    if content.len() as u64 != expected {
        return Err(PushError::Length { name: *name, found: content.len() as u64, expected });
    }
    let major = header.major().ok_or(PushError::UnknownMajor { name: *name, magic })?;
    Ok(Identity { system_identifier, segment_size: segment_size.bytes(), major: u32::from(major.number()) })
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
    })
}

#[cfg(test)]
mod tests;
