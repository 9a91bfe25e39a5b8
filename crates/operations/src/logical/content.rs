//! Writing the files of a logical backup: pieces into packs, extents into entries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use repository::chunk::{PAGE, short};
use repository::content::{Content, Entry, EntryKind, Extent, LEAF_SPAN, encode_leaf};
use repository::file_list::{FileList, FileListWriter};
use repository::manifest::{PageRef, Totals};
use repository::pack::{Gatherer, PackMemory};
use repository::{PackId, Repository};
use tokio::runtime::Handle;

use super::error::LogicalError;
use super::known::{Earlier, Known};
use super::rows::{MAX_PIECE, RowSum, ends_piece};
use crate::backup::live::count;
use crate::backup::upload::Uploader;

/// A file with more extents than this has them in leaves, so that entries stay small.
const INLINE_EXTENTS: usize = 64;

/// What all writers of one backup share.
pub(crate) struct Shared<'b> {
    pub(crate) repository: Arc<Repository>,
    pub(crate) earlier: &'b Earlier,
    pub(crate) uploader: Uploader,
    pub(crate) handle: Handle,
    pub(crate) level: i32,
    pub(crate) memory: PackMemory,
    collected: Mutex<Collected>,
}

/// The files that are finished.
struct Collected {
    list: FileListWriter,
    files: Vec<Done>,
}

/// A file that was written.
struct Done {
    entry: Entry,
    /// Bytes of rows by pack.
    live: HashMap<PackId, u64>,
    new_bytes: u64,
    /// Not so of one whose reading failed: the next attempt finds what it has.
    is_whole: bool,
}

/// What is left when every file is finished.
pub(crate) struct Finished {
    pub(crate) pages: Vec<PageRef>,
    pub(crate) live: HashMap<PackId, u64>,
    pub(crate) totals: Totals,
}

impl<'b> Shared<'b> {
    pub(crate) fn new(
        repository: &Arc<Repository>,
        earlier: &'b Earlier,
        known: &[PageRef],
        level: i32,
        memory: PackMemory,
        handle: Handle,
    ) -> Self {
        let writer = repository.access().writer();
        Self {
            repository: repository.clone(),
            earlier,
            uploader: Uploader::new(repository.clone(), handle.clone()),
            handle,
            level,
            memory,
            collected: Mutex::new(Collected {
                list: FileListWriter::new(writer, repository.local(), level, known),
                files: Vec::new(),
            }),
        }
    }

    /// Ends the list, and sees all of it stored. Every writer must have ended before.
    pub(crate) fn finish(&self) -> Result<Finished, LogicalError> {
        self.finish_those(|file| file.is_whole)
    }

    /// Ends the list with those files whose packs are stored; `None` if there are none.
    pub(crate) fn finish_durable(&self) -> Result<Option<Finished>, LogicalError> {
        // Whatever failed, failed before and was told.
        let _ = self.uploader.wait();
        let is_stored = |pack: &PackId| {
            self.earlier.tail_lens.contains_key(pack) || self.uploader.reference(*pack).is_some()
        };
        let finished = self.finish_those(|file| file.live.keys().all(is_stored))?;
        Ok((finished.totals.files > 0).then_some(finished))
    }

    fn finish_those(&self, is_wanted: impl Fn(&Done) -> bool) -> Result<Finished, LogicalError> {
        let mut collected = self.collected.lock().expect("no holder panics");
        let Collected { list, files } = &mut *collected;
        let writer = self.repository.access().writer();
        let empty = FileListWriter::new(writer, self.repository.local(), self.level, &[]);
        let mut list = std::mem::replace(list, empty);
        let mut files = std::mem::take(files);
        files.retain(is_wanted);
        // Of tries at the same file the whole one.
        files.sort_by(|a, b| (&a.entry.path, !a.is_whole).cmp(&(&b.entry.path, !b.is_whole)));
        files.dedup_by(|later, first| later.entry.path == first.entry.path);
        let (mut live, mut totals) = (HashMap::new(), Totals::default());
        for Done { entry, live: rows, new_bytes, .. } in files {
            totals.files += 1;
            totals.bytes += entry.size;
            totals.bytes_read += entry.size;
            totals.bytes_new += new_bytes;
            if let Content::Leaves(leaves) = &entry.content {
                count(&mut live, leaves);
            }
            for (pack, bytes) in rows {
                *live.entry(pack).or_default() += bytes;
            }
            list.add_entry(entry)?;
        }
        let FileList { pages, packs } = list.finish()?;
        packs.into_iter().for_each(|pack| self.uploader.submit(pack));
        self.uploader.wait()?;
        let at: Vec<Extent> = pages.iter().filter_map(|page| page.extent().ok()).collect();
        count(&mut live, &at);
        totals.bytes_stored = self.uploader.stored_bytes();
        Ok(Finished { pages, live, totals })
    }
}

/// One thread's way into the repository.
pub(crate) struct Sink<'s> {
    shared: &'s Shared<'s>,
    gatherer: Gatherer,
}

impl<'s> Sink<'s> {
    pub(crate) fn new(shared: &'s Shared<'s>) -> Self {
        let gatherer = Gatherer::with_memory(&shared.repository, shared.level, shared.memory.clone());
        Self { shared, gatherer }
    }

    /// Begins a file.
    pub(crate) fn file(&mut self, path: String) -> Result<FileWriter<'_, 's>, LogicalError> {
        let shared = self.shared;
        let known = Known::of(&shared.repository, shared.earlier, &shared.handle, path.as_bytes())?;
        Ok(FileWriter::new(self, path, known))
    }

