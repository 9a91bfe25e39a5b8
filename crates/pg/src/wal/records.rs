//! The records in one segment, as far as an archive needs them: when transactions ended.
//!
//! The walk trusts nothing. It ends quietly at the first thing that is not as the server writes it, because
//! after the end of WAL a segment may hold anything: zeroes, or what was there before the file was recycled.

use super::header::{CONTINUES, GIVEN_UP, LONG, LONG_HEADER_SIZE, PageHeader, SHORT_HEADER_SIZE};
use super::{LongHeader, SegmentName, SegmentSize};
use crate::{Lsn, PgTimestamp};

/// Bytes of `XLogRecord`, `access/xlogrecord.h`.
const RECORD_HEADER_SIZE: usize = 24;
/// Records start at multiples of this: `MAXALIGN`.
const ALIGNMENT: usize = 8;

/// `RM_XLOG_ID` and `RM_XACT_ID`, `access/rmgrlist.h`.
const XLOG: u8 = 0;
const TRANSACTION: u8 = 1;
/// `XLOG_SWITCH`: nothing follows in its segment.
const SWITCH: u8 = 0x40;
/// `XLOG_XACT_OPMASK` and, under it, the kinds that carry the time of their end first: commit, abort, commit
/// prepared, abort prepared. Source: `access/xact.h`.
const KIND_MASK: u8 = 0x70;
const ENDINGS: [u8; 4] = [0x00, 0x20, 0x30, 0x40];

/// When the transactions ended whose last records lie in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitSpan {
    /// The earliest time in any commit or abort of the segment.
    pub first: PgTimestamp,
    /// The latest. Backends take the time before they take their place in the log, so it need not be the last
    /// one's.
    pub last: PgTimestamp,
    /// Where the last such record of the segment starts.
    pub last_lsn: Lsn,
}

/// The span of the commits and aborts that lie whole in `segment`; `None` if there are none, or it is no
/// segment. `segment` begins at its first byte and may be cut off anywhere. A record that runs on into the
/// next segment is not counted.
pub fn commit_span(segment: &[u8], name: &SegmentName, size: SegmentSize) -> Option<CommitSpan> {
    let mut walk = Walk::start(segment, name, size)?;
    let mut span: Option<CommitSpan> = None;
    let mut record = Vec::new();
    while let Some(found) = walk.next_record(&mut record) {
        let Some(moment) = ending(&found, &record) else { continue };
        span = Some(match span {
            None => CommitSpan { first: moment, last: moment, last_lsn: found.lsn },
            Some(span) => {
                CommitSpan { first: span.first.min(moment), last: span.last.max(moment), last_lsn: found.lsn }
            }
        });
    }
    span
}

/// What stands in a record's header.
#[derive(Debug, Clone, Copy)]
struct Found {
    lsn: Lsn,
    previous: u64,
    info: u8,
    resource_manager: u8,
    crc: u32,
}

impl Found {
    fn is_ending(&self) -> bool {
        self.resource_manager == TRANSACTION && ENDINGS.contains(&(self.info & KIND_MASK))
    }
}

/// Whether a record's CRC-32C is right: over what follows the header, then the header up to the CRC itself.
fn crc_matches(found: &Found, record: &[u8]) -> bool {
    let crc = crc32c::crc32c(&record[RECORD_HEADER_SIZE..]);
    crc32c::crc32c_append(crc, &record[..RECORD_HEADER_SIZE - 4]) == found.crc
}

/// The time in a commit or abort whose bytes are `record`; `None` for other records and damaged ones.
fn ending(found: &Found, record: &[u8]) -> Option<PgTimestamp> {
    if !found.is_ending() || !crc_matches(found, record) {
        return None;
    }
    let time = main_data(&record[RECORD_HEADER_SIZE..])?.first_chunk()?;
    Some(PgTimestamp(i64::from_le_bytes(*time)))
}

/// The main data of a record that refers to no blocks. Source: `DecodeXLogRecord`,
/// `access/transam/xlogreader.c`.
fn main_data(mut body: &[u8]) -> Option<&[u8]> {
    loop {
        let (&kind, rest) = body.split_first()?;
        match kind {
            // XLR_BLOCK_ID_DATA_SHORT and _LONG: the length, and after the last header the data.
            255 => return rest.split_first().and_then(|(&length, data)| data.get(..usize::from(length))),
            254 => {
                let (length, data) = rest.split_first_chunk::<4>()?;
                return data.get(..u32::from_le_bytes(*length) as usize);
            }
            // XLR_BLOCK_ID_ORIGIN, XLR_BLOCK_ID_TOPLEVEL_XID.
            253 => body = rest.get(2..)?,
            252 => body = rest.get(4..)?,
            _ => return None,
        }
    }
}

/// A place in a segment that moves from record to record.
struct Walk<'a> {
    segment: &'a [u8],
    /// The position of the segment's first byte in the log.
    start: u64,
    page_size: usize,
    magic: u16,
    /// Timelines of pages never go back, and never past the name's.
    timeline: u32,
    last_timeline: u32,
    /// Where the next record starts, or a page whose header comes first.
    at: usize,
    /// The last record read; the next one must point back to it.
    previous: Option<Lsn>,
}

/// Why a record's bytes do not go on.
enum Stop {
    /// The end of what can be read.
    End,
    /// The server gave the record up after a crash; a fresh one starts here.
    Restart(usize),
}

