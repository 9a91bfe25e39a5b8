//! Timelines: which past a position in the log belongs to.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// The number of a timeline, from 1. Displayed and parsed in decimal, as `recovery_target_timeline` takes it;
/// file names spell it in hexadecimal, which [`crate::wal`] does. Source: `TimeLineID`, `access/xlogdefs.h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline of a cluster that was never promoted.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// Timeline `id`; `None` for zero, which PostgreSQL never uses.
    pub const fn new(id: u32) -> Option<TimelineId> {
        match NonZeroU32::new(id) {
            Some(id) => Some(TimelineId(id)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for TimelineId {
    type Err = TimelineError;

    fn from_str(text: &str) -> Result<TimelineId, TimelineError> {
        let digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits_only
            .then(|| text.parse().ok().and_then(TimelineId::new))
            .flatten()
            .ok_or_else(|| TimelineError { text: text.to_owned() })
    }
}

/// Text that is not the number of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read timeline {text:?}: expected a decimal number from 1 to 4294967295")]
pub struct TimelineError {
    /// What was read.
    pub text: String,
}

/// One line of a history file: the named timeline was left at `switch_lsn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The first position that is no longer on it: the next timeline begins here. Zero (a branch from the
    /// very start) is `None` and does not occur in practice.
    pub switch_lsn: Option<Lsn>,
}

/// The ancestry of one timeline, as its `.history` file tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline this is the history of.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first. Empty for a timeline that nothing precedes.
    pub entries: Vec<HistoryEntry>,
}

/// A history file that PostgreSQL would refuse, or a line of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Not "timeline, LSN, reason".
    #[error(
        "read line {line} of the history of timeline {timeline}: expected a timeline and the LSN where it was left"
    )]
    Syntax {
        /// Whose history.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
    },
    /// Ancestors out of order.
    #[error("read line {line} of the history of timeline {timeline}: timeline ids must grow")]
    OutOfOrder {
        /// Whose history.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
    },
    /// An ancestor that is not older than its descendant.
    #[error("read the history of timeline {timeline}: ancestor {ancestor} is not an earlier timeline")]
    NotAnAncestor {
        /// Whose history.
        timeline: TimelineId,
        /// The last ancestor named.
        ancestor: TimelineId,
    },
}

impl TimelineHistory {
    /// A timeline with no ancestors, such as the first, which has no history file.
    pub fn root(timeline: TimelineId) -> TimelineHistory {
        TimelineHistory { timeline, entries: Vec::new() }
    }

    /// Reads the history file of `timeline` by the rules of `readTimeLineHistory`
    /// (`access/transam/timeline.c`): blank lines and lines starting with `#` are skipped, ids must grow and
    /// stay below `timeline`, anything after the LSN is a reason for people, in any encoding.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<TimelineHistory, HistoryError> {
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (index, raw) in bytes.split(|&b| b == b'\n').enumerate() {
            let line = index + 1;
            let trimmed = raw.trim_ascii();
            if trimmed.is_empty() || trimmed.starts_with(b"#") {
                continue;
            }
            let entry = parse_entry(trimmed).ok_or(HistoryError::Syntax { timeline, line })?;
            if entries.last().is_some_and(|previous| previous.timeline >= entry.timeline) {
                return Err(HistoryError::OutOfOrder { timeline, line });
            }
            entries.push(entry);
        }
        match entries.last() {
            Some(last) if last.timeline >= timeline => {
                Err(HistoryError::NotAnAncestor { timeline, ancestor: last.timeline })
            }
            _ => Ok(TimelineHistory { timeline, entries }),
        }
    }

    /// Every timeline that replay towards this one passes, oldest first, itself last.
    pub fn lineage(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.entries.iter().map(|entry| entry.timeline).chain([self.timeline])
    }

    /// The timeline that holds the byte at `lsn` in this past.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.entries
            .iter()
            .find(|entry| Some(lsn) < entry.switch_lsn)
            .map_or(self.timeline, |entry| entry.timeline)
    }

    /// Where `timeline` was left on the way here: `None` for this timeline itself and for those not in its
    /// lineage.
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.entries.iter().find(|entry| entry.timeline == timeline).and_then(|entry| entry.switch_lsn)
    }

    /// Whether a cluster that had reached `lsn` on `timeline` can follow this history: `lsn` is that
    /// timeline's and at or before the point where it was left. A backup that ends later belongs to an
    /// abandoned future.
    ///
    /// As `tliOfPointInHistory` with the end inclusive, because `lsn` here is the end of what was written.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        if timeline == self.timeline {
            return self.entries.last().is_none_or(|last| last.switch_lsn <= Some(lsn));
        }
        let Some(index) = self.entries.iter().position(|entry| entry.timeline == timeline) else {
            return false;
        };
        let begin = index.checked_sub(1).and_then(|before| self.entries[before].switch_lsn);
        begin <= Some(lsn) && Some(lsn) <= self.entries[index].switch_lsn
    }
}

