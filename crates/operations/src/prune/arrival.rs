//! Whether the pages of a pack are whole where they were moved to: asked before the pack goes, which may be the only one that
//! has them.
//!
//! The new pack may have been lost in the meantime, or taken for dead while the host that moved was asleep; and whoever has a
//! writer credential can write down that pages are where they are not. So each page is read where it is said to be, and
//! compared with the digest that the old pack itself has of it.

use std::num::NonZeroUsize;

use lru::LruCache;
use repository::chunk::{ChunkDigest, PAGE, PageDigest};
use repository::content::Extent;
use repository::moved::{MOVES_MAX, Moved};
use repository::pack::{ChunkKind, PackTable};
use repository::{PackId, Repository, RepositoryError};

/// Chunks whose digests are remembered: pages of several old packs are in one of them. Some 4 MiB.
const CHUNKS: usize = 4096;

/// What a chunk was found to hold.
struct Found {
    digest: ChunkDigest,
    pages: Vec<PageDigest>,
}

/// Reads pages where they were moved to.
pub(crate) struct Arrival<'r> {
    repository: &'r Repository,
    chunks: LruCache<(PackId, u32), Found>,
}

impl<'r> Arrival<'r> {
    pub(crate) fn new(repository: &'r Repository) -> Self {
        Self { repository, chunks: LruCache::new(NonZeroUsize::new(CHUNKS).expect("not zero")) }
    }

    /// Fails with damage unless all that was moved out of a pack is whole where it is now. True if the pack is still there.
    pub(crate) async fn check(&mut self, id: PackId) -> Result<bool, RepositoryError> {
        let table = match self.repository.open_pack(id, None).await {
            Err(error) if repository::moved::is_absent_pack(&error, id) => return Ok(false),
            other => other?.table,
        };
        let missing = |what: &str| RepositoryError::Missing { pack: id, what: what.to_owned() };
        let moved = self.repository.moved(id).await?.ok_or_else(|| missing("record of its move"))?;
        if moved.table != table {
            return Err(missing("table like that in the record of its move"));
        }
        for old in moved.extents(id) {
            self.extent(&table, old, &moved).await?;
        }
        Ok(true)
    }

    /// Compares what was moved out of one chunk, wherever it was moved on to. A page that a later move left out is named by nobody:
    /// the walk before this saw that every page which is named can be followed to its end.
    async fn extent(&mut self, table: &PackTable, old: Extent, moved: &Moved) -> Result<(), RepositoryError> {
        let repository = self.repository;
        let whole = &table.chunks[old.chunk as usize];
        let mut open = numbered(moved.forward(old)?, old.offset / PAGE as u32, 0);
        while let Some((at, page, moves)) = open.pop() {
            let found = match self.found(at).await {
                Err(absent) if moves < MOVES_MAX => {
                    let moved_on = repository.moved_or(at.pack, absent).await?;
                    let parts = if whole.kind == ChunkKind::Map { vec![at] } else { single_pages(at) };
                    for (number, part) in parts.into_iter().enumerate() {
                        match moved_on.forward(part) {
                            Ok(places) => open.extend(numbered(places, page + number as u32, moves + 1)),
                            Err(RepositoryError::Missing { .. }) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    continue;
                }
                other => other?,
            };
            let first = at.offset as usize / PAGE;
            let same = |number: u64, found: Option<PageDigest>| {
                found.is_some() && found == table.page(old.chunk, page + number as u32)
            };
            let (pages, short) = (at.length / PAGE as u64, at.length % PAGE as u64);
            let mut is_same = match whole.kind {
                ChunkKind::Map => found.digest == whole.digest,
                ChunkKind::Data => {
                    (0..pages).all(|number| same(number, found.pages.get(first + number as usize).copied()))
                }
            };
            // The last page of a chunk may be short, and was filled up with zeros where it went.
            if is_same && short > 0 && whole.kind == ChunkKind::Data {
                is_same = same(pages, self.short_page(at, first + pages as usize, short as usize).await?);
            }
            if !is_same {
                let what = format!("chunk {} at {} as it was before it was moved there", at.chunk, at.offset);
                return Err(RepositoryError::Missing { pack: at.pack, what });
            }
        }
        Ok(())
    }

    /// The digest of a page's first bytes; `None` if the chunk has no such page.
    async fn short_page(
        &self,
        at: Extent,
        page: usize,
        length: usize,
    ) -> Result<Option<PageDigest>, RepositoryError> {
        let plain = self.repository.read_chunk(at.pack, at.chunk).await?;
        let mut digest = None;
        if let Some(bytes) = plain.get(page * PAGE..page * PAGE + length) {
            self.repository.digester().chunk(bytes, |page| digest = Some(page));
        }
        Ok(digest)
    }

    /// What a chunk holds, by its own bytes.
    async fn found(&mut self, at: Extent) -> Result<&Found, RepositoryError> {
        let key = (at.pack, at.chunk);
        if !self.chunks.contains(&key) {
            let plain = self.repository.read_chunk(at.pack, at.chunk).await?;
            let mut pages = Vec::new();
            let digest = self.repository.digester().chunk(&plain, |page| pages.push(page));
            self.chunks.put(key, Found { digest, pages });
        }
        Ok(self.chunks.get(&key).expect("it was put there"))
    }
}

/// Places that follow each other, each with the number of its first page in the old chunk, and after how many moves.
fn numbered(places: Vec<Extent>, mut page: u32, moves: usize) -> Vec<(Extent, u32, usize)> {
    let number = |at: Extent| {
        let first = page;
        page += at.length.div_ceil(PAGE as u64) as u32;
        (at, first, moves)
    };
    places.into_iter().map(number).collect()
}

/// The pages of an extent, one by one.
fn single_pages(at: Extent) -> Vec<Extent> {
    let pages = (0..at.length).step_by(PAGE);
    let page = |from: u64| Extent {
        offset: at.offset + from as u32,
        length: (at.length - from).min(PAGE as u64),
        ..at
    };
    pages.map(page).collect()
}
