//! Packs: chunks, then their table, then a footer that opens both.
//!
//! A [`PackWriter`] belongs to one worker and grows one buffer that is uploaded as it is. [`PackTable`] tells where each
//! chunk stands and what every page of it digests to; tables never change, so they are cached for ever.
//! `docs/format.md` §4.

mod gather;
mod memory;
mod table;

use bytes::Bytes;
use storage::ObjectName;

pub use gather::{Gathered, Gatherer};
pub use memory::PackMemory;
use memory::PartWriter;
use table::MAX_TABLE;
pub use table::{ChunkInfo, ChunkKind, PackTable};

use crate::chunk::{ChunkDigest, Codec, CodecError, Digester, PAGE, short};
use crate::layout::{self, PackId};
use crate::seal::{Header, Kind, Opener, SealError, Sealer, header_len};
use crate::secrets::{Access, WriterCredential, array};

/// A pack is finished when it holds this many stored bytes: large enough for some 50,000 requests for each TiB and near the
/// best throughput of object storage, small enough for the memory of small machines.
pub const PACK_TARGET: usize = 20 << 20;
/// A pack holds at most this many chunks, which bounds its table (1024 chunks have at most 1 MiB of page digests).
pub const MAX_CHUNKS: usize = 1024;
/// Length of the footer: header, table length, chunk count, magic.
pub const FOOTER_LEN: usize = header_len(0) + 16;
const FOOTER_MAGIC: [u8; 8] = *b"PGKPACK\x01";

/// A finished pack, ready to be stored.
#[derive(Debug)]
pub struct SealedPack {
    /// Its id.
    pub id: PackId,
    /// Its object name.
    pub name: ObjectName,
    /// Its bytes, part by part.
    pub parts: Vec<Bytes>,
    /// How many bytes.
    pub len: u64,
    /// Bytes of table and footer at the end.
    pub tail_len: u32,
    /// Its table.
    pub table: PackTable,
}

/// A pack being filled.
pub struct PackWriter {
    id: PackId,
    name: ObjectName,
    sealer: Sealer,
    bytes: PartWriter,
    /// The frame being made.
    frame: Vec<u8>,
    table: PackTable,
}

impl PackWriter {
    /// Begins a pack with a new id and key.
    pub fn new(writer: &WriterCredential, memory: &PackMemory) -> Self {
        let id = PackId::random();
        let name = layout::pack(id);
        let sealer = Sealer::new(writer, Kind::Pack, &name, &[]);
        let bytes = PartWriter::new(memory);
        Self { id, name, sealer, bytes, frame: Vec::new(), table: PackTable::default() }
    }

    /// The pack's id, for extents that name its chunks.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// How many chunks it has; the number of the next one.
    pub fn len(&self) -> u32 {
        self.table.chunks.len() as u32
    }

    /// True before the first chunk.
    pub fn is_empty(&self) -> bool {
        self.table.chunks.is_empty()
    }

    /// True when the pack should be finished before another chunk is added.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= PACK_TARGET || self.table.chunks.len() >= MAX_CHUNKS
    }

    /// Adds a chunk of file pages whose full page digests are known; returns its number.
    pub fn add_pages(
        &mut self,
        codec: &mut Codec,
        digester: &Digester,
        plain: &[u8],
        digests: &[[u8; 32]],
    ) -> Result<u32, CodecError> {
        debug_assert_eq!(plain.len().div_ceil(PAGE), digests.len());
        self.table.pages.extend(digests.iter().map(short));
        self.add(codec, plain, ChunkKind::Data, digester.chunk_of_pages(digests.iter()))
    }

    /// Adds a chunk of map leaves and list pages; returns its number.
    pub fn add_map(
        &mut self,
        codec: &mut Codec,
        digester: &Digester,
        plain: &[u8],
    ) -> Result<u32, CodecError> {
        let digest = digester.chunk(plain, |_| ());
        self.add(codec, plain, ChunkKind::Map, digest)
    }

    fn add(
        &mut self,
        codec: &mut Codec,
        plain: &[u8],
        kind: ChunkKind,
        digest: ChunkDigest,
    ) -> Result<u32, CodecError> {
        self.frame.clear();
        let encoding = codec.encode(plain, &mut self.frame)?;
        self.sealer.seal_tail(&mut self.frame, 0, false);
        self.bytes.append(&self.frame);
        self.table.push(self.frame.len(), plain.len(), encoding, kind, digest);
        Ok(self.len() - 1)
    }

    /// Appends table and footer.
    pub fn finish(mut self) -> SealedPack {
        let mut tail = self.table.encode();
        self.sealer.seal_tail(&mut tail, 0, true);
        let table_len = tail.len() as u32;
        tail.extend_from_slice(self.sealer.header());
        tail.extend_from_slice(&table_len.to_le_bytes());
        tail.extend_from_slice(&self.len().to_le_bytes());
        tail.extend_from_slice(&FOOTER_MAGIC);
        self.bytes.append(&tail);
        SealedPack {
            id: self.id,
            name: self.name,
            len: self.bytes.len() as u64,
            parts: self.bytes.finish(),
            tail_len: tail.len() as u32,
            table: self.table,
        }
    }
}

