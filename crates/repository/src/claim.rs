//! Claims: an operation that will publish a backup says so before it names anything that is stored.
//!
//! What it names, and what it stores, no manifest may name yet; so prune deletes nothing that it found dead later than an
//! unfinished claim began. A claim ends when its backup exists, and stays as long as that: so that each backup exists is known
//! by two names in two places, and a listing that lacks one of them hides nothing.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prost::Message;

use crate::backups::Predecessor;
use crate::expired::ExpiredNote;
use crate::layout::{self, ClusterName};
use crate::manifest::{Manifest, PackRef};
use crate::note::shortened;
use crate::repository::{Repository, RepositoryError};
use crate::seal::Kind;

/// A claim that has not ended after this time belongs to an operation that died; one that is still at work must give up.
/// Ten times the backup of ten terabytes on a small machine.
pub const CLAIM_TIME: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Clone, PartialEq, Message)]
struct ClaimNote {
    /// Who it is, for people.
    #[prost(string, tag = "1")]
    holder: String,
}

/// A claim that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The backup that will exist, or does.
    pub backup: String,
    /// When it was made, by the storage's clock.
    pub made: Option<Timestamp>,
}

impl Claim {
    /// Whether an operation with this claim may still be at work at `now`, if its backup does not exist.
    pub fn may_be_alive(&self, now: Option<Timestamp>) -> bool {
        let age = self.made.zip(now).map(|(made, now)| now.duration_since(made));
        age.is_none_or(|age| age <= SignedDuration::try_from(CLAIM_TIME).unwrap_or(SignedDuration::MAX))
    }
}

impl Claim {
    /// Whether more than half of the time that it may hold is left.
    pub fn has_time(&self, now: Option<Timestamp>) -> bool {
        let age = self.made.zip(now).map(|(made, now)| now.duration_since(made));
        age.is_none_or(|age| age.unsigned_abs() < CLAIM_TIME / 2)
    }
}

impl Repository {
    /// Says that the backup `id` is being made.
    pub async fn claim(&self, cluster: &ClusterName, id: &str, holder: &str) -> Result<(), RepositoryError> {
        let note = ClaimNote { holder: shortened(holder, 200).to_owned() };
        self.write_note(Kind::Claim, &layout::claim(cluster, id), &note).await
    }

    /// Whether the claim stands: to be asked before a backup is published. It is gone when it was so old that prune took its
    /// operation for dead.
    pub async fn has_claim(&self, cluster: &ClusterName, id: &str) -> Result<bool, RepositoryError> {
        Ok(self.stored_size(&layout::claim(cluster, id)).await?.is_some())
    }

    /// Makes a claimed backup exist. Fails if its claim is gone, or a pack that it names.
    pub async fn publish_claimed(
        &self,
        cluster: &ClusterName,
        manifest: Manifest,
        predecessor: Option<&Predecessor>,
    ) -> Result<Manifest, RepositoryError> {
        if !self.has_claim(cluster, &manifest.id).await? {
            return Err(RepositoryError::Overtaken);
        }
        self.check_named(&manifest).await?;
        let manifest = self.publish(cluster, manifest, predecessor).await?;
        // Prune takes a claim away before anything else. One that stands now stood when the manifest could be seen, however
        // long this host was asleep before it wrote that.
        if self.has_claim(cluster, &manifest.id).await? {
            return Ok(manifest);
        }
        if let Err(error) = self.take_back(cluster, &manifest.id).await {
            tracing::warn!(backup = %manifest.id, %error, "a backup that may lack what it names stays");
        }
        Err(RepositoryError::Overtaken)
    }

    /// Fails if a pack that the manifest names is gone.
    async fn check_named(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let unreadable = |source| RepositoryError::Content { place: "manifest".into(), source };
        let ids =
            manifest.packs.iter().map(PackRef::id).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        let lost = self.lost_packs(ids.into_iter().zip(&manifest.packs)).await?;
        for pack in &manifest.packs {
            let id = pack.id().map_err(unreadable)?;
            // A listing may lack what is there.
            let is_lost = lost.contains(&id) && self.stored_size(&layout::pack(id)).await? != Some(pack.size);
            if is_lost {
                return Err(RepositoryError::Lost { pack: id });
            }
        }
        Ok(())
    }

    async fn take_back(&self, cluster: &ClusterName, id: &str) -> Result<(), RepositoryError> {
        let now = self.storage_clock().await?.unwrap_or_else(Timestamp::now);
        let note = ExpiredNote { expired_us: now.as_microsecond(), ..ExpiredNote::default() };
        self.note_expired(cluster, id, &note).await?;
        self.delete_manifest(cluster, id).await
    }

    /// Takes a claim back, whose backup will never be. That it stays costs only time until its packs are freed.
    pub async fn withdraw_claim(&self, cluster: &ClusterName, id: &str) {
        if let Err(error) = self.remove_claim(cluster, id).await {
            tracing::warn!(backup = id, %error, "the claim of a backup that failed stays; prune will wait for it");
        }
    }

    /// Removes the claim of a backup that is no more.
    pub async fn remove_claim(&self, cluster: &ClusterName, id: &str) -> Result<(), RepositoryError> {
        Ok(self.storage().remove(&layout::claim(cluster, id)).await?)
    }

    /// Whether the backup of a claim was expired since the claim was made, as far as is written down. One that was expired
    /// before is being copied here again.
    pub async fn is_expired(&self, cluster: &ClusterName, claim: &Claim) -> Result<bool, RepositoryError> {
        let name = layout::expired_note(cluster, &claim.backup);
        match self.read_note::<ExpiredNote>(Kind::Expired, &name).await {
            Ok(note) => Ok(claim.made.is_none_or(|made| made.as_microsecond() <= note.expired_us)),
            // A note that is not authentic says nothing.
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The claims that a listing shows.
    pub async fn claims(&self, cluster: &ClusterName) -> Result<Vec<Claim>, RepositoryError> {
        let prefix = layout::claims(cluster);
        let entries = self.storage().list(&prefix).await?;
        let claim = |entry: &storage::Entry| {
            let backup = entry.name.as_str().strip_prefix(&prefix)?.to_owned();
            Some(Claim { backup, made: entry.modified })
        };
        Ok(entries.iter().filter_map(claim).collect())
    }
}
