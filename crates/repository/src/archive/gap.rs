//! Gaps: WAL that the server no longer had when it was asked for. Written down once and never changed; whether one still
//! matters is seen from what is stored.

use pg::{Lsn, TimelineId};
use prost::Message;
use storage::{ObjectName, StorageError};

use super::ArchiveError;
use crate::layout::{self, ClusterName};
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Header, Kind, MAX_HEADER_LEN, SealError, Sealer};

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
        let mut note = note.clone();
        while note.why.len() > WHY_MAX {
            note.why.pop();
        }
        let name = layout::gap(cluster, gap);
        let sealer = Sealer::new(self.access().writer(), Kind::Gap, &name, &note.encode_to_vec());
        match self.storage().create(&name, &[bytes::Bytes::copy_from_slice(sealer.header())]).await {
            Ok(()) | Err(StorageError::NameTaken { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Every gap that was written down, in order. One whose note is damaged is told of by its name alone: better a gap too many
    /// than one too few.
    pub async fn gaps(&self, cluster: &ClusterName) -> Result<Vec<(Gap, GapNote)>, RepositoryError> {
        let mut gaps = Vec::new();
        for entry in self.storage().list(&layout::gaps(cluster)).await? {
            let Some(gap) = layout::parse_gap(cluster, &entry.name) else { continue };
            let note = match self.storage().read_all(&entry.name, MAX_HEADER_LEN as u64).await {
                Ok(object) => self.read_note(&entry.name, &object),
                Err(StorageError::NotFound { .. }) => continue,
                Err(error @ StorageError::TooLarge { .. }) => Err(error.into()),
                Err(error) => return Err(error.into()),
            };
            let unusable = |error| GapNote { noticed_us: 0, why: format!("its note is unusable: {error}") };
            gaps.push((gap, note.unwrap_or_else(unusable)));
        }
        gaps.sort_by_key(|(gap, _)| *gap);
        Ok(gaps)
    }

    fn read_note(&self, name: &ObjectName, object: &[u8]) -> Result<GapNote, RepositoryError> {
        let header = Header::parse(self.access().writer(), Kind::Gap, name, object)?;
        if header.len != object.len() {
            return Err(SealError::Length { name: name.clone() }.into());
        }
        let bad = |_| SealError::Content { name: name.clone(), what: "note of a gap" };
        Ok(GapNote::decode(&header.public[..]).map_err(bad)?)
    }
}
