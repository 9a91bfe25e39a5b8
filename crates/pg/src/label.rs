//! `backup_label` and `tablespace_map`: what the server hands over when a backup stops.
//!
//! Both are stored and restored byte for byte; reading them is for checks and for moving tablespaces.

use std::str::FromStr;

use crate::wal::SegmentName;
use crate::{Lsn, TimelineId};

/// The name of the file in the data directory. Without it a restored backup starts as if after a crash, from
/// the wrong place, and is silently damaged.
pub const BACKUP_LABEL_FILE: &str = "backup_label";

/// The name of the file that lists where tablespaces were.
pub const TABLESPACE_MAP_FILE: &str = "tablespace_map";

/// What `backup_label` says. Source: `build_backup_content`, `access/transam/xlogbackup.c`, and
/// `read_backup_label`, `access/transam/xlogrecovery.c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay starts: the redo location of the backup's checkpoint.
    pub start_lsn: Lsn,
    /// The segment that holds it.
    pub start_segment: SegmentName,
    /// The backup's checkpoint record.
    pub checkpoint_location: Lsn,
    /// `streamed` for every backup that is not exclusive.
    pub method: String,
    /// What kind of server it was taken from.
    pub backup_from: BackupFrom,
    /// When it started, in the server's `log_timezone`; for people.
    pub start_time: String,
    /// What it was called when it was started.
    pub label: String,
    /// The timeline it started on.
    pub start_timeline: TimelineId,
    /// For an incremental of PostgreSQL's own (17 and later), the start of the backup it builds on. Such a
    /// directory is no cluster until `pg_combinebackup` has been at it.
    pub incremental_from: Option<Lsn>,
}

/// The kind of server that a backup was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupFrom {
    /// One that writes.
    Primary,
    /// One that replays.
    Standby,
}

/// A label that the server would refuse, or that does not agree with itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A line that must be there is not.
    #[error("read backup_label: no line {field:?}")]
    Missing {
        /// The words before the colon.
        field: &'static str,
    },
    /// A line that cannot be read.
    #[error("read backup_label: {field:?} cannot be {value:?}")]
    Value {
        /// The words before the colon.
        field: &'static str,
        /// What follows.
        value: String,
    },
    /// Two lines that name different timelines.
    #[error("read backup_label: started on timeline {timeline}, but in segment {segment}")]
    Timelines {
        /// From the line "START TIMELINE".
        timeline: TimelineId,
        /// From the line "START WAL LOCATION".
        segment: SegmentName,
    },
}

impl BackupLabel {
    /// Reads the text that stopping the backup returned. Lines end in one line feed, as on the server.
    pub fn parse(text: &str) -> Result<BackupLabel, LabelError> {
        const START: &str = "START WAL LOCATION";
        let start = field(text, START)?;
        let (start_lsn, start_segment) = start
            .strip_suffix(')')
            .and_then(|start| start.split_once(" (file "))
            .and_then(|(lsn, segment)| Some((lsn.parse().ok()?, segment.parse::<SegmentName>().ok()?)))
            .ok_or_else(|| LabelError::Value { field: START, value: start.to_owned() })?;
        let start_timeline = parsed(text, "START TIMELINE")?;
        if start_segment.timeline != start_timeline {
            return Err(LabelError::Timelines { timeline: start_timeline, segment: start_segment });
        }
        Ok(BackupLabel {
            start_lsn,
            start_segment,
            checkpoint_location: parsed(text, "CHECKPOINT LOCATION")?,
            method: field(text, "BACKUP METHOD")?.to_owned(),
            backup_from: parsed(text, "BACKUP FROM")?,
            start_time: field(text, "START TIME")?.to_owned(),
            label: field(text, "LABEL")?.to_owned(),
            start_timeline,
            incremental_from: match field(text, "INCREMENTAL FROM LSN") {
                Ok(_) => Some(parsed(text, "INCREMENTAL FROM LSN")?),
                Err(_) => None,
            },
        })
    }
}

impl FromStr for BackupFrom {
    type Err = ();

    fn from_str(text: &str) -> Result<BackupFrom, ()> {
        match text {
            "primary" | "master" => Ok(BackupFrom::Primary),
            "standby" => Ok(BackupFrom::Standby),
            _ => Err(()),
        }
    }
}

/// What follows `name: ` on the first line that begins so. The label that the user chose is on one line too:
/// the server refuses line breaks in it.
fn field<'a>(text: &'a str, name: &'static str) -> Result<&'a str, LabelError> {
    text.split('\n')
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .ok_or(LabelError::Missing { field: name })
}

fn parsed<T: FromStr>(text: &str, name: &'static str) -> Result<T, LabelError> {
    let value = field(text, name)?;
    value.parse().map_err(|_| LabelError::Value { field: name, value: value.to_owned() })
}

/// One line of `tablespace_map`: where a tablespace was on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedTablespace {
    /// The tablespace's oid, which names its link in `pg_tblspc`.
    pub oid: u32,
    /// The directory that the link pointed to, as bytes.
    pub location: Vec<u8>,
}

/// A line of `tablespace_map` that the server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read entry {entry} of tablespace_map: expected an oid, a space and a path")]
pub struct TablespaceMapError {
    /// Counted from 1.
    pub entry: usize,
}

