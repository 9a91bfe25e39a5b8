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

    /// Compares what was moved out of one chunk, wherever it was moved on to.
    async fn extent(&mut self, table: &PackTable, old: Extent, moved: &Moved) -> Result<(), RepositoryError> {
        let repository = self.repository;
        let whole = &table.chunks[old.chunk as usize];
        let mut page = old.offset / PAGE as u32;
        let in_order = |places: Vec<Extent>, moves| places.into_iter().rev().map(move |at| (at, moves));
        let mut open: Vec<(Extent, usize)> = in_order(moved.forward(old)?, 0).collect();
        while let Some((at, moves)) = open.pop() {
            let found = match self.found(at).await {
                Err(absent) if moves < MOVES_MAX => {
                    let moved_on = repository.moved_or(at.pack, absent).await?.forward(at)?;
                    open.extend(in_order(moved_on, moves + 1));
                    continue;
                }
                other => other?,
            };
            let first = at.offset as usize / PAGE;
            let mut pages = first..first + at.length.div_ceil(PAGE as u64) as usize;
            let is_same = match whole.kind {
                ChunkKind::Map => found.digest == whole.digest,
                ChunkKind::Data => pages.all(|number| {
                    page += 1;
                    found.pages.get(number).copied() == table.page(old.chunk, page - 1)
                }),
            };
            if !is_same {
                let what = format!("chunk {} at {} as it was before it was moved there", at.chunk, at.offset);
                return Err(RepositoryError::Missing { pack: at.pack, what });
            }
        }
        Ok(())
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
