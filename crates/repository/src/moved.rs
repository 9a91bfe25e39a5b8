//! Where prune moved the live pages of a pack: runs of pages, from old places to new ones.
//!
//! Manifests, leaves and list pages go on naming the old place: they never change. Whoever finds a pack absent asks for
//! its [`Moved`] before he takes it for lost. It carries the old pack's table, too, because the next backup compares with
//! the page digests in it.

mod places;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use prost::Message;
use storage::StorageError;

use crate::chunk::PAGE;
use crate::content::{ContentError, Extent};
use crate::layout::{self, PackId};
use crate::manifest::PackRef;
use crate::pack::{ChunkKind, PackTable};
use crate::pages::pieces;
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Kind, open_stream, seal_stream};

pub use places::Places;

/// A table of 1024 chunks with all their pages has 1 MiB, and each page may have a run of its own.
const MOVED_LIMIT: u64 = 8 << 20;
/// A pack that was moved may be moved on, each time with at most half of its pages.
pub const MOVES_MAX: usize = 32;

/// What there is of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoredPack {
    /// The pack, of so many bytes.
    As(u64),
    /// Its named pages, in other packs.
    Moved,
    /// Neither. This one is lost: the pack, or one that its pages were moved to.
    No(PackId),
}

/// Pages that lie behind each other before and after.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MovedRun {
    /// The chunk of the old pack.
    pub chunk: u32,
    /// The first page in it; 0 for a chunk of the map, which is moved whole.
    pub page: u32,
    /// How many pages; 0 for a chunk of the map.
    pub pages: u32,
    /// Where it is now: the pack.
    pub to_pack: PackId,
    /// The chunk in it.
    pub to_chunk: u32,
    /// The page in that.
    pub to_page: u32,
}

/// Where the live pages of one pack went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The old pack's table.
    pub table: PackTable,
    runs: Vec<MovedRun>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredMoved {
    #[prost(bytes = "vec", repeated, tag = "1")]
    packs: Vec<Vec<u8>>,
    /// Six numbers a run: chunk, page, pages, index of the new pack, chunk, page.
    #[prost(uint32, repeated, tag = "2")]
    runs: Vec<u32>,
    #[prost(bytes = "vec", tag = "3")]
    table: Vec<u8>,
}

impl Moved {
    /// Of a pack with this table, whose live pages are now where `runs` say.
    pub fn new(table: PackTable, mut runs: Vec<MovedRun>) -> Self {
        runs.sort_unstable();
        Self { table, runs }
    }

    /// The packs that the pages are in now, each once.
    pub fn packs(&self) -> Vec<PackId> {
        let mut packs: Vec<_> = self.runs.iter().map(|run| run.to_pack).collect();
        packs.sort_unstable();
        packs.dedup();
        packs
    }

    /// Where everything was in the old pack `id` that was moved, a run of pages or a chunk of the map each.
    pub fn extents(&self, id: PackId) -> Vec<Extent> {
        let extent = |run: &MovedRun| {
            let offset = run.page * PAGE as u32;
            let chunk_len = self.table.chunks.get(run.chunk as usize).map_or(0, |info| info.plain_len);
            let rest = u64::from(chunk_len.saturating_sub(offset));
            let length = if run.pages == 0 { rest } else { rest.min(u64::from(run.pages) * PAGE as u64) };
            Extent { pack: id, chunk: run.chunk, offset, length }
        };
        self.runs.iter().map(extent).collect()
    }

    /// How many bytes of pages went to each pack.
    pub fn bytes_by_pack(&self) -> BTreeMap<PackId, u64> {
        // Of a chunk of the map the length stands in the old table.
        let map = |run: &MovedRun| self.table.chunks.get(run.chunk as usize).map_or(0, |info| info.plain_len);
        let mut bytes = BTreeMap::new();
        for run in &self.runs {
            let length =
                if run.pages == 0 { u64::from(map(run)) } else { u64::from(run.pages) * PAGE as u64 };
            *bytes.entry(run.to_pack).or_default() += length;
        }
        bytes
    }

