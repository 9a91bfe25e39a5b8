//! Reuse: what is right in the target stays, what is wrong is fetched, what does not belong is removed.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use repository::chunk::{MAX_CHUNK, PAGE, short};
use repository::content::{Entry, Extent, LEAF_SPAN};

use super::directory::MARKER;
use super::error::RestoreError;
use super::fetch::{Fetcher, FileTarget, Piece, Window};
use super::tree::Tree;
use crate::monitor::Event;

/// Compares the files of a window with what stands in the target, by content, and leaves in the window what is wrong.
pub(crate) fn compare(fetcher: &Fetcher<'_>, entries: Vec<Entry>) -> Result<Window, RestoreError> {
    let next = AtomicUsize::new(0);
    let found = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..fetcher.workers)
            .map(|_| {
                scope.spawn(|| {
                    let mut buffer = vec![0; MAX_CHUNK];
                    let mut pieces = Vec::new();
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(entry) = entries.get(at) else { return Ok(pieces) };
                        compare_file(fetcher, entry, at as u32, &mut buffer, &mut pieces)?;
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"))
            .collect::<Result<Vec<_>, RestoreError>>()
    })?;
    let target = |entry: Entry| FileTarget { path: entry.path, size: entry.size, mode: entry.mode };
    Ok(Window {
        files: entries.into_iter().map(target).collect(),
        pieces: found.into_iter().flatten().collect(),
    })
}

fn compare_file(
    fetcher: &Fetcher<'_>,
    entry: &Entry,
    file: u32,
    buffer: &mut [u8],
    pieces: &mut Vec<Piece>,
) -> Result<(), RestoreError> {
    let failed = || RestoreError::disk("read", fetcher.tree.full_path(&entry.path));
    let existing = fetcher.tree.open_existing(&entry.path).map_err(failed())?;
    let Some(existing) = existing else {
        fetcher.tree.make_way(&entry.path).map_err(failed())?;
        return whole(fetcher, entry, file, pieces);
    };
    if existing.metadata().map_err(failed())?.len() != entry.size {
        existing.set_len(entry.size).map_err(failed())?;
    }
    fetcher.tree.settle(&existing, entry.mode).map_err(failed())?;
    for index in 0..entry.size.div_ceil(LEAF_SPAN) as u32 {
        compare_span(fetcher, entry, file, index, &existing, buffer, pieces)?;
    }
    Ok(())
}

fn compare_span(
    fetcher: &Fetcher<'_>,
    entry: &Entry,
    file: u32,
    index: u32,
    existing: &File,
    buffer: &mut [u8],
    pieces: &mut Vec<Piece>,
) -> Result<(), RestoreError> {
    let repository = fetcher.repository;
    let pages = fetcher.handle.block_on(async {
        let extents = repository.span_extents(entry, index).await?;
        repository.pages(&extents, fetcher.tail_lens).await
    })?;
    let start = u64::from(index) * LEAF_SPAN;
    let mut offset = start;
    let mut same = 0;
    let mut digests = Vec::with_capacity(MAX_CHUNK / PAGE);
    for region in pages.chunks(MAX_CHUNK / PAGE) {
        let length: u64 = region.iter().map(|page| page.extent.length).sum();
        let padded = (length as usize).next_multiple_of(PAGE);
        existing
            .read_exact_at(&mut buffer[..length as usize], offset)
            .map_err(RestoreError::disk("read", fetcher.tree.full_path(&entry.path)))?;
        buffer[length as usize..padded].fill(0);
        digests.clear();
        repository.digester().pages(&buffer[..padded], &mut digests);
        for (page, digest) in region.iter().zip(&digests) {
            if short(digest) == page.digest {
                same += page.extent.length;
            } else {
                push(pieces, Piece { extent: page.extent, file, file_offset: offset });
            }
            offset += page.extent.length;
        }
    }
    fetcher.monitor.event(Event::Advanced { bytes: same });
    Ok(())
}

/// Appends a piece, or lets the last one grow when both the file and the chunk go on.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = pieces.last_mut() {
        let next = Extent {
            offset: last.extent.offset + last.extent.length as u32,
            length: piece.extent.length,
            ..last.extent
        };
        if last.file == piece.file
            && last.file_offset + last.extent.length == piece.file_offset
            && next == piece.extent
        {
            last.extent.length += piece.extent.length;
            return;
        }
    }
    pieces.push(piece);
}

/// Everything of a file.
pub(crate) fn whole(
    fetcher: &Fetcher<'_>,
    entry: &Entry,
    file: u32,
    pieces: &mut Vec<Piece>,
) -> Result<(), RestoreError> {
    if entry.size == 0 {
        let failed = || RestoreError::disk("make", fetcher.tree.full_path(&entry.path));
        let made = fetcher.tree.open_for_writing(&entry.path).map_err(failed())?;
        made.set_len(0).map_err(failed())?;
        return fetcher.tree.settle(&made, entry.mode).map_err(failed());
    }
    let mut file_offset = 0;
    for index in 0..entry.size.div_ceil(LEAF_SPAN) as u32 {
        for extent in fetcher.handle.block_on(fetcher.repository.span_extents(entry, index))? {
            pieces.push(Piece { extent, file, file_offset });
            file_offset += extent.length;
        }
    }
    Ok(())
}

/// Hashes of the paths that belong into the target.
#[derive(Default)]
pub(crate) struct Belonging {
    hashes: HashSet<u64>,
    state: RandomState,
}

impl Belonging {
    pub(crate) fn add(&mut self, path: &[u8]) {
        self.hashes.insert(self.state.hash_one(path));
    }

    fn has(&self, path: &[u8]) -> bool {
        self.hashes.contains(&self.state.hash_one(path))
    }
}

/// Removes what stands in the roots and does not belong to the backup: files of a later life of the cluster, old WAL.
/// In a tablespace's location there may be other clusters' directories: only `version`, this cluster's, is looked into.
pub(crate) fn remove_others(tree: &Tree, belonging: &Belonging, version: &str) -> Result<(), RestoreError> {
    for (prefix, root) in tree.roots() {
        if prefix.is_empty() {
            remove_below(root, prefix, belonging)?;
            continue;
        }
        let own = root.join(version);
        if std::fs::symlink_metadata(&own).is_ok_and(|found| found.is_dir()) {
            remove_below(&own, &[prefix, version.as_bytes(), b"/"].concat(), belonging)?;
        }
    }
    Ok(())
}

fn remove_below(folder: &Path, prefix: &[u8], belonging: &Belonging) -> Result<(), RestoreError> {
    let failed = |action| RestoreError::disk(action, folder);
    for entry in std::fs::read_dir(folder).map_err(failed("list"))? {
        let entry = entry.map_err(failed("list"))?;
        let name = entry.file_name();
        // What a filesystem of its own holds at its top: the data directory and `pg_wal` often are one.
        let on_top = prefix.is_empty() || prefix == b"pg_wal/";
        if prefix.is_empty() && name == MARKER || on_top && name == "lost+found" {
            continue;
        }
        let path = [prefix, name.as_bytes()].concat();
        let is_directory = entry.file_type().map_err(failed("list"))?.is_dir();
        if is_directory {
            remove_below(&entry.path(), &[&path[..], b"/"].concat(), belonging)?;
        }
        if belonging.has(&path) {
            continue;
        }
        let removed =
            if is_directory { std::fs::remove_dir(entry.path()) } else { std::fs::remove_file(entry.path()) };
        removed.map_err(RestoreError::disk("remove", entry.path()))?;
    }
    Ok(())
}
