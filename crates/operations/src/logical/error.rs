//! Why a logical backup was not made or not brought back.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use repository::RepositoryError;
use repository::archive::ArchiveError;
use repository::chunk::CodecError;
use server::connection::ServerError;
use server::programs::ProgramError;

/// Why a logical backup was not made or not brought back; nothing that was stored before is harmed by any of these.
#[derive(Debug, thiserror::Error)]
pub enum LogicalError {
    /// The server could not be asked, or refused.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A statement about one relation failed.
    #[error("{action} {relation}")]
    Relation {
        /// What was being done.
        action: &'static str,
        /// With which.
        relation: String,
        /// Why it failed.
        source: ServerError,
    },
    /// PostgreSQL's own program is missing or failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Its output could not be read, or it did not take its input.
    #[error("{action}")]
    Pipe {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The stream is bound to something else.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A compressed chunk did not survive its check.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The role would give a backup with holes.
    #[error("the role cannot read everything: {}", .what.join("; "))]
    Incomplete {
        /// What it cannot read, and why.
        what: Vec<String>,
    },
    /// Between us and the server stands something that exchanges sessions.
    #[error("{pooler} stands before the server")]
    Pooler {
        /// Its name.
        pooler: String,
        /// The way past it.
        hint: String,
    },
    /// Somebody holds a lock against readers.
    #[error("a table was locked against readers for longer than {} s", .waited.as_secs_f64())]
    Locked {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Tables were changed faster than a moment could be held.
    #[error("tables were changed between a snapshot and its locks, {tries} times in a row")]
    Restless {
        /// How often it was tried.
        tries: u32,
    },
    /// What was stored is not what should have been.
    #[error("the backup is not whole: {what}")]
    NotWhole {
        /// What is wrong with it.
        what: String,
    },
    /// Stored definitions are in a form that this program does not know.
    #[error("the definitions in the backup cannot be taken apart: {what}")]
    Definitions {
        /// What is odd.
        what: String,
    },
    /// The file of an export could not be written.
    #[error("{action}")]
    Export {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// There is a file where an export should go.
    #[error("{} is there already", .path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The target has something in it.
    #[error("database {database} has {relations} tables, views and sequences")]
    NotEmpty {
        /// The target.
        database: String,
        /// How many.
        relations: u64,
    },
    /// Rows would be added to rows.
    #[error("there are rows already in {}", .what.join(", "))]
    Filled {
        /// The tables.
        what: Vec<String>,
    },
    /// What was asked for does not fit what is there.
    #[error("{what}")]
    Choice {
        /// Why not.
        what: String,
    },
    /// Another part failed, and says why.
    #[error("reading was stopped")]
    Stopped,
}

impl LogicalError {
    /// Names the relation that a statement was about.
    pub(crate) fn relation(
        action: &'static str,
        relation: impl Into<String>,
    ) -> impl FnOnce(ServerError) -> Self {
        let relation = relation.into();
        move |source| Self::Relation { action, relation, source }
    }

    /// True if the session was lost, and another one may do the same.
    pub(crate) fn is_lost_session(&self) -> bool {
        matches!(self, Self::Server(error) | Self::Relation { source: error, .. } if error.is_transient())
    }
}
