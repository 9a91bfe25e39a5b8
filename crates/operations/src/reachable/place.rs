//! What a manifest says of its backup's place in the WAL.

use pg::wal::{SegmentName, SegmentSize};
use pg::{Lsn, TimelineId};
use repository::manifest::Manifest;

/// Where in the WAL a backup was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackupPlace {
    pub(crate) timeline: TimelineId,
    pub(crate) start: Lsn,
    pub(crate) stop: Lsn,
    pub(crate) size: SegmentSize,
}

impl BackupPlace {
    /// What the manifest says; what of that cannot be.
    pub(crate) fn of(manifest: &Manifest) -> Result<Self, &'static str> {
        let span = manifest.span();
        Ok(Self {
            size: SegmentSize::new(manifest.server().wal_segment_size).map_err(|_| "WAL segment size")?,
            timeline: TimelineId::new(span.timeline).ok_or("timeline")?,
            start: Lsn::new(span.start_lsn).ok_or("start LSN")?,
            stop: Lsn::new(span.stop_lsn).ok_or("stop LSN")?,
        })
    }

    /// The segment that the backup begins in.
    pub(crate) fn first_segment(&self) -> SegmentName {
        SegmentName::containing(self.timeline, self.start, self.size)
    }
}
