//! One summary as it is stored: a block reference table. Source: `common/blkreftable.c`.

use std::io::{self, Read};

use super::changed::{CHUNK_BLOCKS, CHUNK_WORDS, ChangedBlocks, RelationKey};

/// `BLOCKREFTABLE_MAGIC`, `common/blkreftable.h`.
const MAGIC: u32 = 0x652B_137B;
/// `BlockRefTableSerializedEntry`: tablespace, database, relation, fork, limit block, number of chunks.
const ENTRY_SIZE: usize = 24;
/// As many as the block numbers of 32 bits have.
const MAX_CHUNKS: u32 = u32::MAX / CHUNK_BLOCKS + 1;
/// `InvalidBlockNumber`: the relation was never shorter than it is.
const NO_LIMIT: u32 = u32::MAX;

/// Why a summary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// Its bytes could not be had, or end too early.
    #[error("read a WAL summary")]
    Read(#[from] io::Error),
    /// It is not what a server writes.
    #[error("read a WAL summary: {what}")]
    Invalid {
        /// What is wrong.
        what: &'static str,
    },
}

/// Adds what a summary says to `changed`. After an error `changed` is of no use.
pub fn read(input: impl Read, changed: &mut ChangedBlocks) -> Result<(), SummaryError> {
    let mut input = Checked { input, crc: 0 };
    if u32::from_le_bytes(input.array()?) != MAGIC {
        return Err(SummaryError::Invalid { what: "it begins with another number" });
    }
    loop {
        let entry: [u8; ENTRY_SIZE] = input.array()?;
        if entry == [0; ENTRY_SIZE] {
            break;
        }
        read_relation(&mut input, &entry, changed)?;
    }
    let crc = input.crc;
    if u32::from_le_bytes(input.array()?) != crc {
        return Err(SummaryError::Invalid { what: "its checksum is wrong" });
    }
    match input.input.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(SummaryError::Invalid { what: "more follows on its end" }),
    }
}

fn read_relation(
    input: &mut Checked<impl Read>,
    entry: &[u8; ENTRY_SIZE],
    changed: &mut ChangedBlocks,
) -> Result<(), SummaryError> {
    let [tablespace, database, relfilenode, fork, limit, chunks] =
        [0, 1, 2, 3, 4, 5].map(|at| u32::from_le_bytes(*entry[at * 4..].first_chunk().expect("six numbers")));
    if chunks > MAX_CHUNKS {
        return Err(SummaryError::Invalid { what: "a relation longer than one can be" });
    }
    let key = RelationKey { tablespace, database, relfilenode };
    let is_main = fork == 0;
    if is_main && limit != NO_LIMIT {
        changed.shrink(key, limit);
    }
    let mut lengths = vec![0; chunks as usize];
    input.words(&mut lengths)?;
    let mut words = vec![0; CHUNK_WORDS];
    for (chunk, length) in lengths.into_iter().enumerate() {
        let words = words.get_mut(..usize::from(length));
        let words = words.ok_or(SummaryError::Invalid { what: "a chunk longer than its bitmap" })?;
        input.words(words)?;
        if is_main && !words.is_empty() {
            changed.mark(key, chunk, words);
        }
    }
    Ok(())
}

/// Sums up what is read.
struct Checked<R> {
    input: R,
    crc: u32,
}

impl<R: Read> Checked<R> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        Ok(bytes)
    }

    fn words(&mut self, words: &mut [u16]) -> io::Result<()> {
        let mut bytes = [0; 512];
        for part in words.chunks_mut(bytes.len() / 2) {
            let bytes = &mut bytes[..part.len() * 2];
            self.input.read_exact(bytes)?;
            self.crc = crc32c::crc32c_append(self.crc, bytes);
            let read = bytes.as_chunks::<2>().0.iter().map(|word| u16::from_le_bytes(*word));
            part.iter_mut().zip(read).for_each(|(word, read)| *word = read);
        }
        Ok(())
    }
}
