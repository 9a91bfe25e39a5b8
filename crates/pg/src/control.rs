//! `global/pg_control`: what a cluster is and how far it got.

use jiff::Timestamp;

use crate::wal::SegmentSize;
use crate::{Lsn, Major, TimelineId, page, timestamp};

/// Bytes of the whole file, of which only the first few hundred are used: `PG_CONTROL_FILE_SIZE`.
pub const CONTROL_FILE_SIZE: usize = 8192;

/// The constant that shows whether floating point numbers are laid out as here: `FLOATFORMAT_VALUE`.
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// The contents of `pg_control`, from `ControlFileData` in `catalog/pg_control.h`.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlFile {
    /// The cluster's identity, given by `initdb` and kept for ever. Unsigned, though SQL shows it signed.
    pub system_identifier: u64,
    /// The layout of this file.
    pub control_version: u32,
    /// The layout of the system catalogues.
    pub catalog_version: u32,
    /// What the server was doing when it last wrote the file.
    pub state: ClusterState,
    /// When it last wrote the file; `None` if the stored moment is out of range.
    pub modified: Option<Timestamp>,
    /// The last checkpoint.
    pub checkpoint: Checkpoint,
    /// During and after archive recovery: replay must reach this before the cluster is consistent.
    pub min_recovery_point: Option<Lsn>,
    /// The timeline of [`ControlFile::min_recovery_point`].
    pub min_recovery_timeline: Option<TimelineId>,
    /// While a backup is being recovered: where that backup started.
    pub backup_start: Option<Lsn>,
    /// While a backup taken from a standby is being recovered: replay must reach this.
    pub backup_end: Option<Lsn>,
    /// Whether recovery must see the record that ends the backup.
    pub backup_end_required: bool,
    /// `wal_level` of the running server.
    pub wal_level: WalLevel,
    /// `wal_log_hints` of the running server.
    pub wal_log_hints: bool,
    /// Limits that a standby of this cluster must not go below, in the order of the file: `max_connections`,
    /// `max_worker_processes`, `max_wal_senders`, `max_prepared_transactions`, `max_locks_per_transaction`.
    pub limits: [i32; 5],
    /// Bytes in a data page. Always [`page::PAGE_SIZE`]; others are refused.
    pub block_size: u32,
    /// Pages in one segment file of a large relation; 131072 (1 GiB) unless built otherwise.
    pub segment_blocks: u32,
    /// Bytes in a page of WAL.
    pub wal_block_size: u32,
    /// The size of a WAL segment.
    pub wal_segment_size: SegmentSize,
    /// 0 without data checksums, 1 with them.
    pub data_checksum_version: u32,
}

/// A checkpoint as the control file copies it, from `CheckPoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where the checkpoint record lies.
    pub location: Lsn,
    /// Where replay from it begins.
    pub redo: Lsn,
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// The timeline before, if this checkpoint began a new one; otherwise the same.
    pub previous_timeline: TimelineId,
    /// `full_page_writes` at that moment.
    pub full_page_writes: bool,
    /// The next transaction id, with the epoch in the high 32 bits.
    pub next_xid: u64,
    /// When it was made; `None` if the stored moment is out of range.
    pub time: Option<Timestamp>,
}

/// What the server was doing, `DBState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Just made, or starting.
    StartingUp,
    /// Shut down cleanly as a primary.
    ShutDown,
    /// Shut down cleanly as a standby.
    ShutDownInRecovery,
    /// Shutting down, or died doing so.
    ShuttingDown,
    /// Replaying its own WAL after a crash, or died doing so.
    InCrashRecovery,
    /// Replaying archived WAL (standbys too), or died doing so.
    InArchiveRecovery,
    /// Running as a primary, or died doing so.
    InProduction,
}

/// How much the server writes to its log, `WalLevel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Too little for archiving.
    Minimal,
    /// Enough for archiving.
    Replica,
    /// More.
    Logical,
}

