//! An open repository: storage, secrets and caches together.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lru::LruCache;
use secrecy::SecretString;
use storage::{ObjectName, Storage, StorageError};

use crate::archive::Workers;
use crate::chunk::{Codec, Digester};
use crate::claim::CLAIM_TIME;
use crate::content::{ContentError, Entry, Extent, Leaf, decode_page};
use crate::description::{Description, DescriptionError};
use crate::file_list::map_name;
use crate::keys::{KeyError, Slot, SlotKey, SlotKind};
use crate::layout::{self, PackId};
use crate::local::{Drawer, LocalStore};
use crate::manifest::PageRef;
use crate::moved::{MOVES_MAX, Moved, is_absent_pack};
use crate::pack::{OpenPack, PackTable, SealedPack, Tail};
use crate::seal::SealError;
use crate::secrets::{Access, Keyring, WriterCredential};

/// Tables kept in memory, in bytes.
const TABLE_MEMORY: usize = 16 << 20;
/// Map chunks kept in memory; each has about 256 KiB.
const MAP_CHUNKS: usize = 24;
/// Records of moved packs kept in memory; each has about 100 KiB.
const MOVES: usize = 64;
/// First guess at the length of a pack's tail, where no manifest tells it.
const TAIL_GUESS: u64 = 128 << 10;
/// A slot or description is never larger.
const SMALL_OBJECT: u64 = 64 << 10;

/// What the user has to open a repository with.
pub enum Secret {
    /// A key file's or recovery sheet's key.
    Key(SlotKey),
    /// A passphrase.
    Passphrase(SecretString),
    /// A writer credential, which needs no slot.
    Writer(WriterCredential),
}

/// Why a repository could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// There is no repository at this place.
    #[error("there is no repository here")]
    Absent,
    /// There is a repository already.
    #[error("there is a repository here already")]
    Exists,
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A sealed object could not be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A key or slot was refused.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The description was refused.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// No slot opens with the passphrase.
    #[error("no key slot opens with this passphrase")]
    NoSlotOpens,
    /// The slot that a key file names is not there.
    #[error("the key slot {slot} of this key was removed from the repository")]
    SlotRemoved {
        /// The slot.
        slot: String,
    },
    /// Authentic, and yet not of the form that this program knows.
    #[error("{place}: unreadable {source}")]
    Content {
        /// Where.
        place: String,
        /// What.
        source: ContentError,
    },
    /// The claim of a backup that was about to exist is gone: prune took its operation for dead.
    #[error("it took longer than {} days, and what was stored may be gone", CLAIM_TIME.as_secs() / 86_400)]
    Overtaken,
    /// A pack that a backup was about to name was there when it began, and is gone.
    #[error("pack {pack} was stored and is gone: somebody else deleted it")]
    Lost {
        /// The pack.
        pack: PackId,
    },
    /// A manifest names something that its pack does not have.
    #[error("pack {pack} has no {what}")]
    Missing {
        /// The pack.
        pack: PackId,
        /// What is missing: a chunk, a range of one.
        what: String,
    },
}

impl RepositoryError {
    /// True for damage to what is stored, false for "could not look".
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Seal(SealError::NoPrivateKey { .. }) => false,
            Self::Seal(_) | Self::Content { .. } | Self::Missing { .. } => true,
            // Nothing that we write reaches a reader's limits.
            Self::Storage(error) => matches!(
                error,
                StorageError::Truncated { .. }
                    | StorageError::NotFound { .. }
                    | StorageError::TooLarge { .. }
            ),
            _ => false,
        }
    }

    /// True if what is stored cannot be read, by damage or for want of the private key, and trying again will not help.
    pub fn is_unreadable(&self) -> bool {
        self.is_damage() || matches!(self, Self::Seal(SealError::NoPrivateKey { .. }))
    }
}

/// An open repository.
pub struct Repository {
    storage: Arc<dyn Storage>,
    description: Description,
    access: Access,
    digester: Digester,
    local: LocalStore,
    place: String,
    tables: Mutex<TableCache>,
    maps: Mutex<MapCache>,
    moves: Mutex<MoveCache>,
    workers: Arc<Workers>,
}

/// Plaintext of map chunks, by pack and number.
type MapCache = LruCache<(PackId, u32), Arc<Vec<u8>>>;

/// Where the pages of packs went.
type MoveCache = LruCache<PackId, Arc<Moved>>;

struct TableCache {
    tables: LruCache<PackId, Arc<PackTable>>,
    weight: usize,
}

