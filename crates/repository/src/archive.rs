//! The WAL archive: write-once files under their PostgreSQL names, each bound to its cluster.
//!
//! The same name with the same bytes is success, the same name with other bytes a conflict. A writer that cannot read
//! compares by the keyed digest that stands, authenticated, in each object's header.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use jiff::Timestamp;
use pg::PgTimestamp;
use pg::timeline::TimelineId;
use pg::wal::records::CommitSpan;
use pg::wal::{FileName, SegmentName};
use prost::Message;
use storage::{ObjectName, StorageError};

use crate::content::ContentError;
use crate::layout::{self, ClusterName};
use crate::local::Drawer;
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Header, Kind, Opener, SealError, Sealer};
use crate::secrets::array;

mod fetch;
mod gap;
mod maker;
mod part;
mod store;
mod worker;

pub use fetch::{FetchedWal, WalSink};
pub use gap::{Gap, GapNote};
pub use part::{NewestWal, Part, PartNameError, WalName, cover, covered, holes, stretches};
pub use store::{InMemory, WalContent};
pub(crate) use worker::Workers;

/// The largest file of the archive: a 1 GiB segment.
pub const MAX_WAL_FILE: u64 = 1 << 30;
const PUBLIC_LEN: usize = 40;

/// What a cluster's stream is bound to, once and for ever.
#[derive(Clone, PartialEq, Message)]
pub struct Identity {
    /// The cluster's system identifier.
    #[prost(fixed64, tag = "1")]
    pub system_identifier: u64,
    /// Bytes of a WAL segment.
    #[prost(uint32, tag = "2")]
    pub segment_size: u32,
    /// Major version.
    #[prost(uint32, tag = "3")]
    pub major: u32,
    /// The stream has logical backups and no WAL; the other fields are zero.
    #[prost(bool, tag = "4")]
    pub logical: bool,
}

/// What is recorded with each file of the archive.
#[derive(Clone, PartialEq, Message)]
pub struct WalInfo {
    /// The file's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its length in bytes.
    #[prost(uint64, tag = "2")]
    pub length: u64,
    /// When it was stored, microseconds since 1970 by this host's clock.
    #[prost(sint64, tag = "3")]
    pub stored_us: i64,
    /// Time of the first commit or abort in it, microseconds since 1970.
    #[prost(sint64, optional, tag = "4")]
    pub first_commit_us: Option<i64>,
    /// Time of the last commit or abort in it, microseconds since 1970.
    #[prost(sint64, optional, tag = "5")]
    pub last_commit_us: Option<i64>,
}

impl WalInfo {
    /// Of a file whose commits are not known.
    pub fn new(name: impl Into<WalName>, length: u64, stored: Timestamp) -> Self {
        let (name, stored_us) = (name.into().to_string(), stored.as_microsecond());
        Self { name, length, stored_us, ..Self::default() }
    }

    /// With the times of the commits in it; a time that no calendar reaches is none.
    pub fn with_commits(self, span: Option<CommitSpan>) -> Self {
        let unix_us = |moment: PgTimestamp| Some(moment.to_timestamp()?.as_microsecond());
        Self {
            first_commit_us: span.and_then(|span| unix_us(span.first)),
            last_commit_us: span.and_then(|span| unix_us(span.last)),
            ..self
        }
    }
}

/// How a store call ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// The file is in the archive now.
    New,
    /// It was there, with the same bytes.
    AlreadyThere,
}

/// Why a file of the archive could not be stored or fetched.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The name is taken by other bytes.
    #[error("{name} is in the archive with other content; the stored one was kept")]
    Conflict {
        /// The file.
        name: WalName,
    },
    /// Proven absent.
    #[error("{name} is not in the archive")]
    Absent {
        /// The file.
        name: WalName,
    },
    /// The stream belongs to another cluster.
    #[error("stream {cluster} belongs to another cluster: it has {found}, this server has {expected}")]
    OtherCluster {
        /// The stream.
        cluster: ClusterName,
        /// What the stream is bound to.
        found: String,
        /// What was to be stored.
        expected: String,
    },
    /// The file could not be read where it is, or written where it is wanted.
    #[error("read or write {name}")]
    Content {
        /// The file.
        name: WalName,
        /// Why.
        source: io::Error,
    },
    /// Anything else.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl From<StorageError> for ArchiveError {
    fn from(error: StorageError) -> Self {
        Self::Repository(error.into())
    }
}

