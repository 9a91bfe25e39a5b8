//! How much of each pack a backup names.

use std::collections::HashMap;

use repository::PackId;
use repository::content::{Content, Extent, LEAF_SPAN, Leaf};
use repository::file_list::FileListWriter;
use repository::manifest::PackRef;

use super::earlier::EarlierPacks;
use super::error::BackupError;
use super::upload::Uploader;

/// The packs of a manifest, with how much of each it names.
pub(crate) fn pack_refs(
    live: &HashMap<PackId, u64>,
    uploader: &Uploader,
    earlier: &EarlierPacks,
) -> Result<Vec<PackRef>, repository::RepositoryError> {
    let mut packs: Vec<(PackId, u64)> = live.iter().map(|(id, bytes)| (*id, *bytes)).collect();
    packs.sort();
    let reference = |(id, bytes): (PackId, u64)| {
        let known = uploader.reference(id).or_else(|| earlier.references.get(&id).cloned());
        let missing = || repository::RepositoryError::Missing { pack: id, what: "record of its size".into() };
        known
            .map(|mut pack| {
                pack.live = bytes;
                pack
            })
            .ok_or_else(missing)
    };
    packs.into_iter().map(reference).collect()
}

/// Counts the bytes of extents to their packs.
pub(crate) fn count(live: &mut HashMap<PackId, u64>, extents: &[Extent]) {
    for extent in extents {
        *live.entry(extent.pack).or_default() += extent.length;
    }
}

/// A file's content as its entry names it: extents for a small one, leaves for a large one.
pub(crate) fn store_content(
    list: &mut FileListWriter,
    size: u64,
    mut spans: Vec<Vec<Extent>>,
    live: &mut HashMap<PackId, u64>,
) -> Result<Content, BackupError> {
    spans.truncate(size.div_ceil(LEAF_SPAN) as usize);
    if size <= LEAF_SPAN {
        return Ok(Content::Inline(spans.pop().unwrap_or_default()));
    }
    let mut leaves = Vec::with_capacity(spans.len());
    for extents in spans {
        leaves.push(list.add_leaf(&Leaf::of(extents))?);
    }
    count(live, &leaves);
    Ok(Content::Leaves(leaves))
}
