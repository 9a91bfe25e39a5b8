//! Copying one backup after the other, oldest first, so that each finds in the target what those before it brought.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use repository::chunk::{MAX_CHUNK, PAGE};
use repository::content::{Content, Entry, EntryKind, Extent, ExtentBuilder, LEAF_SPAN, Leaf};
use repository::file_list::{FileList, FileListWriter};
use repository::manifest::{BackupKind, Manifest, PageRef, Totals};
use repository::pages::pieces;
use repository::{PackId, Repository, RepositoryError};
use storage::StorageError;

use super::attempt::Attempt;
use super::places::{Known, Place, Places};
use super::plan::identity_of;
use super::reader::Reader;
use super::writer::Writer;
use super::{CopyError, CopyReport, CopyRequest, Plan, wal};
use crate::backup::live::count;
use crate::catalogue::DamagedBackup;
use crate::failpoint;
use crate::monitor::{Event, Monitor};

pub(crate) struct Copier<'c> {
    pub(crate) source: &'c Arc<Repository>,
    pub(crate) target: &'c Arc<Repository>,
    pub(crate) plan: &'c Plan,
    pub(crate) request: &'c CopyRequest,
    monitor: &'c dyn Monitor,
    reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) places: Places,
    /// Leaves of the target, by what they say.
    pub(crate) leaves: HashMap<LeafDigest, Extent>,
    /// List pages of the target's backup that is likest to the next one.
    pub(crate) known: Vec<PageRef>,
    pub(crate) attempt: Attempt,
    /// Backups whose pages are in `places`.
    pub(crate) remembered: HashSet<String>,
}

type LeafDigest = [u8; 32];

/// Of what a leaf of the target says; it goes nowhere.
pub(crate) fn leaf_digest(extents: &[Extent]) -> LeafDigest {
    *blake3::hash(&Leaf::of(extents.to_vec()).encode()).as_bytes()
}

/// A backup on its way.
struct Making {
    list: FileListWriter,
    /// Bytes that are named of each pack.
    live: HashMap<PackId, u64>,
    /// Leaves that are in `list` only.
    leaves: HashMap<LeafDigest, Extent>,
}

impl<'c> Copier<'c> {
    pub(crate) fn new(
        source: &'c Arc<Repository>,
        target: &'c Arc<Repository>,
        plan: &'c Plan,
        request: &'c CopyRequest,
        monitor: &'c dyn Monitor,
    ) -> Self {
        Self {
            source,
            target,
            plan,
            request,
            monitor,
            reader: Reader::new(source.clone()),
            writer: Writer::new(target.clone(), request.level),
            places: Places::default(),
            leaves: HashMap::new(),
            known: Vec::new(),
            attempt: Attempt::default(),
            remembered: HashSet::new(),
        }
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.writer.stored_bytes
    }

    /// Copies the WAL of the plan, then its backups.
    pub(crate) async fn with_wal(&mut self, report: &mut CopyReport) -> Result<(), CopyError> {
        self.monitor.event(Event::Phase("copy WAL"));
        wal::copy(self.source, self.target, self.plan, self.request, self.monitor, report).await?;
        self.monitor.event(Event::Phase("copy backups"));
        let bytes = self.plan.backups.iter().map(|backup| backup.bytes).sum();
        self.monitor.event(Event::Total { bytes, files: 0 });
        self.everything(report).await
    }

