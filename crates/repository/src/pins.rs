//! Pins: backups that no policy may expire, each a note that is written once and never changed.

use jiff::Timestamp;
use prost::Message;

use crate::layout::{self, ClusterName};
use crate::note::shortened;
use crate::repository::{Repository, RepositoryError};
use crate::seal::Kind;
use crate::secrets::random_bytes;
use storage::StorageError;

/// No header has room for more.
const NOTE_MAX: usize = 140;
const WHO_MAX: usize = 60;

/// What a pin says.
#[derive(Clone, PartialEq, Message)]
pub struct PinNote {
    /// When it was made, microseconds since 1970, by the storage's clock where it has one.
    #[prost(sint64, tag = "1")]
    pub made_us: i64,
    /// Until when it holds, microseconds since 1970; absent: for ever.
    #[prost(sint64, optional, tag = "2")]
    pub until_us: Option<i64>,
    /// Why, for people.
    #[prost(string, tag = "3")]
    pub note: String,
    /// Who made it, for people.
    #[prost(string, tag = "4")]
    pub who: String,
}

/// A pin of a backup.
#[derive(Clone, Debug, PartialEq)]
pub struct Pin {
    /// The backup.
    pub backup: String,
    /// What sets it apart from other pins of the backup.
    pub unique: String,
    /// What it says.
    pub note: PinNote,
}

impl Pin {
    /// Until when it holds; `None` for ever.
    pub fn until(&self) -> Option<Timestamp> {
        self.note.until_us.and_then(|until| Timestamp::from_microsecond(until).ok())
    }

    /// Whether it holds at `now`, by the storage's clock. Where that is not known it holds.
    pub fn holds(&self, now: Option<Timestamp>) -> bool {
        self.until().zip(now).is_none_or(|(until, now)| until > now)
    }
}

impl Repository {
    /// Pins a backup.
    pub async fn pin(
        &self,
        cluster: &ClusterName,
        backup: &str,
        note: &PinNote,
    ) -> Result<Pin, RepositoryError> {
        let unique: String = random_bytes::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
        let note = PinNote {
            note: shortened(&note.note, NOTE_MAX).to_owned(),
            who: shortened(&note.who, WHO_MAX).to_owned(),
            ..*note
        };
        self.write_note(Kind::Pin, &layout::pin(cluster, backup, &unique), &note).await?;
        Ok(Pin { backup: backup.to_owned(), unique, note })
    }

    /// Every pin of a cluster. One that is damaged holds for ever: better a backup too many than one too few.
    pub async fn pins(&self, cluster: &ClusterName) -> Result<Vec<Pin>, RepositoryError> {
        let prefix = layout::pins(cluster);
        let mut pins = Vec::new();
        for entry in self.storage().list(&prefix).await? {
            let rest = entry.name.as_str().strip_prefix(&prefix).and_then(|rest| rest.split_once('/'));
            let Some((backup, unique)) = rest else { continue };
            let note = match self.read_note(Kind::Pin, &entry.name).await {
                Ok(note) => note,
                Err(RepositoryError::Storage(StorageError::NotFound { .. })) => continue,
                Err(error @ RepositoryError::Storage(StorageError::TooLarge { .. })) => damaged(&error),
                Err(error) if error.is_damage() => damaged(&error),
                Err(error) => return Err(error),
            };
            pins.push(Pin { backup: backup.to_owned(), unique: unique.to_owned(), note });
        }
        Ok(pins)
    }

    /// Removes a pin.
    pub async fn unpin(&self, cluster: &ClusterName, pin: &Pin) -> Result<(), RepositoryError> {
        Ok(self.storage().remove(&layout::pin(cluster, &pin.backup, &pin.unique)).await?)
    }
}

fn damaged(error: &RepositoryError) -> PinNote {
    PinNote { note: format!("this pin is damaged: {error}"), ..PinNote::default() }
}
