//! WAL summaries: what the server notes of the blocks that a stretch of WAL changed, from 17 on with `summarize_wal`.
//!
//! A [`SummaryRange`] names one file in `pg_wal/summaries`, [`covers`] says whether several leave no hole, [`read`] puts
//! what one holds into [`ChangedBlocks`].
//!
//! The files are read and not the answers of `pg_wal_summary_contents`: that function says nothing of a relation with a
//! new length and no changed block, nor of a database that was copied file by file (`walsummaryfuncs.c`: the limit block is
//! told only beside blocks). Both mean that what a backup has of it is of no use.

mod changed;
mod file;

use crate::{Lsn, TimelineId};

pub use changed::{ChangedBlocks, FileChanges, RelationKey};
pub use file::{SummaryError, read};

/// Where the files are, below the data directory.
pub const SUMMARY_DIRECTORY: &str = "pg_wal/summaries";

/// The stretch of WAL that one summary is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SummaryRange {
    /// On which timeline.
    pub timeline: TimelineId,
    /// Records from here.
    pub start: Lsn,
    /// Up to here, which the next one begins with.
    pub end: Lsn,
}

impl SummaryRange {
    /// The file's path below the data directory. Source: `OpenWalSummaryFile`, `backup/walsummary.c`.
    pub fn path(&self) -> String {
        let Self { timeline, start, end } = self;
        format!("{SUMMARY_DIRECTORY}/{:08X}{:016X}{:016X}.summary", timeline.get(), start.get(), end.get())
    }
}

/// Those of `ranges` that tell of the WAL of `timeline` between `start` and `end`, in order; or the first place that none
/// tells of.
pub fn covers(
    ranges: &[SummaryRange],
    timeline: TimelineId,
    start: Lsn,
    end: Lsn,
) -> Result<Vec<SummaryRange>, Lsn> {
    let overlaps =
        |range: &&SummaryRange| range.timeline == timeline && range.end > start && range.start < end;
    let mut needed: Vec<_> = ranges.iter().filter(overlaps).copied().collect();
    needed.sort();
    let mut reached = start;
    for range in &needed {
        if range.start > reached {
            return Err(reached);
        }
        reached = reached.max(range.end);
    }
    if reached < end { Err(reached) } else { Ok(needed) }
}

#[cfg(test)]
mod tests;
