//! What an unfinished copy of a backup has stored, noted in partial manifests as a backup does it: the next run goes on there,
//! and until then prune leaves it alone.

use std::collections::HashMap;

use repository::RepositoryError;
use repository::content::{Content, Entry, Extent, Leaf};
use repository::file_list::{FileList, FileListWriter};
use repository::manifest::{Manifest, PackRef};
use storage::StorageError;

use super::CopyError;
use super::backup::Copier;
use crate::backup::live::count;

/// Files that were copied since the last note.
#[derive(Default)]
pub(crate) struct Attempt {
    fresh: Vec<(Entry, Vec<Vec<Extent>>)>,
    /// Number of the last note.
    noted: u32,
    /// Bytes that the run had stored then.
    noted_at: u64,
}

impl Attempt {
    /// Adds a file some of which was copied, with its extents in the target.
    pub(crate) fn add(&mut self, entry: &Entry, spans: Vec<Vec<Extent>>) {
        self.fresh.push((entry.clone(), spans));
    }
}

impl Copier<'_> {
    /// Takes up where an earlier run, which did not end, had put pages of this backup.
    pub(crate) async fn remember_attempt(&mut self, manifest: &Manifest) -> Result<(), CopyError> {
        let cluster = &self.request.cluster;
        let attempts = self.target.partials(cluster, None).await.map_err(CopyError::Target)?;
        let own: Vec<_> =
            attempts.into_iter().flatten().filter(|partial| partial.id == manifest.id).collect();
        self.attempt =
            Attempt { noted: own.len() as u32, noted_at: self.writer.stored_bytes, ..Attempt::default() };
        // Each begins behind the paths of the one before it: together they are one list.
        let mut all = Manifest { id: manifest.id.clone(), ..Manifest::default() };
        for partial in own {
            all.pages.extend(partial.pages);
            all.packs.extend(partial.packs);
        }
        if !all.pages.is_empty() {
            self.remember(manifest, &all).await?;
        }
        Ok(())
    }

    /// Notes what was stored, when that is much.
    pub(crate) async fn maybe_note(&mut self, manifest: &Manifest) -> Result<(), CopyError> {
        let due = self.attempt.noted_at + self.request.note_every;
        if self.writer.stored_bytes < due || self.attempt.fresh.is_empty() {
            return Ok(());
        }
        self.writer.flush().await?;
        self.attempt.noted_at = self.writer.stored_bytes;
        let writer = self.target.access().writer();
        let mut list = FileListWriter::new(writer, self.target.local(), self.request.level, &[]);
        let mut live = HashMap::new();
        for (mut entry, mut spans) in std::mem::take(&mut self.attempt.fresh) {
            spans.iter().for_each(|extents| count(&mut live, extents));
            entry.content = if matches!(entry.content, Content::Inline(_)) {
                Content::Inline(spans.pop().unwrap_or_default())
            } else {
                let leaves = spans.into_iter().map(|extents| list.add_leaf(&Leaf::of(extents)));
                let leaves: Result<Vec<_>, _> = leaves.collect();
                Content::Leaves(leaves?)
            };
            list.add_entry(entry)?;
        }
        let FileList { pages, packs } = list.finish()?;
        for pack in packs {
            live.entry(pack.id).or_default();
            self.writer.submit(pack).await?;
        }
        self.writer.flush().await?;
        let packs: Vec<PackRef> =
            live.keys().filter_map(|id| self.writer.references.get(id).cloned()).collect();
        let partial = Manifest { pages, packs, ..manifest.clone() };
        loop {
            self.attempt.noted += 1;
            let number = self.attempt.noted;
            match self.target.publish_partial(&self.request.cluster, &partial, number).await {
                // Of a note that cannot be read.
                Err(RepositoryError::Storage(StorageError::NameTaken { .. })) => {}
                other => return other.map_err(CopyError::Target),
            }
        }
    }
}
