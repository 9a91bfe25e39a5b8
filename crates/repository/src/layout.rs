//! Where each object lives: the only place that spells object names.

use std::fmt;

use pg::timeline::TimelineId;
use pg::wal::{FileName, SegmentName};
use storage::ObjectName;

use crate::secrets::{parse_hex, random_bytes};

/// Identity of a pack: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub [u8; 16]);

impl PackId {
    /// A new random identity; two writers cannot meet in one.
    pub fn random() -> Self {
        Self(random_bytes())
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        parse_hex(text).map(Self)
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PackId({self})")
    }
}

/// The name of one cluster's stream in the repository: 1 to 64 of `a-z`, `0-9`, `-`, `_`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterName(String);

/// The text is not a cluster name.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text:?} is not a cluster name: 1 to 64 of a-z, 0-9, - and _, beginning with a letter or digit")]
pub struct InvalidClusterName {
    text: String,
}

impl ClusterName {
    /// Checks the text.
    pub fn new(text: &str) -> Result<Self, InvalidClusterName> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        let begins_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins_well && text.len() <= 64 && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidClusterName { text: text.chars().take(80).collect() })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Everything under this prefix is a pack.
pub const PACKS: &str = "packs/";
/// Everything under this prefix is a key slot.
pub const KEYS: &str = "keys/";
/// Everything under this prefix belongs to one cluster's stream.
pub const CLUSTERS: &str = "clusters/";

/// What the repository is; written once.
pub fn description() -> ObjectName {
    object("repository".into())
}

/// A pack. Two hexadecimal digits of its id make 256 folders, so that no directory grows too large.
pub fn pack(id: PackId) -> ObjectName {
    let id = id.to_string();
    object(format!("{PACKS}{}/{id}", &id[..2]))
}

/// A key slot.
pub fn key_slot(slot: &str) -> ObjectName {
    object(format!("{KEYS}{slot}"))
}

/// What a cluster's stream is bound to; written once.
pub fn identity(cluster: &ClusterName) -> ObjectName {
    object(format!("{CLUSTERS}{cluster}/identity"))
}

/// The prefix of a cluster's manifests.
pub fn backups(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/backups/")
}

/// One backup's manifest.
pub fn manifest(cluster: &ClusterName, id: &str) -> ObjectName {
    object(format!("{CLUSTERS}{cluster}/backups/{id}"))
}

/// The prefix of what unfinished backups have stored.
pub fn partials(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/partial/")
}

/// The `number`-th partial manifest of an unfinished backup.
pub fn partial_manifest(cluster: &ClusterName, id: &str, number: u32) -> ObjectName {
    object(format!("{CLUSTERS}{cluster}/partial/{id}/{number:06}"))
}

/// The prefix of a cluster's WAL.
pub fn wal(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/wal/")
}

/// The prefix of one timeline's WAL.
pub fn wal_timeline(cluster: &ClusterName, timeline: TimelineId) -> String {
    format!("{CLUSTERS}{cluster}/wal/{:08X}/", timeline.get())
}

/// A file of the WAL archive.
pub fn wal_file(cluster: &ClusterName, file: &FileName) -> ObjectName {
    let place = |segment: &SegmentName| format!("{:08X}/{:08X}", segment.timeline.get(), segment.log);
    let folder = match file {
        FileName::Segment(segment) | FileName::Partial(segment) | FileName::BackupHistory { segment, .. } => {
            place(segment)
        }
        FileName::History(timeline) => format!("{:08X}", timeline.get()),
    };
    object(format!("{CLUSTERS}{cluster}/wal/{folder}/{file}"))
}

fn object(name: String) -> ObjectName {
    ObjectName::new(&name).expect("layout spells valid names")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_format() {
        let cluster = ClusterName::new("main").unwrap();
        assert_eq!(pack(PackId([0xab; 16])).as_str(), format!("packs/ab/{}", "ab".repeat(16)));
        let file: FileName = "0000000A000000010000000F".parse().unwrap();
        assert_eq!(
            wal_file(&cluster, &file).as_str(),
            "clusters/main/wal/0000000A/00000001/0000000A000000010000000F"
        );
        let history: FileName = "0000000A.history".parse().unwrap();
        assert_eq!(wal_file(&cluster, &history).as_str(), "clusters/main/wal/0000000A/0000000A.history");
    }

    #[test]
    fn cluster_names_cannot_leave_their_folder() {
        for text in ["", "..", "a/b", "-a", "A", "a b", "é", &"a".repeat(65)] {
            assert!(ClusterName::new(text).is_err(), "{text:?}");
        }
        assert!(ClusterName::new("prod-eu_1").is_ok());
    }
}
