//! Waiting for the WAL that a backup needs.

use std::time::{Duration, Instant};

use pg::Lsn;
use pg::wal::{FileName, SegmentName, SegmentSize};
use repository::archive::covered;
use repository::{ClusterName, Repository};

use super::BackupError;

/// Waits until all WAL from the segment `from` to the position `stop` is in the repository; a successful backup has all of
/// it. The last segment need not be whole: a standby's server does not end it, and parts of it are enough.
pub(crate) async fn wait(
    repository: &Repository,
    cluster: &ClusterName,
    from: SegmentName,
    stop: Lsn,
    size: SegmentSize,
    timeout: Duration,
) -> Result<(), BackupError> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(20);
    let (mut next, last) = (from, SegmentName::last_before(from.timeline, stop, size));
    loop {
        if repository.has_wal(cluster, &FileName::Segment(next)).await? {
            if next == last {
                return Ok(());
            }
            next = next.next(size).expect("a later segment was asked for");
            continue;
        }
        if next == last {
            let parts = repository.parts_of(cluster, &next).await?;
            if next.start(size) + u64::from(covered(&parts)) >= stop.get() {
                return Ok(());
            }
        }
        if began.elapsed() >= timeout {
            return Err(BackupError::WalMissing { missing: next, waited: began.elapsed() });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
