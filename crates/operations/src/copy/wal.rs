//! Copying files of the archive, a few at a time, each whole in memory.

use std::sync::Arc;

use futures_util::StreamExt as _;
use pg::wal::FileName;
use repository::Repository;
use repository::archive::{ArchiveError, InMemory, WalName};

use super::{CopyError, CopyReport, CopyRequest, Plan};
use crate::failpoint;
use crate::monitor::{Event, Monitor};

/// Copies the WAL of the plan, and the notes of gaps.
pub(crate) async fn copy(
    source: &Arc<Repository>,
    target: &Arc<Repository>,
    plan: &Plan,
    request: &CopyRequest,
    monitor: &dyn Monitor,
    report: &mut CopyReport,
) -> Result<(), CopyError> {
    let cluster = &request.cluster;
    let size = u64::from(plan.identity.segment_size);
    monitor.event(Event::Total { bytes: plan.wal_files * size, files: plan.wal_files });
    // Larger segments one at a time: each is whole in memory.
    let at_once = if size <= 64 << 20 { request.workers.clamp(1, 4) } else { 1 };
    let files = plan.wal.iter().map(|name| one(source, target, request, *name));
    let mut files = futures_util::stream::iter(files).buffered(at_once);
    let mut names = plan.wal.iter();
    while let (Some(copied), Some(name)) = (files.next().await, names.next()) {
        match copied {
            Ok(()) => report.wal_files += 1,
            // It went meanwhile: parts do when their segment is whole, and the next run finds that.
            Err(CopyError::SourceWal(ArchiveError::Absent { .. })) => {}
            Err(error) if error.is_damaged_source() => {
                report.damaged_wal.push(format!("{name}: {}", error.in_full()));
            }
            Err(error) => return Err(error),
        }
        failpoint::reach("copy.wal");
        monitor.event(Event::Advanced { bytes: size });
    }
    for (gap, note) in source.gaps(cluster).await.map_err(CopyError::Source)? {
        target.record_gap(cluster, &gap, &note).await.map_err(CopyError::TargetWal)?;
    }
    let mut old = Vec::new();
    for part in &plan.old_parts {
        let whole = target.has_wal(cluster, &FileName::Segment(part.segment)).await;
        if whole.map_err(CopyError::Target)? {
            old.push(*part);
        }
    }
    target.remove_parts(cluster, &old).await.map_err(|error| CopyError::Target(error.into()))
}

async fn one(
    source: &Arc<Repository>,
    target: &Arc<Repository>,
    request: &CopyRequest,
    name: WalName,
) -> Result<(), CopyError> {
    let cluster = &request.cluster;
    let fetched = source.fetch_wal_into(cluster, name, 1, Vec::new()).await.map_err(CopyError::SourceWal)?;
    let content = Arc::new(InMemory(fetched.sink, fetched.info));
    target.store_wal_file(cluster, name, content, 1).await.map_err(CopyError::TargetWal)?;
    Ok(())
}
