//! `restore_command`: bringing one file, or proving that it does not exist.

mod error;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pg::wal::{FileName, SegmentName, SegmentSize, StreamIdentity, check_segment};
use repository::RepositoryError;
use repository::archive::{ArchiveError, Identity, WalSink as _};
use tokio::time::Instant;

use super::content::{Incoming, sync_directory};
use super::spool::{Role, Spool};
use super::{Background, Context, Start, repository_status};
use crate::failpoint;

use super::beginning::{Beginning, fetch_beginning, has_more, is_standby};
pub use super::prefetch::{Prefetched, prefetch};
pub use error::GetError;

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
    /// The beginning of a segment that its server has not finished, from the repository; the rest is zeros.
    Beginning {
        /// How many bytes of it are stored.
        bytes: u32,
    },
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
/// Only the exact name is ever brought: a `.partial` file does not stand in for its segment. Of a segment that is not stored
/// whole, parts that a receiver stored make the beginning, if nothing of its timeline is stored behind it: replay ends where
/// they do, at the last record that is whole. Not on a standby, and not where more of the segment lies in `pg_wal`: PostgreSQL
/// puts what it is given in the place of what it has. After a segment, `start` is
/// asked to fetch the ones that follow, unless somebody does already or enough are here.
pub async fn run(context: &Context, name: &str, target: &Path, start: Start<'_>) -> Result<Got, GetError> {
    let name: FileName = name.parse().map_err(|source| GetError::Name { text: name.to_owned(), source })?;
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let FileName::Segment(segment) = name else {
        fetch(context, &name, directory, target).await?;
        return Ok(Got::Fetched);
    };
    let spool = Spool::open(context, directory);
    let ahead = match &spool {
        Some(spool) => take_ahead(context, spool, &segment, directory, target).await?,
        None => false,
    };
    let got = if ahead { Got::Ahead } else { fetch(context, &name, directory, target).await? };
    if let Some(spool) = spool.filter(|_| !matches!(got, Got::Beginning { .. })) {
        start_prefetch(context, &spool, segment, directory, start).await;
    }
    Ok(got)
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
    let taken = match spool.fetched(segment) {
        Some((path, file)) => {
            failpoint::reach("wal-get.ahead");
            // A rename costs nothing; it fails between file systems. Another fetcher may have put its own file there between
            // the look and the rename: then this one is fetched over it.
            match fs::rename(&path, target).and_then(|()| sync_directory(directory)) {
                Ok(()) => fs::symlink_metadata(target).is_ok_and(|metadata| file.is_still(&metadata)),
                Err(_) => copy(spool, segment, directory, target)?,
            }
        }
        None => false,
    };
    failpoint::reach("wal-get.taken");
    spool.forget_fetched(segment);
    Ok(taken)
}

/// Hands out a copy; false if the file changed while it was read.
fn copy(spool: &Spool, segment: &SegmentName, directory: &Path, target: &Path) -> Result<bool, GetError> {
    let fail = |source| GetError::Write { path: target.to_owned(), source };
    let mut incoming = Incoming::new(part_of(directory, target));
    let mut buffer = vec![0; 1 << 20];
    let Ok(mut file) = File::open(spool.path(segment)) else { return Ok(false) };
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => incoming.take(&buffer[..read]).map_err(fail)?,
            Err(_) => return Ok(false),
        }
    }
    if spool.fetched(segment).is_none() {
        return Ok(false);
    }
    place(incoming, directory, target)?;
    Ok(true)
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

