//! Waiting for the WAL that a backup needs.

use std::time::{Duration, Instant};

use pg::wal::{FileName, SegmentName, SegmentSize};
use repository::{ClusterName, Repository, RepositoryError};
use storage::StorageError;

use super::BackupError;

/// Waits until every segment from `from` to `to` is in the repository; a successful backup has all of them.
pub(crate) async fn wait(
    repository: &Repository,
    cluster: &ClusterName,
    from: SegmentName,
    to: SegmentName,
    size: SegmentSize,
    timeout: Duration,
) -> Result<(), BackupError> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(20);
    let mut next = from;
    loop {
        match repository
            .storage()
            .size(&repository::layout::wal_file(cluster, &FileName::Segment(next)))
            .await
        {
            Ok(_) if next == to => return Ok(()),
            Ok(_) => {
                next = next.next(size).expect("a later segment was asked for");
                continue;
            }
            Err(StorageError::NotFound { .. }) => {}
            Err(error) => return Err(RepositoryError::from(error).into()),
        }
        if began.elapsed() >= timeout {
            return Err(BackupError::WalMissing { missing: next, waited: began.elapsed() });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
