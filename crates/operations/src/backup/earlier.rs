//! What earlier backups stored, as streams in path order beside the list of files.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use repository::content::{Content, Entry, EntryKind, Extent};
use repository::manifest::{Manifest, PackRef, PageFinding};
use repository::{PackId, Repository, RepositoryError};
use server::files::FoundFile;
use tokio::runtime::Handle;

use super::error::display_path;

/// One earlier backup, or one attempt at one that left partial manifests.
pub(crate) struct Earlier {
    pub(crate) manifests: Vec<Manifest>,
    /// A file is taken over unread if its inode says that it did not change; off for a backup that reads everything.
    pub(crate) trust_times: bool,
    /// This is the backup that the new one stands on, and no attempt.
    pub(crate) is_parent: bool,
}

impl Earlier {
    fn settled_before_ns(&self) -> i64 {
        self.manifests.first().map_or(i64::MIN, |manifest| manifest.span().settled_before_ns)
    }
}

/// The packs that earlier backups name, and those of them that the repository lacks.
pub(crate) struct EarlierPacks {
    pub(crate) references: HashMap<PackId, PackRef>,
    pub(crate) lost: HashSet<PackId>,
}

impl EarlierPacks {
    /// Looks every named pack up in a listing: what is not there with its size is not named again, whatever the files'
    /// times say. A listing that omits a pack costs a read, never a backup.
    pub(crate) async fn read(repository: &Repository, earlier: &[Earlier]) -> Result<Self, RepositoryError> {
        let mut references = HashMap::new();
        for pack in earlier.iter().flat_map(|one| &one.manifests).flat_map(|manifest| &manifest.packs) {
            let id =
                pack.id().map_err(|source| RepositoryError::Content { place: "manifest".into(), source })?;
            references.insert(id, pack.clone());
        }
        let lost = repository.lost_packs(references.iter().map(|(id, pack)| (*id, pack))).await?;
        Ok(Self { references, lost })
    }
}

/// What to do with a file.
pub(crate) enum Verdict {
    /// It is what it was: this entry still tells everything.
    Unchanged(Entry),
    /// Read it, and compare with these, of which one may be the parent's.
    Read(Vec<Entry>, Option<usize>),
}

/// The earlier backups' entries, merged with the list of files as that goes on.
pub(crate) struct EarlierStreams<'e> {
    streams: Vec<Stream<'e>>,
    repository: Arc<Repository>,
    packs: &'e EarlierPacks,
    handle: Handle,
    /// Findings of earlier backups in files that were taken over unread: they are in this backup, too.
    pub(crate) inherited: Vec<PageFinding>,
}

struct Stream<'e> {
    earlier: &'e Earlier,
    manifest: usize,
    entries: repository::backups::EntryStream<'e>,
    head: Option<Entry>,
}

impl<'e> EarlierStreams<'e> {
    /// The streams of `earlier`, the likeliest to match first.
    pub(crate) fn open(
        repository: &'e Arc<Repository>,
        earlier: &'e [Earlier],
        packs: &'e EarlierPacks,
        handle: Handle,
    ) -> Result<Self, RepositoryError> {
        let mut streams = Vec::new();
        for one in earlier {
            let Some(first) = one.manifests.first() else { continue };
            let mut stream =
                Stream { earlier: one, manifest: 0, entries: repository.entries(first), head: None };
            stream.advance(repository, &handle)?;
            streams.push(stream);
        }
        Ok(Self { streams, repository: repository.clone(), packs, handle, inherited: Vec::new() })
    }