    /// Where the bytes of an extent in the old pack are now, in order.
    pub fn forward(&self, old: Extent) -> Result<Vec<Extent>, RepositoryError> {
        let mut forwarded = Vec::new();
        for piece in pieces(&self.table, old)? {
            match self.table.chunks[piece.chunk as usize].kind {
                ChunkKind::Map => {
                    let run = self.run_of(piece, 0)?;
                    forwarded.push(Extent { pack: run.to_pack, chunk: run.to_chunk, ..piece });
                }
                ChunkKind::Data => self.forward_pages(piece, &mut forwarded)?,
            }
        }
        Ok(forwarded)
    }

    fn forward_pages(&self, piece: Extent, forwarded: &mut Vec<Extent>) -> Result<(), RepositoryError> {
        let page_len = PAGE as u64;
        let (mut offset, mut rest) = (u64::from(piece.offset), piece.length);
        while rest > 0 {
            let page = (offset / page_len) as u32;
            let run = self.run_of(piece, page)?;
            let within = offset - u64::from(run.page) * page_len;
            let length = rest.min(u64::from(run.pages) * page_len - within);
            forwarded.push(Extent {
                pack: run.to_pack,
                chunk: run.to_chunk,
                offset: (u64::from(run.to_page) * page_len + within) as u32,
                length,
            });
            (offset, rest) = (offset + length, rest - length);
        }
        Ok(())
    }

    fn run_of(&self, piece: Extent, page: u32) -> Result<&MovedRun, RepositoryError> {
        let after = self.runs.partition_point(|run| (run.chunk, run.page) <= (piece.chunk, page));
        let run = after.checked_sub(1).map(|at| &self.runs[at]);
        // Only a chunk of the map is moved whole, and only from its beginning.
        let is_map = self.table.chunks[piece.chunk as usize].kind == ChunkKind::Map;
        let holds = |run: &&MovedRun| {
            run.chunk == piece.chunk
                && if is_map { (run.page, run.pages) == (0, 0) } else { page < run.page + run.pages }
        };
        run.filter(holds).ok_or_else(|| RepositoryError::Missing {
            pack: piece.pack,
            what: format!("page {page} of chunk {} where it was moved to", piece.chunk),
        })
    }

    fn encode(&self) -> Vec<u8> {
        let packs = self.packs();
        let index = |pack: &PackId| packs.binary_search(pack).expect("a list of all of them") as u32;
        let numbers =
            |run: &MovedRun| [run.chunk, run.page, run.pages, index(&run.to_pack), run.to_chunk, run.to_page];
        let runs = self.runs.iter().flat_map(numbers).collect();
        let packs = packs.iter().map(|pack| pack.0.to_vec()).collect();
        StoredMoved { packs, runs, table: self.table.encode() }.encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        let bad = |what| ContentError { what };
        let stored = StoredMoved::decode(bytes).map_err(|_| bad("record of a moved pack"))?;
        let table = PackTable::decode(&stored.table).ok_or(bad("table of a moved pack"))?;
        let pack = |index: u32| {
            let bytes = stored.packs.get(index as usize)?;
            bytes[..].try_into().map(PackId).ok()
        };
        let (runs, []) = stored.runs.as_chunks::<6>() else { return Err(bad("runs of a moved pack")) };
        let run = |&[chunk, page, pages, to, to_chunk, to_page]: &[u32; 6]| {
            // No chunk has more pages; a sum of two of these cannot overflow.
            let bounded = [page, pages, to_page]
                .iter()
                .all(|number| *number <= (crate::chunk::MAX_CHUNK / PAGE) as u32);
            let to_pack = pack(to).filter(|_| bounded).ok_or(bad("run of a moved pack"))?;
            Ok(MovedRun { chunk, page, pages, to_pack, to_chunk, to_page })
        };
        Ok(Self::new(table, runs.iter().map(run).collect::<Result<_, ContentError>>()?))
    }
}

