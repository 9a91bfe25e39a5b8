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
    let mut walk = CommitWalk::new(name, size);
    walk.see(segment);
    walk.finish()
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

/// Finds the span of the commits of a segment that comes piece by piece, in order.
#[derive(Clone)]
pub struct CommitWalk {
    name: SegmentName,
    size: SegmentSize,
    /// Known from the first page's header.
    page_size: usize,
    magic: u16,
    /// Timelines of pages never go back, and never past the name's.
    timeline: u32,
    /// A page that has not come whole. Pieces of whole pages are not copied.
    page: Vec<u8>,
    /// Bytes of the segment before the next page.
    at: u64,
    place: Place,
    /// The record under way: its header, and all of it if it ends a transaction.
    record: Vec<u8>,
    found: Option<Found>,
    /// Where the last record read begins; the next one must point back to it.
    previous: Option<Lsn>,
    span: Option<CommitSpan>,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A record.
    Between,
    /// `remaining` bytes of the record that begins at the LSN.
    Within { lsn: Lsn, remaining: usize },
    /// `remaining` bytes of a record of the segment before.
    Foreign { remaining: usize },
    /// Nothing that can be read.
    End,
}

impl CommitWalk {
    /// At the first byte of the segment.
    pub fn new(name: &SegmentName, size: SegmentSize) -> Self {
        Self {
            name: *name,
            size,
            page_size: 0,
            magic: 0,
            timeline: 0,
            page: Vec::new(),
            at: 0,
            place: Place::Between,
            record: Vec::new(),
            found: None,
            previous: None,
            span: None,
        }
    }

    /// Takes the next bytes of the segment.
    pub fn see(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && self.place != Place::End {
            let wanted = if self.page_size == 0 { LONG_HEADER_SIZE } else { self.page_size };
            if self.page.is_empty() && piece.len() >= wanted {
                if self.page_size == 0 {
                    self.begin(piece);
                    continue;
                }
                let (page, rest) = piece.split_at(wanted);
                self.pass(page);
                piece = rest;
                continue;
            }
            let (taken, rest) = piece.split_at((wanted - self.page.len()).min(piece.len()));
            self.page.extend_from_slice(taken);
            piece = rest;
            if self.page.len() == wanted {
                self.pass_kept();
            }
        }
    }

    fn pass_kept(&mut self) {
        let mut page = std::mem::take(&mut self.page);
        if self.page_size == 0 {
            self.begin(&page);
            self.page = page;
            return;
        }
        self.pass(&page);
        page.clear();
        self.page = page;
    }

    /// The span of what came. The segment may be cut off anywhere.
    pub fn finish(mut self) -> Option<CommitSpan> {
        if self.page_size > 0 {
            self.pass_kept();
        }
        self.span
    }

    /// Reads the header of the segment, from its first bytes.
    fn begin(&mut self, page: &[u8]) {
        self.place = Place::End;
        let Ok(header) = LongHeader::parse(page) else { return };
        let is_ours = self.name.fits(self.size)
            && header.segment_size == self.size
            && header.page_address == self.name.start(self.size);
        if !is_ours || header.timeline > self.name.timeline {
            return;
        }
        self.page_size = header.block_size as usize;
        self.magic = header.magic;
        self.timeline = header.timeline.get();
        let remaining = if header.info & CONTINUES != 0 { header.remaining_len as usize } else { 0 };
        self.place = Place::Foreign { remaining };
    }

    /// Passes one page; only the last one may be shorter than a page.
    fn pass(&mut self, page: &[u8]) {
        if self.place == Place::End || self.at >= u64::from(self.size.bytes()) {
            return;
        }
        let mut here = if self.at == 0 { LONG_HEADER_SIZE } else { SHORT_HEADER_SIZE };
        if self.at > 0 && !self.enter(page) {
            self.place = Place::End;
        }
        while here < page.len() && self.place != Place::End {
            here = match self.place {
                Place::Between => self.begin_record(page, here),
                Place::Foreign { remaining } => self.skip(page, here, remaining),
                Place::Within { lsn, remaining } => self.go_on(page, here, lsn, remaining),
                Place::End => return,
            };
        }
        self.at += page.len() as u64;
    }