    /// Copies every backup of the plan. One that is damaged is told of and does not keep the others from being copied.
    async fn everything(&mut self, report: &mut CopyReport) -> Result<(), CopyError> {
        for backup in &self.plan.backups {
            match self.backup(&backup.id).await {
                Ok(()) => report.backups.push(backup.id.clone()),
                Err(error) if self.was_expired(&backup.id, &error).await? => {}
                Err(error) if error.is_damaged_source() => {
                    report.damaged.push(DamagedBackup { id: backup.id.clone(), why: error.in_full() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether a backup cannot be read because it was expired since the plan was made.
    async fn was_expired(&self, id: &str, error: &CopyError) -> Result<bool, CopyError> {
        let (cluster, source) = (&self.request.cluster, self.source);
        if !error.is_damaged_source() || source.has_backup(cluster, id).await.map_err(CopyError::Source)? {
            return Ok(false);
        }
        source.was_expired(cluster, id).await.map_err(CopyError::Source)
    }

    async fn backup(&mut self, id: &str) -> Result<(), CopyError> {
        let cluster = &self.request.cluster;
        let manifest = self.source.manifest(cluster, id).await.map_err(CopyError::Source)?;
        self.check_wal(&manifest).await?;
        if manifest.backup_kind() == BackupKind::Full {
            // Nothing of it stands in earlier backups, and nothing of these in later ones.
            self.forget();
        } else if !self.remembered.contains(&manifest.parent_id) {
            self.remember_nearest(&manifest).await?;
        }
        self.remember_attempt(&manifest).await?;
        let before = self.writer.stored_bytes;
        let writer = self.target.access().writer();
        let list = FileListWriter::new(writer, self.target.local(), self.request.level, &self.known);
        let mut making = Making { list, live: HashMap::new(), leaves: HashMap::new() };
        let mut entries = self.source.entries(&manifest);
        while let Some(mut entry) = entries.next().await.map_err(CopyError::Source)? {
            if entry.kind == EntryKind::File {
                entry.content = self.content(&entry, &mut making).await?;
                self.monitor.event(Event::Advanced { bytes: entry.size });
                self.maybe_note(&manifest).await?;
            }
            making.list.add_entry(entry)?;
            for pack in making.list.take_finished() {
                self.writer.submit(pack).await?;
            }
        }
        let Making { list, mut live, leaves } = making;
        let FileList { pages, packs } = list.finish()?;
        for pack in packs {
            self.writer.submit(pack).await?;
        }
        self.writer.flush().await?;
        failpoint::reach("copy.packed");
        let listed: Vec<Extent> = pages.iter().filter_map(|page| page.extent().ok()).collect();
        count(&mut live, &listed);
        self.publish(manifest, &pages, live, self.writer.stored_bytes - before).await?;
        self.leaves.extend(leaves);
        self.known = pages;
        self.remembered.insert(id.to_owned());
        Ok(())
    }

    /// Makes the backup exist in the target, where it follows the target's newest.
    async fn publish(
        &self,
        manifest: Manifest,
        pages: &[PageRef],
        live: HashMap<PackId, u64>,
        bytes_stored: u64,
    ) -> Result<(), CopyError> {
        let cluster = &self.request.cluster;
        let mut packs = Vec::with_capacity(live.len());
        for (id, live) in live {
            let known = self.writer.references.get(&id).cloned();
            let missing = || RepositoryError::Missing { pack: id, what: "record of its size".into() };
            let mut pack = known.ok_or_else(missing).map_err(CopyError::Target)?;
            pack.live = live;
            packs.push(pack);
        }
        packs.sort_by_cached_key(|pack| pack.id().ok());
        // It was there when the pages began to be copied, hours ago.
        self.check_wal(&manifest).await?;
        let copied = Manifest {
            sequence: 0,
            previous_id: String::new(),
            previous_digest: Vec::new(),
            pages: pages.to_vec(),
            packs,
            totals: manifest.totals.as_ref().map(|totals| Totals { bytes_stored, ..totals.clone() }),
            ..manifest
        };
        let predecessor = self.target.predecessor(cluster).await.map_err(CopyError::Target)?;
        // Last on purpose: until the manifest exists there is no backup.
        let (id, kept) = (copied.id.clone(), identity_of(&copied));
        match self.target.publish_claimed(cluster, copied, predecessor.as_ref()).await {
            // Another copy was faster.
            Err(RepositoryError::Storage(StorageError::NameTaken { .. })) => {
                let there = self.target.manifest(cluster, &id).await.map_err(CopyError::Target)?;
                if identity_of(&there) != kept {
                    return Err(CopyError::Conflict { id });
                }
            }
            other => drop(other.map_err(CopyError::Target)?),
        }
        failpoint::reach("copy.published");
        Ok(())
    }

    /// The content of a file as the target has it, after copying what it lacks.
    async fn content(&mut self, entry: &Entry, making: &mut Making) -> Result<Content, CopyError> {
        let (added, mut spans) = (self.writer.pages_added, Vec::new());
        for index in 0..entry.size.div_ceil(LEAF_SPAN) as u32 {
            let extents = self.source.span_extents(entry, index).await.map_err(CopyError::Source)?;
            let extents = self.extents(&extents).await?;
            count(&mut making.live, &extents);
            spans.push(extents);
        }
        if self.writer.pages_added > added {
            self.attempt.add(entry, spans.clone());
        }
        if matches!(entry.content, Content::Inline(_)) {
            return Ok(Content::Inline(spans.pop().unwrap_or_default()));
        }
        let mut leaves = Vec::with_capacity(spans.len());
        for extents in spans {
            let digest = leaf_digest(&extents);
            let leaf = match self.leaves.get(&digest).or_else(|| making.leaves.get(&digest)) {
                Some(leaf) => *leaf,
                None => making.list.add_leaf(&Leaf::of(extents))?,
            };
            making.leaves.insert(digest, leaf);
            leaves.push(leaf);
        }
        count(&mut making.live, &leaves);
        Ok(Content::Leaves(leaves))
    }

    async fn extents(&mut self, extents: &[Extent]) -> Result<Vec<Extent>, CopyError> {
        let pieces = cut(self.source, extents).await.map_err(CopyError::Source)?;
        let mut builder = ExtentBuilder::default();
        for (number, piece) in pieces.iter().enumerate() {
            let mut rest = *piece;
            while rest.length > 0 {
                let from = place_of(rest);
                let (to, pages) = match self.places.look(from) {
                    Known::At(to, pages) => (to, pages),
                    Known::Nowhere(pages) => {
                        self.copy_pages(take(rest, pages), from, &pieces[number..]).await?;
                        continue;
                    }
                };
                let part = take(rest, pages);
                let offset = to.page * PAGE as u32 + within_page(rest) as u32;
                // A full chunk's length: in a shorter one the next piece does not go on behind it, which is told from where it is.
                builder.push(
                    Extent { pack: to.pack, chunk: to.chunk, offset, length: part.length },
                    MAX_CHUNK as u32,
                );
                rest.offset += part.length as u32;
                rest.length -= part.length;
            }
        }
        Ok(builder.finish())
    }

    async fn copy_pages(&mut self, part: Extent, from: Place, ahead: &[Extent]) -> Result<(), CopyError> {
        let part = self.whole_pages(part).await.map_err(CopyError::Source)?;
        let bytes = self.reader.read(part, ahead).await.map_err(CopyError::Source)?;
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            let to = self.writer.push(page).await?;
            self.places.note(Place { page: from.page + number as u32, ..from }, to, 1);
        }
        Ok(())
    }
}

impl Copier<'_> {
    /// A part of a chunk of the source, with all of the pages that it touches.
    async fn whole_pages(&self, part: Extent) -> Result<Extent, RepositoryError> {
        let offset = part.offset - within_page(part) as u32;
        let end = (part.offset + part.length as u32).next_multiple_of(PAGE as u32);
        let table = self.source.table(part.pack, None).await?;
        // The last page of a chunk may be short.
        let end = table.chunks.get(part.chunk as usize).map_or(end, |info| info.plain_len.min(end));
        Ok(Extent { offset, length: u64::from(end - offset), ..part })
    }
}

/// Extents as pieces of one chunk each.
pub(crate) async fn cut(repository: &Repository, extents: &[Extent]) -> Result<Vec<Extent>, RepositoryError> {
    let mut cut = Vec::new();
    for extent in extents {
        let table = repository.table(extent.pack, None).await?;
        cut.extend(pieces(&table, *extent)?);
    }
    Ok(cut)
}

/// The page in which a piece begins.
pub(crate) fn place_of(piece: Extent) -> Place {
    Place { pack: piece.pack, chunk: piece.chunk, page: piece.offset / PAGE as u32 }
}

/// Where in that page: rows of a logical backup need not begin with it.
pub(crate) fn within_page(piece: Extent) -> u64 {
    u64::from(piece.offset % PAGE as u32)
}

/// What of a piece is in so many pages from its beginning.
pub(crate) fn take(piece: Extent, pages: u32) -> Extent {
    Extent { length: piece.length.min(u64::from(pages) * PAGE as u64 - within_page(piece)), ..piece }
}
