//! The small objects: the description, key slots, partial manifests, proofs; and what does not belong.

use repository::backups::Listed;
use repository::{ClusterName, Repository, RepositoryError, layout};

use super::{CheckError, CheckReport};
use crate::findings::{Finding, is_damage};
use crate::reachable::ArchiveState;
use crate::verify::known;

/// What the description says now, and the slots. One that is lost matters only to whoever opens the repository with it.
pub(super) async fn description_and_slots(
    repository: &Repository,
    findings: &mut Vec<Finding>,
) -> Result<(), CheckError> {
    let damaged =
        |why: String| Finding::damage(why, "nothing can be opened without it").of(layout::description());
    match Repository::describe(&**repository.storage()).await {
        Ok(description) => {
            if let Err(error) = description.check(repository.access().writer()) {
                findings.push(damaged(error.to_string()));
            }
        }
        Err(error @ (RepositoryError::Absent | RepositoryError::Description(_))) => {
            findings.push(damaged(error.to_string()));
        }
        Err(error) => return Err(error.into()),
    }
    let (slots, unreadable) = repository.slots().await?;
    if slots.is_empty() {
        let what = "no key slot can be read";
        let lost = "nobody opens the repository any more; a process that has it open can: `pgkeep key add`";
        findings.push(Finding::damage(what, lost));
    }
    for id in unreadable {
        let what = format!("key slot {id} cannot be read");
        let finding =
            Finding::warning(what, "its passphrase or key opens the repository no longer; others do");
        findings.push(finding.of(layout::key_slot(&id)));
    }
    Ok(())
}

/// Objects whose loss costs work and no data; and what they say was damaged.
pub(super) async fn small_objects(
    repository: &Repository,
    cluster: &ClusterName,
    listed: &[Listed],
    report: &mut CheckReport,
) -> Result<(), CheckError> {
    let entries = repository.storage().list(&layout::partials(cluster)).await;
    for entry in entries.map_err(RepositoryError::from)? {
        match repository.open_partial(&entry.name).await {
            Ok(_) => {}
            Err(error) if is_damage(&error) => {
                let cost = "the next backup stores again what an interrupted one had stored";
                report.findings.push(Finding::warning(error.to_string(), cost).of(entry.name));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let proofs = repository.proofs(cluster).await?;
    for (object, damage) in known::standing_damage(repository, &proofs).await? {
        let hurt: Vec<String> =
            damage.backups.iter().filter(|id| listed.iter().any(|one| one.id == **id)).cloned().collect();
        if damage.backups.is_empty() || !hurt.is_empty() {
            known::tell(
                &mut report.findings,
                object,
                damage,
                "verify found it so, and not whole since",
                hurt,
            );
        }
    }
    for (name, why) in proofs.unreadable {
        let cost = "what it proved is verified again";
        report.findings.push(Finding::warning(format!("a proof cannot be read: {why}"), cost).of(name));
    }
    Ok(())
}

/// The rooms of the repository and of a cluster; what is in packs and WAL was seen by name.
const ROOMS: [&str; 6] =
    [layout::PACKS, layout::KEYS, layout::CLUSTERS, layout::MOVED, layout::MARKS, layout::LEASES];
const CLUSTER_ROOMS: [fn(&ClusterName) -> String; 9] = [
    layout::backups,
    layout::partials,
    layout::wal,
    layout::gaps,
    layout::expired_notes,
    layout::pins,
    layout::claims,
    layout::proofs,
    layout::runs,
];

/// Objects of no known name. They harm nothing; somebody put them there.
pub(super) async fn strays(
    repository: &Repository,
    cluster: &ClusterName,
    state: &ArchiveState,
    report: &mut CheckReport,
) -> Result<(), CheckError> {
    let own = format!("{}{cluster}/", layout::CLUSTERS);
    let known = ROOMS.map(str::to_owned);
    let known_here = CLUSTER_ROOMS.map(|room| room(cluster));
    let levels =
        [("", &known[..], layout::description()), (&own, &known_here[..], layout::identity(cluster))];
    for (prefix, rooms, object) in levels {
        let children = repository.storage().list_children(prefix).await.map_err(RepositoryError::from)?;
        let is_room = |found: &&String| {
            rooms.iter().any(|room| room.trim_end_matches('/') == found.trim_end_matches('/'))
        };
        report.strays.extend(
            children.prefixes.iter().filter(|found| !is_room(found)).map(|found| format!("{found}/")),
        );
        let entries = children.entries.into_iter().filter(|entry| entry.name != object);
        report.strays.extend(entries.map(|entry| entry.name.to_string()));
    }
    report.strays.extend(state.inventory.strays.iter().map(ToString::to_string));
    if !report.strays.is_empty() {
        let what = format!("{} objects or folders are of no name that pgkeep gives", report.strays.len());
        report.findings.push(Finding::warning(what, "they harm nothing; pgkeep leaves them alone"));
    }
    Ok(())
}