impl From<SealError> for ArchiveError {
    fn from(error: SealError) -> Self {
        Self::Repository(error.into())
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { system_identifier, segment_size, major, logical } = self;
        if *logical {
            return out.write_str("logical backups");
        }
        write!(
            out,
            "system identifier {system_identifier}, major {major}, segments of {} MiB",
            segment_size >> 20
        )
    }
}

/// What is in a cluster's archive, by name.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Whole segments of each timeline, in order, with the size of their objects.
    pub segments: BTreeMap<TimelineId, BTreeMap<SegmentName, u64>>,
    /// Timelines whose history file is stored.
    pub histories: Vec<TimelineId>,
    /// Other files: `.partial` and `.backup`.
    pub others: Vec<FileName>,
    /// Parts of segments, with the size of their objects. A part may be left of a segment that is whole by now.
    pub parts: BTreeMap<Part, u64>,
    /// Objects of no known name, or that stand in another place than their name says.
    pub strays: Vec<ObjectName>,
}

impl Inventory {
    /// The parts of segments that are not stored whole, by segment.
    pub fn unfinished(&self) -> BTreeMap<SegmentName, Vec<Part>> {
        let mut unfinished: BTreeMap<SegmentName, Vec<Part>> = BTreeMap::new();
        let is_whole = |segment: &SegmentName| {
            self.segments.get(&segment.timeline).is_some_and(|segments| segments.contains_key(segment))
        };
        for part in self.parts.keys().filter(|part| !is_whole(&part.segment)) {
            unfinished.entry(part.segment).or_default().push(*part);
        }
        unfinished
    }
}