/// Fetches a file to where it is wanted; a hole is waited for. Where the stream ends, the beginning of a segment stands in
/// for it.
async fn fetch(context: &Context, name: &FileName, directory: &Path, target: &Path) -> Result<Got, GetError> {
    let begun = Instant::now();
    let mut bytes = 0;
    if matches!(name, FileName::Segment(_) | FileName::Partial(_)) {
        bytes = identity_for(context, name).await?.segment_size.into();
    }
    let limit = context.limits.deadline_for(bytes);
    loop {
        let incoming = Incoming::new(part_of(directory, target));
        let fetching = fetch_once(context, name, context.limits.workers, incoming);
        let fetched = tokio::time::timeout(limit, fetching).await;
        let missing = match fetched.unwrap_or(Err(GetError::Timeout { name: *name, after: limit })) {
            Err(GetError::Hole { .. }) if begun.elapsed() < context.limits.hole_wait => {
                tokio::time::sleep(HOLE_LOOK_EVERY.min(context.limits.hole_wait)).await;
                continue;
            }
            Err(GetError::Archive { source: ArchiveError::Content { source, .. }, .. }) => {
                return Err(GetError::Write { path: target.to_owned(), source });
            }
            Err(missing @ GetError::Absent { .. }) => missing,
            Err(missing @ GetError::Hole { name, .. }) if context.up_to_gap == Some(name) => missing,
            fetched => return place(fetched?.0, directory, target).map(|()| Got::Fetched),
        };
        let FileName::Segment(segment) = name else { return Err(missing) };
        if is_standby(directory) {
            return Err(missing);
        }
        let path = part_of(directory, target);
        let fetching = fetch_beginning(context, segment, &path);
        let fetched = tokio::time::timeout(limit, fetching).await;
        match fetched.unwrap_or(Err(GetError::Timeout { name: *name, after: limit }))? {
            Beginning::Is(_, bytes) | Beginning::Holed(bytes, _) if has_more(directory, segment, bytes) => {
                return Err(missing);
            }
            Beginning::Holed(..) if begun.elapsed() < context.limits.hole_wait => {
                tokio::time::sleep(HOLE_LOOK_EVERY.min(context.limits.hole_wait)).await;
            }
            Beginning::Holed(from, to) => return Err(GetError::Torn { name: *segment, from, to }),
            Beginning::Is(incoming, bytes) => {
                return place(incoming, directory, target).map(|()| Got::Beginning { bytes });
            }
            // Stored meanwhile, or replaced by a longer part.
            Beginning::Changed if begun.elapsed() < limit => tokio::time::sleep(LOOK_EVERY).await,
            Beginning::Changed => return Err(GetError::Timeout { name: *name, after: limit }),
            // PostgreSQL 15 and later read ahead of the target. Where the gap is, they are told that WAL ends, or a backup
            // that is kept alone could not be brought to its own end.
            Beginning::None if context.up_to_gap == Some(*segment) => {
                return Err(GetError::Absent { name: *name });
            }
            Beginning::None => return Err(missing),
        }
    }
}

/// Fetches a file with so many threads and checks that it is what its name says; also returns its digest.
pub(super) async fn fetch_once(
    context: &Context,
    name: &FileName,
    threads: usize,
    incoming: Incoming,
) -> Result<(Incoming, [u8; 32]), GetError> {
    let fetched = context.repository.fetch_wal_into(&context.cluster, name, threads, incoming).await;
    let fetched = match fetched {
        Ok(fetched) => fetched,
        Err(ArchiveError::Absent { .. }) => return Err(absent(context, name).await),
        Err(source) => return Err(GetError::Archive { name: *name, source }),
    };
    if let FileName::Segment(segment) = name {
        check(&identity_for(context, name).await?, segment, &fetched.sink)?;
    }
    Ok((fetched.sink, fetched.digest))
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

pub(super) async fn identity_for(context: &Context, name: &FileName) -> Result<Identity, GetError> {
    let after = context.limits.deadline;
    let found = tokio::time::timeout(after, context.repository.identity(&context.cluster)).await;
    let found = found.map_err(|_| GetError::Timeout { name: *name, after })?;
    let found =
        found.map_err(|error| GetError::Archive { name: *name, source: ArchiveError::Repository(error) })?;
    found.ok_or_else(|| GetError::NoStream { cluster: context.cluster.clone(), name: *name })
}

pub(super) fn check(identity: &Identity, name: &SegmentName, content: &Incoming) -> Result<(), GetError> {
    let expected = u64::from(identity.segment_size);
    let length = || GetError::Length { name: *name, found: content.length, expected };
    let segment_size = SegmentSize::new(identity.segment_size).map_err(|_| length())?;
    if content.length != expected {
        return Err(length());
    }
    let system_identifier = identity.system_identifier;
    check_segment(&content.head, name, &StreamIdentity { system_identifier, segment_size })?;
    Ok(())
}

/// The name under which a file is written. It is always the same, so that what a killed call left is overwritten by the
/// next.
fn part_of(directory: &Path, target: &Path) -> PathBuf {
    directory.join(format!("pgkeep-{}.part", target.file_name().unwrap_or_default().to_string_lossy()))
}

/// Makes a file durable, and only then gives it the name that PostgreSQL looks for.
fn place(incoming: Incoming, directory: &Path, target: &Path) -> Result<(), GetError> {
    let place = || -> io::Result<()> {
        let part = incoming.finish()?;
        failpoint::reach("wal-get.written");
        fs::rename(part, target)?;
        failpoint::reach("wal-get.placed");
        sync_directory(directory)
    };
    place().map_err(|source| GetError::Write { path: target.to_owned(), source })
}

#[cfg(test)]
mod tests;
