//! Moving the named pages out of packs that are mostly dead.

use std::sync::Arc;

use repository::chunk::{Codec, PAGE};
use repository::layout;
use repository::lease::Lease;
use repository::moved::{Moved, MovedRun};
use repository::pack::{ChunkKind, Gathered, Gatherer, PackTable, SealedPack};
use repository::{PackId, Repository, RepositoryError};

use super::PruneError;
use super::usage::Usage;
use crate::failpoint;
use crate::monitor::{Event, Monitor};

/// Named chunks with fewer bytes than this between them are read by one request.
const GAP_BYTES: u64 = 512 << 10;
/// Bytes of one request.
const READ_BYTES: u64 = 8 << 20;

/// Moves pages, several old packs into one new pack, and writes down where they went once they are stored there.
pub(crate) struct Mover<'m> {
    repository: &'m Arc<Repository>,
    monitor: &'m dyn Monitor,
    codec: Codec,
    gatherer: Gatherer,
    /// Packs that were read to their end, and where their pages will stand.
    read: Vec<(PackId, PackTable, Vec<MovedRun>)>,
    /// Packs whose pages stand elsewhere now.
    pub(crate) moved: Vec<PackId>,
}

impl<'m> Mover<'m> {
    pub(crate) fn new(repository: &'m Arc<Repository>, level: i32, monitor: &'m dyn Monitor) -> Self {
        let gatherer = Gatherer::new(repository, level);
        Self { repository, monitor, codec: Codec::new(1), gatherer, read: Vec::new(), moved: Vec::new() }
    }

    /// Copies the named pages of one pack.
    pub(crate) async fn take(
        &mut self,
        id: PackId,
        usage: &Usage,
        lease: &mut Lease,
    ) -> Result<(), PruneError> {
        let open = match self.repository.open_pack(id, None).await {
            // Another run of prune was faster.
            Err(error) if repository::moved::is_absent_pack(&error, id) => return Ok(()),
            other => other?,
        };
        let mut runs = Vec::new();
        for span in spans(&open.table, usage) {
            let first = open.table.chunks[span.0].offset;
            let last = &open.table.chunks[span.1];
            let range = first..last.offset + u64::from(last.stored_len);
            let mut sealed = self.read_range(id, range).await?;
            for chunk in (span.0..=span.1).filter(|chunk| usage.chunks[*chunk] != 0) {
                let (number, info) = (chunk as u32, &open.table.chunks[chunk]);
                // What is copied is checked: a new pack must not give a damaged page a good digest.
                let digester = self.repository.digester();
                let plain = open.chunk_within(number, first, &mut sealed, &mut self.codec, digester);
                let plain = plain.map_err(RepositoryError::from)?;
                self.copy_chunk(info.kind, number, &plain, usage.chunks[chunk], &mut runs, lease).await?;
                self.monitor.event(Event::Advanced { bytes: u64::from(info.stored_len) });
            }
        }
        self.read.push((id, open.table, runs));
        Ok(())
    }

    /// Stores what is left.
    pub(crate) async fn finish(&mut self, lease: &mut Lease) -> Result<(), PruneError> {
        let last = self.gatherer.finish().map_err(PruneError::Codec)?;
        self.store(last, lease).await
    }

    async fn read_range(&self, id: PackId, range: std::ops::Range<u64>) -> Result<Vec<u8>, RepositoryError> {
        Ok(self.repository.storage().read(&layout::pack(id), range).await?.to_vec())
    }

    /// Copies the named pages of one chunk; `bits` tells which.
    async fn copy_chunk(
        &mut self,
        kind: ChunkKind,
        chunk: u32,
        plain: &[u8],
        bits: u128,
        runs: &mut Vec<MovedRun>,
        lease: &mut Lease,
    ) -> Result<(), PruneError> {
        if kind == ChunkKind::Map {
            self.gatherer.end_chunk().map_err(PruneError::Codec)?;
            self.store_if_full(lease).await?;
            let to = self.gatherer.add_map(plain).map_err(PruneError::Codec)?;
            runs.push(MovedRun {
                chunk,
                page: 0,
                pages: 0,
                to_pack: to.pack,
                to_chunk: to.chunk,
                to_page: 0,
            });
            return Ok(());
        }
        for (page, bytes) in plain.chunks(PAGE).enumerate() {
            if bits >> page & 1 == 0 {
                continue;
            }
            self.store_if_full(lease).await?;
            let Gathered { pack: to_pack, chunk: to_chunk, page: to_page } = self.gatherer.add_page(bytes);
            let page = page as u32;
            match runs.last_mut() {
                Some(run)
                    if (run.chunk, run.page + run.pages) == (chunk, page)
                        && (run.to_pack, run.to_chunk, run.to_page + run.pages)
                            == (to_pack, to_chunk, to_page)
                        && run.pages > 0 =>
                {
                    run.pages += 1;
                }
                _ => runs.push(MovedRun { chunk, page, pages: 1, to_pack, to_chunk, to_page }),
            }
        }
        Ok(())
    }

    async fn store_if_full(&mut self, lease: &mut Lease) -> Result<(), PruneError> {
        match self.gatherer.take_full().map_err(PruneError::Codec)? {
            Some(pack) => self.store(Some(pack), lease).await,
            None => Ok(()),
        }
    }

    /// Stores a new pack, in which every page is that was copied, and then where the pages of each pack went that was read to
    /// its end.
    async fn store(&mut self, pack: Option<SealedPack>, lease: &mut Lease) -> Result<(), PruneError> {
        lease.confirm().await?;
        if let Some(pack) = pack {
            self.repository.store_pack(pack).await?;
            failpoint::reach("prune.packed");
        }
        for (id, table, runs) in std::mem::take(&mut self.read) {
            // A host that slept may have been overtaken by one that took the new pack for dead.
            lease.confirm().await?;
            self.repository.store_moved(id, &Moved::new(table, runs)).await?;
            failpoint::reach("prune.moved");
            self.moved.push(id);
        }
        Ok(())
    }
}

/// Ranges of chunks, first and last, that hold named pages and are read by one request each.
fn spans(table: &PackTable, usage: &Usage) -> Vec<(usize, usize)> {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    let end = |chunk: usize| table.chunks[chunk].offset + u64::from(table.chunks[chunk].stored_len);
    for chunk in (0..table.chunks.len()).filter(|chunk| usage.chunks[*chunk] != 0) {
        match spans.last_mut() {
            Some((first, last))
                if table.chunks[chunk].offset <= end(*last) + GAP_BYTES
                    && end(chunk) - table.chunks[*first].offset <= READ_BYTES =>
            {
                *last = chunk;
            }
            _ => spans.push((chunk, chunk)),
        }
    }
    spans
}
