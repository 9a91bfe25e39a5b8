//! What earlier backups have of a file: its pieces by their digests, and its leaves by theirs.
//!
//! Pieces are looked up within one file, that is one range of a table, and within so many of them: what went further away than that
//! is stored again, and memory stays the same however large the file is. A piece that is not found whole is compared with what the
//! backup before had at about its place (`before`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use repository::chunk::PAGE;
use repository::content::{Content, Entry, EntryKind, Extent, LEAF_SPAN, PieceDigest};
use repository::manifest::Manifest;
use repository::pages::leaf_span;
use repository::{PackId, Repository, RepositoryError};
use tokio::runtime::Handle;

use super::before::{Before, Part};
use crate::copy::reader::Reader;

/// Spans of an earlier file that are known ahead of where the new one is.
const SPANS_AHEAD: u64 = 8;
/// Extents of the pieces of one generation; two are kept.
const GENERATION: usize = 64 << 10;
/// Pieces of the same content that are told apart by their place.
const SAME: usize = 8;
/// A span that names rows in more packs than this is not added to for ever: those that have the least of it are left out, so that
/// what they have is stored again, together.
const MAX_PACKS: usize = 16;
const PACKS_LEFT: usize = 13;

/// What earlier backups stored.
pub(crate) struct Earlier {
    /// The likeliest to match first: attempts, then the parent.
    pub(crate) manifests: Vec<Manifest>,
    pub(crate) lost: HashSet<PackId>,
    pub(crate) tail_lens: HashMap<PackId, u32>,
}

/// A piece that is stored.
struct KnownPiece {
    length: u64,
    at: Box<[Extent]>,
    /// Whether its leaf tells its digest.
    is_composed: bool,
    /// Where the backup before has it in the file.
    place: Option<u64>,
}

/// Pieces by their digests, and how many extents they have.
#[derive(Default)]
struct Generation(HashMap<PieceDigest, Vec<KnownPiece>>, usize);

