//! Writing pages into packs of the target, a few of which are on their way at once.

use std::collections::HashMap;
use std::sync::Arc;

use repository::chunk::{Codec, MAX_CHUNK, PAGE};
use repository::manifest::PackRef;
use repository::pack::{PackMemory, PackWriter, SealedPack};
use repository::{PackId, Repository, RepositoryError};
use tokio::task::JoinSet;

use super::CopyError;
use super::places::Place;

/// Packs on their way, of 20 MiB each.
const ON_THEIR_WAY: usize = 3;

pub(crate) struct Writer {
    target: Arc<Repository>,
    codec: Codec,
    pack: Option<PackWriter>,
    /// Pages of the chunk being made.
    pages: Vec<u8>,
    storing: JoinSet<Result<(), RepositoryError>>,
    /// Every pack that was made, and what the target has of earlier runs.
    pub(crate) references: HashMap<PackId, PackRef>,
    pub(crate) stored_bytes: u64,
    /// Pages that were added.
    pub(crate) pages_added: u64,
}

impl Writer {
    pub(crate) fn new(target: Arc<Repository>, level: i32) -> Self {
        Self {
            target,
            codec: Codec::new(level),
            pack: None,
            pages: Vec::with_capacity(MAX_CHUNK),
            storing: JoinSet::new(),
            references: HashMap::new(),
            stored_bytes: 0,
            pages_added: 0,
        }
    }

    /// Adds a page, filled up with zeros where it is short; returns where it will stand.
    pub(crate) async fn push(&mut self, page: &[u8]) -> Result<Place, CopyError> {
        if self.pages.len() == MAX_CHUNK {
            self.end_chunk()?;
            if self.pack.as_ref().is_some_and(PackWriter::is_full) {
                self.end_pack().await?;
            }
        }
        let target = &self.target;
        let pack = self
            .pack
            .get_or_insert_with(|| PackWriter::new(target.access().writer(), &PackMemory::unbounded()));
        let place = Place { pack: pack.id(), chunk: pack.len(), page: (self.pages.len() / PAGE) as u32 };
        self.pages_added += 1;
        self.pages.extend_from_slice(page);
        self.pages.resize(self.pages.len().next_multiple_of(PAGE), 0);
        Ok(place)
    }

    /// Stores a pack, in the background.
    pub(crate) async fn submit(&mut self, pack: SealedPack) -> Result<(), CopyError> {
        while self.storing.len() >= ON_THEIR_WAY {
            self.one_stored().await?;
        }
        self.references.insert(pack.id, PackRef::new(pack.id, pack.len, pack.tail_len));
        self.stored_bytes += pack.len;
        let target = self.target.clone();
        self.storing.spawn(async move { target.store_pack(pack).await });
        Ok(())
    }

    /// Returns when everything that was given to it is durable.
    pub(crate) async fn flush(&mut self) -> Result<(), CopyError> {
        self.end_chunk()?;
        self.end_pack().await?;
        while !self.storing.is_empty() {
            self.one_stored().await?;
        }
        Ok(())
    }

    async fn one_stored(&mut self) -> Result<(), CopyError> {
        let Some(stored) = self.storing.join_next().await else { return Ok(()) };
        stored.expect("storing does not panic and is not cancelled").map_err(CopyError::Target)
    }

    fn end_chunk(&mut self) -> Result<(), CopyError> {
        let Some(pack) = self.pack.as_mut().filter(|_| !self.pages.is_empty()) else { return Ok(()) };
        let digester = self.target.digester();
        let mut digests = Vec::with_capacity(self.pages.len() / PAGE);
        digester.pages(&self.pages, &mut digests);
        pack.add_pages(&mut self.codec, digester, &self.pages, &digests)?;
        self.pages.clear();
        Ok(())
    }

    async fn end_pack(&mut self) -> Result<(), CopyError> {
        match self.pack.take().filter(|pack| !pack.is_empty()) {
            Some(pack) => self.submit(pack.finish()).await,
            None => Ok(()),
        }
    }
}
