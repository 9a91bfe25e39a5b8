//! `restore_command`: bringing one file, or proving that it does not exist.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pg::wal::{
    FileName, FileNameError, SegmentMismatch, SegmentName, SegmentSize, StreamIdentity, check_segment,
};
use repository::archive::{ArchiveError, Identity};
use repository::{ClusterName, RepositoryError};
use tokio::time::Instant;

use super::spool::{Role, Spool};
use super::{Background, Context, Start, archive_status, repository_status, status};
use crate::failpoint;

pub use super::prefetch::{Prefetched, prefetch};

/// Added to the ordinary exit status, see [`GetError::exit_status`].
const FATAL: u8 = 200;
/// How often a waiting call looks for its segment.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How often a hole is looked at again.
const HOLE_LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where the file came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// From the spool, where it had been fetched ahead.
    Ahead,
    /// From the repository.
    Fetched,
}

/// Why a file was not brought.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// Proven absent: the repository and the stream are there, the file is not, and no later segment of its timeline.
    #[error("{name} is not in the archive")]
    Absent {
        /// The file.
        name: FileName,
    },
    /// The segment is missing and a later one is there.
    #[error("{name} is missing from the archive, which has {later} of the same timeline")]
    Hole {
        /// The missing segment.
        name: SegmentName,
        /// The next one stored.
        later: SegmentName,
    },
    /// Nothing of ours is where the archive should be, so nothing can be said to be absent from it.
    #[error("the repository has no stream {cluster}, so that {name} is missing means nothing")]
    NoStream {
        /// The stream.
        cluster: ClusterName,
        /// The file.
        name: FileName,
    },
    /// Not a name that PostgreSQL asks for.
    #[error("get {text}")]
    Name {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        source: FileNameError,
    },
    /// The repository could not be read, or what it has is damaged.
    #[error("fetch {name}")]
    Archive {
        /// The file.
        name: FileName,
        /// Why.
        source: ArchiveError,
    },
    /// The stored segment is not what its name says.
    #[error(transparent)]
    Mismatch(#[from] SegmentMismatch),
    /// The stored segment has another length than the cluster's segments.
    #[error("{name} has {found} bytes in the archive, not {expected}")]
    Length {
        /// The segment.
        name: SegmentName,
        /// Its bytes.
        found: u64,
        /// Bytes of a segment of this cluster.
        expected: u64,
    },
    /// The file could not be written where it was wanted.
    #[error("write {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("fetch {name}: not done within {} s", .after.as_secs())]
    Timeout {
        /// The file.
        name: FileName,
        /// The limit.
        after: Duration,
    },
}

impl GetError {
    /// The exit status for `restore_command`: 1 for a proven absence; anything else is 200 and the ordinary status (202
    /// wrong request, 203 not found, 204 try again, 205 damaged data).
    ///
    /// PostgreSQL takes 1 to 125 as "no such file", ends recovery there and opens for writing. Above 125 it stops. 129 to
    /// 192 are left to the shell, which reports signals so; 143 in particular means "told to stop" to PostgreSQL.
    /// Source: `RestoreArchivedFile`, `access/transam/xlogarchive.c`, and `wait_result_is_any_signal`.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Absent { .. } => 1,
            Self::Name { .. } => FATAL + status::WRONG_REQUEST,
            Self::NoStream { .. } => FATAL + status::NOT_FOUND,
            Self::Hole { .. } | Self::Mismatch(_) | Self::Length { .. } => FATAL + status::DAMAGED,
            Self::Archive { source, .. } => FATAL + archive_status(source),
            Self::Write { .. } | Self::Timeout { .. } => FATAL + status::TRY_AGAIN,
        }
    }
}

/// The exit status of a `wal get` that failed before it came to [`run`]: 200 and the ordinary status of the failure.
pub const fn failed_before(ordinary_status: u8) -> u8 {
    FATAL.saturating_add(ordinary_status)
}

/// The exit status of a `wal get` whose repository could not be opened.
pub fn open_failed(error: &RepositoryError) -> u8 {
    FATAL + repository_status(error)
}

/// Brings the file `name`, which is `%f` of `restore_command`, to `target`, its `%p`: whole, checked, durable.
///
/// Only the exact name is ever brought: a `.partial` file does not stand in for its segment. After a segment, `start` is
/// asked to fetch the ones that follow, unless somebody does already or enough are here.
pub async fn run(context: &Context, name: &str, target: &Path, start: Start<'_>) -> Result<Got, GetError> {
    let name: FileName = name.parse().map_err(|source| GetError::Name { text: name.to_owned(), source })?;
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let FileName::Segment(segment) = name else {
        let content = fetch(context, &name).await?;
        write_file(directory, target, &content)?;
        return Ok(Got::Fetched);
    };
    let spool = Spool::open(context, directory);
    let ahead = match &spool {
        Some(spool) => take_ahead(context, spool, &segment, directory, target).await?,
        None => false,
    };
    if !ahead {
        let content = fetch(context, &name).await?;
        write_file(directory, target, &content)?;
    }
    if let Some(spool) = spool {
        start_prefetch(context, &spool, segment, directory, start).await;
    }
    Ok(if ahead { Got::Ahead } else { Got::Fetched })
}

