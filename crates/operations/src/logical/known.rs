//! What earlier backups have of a file: its pieces by their digests, and its leaves by theirs.
//!
//! Pieces are looked up within one file, that is one range of a table, and within so many of them: what went further away than that
//! is stored again, and memory stays the same however large the file is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use repository::chunk::{PAGE, PageDigest};
use repository::content::{Content, Entry, EntryKind, Extent, LEAF_SPAN, encode_leaf};
use repository::manifest::Manifest;
use repository::pages::leaf_span;
use repository::{PackId, Repository, RepositoryError};
use tokio::runtime::Handle;

/// Spans of an earlier file that are known ahead of where the new one is.
const SPANS_AHEAD: u64 = 8;
/// Pieces of one generation; two are kept.
const GENERATION: usize = 32 << 10;

/// What earlier backups stored.
pub(crate) struct Earlier {
    /// The likeliest to match first: attempts, then the parent.
    pub(crate) manifests: Vec<Manifest>,
    pub(crate) lost: HashSet<PackId>,
    pub(crate) tail_lens: HashMap<PackId, u32>,
}

/// A piece that is stored.
struct KnownPiece {
    at: Extent,
    /// Short digests of its pages, the last filled up with zeros.
    pages: Vec<PageDigest>,
}

/// Pieces by the digest of their first page.
#[derive(Default)]
struct Generation(HashMap<PageDigest, Vec<KnownPiece>>, usize);

/// What is known of one file while it is written.
pub(crate) struct Known<'e> {
    repository: Arc<Repository>,
    earlier: &'e Earlier,
    handle: Handle,
    entries: Vec<Entry>,
    next_span: u64,
    young: Generation,
    old: Generation,
    leaves: HashMap<[u8; 32], Extent>,
}

impl<'e> Known<'e> {
    /// Looks the file up in every earlier backup.
    pub(crate) fn of(
        repository: &Arc<Repository>,
        earlier: &'e Earlier,
        handle: &Handle,
        path: &[u8],
    ) -> Result<Self, RepositoryError> {
        let mut entries = Vec::new();
        for manifest in &earlier.manifests {
            match handle.block_on(repository.find_entry(manifest, path)) {
                Ok(entry) => entries.extend(entry.filter(|entry| entry.kind == EntryKind::File)),
                Err(error) if error.is_unreadable() => {
                    tracing::warn!(%error, "the file list of an earlier backup is unreadable; what it names is stored anew");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            repository: repository.clone(),
            earlier,
            handle: handle.clone(),
            entries,
            next_span: 0,
            young: Generation::default(),
            old: Generation::default(),
            leaves: HashMap::new(),
        })
    }

    /// Where a piece with these pages and this length is stored, if it is.
    pub(crate) fn find(&self, pages: &[PageDigest], length: usize) -> Option<Extent> {
        let first = pages.first()?;
        [&self.young, &self.old].iter().find_map(|generation| {
            let pieces = generation.0.get(first)?;
            let same = |piece: &&KnownPiece| piece.at.length == length as u64 && piece.pages == pages;
            pieces.iter().find(same).map(|piece| piece.at)
        })
    }

    /// A piece that was stored just now.
    pub(crate) fn add(&mut self, at: Extent, pages: Vec<PageDigest>) {
        if self.young.1 >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let Some(first) = pages.first().copied() else { return };
        self.young.0.entry(first).or_default().push(KnownPiece { at, pages });
        self.young.1 += 1;
    }

    /// The place of a leaf with these bytes, if an earlier backup has it.
    pub(crate) fn find_leaf(&self, leaf: &[u8]) -> Option<Extent> {
        self.leaves.get(&self.repository.digester().content(leaf)).copied()
    }

    /// Learns what the earlier files have up to some spans behind this one of the new file.
    pub(crate) fn advance(&mut self, span: u64) -> Result<(), RepositoryError> {
        while self.next_span <= span + SPANS_AHEAD {
            let index = self.next_span;
            self.next_span += 1;
            let entries: Vec<Entry> =
                self.entries.iter().filter(|entry| index * LEAF_SPAN < entry.size).cloned().collect();
            for entry in entries {
                match self.learn(&entry, index as u32) {
                    Err(error) if error.is_unreadable() => {
                        tracing::warn!(%error, "an earlier backup's map is unreadable; what it names is stored anew");
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn learn(&mut self, entry: &Entry, index: u32) -> Result<(), RepositoryError> {
        let lost = &self.earlier.lost;
        let leaf = match &entry.content {
            Content::Leaves(leaves) => leaves.get(index as usize).copied(),
            Content::Inline(_) => None,
        };
        if leaf.is_some_and(|leaf| lost.contains(&leaf.pack)) {
            return Ok(());
        }
        let extents = self.handle.block_on(self.repository.span_extents(entry, index))?;
        debug_assert!(leaf_span(entry.size, index) > 0);
        let is_whole = extents.iter().all(|at| !lost.contains(&at.pack));
        if let Some(leaf) = leaf.filter(|_| is_whole) {
            self.leaves.insert(self.repository.digester().content(&encode_leaf(&extents)), leaf);
        }
        for extent in extents.into_iter().filter(|at| !lost.contains(&at.pack)) {
            // Pieces stand in one chunk each; after a copy some may go on in the next, and are not looked up.
            let pages = self.handle.block_on(self.repository.pages(&[extent], &self.earlier.tail_lens))?;
            let count = (extent.length as usize).div_ceil(PAGE);
            if pages.len() == count {
                self.add(extent, pages.into_iter().map(|page| page.digest).collect());
            }
        }
        Ok(())
    }
}
