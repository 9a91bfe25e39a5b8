//! What only tests have a backup do.

use std::time::Duration;

use pg::version::Major;
use pg::wal::summary::ChangedBlocks;

use super::collect::PARTIAL_TIME;

/// What only tests set.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Least time between two partial manifests.
    pub partial_time: Duration,
    /// Believe the WAL summaries of every minor; of effect only in builds with debug assertions.
    pub any_minor: bool,
    /// Makes summaries say something else.
    pub alter_summary: Option<fn(&mut ChangedBlocks)>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { partial_time: PARTIAL_TIME, any_minor: false, alter_summary: None }
    }
}

impl Tuning {
    /// Whether the WAL summaries that a server of this version wrote are used.
    pub(super) fn believes(&self, version_num: u32) -> bool {
        Major::writes_whole_summaries(version_num) || (cfg!(debug_assertions) && self.any_minor)
    }
}
