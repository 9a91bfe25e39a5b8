//! Carrying a backup that was just taken into a further repository, with whatever else that lacks.

use std::sync::Arc;

use repository::Repository;
use serde::Serialize;

use super::{CopyError, CopyReport, CopyRequest, execute, plan};
use crate::failpoint;
use crate::monitor::Monitor;

/// What came into a further repository, and what came back.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Carried {
    /// What was copied.
    #[serde(flatten)]
    pub report: CopyReport,
    /// Backups that only the further repository had, since the first could not be written, and that the first has now.
    pub brought_back: Vec<String>,
}

/// Carries backup `id` from the repository that took it, `before` which that had `newest`, into another, behind all that the
/// other lacks. Backups that the other alone has and that are newer than `newest` were taken there while this one could not
/// be written: they come back. Older ones do not: they may have been expired here, and be kept for longer there.
pub async fn carry(
    taken: &Arc<Repository>,
    other: &Arc<Repository>,
    id: &str,
    newest: Option<&str>,
    request: &CopyRequest,
    monitor: &dyn Monitor,
) -> Result<Carried, CopyError> {
    failpoint::reach("carry.begun");
    let lacking = plan(taken, other, request).await?;
    let report = execute(taken, other, &lacking, request, monitor).await?;
    let cluster = &request.cluster;
    let there = other.backup_ids(cluster).await.map_err(CopyError::Target)?;
    if !there.iter().any(|there| there == id) {
        let why = report.damaged.iter().find(|damaged| damaged.id == id);
        let why = why.map_or_else(|| "it is gone from where it was taken".to_owned(), |why| why.why.clone());
        return Err(CopyError::LeftBehind { id: id.to_owned(), why });
    }
    failpoint::reach("carry.carried");
    let here = taken.backup_ids(cluster).await.map_err(CopyError::Source)?;
    let expired = taken.expired(cluster).await.map_err(CopyError::Source)?.backups;
    let is_missed = |there: &String| {
        newest.is_none_or(|newest| there.as_str() > newest)
            && !here.contains(there)
            && !expired.contains(there)
    };
    let missed: Vec<String> = there.into_iter().filter(is_missed).collect();
    let brought_back = if missed.is_empty() {
        missed
    } else {
        let back = CopyRequest { backups: missed, ..request.clone() };
        let lacking = plan(other, taken, &back).await?;
        execute(other, taken, &lacking, &back, monitor).await?.backups
    };
    Ok(Carried { report, brought_back })
}
