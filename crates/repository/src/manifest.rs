//! Manifests: everything a restore must know of one backup, whole in itself.
//!
//! The root names the list pages, the packs and the facts of the backup; the pages name the files. A manifest is the
//! last object that a backup writes: a backup exists when its manifest does. `docs/format.md` §6.

use pg::control::CONTROL_FILE_SIZE;
use prost::Message;

use crate::content::{ContentError, Extent};
use crate::layout::PackId;
use crate::logical::LogicalRecord;

mod pack_ref;

pub use pack_ref::PackRef;

/// Whether a backup stands on what earlier ones stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum BackupKind {
    /// Everything was read and stored anew.
    Full = 0,
    /// What earlier backups stored was named again.
    Incremental = 1,
}

/// The root of one backup.
#[derive(Clone, PartialEq, Message)]
pub struct Manifest {
    /// The backup's id: `20261122T020000Z-full`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Full or incremental.
    #[prost(enumeration = "BackupKind", tag = "2")]
    pub kind: i32,
    /// The cluster's name in the repository.
    #[prost(string, tag = "3")]
    pub cluster: String,
    /// One more than the previous manifest's.
    #[prost(uint64, tag = "4")]
    pub sequence: u64,
    /// Id of the cluster's previous backup; empty for the first.
    #[prost(string, tag = "5")]
    pub previous_id: String,
    /// Content digest of the previous manifest's stored bytes; empty for the first.
    #[prost(bytes = "vec", tag = "6")]
    pub previous_digest: Vec<u8>,
    /// Id of the backup that this one was compared with; empty for a full backup.
    #[prost(string, tag = "7")]
    pub parent_id: String,
    /// The server that was backed up.
    #[prost(message, optional, tag = "8")]
    pub server: Option<ServerRecord>,
    /// From where to where in the WAL.
    #[prost(message, optional, tag = "9")]
    pub span: Option<Span>,
    /// The `backup_label` file as `pg_backup_stop` gave it.
    #[prost(bytes = "vec", tag = "10")]
    pub backup_label: Vec<u8>,
    /// The tablespace map as `pg_backup_stop` gave it.
    #[prost(bytes = "vec", tag = "11")]
    pub tablespace_map: Vec<u8>,
    /// The list pages, in path order.
    #[prost(message, repeated, tag = "12")]
    pub pages: Vec<PageRef>,
    /// Every pack that pages, leaves and extents name.
    #[prost(message, repeated, tag = "13")]
    pub packs: Vec<PackRef>,
    /// Sums.
    #[prost(message, optional, tag = "14")]
    pub totals: Option<Totals>,
    /// Pages whose checksum did not match, at most [`MAX_FINDINGS`].
    #[prost(message, repeated, tag = "15")]
    pub findings: Vec<PageFinding>,
    /// How many pages' checksums did not match in all.
    #[prost(uint64, tag = "16")]
    pub findings_total: u64,
    /// When everything was last read and compared, whatever the files' times said: microseconds since 1970.
    #[prost(sint64, tag = "17")]
    pub reread_at_us: i64,
    /// The program that wrote this.
    #[prost(string, tag = "18")]
    pub program: String,
    /// What the user called this backup.
    #[prost(string, tag = "19")]
    pub label: String,
    /// Warnings of the run, for people.
    #[prost(string, repeated, tag = "20")]
    pub warnings: Vec<String>,
    /// The control file, read last, without its trailing zeros. It stands here and not in the file list because a
    /// restore writes it last, and because it changes with every backup.
    #[prost(bytes = "vec", tag = "21")]
    pub control_file: Vec<u8>,
    /// Configuration that lies outside the data directory, as on Debian.
    #[prost(message, repeated, tag = "22")]
    pub config_files: Vec<ConfigFile>,
    /// Of a logical backup: which databases are in it. Absent for a physical one.
    #[prost(message, optional, tag = "23")]
    pub logical: Option<LogicalRecord>,
}

