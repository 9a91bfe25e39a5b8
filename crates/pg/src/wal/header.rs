//! The headers of WAL pages, and whether a segment is what its name says.

use super::{SegmentName, SegmentSize};
use crate::{Major, TimelineId};

/// Bytes of the header of a segment's first page: `SizeOfXLogLongPHD`, `access/xlog_internal.h`.
pub const LONG_HEADER_SIZE: usize = 40;

/// Bytes of the header of any other page: `SizeOfXLogShortPHD`.
pub(super) const SHORT_HEADER_SIZE: usize = 24;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins inside a record.
pub(super) const CONTINUES: u16 = 1;
/// `XLP_LONG_HEADER`.
pub(super) const LONG: u16 = 2;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record that ran into this page was given up after a crash.
pub(super) const GIVEN_UP: u16 = 4;
const KNOWN_FLAGS: u16 = 7;

/// The header of a page of WAL, `XLogPageHeaderData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageHeader {
    pub magic: u16,
    pub info: u16,
    pub timeline: u32,
    pub page_address: u64,
    pub remaining_len: u32,
}

impl PageHeader {
    /// `None` when `page` is too short for it.
    pub fn read(page: &[u8]) -> Option<PageHeader> {
        let bytes: &[u8; 20] = page.first_chunk()?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        Some(PageHeader {
            magic: u16_at(0),
            info: u16_at(2),
            timeline: u32_at(4),
            page_address: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
            remaining_len: u32_at(16),
        })
    }

    pub fn has(&self, flag: u16) -> bool {
        self.info & flag != 0
    }

    /// Whether no bit is set that no version defines.
    pub fn flags_are_known(&self) -> bool {
        self.info & !KNOWN_FLAGS == 0
    }
}

/// The header of a segment's first page, `XLogLongPageHeaderData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// Tells the major that wrote it, see [`LongHeader::major`].
    pub magic: u16,
    /// Flags of the page, `XLP_…`.
    pub info: u16,
    /// The timeline that the page was first written on. A segment that a promotion fell into was copied from
    /// the timeline before, so this may be older than the timeline in the name.
    pub timeline: TimelineId,
    /// The position of the page, which is that of the segment.
    pub page_address: u64,
    /// Bytes that are left here of a record which began in an earlier segment.
    pub remaining_len: u32,
    /// The cluster that wrote it.
    pub system_identifier: u64,
    /// The size of that cluster's segments.
    pub segment_size: SegmentSize,
    /// Bytes in a page of its WAL.
    pub block_size: u32,
}

/// Bytes that do not begin a WAL segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Cut off.
    #[error("read WAL segment: {length} bytes, its header alone has {LONG_HEADER_SIZE}")]
    TooShort {
        /// Bytes that there are.
        length: usize,
    },
    /// Something else, such as zeroes or a compressed file.
    #[error("read WAL segment: page magic {magic:04X} is not PostgreSQL's")]
    NotWal {
        /// What stands where the magic should.
        magic: u16,
    },
    /// A page from the middle of a segment, or flags of a version to come.
    #[error("read WAL segment: page flags {info:04X} are not those of a first page")]
    Flags {
        /// What stands there.
        info: u16,
    },
    /// A field that no server writes.
    #[error("read WAL segment: {what} cannot be {found}")]
    Value {
        /// Which field.
        what: &'static str,
        /// What it holds.
        found: u64,
    },
}

impl LongHeader {
    /// Reads the header at the start of a segment, of any major: magics have begun with D1 since 13, and what
    /// we need has not moved.
    pub fn parse(first_page: &[u8]) -> Result<LongHeader, HeaderError> {
        let too_short = HeaderError::TooShort { length: first_page.len() };
        let bytes: &[u8; LONG_HEADER_SIZE] = first_page.first_chunk().ok_or(too_short.clone())?;
        let page = PageHeader::read(bytes).ok_or(too_short)?;
        if page.magic & 0xFF00 != 0xD100 {
            return Err(HeaderError::NotWal { magic: page.magic });
        }
        if !page.has(LONG) || !page.flags_are_known() {
            return Err(HeaderError::Flags { info: page.info });
        }
        let [a, b, c, d, e, f, g, h, size @ .., i, j, k, l] =
            *bytes.last_chunk::<16>().expect("40 bytes end in 16");
        let block_size = u32::from_le_bytes([i, j, k, l]);
        if !block_size.is_power_of_two() || !(1024..=65_536).contains(&block_size) {
            return Err(HeaderError::Value { what: "the WAL block size", found: block_size.into() });
        }
        Ok(LongHeader {
            magic: page.magic,
            info: page.info,
            timeline: TimelineId::new(page.timeline)
                .ok_or(HeaderError::Value { what: "the timeline", found: 0 })?,
            page_address: page.page_address,
            remaining_len: page.remaining_len,
            system_identifier: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            segment_size: SegmentSize::new(u32::from_le_bytes(size))
                .map_err(|error| HeaderError::Value { what: "the segment size", found: error.bytes })?,
            block_size,
        })
    }

    /// The major that wrote the segment; `None` if we know none that writes this magic.
    pub fn major(&self) -> Option<Major> {
        Major::from_wal_magic(self.magic)
    }
}

/// What all segments of one stream of WAL have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamIdentity {
    /// The cluster.
    pub system_identifier: u64,
    /// The size of its segments.
    pub segment_size: SegmentSize,
}

