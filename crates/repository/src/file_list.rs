//! Writing and reading a backup's file list: list pages and map leaves, packed into map chunks.
//!
//! Pages are cut where the path says so, not after so many entries, so that a file that came or went changes one page
//! and all others are named again as the parent stored them.

use std::collections::HashMap;

use crate::chunk::{Codec, CodecError, Digester, MAX_CHUNK};
use crate::content::{Entry, Extent, Leaf, encode_page};
use crate::layout::PackId;
use crate::local::{Drawer, LocalStore};
use crate::manifest::PageRef;
use crate::pack::{PackMemory, PackWriter, SealedPack};
use crate::secrets::WriterCredential;

/// A page ends behind a path whose hash ends in this many zero bits: every 256 entries on average.
const CUT_BITS: u32 = 8;
/// A page never has more entries than this, nor (about) more bytes than [`PAGE_BYTES`].
const PAGE_ENTRIES: usize = 2048;
const PAGE_BYTES: usize = 256 << 10;
/// Map chunks are small, for readers often want one page of one.
const MAP_CHUNK: usize = 256 << 10;

/// Builds the map of one backup.
pub struct FileListWriter {
    writer: WriterCredential,
    local: LocalStore,
    digester: Digester,
    codec: Codec,
    pack: Option<PackWriter>,
    chunk: Vec<u8>,
    entries: Vec<Entry>,
    entry_bytes: usize,
    known: HashMap<[u8; 32], PageRef>,
    pages: Vec<PageRef>,
    finished: Vec<SealedPack>,
}

/// What a [`FileListWriter`] leaves behind.
pub struct FileList {
    /// The list pages, in path order.
    pub pages: Vec<PageRef>,
    /// Packs to be stored before a manifest names the pages.
    pub packs: Vec<SealedPack>,
}