    /// Stores a whole file.
    pub(crate) fn put(&mut self, path: String, content: &[u8]) -> Result<(), LogicalError> {
        let mut file = self.file(path)?;
        super::rows::each_row(content, &mut |row| file.row(row))?;
        file.finish().map(drop)
    }

    /// Sends off what is left.
    pub(crate) fn finish(mut self) -> Result<(), LogicalError> {
        if let Some(pack) = self.gatherer.finish()? {
            self.shared.uploader.submit(pack);
        }
        Ok(())
    }
}

/// A file being written, row by row.
pub(crate) struct FileWriter<'f, 's> {
    sink: &'f mut Sink<'s>,
    path: String,
    known: Known<'s>,
    /// Extents of the spans that are full, as they will be named.
    leaves: Vec<Extent>,
    /// Extents of the span at work.
    extents: Vec<Extent>,
    /// Bytes in pieces.
    size: u64,
    piece: Vec<u8>,
    /// Bytes of rows by pack.
    live: HashMap<PackId, u64>,
    new_bytes: u64,
    crc32c: u32,
    sum: RowSum,
}

impl<'f, 's> FileWriter<'f, 's> {
    fn new(sink: &'f mut Sink<'s>, path: String, known: Known<'s>) -> Self {
        Self {
            sink,
            path,
            known,
            leaves: Vec::new(),
            extents: Vec::new(),
            size: 0,
            piece: Vec::with_capacity(MAX_PIECE),
            live: HashMap::new(),
            new_bytes: 0,
            crc32c: 0,
            sum: RowSum::default(),
        }
    }

    /// Adds a row, whole.
    pub(crate) fn row(&mut self, row: &[u8]) -> Result<(), LogicalError> {
        let digest = self.sink.shared.repository.digester().row(row);
        self.sum.add(&digest, row.len());
        self.crc32c = crc32c::crc32c_append(self.crc32c, row);
        let mut rest = row;
        loop {
            // A span is named by one leaf: no piece goes over its end.
            let in_span = (LEAF_SPAN - self.size % LEAF_SPAN) as usize - self.piece.len();
            let room = in_span.min(MAX_PIECE - self.piece.len());
            let (now, later) = rest.split_at(rest.len().min(room));
            self.piece.extend_from_slice(now);
            rest = later;
            if now.len() < room {
                break;
            }
            self.end_piece()?;
        }
        if ends_piece(&digest, row.len(), self.piece.len()) { self.end_piece() } else { Ok(()) }
    }

    fn end_piece(&mut self) -> Result<(), LogicalError> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.known.advance(self.size / LEAF_SPAN)?;
        let length = self.piece.len();
        self.piece.resize(length.next_multiple_of(PAGE), 0);
        let mut digests = Vec::with_capacity(self.piece.len() / PAGE);
        self.sink.shared.repository.digester().pages(&self.piece, &mut digests);
        let digests: Vec<_> = digests.iter().map(short).collect();
        let at = match self.known.find(&digests, length) {
            Some(at) => at,
            None => {
                if let Some(pack) = self.sink.gatherer.make_room(self.piece.len())? {
                    self.sink.shared.uploader.submit(pack);
                }
                let at = self.sink.gatherer.add_piece(&self.piece[..length]);
                self.new_bytes += length as u64;
                self.known.add(at, digests);
                at
            }
        };
        self.extents.push(at);
        self.size += length as u64;
        self.piece.clear();
        if self.size.is_multiple_of(LEAF_SPAN) { self.end_span() } else { Ok(()) }
    }

    /// Stores the leaf of the span at work.
    fn end_span(&mut self) -> Result<(), LogicalError> {
        let extents = std::mem::take(&mut self.extents);
        count(&mut self.live, &extents);
        let leaf = match self.known.find_leaf(&encode_leaf(&extents)) {
            Some(leaf) => leaf,
            None => {
                let mut collected = self.sink.shared.collected.lock().expect("no holder panics");
                let leaf = collected.list.add_leaf(&extents)?;
                let packs = collected.list.take_finished();
                drop(collected);
                packs.into_iter().for_each(|pack| self.sink.shared.uploader.submit(pack));
                leaf
            }
        };
        self.leaves.push(leaf);
        Ok(())
    }

    /// Ends the file; what its rows sum up to.
    pub(crate) fn finish(self) -> Result<RowSum, LogicalError> {
        self.end(true)
    }

    /// Ends a file that could not be read to its end: the next attempt finds in it what was stored.
    pub(crate) fn abandon(self) -> Result<(), LogicalError> {
        self.end(false).map(drop)
    }

    fn end(mut self, is_whole: bool) -> Result<RowSum, LogicalError> {
        self.end_piece()?;
        let content = if self.leaves.is_empty() && self.extents.len() <= INLINE_EXTENTS {
            count(&mut self.live, &self.extents);
            Content::Inline(std::mem::take(&mut self.extents))
        } else {
            if !self.extents.is_empty() {
                self.end_span()?;
            }
            Content::Leaves(std::mem::take(&mut self.leaves))
        };
        let entry = Entry {
            path: self.path.into_bytes(),
            kind: EntryKind::File,
            mode: 0o600,
            size: self.size,
            mtime_ns: 0,
            ctime_ns: 0,
            inode: 0,
            crc32c: self.crc32c,
            content,
            target: Vec::new(),
        };
        let mut collected = self.sink.shared.collected.lock().expect("no holder panics");
        collected.files.push(Done { entry, live: self.live, new_bytes: self.new_bytes, is_whole });
        Ok(self.sum)
    }
}

#[cfg(test)]
mod tests;