/// Hands out the segment from the spool, if it is there and good, or about to come.
async fn take_ahead(
    context: &Context,
    spool: &Spool,
    segment: &SegmentName,
    directory: &Path,
    target: &Path,
) -> Result<bool, GetError> {
    let begun = Instant::now();
    while !spool.has_fetched(segment)
        && spool.is_being_fetched(segment)
        && spool.is_locked(Role::Prefetch)
        && begun.elapsed() < context.limits.deadline / 2
    {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    if !spool.has_fetched(segment) {
        return Ok(false);
    }
    let good = match spool.fetched(segment) {
        Some((content, path)) => identity_for(context, &FileName::Segment(*segment))
            .await
            .and_then(|identity| check(&identity, segment, &content))
            .is_ok()
            .then_some((content, path)),
        None => None,
    };
    if let Some((content, path)) = &good {
        // A rename costs nothing; it fails between file systems.
        failpoint::reach("wal-get.ahead");
        let moved = fs::rename(path, target).and_then(|()| sync_directory(directory));
        if moved.is_err() {
            write_file(directory, target, content)?;
        }
    }
    failpoint::reach("wal-get.taken");
    spool.forget_fetched(segment);
    Ok(good.is_some())
}

async fn start_prefetch(
    context: &Context,
    spool: &Spool,
    after: SegmentName,
    directory: &Path,
    start: Start<'_>,
) {
    let Ok(identity) = identity_for(context, &FileName::Segment(after)).await else { return };
    let Ok(size) = SegmentSize::new(identity.segment_size) else { return };
    let queue = context.limits.queue(size);
    // Only what comes next counts: what an earlier recovery left is removed by a prefetcher, so it must not keep one away.
    let next = std::iter::successors(after.next(size), |name| name.next(size)).take(queue);
    let here = next.filter(|name| spool.has_fetched(name)).count();
    if here * 2 > queue || queue == 0 || spool.is_locked(Role::Prefetch) {
        return;
    }
    let Ok(wal_directory) = fs::canonicalize(directory) else { return };
    if let Err(error) = start(&Background::Prefetch { wal_directory, after }) {
        tracing::warn!(%error, "cannot start a process that fetches ahead");
    }
}

/// Fetches and checks a file; a hole is waited for.
async fn fetch(context: &Context, name: &FileName) -> Result<Vec<u8>, GetError> {
    let begun = Instant::now();
    let mut bytes = 0;
    if matches!(name, FileName::Segment(_) | FileName::Partial(_)) {
        bytes = identity_for(context, name).await?.segment_size.into();
    }
    let limit = context.limits.deadline_for(bytes);
    loop {
        let fetched = tokio::time::timeout(limit, fetch_once(context, name)).await;
        match fetched.unwrap_or(Err(GetError::Timeout { name: *name, after: limit })) {
            Err(GetError::Hole { .. }) if begun.elapsed() < context.limits.hole_wait => {
                tokio::time::sleep(HOLE_LOOK_EVERY.min(context.limits.hole_wait)).await;
            }
            other => return other,
        }
    }
}

/// Fetches a file and checks that it is what its name says.
pub(super) async fn fetch_once(context: &Context, name: &FileName) -> Result<Vec<u8>, GetError> {
    let content = match context.repository.fetch_wal(&context.cluster, name).await {
        Ok((_, content)) => content,
        Err(ArchiveError::Absent { .. }) => return Err(absent(context, name).await),
        Err(source) => return Err(GetError::Archive { name: *name, source }),
    };
    if let FileName::Segment(segment) = name {
        check(&identity_for(context, name).await?, segment, &content)?;
    }
    Ok(content)
}

/// What it means that the storage has no object of this name.
async fn absent(context: &Context, name: &FileName) -> GetError {
    let (repository, cluster) = (&context.repository, &context.cluster);
    let there = async {
        let there = repository.stream_is_there(cluster).await?;
        let later = match name {
            FileName::Segment(segment) if there => repository.next_stored_segment(cluster, segment).await?,
            _ => None,
        };
        Ok((there, later))
    };
    match (there.await, name) {
        (Ok((false, _)), _) => GetError::NoStream { cluster: cluster.clone(), name: *name },
        (Ok((true, Some(later))), FileName::Segment(segment)) => GetError::Hole { name: *segment, later },
        (Ok((true, _)), _) => GetError::Absent { name: *name },
        (Err(source), _) => GetError::Archive { name: *name, source: ArchiveError::Repository(source) },
    }
}

async fn identity_for(context: &Context, name: &FileName) -> Result<Identity, GetError> {
    let after = context.limits.deadline;
    let found = tokio::time::timeout(after, context.repository.identity(&context.cluster)).await;
    let found = found.map_err(|_| GetError::Timeout { name: *name, after })?;
    let found =
        found.map_err(|error| GetError::Archive { name: *name, source: ArchiveError::Repository(error) })?;
    found.ok_or_else(|| GetError::NoStream { cluster: context.cluster.clone(), name: *name })
}

fn check(identity: &Identity, name: &SegmentName, content: &[u8]) -> Result<(), GetError> {
    let expected = u64::from(identity.segment_size);
    let length = || GetError::Length { name: *name, found: content.len() as u64, expected };
    let segment_size = SegmentSize::new(identity.segment_size).map_err(|_| length())?;
    if content.len() as u64 != expected {
        return Err(length());
    }
    let system_identifier = identity.system_identifier;
    check_segment(content, name, &StreamIdentity { system_identifier, segment_size })?;
    Ok(())
}

/// Writes under another name, makes it durable, and only then gives it the name that PostgreSQL looks for. The other
/// name is always the same, so that what a killed call left is overwritten by the next.
fn write_file(directory: &Path, target: &Path, content: &[u8]) -> Result<(), GetError> {
    let fail = |source| GetError::Write { path: target.to_owned(), source };
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!("pgkeep-{name}.part"));
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        failpoint::reach("wal-get.written");
        fs::rename(&temporary, target)?;
        failpoint::reach("wal-get.placed");
        sync_directory(directory)
    };
    write().map_err(fail)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
