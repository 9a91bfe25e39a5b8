//! Whether storing works, and since when it does not.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pg::wal::SegmentSize;
use tokio::time::Instant;

use super::store::Store;

/// How long nothing may have been stored, although something is due, until the storage counts as down. A server that is to
/// shut down waits until we have flushed everything, and `pg_ctl` gives up waiting for it after 60 s; a storage that restarts
/// is mostly back sooner, and then the segment need not be sent again.
const PATIENCE: Duration = Duration::from_secs(30);
/// A storage that takes a large segment at this rate is slow, and not down.
const SLOWEST_BYTES_PER_SECOND: u32 = 4 << 20;

/// See the module.
pub(super) struct Health(Mutex<Row>);

struct Row {
    /// Failures since the last success.
    failures: u32,
    worked_at: Instant,
    /// Since when the repository did not answer whoever wants to begin.
    silent_since: Option<Instant>,
}

impl Health {
    /// Nothing has failed yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Row { failures: 0, worked_at: Instant::now(), silent_since: None }))
    }

    /// Something could not be stored; returns how many failures in a row came before this one.
    pub(super) fn failed(&self) -> u32 {
        let mut row = self.lock();
        row.failures += 1;
        row.failures - 1
    }

    /// Something was stored; true if that ends a row of failures.
    pub(super) fn worked(&self) -> bool {
        let mut row = self.lock();
        row.worked_at = Instant::now();
        std::mem::take(&mut row.failures) > 0
    }

    /// Whether the repository answers whoever wants to begin.
    pub(super) fn answers(&self, answers: bool) {
        let mut row = self.lock();
        row.silent_since = if answers { None } else { row.silent_since.or_else(|| Some(Instant::now())) };
    }

    fn lock(&self) -> MutexGuard<'_, Row> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// How long nothing was stored though something is due, or nothing could be begun, when that is so long that the storage
    /// counts as down. Failures are not counted: a storage that hangs does not fail, and one that fails is tried for minutes
    /// before that is told.
    pub(super) fn down_for(&self) -> Option<Duration> {
        let now = Instant::now();
        let due = self.intake.overdue(now).saturating_sub(self.max_lag);
        let since = |at: Instant| now.saturating_duration_since(at);
        let row = self.health.lock();
        let silent = due.min(since(row.worked_at)).max(row.silent_since.map_or(Duration::ZERO, since));
        (silent >= patience(self.intake.size())).then_some(silent)
    }
}

fn patience(size: SegmentSize) -> Duration {
    PATIENCE + Duration::from_secs((size.bytes() / SLOWEST_BYTES_PER_SECOND).into())
}
