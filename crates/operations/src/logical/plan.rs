//! What a logical backup stands on: its id, and what earlier backups and attempts stored.

use std::sync::Arc;

use jiff::Timestamp;
use repository::backups::Predecessor;
use repository::manifest::{BackupKind, Manifest, PageRef};
use repository::{Repository, RepositoryError};

use super::LogicalRequest;
use super::known::Earlier;
use crate::backup::earlier::{Earlier as EarlierBackup, EarlierPacks};
use crate::backup::plan::backup_id;

pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) kind: BackupKind,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) parent_id: String,
    pub(crate) packs: EarlierPacks,
    pub(crate) earlier: Earlier,
    /// What is odd about earlier backups, for people.
    pub(crate) warnings: Vec<String>,
    pub(crate) now: Timestamp,
}

pub(crate) async fn plan_backup(
    repository: &Arc<Repository>,
    request: &LogicalRequest,
) -> Result<Plan, RepositoryError> {
    let (now, cluster) = (Timestamp::now(), &request.cluster);
    let predecessor = repository.predecessor(cluster).await?;
    let after = predecessor.as_ref().map(|predecessor| predecessor.manifest.id.clone());
    let attempts = repository.partials(cluster, after.as_deref()).await?;
    let there = repository.backup_ids(cluster).await?.pop();
    let claimed = repository.claims(cluster).await?.into_iter().map(|claim| claim.backup);
    let attempted = attempts.iter().flatten().map(|manifest| manifest.id.clone());
    let id = backup_id(now, "logical", attempted.chain(there).chain(claimed).max().as_deref());

    let parent =
        predecessor.as_ref().filter(|_| !request.full).map(|predecessor| predecessor.manifest.clone());
    let parent_id = parent.as_ref().map(|manifest| manifest.id.clone()).unwrap_or_default();
    let kind = if parent.is_some() { BackupKind::Incremental } else { BackupKind::Full };
    let attempts = attempts.into_iter().rev().filter(|_| !request.full).flatten();
    let manifests: Vec<Manifest> = attempts.chain(parent).collect();
    let stood_on = EarlierBackup { manifests, trust_times: false, is_parent: true };
    let packs = EarlierPacks::read(repository, std::slice::from_ref(&stood_on)).await?;
    let mut warnings: Vec<String> =
        repository.rolled_back(cluster).await?.iter().map(ToString::to_string).collect();
    warnings.extend(packs.lost.iter().map(|pack| {
        format!("pack {pack} of earlier backups is missing or damaged; what it held is stored again")
    }));
    let earlier = Earlier {
        tail_lens: packs.references.iter().map(|(id, pack)| (*id, pack.tail_len)).collect(),
        lost: packs.lost.clone(),
        manifests: stood_on.manifests,
    };
    Ok(Plan { id, kind, predecessor, parent_id, packs, earlier, warnings, now })
}

impl Plan {
    /// List pages of earlier backups whose packs are all there.
    pub(crate) fn known_pages(&self) -> Vec<PageRef> {
        let there = |page: &&PageRef| page.extent().is_ok_and(|at| !self.packs.lost.contains(&at.pack));
        self.earlier.manifests.iter().flat_map(|manifest| &manifest.pages).filter(there).cloned().collect()
    }
}
