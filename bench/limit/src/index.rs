//! The index of the one file: which entries there are, and where each chunk is. Little-endian, written at the end.

use std::os::unix::ffi::OsStrExt as _;

use crate::Outcome;
use crate::plan::{self, Entry, Piece};

/// One chunk as it is stored.
pub struct Stored {
    /// Where it begins in the one file.
    pub position: u64,
    /// Its sealed length.
    pub length: u32,
    /// The digest of its pages' digests.
    pub digest: [u8; 32],
    /// Its number, which is its nonce.
    pub number: u32,
    /// The files that it holds pieces of.
    pub pieces: Vec<Piece>,
}

/// Entries and chunks as bytes.
pub fn encode(entries: &[Entry], chunks: &[Stored]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((entries.len() as u32).to_le_bytes());
    for entry in entries {
        let path = entry.path.as_os_str().as_bytes();
        bytes.extend((path.len() as u32).to_le_bytes());
        bytes.extend(path);
        bytes.extend(entry.size.map_or(u64::MAX, |size| size).to_le_bytes());
    }
    bytes.extend((chunks.len() as u32).to_le_bytes());
    for chunk in chunks {
        bytes.extend(chunk.position.to_le_bytes());
        bytes.extend(chunk.length.to_le_bytes());
        bytes.extend(chunk.digest);
        bytes.extend(chunk.number.to_le_bytes());
        bytes.extend((chunk.pieces.len() as u32).to_le_bytes());
        for piece in &chunk.pieces {
            bytes.extend(piece.file.to_le_bytes());
            bytes.extend(piece.offset.to_le_bytes());
            bytes.extend(piece.length.to_le_bytes());
        }
    }
    bytes
}

/// The reverse of [`encode`].
pub fn decode(bytes: &[u8]) -> Outcome<(Vec<Entry>, Vec<Stored>)> {
    let mut reader = Reader { rest: bytes };
    let mut entries = Vec::new();
    for _ in 0..reader.u32()? {
        let length = reader.u32()? as usize;
        let path = plan::path(reader.take(length)?);
        let size = Some(reader.u64()?).filter(|size| *size != u64::MAX);
        entries.push(Entry { path, size });
    }
    let mut chunks = Vec::new();
    for _ in 0..reader.u32()? {
        let (position, length) = (reader.u64()?, reader.u32()?);
        let digest = reader.take(32)?.try_into().expect("32 bytes were taken");
        let (number, count) = (reader.u32()?, reader.u32()?);
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push(Piece { file: reader.u32()?, offset: reader.u64()?, length: reader.u32()? });
        }
        chunks.push(Stored { position, length, digest, number, pieces });
    }
    Ok((entries, chunks))
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Outcome<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or("the index is cut short")?;
        self.rest = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Outcome<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes were taken")))
    }

    fn u64(&mut self) -> Outcome<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("8 bytes were taken")))
    }
}
