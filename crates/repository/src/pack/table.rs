//! The table of a pack: where each chunk stands, and what every page of it digests to.

use super::MAX_CHUNKS;
use crate::chunk::{ChunkDigest, Encoding, MAX_CHUNK, PAGE, PageDigest};
use crate::seal::TAG_LEN;
use crate::secrets::array;

const TABLE_VERSION: u8 = 1;
const TABLE_ENTRY: usize = 42;
/// Most bytes of a sealed table.
pub(super) const MAX_TABLE: usize = 5 + MAX_CHUNKS * (TABLE_ENTRY + MAX_CHUNK / PAGE * 8) + TAG_LEN;

/// What a chunk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ChunkKind {
    /// Pages of database files.
    Data = 0,
    /// Map leaves and pages of file lists.
    Map = 1,
}

/// One line of a pack's table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkInfo {
    /// Where the sealed chunk begins in the pack.
    pub offset: u64,
    /// Sealed bytes, tag included.
    pub stored_len: u32,
    /// Plaintext bytes, at most 1 MiB.
    pub plain_len: u32,
    /// How the plaintext is stored.
    pub encoding: Encoding,
    /// What it holds.
    pub kind: ChunkKind,
    /// Digest of the plaintext.
    pub digest: ChunkDigest,
    first_page: u32,
}

/// What a pack's table says.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct PackTable {
    /// The chunks, in the order of their frames.
    pub chunks: Vec<ChunkInfo>,
    pub(super) pages: Vec<PageDigest>,
}

impl PackTable {
    /// The digest of page `page` of chunk `chunk`; `None` past the end and for chunks that hold no pages.
    pub fn page(&self, chunk: u32, page: u32) -> Option<PageDigest> {
        let info = self.chunks.get(chunk as usize)?;
        let pages = page_count(info);
        (page < pages).then(|| self.pages[(info.first_page + page) as usize])
    }

    /// Bytes that this table takes in memory, about.
    pub fn weight(&self) -> usize {
        64 + self.chunks.len() * size_of::<ChunkInfo>() + self.pages.len() * 8
    }

    pub(super) fn push(
        &mut self,
        stored_len: usize,
        plain_len: usize,
        encoding: Encoding,
        kind: ChunkKind,
        digest: ChunkDigest,
    ) {
        let offset = self.chunks.last().map_or(0, |last| last.offset + u64::from(last.stored_len));
        let first_page = self.chunks.last().map_or(0, |last| last.first_page + page_count(last));
        self.chunks.push(ChunkInfo {
            offset,
            stored_len: stored_len as u32,
            plain_len: plain_len as u32,
            encoding,
            kind,
            digest,
            first_page,
        });
    }

    /// The stored form, before sealing.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(5 + self.chunks.len() * TABLE_ENTRY + self.pages.len() * 8);
        bytes.push(TABLE_VERSION);
        bytes.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.stored_len.to_le_bytes());
            bytes.extend_from_slice(&chunk.plain_len.to_le_bytes());
            bytes.push(chunk.encoding as u8);
            bytes.push(chunk.kind as u8);
            bytes.extend_from_slice(&chunk.digest.0);
        }
        for page in &self.pages {
            bytes.extend_from_slice(&page.0.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`PackTable::encode`] writes; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[TABLE_VERSION, c0, c1, c2, c3], mut rest) = bytes.split_first_chunk::<5>()? else {
            return None;
        };
        let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        if count > MAX_CHUNKS {
            return None;
        }
        let mut table = Self { chunks: Vec::with_capacity(count), pages: Vec::new() };
        for _ in 0..count {
            let (entry, behind) = rest.split_first_chunk::<TABLE_ENTRY>()?;
            rest = behind;
            let number = |at: usize| u32::from_le_bytes(array(&entry[at..at + 4]));
            let (stored_len, plain_len) = (number(0) as usize, number(4) as usize);
            let kind = match entry[9] {
                0 => ChunkKind::Data,
                1 => ChunkKind::Map,
                _ => return None,
            };
            if plain_len > MAX_CHUNK || !(TAG_LEN..=MAX_CHUNK + TAG_LEN).contains(&stored_len) {
                return None;
            }
            table.push(
                stored_len,
                plain_len,
                Encoding::from_byte(entry[8])?,
                kind,
                ChunkDigest(array(&entry[10..])),
            );
        }
        let pages: u32 = table.chunks.iter().map(page_count).sum();
        if rest.len() != pages as usize * 8 {
            return None;
        }
        table.pages = rest.chunks_exact(8).map(|page| PageDigest(u64::from_le_bytes(array(page)))).collect();
        Some(table)
    }
}

fn page_count(info: &ChunkInfo) -> u32 {
    if info.kind == ChunkKind::Data { info.plain_len.div_ceil(PAGE as u32) } else { 0 }
}
