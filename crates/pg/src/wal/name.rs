//! Names of the files that an archive receives.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SegmentSize;
use crate::{Lsn, TimelineId};

/// The name of one WAL segment: 24 upper-case hexadecimal digits, eight for each field.
///
/// The name alone does not say where in the log the segment lies; that takes the [`SegmentSize`]. Names of
/// one timeline sort by position. Serialised as the text. Source: `XLogFileName`, `access/xlog_internal.h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline that the segment was written on.
    pub timeline: TimelineId,
    /// Which 4 GiB of the log: the high 32 bits of every position in the segment.
    pub log: u32,
    /// Which segment of those 4 GiB, below [`SegmentSize::per_log`] for the cluster's own size.
    pub segment: u32,
}

impl SegmentName {
    /// The segment that holds the byte at `lsn`.
    pub fn containing(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> SegmentName {
        SegmentName::from_number(timeline, lsn.get() / u64::from(size.bytes()), size)
    }

    /// The segment that holds the last byte before `lsn`: the last one needed to replay up to `lsn`.
    ///
    /// A position on a boundary belongs to the segment before it. `pg_walfile_name` answers so up to
    /// PostgreSQL 16 and otherwise from 17, which is why it is computed here. Source: `XLByteToPrevSeg`.
    pub fn last_before(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> SegmentName {
        SegmentName::from_number(timeline, (lsn.get() - 1) / u64::from(size.bytes()), size)
    }

    /// The segment with this number, counted from the start of the log. Numbers come from positions, so
    /// `number` is at most 2^64 / `size`; a larger one is cut to what a name can spell.
    pub fn from_number(timeline: TimelineId, number: u64, size: SegmentSize) -> SegmentName {
        let per_log = u64::from(size.per_log());
        SegmentName { timeline, log: (number / per_log) as u32, segment: (number % per_log) as u32 }
    }

    /// Whether a cluster with segments of `size` can have a segment of this name. The methods below only mean
    /// something when it can.
    pub fn fits(&self, size: SegmentSize) -> bool {
        self.segment < size.per_log()
    }

    /// The segment's number, counted from the start of the log; two neighbours differ by one, across logs
    /// too.
    pub fn number(&self, size: SegmentSize) -> u64 {
        u64::from(self.log) * u64::from(size.per_log()) + u64::from(self.segment)
    }

    /// The position of the segment's first byte. Zero only for the very first segment, which PostgreSQL never
    /// writes.
    pub fn start(&self, size: SegmentSize) -> u64 {
        self.number(size).saturating_mul(size.bytes().into())
    }

    /// The position after the segment's last byte.
    pub fn end(&self, size: SegmentSize) -> u64 {
        self.start(size).saturating_add(size.bytes().into())
    }

    /// The segment after this on the same timeline; `None` at the end of what can be named, 2^64 bytes of
    /// log.
    pub fn next(&self, size: SegmentSize) -> Option<SegmentName> {
        let number = self.number(size) + 1;
        (number < u64::from(size.per_log()) << 32)
            .then(|| SegmentName::from_number(self.timeline, number, size))
    }

    /// The segment before this on the same timeline; `None` at the start of the log.
    pub fn previous(&self, size: SegmentSize) -> Option<SegmentName> {
        let number = self.number(size).checked_sub(1)?;
        Some(SegmentName::from_number(self.timeline, number, size))
    }

    /// The same place in the log on another timeline.
    pub fn on_timeline(&self, timeline: TimelineId) -> SegmentName {
        SegmentName { timeline, ..*self }
    }
}

/// Everything that `archive_command` is asked to keep and `restore_command` to bring, told apart by the whole
/// name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileName {
    /// A complete segment, `000000010000000000000003`.
    Segment(SegmentName),
    /// The last, unfinished segment of a timeline that was left, `000000010000000000000003.partial`. It must
    /// never be replayed under its plain name.
    Partial(SegmentName),
    /// The ancestry of a timeline, `00000002.history`.
    History(TimelineId),
    /// A note about a base backup, `000000010000000000000003.00000028.backup`, for people only.
    BackupHistory {
        /// The segment where the backup starts.
        segment: SegmentName,
        /// Bytes from the start of that segment to the backup's start.
        offset: u32,
    },
}

/// A name that PostgreSQL gives to no file it archives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read WAL file name {text:?}: not a segment, partial segment, timeline history or backup history")]
pub struct FileNameError {
    /// What was read.
    pub text: String,
}

impl FileName {
    /// The segment that the name speaks of, or `None` for a timeline history.
    pub fn segment(&self) -> Option<SegmentName> {
        match *self {
            FileName::Segment(segment) | FileName::Partial(segment) => Some(segment),
            FileName::BackupHistory { segment, .. } => Some(segment),
            FileName::History(_) => None,
        }
    }