impl Repository {
    /// Writes down where the live pages of `id` are now, which must be stored. False if that was written down before:
    /// then what stands there holds.
    pub async fn store_moved(&self, id: PackId, moved: &Moved) -> Result<bool, RepositoryError> {
        let name = layout::moved(id);
        let object = seal_stream(self.access().writer(), Kind::Moved, &name, &[], &moved.encode());
        match self.storage().create(&name, &[object]).await {
            Ok(()) => Ok(true),
            Err(StorageError::NameTaken { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Where the pages of a pack went; `None` if it is proven that it was not moved.
    pub async fn moved(&self, id: PackId) -> Result<Option<Arc<Moved>>, RepositoryError> {
        if let Some(moved) = self.moves().lock().expect("no holder panics").get(&id) {
            return Ok(Some(moved.clone()));
        }
        let name = layout::moved(id);
        let object = match self.storage().read_all(&name, MOVED_LIMIT).await {
            Err(StorageError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let (_, content) = open_stream(self.access(), Kind::Moved, &name, &object)?;
        let unreadable = |source| RepositoryError::Content { place: name.to_string(), source };
        let moved = Arc::new(Moved::decode(&content).map_err(unreadable)?);
        self.moves().lock().expect("no holder panics").put(id, moved.clone());
        Ok(Some(moved))
    }

    /// Where the pages of a pack went that was asked for and is not there: its absence, unless it was moved.
    pub async fn moved_or(&self, id: PackId, absent: RepositoryError) -> Result<Arc<Moved>, RepositoryError> {
        if !is_absent_pack(&absent, id) {
            return Err(absent);
        }
        self.moved(id).await?.ok_or(absent)
    }

    /// Whether a pack is stored, or all that prune moved its pages to. Where they went is lost with a record that cannot be read.
    pub async fn stored_pack(&self, id: PackId) -> Result<StoredPack, RepositoryError> {
        if let Some(size) = self.stored_size(&layout::pack(id)).await? {
            return Ok(StoredPack::As(size));
        }
        let lost = self.lost_of(id, &HashMap::new()).await?;
        Ok(lost.map_or(StoredPack::Moved, StoredPack::No))
    }

    /// Of the packs that the pages of an absent one went to, one that is neither stored nor was moved on; itself if it was not
    /// moved. What is in `there` is not asked for.
    async fn lost_of(
        &self,
        id: PackId,
        there: &HashMap<PackId, u64>,
    ) -> Result<Option<PackId>, RepositoryError> {
        let (mut open, mut seen) = (vec![id], HashSet::new());
        while let Some(absent) = open.pop() {
            let moved = match self.moved(absent).await {
                Err(error) if error.is_damage() => None,
                other => other?,
            };
            let Some(moved) = moved else { return Ok(Some(absent)) };
            for to in moved.packs() {
                let is_new = seen.insert(to) && !there.contains_key(&to);
                if is_new && self.stored_size(&layout::pack(to)).await?.is_none() {
                    open.push(to);
                }
            }
        }
        Ok(None)
    }

    /// Those of the packs that no listing shows in their size, nor as moved to packs that are there. It may lack what is there, so that nothing may be
    /// deleted by it; what it calls lost is stored again.
    pub async fn lost_packs<'p>(
        &self,
        packs: impl Iterator<Item = (PackId, &'p PackRef)>,
    ) -> Result<HashSet<PackId>, RepositoryError> {
        let mut packs = packs.peekable();
        if packs.peek().is_none() {
            return Ok(HashSet::new());
        }
        let there = self.pack_sizes().await?;
        let is_lost = |(id, pack): &(PackId, &PackRef)| there.get(id) != Some(&pack.size);
        let mut lost: HashSet<PackId> = packs.filter(is_lost).map(|(id, _)| id).collect();
        if !lost.is_empty() {
            for moved in self.moved_ids().await?.into_iter().filter(|id| !there.contains_key(id)) {
                // A host that cannot read the record takes its word.
                let is_lost = lost.contains(&moved)
                    && self.access().can_read()
                    && self.lost_of(moved, &there).await?.is_some();
                if !is_lost {
                    lost.remove(&moved);
                }
            }
        }
        Ok(lost)
    }

    /// The packs that were moved, as a listing shows them.
    pub async fn moved_ids(&self) -> Result<Vec<PackId>, RepositoryError> {
        let entries = self.storage().list(layout::MOVED).await?;
        Ok(entries
            .iter()
            .filter_map(|entry| PackId::parse(&entry.name.as_str()[layout::MOVED.len()..]))
            .collect())
    }
}

/// Whether this error is the proven absence of the pack.
pub fn is_absent_pack(error: &RepositoryError, id: PackId) -> bool {
    matches!(error, RepositoryError::Storage(StorageError::NotFound { name }) if *name == layout::pack(id))
}
