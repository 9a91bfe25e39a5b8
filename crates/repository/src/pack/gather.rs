//! Gathering single pages, and chunks of the map, into packs: what copies what is stored already.

use super::{PackMemory, PackWriter, SealedPack};
use crate::chunk::{Codec, CodecError, Digester, MAX_CHUNK, PAGE};
use crate::content::Extent;
use crate::layout::PackId;
use crate::repository::Repository;
use crate::secrets::WriterCredential;

/// Where a page, or a chunk of the map, will stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gathered {
    /// The pack.
    pub pack: PackId,
    /// The chunk in it.
    pub chunk: u32,
    /// The page in that; 0 for a chunk of the map.
    pub page: u32,
}

/// Pages that become chunks of 1 MiB, which become packs.
pub struct Gatherer {
    writer: WriterCredential,
    digester: Digester,
    codec: Codec,
    memory: PackMemory,
    pack: Option<PackWriter>,
    /// Pages of the chunk being made.
    pages: Vec<u8>,
    /// Digests of the first of them, as far as they are known.
    digests: Vec<[u8; 32]>,
}

impl Gatherer {
    /// Packs for `repository`; `level` is zstd's, 1 to 19.
    pub fn new(repository: &Repository, level: i32) -> Self {
        Self::with_memory(repository, level, PackMemory::unbounded())
    }

    /// As [`Gatherer::new`], with packs that take their memory from `memory`.
    pub fn with_memory(repository: &Repository, level: i32, memory: PackMemory) -> Self {
        Self {
            memory,
            writer: repository.access().writer().clone(),
            digester: repository.digester().clone(),
            codec: Codec::new(level),
            pack: None,
            pages: Vec::with_capacity(MAX_CHUNK),
            digests: Vec::new(),
        }
    }

    /// Adds a page or several, filled up with zeros where the last is short. [`Gatherer::take_full`] comes before the next one.
    pub fn add_page(&mut self, page: &[u8]) -> Gathered {
        self.fill_page();
        let at = self.next_page();
        self.pages.extend_from_slice(page);
        self.fill_page();
        at
    }

    /// Adds a chunk of the map, whole. [`Gatherer::end_chunk`] and [`Gatherer::take_full`] come before it: a pack holds so many
    /// chunks and no more.
    pub fn add_map(&mut self, plain: &[u8]) -> Result<Gathered, CodecError> {
        debug_assert!(self.pages.is_empty(), "a chunk of pages was begun");
        let at = self.next_page();
        let pack = self.pack.as_mut().expect("next_page makes it");
        pack.add_map(&mut self.codec, &self.digester, plain)?;
        Ok(at)
    }

    /// Adds bytes that stand in one chunk, for which [`Gatherer::make_room`] was called before; returns where they will stand.
    /// `digests` are those of its pages, the last filled up with zeros.
    pub fn add_piece(&mut self, piece: &[u8], digests: &[[u8; 32]]) -> Extent {
        debug_assert!(self.pages.len() + piece.len() <= MAX_CHUNK, "room was made");
        debug_assert_eq!(piece.len().div_ceil(PAGE), digests.len());
        self.digest_pages();
        let Gathered { pack, chunk, page } = self.add_page(piece);
        self.digests.extend_from_slice(digests);
        Extent { pack, chunk, offset: page * PAGE as u32, length: piece.len() as u64 }
    }

    /// As [`Gatherer::add_piece`], behind what was added before and not on a page of its own.
    pub fn add_run(&mut self, run: &[u8]) -> Extent {
        debug_assert!(self.pages.len() + run.len() <= MAX_CHUNK, "room was made");
        let (Gathered { pack, chunk, .. }, offset) = (self.next_page(), self.pages.len() as u32);
        self.pages.extend_from_slice(run);
        Extent { pack, chunk, offset, length: run.len() as u64 }
    }

    /// Sees to it that `length` bytes, at most those of a chunk, stand in one chunk. The pack that became full, if one did.
    pub fn make_room(&mut self, length: usize) -> Result<Option<SealedPack>, CodecError> {
        if self.pages.len().next_multiple_of(PAGE) + length > MAX_CHUNK {
            self.end_chunk()?;
        }
        self.take_full()
    }

    /// The pack that is full, if it is; then everything that was added until now is in it or in one before.
    pub fn take_full(&mut self) -> Result<Option<SealedPack>, CodecError> {
        // A page that was begun by runs is full when nothing but a page can follow.
        if self.pages.len().next_multiple_of(PAGE) == MAX_CHUNK {
            self.end_chunk()?;
        }
        let is_full = self.pages.is_empty() && self.pack.as_ref().is_some_and(PackWriter::is_full);
        Ok(if is_full { self.pack.take().map(PackWriter::finish) } else { None })
    }

    /// What is left, as a pack.
    pub fn finish(&mut self) -> Result<Option<SealedPack>, CodecError> {
        self.end_chunk()?;
        Ok(self.pack.take().map(PackWriter::finish))
    }

    /// Ends the chunk that pages are gathered in.
    pub fn end_chunk(&mut self) -> Result<(), CodecError> {
        self.digest_pages();
        let Some(pack) = self.pack.as_mut().filter(|_| !self.pages.is_empty()) else { return Ok(()) };
        pack.add_pages(&mut self.codec, &self.digester, &self.pages, &self.digests)?;
        self.pages.clear();
        self.digests.clear();
        Ok(())
    }

    /// Digests the pages that nobody has.
    fn digest_pages(&mut self) {
        self.fill_page();
        self.digester.pages(&self.pages[self.digests.len() * PAGE..], &mut self.digests);
    }

    fn fill_page(&mut self) {
        self.pages.resize(self.pages.len().next_multiple_of(PAGE), 0);
    }

    fn next_page(&mut self) -> Gathered {
        let pack = self.pack.get_or_insert_with(|| PackWriter::new(&self.writer, &self.memory));
        Gathered { pack: pack.id(), chunk: pack.len(), page: (self.pages.len() / PAGE) as u32 }
    }
}
