//! Each manifest: whether it opens, and whether the places it names are in packs that it lists.

use futures_util::{StreamExt as _, stream};
use repository::backups::{ChainFinding, Listed};
use repository::manifest::Manifest;
use repository::{ClusterName, PackId, Repository, layout};

use super::{CheckError, CheckReport};
use crate::findings::{Finding, is_damage};

/// Manifests that are read at once; one of 10 TB has a few megabytes.
const AT_ONCE: usize = 4;

/// A pack that a backup names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PackUse {
    pub(super) id: PackId,
    pub(super) size: u64,
    /// The backup, by its place among the listed.
    pub(super) backup: u32,
}

/// Reads every manifest; returns the packs they name, and the backups without what takes room.
pub(super) async fn read(
    repository: &Repository,
    cluster: &ClusterName,
    report: &mut CheckReport,
) -> Result<(Vec<PackUse>, Vec<Listed>), CheckError> {
    let ids = repository.backup_ids(cluster).await?;
    let (mut uses, mut listed) = (Vec::new(), Vec::with_capacity(ids.len()));
    let mut coming = stream::iter(ids.into_iter().map(|id| repository.listed(cluster, id))).buffered(AT_ONCE);
    while let Some(backup) = coming.next().await {
        let Some(mut backup) = backup? else { continue };
        match &mut backup.manifest {
            Ok(manifest) => {
                uses.extend(packs_of(manifest, listed.len() as u32));
                report.findings.extend(unresolved(cluster, manifest));
                slim(manifest);
            }
            Err(error) => {
                let lost = format!("backup {} cannot be restored", backup.id);
                let finding = Finding::damage(error.to_string(), lost);
                let name = layout::manifest(cluster, &backup.id);
                report.findings.push(finding.of(name).hurting(vec![backup.id.clone()]));
            }
        }
        listed.push(backup);
    }
    report.backups = listed.len();
    Ok((uses, listed))
}

fn packs_of(manifest: &Manifest, backup: u32) -> impl Iterator<Item = PackUse> + '_ {
    let packs = manifest.packs.iter();
    packs.filter_map(move |pack| Some(PackUse { id: pack.id().ok()?, size: pack.size, backup }))
}

/// Whether the manifest names list pages in packs that it does not list.
fn unresolved(cluster: &ClusterName, manifest: &Manifest) -> Option<Finding> {
    let mut packs: Vec<PackId> = manifest.packs.iter().filter_map(|pack| pack.id().ok()).collect();
    packs.sort_unstable();
    let is_listed = |id: &PackId| packs.binary_search(id).is_ok();
    let pages = manifest.pages.iter();
    let lost = pages.filter(|page| !page.extent().is_ok_and(|at| is_listed(&at.pack))).count();
    let bad = manifest.packs.len() - packs.len();
    if lost == 0 && bad == 0 {
        return None;
    }
    let what = format!(
        "the manifest names {lost} list pages in packs that it does not list, and {bad} packs without an id"
    );
    let finding = Finding::damage(what, format!("backup {} cannot be restored whole", manifest.id));
    Some(finding.of(layout::manifest(cluster, &manifest.id)).hurting(vec![manifest.id.clone()]))
}

/// Drops what is no longer needed and takes room.
fn slim(manifest: &mut Manifest) {
    let kept = Manifest {
        pages: Vec::new(),
        packs: Vec::new(),
        findings: Vec::new(),
        warnings: Vec::new(),
        control_file: Vec::new(),
        config_files: Vec::new(),
        ..std::mem::take(manifest)
    };
    *manifest = kept;
}

/// What the chain of manifests says, as a finding.
pub(super) fn chain(finding: &ChainFinding) -> Finding {
    let (id, consequence) = match finding {
        ChainFinding::Missing { id, .. } => {
            (id, "it cannot be restored; backups that are there are whole without it")
        }
        ChainFinding::Replaced { id, .. } => (id, "it may not be the one that was made"),
        ChainFinding::RolledBack { newest_seen } => {
            (newest_seen, "whatever was stored after it may be gone, too")
        }
    };
    Finding::damage(finding.to_string(), consequence).hurting(vec![id.clone()])
}

/// As far as a host can look that has only a writer credential: whether each manifest is one of ours.
pub(super) async fn headers(
    repository: &Repository,
    cluster: &ClusterName,
    report: &mut CheckReport,
) -> Result<(), CheckError> {
    for id in repository.backup_ids(cluster).await? {
        report.backups += 1;
        match repository.manifest_header(cluster, &id).await {
            Ok(()) => {}
            Err(error) if is_damage(&error) => {
                let finding = Finding::damage(error.to_string(), format!("backup {id} cannot be restored"));
                report.findings.push(finding.of(layout::manifest(cluster, &id)).hurting(vec![id]));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let why = "packs, WAL and file lists: a writer credential does not open the manifests that name them";
    report.not_looked_at.push(why.to_owned());
    Ok(())
}