impl Repository {
    /// Makes a repository: first the slots, then the description, so that a repository without a key cannot be.
    pub async fn create(
        storage: Arc<dyn Storage>,
        keyring: Keyring,
        slots: &[Slot],
        description: Description,
        local: Option<&Path>,
    ) -> Result<Self, RepositoryError> {
        match storage.size(&layout::description()).await {
            Err(StorageError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(RepositoryError::Exists),
        }
        for slot in slots {
            storage.create(&layout::key_slot(&slot.id), &[Bytes::from(slot.encode())]).await?;
        }
        match storage.create(&layout::description(), &[Bytes::from(description.encode())]).await {
            Err(StorageError::NameTaken { .. }) => return Err(RepositoryError::Exists),
            other => other?,
        }
        Ok(Self::assemble(storage, description, Access::Full(keyring), local))
    }

    /// Reads the description; [`RepositoryError::Absent`] only if the storage proves that there is none.
    pub async fn describe(storage: &dyn Storage) -> Result<Description, RepositoryError> {
        match storage.read_all(&layout::description(), SMALL_OBJECT).await {
            Err(StorageError::NotFound { .. }) => Err(RepositoryError::Absent),
            other => Ok(Description::decode(&other?)?),
        }
    }

    /// Opens a repository whose description was read, with what the user has.
    ///
    /// `local` is the folder for caches; a writer credential and a key file whose slot is cached there need no request.
    pub async fn open(
        storage: Arc<dyn Storage>,
        description: Description,
        secret: &Secret,
        local: Option<&Path>,
    ) -> Result<Self, RepositoryError> {
        let access = match secret {
            Secret::Writer(writer) => Access::Write(writer.clone()),
            Secret::Key(key) => Access::Full(open_with_key(&*storage, key).await?),
            Secret::Passphrase(passphrase) => {
                Access::Full(open_with_passphrase(&*storage, &description, passphrase).await?)
            }
        };
        description.check(access.writer())?;
        Ok(Self::assemble(storage, description, access, local))
    }

    /// Puts a repository together from what was read and checked before.
    pub fn assemble(
        storage: Arc<dyn Storage>,
        description: Description,
        access: Access,
        local: Option<&Path>,
    ) -> Self {
        Self {
            digester: Digester::new(access.writer()),
            local: LocalStore::new(local, access.writer()),
            place: description.id().map(|id| id.to_string()).unwrap_or_default(),
            storage,
            description,
            access,
            tables: Mutex::new(TableCache { tables: LruCache::unbounded(), weight: 0 }),
            maps: Mutex::new(LruCache::new(NonZeroUsize::new(MAP_CHUNKS).expect("not zero"))),
            moves: Mutex::new(LruCache::new(NonZeroUsize::new(MOVES).expect("not zero"))),
            workers: Arc::default(),
        }
    }

    /// The same repository without this host's files: whoever proves something asks the storage for everything.
    pub fn without_cache(&self) -> Self {
        Self::assemble(self.storage.clone(), self.description.clone(), self.access.clone(), None)
    }

    /// Where the objects are.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// What the repository is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// What the secrets at hand allow.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Digests under this repository's keys.
    pub fn digester(&self) -> &Digester {
        &self.digester
    }

    /// This host's own files about the repository.
    pub fn local(&self) -> &LocalStore {
        &self.local
    }

    /// Records of moved packs that were read lately.
    pub(crate) fn moves(&self) -> &Mutex<MoveCache> {
        &self.moves
    }

    /// Buffers and contexts for WAL.
    pub(crate) fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// The repository's id as text.
    pub fn id(&self) -> &str {
        &self.place
    }

    /// The slots that can be read, and the ids of those that cannot.
    pub async fn slots(&self) -> Result<(Vec<Slot>, Vec<String>), RepositoryError> {
        read_slots(&*self.storage).await
    }

    /// Adds a slot.
    pub async fn add_slot(&self, slot: &Slot) -> Result<(), RepositoryError> {
        Ok(self.storage.create(&layout::key_slot(&slot.id), &[Bytes::from(slot.encode())]).await?)
    }

    /// Removes a slot; whoever has its passphrase or key can no longer open the repository with it.
    pub async fn remove_slot(&self, id: &str) -> Result<(), RepositoryError> {
        match self.storage.delete(&layout::key_slot(id)).await {
            Err(StorageError::NotFound { .. }) => Err(RepositoryError::SlotRemoved { slot: id.to_owned() }),
            other => Ok(other?),
        }
    }

    /// The size of an object; `None` if it is proven that it is not there.
    pub async fn stored_size(&self, name: &ObjectName) -> Result<Option<u64>, RepositoryError> {
        match self.storage.size(name).await {
            Ok(size) => Ok(Some(size)),
            Err(StorageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Every pack that a listing shows, with the size of its object.
    pub async fn pack_sizes(&self) -> Result<HashMap<PackId, u64>, RepositoryError> {
        let entries = self.storage.list(layout::PACKS).await?;
        let id = |entry: &storage::Entry| entry.name.as_str().rsplit('/').next().and_then(PackId::parse);
        Ok(entries.iter().filter_map(|entry| Some((id(entry)?, entry.size))).collect())
    }

    /// Stores a finished pack and keeps its table.
    pub async fn store_pack(&self, pack: SealedPack) -> Result<(), RepositoryError> {
        self.storage.create(&pack.name, &pack.parts).await?;
        // Their memory serves the next pack.
        drop(pack.parts);
        self.keep_table(pack.id, pack.table);
        Ok(())
    }

    /// Keeps a table in memory and on disk.
    fn keep_table(&self, id: PackId, table: PackTable) -> Arc<PackTable> {
        self.local.put(Drawer::Tables, &id.to_string(), &table.encode());
        self.remember_table(id, table)
    }

    fn remember_table(&self, id: PackId, table: PackTable) -> Arc<PackTable> {
        let table = Arc::new(table);
        let mut cache = self.tables.lock().expect("no holder panics");
        cache.weight += table.weight();
        if let Some(old) = cache.tables.put(id, table.clone()) {
            cache.weight -= old.weight();
        }
        while cache.weight > TABLE_MEMORY && cache.tables.len() > 1 {
            if let Some((_, old)) = cache.tables.pop_lru() {
                cache.weight -= old.weight();
            }
        }
        table
    }

    /// The table of a pack: from memory, from this host's cache, or from the pack itself. `tail_len` is the length of
    /// its table and footer if a manifest told it.
    pub async fn table(&self, id: PackId, tail_len: Option<u32>) -> Result<Arc<PackTable>, RepositoryError> {
        if let Some(table) = self.tables.lock().expect("no holder panics").tables.get(&id) {
            return Ok(table.clone());
        }
        let cached = self.local.get(Drawer::Tables, &id.to_string());
        if let Some(table) = cached.and_then(|bytes| PackTable::decode(&bytes)) {
            return Ok(self.remember_table(id, table));
        }
        let table = match self.open_pack(id, tail_len).await {
            Ok(pack) => pack.table,
            Err(absent) => self.moved_or(id, absent).await?.table.clone(),
        };
        Ok(self.keep_table(id, table))
    }

    /// Opens a pack: its table and its key, in one request if the length of its tail is known.
    pub async fn open_pack(&self, id: PackId, tail_len: Option<u32>) -> Result<OpenPack, RepositoryError> {
        if !self.access.can_read() {
            return Err(SealError::NoPrivateKey { name: layout::pack(id) }.into());
        }
        let mut wanted = tail_len.map_or(TAIL_GUESS, u64::from);
        loop {
            let tail = self.storage.read_tail(&layout::pack(id), wanted).await?;
            match OpenPack::from_tail(&self.access, id, tail.size, &tail.bytes)? {
                Tail::Open(pack) => return Ok(pack),
                Tail::Need(more) if more > wanted => wanted = more,
                Tail::Need(_) => return Err(SealError::Form { name: layout::pack(id) }.into()),
            }
        }
    }

    /// The plaintext of a map chunk, from memory, this host's cache or the pack.
    async fn map_chunk(&self, id: PackId, chunk: u32) -> Result<Arc<Vec<u8>>, RepositoryError> {
        if let Some(plain) = self.maps.lock().expect("no holder panics").get(&(id, chunk)) {
            return Ok(plain.clone());
        }
        let name = map_name(id, chunk);
        let plain = match self.local.get(Drawer::Maps, &name) {
            Some(plain) => plain,
            None => {
                let plain = self.read_map_chunk(id, chunk).await?;
                self.local.put(Drawer::Maps, &name, &plain);
                plain
            }
        };
        let plain = Arc::new(plain);
        self.maps.lock().expect("no holder panics").put((id, chunk), plain.clone());
        Ok(plain)
    }

    /// Reads, opens and checks one chunk of the map, wherever it was moved to.
    async fn read_map_chunk(&self, mut id: PackId, mut chunk: u32) -> Result<Vec<u8>, RepositoryError> {
        for _ in 0..MOVES_MAX {
            let absent = match self.read_chunk(id, chunk).await {
                Err(error) if is_absent_pack(&error, id) => error,
                other => return other,
            };
            let first_byte = Extent { pack: id, chunk, offset: 0, length: 1 };
            let moved = self.moved_or(id, absent).await?.forward(first_byte)?;
            (id, chunk) = moved.first().map(|at| (at.pack, at.chunk)).expect("a byte is somewhere");
        }
        Err(RepositoryError::Missing { pack: id, what: "an end of its moves".into() })
    }

    /// Reads, opens and checks one chunk.
    pub async fn read_chunk(&self, id: PackId, chunk: u32) -> Result<Vec<u8>, RepositoryError> {
        let pack = self.open_pack(id, None).await?;
        let missing = || RepositoryError::Missing { pack: id, what: format!("chunk {chunk}") };
        let info = pack.table.chunks.get(chunk as usize).ok_or_else(missing)?;
        let range = info.offset..info.offset + u64::from(info.stored_len);
        let mut sealed = self.storage.read(&layout::pack(id), range).await?.to_vec();
        Ok(pack.chunk_within(chunk, info.offset, &mut sealed, &mut Codec::new(1), &self.digester)?)
    }

    async fn map_bytes(&self, at: Extent) -> Result<Vec<u8>, RepositoryError> {
        let plain = self.map_chunk(at.pack, at.chunk).await?;
        let start = at.offset as usize;
        let range = start..start + at.length as usize;
        let missing =
            || RepositoryError::Missing { pack: at.pack, what: format!("map at {}+{}", at.chunk, at.offset) };
        Ok(plain.get(range).ok_or_else(missing)?.to_vec())
    }

    /// A leaf that covers `span` bytes of its file.
    pub async fn leaf(&self, at: Extent, span: u64) -> Result<Leaf, RepositoryError> {
        let bytes = self.map_bytes(at).await?;
        Leaf::decode(&bytes, span).map_err(|source| content_error(at, source))
    }

    /// The entries of a list page.
    pub async fn list_page(&self, page: &PageRef) -> Result<Vec<Entry>, RepositoryError> {
        let at =
            page.extent().map_err(|source| RepositoryError::Content { place: "manifest".into(), source })?;
        let bytes = self.map_bytes(at).await?;
        if self.digester.content(&bytes)[..] != page.digest[..] {
            return Err(content_error(at, ContentError { what: "list page of another digest" }));
        }
        decode_page(&bytes).map_err(|source| content_error(at, source))
    }
}

fn content_error(at: Extent, source: ContentError) -> RepositoryError {
    RepositoryError::Content { place: format!("pack {} chunk {}", at.pack, at.chunk), source }
}

async fn open_with_key(storage: &dyn Storage, key: &SlotKey) -> Result<Keyring, RepositoryError> {
    match storage.read_all(&layout::key_slot(key.slot()), SMALL_OBJECT).await {
        Err(StorageError::NotFound { .. }) => {
            Err(RepositoryError::SlotRemoved { slot: key.slot().to_owned() })
        }
        other => Ok(Slot::decode(key.slot(), &other?)?.open_with_key(key)?),
    }
}

/// A slot that an interrupted `init` left may open with the same passphrase, to another keyring: the description decides.
async fn open_with_passphrase(
    storage: &dyn Storage,
    description: &Description,
    passphrase: &SecretString,
) -> Result<Keyring, RepositoryError> {
    let (slots, _) = read_slots(storage).await?;
    let mut refused = None;
    for slot in slots.iter().filter(|slot| slot.kind == SlotKind::Passphrase) {
        match slot.open_with_passphrase(passphrase) {
            Ok(keyring) => match description.check(&keyring.writer) {
                Ok(()) => return Ok(keyring),
                Err(error) => refused = Some(error.into()),
            },
            Err(KeyError::Wrong { .. }) => {}
            Err(error) => refused = Some(error.into()),
        }
    }
    Err(refused.unwrap_or(RepositoryError::NoSlotOpens))
}

async fn read_slots(storage: &dyn Storage) -> Result<(Vec<Slot>, Vec<String>), RepositoryError> {
    let (mut slots, mut unreadable) = (Vec::new(), Vec::new());
    for entry in storage.list(layout::KEYS).await? {
        let id = entry.name.as_str().trim_start_matches(layout::KEYS).to_owned();
        let slot = match storage.read_all(&entry.name, SMALL_OBJECT).await {
            Ok(bytes) => Slot::decode(&id, &bytes).ok(),
            Err(StorageError::NotFound { .. } | StorageError::TooLarge { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        match slot {
            Some(slot) => slots.push(slot),
            None => unreadable.push(id),
        }
    }
    Ok((slots, unreadable))
}