impl Repository {
    /// What the cluster's stream is bound to; `None` if nothing was ever stored.
    pub async fn identity(&self, cluster: &ClusterName) -> Result<Option<Identity>, RepositoryError> {
        let unreadable = |_| RepositoryError::Content {
            place: layout::identity(cluster).to_string(),
            source: ContentError { what: "identity" },
        };
        if let Some(bytes) = self.local().get(Drawer::Identities, cluster.as_str()) {
            return Identity::decode(&bytes[..]).map(Some).map_err(unreadable);
        }
        let name = layout::identity(cluster);
        let object = match self.storage().read_all(&name, 4096).await {
            Err(StorageError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let header = Header::parse(self.access().writer(), Kind::Identity, &name, &object)?;
        if header.len != object.len() {
            return Err(SealError::Length { name }.into());
        }
        self.local().put(Drawer::Identities, cluster.as_str(), &header.public);
        Identity::decode(&header.public[..]).map(Some).map_err(unreadable)
    }

    /// Binds the stream to a cluster, or checks that it is bound to this one.
    pub async fn bind(&self, cluster: &ClusterName, identity: &Identity) -> Result<(), ArchiveError> {
        let found = match self.identity(cluster).await? {
            Some(found) => found,
            None => {
                let name = layout::identity(cluster);
                let sealer =
                    Sealer::new(self.access().writer(), Kind::Identity, &name, &identity.encode_to_vec());
                match self.storage().create(&name, &[Bytes::copy_from_slice(sealer.header())]).await {
                    // Another host was first: what it wrote decides.
                    Err(StorageError::NameTaken { .. }) => {}
                    other => other?,
                }
                self.identity(cluster).await?.unwrap_or_else(|| identity.clone())
            }
        };
        if found == *identity {
            return Ok(());
        }
        let (found, expected) = (found.to_string(), identity.to_string());
        Err(ArchiveError::OtherCluster { cluster: cluster.clone(), found, expected })
    }

    /// What is recorded with a file, in one small request.
    pub async fn wal_info(
        &self,
        cluster: &ClusterName,
        file: impl Into<WalName>,
    ) -> Result<WalInfo, ArchiveError> {
        let file = file.into();
        let name = layout::wal_file(cluster, file);
        let size = match self.storage().size(&name).await {
            Err(StorageError::NotFound { .. }) => return Err(ArchiveError::Absent { name: file }),
            other => other?,
        };
        let head = self.storage().read(&name, 0..size.min(4096)).await?;
        let header = Header::parse(self.access().writer(), Kind::Wal, &name, &head)?;
        let opener = Opener::new(self.access(), Kind::Wal, &name, &header)?;
        let bad = || SealError::Content { name: name.clone(), what: "description" };
        let (len, rest) = head[header.len..].split_first_chunk::<4>().ok_or_else(bad)?;
        let len = u32::from_le_bytes(*len) as usize;
        let mut frame = rest.get(..len).ok_or_else(bad)?.to_vec();
        let last = (header.len + 4 + len) as u64 == size;
        let frame = opener.open_in_place(0, &mut frame, last)?;
        Ok(WalInfo::decode(&*frame).map_err(|_| bad())?)
    }

    /// Whether a file is stored, by one request.
    pub async fn has_wal(
        &self,
        cluster: &ClusterName,
        file: impl Into<WalName>,
    ) -> Result<bool, RepositoryError> {
        Ok(self.stored_size(&layout::wal_file(cluster, file)).await?.is_some())
    }

    /// Whether the repository and the cluster's stream are where they should be: asked of the storage itself, because
    /// "not there" means nothing in a place where nothing of ours is.
    pub async fn stream_is_there(&self, cluster: &ClusterName) -> Result<bool, RepositoryError> {
        if Self::describe(&**self.storage()).await? != *self.description() {
            return Ok(false);
        }
        Ok(self.stored_size(&layout::identity(cluster)).await?.is_some())
    }

    /// The first stored segment after `segment` on its timeline: if there is one, `segment` itself should be there.
    pub async fn next_stored_segment(
        &self,
        cluster: &ClusterName,
        segment: &SegmentName,
    ) -> Result<Option<SegmentName>, RepositoryError> {
        let timeline = layout::wal_timeline(cluster, segment.timeline);
        let own = format!("{:08X}", segment.log);
        for folder in self.storage().list_children(&timeline).await?.prefixes {
            let log = folder.rsplit('/').next().unwrap_or_default();
            if log < own.as_str() {
                continue;
            }
            let later = self.storage().list(&folder).await?.into_iter().find_map(|entry| {
                let text = entry.name.as_str().rsplit('/').next()?;
                // A part is WAL as well: what lies before it is missing, not absent.
                let part = || text.parse::<Part>().ok().map(|part| part.segment);
                let name = text.parse::<SegmentName>().ok().or_else(part)?;
                (name.timeline == segment.timeline && name > *segment).then_some(name)
            });
            if later.is_some() {
                return Ok(later);
            }
        }
        Ok(None)
    }

    /// Everything in the cluster's archive, by name; names of no known form are passed over.
    pub async fn wal_inventory(&self, cluster: &ClusterName) -> Result<Inventory, RepositoryError> {
        let mut inventory = Inventory::default();
        for entry in self.storage().list(&layout::wal(cluster)).await? {
            let text = entry.name.as_str().rsplit('/').next().unwrap_or_default();
            if let Ok(part) = text.parse::<Part>()
                && layout::wal_file(cluster, &part) == entry.name
            {
                inventory.parts.insert(part, entry.size);
                continue;
            }
            // A file that stands in another place than its name says was put there by somebody else.
            let file = text.parse::<FileName>().ok();
            let Some(file) = file.filter(|file| layout::wal_file(cluster, file) == entry.name) else {
                inventory.strays.push(entry.name);
                continue;
            };
            match file {
                FileName::Segment(segment) => {
                    inventory.segments.entry(segment.timeline).or_default().insert(segment, entry.size);
                }
                FileName::History(timeline) => inventory.histories.push(timeline),
                other => inventory.others.push(other),
            }
        }
        Ok(inventory)
    }
}

fn public_of(name: &ObjectName, header: &Header) -> Result<([u8; 32], u64), SealError> {
    if header.public.len() != PUBLIC_LEN {
        return Err(SealError::Content { name: name.clone(), what: "header" });
    }
    Ok((array(&header.public[..32]), u64::from_le_bytes(array(&header.public[32..]))))
}
