//! Notes of what was expired: so that a backup or WAL that is missing on purpose is not taken for stolen.
//!
//! A note is written before its backup's manifest is deleted, and stays while something may still ask for the backup.

use std::collections::BTreeSet;

use pg::Lsn;
use prost::Message;
use storage::StorageError;

use crate::layout::{self, ClusterName};
use crate::note::shortened;
use crate::repository::{Repository, RepositoryError};
use crate::seal::Kind;

/// No header has room for more.
const WHO_MAX: usize = 60;
const WHY_MAX: usize = 110;

/// What is noted of an expired backup, or of WAL that was expired up to some position.
#[derive(Clone, PartialEq, Message)]
pub struct ExpiredNote {
    /// Who did it, for people.
    #[prost(string, tag = "1")]
    pub who: String,
    /// When, microseconds since 1970, by the storage's clock where it has one.
    #[prost(sint64, tag = "2")]
    pub expired_us: i64,
    /// By which rule, for people.
    #[prost(string, tag = "3")]
    pub why: String,
    /// Content digest of the manifest's object; empty where it could not be read.
    #[prost(bytes = "vec", tag = "4")]
    pub digest: Vec<u8>,
}

/// The expired backups that are still noted, and how far WAL was expired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Ids of backups.
    pub backups: BTreeSet<String>,
    /// WAL before this position was removed where no backup that was kept needed it.
    pub wal_before: Option<Lsn>,
}

impl Expired {
    /// Whether WAL that is missing up to `end` is missing on purpose.
    pub fn has_wal_up_to(&self, end: Lsn) -> bool {
        self.wal_before.is_some_and(|position| end <= position)
    }
}

impl Repository {
    /// Notes that a backup is about to be expired. What an interrupted run has noted stays.
    pub async fn note_expired(
        &self,
        cluster: &ClusterName,
        id: &str,
        note: &ExpiredNote,
    ) -> Result<(), RepositoryError> {
        let (who, why) = (shortened(&note.who, WHO_MAX).to_owned(), shortened(&note.why, WHY_MAX).to_owned());
        let note = ExpiredNote { who, why, ..note.clone() };
        match self.write_note(Kind::Expired, &layout::expired_note(cluster, id), &note).await {
            Err(RepositoryError::Storage(StorageError::NameTaken { .. })) => Ok(()),
            other => other,
        }
    }

    /// Notes that WAL before `position` is about to be removed where no kept backup needs it.
    pub async fn note_expired_wal(
        &self,
        cluster: &ClusterName,
        position: Lsn,
        note: &ExpiredNote,
    ) -> Result<(), RepositoryError> {
        self.note_expired(cluster, &layout::expired_wal(position), note).await
    }

    /// What is noted as expired. A note that is not authentic says nothing: whoever robs a bucket could write it.
    pub async fn expired(&self, cluster: &ClusterName) -> Result<Expired, RepositoryError> {
        let prefix = layout::expired_notes(cluster);
        let mut found = Expired::default();
        for entry in self.storage().list(&prefix).await? {
            let Some(id) = entry.name.as_str().strip_prefix(&prefix) else { continue };
            match self.read_note::<ExpiredNote>(Kind::Expired, &entry.name).await {
                Ok(_) => match layout::parse_expired_wal(id) {
                    Some(position) => found.wal_before = found.wal_before.max(Some(position)),
                    None => {
                        found.backups.insert(id.to_owned());
                    }
                },
                Err(RepositoryError::Storage(StorageError::NotFound { .. })) => {}
                Err(error) if error.is_damage() => tracing::warn!(%error, "a damaged note is passed over"),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Removes the note of an expired backup that nothing asks for any more.
    pub async fn remove_expired_note(&self, cluster: &ClusterName, id: &str) -> Result<(), RepositoryError> {
        Ok(self.storage().remove(&layout::expired_note(cluster, id)).await?)
    }

    /// Removes the notes of expired WAL that one of a later position says as well.
    pub async fn remove_older_wal_notes(
        &self,
        cluster: &ClusterName,
        position: Lsn,
    ) -> Result<(), RepositoryError> {
        let prefix = layout::expired_notes(cluster);
        for entry in self.storage().list(&prefix).await? {
            let id = entry.name.as_str().strip_prefix(&prefix).unwrap_or_default();
            if layout::parse_expired_wal(id).is_some_and(|noted| noted < position) {
                self.storage().remove(&entry.name).await?;
            }
        }
        Ok(())
    }

    /// Makes a backup exist no more. One that is gone already is no error.
    pub async fn delete_manifest(&self, cluster: &ClusterName, id: &str) -> Result<(), RepositoryError> {
        Ok(self.storage().remove(&layout::manifest(cluster, id)).await?)
    }

    /// Whether a backup's manifest is stored, asked of the storage itself.
    pub async fn has_backup(&self, cluster: &ClusterName, id: &str) -> Result<bool, RepositoryError> {
        Ok(self.stored_size(&layout::manifest(cluster, id)).await?.is_some())
    }
}