    /// Whether the page is the server's and goes on with what the one before it left off; each says again how much
    /// is left of a record. Where the server gave a record up after a crash, a fresh one begins.
    fn enter(&mut self, page: &[u8]) -> bool {
        let Some(header) = PageHeader::read(page) else { return false };
        let is_ours = header.magic == self.magic
            && header.flags_are_known()
            && !header.has(LONG)
            && header.page_address == self.name.start(self.size) + self.at
            && (self.timeline..=self.name.timeline.get()).contains(&header.timeline);
        if !is_ours {
            return false;
        }
        self.timeline = header.timeline;
        let left = match self.place {
            Place::Within { remaining, .. } | Place::Foreign { remaining } => remaining,
            Place::Between | Place::End => 0,
        };
        if left == 0 {
            return !header.has(CONTINUES);
        }
        if header.has(CONTINUES) {
            return header.remaining_len as usize == left;
        }
        self.place = Place::Between;
        header.has(GIVEN_UP)
    }

    fn skip(&mut self, page: &[u8], here: usize, remaining: usize) -> usize {
        let taken = remaining.min(page.len() - here);
        self.place = match remaining - taken {
            0 => Place::Between,
            remaining => Place::Foreign { remaining },
        };
        if self.place == Place::Between { (here + taken).next_multiple_of(ALIGNMENT) } else { page.len() }
    }

    /// A record starts on a multiple of eight, so its length never runs over the end of a page.
    fn begin_record(&mut self, page: &[u8], here: usize) -> usize {
        let lsn = Lsn::new(self.name.start(self.size) + self.at + here as u64);
        let length = page.get(here..here + 4).map(|bytes| bytes.try_into().expect("the slice has 4 bytes"));
        self.place = match (lsn, length.map(u32::from_le_bytes)) {
            (Some(lsn), Some(length)) if length as usize >= RECORD_HEADER_SIZE => {
                Place::Within { lsn, remaining: length as usize }
            }
            _ => Place::End,
        };
        self.record.clear();
        self.found = None;
        here
    }

    /// Takes what the page has of a record; returns the place behind it.
    fn go_on(&mut self, page: &[u8], mut here: usize, lsn: Lsn, mut remaining: usize) -> usize {
        if self.found.is_none() {
            let taken = (RECORD_HEADER_SIZE - self.record.len()).min(page.len() - here);
            self.record.extend_from_slice(&page[here..here + taken]);
            (here, remaining) = (here + taken, remaining - taken);
            if self.record.len() == RECORD_HEADER_SIZE {
                let found = parse_header(lsn, &self.record);
                if !self.follows(&found) {
                    self.place = Place::End;
                    return here;
                }
                self.found = Some(found);
            }
        }
        if let Some(found) = self.found {
            let taken = remaining.min(page.len() - here);
            if found.is_ending() {
                self.record.extend_from_slice(&page[here..here + taken]);
            }
            (here, remaining) = (here + taken, remaining - taken);
            if remaining == 0 {
                self.end_record(&found);
                return here.next_multiple_of(ALIGNMENT);
            }
        }
        self.place = Place::Within { lsn, remaining };
        here
    }

    fn end_record(&mut self, found: &Found) {
        self.previous = Some(found.lsn);
        // After a switch the rest of the segment is filling.
        let is_switch = found.resource_manager == XLOG && found.info & 0xF0 == SWITCH;
        self.place = if is_switch { Place::End } else { Place::Between };
        let Some(moment) = ending(found, &self.record) else { return };
        self.span = Some(match self.span {
            None => CommitSpan { first: moment, last: moment, last_lsn: found.lsn },
            Some(span) => {
                CommitSpan { first: span.first.min(moment), last: span.last.max(moment), last_lsn: found.lsn }
            }
        });
    }

    /// Whether a record points back to the one before it, as far as that is known. Source:
    /// `ValidXLogRecordHeader`.
    fn follows(&self, found: &Found) -> bool {
        match self.previous {
            Some(previous) => found.previous == previous.get(),
            None => found.previous < found.lsn.get(),
        }
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