/// A configuration file outside the data directory.
#[derive(Clone, PartialEq, Message)]
pub struct ConfigFile {
    /// Where it was.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Its content.
    #[prost(bytes = "vec", tag = "2")]
    pub content: Vec<u8>,
}

/// More findings than this are only counted.
pub const MAX_FINDINGS: usize = 1000;

/// What was backed up.
#[derive(Clone, PartialEq, Message)]
pub struct ServerRecord {
    /// From `pg_control`.
    #[prost(fixed64, tag = "1")]
    pub system_identifier: u64,
    /// `server_version_num`.
    #[prost(uint32, tag = "2")]
    pub version_num: u32,
    /// From `pg_control`.
    #[prost(uint32, tag = "3")]
    pub catalog_version: u32,
    /// From `pg_control`.
    #[prost(uint32, tag = "4")]
    pub control_version: u32,
    /// Bytes.
    #[prost(uint32, tag = "5")]
    pub wal_segment_size: u32,
    /// Bytes of a database page.
    #[prost(uint32, tag = "6")]
    pub block_size: u32,
    /// Whether data checksums were on.
    #[prost(bool, tag = "7")]
    pub data_checksums: bool,
    /// Where the data directory was.
    #[prost(string, tag = "8")]
    pub data_directory: String,
    /// Name of the system user that owned it; empty when the id has no name.
    #[prost(string, tag = "9")]
    pub owner: String,
    /// Permission bits of the data directory.
    #[prost(uint32, tag = "10")]
    pub directory_mode: u32,
    /// Tablespaces outside the data directory.
    #[prost(message, repeated, tag = "11")]
    pub tablespaces: Vec<TablespaceRecord>,
}

/// A tablespace outside the data directory.
#[derive(Clone, PartialEq, Message)]
pub struct TablespaceRecord {
    /// Its OID, the name of its link.
    #[prost(uint32, tag = "1")]
    pub oid: u32,
    /// Where its link pointed.
    #[prost(bytes = "vec", tag = "2")]
    pub location: Vec<u8>,
}

/// The backup's place in the WAL and in time.
#[derive(Clone, PartialEq, Message)]
pub struct Span {
    /// Where recovery begins.
    #[prost(uint64, tag = "1")]
    pub start_lsn: u64,
    /// Where the backup is consistent; WAL up to here is needed by any restore.
    #[prost(uint64, tag = "2")]
    pub stop_lsn: u64,
    /// The timeline of both.
    #[prost(uint32, tag = "3")]
    pub timeline: u32,
    /// Server's clock at the start, microseconds since 1970.
    #[prost(sint64, tag = "4")]
    pub start_us: i64,
    /// Server's clock at the stop, microseconds since 1970.
    #[prost(sint64, tag = "5")]
    pub stop_us: i64,
    /// Filesystem clock before the first file was read, nanoseconds since 1970: a ctime below this was settled then.
    #[prost(sint64, tag = "6")]
    pub settled_before_ns: i64,
}

/// Where a list page is.
#[derive(Clone, PartialEq, Message)]
pub struct PageRef {
    /// Path of its first entry.
    #[prost(bytes = "vec", tag = "1")]
    pub first_path: Vec<u8>,
    /// Digest of its bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pack: Vec<u8>,
    #[prost(uint32, tag = "4")]
    chunk: u32,
    #[prost(uint32, tag = "5")]
    offset: u32,
    #[prost(uint32, tag = "6")]
    length: u32,
}

impl PageRef {
    pub(crate) fn new(first_path: Vec<u8>, digest: [u8; 32], at: Extent) -> Self {
        Self {
            first_path,
            digest: digest.to_vec(),
            pack: at.pack.0.to_vec(),
            chunk: at.chunk,
            offset: at.offset,
            length: at.length as u32,
        }
    }