/// What is known of one file while it is written.
pub(crate) struct Known<'e> {
    repository: Arc<Repository>,
    earlier: &'e Earlier,
    handle: Handle,
    /// The last is that of the backup before.
    entries: Vec<Entry>,
    next_span: u64,
    young: Generation,
    old: Generation,
    leaves: HashMap<[u8; 32], Extent>,
    /// Not on a host that cannot read.
    before: Option<Before>,
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
        let can_compare = repository.access().can_read() && !entries.is_empty();
        Ok(Self {
            repository: repository.clone(),
            earlier,
            handle: handle.clone(),
            entries,
            next_span: 0,
            young: Generation::default(),
            old: Generation::default(),
            leaves: HashMap::new(),
            before: can_compare.then(Before::default),
        })
    }

    /// Where a piece with this digest and this length is stored, if it is, and whether the leaf must tell its digest.
    pub(crate) fn find(&mut self, digest: PieceDigest, length: usize) -> Option<(Vec<Extent>, bool)> {
        let here = self.before.as_ref().map_or(0, Before::place);
        let pieces = [&self.young, &self.old].into_iter().filter_map(|generation| generation.0.get(&digest));
        let same = pieces.flatten().filter(|piece| piece.length == length as u64);
        let nearest = same.min_by_key(|piece| piece.place.map_or(u64::MAX, |place| place.abs_diff(here)))?;
        if let Some(before) = &mut self.before {
            before.pass(nearest.place, nearest.length);
        }
        Some((nearest.at.to_vec(), nearest.is_composed))
    }

    /// What of a piece that is not stored whole is stored; `None` if all of it is to be stored.
    pub(crate) fn compare(&mut self, reader: &mut Reader, piece: &[u8]) -> Option<Vec<Part>> {
        match self.before.as_mut()?.compare(&self.repository, reader, &self.handle, piece) {
            Ok(parts) => parts,
            Err(error) => {
                tracing::warn!(%error, "an earlier backup is unreadable; what changed is not looked for in it");
                self.before = None;
                None
            }
        }
    }

    /// A piece that was stored just now.
    pub(crate) fn add(&mut self, digest: PieceDigest, at: &[Extent], is_composed: bool) {
        self.note(digest, at, is_composed, None);
    }

    fn note(&mut self, digest: PieceDigest, at: &[Extent], is_composed: bool, place: Option<u64>) {
        if self.young.1 >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let same = self.young.0.entry(digest).or_default();
        if same.len() < SAME {
            let length = at.iter().map(|extent| extent.length).sum();
            same.push(KnownPiece { length, at: at.into(), is_composed, place });
            self.young.1 += 1 + at.len();
        }
    }

    /// The place of a leaf with these bytes, if an earlier backup has it.
    pub(crate) fn find_leaf(&self, leaf: &[u8]) -> Option<Extent> {
        self.leaves.get(&self.repository.digester().content(leaf)).copied()
    }

    /// Learns what the earlier files have up to some spans behind this one of the new file.
    pub(crate) fn advance(&mut self, span: u64) -> Result<(), RepositoryError> {
        // Where a span has very many extents, what is near is not pushed out by what is far.
        let has_room = |known: &Self| known.next_span <= span + 1 || known.young.1 < GENERATION;
        while self.next_span <= span + SPANS_AHEAD && has_room(self) {
            let index = self.next_span;
            self.next_span += 1;
            for number in 0..self.entries.len() {
                if index * LEAF_SPAN >= self.entries[number].size {
                    continue;
                }
                match self.learn(number, index as u32) {
                    Err(error) if error.is_unreadable() => {
                        tracing::warn!(%error, "an earlier backup's map is unreadable; what it names is stored anew");
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn learn(&mut self, number: usize, index: u32) -> Result<(), RepositoryError> {
        let (entry, lost) = (&self.entries[number], &self.earlier.lost);
        let at = match &entry.content {
            Content::Leaves(leaves) => leaves.get(index as usize).copied(),
            Content::Inline(_) => None,
        };
        if at.is_some_and(|leaf| lost.contains(&leaf.pack)) {
            return Ok(());
        }
        let leaf = self.handle.block_on(self.repository.span_leaf(entry, index))?;
        debug_assert!(leaf_span(entry.size, index) > 0);
        let is_whole = leaf.extents.iter().all(|at| !lost.contains(&at.pack));
        if let Some(at) = at.filter(|_| is_whole) {
            self.leaves.insert(self.repository.digester().content(&leaf.encode()), at);
        }
        let left_out = thinnest(&leaf.extents);
        let is_named = |extent: &Extent| !lost.contains(&extent.pack) && !left_out.contains(&extent.pack);
        let is_before = number + 1 == self.entries.len();
        let mut place = u64::from(index) * LEAF_SPAN;
        for (extents, digest) in leaf.pieces() {
            let from = place;
            for extent in extents {
                if let Some(before) = self.before.as_mut().filter(|_| is_before && is_named(extent)) {
                    before.add(place, *extent);
                }
                place += extent.length;
            }
            if extents.iter().all(is_named) {
                let by_pages = match (digest, extents) {
                    (None, [extent]) => self.digest_of(*extent)?,
                    _ => None,
                };
                if let Some(found) = digest.or(by_pages) {
                    self.note(found, extents, digest.is_some(), is_before.then_some(from));
                }
            }
        }
        Ok(())
    }

    /// The digest of a piece by those of its pages, if it has pages of its own in one chunk. After a copy some go on in the next
    /// chunk, or are parts of pieces, and are not found by it.
    fn digest_of(&self, extent: Extent) -> Result<Option<PieceDigest>, RepositoryError> {
        if !extent.offset.is_multiple_of(PAGE as u32) {
            return Ok(None);
        }
        let pages = self.handle.block_on(self.repository.pages(&[extent], &self.earlier.tail_lens))?;
        let is_one = pages.len() == (extent.length as usize).div_ceil(PAGE);
        let digests: Vec<_> = pages.into_iter().map(|page| page.digest).collect();
        Ok(is_one.then(|| PieceDigest::of(self.repository.digester(), &digests)))
    }
}

/// Packs in which rows of a span are, that have the least of them, where they are too many.
fn thinnest(extents: &[Extent]) -> HashSet<PackId> {
    let mut bytes: HashMap<PackId, u64> = HashMap::new();
    extents.iter().for_each(|extent| *bytes.entry(extent.pack).or_default() += extent.length);
    if bytes.len() <= MAX_PACKS {
        return HashSet::new();
    }
    let mut packs: Vec<(u64, PackId)> = bytes.into_iter().map(|(pack, bytes)| (bytes, pack)).collect();
    packs.sort_unstable();
    packs.truncate(packs.len() - PACKS_LEFT);
    packs.into_iter().map(|(_, pack)| pack).collect()
}