impl FileListWriter {
    /// A list that names the parent's `known` pages again where they are the same. Map chunks are kept in `local` too,
    /// for a host that cannot read them back.
    pub fn new(writer: &WriterCredential, local: &LocalStore, level: i32, known: &[PageRef]) -> Self {
        let digest = |page: &PageRef| page.digest[..].try_into().ok();
        Self {
            writer: writer.clone(),
            local: local.clone(),
            digester: Digester::new(writer),
            codec: Codec::new(level),
            pack: None,
            chunk: Vec::with_capacity(MAP_CHUNK),
            entries: Vec::new(),
            entry_bytes: 0,
            known: known.iter().filter_map(|page| Some((digest(page)?, page.clone()))).collect(),
            pages: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Stores a leaf; returns where its bytes are.
    pub fn add_leaf(&mut self, leaf: &Leaf) -> Result<Extent, CodecError> {
        self.add_bytes(&leaf.encode())
    }

    /// Adds the next entry, which must come after all others in path order.
    pub fn add_entry(&mut self, entry: Entry) -> Result<(), CodecError> {
        let cut = u32::from_le_bytes(*blake3::hash(&entry.path).as_bytes().first_chunk().expect("32 bytes"));
        self.entry_bytes += entry.path.len() + 48 + entry_weight(&entry);
        self.entries.push(entry);
        let full = self.entries.len() >= PAGE_ENTRIES || self.entry_bytes >= PAGE_BYTES;
        if full || cut.trailing_zeros() >= CUT_BITS { self.end_page() } else { Ok(()) }
    }

    fn end_page(&mut self) -> Result<(), CodecError> {
        let entries = std::mem::take(&mut self.entries);
        self.entry_bytes = 0;
        let Some(first) = entries.first() else { return Ok(()) };
        let bytes = encode_page(&entries);
        let digest = self.digester.content(&bytes);
        let page = match self.known.get(&digest) {
            Some(known) => known.clone(),
            None => PageRef::new(first.path.clone(), digest, self.add_bytes(&bytes)?),
        };
        if !storage::planted::has("list-page.dropped") {
            self.pages.push(page);
        }
        Ok(())
    }

    fn add_bytes(&mut self, bytes: &[u8]) -> Result<Extent, CodecError> {
        // A reader refuses a longer chunk, and with it the whole pack.
        if bytes.len() > MAX_CHUNK {
            return Err(CodecError::TooLong { len: bytes.len() });
        }
        if !self.chunk.is_empty() && self.chunk.len() + bytes.len() > MAP_CHUNK {
            self.end_chunk()?;
        }
        let pack = self.pack.get_or_insert_with(|| PackWriter::new(&self.writer, &PackMemory::unbounded()));
        let at = Extent {
            pack: pack.id(),
            chunk: pack.len(),
            offset: self.chunk.len() as u32,
            length: bytes.len() as u64,
        };
        self.chunk.extend_from_slice(bytes);
        Ok(at)
    }

    fn end_chunk(&mut self) -> Result<(), CodecError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut pack = self.pack.take().expect("a chunk with bytes has its pack");
        let number = pack.add_map(&mut self.codec, &self.digester, &self.chunk)?;
        self.local.put(Drawer::Maps, &map_name(pack.id(), number), &self.chunk);
        self.chunk.clear();
        if pack.is_full() {
            self.finished.push(pack.finish());
        } else {
            self.pack = Some(pack);
        }
        Ok(())
    }

    /// Packs that are full and can be stored already.
    pub fn take_finished(&mut self) -> Vec<SealedPack> {
        std::mem::take(&mut self.finished)
    }

    /// Ends the list.
    pub fn finish(mut self) -> Result<FileList, CodecError> {
        self.end_page()?;
        self.end_chunk()?;
        self.finished.extend(self.pack.take().filter(|pack| !pack.is_empty()).map(PackWriter::finish));
        Ok(FileList { pages: self.pages, packs: self.finished })
    }
}

/// The name of a map chunk among this host's files.
pub(crate) fn map_name(pack: PackId, chunk: u32) -> String {
    format!("{pack}-{chunk}")
}

fn entry_weight(entry: &Entry) -> usize {
    match &entry.content {
        crate::content::Content::Inline(extents) | crate::content::Content::Leaves(extents) => {
            extents.len() * 10
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Content, EntryKind};
    use crate::secrets::Keyring;

    fn entry(number: usize) -> Entry {
        Entry {
            path: format!("base/5/{number:06}").into_bytes(),
            kind: EntryKind::File,
            mode: 0o600,
            size: 0,
            mtime_ns: 1,
            ctime_ns: 2,
            inode: number as u64,
            crc32c: 0,
            content: Content::Inline(vec![]),
            target: vec![],
        }
    }

    fn writer_for(known: &[PageRef]) -> FileListWriter {
        let writer = Keyring::for_test_vectors(3).writer;
        FileListWriter::new(&writer, &LocalStore::new(None, &writer), 1, known)
    }

    fn list(known: &[PageRef], entries: impl Iterator<Item = Entry>) -> FileList {
        let mut writer = writer_for(known);
        entries.for_each(|entry| writer.add_entry(entry).unwrap());
        writer.finish().unwrap()
    }

    #[test]
    fn an_entry_too_long_for_any_chunk_is_refused_when_it_is_written() {
        let leaf = |at: u32| Extent {
            pack: PackId([(at % 251) as u8; 16]),
            chunk: at % 1000,
            offset: 1 << 19,
            length: 200_000,
        };
        let content = Content::Leaves((0..130_000).map(leaf).collect());
        let mut writer = writer_for(&[]);
        writer.add_entry(entry(1)).unwrap();
        let added = writer.add_entry(Entry { content, ..entry(2) });
        assert!(matches!(added, Err(CodecError::TooLong { .. })));
    }

    #[test]
    fn an_unchanged_list_stores_nothing_and_a_changed_entry_one_page() {
        let first = list(&[], (0..5000).map(entry));
        assert!(first.pages.len() > 8, "{} pages", first.pages.len());
        let same = list(&first.pages, (0..5000).map(entry));
        assert_eq!((&same.pages, same.packs.len()), (&first.pages, 0));
        let without_one = list(&first.pages, (0..5000).filter(|number| *number != 2500).map(entry));
        let new = without_one.pages.iter().filter(|page| !first.pages.contains(page)).count();
        assert!((1..=2).contains(&new), "{new} new pages");
    }
}
