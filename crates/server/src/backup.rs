//! A base backup held open.
//!
//! Between start and stop the server writes what makes a copy of its changing files consistent. The backup belongs to
//! one session: when that is lost the server abandons the backup, and so must we.

use jiff::Timestamp;
use pg::label::{BackupLabel, LabelError};
use pg::version::BackupFunctions;
use pg::wal::{SegmentName, SegmentSize};
use pg::{Lsn, Major, TimelineId};

use crate::connection::{Connection, ServerError};
use crate::facts::ServerFacts;

/// Why a backup could not be started or finished. After any of these there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The standby became a primary while its backup ran; such a backup cannot be finished.
    #[error("the standby was promoted during the backup")]
    Promoted {
        /// What the server said at the stop.
        #[source]
        source: ServerError,
    },
    /// Nobody knows how this version does backups.
    #[error("start a backup: PostgreSQL {major} is not supported")]
    UnsupportedMajor {
        /// The server's.
        major: Major,
    },
    /// The label would not fit on its line of `backup_label`.
    #[error("start a backup: the label {label:?} is longer than 200 bytes or holds a control character")]
    InvalidLabel {
        /// As given.
        label: String,
    },
    /// The session ended, and the backup with it.
    #[error("the session that held the backup was lost")]
    SessionLost {
        /// How.
        #[source]
        source: ServerError,
    },
    /// The server refused.
    #[error("{what} the backup")]
    Refused {
        /// `start` or `stop`.
        what: &'static str,
        /// How.
        #[source]
        source: ServerError,
    },
    /// The server returned a label file that cannot be read.
    #[error("read the backup label that the server returned")]
    Label(#[from] LabelError),
    /// Start and stop belong to different stretches of WAL.
    #[error(
        "the backup is torn: it started at {start} on timeline {started_on}, but the server says {found}"
    )]
    Torn {
        /// Where the backup started.
        start: Lsn,
        /// On which timeline.
        started_on: TimelineId,
        /// What does not fit that.
        found: String,
    },
}

impl BackupError {
    /// True when another attempt, from the start, may well succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::SessionLost { .. } | Self::Torn { .. } | Self::Promoted { .. } => true,
            Self::Refused { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    fn of(what: &'static str) -> impl Fn(ServerError) -> Self {
        move |source| match source {
            ServerError::ConnectionLost { .. } => Self::SessionLost { source },
            source => Self::Refused { what, source },
        }
    }
}

/// How a backup began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Where replay of this backup begins.
    pub start_lsn: Lsn,
    /// The first segment that a restore needs.
    pub start_segment: SegmentName,
    /// The timeline being written.
    pub timeline: TimelineId,
    /// The size of the cluster's segments.
    pub wal_segment_size: SegmentSize,
    /// The server's clock just before the start.
    pub at: Timestamp,
    /// Whether the server is a standby. It replays the timeline, and somebody else archives its WAL.
    pub from_standby: bool,
}

/// How a backup ended, and what must be stored beside its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Up to here a restore must replay before it is consistent.
    pub stop_lsn: Lsn,
    /// The last segment that a restore needs: the one that holds the byte before `stop_lsn`.
    pub stop_segment: SegmentName,
    /// The content of `backup_label`, byte for byte. A restore without it is silently corrupt.
    pub label_file: Vec<u8>,
    /// The content of `tablespace_map`; empty when the cluster has no tablespaces of its own.
    pub tablespace_map: Vec<u8>,
    /// The label file, read.
    pub label: BackupLabel,
    /// The server's clock just after the stop.
    pub at: Timestamp,
}

/// A backup in progress. Dropping it ends the session, whereupon the server abandons the backup.
#[derive(Debug)]
pub struct BackupSession {
    connection: Connection,
    functions: BackupFunctions,
    started: Started,
}

impl BackupSession {
    /// Starts a backup on this session, which it keeps until the end.
    ///
    /// Waits for a checkpoint: `fast` has it written at once, otherwise it is spread over minutes to spare the disks
    /// (`checkpoint_completion_target`). The label is for people, 200 bytes at most. That `wal_level` suffices is the
    /// server's to check, and `full_page_writes` may be off: a running backup forces it (`xlog.c`, `runningBackups`).
    ///
    /// On a standby the backup begins at its last restart point, and `full_page_writes` of the primary is the server's to check.
    pub fn start(connection: Connection, label: &str, fast: bool) -> Result<Self, BackupError> {
        if label.len() > 200 || label.chars().any(char::is_control) {
            return Err(BackupError::InvalidLabel { label: label.to_owned() });
        }
        let starting = BackupError::of("start");
        connection.remove_timeouts().map_err(&starting)?;
        let facts = ServerFacts::read(&connection).map_err(&starting)?;
        let Some(major) = facts.major.facts() else {
            return Err(BackupError::UnsupportedMajor { major: facts.major });
        };
        // The label file and above all the tablespace map hold paths, which are bytes: they must not be converted.
        for (name, value) in [("client_encoding", "SQL_ASCII"), ("search_path", "")] {
            connection
                .execute("SELECT pg_catalog.set_config($1, $2, false)", &[name, value])
                .map_err(&starting)?;
        }
        let fast = if fast { "true" } else { "false" };
        let sql = match major.backup_functions {
            BackupFunctions::Exclusivity => {
                "SELECT pg_catalog.pg_start_backup($1, $2::pg_catalog.bool, false)"
            }
            BackupFunctions::Renamed => "SELECT pg_catalog.pg_backup_start($1, $2::pg_catalog.bool)",
        };
        let rows = connection.query_one(sql, &[label, fast]).map_err(&starting)?;
        let start_lsn: Lsn = rows.first().and_then(|row| row.parse(0)).map_err(&starting)?;
        let timeline = read_timeline(&connection, facts.in_recovery).map_err(&starting)?;
        let started = Started {
            start_lsn,
            start_segment: SegmentName::containing(timeline, start_lsn, facts.wal_segment_size),
            timeline,
            wal_segment_size: facts.wal_segment_size,
            at: facts.server_time,
            from_standby: facts.in_recovery,
        };
        Ok(Self { connection, functions: major.backup_functions, started })
    }

