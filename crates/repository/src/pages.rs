//! The pages behind extents: where each one is, and what it digests to.

use std::collections::HashMap;
use std::sync::Arc;

use crate::chunk::{PAGE, PageDigest};
use crate::content::{Content, Entry, Extent, LEAF_SPAN, Leaf};
use crate::layout::PackId;
use crate::pack::PackTable;
use crate::repository::{Repository, RepositoryError};

/// Where one page of a stored file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageAt {
    /// The page; its length is less than 8 KiB only at the end of a file.
    pub extent: Extent,
    /// Plaintext bytes of its chunk, to know whether the next page begins another.
    pub chunk_len: u32,
    /// Short digest of the page, filled up with zeros.
    pub digest: PageDigest,
}

impl Repository {
    /// The extents of one span of 16 MiB of a file; empty past its end.
    pub async fn span_extents(&self, entry: &Entry, index: u32) -> Result<Vec<Extent>, RepositoryError> {
        Ok(self.span_leaf(entry, index).await?.extents)
    }

    /// The same, with the pieces that are made of several extents.
    pub async fn span_leaf(&self, entry: &Entry, index: u32) -> Result<Leaf, RepositoryError> {
        match &entry.content {
            Content::Inline(extents) if index == 0 => Ok(Leaf::of(extents.clone())),
            Content::Inline(_) => Ok(Leaf::default()),
            Content::Leaves(leaves) => match leaves.get(index as usize) {
                Some(leaf) => self.leaf(*leaf, leaf_span(entry.size, index)).await,
                None => Ok(Leaf::default()),
            },
        }
    }

    /// The pages of `extents`, in order, which must begin on pages. `tail_lens` tells the lengths of packs' tails where they are known.
    pub async fn pages(
        &self,
        extents: &[Extent],
        tail_lens: &HashMap<PackId, u32>,
    ) -> Result<Vec<PageAt>, RepositoryError> {
        let mut pages = Vec::new();
        let mut last: Option<(PackId, Arc<PackTable>)> = None;
        for extent in extents {
            let table = match &last {
                Some((pack, table)) if *pack == extent.pack => table.clone(),
                _ => self.table(extent.pack, tail_lens.get(&extent.pack).copied()).await?,
            };
            last = Some((extent.pack, table.clone()));
            for piece in pieces(&table, *extent)? {
                push_pages(&table, piece, &mut pages)?;
            }
        }
        Ok(pages)
    }
}

/// Bytes that leaf `index` of a file of `size` bytes covers.
pub fn leaf_span(size: u64, index: u32) -> u64 {
    (size - (u64::from(index) * LEAF_SPAN).min(size)).min(LEAF_SPAN)
}

/// An extent cut at the ends of its chunks.
pub fn pieces(table: &PackTable, extent: Extent) -> Result<Vec<Extent>, RepositoryError> {
    let mut pieces = Vec::new();
    let (mut chunk, mut offset, mut rest) = (extent.chunk, extent.offset, extent.length);
    while rest > 0 {
        let info = table.chunks.get(chunk as usize).filter(|info| info.plain_len > offset);
        let missing =
            || RepositoryError::Missing { pack: extent.pack, what: format!("chunk {chunk} at {offset}") };
        let length = u64::from(info.ok_or_else(missing)?.plain_len - offset).min(rest);
        pieces.push(Extent { pack: extent.pack, chunk, offset, length });
        rest -= length;
        (chunk, offset) = (chunk + 1, 0);
    }
    Ok(pieces)
}

fn push_pages(table: &PackTable, piece: Extent, pages: &mut Vec<PageAt>) -> Result<(), RepositoryError> {
    let chunk_len = table.chunks[piece.chunk as usize].plain_len;
    if !piece.offset.is_multiple_of(PAGE as u32) {
        let what = format!("page that begins at {} of chunk {}", piece.offset, piece.chunk);
        return Err(RepositoryError::Missing { pack: piece.pack, what });
    }
    let mut offset = piece.offset;
    let end = piece.offset + piece.length as u32;
    while offset < end {
        let missing = || RepositoryError::Missing {
            pack: piece.pack,
            what: format!("page at {}+{offset}", piece.chunk),
        };
        let digest = table.page(piece.chunk, offset / PAGE as u32).ok_or_else(missing)?;
        let length = u64::from(end - offset).min(PAGE as u64);
        let extent = Extent { pack: piece.pack, chunk: piece.chunk, offset, length };
        pages.push(PageAt { extent, chunk_len, digest });
        offset += PAGE as u32;
    }
    Ok(())
}
