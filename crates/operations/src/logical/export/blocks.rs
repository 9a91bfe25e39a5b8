//! The data behind the table of contents: a block for each entry that has data.
//!
//! A block is its kind, the entry's number, and pieces of data, each behind its length; a length of zero ends it. A block of large
//! objects has that for each object, behind its number, and ends with the number zero. `_StartData`, `_StartLOs`,
//! `pg_backup_custom.c`.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};

use super::archive::{Archive, Numbers, number_bytes, write_number};
use super::definitions_error;
use crate::logical::LogicalError;

const DATA: u8 = 1;
const LARGE_OBJECTS: u8 = 3;
/// Bytes of a piece, but for the last: always the same, so that it is known before where each block will stand.
pub(super) const PIECE: u64 = 64 << 10;
/// A number's bytes.
const NUMBER: u64 = 5;
/// What ends the rows of a table, for the server and for psql; as pg_dump writes it.
const END_OF_ROWS: &[u8] = b"\\.\n\n\n";

/// Where a block of the archive stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) start: u64,
    pub(super) length: u64,
}

/// Finds the block of each entry that has data.
pub(super) fn find<R: Read + Seek>(
    archive: &Archive,
    from: Numbers<BufReader<R>>,
) -> Result<HashMap<i64, Block>, LogicalError> {
    let wanted = archive.entries.iter().filter(|entry| entry.has_data).count();
    let (mut from, mut blocks) = (from, HashMap::new());
    while blocks.len() < wanted {
        let start = from.position;
        let (kind, id) = (from.byte()?, from.number()?);
        match kind {
            DATA => skip_pieces(&mut from)?,
            LARGE_OBJECTS => {
                while from.number()? != 0 {
                    skip_pieces(&mut from)?;
                }
            }
            _ => return Err(definitions_error(format!("at byte {start} is data of an unknown kind {kind}"))),
        }
        let is_known = archive.entries.iter().any(|entry| entry.has_data && entry.id == id);
        if !is_known || blocks.insert(id, Block { start, length: from.position - start }).is_some() {
            return Err(definitions_error(format!("at byte {start} is data of no entry")));
        }
    }
    Ok(blocks)
}

fn skip_pieces<R: Read + Seek>(from: &mut Numbers<BufReader<R>>) -> Result<(), LogicalError> {
    loop {
        match from.number()? {
            0 => return Ok(()),
            length @ 1.. => {
                let failed = |error| definitions_error(format!("they cannot be read: {error}"));
                from.source().seek_relative(length).map_err(failed)?;
                from.position += length as u64;
            }
            _ => return Err(definitions_error(format!("at byte {} is a length below zero", from.position))),
        }
    }
}

/// Copies a block.
pub(super) fn copy<R: Read + Seek>(from: &mut R, block: Block, out: &mut dyn Write) -> std::io::Result<()> {
    from.seek(SeekFrom::Start(block.start))?;
    let copied = std::io::copy(&mut from.take(block.length), out)?;
    if copied == block.length { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// The length of the block that rows of so many bytes make.
pub(super) fn length_of(bytes: u64) -> u64 {
    let bytes = bytes + END_OF_ROWS.len() as u64;
    1 + NUMBER + bytes + bytes.div_ceil(PIECE) * NUMBER + NUMBER
}

/// Writes the block of a table's rows.
pub(super) struct RowsBlock<'o> {
    out: &'o mut dyn Write,
    piece: Vec<u8>,
}

impl<'o> RowsBlock<'o> {
    /// Begins the block of this entry.
    pub(super) fn begin(out: &'o mut dyn Write, id: i64) -> std::io::Result<Self> {
        out.write_all(&[DATA])?;
        write_number(out, id)?;
        Ok(Self { out, piece: Vec::with_capacity(PIECE as usize) })
    }

    /// Adds rows.
    pub(super) fn add(&mut self, mut rows: &[u8]) -> std::io::Result<()> {
        while !rows.is_empty() {
            let (now, later) = rows.split_at(rows.len().min(PIECE as usize - self.piece.len()));
            self.piece.extend_from_slice(now);
            rows = later;
            if self.piece.len() as u64 == PIECE {
                self.end_piece()?;
            }
        }
        Ok(())
    }

    /// Ends the rows and the block.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        self.add(END_OF_ROWS)?;
        if !self.piece.is_empty() {
            self.end_piece()?;
        }
        self.out.write_all(&number_bytes(0))
    }

    fn end_piece(&mut self) -> std::io::Result<()> {
        write_number(self.out, self.piece.len() as i64)?;
        self.out.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_as_long_as_it_was_said_to_be() {
        for length in [0, 1, 4095, PIECE - 5, PIECE - 4, PIECE, 3 * PIECE - 5, 3 * PIECE + 7] {
            let rows = vec![b'x'; length as usize];
            let mut out = Vec::new();
            let mut block = RowsBlock::begin(&mut out, 9).unwrap();
            rows.chunks(1000).for_each(|rows| block.add(rows).unwrap());
            block.finish().unwrap();
            assert_eq!(out.len() as u64, length_of(length), "{length}");
        }
    }
}