    /// The timeline that the file belongs to.
    pub fn timeline(&self) -> TimelineId {
        match *self {
            FileName::History(timeline) => timeline,
            FileName::Segment(segment) | FileName::Partial(segment) => segment.timeline,
            FileName::BackupHistory { segment, .. } => segment.timeline,
        }
    }
}

/// Eight upper-case hexadecimal digits at the start of `text`, and the rest. Lower case is not PostgreSQL's.
fn take_hex(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(8)?;
    let upper = digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    upper.then(|| u32::from_str_radix(digits, 16).ok()).flatten().map(|value| (value, rest))
}

fn take_segment(text: &str) -> Option<(SegmentName, &str)> {
    let (timeline, rest) = take_hex(text)?;
    let (log, rest) = take_hex(rest)?;
    let (segment, rest) = take_hex(rest)?;
    Some((SegmentName { timeline: TimelineId::new(timeline)?, log, segment }, rest))
}

fn parse_file_name(text: &str) -> Option<FileName> {
    if let Some((timeline, ".history")) = take_hex(text) {
        return TimelineId::new(timeline).map(FileName::History);
    }
    match take_segment(text)? {
        (segment, "") => Some(FileName::Segment(segment)),
        (segment, ".partial") => Some(FileName::Partial(segment)),
        (segment, rest) => match take_hex(rest.strip_prefix('.')?)? {
            (offset, ".backup") => Some(FileName::BackupHistory { segment, offset }),
            _ => None,
        },
    }
}

impl FromStr for FileName {
    type Err = FileNameError;

    /// Exact: a prefix or suffix more or less is another file.
    fn from_str(text: &str) -> Result<FileName, FileNameError> {
        parse_file_name(text).ok_or_else(|| FileNameError { text: text.to_owned() })
    }
}

impl FromStr for SegmentName {
    type Err = FileNameError;

