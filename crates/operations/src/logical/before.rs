//! What the backup before has of a file, read back around the place that the new file has reached, so that of a piece in which
//! something changed only that is stored.
//!
//! Nothing here must work: whatever cannot be read or does not pay is stored whole.

use std::collections::VecDeque;
use std::ops::Range;

use repository::content::Extent;
use repository::pages::pieces;
use repository::{Repository, RepositoryError};
use tokio::runtime::Handle;

use super::runs::{Run, runs};
use crate::copy::reader::Reader;

/// Bytes that are looked at beyond a piece's length: rows may have gone that stood between those of the piece.
const SLACK: u64 = 32 << 10;
/// After so many bytes that were looked for in vain nothing is read until a whole piece is found again: what was rewritten is
/// not read back.
const DEBT: u64 = 256 << 10;
/// A piece that is found whole further away says nothing about where the next one was.
const FAR: u64 = 32 << 20;
/// Shorter pieces are stored whole.
const MIN_LENGTH: usize = 2 << 10;
/// A piece has at most one extent for each so many bytes: each takes a place in the map, and a leaf is no longer than a chunk.
const EXTENT_BYTES: usize = 256;
/// Extents that the reader is told of ahead.
const AHEAD: usize = 512;

/// A part of a piece.
pub(crate) struct Part {
    pub(crate) bytes: Range<usize>,
    /// Where it stands; nothing if it is to be stored.
    pub(crate) at: Vec<Extent>,
}

/// The earlier file, where the new one is.
#[derive(Default)]
pub(crate) struct Before {
    /// What is known of it and may be named, by its place in it.
    extents: VecDeque<(u64, Extent)>,
    /// Where in it the next piece of the new file is likely.
    place: u64,
    /// Bytes that were looked for in vain.
    debt: u64,
}

/// Bytes of the earlier file.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    /// Where they begin in `bytes` and in the earlier file, and stand in packs.
    parts: Vec<(usize, u64, Extent)>,
}

impl Before {
    /// Learns of the next extent.
    pub(crate) fn add(&mut self, place: u64, extent: Extent) {
        self.extents.push_back((place, extent));
    }

    /// Where in the earlier file the next piece is likely.
    pub(crate) fn place(&self) -> u64 {
        self.place
    }

    /// Goes on behind a piece that was found whole, in the earlier file or elsewhere.
    pub(crate) fn pass(&mut self, from: Option<u64>, length: u64) {
        let from = from.filter(|from| from.abs_diff(self.place) <= FAR);
        self.place = from.unwrap_or(self.place) + length;
        self.debt = 0;
        while self.extents.front().is_some_and(|(at, one)| at + one.length + FAR <= self.place) {
            self.extents.pop_front();
        }
    }

    /// What of a piece is in the earlier file and what is not; `None` if it is to be stored whole.
    pub(crate) fn compare(
        &mut self,
        repository: &Repository,
        reader: &mut Reader,
        handle: &Handle,
        piece: &[u8],
    ) -> Result<Option<Vec<Part>>, RepositoryError> {
        if piece.len() < MIN_LENGTH || self.debt > DEBT {
            return Ok(None);
        }
        let to = self.place + piece.len() as u64 + SLACK + self.debt;
        let window = handle.block_on(self.read(repository, reader, to))?;
        if window.bytes.is_empty() {
            return Ok(None);
        }
        let runs = runs(piece, &window.bytes);
        let found: usize = runs.iter().filter(|run| run.before.is_some()).map(|run| run.bytes.len()).sum();
        self.debt = (self.debt + piece.len() as u64).saturating_sub(2 * found as u64);
        if let Some(last) = runs.iter().rev().find_map(Run::before_end) {
            self.place = window.place_of(last);
        }
        let parts: Vec<Part> = runs.into_iter().map(|run| window.part(run)).collect();
        let extents: usize = parts.iter().map(|part| part.at.len().max(1)).sum();
        let pays = found >= piece.len() / 4 && extents * EXTENT_BYTES <= piece.len();
        Ok(pays.then_some(parts))
    }

    /// Reads from the likely place on, as far as is known.
    async fn read(
        &mut self,
        repository: &Repository,
        reader: &mut Reader,
        to: u64,
    ) -> Result<Window, RepositoryError> {
        let from = self.place;
        let first = self.extents.partition_point(|(at, one)| at + one.length <= from);
        let behind: Vec<(u64, Extent)> = self.extents.range(first..).take(AHEAD).copied().collect();
        let ahead: Vec<Extent> = behind.iter().map(|(_, extent)| *extent).collect();
        let mut window = Window::default();
        for (number, (mut at, extent)) in behind.into_iter().enumerate().take_while(|(_, (at, _))| *at < to) {
            let table = repository.table(extent.pack, None).await?;
            for part in pieces(&table, extent)? {
                let (begin, end) = (at.max(from), to.min(at + part.length));
                if begin < end {
                    let offset = part.offset + (begin - at) as u32;
                    let wanted = Extent { offset, length: end - begin, ..part };
                    window.parts.push((window.bytes.len(), begin, wanted));
                    window.bytes.extend(reader.read(wanted, &ahead[number..]).await?);
                }
                at += part.length;
            }
        }
        Ok(window)
    }
}

impl Window {
    fn part(&self, run: Run) -> Part {
        let at = run.before.map(|from| self.extents(from..from + run.bytes.len())).unwrap_or_default();
        Part { bytes: run.bytes, at }
    }

    fn extents(&self, range: Range<usize>) -> Vec<Extent> {
        let first = self.parts.partition_point(|(at, _, extent)| at + extent.length as usize <= range.start);
        let parts = self.parts[first..].iter().take_while(|(at, ..)| *at < range.end);
        let cut = |(at, _, extent): &(usize, u64, Extent)| {
            let (from, to) = (range.start.max(*at), range.end.min(at + extent.length as usize));
            Extent { offset: extent.offset + (from - at) as u32, length: (to - from) as u64, ..*extent }
        };
        let mut extents: Vec<Extent> = Vec::new();
        for next in parts.map(cut) {
            match extents.last_mut() {
                Some(last) if goes_on(last, &next) => last.length += next.length,
                _ => extents.push(next),
            }
        }
        extents
    }

    /// Where the earlier file has what follows so many bytes.
    fn place_of(&self, end: usize) -> u64 {
        let after = self.parts.partition_point(|(at, ..)| *at < end);
        let (at, place, _) = self.parts[after - 1];
        place + (end - at) as u64
    }
}

/// Whether the second follows the first in the same chunk.
fn goes_on(last: &Extent, next: &Extent) -> bool {
    (last.pack, last.chunk, u64::from(last.offset) + last.length)
        == (next.pack, next.chunk, u64::from(next.offset))
}
