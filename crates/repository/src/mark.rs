//! Marks: what prune found dead, written down to be looked at again after a time of grace, and only then deleted.

use jiff::Timestamp;
use prost::Message;
use storage::{ObjectName, StorageError};

use crate::content::ContentError;
use crate::layout::{self, PackId};
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Kind, open_stream, seal_stream};
use crate::secrets::random_bytes;

/// So many packs one mark names at most; prune writes more than one mark if it must.
pub const MARK_PACKS: usize = 100_000;
const MARK_LIMIT: u64 = 16 << 20;

/// What one run of prune found.
#[derive(Clone, PartialEq, Message)]
pub struct MarkNote {
    /// Ids of packs that no backup names, 16 bytes each.
    #[prost(bytes = "vec", tag = "1")]
    dead: Vec<u8>,
    /// Ids of packs that backups name and whose live pages stand elsewhere.
    #[prost(bytes = "vec", tag = "2")]
    moved: Vec<u8>,
    /// Every backup that was there, as `cluster/id`: one that a later listing lacks is asked for by its name.
    #[prost(string, repeated, tag = "3")]
    pub backups: Vec<String>,
}

impl MarkNote {
    /// Of these packs and backups.
    pub fn new(dead: &[PackId], moved: &[PackId], backups: Vec<String>) -> Self {
        let join = |ids: &[PackId]| ids.iter().flat_map(|id| id.0).collect();
        Self { dead: join(dead), moved: join(moved), backups }
    }

    /// Packs that no backup named.
    pub fn dead(&self) -> impl Iterator<Item = PackId> + '_ {
        self.dead.as_chunks().0.iter().map(|id| PackId(*id))
    }

    /// Packs whose live pages stand elsewhere.
    pub fn moved(&self) -> impl Iterator<Item = PackId> + '_ {
        self.moved.as_chunks().0.iter().map(|id| PackId(*id))
    }
}

/// A mark that is stored.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Its object.
    pub name: ObjectName,
    /// When it was written, by the storage's clock.
    pub made: Option<Timestamp>,
    /// What it says.
    pub note: MarkNote,
}

impl Repository {
    /// Writes a mark; its id begins with `now`, for people.
    pub async fn write_mark(&self, now: Timestamp, note: &MarkNote) -> Result<(), RepositoryError> {
        let unique = u64::from_le_bytes(random_bytes());
        let name = layout::mark(&format!("{}-{unique:016x}", now.strftime("%Y%m%dT%H%M%SZ")));
        let object = seal_stream(self.access().writer(), Kind::Mark, &name, &[], &note.encode_to_vec());
        Ok(self.storage().create(&name, &[object]).await?)
    }

    /// The marks that there are, oldest first. One that cannot be read is passed over: what it named is marked again.
    pub async fn marks(&self) -> Result<Vec<Mark>, RepositoryError> {
        let mut marks = Vec::new();
        for entry in self.storage().list(layout::MARKS).await? {
            let object = match self.storage().read_all(&entry.name, MARK_LIMIT).await {
                Err(StorageError::NotFound { .. }) => continue,
                Err(error @ StorageError::TooLarge { .. }) => {
                    tracing::warn!(%error, "a mark is passed over");
                    continue;
                }
                other => other?,
            };
            let bad = |_| RepositoryError::Content {
                place: entry.name.to_string(),
                source: ContentError { what: "mark" },
            };
            let note = open_stream(self.access(), Kind::Mark, &entry.name, &object)
                .map_err(RepositoryError::from)
                .and_then(|(_, content)| MarkNote::decode(&content[..]).map_err(bad));
            match note {
                Ok(note) => marks.push(Mark { name: entry.name, made: entry.modified, note }),
                Err(error) if error.is_damage() => tracing::warn!(%error, "a mark is passed over"),
                Err(error) => return Err(error),
            }
        }
        marks.sort_by_key(|mark| mark.made);
        Ok(marks)
    }
}