/// A control file we cannot use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ControlError {
    /// Cut off.
    #[error("read pg_control: {length} bytes, expected at least {expected}")]
    TooShort {
        /// Bytes that there are.
        length: usize,
        /// Bytes that hold data.
        expected: usize,
    },
    /// Damaged, or read while the server wrote it: worth reading again.
    #[error("read pg_control: its bytes have CRC {computed:08x}, it says {stored:08x}")]
    Checksum {
        /// What the file says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A major we do not know, or no control file at all.
    #[error("read pg_control: unknown version {version}, expected 1300, 1700 or 1800 (PostgreSQL 13 to 18)")]
    UnknownVersion {
        /// `pg_control_version`.
        version: u32,
    },
    /// From a machine or build whose data files are laid out in another way.
    #[error("read pg_control: {what} is {found}, only {expected} is supported")]
    Layout {
        /// Which property.
        what: &'static str,
        /// What the cluster has.
        found: String,
        /// What we understand.
        expected: String,
    },
    /// A value that no server writes, under a right CRC.
    #[error("read pg_control: {what} cannot be {found}")]
    Value {
        /// Which field.
        what: &'static str,
        /// What it holds.
        found: u64,
    },
}

impl ControlError {
    /// Whether the file may simply have been caught half written, so that reading again can help. Source: the
    /// retries of `get_controlfile`, `common/controldata_utils.c`.
    pub fn is_transient(&self) -> bool {
        matches!(self, ControlError::Checksum { .. })
    }
}

/// Where the fields lie; they have not moved from 13 to 18. In 17 `CheckPoint` grew `wal_level` inside former
/// padding; in 18 a flag went in before the nonce, which moved only the CRC.
mod at {
    pub const SYSTEM_IDENTIFIER: usize = 0;
    pub const CONTROL_VERSION: usize = 8;
    pub const CATALOG_VERSION: usize = 12;
    pub const STATE: usize = 16;
    pub const TIME: usize = 24;
    pub const CHECKPOINT: usize = 32;
    pub const REDO: usize = 40;
    pub const TIMELINE: usize = 48;
    pub const PREVIOUS_TIMELINE: usize = 52;
    pub const FULL_PAGE_WRITES: usize = 56;
    pub const NEXT_XID: usize = 64;
    pub const CHECKPOINT_TIME: usize = 104;
    pub const MIN_RECOVERY_POINT: usize = 136;
    pub const MIN_RECOVERY_TIMELINE: usize = 144;
    pub const BACKUP_START: usize = 152;
    pub const BACKUP_END: usize = 160;
    pub const BACKUP_END_REQUIRED: usize = 168;
    pub const WAL_LEVEL: usize = 172;
    pub const WAL_LOG_HINTS: usize = 176;
    pub const LIMITS: [usize; 5] = [180, 184, 188, 192, 196];
    pub const MAX_ALIGN: usize = 204;
    pub const FLOAT_FORMAT: usize = 208;
    pub const BLOCK_SIZE: usize = 216;
    pub const SEGMENT_BLOCKS: usize = 220;
    pub const WAL_BLOCK_SIZE: usize = 224;
    pub const WAL_SEGMENT_SIZE: usize = 228;
    pub const DATA_CHECKSUM_VERSION: usize = 252;
    pub const CRC_1700: usize = 288;
    pub const CRC_1800: usize = 292;
}

impl ControlFile {
    /// Reads the file of a cluster of PostgreSQL 13 to 18 from a little-endian 64-bit machine, and checks its
    /// CRC-32C. The zeroes that fill the file up to [`CONTROL_FILE_SIZE`] may be missing.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlError> {
        let fields = checked_fields(bytes)?;
        let control = ControlFile {
            system_identifier: fields.u64(at::SYSTEM_IDENTIFIER),
            control_version: fields.u32(at::CONTROL_VERSION),
            catalog_version: fields.u32(at::CATALOG_VERSION),
            state: fields.state()?,
            modified: timestamp::from_unix_seconds(fields.u64(at::TIME) as i64),
            checkpoint: fields.checkpoint()?,
            min_recovery_point: Lsn::new(fields.u64(at::MIN_RECOVERY_POINT)),
            min_recovery_timeline: TimelineId::new(fields.u32(at::MIN_RECOVERY_TIMELINE)),
            backup_start: Lsn::new(fields.u64(at::BACKUP_START)),
            backup_end: Lsn::new(fields.u64(at::BACKUP_END)),
            backup_end_required: fields.flag(at::BACKUP_END_REQUIRED),
            wal_level: fields.wal_level()?,
            wal_log_hints: fields.flag(at::WAL_LOG_HINTS),
            limits: at::LIMITS.map(|at| fields.u32(at) as i32),
            block_size: fields.u32(at::BLOCK_SIZE),
            segment_blocks: fields.u32(at::SEGMENT_BLOCKS),
            wal_block_size: fields.u32(at::WAL_BLOCK_SIZE),
            wal_segment_size: SegmentSize::new(fields.u32(at::WAL_SEGMENT_SIZE))
                .map_err(|error| ControlError::Value { what: "the WAL segment size", found: error.bytes })?,
            data_checksum_version: fields.u32(at::DATA_CHECKSUM_VERSION),
        };
        if control.segment_blocks == 0 {
            return Err(ControlError::Value { what: "the number of blocks per segment", found: 0 });
        }
        if !control.wal_block_size.is_power_of_two() || !(1024..=65_536).contains(&control.wal_block_size) {
            let found = control.wal_block_size.into();
            return Err(ControlError::Value { what: "the WAL block size", found });
        }
        Ok(control)
    }

    /// The major whose releases make such a cluster; `None` for the catalogues of a beta.
    pub fn major(&self) -> Option<Major> {
        Major::from_catalog_version(self.catalog_version)
    }

    /// Whether data pages carry checksums.
    pub fn has_data_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }
}