    /// What earlier backups say of the next file; files must come in path order.
    pub(crate) fn verdict(
        &mut self,
        found: &FoundFile,
        repository: &'e Repository,
    ) -> Result<Verdict, RepositoryError> {
        let (mut candidates, mut parent) = (Vec::new(), None);
        for at in 0..self.streams.len() {
            let stream = &mut self.streams[at];
            while stream.head.as_ref().is_some_and(|head| head.path < found.path) {
                stream.advance(repository, &self.handle)?;
            }
            let Some(entry) =
                stream.head.as_ref().filter(|head| head.path == found.path && head.kind == EntryKind::File)
            else {
                continue;
            };
            let entry = entry.clone();
            let untouched =
                stream.earlier.trust_times && is_untouched(&entry, found, stream.earlier.settled_before_ns());
            if !self.is_usable(&entry, untouched)? {
                continue;
            }
            if untouched {
                let findings = self.streams[at].earlier.manifests.iter().flat_map(|one| &one.findings);
                self.inherited.extend(findings.filter(|finding| finding.path == entry.path).cloned());
                return Ok(Verdict::Unchanged(entry));
            }
            if self.streams[at].earlier.is_parent {
                parent = Some(candidates.len());
            }
            candidates.push(entry);
        }
        Ok(Verdict::Read(candidates, parent))
    }

    /// Notes what the parent found on pages of a file that are taken over from it unread.
    pub(crate) fn inherit(&mut self, path: &[u8], is_taken: impl Fn(&PageFinding) -> bool) {
        let parents = self.streams.iter().filter(|stream| stream.earlier.is_parent);
        let findings = parents.flat_map(|stream| &stream.earlier.manifests).flat_map(|one| &one.findings);
        self.inherited.extend(findings.filter(|found| found.path == path && is_taken(found)).cloned());
    }

    /// True if no lost pack holds content of the file and, for one that is to be named again unread, its leaves can
    /// still be read.
    fn is_usable(&self, entry: &Entry, unread: bool) -> Result<bool, RepositoryError> {
        let there = |extents: &[Extent]| extents.iter().all(|at| !self.packs.lost.contains(&at.pack));
        let leaves = match &entry.content {
            Content::Inline(extents) => return Ok(there(extents)),
            Content::Leaves(leaves) => leaves,
        };
        if !there(leaves) {
            return Ok(false);
        }
        if self.packs.lost.is_empty() && !unread {
            return Ok(true);
        }
        for index in 0..leaves.len() as u32 {
            match self.handle.block_on(self.repository.span_extents(entry, index)) {
                Ok(extents) if there(&extents) => {}
                Ok(_) => return Ok(false),
                Err(error) if error.is_unreadable() => {
                    let path = display_path(&entry.path);
                    tracing::warn!(%path, %error, "the map of this file is unreadable; it is stored anew");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl<'e> Stream<'e> {
    fn advance(&mut self, repository: &'e Repository, handle: &Handle) -> Result<(), RepositoryError> {
        loop {
            match handle.block_on(self.entries.next()) {
                Ok(Some(entry)) => {
                    self.head = Some(entry);
                    return Ok(());
                }
                Ok(None) => {}
                // The rest of this list is lost: what it would have told is read and stored anew.
                Err(error) if error.is_unreadable() => {
                    tracing::warn!(%error, "the file list of an earlier backup is unreadable; its files are stored anew");
                    self.manifest = self.earlier.manifests.len();
                }
                Err(error) => return Err(error),
            }
            self.manifest += 1;
            let Some(next) = self.earlier.manifests.get(self.manifest) else {
                self.head = None;
                // An empty stream stays empty.
                self.manifest = self.earlier.manifests.len();
                return Ok(());
            };
            self.entries = repository.entries(next);
        }
    }
}

/// True if the inode proves that the file is what it was: same inode, size and times, and a ctime so old when the earlier
/// backup read the file that no later change could have been given the same (else that backup noted none).
fn is_untouched(entry: &Entry, found: &FoundFile, settled_before_ns: i64) -> bool {
    entry.inode == found.inode
        && entry.size == found.size
        && entry.mtime_ns == found.mtime_ns
        && entry.ctime_ns == found.ctime_ns
        && entry.ctime_ns != 0
        && entry.mode == found.mode
        && entry.ctime_ns < settled_before_ns
}
