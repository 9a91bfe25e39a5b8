//! One file: its rows cut into pieces, each of which is found again, found in parts or stored.

use std::collections::HashMap;

use repository::PackId;
use repository::chunk::{PAGE, short};
use repository::content::{Composed, Content, Entry, EntryKind, Extent, LEAF_SPAN, Leaf, PieceDigest};

use super::{Done, Sink};
use crate::backup::live::count;
use crate::logical::before::Part;
use crate::logical::error::LogicalError;
use crate::logical::known::Known;
use crate::logical::rows::{MAX_PIECE, RowSum, ends_piece};

/// A file with more extents than this has them in leaves, so that entries stay small.
const INLINE_EXTENTS: usize = 64;

/// A file being written, row by row.
pub(crate) struct FileWriter<'f, 's> {
    sink: &'f mut Sink<'s>,
    path: String,
    known: Known<'s>,
    /// Extents of the spans that are full, as they will be named.
    leaves: Vec<Extent>,
    /// Extents of the span at work.
    extents: Vec<Extent>,
    /// Which of them are a piece together.
    composed: Vec<Composed>,
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
    pub(super) fn new(sink: &'f mut Sink<'s>, path: String, known: Known<'s>) -> Self {
        Self {
            sink,
            path,
            known,
            leaves: Vec::new(),
            extents: Vec::new(),
            composed: Vec::new(),
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
        let mut piece = std::mem::take(&mut self.piece);
        let (length, pages) = (piece.len(), self.pages(&mut piece));
        let digester = self.sink.shared.repository.digester();
        let digest = PieceDigest::of(digester, &pages.iter().map(short).collect::<Vec<_>>());
        let first = self.extents.len();
        let is_composed = match self.known.find(digest, length) {
            Some((at, is_composed)) => {
                self.extents.extend(at);
                is_composed
            }
            None => {
                let is_composed = match self.known.compare(&mut self.sink.reader, &piece) {
                    Some(parts) => self.store_parts(&piece, parts)?,
                    None => self.store_whole(&piece, &pages)?,
                };
                self.known.add(digest, &self.extents[first..], is_composed);
                is_composed
            }
        };
        if is_composed {
            let extents = (self.extents.len() - first) as u32;
            self.composed.push(Composed { first: first as u32, extents, digest });
        }
        self.size += length as u64;
        piece.clear();
        self.piece = piece;
        if self.size.is_multiple_of(LEAF_SPAN) { self.end_span() } else { Ok(()) }
    }

    /// Digests of the pages of a piece, the last filled up with zeros.
    fn pages(&self, piece: &mut Vec<u8>) -> Vec<[u8; 32]> {
        let (length, digester) = (piece.len(), self.sink.shared.repository.digester());
        piece.resize(length.next_multiple_of(PAGE), 0);
        let mut pages = Vec::with_capacity(piece.len() / PAGE);
        digester.pages(piece, &mut pages);
        piece.truncate(length);
        pages
    }

    /// Stores a piece on pages of its own.
    fn store_whole(&mut self, piece: &[u8], pages: &[[u8; 32]]) -> Result<bool, LogicalError> {
        self.make_room(piece.len().next_multiple_of(PAGE))?;
        self.extents.push(self.sink.gatherer.add_piece(piece, pages));
        self.new_bytes += piece.len() as u64;
        Ok(false)
    }

    /// Stores what of a piece is nowhere, behind each other, and names the rest where it is.
    fn store_parts(&mut self, piece: &[u8], parts: Vec<Part>) -> Result<bool, LogicalError> {
        for part in parts {
            if part.at.is_empty() {
                self.make_room(part.bytes.len())?;
                self.new_bytes += part.bytes.len() as u64;
                self.extents.push(self.sink.gatherer.add_run(&piece[part.bytes]));
            } else {
                self.extents.extend(part.at);
            }
        }
        Ok(true)
    }

    fn make_room(&mut self, length: usize) -> Result<(), LogicalError> {
        if let Some(pack) = self.sink.gatherer.make_room(length)? {
            self.sink.shared.uploader.submit(pack);
        }
        Ok(())
    }

    /// Stores the leaf of the span at work.
    fn end_span(&mut self) -> Result<(), LogicalError> {
        let (extents, composed) = (std::mem::take(&mut self.extents), std::mem::take(&mut self.composed));
        count(&mut self.live, &extents);
        let leaf = Leaf { extents, composed };
        let at = match self.known.find_leaf(&leaf.encode()) {
            Some(at) => at,
            None => {
                let mut collected = self.sink.shared.collected.lock().expect("no holder panics");
                let at = collected.list.add_leaf(&leaf)?;
                let packs = collected.list.take_finished();
                drop(collected);
                packs.into_iter().for_each(|pack| self.sink.shared.uploader.submit(pack));
                at
            }
        };
        self.leaves.push(at);
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
        let content =
            if self.leaves.is_empty() && self.composed.is_empty() && self.extents.len() <= INLINE_EXTENTS {
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