impl<'a> Walk<'a> {
    /// At the first record that starts in the segment, past the rest of one from the segment before.
    fn start(segment: &'a [u8], name: &SegmentName, size: SegmentSize) -> Option<Walk<'a>> {
        let header = LongHeader::parse(segment).ok()?;
        let start = name.start(size);
        let is_ours = name.fits(size) && header.segment_size == size && header.page_address == start;
        if !is_ours || header.timeline > name.timeline {
            return None;
        }
        let mut walk = Walk {
            segment: &segment[..segment.len().min(size.bytes() as usize)],
            start,
            page_size: header.block_size as usize,
            magic: header.magic,
            timeline: header.timeline.get(),
            last_timeline: name.timeline.get(),
            at: LONG_HEADER_SIZE,
            previous: None,
        };
        if header.info & CONTINUES != 0 {
            let mut remaining = header.remaining_len as usize;
            let rest = remaining;
            match walk.take(rest, &mut remaining, |_| ()) {
                Ok(()) => walk.align(),
                Err(Stop::Restart(at)) => walk.at = at,
                Err(Stop::End) => return None,
            }
        }
        Some(walk)
    }

    /// The next whole record. `bytes` gets all of one that ends a transaction, and the header of any other.
    fn next_record(&mut self, bytes: &mut Vec<u8>) -> Option<Found> {
        loop {
            if self.at.is_multiple_of(self.page_size) {
                self.enter_page(|header| !header.has(CONTINUES)).ok()?;
            }
            match self.read_record(bytes) {
                Ok(found) => {
                    self.previous = Some(found.lsn);
                    // After a switch the rest of the segment is filling.
                    let is_switch = found.resource_manager == XLOG && found.info & 0xF0 == SWITCH;
                    self.at = if is_switch { self.segment.len() } else { self.at };
                    self.align();
                    return Some(found);
                }
                // The walk only ever moves forward, so this ends.
                Err(Stop::Restart(at)) if at > self.at => self.at = at,
                Err(_) => return None,
            }
        }
    }

    /// The record at the current place; the place is then its end, or unchanged on failure.
    fn read_record(&mut self, bytes: &mut Vec<u8>) -> Result<Found, Stop> {
        let begin = self.at;
        let result = self.read_record_from(begin, bytes);
        if result.is_err() {
            self.at = begin;
        }
        result
    }

    fn read_record_from(&mut self, begin: usize, bytes: &mut Vec<u8>) -> Result<Found, Stop> {
        let lsn = Lsn::new(self.start + begin as u64).ok_or(Stop::End)?;
        // A record starts on a multiple of eight, so its length never runs over the end of a page.
        let length = self.segment.get(begin..begin + 4).ok_or(Stop::End)?;
        let total_length = u32::from_le_bytes(length.try_into().expect("the slice has 4 bytes")) as usize;
        if total_length < RECORD_HEADER_SIZE {
            return Err(Stop::End);
        }
        bytes.clear();
        let mut remaining = total_length;
        self.take(RECORD_HEADER_SIZE, &mut remaining, |piece| bytes.extend_from_slice(piece))?;
        let found = parse_header(lsn, bytes);
        if !self.follows(&found) {
            return Err(Stop::End);
        }
        let keep = found.is_ending();
        let rest = remaining;
        self.take(rest, &mut remaining, |piece| {
            if keep {
                bytes.extend_from_slice(piece);
            }
        })?;
        Ok(found)
    }

    /// Whether a record points back to the one before it, as far as that is known. Source:
    /// `ValidXLogRecordHeader`.
    fn follows(&self, found: &Found) -> bool {
        match self.previous {
            Some(previous) => found.previous == previous.get(),
            None => found.previous < found.lsn.get(),
        }
    }

    /// Gives the next `length` bytes of a record to `sink`, of which `remaining` are left, past the headers
    /// of the pages it runs over: each says again how much is left.
    fn take(
        &mut self,
        mut length: usize,
        remaining: &mut usize,
        mut sink: impl FnMut(&'a [u8]),
    ) -> Result<(), Stop> {
        while length > 0 {
            if self.at.is_multiple_of(self.page_size) {
                self.enter_page(|header| {
                    header.has(CONTINUES) && header.remaining_len as usize == *remaining
                })?;
            }
            let in_page = (self.page_size - self.at % self.page_size).min(length);
            let piece = self.segment.get(self.at..self.at + in_page).ok_or(Stop::End)?;
            sink(piece);
            self.at += in_page;
            length -= in_page;
            *remaining -= in_page;
        }
        Ok(())
    }

    /// Passes the header of the page at the current place, if it is the server's and `fits` what is expected
    /// here.
    fn enter_page(&mut self, fits: impl Fn(&PageHeader) -> bool) -> Result<(), Stop> {
        let page = self.segment.get(self.at..).ok_or(Stop::End)?;
        let header = PageHeader::read(page).ok_or(Stop::End)?;
        let is_ours = header.magic == self.magic
            && header.flags_are_known()
            && !header.has(LONG)
            && header.page_address == self.start + self.at as u64
            && (self.timeline..=self.last_timeline).contains(&header.timeline);
        if !is_ours {
            return Err(Stop::End);
        }
        self.timeline = header.timeline;
        if fits(&header) {
            self.at += SHORT_HEADER_SIZE;
            Ok(())
        } else if header.has(GIVEN_UP) && !header.has(CONTINUES) {
            Err(Stop::Restart(self.at))
        } else {
            Err(Stop::End)
        }
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(ALIGNMENT);
    }
}

/// `bytes` holds a whole record header.
fn parse_header(lsn: Lsn, bytes: &[u8]) -> Found {
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has 8 bytes"));
    Found {
        lsn,
        previous: u64_at(8),
        info: bytes[16],
        resource_manager: bytes[17],
        crc: (u64_at(16) >> 32) as u32,
    }
}

#[cfg(test)]
mod tests;