/// A segment that must not be stored, or replayed, under its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentMismatch {
    /// No segment at all.
    #[error("check WAL segment {name}")]
    Header {
        /// The name it came under.
        name: SegmentName,
        /// What is wrong.
        source: HeaderError,
    },
    /// Of another cluster.
    #[error("check WAL segment {name}: it is of the cluster with system identifier {found}, not {expected}")]
    SystemIdentifier {
        /// The name it came under.
        name: SegmentName,
        /// The cluster in its header.
        found: u64,
        /// Our cluster.
        expected: u64,
    },
    /// Of another size.
    #[error("check WAL segment {name}: segments of its cluster have {found} bytes, not {expected}")]
    SegmentSize {
        /// The name it came under.
        name: SegmentName,
        /// The size in its header, in bytes.
        found: u32,
        /// The size of our cluster's segments, in bytes.
        expected: u32,
    },
    /// A name that our cluster has no segment of.
    #[error("check WAL segment {name}: no segment of {segment_size_bytes} bytes has this name")]
    Name {
        /// The name it came under.
        name: SegmentName,
        /// The size of our cluster's segments.
        segment_size_bytes: u32,
    },
    /// From another place in the log, such as a recycled file that was never written.
    #[error("check WAL segment {name}: it starts at {found:X}, not {expected:X}")]
    Address {
        /// The name it came under.
        name: SegmentName,
        /// The position in its header.
        found: u64,
        /// The position that its name means.
        expected: u64,
    },
    /// From a timeline that comes after the one in its name.
    #[error("check WAL segment {name}: it was written on timeline {found}")]
    Timeline {
        /// The name it came under.
        name: SegmentName,
        /// The timeline in its header.
        found: TimelineId,
    },
}

/// Checks that the segment which begins with `first_page` is the one called `name` in the stream of
/// `identity`: cluster, segment size, position, and a timeline that is not after the name's (it may be
/// before, see [`LongHeader::timeline`]). The length of the file is the caller's to check. Source:
/// `XLogReaderValidatePageHeader`, `access/transam/xlogreader.c`.
pub fn check_segment(
    first_page: &[u8],
    name: &SegmentName,
    identity: &StreamIdentity,
) -> Result<LongHeader, SegmentMismatch> {
    let name = *name;
    let header = LongHeader::parse(first_page).map_err(|source| SegmentMismatch::Header { name, source })?;
    let (found, expected) = (header.system_identifier, identity.system_identifier);
    if found != expected {
        return Err(SegmentMismatch::SystemIdentifier { name, found, expected });
    }
    let (found, expected) = (header.segment_size.bytes(), identity.segment_size.bytes());
    if found != expected {
        return Err(SegmentMismatch::SegmentSize { name, found, expected });
    }
    if !name.fits(identity.segment_size) {
        return Err(SegmentMismatch::Name { name, segment_size_bytes: expected });
    }
    let (found, expected) = (header.page_address, name.start(identity.segment_size));
    if found != expected {
        return Err(SegmentMismatch::Address { name, found, expected });
    }
    if header.timeline > name.timeline {
        return Err(SegmentMismatch::Timeline { name, found: header.timeline });
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The start of a segment that PostgreSQL 15 archived.
    const REAL: [u8; 40] = [
        0x10, 0xD1, 7, 0, 1, 0, 0, 0, 0, 0, 0x90, 0, 0, 0, 0, 0, 0xFC, 3, 0, 0, 0, 0, 0, 0, 0x3C, 0x05, 0x6F,
        0x12, 0x51, 0x35, 0x03, 0x6B, 0, 0, 0x10, 0, 0, 0x20, 0, 0,
    ];

    fn identity() -> StreamIdentity {
        StreamIdentity {
            system_identifier: 7_711_065_609_306_309_948,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
        }
    }

    fn check(bytes: &[u8], name: &str) -> Result<LongHeader, SegmentMismatch> {
        check_segment(bytes, &name.parse().unwrap(), &identity())
    }

    #[test]
    fn a_real_segment_is_what_its_name_says() {
        let header = check(&REAL, "000000010000000000000009").unwrap();
        assert_eq!(header.major(), Some(Major::new(15)));
        assert_eq!((header.page_address, header.remaining_len, header.block_size), (0x90_0000, 0x3FC, 8192));
        assert!(check(&REAL, "000000020000000000000009").is_ok(), "copied at a promotion");
    }

    #[test]
    fn every_way_to_be_another_segment_is_named() {
        type M = SegmentMismatch;
        let name = "000000010000000000000009";
        let with = |at: usize, byte: u8| {
            let mut bytes = REAL;
            bytes[at] = byte;
            bytes
        };
        assert!(matches!(check(&REAL, "00000001000000000000000A"), Err(M::Address { .. })));
        assert!(matches!(check(&REAL, "000000010000000000001009"), Err(M::Name { .. })));
        assert!(matches!(check(&with(4, 2), name), Err(M::Timeline { .. })));
        assert!(matches!(check(&with(24, 0), name), Err(M::SystemIdentifier { .. })));
        assert!(matches!(check(&with(34, 0x20), name), Err(M::SegmentSize { .. })));
        for (at, byte) in [(1, 0), (2, 5), (2, 0xF), (4, 0), (34, 0x30), (36, 1)] {
            assert!(matches!(check(&with(at, byte), name), Err(M::Header { .. })), "{at}");
        }
        assert!(matches!(check(&REAL[..39], name), Err(M::Header { .. })));
        assert!(matches!(
            check(&[0; 8192], name),
            Err(M::Header { source: HeaderError::NotWal { magic: 0 }, .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, at in 0usize..40, byte: u8) {
            let _ = LongHeader::parse(&bytes);
            let mut near = REAL;
            near[at] = byte;
            let _ = check(&near, "FFFFFFFFFFFFFFFFFFFFFFFF");
        }
    }
}