/// A stored pack that can be read.
pub struct OpenPack {
    /// Its table.
    pub table: PackTable,
    opener: Opener,
}

/// What the end of a pack gave.
pub enum Tail {
    /// Table and key.
    Open(OpenPack),
    /// The table is longer than what was read; this many bytes from the end are needed.
    Need(u64),
}

impl OpenPack {
    /// Opens a pack from its last bytes; `size` is the object's size.
    pub fn from_tail(access: &Access, id: PackId, size: u64, tail: &[u8]) -> Result<Tail, SealError> {
        let name = layout::pack(id);
        let damaged = || SealError::Form { name: name.clone() };
        let footer_at = tail.len().checked_sub(FOOTER_LEN).ok_or_else(damaged)?;
        let (body, footer) = tail.split_at(footer_at);
        if footer[FOOTER_LEN - 8..] != FOOTER_MAGIC {
            return Err(damaged());
        }
        let number = |at: usize| u32::from_le_bytes(array(&footer[at..at + 4]));
        let (table_len, count) = (number(header_len(0)) as usize, number(header_len(0) + 4));
        let all = (table_len + FOOTER_LEN) as u64;
        if table_len > MAX_TABLE || all > size {
            return Err(damaged());
        }
        if body.len() < table_len {
            return Ok(Tail::Need(all));
        }
        let header = Header::parse(access.writer(), Kind::Pack, &name, footer)?;
        if header.len != header_len(0) {
            return Err(damaged());
        }
        let opener = Opener::new(access, Kind::Pack, &name, &header)?;
        let mut table = body[body.len() - table_len..].to_vec();
        let plain = opener.open_in_place(u64::from(count), &mut table, true)?;
        let table =
            PackTable::decode(plain).ok_or(SealError::Content { name: name.clone(), what: "pack table" })?;
        let end = table.chunks.last().map_or(0, |last| last.offset + u64::from(last.stored_len));
        if table.chunks.len() != count as usize || end + all != size {
            return Err(SealError::Length { name });
        }
        Ok(Tail::Open(Self { table, opener }))
    }

    /// Opens chunk `number`, whose sealed bytes are `sealed` (changed on the way), into `plain`, which has the chunk's
    /// length, and checks its digest when a digester is given.
    pub fn chunk(
        &self,
        number: u32,
        sealed: &mut [u8],
        codec: &mut Codec,
        check: Option<&Digester>,
        plain: &mut [u8],
    ) -> Result<(), SealError> {
        let info = &self.table.chunks[number as usize];
        let stored = self.opener.open_in_place(u64::from(number), sealed, false)?;
        let damaged = |what| SealError::Content { name: self.opener.name().clone(), what };
        codec.decode_into(info.encoding, stored, plain).map_err(|_| damaged("chunk length"))?;
        match check {
            Some(digester) if digester.chunk(plain, |_| ()) != info.digest => Err(damaged("chunk digest")),
            _ => Ok(()),
        }
    }

    /// Opens chunk `number` out of `sealed`, a range of the pack that begins at `from` and holds it whole, and checks its
    /// digest.
    pub fn chunk_within(
        &self,
        number: u32,
        from: u64,
        sealed: &mut [u8],
        codec: &mut Codec,
        digester: &Digester,
    ) -> Result<Vec<u8>, SealError> {
        let info = &self.table.chunks[number as usize];
        let mut plain = vec![0; info.plain_len as usize];
        // A storage that answered with less than it was asked for breaks its contract: what is cut does not open.
        let start = sealed.len().min((info.offset - from) as usize);
        let end = sealed.len().min(start + info.stored_len as usize);
        self.chunk(number, &mut sealed[start..end], codec, Some(digester), &mut plain)?;
        Ok(plain)
    }
}

#[cfg(test)]
mod tests;