/// Reads `tablespace_map`: lines of oid and path, where a backslash takes the next byte as it is.
/// Source: `read_tablespace_map`, `access/transam/xlogrecovery.c`.
pub fn parse_tablespace_map(file: &[u8]) -> Result<Vec<MappedTablespace>, TablespaceMapError> {
    let mut entries = Vec::new();
    let mut line = Vec::new();
    let mut bytes = file.iter().copied();
    loop {
        let byte = bytes.next();
        match byte {
            Some(b'\\') => line.extend(bytes.next()),
            None | Some(b'\n' | b'\r') => {
                if !line.is_empty() {
                    let error = TablespaceMapError { entry: entries.len() + 1 };
                    entries.push(parse_mapping(&line).ok_or(error)?);
                    line.clear();
                }
            }
            Some(other) => line.push(other),
        }
        if byte.is_none() {
            return Ok(entries);
        }
    }
}

/// The file that [`parse_tablespace_map`] and the server read back to `entries`.
pub fn format_tablespace_map(entries: &[MappedTablespace]) -> Vec<u8> {
    let mut file = Vec::new();
    for entry in entries {
        file.extend_from_slice(format!("{} ", entry.oid).as_bytes());
        for &byte in &entry.location {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                file.push(b'\\');
            }
            file.push(byte);
        }
        file.push(b'\n');
    }
    file
}

fn parse_mapping(line: &[u8]) -> Option<MappedTablespace> {
    let space = line.iter().position(|&b| b == b' ')?;
    let (oid, location) = (std::str::from_utf8(&line[..space]).ok()?, &line[space + 1..]);
    let digits_only = !oid.is_empty() && oid.bytes().all(|b| b.is_ascii_digit());
    let oid: u32 = digits_only.then(|| oid.parse().ok()).flatten()?;
    (oid != 0 && !location.is_empty()).then(|| MappedTablespace { oid, location: location.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// From PostgreSQL 15.
    const REAL: &str = "START WAL LOCATION: 0/1000028 (file 000000010000000000000010)\n\
        CHECKPOINT LOCATION: 0/1000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-22 18:34:11 UTC\n\
        LABEL: pg_basebackup base backup\n\
        START TIMELINE: 1\n";

    #[test]
    fn a_real_label_is_read() {
        let label = BackupLabel::parse(REAL).unwrap();
        assert_eq!(label.start_lsn.to_string(), "0/1000028");
        assert_eq!(label.start_segment.to_string(), "000000010000000000000010");
        assert_eq!(label.checkpoint_location.to_string(), "0/1000060");
        assert_eq!((label.method.as_str(), label.backup_from), ("streamed", BackupFrom::Primary));
        assert_eq!(label.start_time, "2026-11-22 18:34:11 UTC");
        assert_eq!(
            (label.label.as_str(), label.start_timeline),
            ("pg_basebackup base backup", TimelineId::FIRST)
        );
        assert_eq!(label.incremental_from, None);
        let incremental = format!("{REAL}INCREMENTAL FROM LSN: 0/500028\nINCREMENTAL FROM TLI: 1\n");
        assert_eq!(BackupLabel::parse(&incremental).unwrap().incremental_from, "0/500028".parse().ok());
    }

    #[test]
    fn a_line_less_or_wrong_is_refused() {
        for (index, _) in REAL.lines().enumerate() {
            let cut: Vec<_> =
                REAL.lines().enumerate().filter(|(at, _)| *at != index).map(|(_, line)| line).collect();
            assert!(
                matches!(BackupLabel::parse(&cut.join("\n")), Err(LabelError::Missing { .. })),
                "{index}"
            );
        }
        let wrong = REAL.replace("START TIMELINE: 1", "START TIMELINE: 2");
        assert!(matches!(BackupLabel::parse(&wrong), Err(LabelError::Timelines { .. })));
        assert!(BackupLabel::parse(&REAL.replace('\n', "\r\n")).is_err());
    }

    #[test]
    fn odd_paths_survive_the_map() {
        let entries = vec![
            MappedTablespace { oid: 16_384, location: b"/srv/a b".to_vec() },
            MappedTablespace { oid: 16_385, location: b"/srv/\n\\ \xff".to_vec() },
        ];
        let file = format_tablespace_map(&entries);
        assert_eq!(file, b"16384 /srv/a b\n16385 /srv/\\\n\\\\ \xff\n");
        assert_eq!(parse_tablespace_map(&file).unwrap(), entries);
        for bad in ["x /a\n", "0 /a\n", "16384\n", "16384 \n", "+1 /a"] {
            assert!(parse_tablespace_map(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "([A-Z ]{0,20}: [0-9A-F/]{0,12}\n){0,8}", bytes: Vec<u8>) {
            let _ = BackupLabel::parse(&text);
            let _ = parse_tablespace_map(&bytes);
        }

        #[test]
        fn maps_round_trip(locations in proptest::collection::vec((1u32.., proptest::collection::vec(1u8.., 1..20)), 0..4)) {
            let entries: Vec<_> =
                locations.into_iter().map(|(oid, location)| MappedTablespace { oid, location }).collect();
            prop_assert_eq!(parse_tablespace_map(&format_tablespace_map(&entries)).unwrap(), entries);
        }
    }
}
