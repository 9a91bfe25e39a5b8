//! Writing pages into packs of the target, a few of which are on their way at once.

use std::collections::HashMap;
use std::sync::Arc;

use repository::manifest::PackRef;
use repository::pack::{Gathered, Gatherer, SealedPack};
use repository::{PackId, Repository, RepositoryError};
use tokio::task::JoinSet;

use super::CopyError;
use super::places::Place;

/// Packs on their way, of 20 MiB each.
const ON_THEIR_WAY: usize = 3;

pub(crate) struct Writer {
    target: Arc<Repository>,
    gatherer: Gatherer,
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
            gatherer: Gatherer::new(&target, level),
            target,
            storing: JoinSet::new(),
            references: HashMap::new(),
            stored_bytes: 0,
            pages_added: 0,
        }
    }

    /// Adds a page, filled up with zeros where it is short; returns where it will stand.
    pub(crate) async fn push(&mut self, page: &[u8]) -> Result<Place, CopyError> {
        if let Some(pack) = self.gatherer.take_full()? {
            self.submit(pack).await?;
        }
        self.pages_added += 1;
        let Gathered { pack, chunk, page } = self.gatherer.add_page(page);
        Ok(Place { pack, chunk, page })
    }

    /// Stores a pack, in the background.
    pub(crate) async fn submit(&mut self, pack: SealedPack) -> Result<(), CopyError> {
        while self.storing.len() >= ON_THEIR_WAY {
            self.one_stored().await?;
        }
        self.references.insert(pack.id, self.target.new_pack_ref(&pack));
        self.stored_bytes += pack.len;
        let target = self.target.clone();
        self.storing.spawn(async move { target.store_pack(pack).await });
        Ok(())
    }

    /// Returns when everything that was given to it is durable.
    pub(crate) async fn flush(&mut self) -> Result<(), CopyError> {
        if let Some(pack) = self.gatherer.finish()? {
            self.submit(pack).await?;
        }
        while !self.storing.is_empty() {
            self.one_stored().await?;
        }
        Ok(())
    }

    async fn one_stored(&mut self) -> Result<(), CopyError> {
        let Some(stored) = self.storing.join_next().await else { return Ok(()) };
        stored.expect("storing does not panic and is not cancelled").map_err(CopyError::Target)
    }
}
