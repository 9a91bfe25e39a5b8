//! Why a restore was refused or failed.

use std::path::PathBuf;

use jiff::Timestamp;
use pg::Lsn;
use pg::recovery::RecoveryTarget;
use repository::{PackId, RepositoryError};

use crate::reachable::ReachableError;

/// Why a restore was refused (before anything was written) or failed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup has rows and no files.
    #[error(
        "backup {id} is a logical one: it has rows and definitions, and no data directory can be made of it"
    )]
    Logical {
        /// The backup.
        id: String,
    },
    /// There is no backup of this cluster.
    #[error("there is no backup of cluster {cluster}")]
    NoBackup {
        /// The cluster's name.
        cluster: String,
    },
    /// There is no backup with this id.
    #[error("there is no backup {id}")]
    UnknownBackup {
        /// As asked for.
        id: String,
    },
    /// The backup's manifest is damaged.
    #[error("the manifest of backup {id} cannot be read")]
    DamagedManifest {
        /// The backup.
        id: String,
        /// The damage.
        source: RepositoryError,
    },
    /// Every backup ends after the target, or lies on another past.
    #[error("no backup ends before {target}")]
    TargetTooEarly {
        /// The target.
        target: RecoveryTarget,
        /// The earliest moment that can be reached.
        earliest: Option<(Lsn, Option<Timestamp>)>,
    },
    /// The chosen backup ends after the target.
    #[error("backup {id} ends after {target}")]
    BackupTooLate {
        /// The backup.
        id: String,
        /// The target.
        target: RecoveryTarget,
        /// The backup's end.
        end: (Lsn, Option<Timestamp>),
    },
    /// The target lies past the end of the WAL, or of its continuous part.
    #[error("the WAL in the repository does not reach {target}{}", hole_suffix(.hole))]
    TargetTooLate {
        /// The target.
        target: RecoveryTarget,
        /// The latest moment that can be reached.
        latest: (Lsn, Option<Timestamp>),
        /// What is missing there, if later WAL is stored.
        hole: Option<String>,
    },
    /// WAL without which the backup cannot become consistent is missing.
    #[error("WAL that backup {id} itself needs is missing: {what}")]
    BackupWalMissing {
        /// The backup.
        id: String,
        /// What is missing.
        what: String,
    },
    /// It could not be found out what is reachable.
    #[error(transparent)]
    Reachable(#[from] ReachableError),
    /// The target directory holds something.
    #[error("{} is not empty", .path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A delta restore needs the directory of the same cluster.
    #[error("{} cannot be restored over: {what}", .path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// What is in the way.
        what: String,
    },
    /// A tablespace has no place to go to.
    #[error("tablespace {oid} cannot be restored to {}: {what}", .path.display())]
    Tablespace {
        /// Its OID.
        oid: u32,
        /// Where it would have gone.
        path: PathBuf,
        /// What is in the way.
        what: String,
    },
    /// A mapping names a tablespace that the backup does not have.
    #[error("the backup has no tablespace {text}")]
    UnknownTablespace {
        /// As given: OID or old location.
        text: String,
    },
    /// Running as root, and nobody to give the files to.
    #[error("user {owner:?}, who owned the cluster, does not exist here")]
    UnknownOwner {
        /// The owner's name.
        owner: String,
    },
    /// Too little space.
    #[error("{} has {free} bytes free, the backup needs {needed}", .path.display())]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// This program does not know the backup's major version.
    #[error("the backup is of PostgreSQL {version_num}, which this program does not know")]
    UnknownMajor {
        /// `server_version_num`.
        version_num: u32,
    },
    /// Something on disk failed.
    #[error("{action} {}", .path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A pack that the backup needs failed.
    #[error("pack {pack}, needed for {needed_for}")]
    Pack {
        /// The pack.
        pack: PackId,
        /// One of the files that need it.
        needed_for: String,
        /// Why.
        source: RepositoryError,
    },
}

impl RestoreError {
    pub(crate) fn disk(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { action, path, source }
    }
}

fn hole_suffix(hole: &Option<String>) -> String {
    hole.as_ref().map(|hole| format!(": {hole}")).unwrap_or_default()
}
