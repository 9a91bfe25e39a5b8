//! Whether the server can be backed up as it is, from where this runs.

use pg::control::ControlFile;
use pg::wal::SegmentName;
use repository::archive::Identity;
use repository::{ClusterName, Repository, RepositoryError};
use server::connection::Connection;
use server::facts::{ArchiveMode, ServerFacts, Slot};
use server::files::{FileSource, SqlFiles};
use server::settings_check::OUR_SLOTS;

use super::BackupError;
use crate::monitor::{Event, Monitor};
use crate::probe::{Mode, Probe, Reason, Way, find_locally};

/// The files of the server that `session` is with, in the way that was asked for and is possible.
pub(crate) fn open_files(
    facts: &ServerFacts,
    session: &Connection,
    mode: Mode,
) -> Result<Box<dyn FileSource>, BackupError> {
    let way = Probe::of(facts).choose_files(mode)?;
    tracing::info!(%way, "the files are read");
    Ok(match way {
        Way::LocalFiles => Box::new(find_locally(facts)?),
        Way::SqlFiles => Box::new(SqlFiles::new(session)?),
        Way::Logical => unreachable!("it stores no files"),
    })
}

impl From<Reason> for BackupError {
    fn from(Reason { what, hint }: Reason) -> Self {
        Self::NotReady { what, hint }
    }
}

/// Refuses files that are not the server's.
pub(crate) fn check_ready(facts: &ServerFacts, control: &ControlFile) -> Result<(), BackupError> {
    if facts.system_identifier.is_some_and(|id| id != control.system_identifier) {
        return not_ready(
            "the files that are read belong to another cluster than the server that answered",
            "run pgkeep on the machine of the server, or correct database_url",
        );
    }
    Ok(())
}

fn not_ready(what: &str, hint: &str) -> Result<(), BackupError> {
    Err(BackupError::NotReady { what: what.to_owned(), hint: hint.to_owned() })
}

/// Refuses a server whose WAL goes nowhere: the backup would wait in vain. It comes by the server's archiver, by a receiver, or
/// is seen to have come until now in whatever way, such as from a standby.
pub(crate) async fn check_wal_comes(
    repository: &Repository,
    cluster: &ClusterName,
    facts: &ServerFacts,
    monitor: &dyn Monitor,
) -> Result<(), BackupError> {
    // A standby says nothing of who archives for it.
    if facts.archive_mode != ArchiveMode::Off || facts.in_recovery {
        return Ok(());
    }
    let ours = |slot: &&Slot| slot.name.starts_with(OUR_SLOTS) && slot.wal_status.as_deref() != Some("lost");
    let Some(slot) = facts.slots.iter().find(ours) else {
        if has_come(repository, cluster, facts).await? {
            return Ok(());
        }
        return not_ready(
            "archive_mode is off, so the WAL that a backup needs would never arrive",
            "set archive_mode = on and archive_command as `pgkeep init` prints them, then restart PostgreSQL; \
             or run `pgkeep wal receive`, which needs neither",
        );
    };
    if !slot.active {
        let name = &slot.name;
        let text = format!(
            "nobody receives from slot {name}: the backup waits for its WAL until `pgkeep wal receive` runs"
        );
        monitor.event(Event::Warning(text));
    }
    Ok(())
}

/// Whether the repository has the server's WAL up to a segment ago.
async fn has_come(
    repository: &Repository,
    cluster: &ClusterName,
    facts: &ServerFacts,
) -> Result<bool, RepositoryError> {
    let (Some(timeline), Some(lsn)) = (facts.timeline, facts.lsn) else { return Ok(false) };
    let size = facts.wal_segment_size;
    let newest = repository.newest_wal(cluster, timeline, |segment| segment.fits(size)).await?;
    let segments = newest.whole.into_iter().chain(newest.parts.last().map(|part| part.segment));
    let now = SegmentName::containing(timeline, lsn, size).number(size);
    Ok(segments.max().is_some_and(|segment| segment.number(size) + 1 >= now))
}

pub(crate) fn identity(facts: &ServerFacts, control: &ControlFile) -> Identity {
    Identity {
        system_identifier: control.system_identifier,
        segment_size: control.wal_segment_size.bytes(),
        major: u32::from(facts.major.number()),
        logical: false,
    }
}
