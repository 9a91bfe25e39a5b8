//! Finding again what earlier runs copied: a backup that both repositories have says of each page of its files where it is
//! in the one and in the other.

use std::collections::HashSet;

use repository::content::{Content, Entry, EntryKind, Extent, LEAF_SPAN};
use repository::manifest::Manifest;
use repository::{PackId, RepositoryError};
use storage::StorageError;

use super::CopyError;
use super::backup::{Copier, cut, leaf_digest, place_of, within_page};
use super::places::{Known, Place};
use crate::backup::{BackupError, wal};
use crate::reachable::BackupPlace;

impl Copier<'_> {
    /// Fails unless the target has the WAL from the backup's start to its stop.
    pub(crate) async fn check_wal(&self, manifest: &Manifest) -> Result<(), CopyError> {
        if manifest.is_logical() {
            return Ok(());
        }
        let unusable = |_| {
            let source = repository::content::ContentError { what: "span" };
            CopyError::Source(RepositoryError::Content { place: manifest.id.clone(), source })
        };
        let place = BackupPlace::of(manifest).map_err(unusable)?;
        let (from, stop, size) = (place.first_segment(), place.stop, place.size);
        let now = std::time::Duration::ZERO;
        match wal::wait(self.target, &self.request.cluster, from, stop, size, now).await {
            Err(BackupError::WalMissing { missing, .. }) => Err(CopyError::WalMissing { segment: missing }),
            Err(BackupError::Repository(error)) => Err(CopyError::Target(error)),
            _ => Ok(()),
        }
    }

    pub(crate) fn forget(&mut self) {
        self.places.clear();
        self.leaves.clear();
        self.remembered.clear();
        self.known.clear();
    }

    /// Takes up where the pages of that backup are which is likest to `manifest` among those that both have: its parent, or
    /// the nearest in time.
    pub(crate) async fn remember_nearest(&mut self, manifest: &Manifest) -> Result<(), CopyError> {
        let shared = &self.plan.shared;
        let parent = shared.iter().find(|id| **id == manifest.parent_id);
        let older = || shared.iter().rev().find(|id| **id < manifest.id);
        let Some(id) = parent.or_else(older).or_else(|| shared.first()) else { return Ok(()) };
        if self.remembered.contains(id) {
            return Ok(());
        }
        let cluster = &self.request.cluster;
        let (from, to) = (self.source.manifest(cluster, id).await, self.target.manifest(cluster, id).await);
        let is_gone = |error: &RepositoryError| {
            error.is_damage() || matches!(error, RepositoryError::Storage(StorageError::NotFound { .. }))
        };
        let (from, to) = match (from, to) {
            (Ok(from), Ok(to)) => (from, to),
            // What it has is copied again.
            (Err(error), _) | (_, Err(error)) if is_gone(&error) => return Ok(()),
            (Err(error), _) => return Err(CopyError::Source(error)),
            (_, Err(error)) => return Err(CopyError::Target(error)),
        };
        if self.remember(&from, &to).await? {
            self.known = to.pages;
        }
        self.remembered.insert(id.clone());
        Ok(())
    }

    /// Notes where the pages of files are that are the same in `from`, of the source, and in `to`, of the target. True if the
    /// target has all that `to` names. Damage to either only means that more is copied again.
    pub(crate) async fn remember(&mut self, from: &Manifest, to: &Manifest) -> Result<bool, CopyError> {
        match self.remember_files(from, to).await {
            Err(CopyError::Source(error) | CopyError::Target(error)) if error.is_damage() => {
                tracing::warn!(backup = %to.id, %error, "some of what both repositories have is copied again");
                Ok(false)
            }
            other => other,
        }
    }

    async fn remember_files(&mut self, from: &Manifest, to: &Manifest) -> Result<bool, CopyError> {
        let lost = self.lost_packs(to).await.map_err(CopyError::Target)?;
        let (source, target) = (self.source.clone(), self.target.clone());
        let (mut ours, mut theirs) = (source.entries(from), target.entries(to));
        let mut one = ours.next().await.map_err(CopyError::Source)?;
        let mut other = theirs.next().await.map_err(CopyError::Target)?;
        while let (Some(mine), Some(its)) = (&one, &other) {
            let order = mine.path.cmp(&its.path);
            let is_same = (mine.size, mine.crc32c) == (its.size, its.crc32c);
            if order.is_eq() && is_same && mine.kind == EntryKind::File {
                self.remember_file(mine, its, &lost).await?;
            }
            if order.is_le() {
                one = ours.next().await.map_err(CopyError::Source)?;
            }
            if order.is_ge() {
                other = theirs.next().await.map_err(CopyError::Target)?;
            }
        }
        Ok(lost.is_empty())
    }

    async fn remember_file(
        &mut self,
        one: &Entry,
        other: &Entry,
        lost: &HashSet<PackId>,
    ) -> Result<(), CopyError> {
        for index in 0..one.size.div_ceil(LEAF_SPAN) as u32 {
            let ours = self.source.span_extents(one, index).await.map_err(CopyError::Source)?;
            let theirs = self.target.span_extents(other, index).await.map_err(CopyError::Target)?;
            if theirs.iter().any(|extent| lost.contains(&extent.pack)) {
                continue;
            }
            if let Content::Leaves(leaves) = &other.content
                && let Some(leaf) = leaves.get(index as usize).filter(|leaf| !lost.contains(&leaf.pack))
            {
                self.leaves.insert(leaf_digest(&theirs), *leaf);
            }
            let ours = cut(self.source, &ours).await.map_err(CopyError::Source)?;
            let theirs = cut(self.target, &theirs).await.map_err(CopyError::Target)?;
            self.pair(ours, theirs);
        }
        Ok(())
    }

    /// Notes that the same bytes are `ours` in the source and `theirs` in the target.
    fn pair(&mut self, ours: Vec<Extent>, theirs: Vec<Extent>) {
        let (mut ours, mut theirs) = (ours.into_iter(), theirs.into_iter());
        let (mut one, mut other) = (ours.next(), theirs.next());
        while let (Some(from), Some(to)) = (one, other) {
            let length = from.length.min(to.length);
            let (at, there) = (place_of(from), place_of(to));
            let mut page = 0;
            // Pages are copied whole: what stands elsewhere in its page is of something else.
            let is_same_page = within_page(from) == within_page(to);
            let bytes = if is_same_page { within_page(from) + length } else { 0 };
            let pages = bytes.div_ceil(repository::chunk::PAGE as u64) as u32;
            while page < pages {
                let at = Place { page: at.page + page, ..at };
                page += match self.places.look(at) {
                    Known::At(_, known) => known,
                    Known::Nowhere(free) => {
                        let free = free.min(pages - page);
                        self.places.note(at, Place { page: there.page + page, ..there }, free);
                        free
                    }
                };
            }
            one = behind(from, length).or_else(|| ours.next());
            other = behind(to, length).or_else(|| theirs.next());
        }
    }

    /// The packs of a backup that the target lacks. They are not named again.
    async fn lost_packs(&mut self, manifest: &Manifest) -> Result<HashSet<PackId>, RepositoryError> {
        let mut named = Vec::with_capacity(manifest.packs.len());
        for pack in &manifest.packs {
            let id =
                pack.id().map_err(|source| RepositoryError::Content { place: "manifest".into(), source })?;
            named.push((id, pack));
            self.writer.references.entry(id).or_insert_with(|| pack.clone());
        }
        self.target.lost_packs(named.into_iter()).await
    }
}

/// What is left of a piece behind its first `length` bytes.
fn behind(piece: Extent, length: u64) -> Option<Extent> {
    let rest = Extent { offset: piece.offset + length as u32, length: piece.length - length, ..piece };
    (rest.length > 0).then_some(rest)
}