    /// How it began.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// The session, for other questions while the backup runs.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Asks the server for a sign of life; worth doing now and then, since a lost session makes all further work vain.
    pub fn check_alive(&self) -> Result<(), BackupError> {
        self.connection.check_alive().map_err(|source| BackupError::SessionLost { source })
    }

    /// Stops the backup. There is no second try: after an error the backup is void.
    ///
    /// With `wait_for_archive` the server does not answer before its `archive_command` has taken the last segment;
    /// callers that watch the repository themselves do not need that.
    pub fn stop(self, wait_for_archive: bool) -> Result<Stopped, BackupError> {
        let stopping = BackupError::of("stop");
        let wait = if wait_for_archive { "true" } else { "false" };
        let sql = match self.functions {
            BackupFunctions::Exclusivity => {
                "SELECT s.lsn, s.labelfile, s.spcmapfile, (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1e6)::int8
                 FROM pg_catalog.pg_stop_backup(false, $1::pg_catalog.bool) s"
            }
            BackupFunctions::Renamed => {
                "SELECT s.lsn, s.labelfile, s.spcmapfile, (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1e6)::int8
                 FROM pg_catalog.pg_backup_stop($1::pg_catalog.bool) s"
            }
        };
        let rows = self.connection.query_one(sql, &[wait]).map_err(|error| self.refused_stop(error))?;
        let row = rows.first().map_err(&stopping)?;
        let stop_lsn: Lsn = row.parse(0).map_err(&stopping)?;
        let label_file = row.bytes(1).unwrap_or_default().to_vec();
        let label = BackupLabel::parse(&String::from_utf8_lossy(&label_file))?;
        self.check_span(&label, stop_lsn)?;
        if self.started.from_standby {
            self.check_timeline().map_err(&stopping)??;
        }
        let size = self.started.wal_segment_size;
        let at = row.parse(3).map(Timestamp::from_microsecond).map_err(&stopping)?;
        Ok(Stopped {
            stop_lsn,
            stop_segment: SegmentName::last_before(self.started.timeline, stop_lsn, size),
            label_file,
            tablespace_map: row.bytes(2).unwrap_or_default().to_vec(),
            label,
            at: at.unwrap_or(self.started.at),
        })
    }

    /// A standby that is none any more cannot finish what it began, and says so in its own language.
    fn refused_stop(&self, error: ServerError) -> BackupError {
        let promoted = || {
            let rows = self.connection.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).ok()?;
            rows.first().ok()?.boolean(0).ok().map(|in_recovery| !in_recovery)
        };
        if self.started.from_standby && error.sqlstate().is_some() && promoted() == Some(true) {
            return BackupError::Promoted { source: error };
        }
        BackupError::of("stop")(error)
    }

    /// A standby follows its primary to another timeline, on which a restore would need WAL that this backup's span does not
    /// name.
    fn check_timeline(&self) -> Result<Result<(), BackupError>, ServerError> {
        let sql = "SELECT r.min_recovery_end_timeline FROM pg_catalog.pg_control_recovery() r";
        let timeline = TimelineId::new(self.connection.query_one(sql, &[])?.first()?.parse(0)?);
        let Started { start_lsn: start, timeline: started_on, .. } = self.started;
        Ok(match timeline {
            Some(timeline) if timeline != started_on => {
                let found = format!("it stopped on timeline {timeline}");
                Err(BackupError::Torn { start, started_on, found })
            }
            _ => Ok(()),
        })
    }

    fn check_span(&self, label: &BackupLabel, stop_lsn: Lsn) -> Result<(), BackupError> {
        let Started { start_lsn, timeline, .. } = self.started;
        let torn = |found: String| Err(BackupError::Torn { start: start_lsn, started_on: timeline, found });
        if label.start_lsn != start_lsn || label.start_timeline != timeline {
            return torn(format!("{} on timeline {} in its label", label.start_lsn, label.start_timeline));
        }
        if stop_lsn < start_lsn {
            return torn(format!("it stopped at {stop_lsn}"));
        }
        Ok(())
    }
}

/// The timeline that the backup begins on. Only the timeline of `pg_walfile_name` means the same on every version; a standby
/// begins at its restart point, which the control file tells.
fn read_timeline(connection: &Connection, in_recovery: bool) -> Result<TimelineId, ServerError> {
    if in_recovery {
        let sql = "SELECT c.timeline_id FROM pg_catalog.pg_control_checkpoint() c";
        let timeline = TimelineId::new(connection.query_one(sql, &[])?.first()?.parse(0)?);
        return timeline.ok_or_else(|| ServerError::UnexpectedAnswer { what: "timeline 0".to_owned() });
    }
    let sql = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn())";
    let rows = connection.query_one(sql, &[])?;
    let segment: SegmentName = rows.first()?.parse(0)?;
    Ok(segment.timeline)
}

#[cfg(test)]
mod tests;