/// The fields, once length, version, CRC and layout are known to be right.
fn checked_fields(bytes: &[u8]) -> Result<Fields<'_>, ControlError> {
    if bytes.len() < at::CATALOG_VERSION {
        return Err(ControlError::TooShort { length: bytes.len(), expected: at::CRC_1700 + 4 });
    }
    let fields = Fields(bytes);
    let crc_at = match fields.u32(at::CONTROL_VERSION) {
        1300 | 1700 => at::CRC_1700,
        1800 => at::CRC_1800,
        version => return Err(ControlError::UnknownVersion { version }),
    };
    if bytes.len() < crc_at + 4 {
        return Err(ControlError::TooShort { length: bytes.len(), expected: crc_at + 4 });
    }
    let (stored, computed) = (fields.u32(crc_at), crc32c::crc32c(&bytes[..crc_at]));
    if stored != computed {
        return Err(ControlError::Checksum { stored, computed });
    }
    let float = f64::from_bits(fields.u64(at::FLOAT_FORMAT));
    let layouts = [
        ("the alignment of tuples", fields.u32(at::MAX_ALIGN).to_string(), 8.to_string()),
        ("the test number for floating point", float.to_string(), FLOAT_FORMAT.to_string()),
        ("the block size", fields.u32(at::BLOCK_SIZE).to_string(), page::PAGE_SIZE.to_string()),
    ];
    match layouts.into_iter().find(|(_, found, expected)| found != expected) {
        Some((what, found, expected)) => Err(ControlError::Layout { what, found, expected }),
        None => Ok(fields),
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("the slice has N bytes")
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    fn flag(&self, at: usize) -> bool {
        self.0[at] != 0
    }

    fn lsn(&self, at: usize, what: &'static str) -> Result<Lsn, ControlError> {
        Lsn::new(self.u64(at)).ok_or(ControlError::Value { what, found: 0 })
    }

    fn timeline(&self, at: usize) -> Result<TimelineId, ControlError> {
        TimelineId::new(self.u32(at))
            .ok_or(ControlError::Value { what: "the checkpoint's timeline", found: 0 })
    }

    fn checkpoint(&self) -> Result<Checkpoint, ControlError> {
        Ok(Checkpoint {
            location: self.lsn(at::CHECKPOINT, "the checkpoint's location")?,
            redo: self.lsn(at::REDO, "the checkpoint's redo location")?,
            timeline: self.timeline(at::TIMELINE)?,
            previous_timeline: self.timeline(at::PREVIOUS_TIMELINE)?,
            full_page_writes: self.flag(at::FULL_PAGE_WRITES),
            next_xid: self.u64(at::NEXT_XID),
            time: timestamp::from_unix_seconds(self.u64(at::CHECKPOINT_TIME) as i64),
        })
    }

    fn state(&self) -> Result<ClusterState, ControlError> {
        Ok(match self.u32(at::STATE) {
            0 => ClusterState::StartingUp,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::InCrashRecovery,
            5 => ClusterState::InArchiveRecovery,
            6 => ClusterState::InProduction,
            found => {
                return Err(ControlError::Value { what: "the state of the cluster", found: found.into() });
            }
        })
    }

    fn wal_level(&self) -> Result<WalLevel, ControlError> {
        Ok(match self.u32(at::WAL_LEVEL) {
            0 => WalLevel::Minimal,
            1 => WalLevel::Replica,
            2 => WalLevel::Logical,
            found => return Err(ControlError::Value { what: "wal_level", found: found.into() }),
        })
    }
}

#[cfg(test)]
mod tests;