/// `<timeline> <lsn> [reason]`, separated by white space; `sscanf` tolerates no more than that either.
fn parse_entry(line: &[u8]) -> Option<HistoryEntry> {
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let timeline = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let lsn_text = std::str::from_utf8(fields.next()?).ok()?;
    let switch_lsn = match lsn_text {
        "0/0" => None,
        text => Some(text.parse().ok()?),
    };
    Some(HistoryEntry { timeline, switch_lsn })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    fn sample() -> TimelineHistory {
        let file =
            b"1\t0/3000000\tno recovery target specified\n\n# a comment\n3\t1/5000148\tbefore \xff 2026\n";
        TimelineHistory::parse(id(7), file).unwrap()
    }

    #[test]
    fn a_history_file_is_read_oldest_first() {
        let history = sample();
        assert_eq!(history.entries.len(), 2);
        assert_eq!(history.lineage().collect::<Vec<_>>(), [id(1), id(3), id(7)]);
        assert_eq!(history.switch_point(id(3)), Some(lsn("1/5000148")));
        assert_eq!(history.switch_point(id(2)), None);
    }

    #[test]
    fn each_byte_has_one_timeline() {
        let history = sample();
        assert_eq!(history.timeline_at(lsn("0/2FFFFFF")), id(1));
        assert_eq!(history.timeline_at(lsn("0/3000000")), id(3));
        assert_eq!(history.timeline_at(lsn("1/5000148")), id(7));
    }

    #[test]
    fn only_our_own_past_is_contained() {
        let history = sample();
        assert!(history.contains(id(1), lsn("0/3000000")));
        assert!(!history.contains(id(1), lsn("0/3000001")));
        assert!(!history.contains(id(2), lsn("0/3000000")));
        assert!(history.contains(id(3), lsn("1/0")));
        assert!(!history.contains(id(3), lsn("0/2000000")));
        assert!(history.contains(id(7), lsn("1/5000148")));
        assert!(!history.contains(id(7), lsn("1/5000000")));
        assert!(TimelineHistory::root(TimelineId::FIRST).contains(TimelineId::FIRST, lsn("0/1")));
    }

    #[test]
    fn what_postgresql_refuses_is_refused() {
        let parse = |text: &str| TimelineHistory::parse(id(3), text.as_bytes());
        assert_eq!(parse("1 0/10\n1 0/20\n"), Err(HistoryError::OutOfOrder { timeline: id(3), line: 2 }));
        assert_eq!(parse("3 0/10\n"), Err(HistoryError::NotAnAncestor { timeline: id(3), ancestor: id(3) }));
        assert_eq!(parse("\nfoo\n"), Err(HistoryError::Syntax { timeline: id(3), line: 2 }));
        assert_eq!(parse("1\n"), Err(HistoryError::Syntax { timeline: id(3), line: 1 }));
        assert_eq!(parse("").unwrap(), TimelineHistory::root(id(3)));
    }

    #[test]
    fn numbers_are_decimal_and_plain() {
        assert_eq!("10".parse::<TimelineId>().unwrap(), id(10));
        for text in ["", "0", "+1", "0x1", "4294967296", " 1", "A"] {
            assert!(text.parse::<TimelineId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = TimelineHistory::parse(id(9), &bytes);
        }

        #[test]
        fn the_timeline_of_a_byte_contains_it(at in 1u64.., switches in proptest::collection::btree_set(1u64.., 0..6)) {
            let entries: Vec<_> = switches.iter().zip(1..)
                .map(|(&at, number)| HistoryEntry { timeline: id(number), switch_lsn: Lsn::new(at) }).collect();
            let history = TimelineHistory { timeline: id(100), entries };
            let at = Lsn::new(at).unwrap();
            prop_assert!(history.contains(history.timeline_at(at), at));
        }
    }
}
