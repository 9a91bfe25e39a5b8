//! Gaps: WAL that the server no longer had when it was asked for. Written down once and never changed; whether one still
//! matters is seen from what is stored.

use pg::{Lsn, TimelineId};
use prost::Message;
use storage::StorageError;

use super::ArchiveError;
use crate::layout::{self, ClusterName};
use crate::note::shortened;
use crate::repository::{Repository, RepositoryError};
use crate::seal::Kind;

/// WAL that could not be had.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Gap {
    /// The timeline that was received.
    pub timeline: TimelineId,
    /// The first byte that is missing.
    pub from: Lsn,
    /// The first byte that came again.
    pub to: Lsn,
}

/// What is noted of a gap.
#[derive(Clone, PartialEq, Message)]
pub struct GapNote {
    /// When it was noticed, microseconds since 1970 by that host's clock.
    #[prost(sint64, tag = "1")]
    pub noticed_us: i64,
    /// Why, for people.
    #[prost(string, tag = "2")]
    pub why: String,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "from {} to {} on timeline {}", self.from, self.to, self.timeline)
    }
}

/// No header has room for more.
const WHY_MAX: usize = 200;

impl Repository {
    /// Writes a gap down. One that is known already stays as it is.
    pub async fn record_gap(
        &self,
        cluster: &ClusterName,
        gap: &Gap,
        note: &GapNote,
    ) -> Result<(), ArchiveError> {
        let note = GapNote { why: shortened(&note.why, WHY_MAX).to_owned(), ..*note };
        match self.write_note(Kind::Gap, &layout::gap(cluster, gap), &note).await {
            Ok(()) | Err(RepositoryError::Storage(StorageError::NameTaken { .. })) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Every gap that was written down, in order. One whose note is damaged is told of by its name alone: better a gap too many
    /// than one too few.
    pub async fn gaps(&self, cluster: &ClusterName) -> Result<Vec<(Gap, GapNote)>, RepositoryError> {
        let mut gaps = Vec::new();
        for entry in self.storage().list(&layout::gaps(cluster)).await? {
            let Some(gap) = layout::parse_gap(cluster, &entry.name) else { continue };
            let unusable = |error| GapNote { noticed_us: 0, why: format!("its note is unusable: {error}") };
            match self.read_note(Kind::Gap, &entry.name).await {
                Ok(note) => gaps.push((gap, note)),
                Err(RepositoryError::Storage(StorageError::NotFound { .. })) => {}
                Err(error @ RepositoryError::Storage(StorageError::TooLarge { .. })) => {
                    gaps.push((gap, unusable(error)))
                }
                Err(error @ RepositoryError::Storage(_)) => return Err(error),
                Err(error) => gaps.push((gap, unusable(error))),
            }
        }
        gaps.sort_by_key(|(gap, _)| *gap);
        Ok(gaps)
    }
}
