//! Writing the files of a logical backup: pieces into packs, extents into entries.

mod file;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use repository::content::{Content, Entry, Extent};
use repository::file_list::{FileList, FileListWriter};
use repository::manifest::{PageRef, Totals};
use repository::pack::{Gatherer, PackMemory};
use repository::{PackId, Repository};
use tokio::runtime::Handle;

use super::error::LogicalError;
use super::known::{Earlier, Known};
use crate::backup::live::count;
use crate::backup::upload::Uploader;
use crate::copy::reader::Reader;
use file::FileWriter;

/// Opened chunks of earlier backups that each thread keeps: of each pack that a span may name one, and some ahead.
const CHUNKS: usize = 20;
/// Of which so many are read at once: nobody knows yet whether it pays.
const CHUNKS_AT_ONCE: u32 = 4;

/// What all writers of one backup share.
pub(crate) struct Shared<'b> {
    pub(crate) repository: Arc<Repository>,
    pub(crate) earlier: &'b Earlier,
    pub(crate) uploader: Uploader,
    pub(crate) handle: Handle,
    pub(crate) level: i32,
    pub(crate) memory: PackMemory,
    /// Stored bytes of earlier backups that were read to compare with them.
    pub(crate) read_back: AtomicU64,
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
            read_back: AtomicU64::new(0),
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
    reader: Reader,
}

impl<'s> Sink<'s> {
    pub(crate) fn new(shared: &'s Shared<'s>) -> Self {
        let gatherer = Gatherer::with_memory(&shared.repository, shared.level, shared.memory.clone());
        let reader = Reader::with_chunks(shared.repository.clone(), CHUNKS, CHUNKS_AT_ONCE);
        Self { shared, gatherer, reader }
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
        self.shared.read_back.fetch_add(self.reader.bytes_read, Ordering::Relaxed);
        if let Some(pack) = self.gatherer.finish()? {
            self.shared.uploader.submit(pack);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
