//! Parts of a segment that its server has not finished: what makes the archive about a second old instead of a segment.
//!
//! A part is stored under the segment's name and the range of its bytes, so that a listing tells how far the WAL goes. Parts
//! may overlap: a longer one replaces those before it. They go when their segment is stored whole.

use std::fmt;
use std::str::FromStr;

use pg::TimelineId;
use pg::wal::{FileName, SegmentName};
use storage::StorageError;

use crate::layout::{self, ClusterName};
use crate::repository::{Repository, RepositoryError};

/// A stretch of one segment. Text form: the segment's name, `.`, then the offsets of the first byte and of the one after the
/// last, eight upper-case hexadecimal digits each, with `-` between.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Part {
    /// Of which segment.
    pub segment: SegmentName,
    /// Offset of its first byte in the segment.
    pub from: u32,
    /// Offset of the byte after its last; above `from`.
    pub to: u32,
}

/// The text is not the name of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a part of a segment")]
pub struct PartNameError;

impl fmt::Display for Part {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{:08X}-{:08X}", self.segment, self.from, self.to)
    }
}

impl FromStr for Part {
    type Err = PartNameError;

    fn from_str(text: &str) -> Result<Self, PartNameError> {
        let (segment, range) = text.split_once('.').ok_or(PartNameError)?;
        let (from, to) = range.split_once('-').ok_or(PartNameError)?;
        let number = |digits: &str| {
            let upper =
                digits.len() == 8 && !digits.bytes().any(|byte| byte.is_ascii_lowercase() || byte == b'+');
            u32::from_str_radix(digits, 16).ok().filter(|_| upper).ok_or(PartNameError)
        };
        let segment = segment.parse().map_err(|_| PartNameError)?;
        let part = Self { segment, from: number(from)?, to: number(to)? };
        if part.from < part.to { Ok(part) } else { Err(PartNameError) }
    }
}

/// The name of an object of the archive: a file that PostgreSQL named, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalName {
    /// A file under its own name.
    File(FileName),
    /// A part of a segment.
    Part(Part),
}

impl fmt::Display for WalName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.fmt(out),
            Self::Part(part) => part.fmt(out),
        }
    }
}

impl From<&FileName> for WalName {
    fn from(file: &FileName) -> Self {
        Self::File(*file)
    }
}

impl From<&Part> for WalName {
    fn from(part: &Part) -> Self {
        Self::Part(*part)
    }
}

/// The fewest of `parts`, all of one segment, that hold its bytes from the first one on without a hole, in order. The last
/// one's end is how far they go; none hold nothing.
pub fn cover(parts: &[Part]) -> Vec<Part> {
    let mut chosen: Vec<Part> = Vec::new();
    loop {
        let reached = chosen.last().map_or(0, |part| part.to);
        let next =
            parts.iter().filter(|part| part.from <= reached && part.to > reached).max_by_key(|part| part.to);
        match next {
            Some(part) => chosen.push(*part),
            None => return chosen,
        }
    }
}

/// How many bytes of their segment `parts` hold from its first one on.
pub fn covered(parts: &[Part]) -> u32 {
    cover(parts).last().map_or(0, |part| part.to)
}

/// The end of what is stored of a timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewestWal {
    /// The newest whole segment.
    pub whole: Option<SegmentName>,
    /// Parts of segments that are not whole, in order.
    pub parts: Vec<Part>,
    /// Parts of segments that are whole: nobody needs them.
    pub leftover: Vec<Part>,
}

impl Repository {
    /// The parts of a segment that are stored, in order of their first bytes.
    pub async fn parts_of(
        &self,
        cluster: &ClusterName,
        segment: &SegmentName,
    ) -> Result<Vec<Part>, RepositoryError> {
        let mut parts = self.folder_content(cluster, &layout::wal_log(cluster, segment)).await?.1;
        parts.retain(|part| part.segment == *segment);
        Ok(parts)
    }

