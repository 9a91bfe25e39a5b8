//! What a backup stands on: its id, its kind, and what earlier backups can give it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pg::control::ControlFile;
use repository::Repository;
use repository::backups::{ChainFinding, Predecessor};
use repository::manifest::{BackupKind, Manifest};

use super::earlier::{Earlier, EarlierPacks};
use super::{BackupError, BackupRequest};
use crate::monitor::{Event, Monitor};

/// Everything is read again, whatever the files' times say, when that was last done so long ago.
const REREAD_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a backup stands on.
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) kind: BackupKind,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) earlier: Vec<Earlier>,
    pub(crate) packs: EarlierPacks,
    pub(crate) rolled_back: Option<ChainFinding>,
    pub(crate) reread: bool,
    pub(crate) now: Timestamp,
}

pub(crate) async fn plan_backup(
    repository: &Arc<Repository>,
    request: &BackupRequest,
    predecessor: Option<Predecessor>,
    control: &ControlFile,
) -> Result<Plan, BackupError> {
    let now = Timestamp::now();
    // A backup of the same name in another cluster's life says nothing about this one's files.
    let parent = predecessor.as_ref().map(|predecessor| &predecessor.manifest);
    let parent = parent
        .filter(|manifest| manifest.server().system_identifier == control.system_identifier && !request.full);
    let kind = if parent.is_some() { BackupKind::Incremental } else { BackupKind::Full };
    let age = parent.map(|manifest| now.as_microsecond() - manifest.reread_at_us);
    let reread = request.reread || age.is_none_or(|age| age < 0 || age as u128 >= REREAD_AFTER.as_micros());

    let after = predecessor.as_ref().map(|predecessor| predecessor.manifest.id.clone());
    let mut earlier = Vec::new();
    let partials = repository.partials(&request.cluster, after.as_deref()).await?;
    // Later than any attempt, too: the names of its partial manifests have its id.
    let attempts = partials.iter().flatten().map(|manifest| manifest.id.clone());
    // By name, and not by what can be read: a host that cannot read may know no predecessor, and its id must be new.
    let there = repository.backup_ids(&request.cluster).await?.pop();
    let claimed = repository.claims(&request.cluster).await?.into_iter().map(|claim| claim.backup);
    let suffix = if kind == BackupKind::Full { "full" } else { "incremental" };
    let id = backup_id(now, suffix, attempts.chain(there).chain(claimed).max().as_deref());
    for manifests in partials.into_iter().rev() {
        let same = |manifest: &Manifest| {
            manifest.server().system_identifier == control.system_identifier && manifest.backup_kind() == kind
        };
        if manifests.first().is_some_and(same) {
            earlier.push(Earlier { manifests, trust_times: !request.reread, is_parent: false });
        }
    }
    earlier.extend(parent.map(|manifest| Earlier {
        manifests: vec![manifest.clone()],
        trust_times: !reread,
        is_parent: true,
    }));
    let packs = EarlierPacks::read(repository, &earlier).await?;
    // Said now and kept in the manifest: this backup becomes the newest that this host saw.
    let rolled_back = repository.rolled_back(&request.cluster).await?;
    Ok(Plan { id, kind, predecessor, earlier, packs, rolled_back, reread, now })
}

/// UTC start time and kind, later than any backup before it even if the clock was set back.
pub(crate) fn backup_id(now: Timestamp, suffix: &str, after: Option<&str>) -> String {
    let spell = |moment: Timestamp| format!("{}-{suffix}", moment.strftime("%Y%m%dT%H%M%SZ"));
    let previous = after
        .and_then(|after| after.split_once('-'))
        .and_then(|(time, _)| jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok())
        .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok())
        .map(|time| time.timestamp());
    match previous {
        Some(previous) if previous.as_second() >= now.as_second() => spell(previous + Duration::from_secs(1)),
        _ => spell(now),
    }
}

impl Plan {
    /// Says what is odd about earlier backups.
    pub(crate) fn tell(&self, monitor: &dyn Monitor) {
        for pack in &self.packs.lost {
            let text =
                format!("pack {pack} of earlier backups is missing or damaged; what it held is stored again");
            monitor.event(Event::Warning(text));
        }
        if let Some(finding) = &self.rolled_back {
            monitor.event(Event::Warning(finding.to_string()));
        }
    }

    /// The backup that an incremental one stands on.
    pub(crate) fn parent(&self) -> Option<&Manifest> {
        self.earlier.iter().find(|earlier| earlier.is_parent)?.manifests.first()
    }

    /// List pages of the parent whose packs are all there.
    pub(crate) fn known_pages(&self) -> Vec<repository::manifest::PageRef> {
        let there = |page: &&repository::manifest::PageRef| {
            page.extent().is_ok_and(|at| !self.packs.lost.contains(&at.pack))
        };
        self.earlier
            .iter()
            .flat_map(|one| &one.manifests)
            .flat_map(|manifest| &manifest.pages)
            .filter(there)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests;