    /// Where the page's bytes are.
    pub fn extent(&self) -> Result<Extent, ContentError> {
        let pack = self.pack[..]
            .try_into()
            .map(PackId)
            .map_err(|_| ContentError { what: "pack id of a list page" })?;
        Ok(Extent { pack, chunk: self.chunk, offset: self.offset, length: u64::from(self.length) })
    }
}

/// Sums of one backup.
#[derive(Clone, PartialEq, Message)]
pub struct Totals {
    /// Regular files.
    #[prost(uint64, tag = "1")]
    pub files: u64,
    /// Their bytes.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Bytes of files that were read.
    #[prost(uint64, tag = "3")]
    pub bytes_read: u64,
    /// Bytes of pages that were stored anew, before compression.
    #[prost(uint64, tag = "4")]
    pub bytes_new: u64,
    /// Bytes added to the repository, the manifest left out.
    #[prost(uint64, tag = "5")]
    pub bytes_stored: u64,
    /// Pages whose checksum was verified.
    #[prost(uint64, tag = "6")]
    pub pages_verified: u64,
}

/// A page whose checksum did not match when it was backed up.
#[derive(Clone, PartialEq, Message)]
pub struct PageFinding {
    /// The file.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Block number in its relation.
    #[prost(uint32, tag = "2")]
    pub block: u32,
    /// The page's LSN; zero when it has none.
    #[prost(uint64, tag = "3")]
    pub lsn: u64,
    /// Checksum in the page.
    #[prost(uint32, tag = "4")]
    pub found: u32,
    /// Checksum of its content.
    #[prost(uint32, tag = "5")]
    pub computed: u32,
}

impl Manifest {
    /// Full or incremental.
    pub fn backup_kind(&self) -> BackupKind {
        BackupKind::try_from(self.kind).unwrap_or(BackupKind::Full)
    }

    /// The server's record; an empty one for a manifest that lacks it.
    pub fn server(&self) -> ServerRecord {
        self.server.clone().unwrap_or_default()
    }

    /// Whether it is of rows and definitions, and stands in no WAL.
    pub fn is_logical(&self) -> bool {
        self.logical.is_some()
    }

    /// The backup's place in WAL and time.
    pub fn span(&self) -> Span {
        self.span.clone().unwrap_or_default()
    }

    /// The sums.
    pub fn totals(&self) -> Totals {
        self.totals.clone().unwrap_or_default()
    }

    /// The whole control file; the zeros that it is stored without may belong to its CRC.
    pub fn whole_control_file(&self) -> Vec<u8> {
        self.control_file.iter().copied().chain(std::iter::repeat(0)).take(CONTROL_FILE_SIZE).collect()
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, ContentError> {
        let bad = |_| ContentError { what: "manifest" };
        if !is_bounded(bytes).map_err(bad)? {
            return Err(ContentError { what: "manifest with empty elements beyond measure" });
        }
        Self::decode(bytes).map_err(bad)
    }
}

/// Bytes of a list element at the least, on average: a pack takes about 33, a list page more.
const ELEMENT_BYTES: usize = 24;
/// So many fields a manifest may have whatever its length.
const FEW_FIELDS: usize = 4096;
/// Bytes of a server's record at most: thousands of tablespaces.
const MAX_SERVER_RECORD: usize = 1 << 20;
const SERVER_TAG: u32 = 8;

/// Whether decoding takes a small multiple of the bytes. Two bytes make an empty element of a list, and eighty in memory:
/// a writer gone bad could fill the memory of whoever restores.
fn is_bounded(bytes: &[u8]) -> Result<bool, prost::DecodeError> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let (mut rest, mut fields) = (bytes, 0);
    while !rest.is_empty() {
        let before = rest.len();
        let (tag, wire_type) = decode_key(&mut rest)?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
        if tag == SERVER_TAG && before - rest.len() > MAX_SERVER_RECORD {
            return Ok(false);
        }
        fields += 1;
    }
    Ok(fields <= FEW_FIELDS + bytes.len() / ELEMENT_BYTES)
}