    /// Removes parts that are no longer needed: the caller has their segment, or a longer part, stored. One that is gone
    /// already is no error.
    pub async fn remove_parts(&self, cluster: &ClusterName, parts: &[Part]) -> Result<(), StorageError> {
        for part in parts {
            self.storage().remove(&layout::wal_file(cluster, part)).await?;
        }
        Ok(())
    }

    /// The end of what is stored of a timeline, as far as `counts` says that a segment counts; asks for the names in the last
    /// folders only, not for all.
    pub async fn newest_wal(
        &self,
        cluster: &ClusterName,
        timeline: TimelineId,
        counts: impl Fn(&SegmentName) -> bool,
    ) -> Result<NewestWal, RepositoryError> {
        let logs = self.storage().list_children(&layout::wal_timeline(cluster, timeline)).await?.prefixes;
        let mut newest = NewestWal::default();
        for folder in logs.iter().rev() {
            let (segments, parts) = self.folder_content(cluster, folder).await?;
            for part in parts.into_iter().filter(|part| counts(&part.segment)) {
                let is_whole = segments.contains(&part.segment);
                if is_whole { &mut newest.leftover } else { &mut newest.parts }.push(part);
            }
            newest.whole = segments.into_iter().filter(&counts).max();
            if newest.whole.is_some() {
                break;
            }
        }
        newest.parts.sort_unstable();
        Ok(newest)
    }

    /// The whole segments and the parts that stand in a folder of 4 GiB.
    async fn folder_content(
        &self,
        cluster: &ClusterName,
        folder: &str,
    ) -> Result<(Vec<SegmentName>, Vec<Part>), RepositoryError> {
        let (mut segments, mut parts) = (Vec::new(), Vec::new());
        for entry in self.storage().list(folder).await? {
            let text = entry.name.as_str().rsplit('/').next().unwrap_or_default();
            // A name that stands in another place than it says was put there by somebody else.
            if let Ok(part) = text.parse::<Part>() {
                if layout::wal_file(cluster, &part) == entry.name {
                    parts.push(part);
                }
            } else if let Ok(segment) = text.parse::<SegmentName>()
                && layout::wal_file(cluster, &FileName::Segment(segment)) == entry.name
            {
                segments.push(segment);
            }
        }
        parts.sort_unstable();
        Ok((segments, parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(from: u32, to: u32) -> Part {
        Part { segment: "000000010000000000000003".parse().unwrap(), from, to }
    }

    #[test]
    fn a_part_is_named_by_its_segment_and_its_bytes() {
        let text = "000000010000000000000003.00000000-0001C2A0";
        assert_eq!(text.parse(), Ok(part(0, 0x1_C2A0)));
        assert_eq!(part(0, 0x1_C2A0).to_string(), text);
        for other in [
            "000000010000000000000003",
            "000000010000000000000003.partial",
            "000000010000000000000003.00000028.backup",
            "000000010000000000000003.00000028-00000028",
            "000000010000000000000003.00000028-0000001",
            "000000010000000000000003.0000000a-0000000B",
            "000000010000000000000003.+0000001-00000002",
        ] {
            assert_eq!(other.parse::<Part>(), Err(PartNameError), "{other}");
            assert!(text.parse::<FileName>().is_err());
        }
    }

    #[test]
    fn the_fewest_parts_cover_a_beginning() {
        let parts = [part(0, 10), part(0, 30), part(10, 30), part(30, 40), part(50, 60)];
        assert_eq!(cover(&parts), [part(0, 30), part(30, 40)]);
        assert_eq!(covered(&parts[4..]), 0);
        assert_eq!(covered(&[]), 0);
    }

    proptest! {
        #[test]
        fn a_cover_reaches_as_far_as_bytes_without_a_hole(ranges in prop::collection::vec((0u32..40, 1u32..20), 0..12)) {
            let parts: Vec<Part> = ranges.iter().map(|(from, length)| part(*from, from + length)).collect();
            let held = |at: u32| parts.iter().any(|part| part.from <= at && at < part.to);
            let reached = (0..100).find(|at| !held(*at)).unwrap();
            prop_assert_eq!(covered(&parts), reached);
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,48}") {
            let _ = text.parse::<Part>();
        }
    }
}