    fn from_str(text: &str) -> Result<SegmentName, FileNameError> {
        match take_segment(text) {
            Some((segment, "")) => Ok(segment),
            _ => Err(FileNameError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:08X}{:08X}{:08X}", self.timeline.get(), self.log, self.segment))
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileName::Segment(segment) => write!(f, "{segment}"),
            FileName::Partial(segment) => write!(f, "{segment}.partial"),
            FileName::History(timeline) => write!(f, "{:08X}.history", timeline.get()),
            FileName::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

impl Serialize for SegmentName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SegmentName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SegmentName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    #[test]
    fn timelines_are_hexadecimal_in_names() {
        assert_eq!(name("0000000A000000000000000B").timeline.get(), 10);
        assert_eq!("0000001F.history".parse(), Ok(FileName::History(TimelineId::new(31).unwrap())));
    }

    #[test]
    fn the_next_segment_carries_into_the_log() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(name("0000000100000000000000FF").next(size), Some(name("000000010000000100000000")));
        assert_eq!(name("000000010000000100000000").previous(size), Some(name("0000000100000000000000FF")));
        let gibi = SegmentSize::new(1 << 30).unwrap();
        assert_eq!(name("000000010000000000000003").next(gibi), Some(name("000000010000000100000000")));
        assert_eq!(name("000000010000000000000000").previous(size), None);
        assert_eq!(name("00000001FFFFFFFF000000FF").next(size), None);
    }

    #[test]
    fn a_boundary_belongs_to_the_segment_before_when_it_ends_something() {
        let (one, size) = (TimelineId::FIRST, SegmentSize::DEFAULT);
        let boundary: Lsn = "1/0".parse().unwrap();
        assert_eq!(SegmentName::containing(one, boundary, size), name("000000010000000100000000"));
        assert_eq!(SegmentName::last_before(one, boundary, size), name("0000000100000000000000FF"));
        let inside: Lsn = "1/1".parse().unwrap();
        assert_eq!(SegmentName::last_before(one, inside, size), name("000000010000000100000000"));
    }

    #[test]
    fn only_exact_names_are_files_of_the_archive() {
        let segment = name("000000010000000000000003");
        assert_eq!("000000010000000000000003".parse(), Ok(FileName::Segment(segment)));
        assert_eq!("000000010000000000000003.partial".parse(), Ok(FileName::Partial(segment)));
        let backup = FileName::BackupHistory { segment, offset: 0x28 };
        assert_eq!("000000010000000000000003.00000028.backup".parse(), Ok(backup));
        for text in [
            "",
            "RECOVERYHISTORY",
            "00000001000000000000000",
            "0000000100000000000000033",
            "00000000000000000000000A",
            "00000001000000000000000a",
            "000000010000000000000003.partial2",
            "000000010000000000000003.Partial",
            "000000010000000000000003.28.backup",
            "000000010000000000000003.00000028.backup~",
            "000000010000000000000003.backup",
            "00000000.history",
            "1.history",
            "00000002.history.gz",
            "../000000010000000000000003",
            "+0000001000000000000000003",
            "0000000é0000000000000003",
        ] {
            assert!(text.parse::<FileName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_past_the_end_of_its_log_does_not_fit() {
        assert!(name("0000000100000000000000FF").fits(SegmentSize::DEFAULT));
        assert!(!name("000000010000000000000100").fits(SegmentSize::DEFAULT));
        let worst = name("FFFFFFFFFFFFFFFFFFFFFFFF");
        assert_eq!(worst.next(SegmentSize::DEFAULT), None);
        assert_eq!(worst.end(SegmentSize::new(1 << 30).unwrap()), u64::MAX);
    }

    fn any_size() -> impl Strategy<Value = SegmentSize> {
        (20u32..=30).prop_map(|shift| SegmentSize::new(1 << shift).unwrap())
    }

    proptest! {
        #[test]
        fn names_and_positions_agree(timeline in 1u32.., at in 1u64.., size in any_size()) {
            let (timeline, lsn) = (TimelineId::new(timeline).unwrap(), Lsn::new(at).unwrap());
            let name = SegmentName::containing(timeline, lsn, size);
            prop_assert!(name.fits(size));
            prop_assert!(name.start(size) <= at && at <= name.end(size));
            prop_assert_eq!(u64::from(size.offset_of(at)), at - name.start(size));
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
            if let Some(next) = name.next(size) {
                prop_assert_eq!(next.start(size), name.end(size));
                prop_assert_eq!(next.previous(size), Some(name));
            }
        }

        #[test]
        fn file_names_round_trip(timeline in 1u32.., log: u32, segment: u32, offset: u32) {
            let timeline = TimelineId::new(timeline).unwrap();
            let segment = SegmentName { timeline, log, segment };
            for file in [FileName::Segment(segment), FileName::Partial(segment), FileName::History(timeline),
                         FileName::BackupHistory { segment, offset }] {
                prop_assert_eq!(file.to_string().parse::<FileName>().unwrap(), file);
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,48}") {
            let _ = text.parse::<FileName>();
            let _ = text.parse::<SegmentName>();
        }
    }
}
