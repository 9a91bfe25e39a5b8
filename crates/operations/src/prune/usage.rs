//! Which pages of chosen packs backups name: what a walk through their file lists finds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use repository::chunk::PAGE;
use repository::content::{Content, Extent};
use repository::manifest::PageRef;
use repository::moved::MOVES_MAX;
use repository::named::Named;
use repository::pack::{ChunkKind, PackTable};
use repository::pages::{leaf_span, pieces};
use repository::{PackId, Repository, RepositoryError};
use storage::StorageError;

use super::roots::Roots;

/// The named pages of one pack: a bit for each page of each chunk.
#[derive(Clone)]
pub(crate) struct Usage {
    pub(crate) table: Arc<PackTable>,
    pub(crate) chunks: Vec<u128>,
}

/// All pages of a chunk; a chunk of the map is named whole or not at all.
pub(crate) const WHOLE: u128 = u128::MAX;

impl Usage {
    pub(crate) fn none_of(table: Arc<PackTable>) -> Self {
        Self { chunks: vec![0; table.chunks.len()], table }
    }

    fn add(&mut self, extent: Extent) -> Result<(), RepositoryError> {
        for piece in pieces(&self.table, extent)? {
            let chunk = piece.chunk as usize;
            self.chunks[chunk] |= match self.table.chunks[chunk].kind {
                ChunkKind::Map => WHOLE,
                ChunkKind::Data => {
                    let first = piece.offset / PAGE as u32;
                    let after = (piece.offset + piece.length as u32).div_ceil(PAGE as u32);
                    let up_to = |page: u32| 1u128.checked_shl(page).map_or(WHOLE, |bit| bit - 1);
                    up_to(after) & !up_to(first)
                }
            };
        }
        Ok(())
    }

    /// Stored bytes that the named pages take, about.
    pub(crate) fn stored(&self) -> u64 {
        let chunk = |(info, bits): (&repository::pack::ChunkInfo, &u128)| match info.kind {
            ChunkKind::Map if *bits != 0 => u64::from(info.stored_len),
            ChunkKind::Map => 0,
            ChunkKind::Data => {
                let pages = u64::from(info.plain_len.div_ceil(PAGE as u32).max(1));
                u64::from(info.stored_len) * u64::from(bits.count_ones()) / pages
            }
        };
        self.table.chunks.iter().zip(&self.chunks).map(chunk).sum()
    }
}

/// What a walk looks for.
#[derive(Default)]
pub(crate) struct Wanted {
    /// Packs whose named pages are to be found.
    pub(crate) usage: HashMap<PackId, Usage>,
    /// Packs that were moved; true for those of which a page is named that was not moved.
    pub(crate) moved: HashMap<PackId, bool>,
}

impl Wanted {
    /// Finds out by a walk through every file list.
    pub(crate) async fn walk(
        mut self,
        repository: &Repository,
        roots: &Roots,
    ) -> Result<Self, RepositoryError> {
        if self.usage.is_empty() && self.moved.values().all(|incomplete| *incomplete) {
            return Ok(self);
        }
        let mut seen = Seen::default();
        for (cluster, ids) in &roots.backups {
            for id in ids {
                let mut pages = Vec::new();
                let collect = |named| seen.collect(named, &mut pages);
                match repository.for_each_named(cluster, id, collect).await {
                    Err(RepositoryError::Storage(StorageError::NotFound { .. })) => continue,
                    other => other?,
                }
                self.pages(repository, &pages, &mut seen).await?;
            }
        }
        for partial in &roots.partials {
            let mut pages = Vec::new();
            let collect = |named| seen.collect(named, &mut pages);
            match repository.for_each_named_by_partial(&partial.name, collect).await {
                Ok(()) => {}
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            }
            self.pages(repository, &pages, &mut seen).await?;
        }
        Ok(self)
    }

    async fn pages(
        &mut self,
        repository: &Repository,
        pages: &[PageRef],
        seen: &mut Seen,
    ) -> Result<(), RepositoryError> {
        for page in pages {
            let content = |source| RepositoryError::Content { place: "manifest".into(), source };
            self.name(repository, page.extent().map_err(content)?).await?;
            for entry in repository.list_page(page).await? {
                match &entry.content {
                    Content::Inline(extents) => {
                        for extent in extents {
                            self.name(repository, *extent).await?;
                        }
                    }
                    Content::Leaves(leaves) => {
                        for (index, leaf) in leaves.iter().enumerate() {
                            if !seen.leaves.insert(*leaf) {
                                continue;
                            }
                            self.name(repository, *leaf).await?;
                            let span = leaf_span(entry.size, index as u32);
                            for extent in repository.leaf(*leaf, span).await?.extents {
                                self.name(repository, extent).await?;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes note of a named extent, where it stands and where it went.
    async fn name(&mut self, repository: &Repository, extent: Extent) -> Result<(), RepositoryError> {
        let mut open = vec![(extent, 0)];
        while let Some((extent, moves)) = open.pop() {
            if let Some(usage) = self.usage.get_mut(&extent.pack) {
                usage.add(extent)?;
            }
            let Some(incomplete) = self.moved.get_mut(&extent.pack) else { continue };
            let Some(moved) = repository.moved(extent.pack).await? else { continue };
            match moved.forward(extent) {
                Ok(forwarded) if moves < MOVES_MAX => {
                    open.extend(forwarded.into_iter().map(|extent| (extent, moves + 1)));
                }
                _ => *incomplete = true,
            }
        }
        Ok(())
    }
}

/// What was read already: backups share most of their lists.
#[derive(Default)]
struct Seen {
    /// By their places: what is stored twice is named twice.
    pages: HashSet<Extent>,
    leaves: HashSet<Extent>,
}

impl Seen {
    fn collect(&mut self, named: Named, pages: &mut Vec<PageRef>) {
        if let Named::Page(page) = named
            && page.extent().ok().is_none_or(|at| self.pages.insert(at))
        {
            pages.push(page);
        }
    }
}
