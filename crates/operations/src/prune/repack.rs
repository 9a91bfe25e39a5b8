//! Moving the named pages out of packs that are mostly dead.

use std::sync::Arc;

use repository::chunk::{Codec, MAX_CHUNK, PAGE};
use repository::layout;
use repository::lease::Lease;
use repository::moved::{Moved, MovedRun};
use repository::pack::{ChunkKind, OpenPack, PackMemory, PackTable, PackWriter};
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
    level: i32,
    pack: Option<PackWriter>,
    /// Pages of the chunk being made.
    pages: Vec<u8>,
    /// Packs that were read to their end, and where their pages will stand.
    read: Vec<(PackId, PackTable, Vec<MovedRun>)>,
    /// Packs whose pages stand elsewhere now.
    pub(crate) moved: Vec<PackId>,
}

impl<'m> Mover<'m> {
    pub(crate) fn new(repository: &'m Arc<Repository>, level: i32, monitor: &'m dyn Monitor) -> Self {
        let codec = Codec::new(level);
        let pages = Vec::with_capacity(MAX_CHUNK);
        Self { repository, monitor, codec, level, pack: None, pages, read: Vec::new(), moved: Vec::new() }
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
                let plain = self.open_chunk(&open, chunk, first, &mut sealed)?;
                self.copy_chunk(&open.table, chunk, &plain, usage.chunks[chunk], &mut runs)?;
                self.monitor.event(Event::Advanced { bytes: u64::from(open.table.chunks[chunk].stored_len) });
                self.store_if_full(lease).await?;
            }
        }
        self.read.push((id, open.table, runs));
        Ok(())
    }

    /// Stores what is left.
    pub(crate) async fn finish(&mut self, lease: &mut Lease) -> Result<(), PruneError> {
        self.end_chunk()?;
        self.store(lease).await
    }

    async fn read_range(&self, id: PackId, range: std::ops::Range<u64>) -> Result<Vec<u8>, RepositoryError> {
        Ok(self.repository.storage().read(&layout::pack(id), range).await?.to_vec())
    }

    fn open_chunk(
        &mut self,
        open: &OpenPack,
        chunk: usize,
        first: u64,
        sealed: &mut [u8],
    ) -> Result<Vec<u8>, RepositoryError> {
        let info = &open.table.chunks[chunk];
        let start = (info.offset - first) as usize;
        let frame = &mut sealed[start..start + info.stored_len as usize];
        let mut plain = vec![0; info.plain_len as usize];
        // What is copied is checked: a new pack must not give a damaged page a good digest.
        open.chunk(chunk as u32, frame, &mut self.codec, Some(self.repository.digester()), &mut plain)?;
        Ok(plain)
    }

    /// Copies the named pages of one chunk; `bits` tells which.
    fn copy_chunk(
        &mut self,
        table: &PackTable,
        chunk: usize,
        plain: &[u8],
        bits: u128,
        runs: &mut Vec<MovedRun>,
    ) -> Result<(), PruneError> {
        let number = chunk as u32;
        if table.chunks[chunk].kind == ChunkKind::Map {
            self.end_chunk()?;
            let digester = self.repository.digester();
            let pack = open_pack(&mut self.pack, self.repository);
            let to_chunk = pack.add_map(&mut self.codec, digester, plain).map_err(PruneError::Codec)?;
            runs.push(MovedRun {
                chunk: number,
                page: 0,
                pages: 0,
                to_pack: pack.id(),
                to_chunk,
                to_page: 0,
            });
            return Ok(());
        }
        for (page, bytes) in plain.chunks(PAGE).enumerate() {
            if bits >> page & 1 == 0 {
                continue;
            }
            if self.pages.len() + PAGE > MAX_CHUNK {
                self.end_chunk()?;
            }
            let pack = open_pack(&mut self.pack, self.repository);
            let (to_pack, to_chunk) = (pack.id(), pack.len());
            let to_page = (self.pages.len() / PAGE) as u32;
            self.pages.extend_from_slice(bytes);
            let page = page as u32;
            match runs.last_mut() {
                Some(run)
                    if (run.chunk, run.page + run.pages) == (number, page)
                        && (run.to_pack, run.to_chunk, run.to_page + run.pages)
                            == (to_pack, to_chunk, to_page)
                        && run.pages > 0 =>
                {
                    run.pages += 1;
                }
                _ => runs.push(MovedRun { chunk: number, page, pages: 1, to_pack, to_chunk, to_page }),
            }
        }
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), PruneError> {
        if self.pages.is_empty() {
            return Ok(());
        }
        let digester = self.repository.digester();
        let mut digests = Vec::with_capacity(self.pages.len() / PAGE);
        digester.pages(&self.pages, &mut digests);
        let pack = open_pack(&mut self.pack, self.repository);
        pack.add_pages(&mut self.codec, digester, &self.pages, &digests).map_err(PruneError::Codec)?;
        self.pages.clear();
        Ok(())
    }

    async fn store_if_full(&mut self, lease: &mut Lease) -> Result<(), PruneError> {
        if self.pack.as_ref().is_some_and(PackWriter::is_full) {
            self.end_chunk()?;
            self.store(lease).await?;
        }
        Ok(())
    }

    /// Stores the new pack, and then where the pages of each pack went whose last page is stored now.
    async fn store(&mut self, lease: &mut Lease) -> Result<(), PruneError> {
        lease.confirm().await?;
        if let Some(pack) = self.pack.take().filter(|pack| !pack.is_empty()) {
            self.repository.store_pack(pack.finish()).await?;
            failpoint::reach("prune.packed");
        }
        self.codec = Codec::new(self.level);
        for (id, table, runs) in std::mem::take(&mut self.read) {
            self.repository.store_moved(id, &Moved::new(table, runs)).await?;
            failpoint::reach("prune.moved");
            self.moved.push(id);
        }
        Ok(())
    }
}

fn open_pack<'p>(pack: &'p mut Option<PackWriter>, repository: &Repository) -> &'p mut PackWriter {
    pack.get_or_insert_with(|| PackWriter::new(repository.access().writer(), &PackMemory::unbounded()))
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
