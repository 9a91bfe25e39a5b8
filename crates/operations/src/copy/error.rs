//! Why something was not copied.

use pg::wal::SegmentName;
use repository::archive::ArchiveError;
use repository::chunk::CodecError;
use repository::{ClusterName, RepositoryError};

use crate::catalogue::CatalogueError;

/// Why something was not copied. What was copied until then is right, and the next run goes on.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A repository is not copied into itself.
    #[error("both are the same repository")]
    SameRepository,
    /// The source has nothing of the cluster.
    #[error("the repository that is copied from has no cluster {cluster}")]
    NoCluster {
        /// The cluster.
        cluster: ClusterName,
    },
    /// The target's backup of this id is another.
    #[error("the repository that is copied into has another backup {id}")]
    Conflict {
        /// The id.
        id: String,
    },
    /// WAL that a backup needs is in neither repository.
    #[error("WAL segment {segment}, which the backup needs, is not there to be copied")]
    WalMissing {
        /// The first segment that is missing.
        segment: SegmentName,
    },
    /// A backup that was just taken is not in the other repository, and everything else went well.
    #[error("backup {id} was not copied: {why}")]
    LeftBehind {
        /// The backup.
        id: String,
        /// Why.
        why: String,
    },
    /// What was asked for is not there.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// Reading failed.
    #[error("cannot read the repository that is copied from")]
    Source(#[source] RepositoryError),
    /// Reading WAL failed.
    #[error("cannot read WAL of the repository that is copied from")]
    SourceWal(#[source] ArchiveError),
    /// Writing failed, or reading what is there already.
    #[error("cannot write into the repository that is copied into")]
    Target(#[source] RepositoryError),
    /// Writing WAL failed, or the stream there belongs to another cluster.
    #[error("cannot write WAL into the repository that is copied into")]
    TargetWal(#[source] ArchiveError),
    /// A compressed chunk did not survive its check.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl CopyError {
    /// True if one backup or file of the source is damaged, which says nothing against the others.
    pub(crate) fn is_damaged_source(&self) -> bool {
        match self {
            Self::WalMissing { .. } => true,
            Self::Source(error) | Self::SourceWal(ArchiveError::Repository(error)) => error.is_damage(),
            Self::SourceWal(ArchiveError::Absent { .. }) => true,
            _ => false,
        }
    }

    /// The error and its causes in one line.
    pub(crate) fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(&format!(": {cause}"));
            next = cause.source();
        }
        text
    }
}
