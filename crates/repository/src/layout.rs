//! Where each object lives: the only place that spells object names.

use std::fmt;

use pg::Lsn;
use pg::timeline::TimelineId;
use pg::wal::{FileName, SegmentName};
use storage::ObjectName;

use crate::archive::{Gap, Part, WalName};
use crate::secrets::parse_hex;

mod locked;

pub use locked::lock_time;

/// Identity of a pack: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub [u8; 16]);

impl PackId {
    /// A new random identity; two writers cannot meet in one.
    pub fn random() -> Self {
        Self(storage::chance::bytes())
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

/// Everything under this prefix tells where prune moved the live pages of a pack.
pub const MOVED: &str = "moved/";
/// Everything under this prefix is a list of packs that prune found dead.
pub const MARKS: &str = "marks/";
/// Everything under this prefix says who does what must be alone.
pub const LEASES: &str = "leases/";

/// What the repository is; written once.
pub fn description() -> ObjectName {
    object("repository".into())
}

/// A name that was written down, in a proof or a mark; `None` if no object can have it.
pub fn written(name: &str) -> Option<ObjectName> {
    ObjectName::new(name).ok()
}

/// A pack. Two hexadecimal digits of its id make 256 folders, so that no directory grows too large.
pub fn pack(id: PackId) -> ObjectName {
    let id = id.to_string();
    object(format!("{PACKS}{}/{id}", &id[..2]))
}

/// The prefix of the packs whose ids begin with this byte.
pub fn packs_of(first: u8) -> String {
    format!("{PACKS}{first:02x}/")
}

/// Reads what [`pack`] writes.
pub fn parse_pack(name: &str) -> Option<PackId> {
    let id = PackId::parse(name.rsplit('/').next()?)?;
    (pack(id).as_str() == name).then_some(id)
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

/// The prefix of the notes of a cluster's expired backups.
pub fn expired_notes(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/expired/")
}

/// The note that a backup was expired.
pub fn expired_note(cluster: &ClusterName, id: &str) -> ObjectName {
    object(format!("{CLUSTERS}{cluster}/expired/{id}"))
}

/// The id in [`expired_note`] of the note that WAL before a position was expired.
pub fn expired_wal(position: Lsn) -> String {
    format!("{EXPIRED_WAL}{:016X}", position.get())
}

/// Reads what [`expired_wal`] writes.
pub fn parse_expired_wal(id: &str) -> Option<Lsn> {
    let position = Lsn::new(u64::from_str_radix(id.strip_prefix(EXPIRED_WAL)?, 16).ok()?)?;
    (expired_wal(position) == id).then_some(position)
}

/// No backup's id begins like this.
const EXPIRED_WAL: &str = "wal-";

/// The prefix of a cluster's pins.
pub fn pins(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/pins/")
}

/// One pin of a backup; `unique` sets it apart from others of the same backup.
pub fn pin(cluster: &ClusterName, backup: &str, unique: &str) -> ObjectName {
    object(format!("{CLUSTERS}{cluster}/pins/{backup}/{unique}"))
}

/// The prefix of the claims of a cluster's running operations.
pub fn claims(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/claims/")
}

/// The claim of the operation that will publish the backup `id`.
pub fn claim(cluster: &ClusterName, id: &str) -> ObjectName {
    object(format!("{CLUSTERS}{cluster}/claims/{id}"))
}

/// The prefix of a cluster's proofs.
pub fn proofs(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/proofs/")
}

/// One proof; ids begin with the UTC time, so they sort by time.
pub fn proof(cluster: &ClusterName, id: &str) -> ObjectName {
    object(format!("{CLUSTERS}{cluster}/proofs/{id}"))
}

/// The prefix of what ran on a cluster.
pub fn runs(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/runs/")
}

/// One run of a job; ids are its kind, a `-`, and the UTC time at which it began, so those of one kind sort by time.
pub fn run(cluster: &ClusterName, id: &str) -> ObjectName {
    object(format!("{CLUSTERS}{cluster}/runs/{id}"))
}

/// Where the live pages of a pack went.
pub fn moved(id: PackId) -> ObjectName {
    object(format!("{MOVED}{id}"))
}

/// One list of dead packs; ids begin with the UTC time, so they sort by time.
pub fn mark(id: &str) -> ObjectName {
    object(format!("{MARKS}{id}"))
}

/// Whether a text can be a backup's id: what others wrote may be anything.
pub fn is_backup_id(text: &str) -> bool {
    text.len() <= 100 && !text.contains('/') && ObjectName::new(text).is_ok()
}

/// The prefix of a lease's steps.
pub fn lease_steps(what: &str) -> String {
    format!("{LEASES}{what}/")
}

/// One step of a lease, by its number.
pub fn lease(what: &str, number: u64) -> ObjectName {
    object(format!("{LEASES}{what}/{number:016x}"))
}

/// The prefix of a cluster's WAL.
pub fn wal(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/wal/")
}

/// The prefix of one timeline's WAL.
pub fn wal_timeline(cluster: &ClusterName, timeline: TimelineId) -> String {
    format!("{CLUSTERS}{cluster}/wal/{:08X}/", timeline.get())
}

/// The prefix of the 4 GiB of WAL that a segment is in.
pub fn wal_log(cluster: &ClusterName, segment: &SegmentName) -> String {
    format!("{}{:08X}/", wal_timeline(cluster, segment.timeline), segment.log)
}

/// A file of the WAL archive, or a part of one.
pub fn wal_file(cluster: &ClusterName, file: impl Into<WalName>) -> ObjectName {
    let file = file.into();
    let folder = match &file {
        WalName::File(FileName::History(timeline)) => wal_timeline(cluster, *timeline),
        WalName::File(
            FileName::Segment(segment) | FileName::Partial(segment) | FileName::BackupHistory { segment, .. },
        )
        | WalName::Part(Part { segment, .. }) => wal_log(cluster, segment),
    };
    object(format!("{folder}{file}"))
}

/// The prefix of what is known to be missing from a cluster's WAL.
pub fn gaps(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/gaps/")
}

/// WAL that could not be had.
pub fn gap(cluster: &ClusterName, gap: &Gap) -> ObjectName {
    let Gap { timeline, from, to } = gap;
    object(format!("{}{:08X}-{:016X}-{:016X}", gaps(cluster), timeline.get(), from.get(), to.get()))
}

/// Reads what [`gap`] writes.
pub fn parse_gap(cluster: &ClusterName, name: &ObjectName) -> Option<Gap> {
    let mut fields = name.as_str().strip_prefix(&gaps(cluster))?.split('-');
    let mut number = || u64::from_str_radix(fields.next()?, 16).ok();
    let timeline = TimelineId::new(u32::try_from(number()?).ok()?)?;
    let found = Gap { timeline, from: Lsn::new(number()?)?, to: Lsn::new(number()?)? };
    (gap(cluster, &found) == *name).then_some(found)
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
        let part: Part = "0000000A000000010000000F.00000000-00002000".parse().unwrap();
        assert_eq!(
            wal_file(&cluster, &part).as_str(),
            "clusters/main/wal/0000000A/00000001/0000000A000000010000000F.00000000-00002000"
        );
        let (timeline, lsn) = (TimelineId::FIRST, |at| Lsn::new(at).unwrap());
        let missing = Gap { timeline, from: lsn(0x1_2000_0000), to: lsn(0x1_3000_0000) };
        let name = gap(&cluster, &missing);
        assert_eq!(name.as_str(), "clusters/main/gaps/00000001-0000000120000000-0000000130000000");
        assert_eq!(parse_gap(&cluster, &name), Some(missing));
        assert_eq!(parse_gap(&cluster, &object("clusters/main/gaps/1-2-3".into())), None);
    }

    #[test]
    fn cluster_names_cannot_leave_their_folder() {
        for text in ["", "..", "a/b", "-a", "A", "a b", "é", &"a".repeat(65)] {
            assert!(ClusterName::new(text).is_err(), "{text:?}");
        }
        assert!(ClusterName::new("prod-eu_1").is_ok());
    }
}
