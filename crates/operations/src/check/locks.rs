//! Object lock: whether the newest backup is locked as it says, from a sample of what it names.

use jiff::Timestamp;
use repository::backups::Listed;
use repository::{ClusterName, Repository, RepositoryError, layout};
use storage::{ObjectName, StorageError};

use super::{CheckError, CheckReport};
use crate::findings::Finding;

/// Packs that are looked at, spread over all that the backup names.
const SAMPLE: usize = 16;

/// Looks at the locks of the newest backup that can be read, where objects are locked.
pub(super) async fn check(
    repository: &Repository,
    cluster: &ClusterName,
    listed: &[Listed],
    report: &mut CheckReport,
) -> Result<(), CheckError> {
    let readable = listed.iter().rev().find(|backup| backup.manifest.is_ok());
    let (Some(_), Some(newest)) = (repository.storage().lock_rule(), readable) else { return Ok(()) };
    let manifest = repository.manifest(cluster, &newest.id).await?;
    let said =
        manifest.packs.iter().filter_map(|pack| Some((layout::pack(pack.id().ok()?), pack.locked_until()?)));
    let said: Vec<(ObjectName, Timestamp)> = said.collect();
    let name = layout::manifest(cluster, &newest.id);
    if said.is_empty() {
        let what = format!("backup {} was made without the lock that is configured", newest.id);
        let finding =
            Finding::warning(what, "whoever may delete objects can remove it; the next backup is locked");
        report.findings.push(finding.of(name));
        return Ok(());
    }
    // Its own lock began after the pack's did that was locked last, and is shorter; that there is one is enough.
    let every = said.len().div_ceil(SAMPLE);
    let sample = said.into_iter().step_by(every).chain([(name, Timestamp::UNIX_EPOCH)]);
    let (mut looked, mut short) = (0, Vec::new());
    for (name, until) in sample {
        let locked = match repository.storage().locked_until(&name).await {
            Ok(locked) => locked,
            // Moved since, or missing, which is told elsewhere.
            Err(StorageError::NotFound { .. }) => continue,
            Err(error) => return Err(RepositoryError::from(error).into()),
        };
        looked += 1;
        if locked.is_none_or(|locked| locked < until) {
            short.push((name, locked));
        }
    }
    if let Some((name, locked)) = short.first() {
        let how = locked.map_or("not at all".to_owned(), |locked| format!("until {locked:.0}"));
        let what = format!(
            "{} of {looked} objects of backup {} that were looked at are not locked for as long as it says, the first {how}",
            short.len(),
            newest.id
        );
        let so = "whoever may delete objects can remove them; or these credentials may not see locks (s3:GetObjectRetention)";
        report.findings.push(Finding::warning(what, so).of(name.clone()));
    }
    Ok(())
}
