//! One backup, in short and in full.

use jiff::Timestamp;
use pg::recovery::TargetTimeline;
use pg::{Lsn, Major};
use repository::logical::DatabaseRecord;
use repository::manifest::{BackupKind, Manifest};
use repository::{ClusterName, Repository};
use serde::Serialize;

use super::{CatalogueError, Range};
use crate::pin::{self, PinContent};
use crate::reachable::{ArchiveState, Hole, ReachableError, window};

/// One backup in short.
#[derive(Clone, Debug, Serialize)]
pub struct BackupSummary {
    /// Its id.
    pub id: String,
    /// `full` or `incremental`.
    pub kind: &'static str,
    /// Whether it is of rows and definitions.
    pub logical: bool,
    /// What the user called it.
    pub label: String,
    /// Server's clock at the start.
    pub started: Option<Timestamp>,
    /// Server's clock at the stop: the earliest moment it can be brought to.
    pub ended: Option<Timestamp>,
    /// Where recovery begins.
    pub start_lsn: Option<Lsn>,
    /// Where the backup is consistent.
    pub stop_lsn: Option<Lsn>,
    /// The timeline of both.
    pub timeline: u32,
    /// Major version of the server.
    pub postgresql: u16,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of files that were read.
    pub bytes_read: u64,
    /// Bytes that were stored anew, before compression.
    pub bytes_new: u64,
    /// Bytes added to the repository.
    pub bytes_stored: u64,
    /// Pages whose checksum did not match when they were read.
    pub damaged_pages: u64,
    /// Warnings of the run.
    pub warnings: usize,
}

/// A backup whose manifest cannot be read.
#[derive(Clone, Debug, Serialize)]
pub struct DamagedBackup {
    /// Its id.
    pub id: String,
    /// What is wrong with it.
    pub why: String,
}

/// Everything about one backup.
#[derive(Clone, Debug, Serialize)]
pub struct BackupDetail {
    /// The backup in short.
    #[serde(flatten)]
    pub summary: BackupSummary,
    /// The backup that it was compared with; `None` for a full one.
    pub parent: Option<String>,
    /// The cluster's backup before it.
    pub previous: Option<String>,
    /// The program that made it.
    pub program: String,
    /// From `pg_control`; text, because programs read large numbers wrong.
    pub system_identifier: String,
    /// The server's version, `150020`.
    pub server_version_num: u32,
    /// Where the data directory was.
    pub data_directory: String,
    /// The system user that owned it.
    pub owner: String,
    /// Whether the server kept checksums of its pages.
    pub data_checksums: bool,
    /// How many pages' checksums were verified.
    pub pages_verified: u64,
    /// Bytes of a WAL segment.
    pub wal_segment_size: u32,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<TablespaceDetail>,
    /// The packs that a restore reads.
    pub packs: PackUse,
    /// The damaged pages that are listed; [`BackupSummary::damaged_pages`] counts all.
    pub damage: Vec<DamagedPage>,
    /// Warnings of the run.
    pub warning_texts: Vec<String>,
    /// What it can be brought to; `None` when WAL that it needs is missing.
    pub reaches: Option<Range>,
    /// What is missing in the WAL after it.
    pub holes: Vec<String>,
    /// What keeps it from being expired.
    pub pins: Vec<PinContent>,
    /// The databases of a logical backup.
    pub databases: Vec<DatabaseDetail>,
}

/// A database of a logical backup.
#[derive(Clone, Debug, Serialize)]
pub struct DatabaseDetail {
    /// Its name.
    pub name: String,
    /// Its encoding.
    pub encoding: String,
    /// Tables whose rows are stored.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Large objects.
    pub large_objects: u64,
    /// What of it is not in the backup, and why.
    pub uncovered: Vec<String>,
}

impl DatabaseDetail {
    fn of(record: &DatabaseRecord) -> Self {
        Self {
            name: record.name.clone(),
            encoding: record.encoding.clone(),
            tables: record.tables,
            rows: record.rows,
            bytes: record.bytes,
            large_objects: record.large_objects,
            uncovered: record.uncovered.clone(),
        }
    }
}

/// A tablespace outside the data directory.
#[derive(Clone, Debug, Serialize)]
pub struct TablespaceDetail {
    /// Its OID.
    pub oid: u32,
    /// Where its link pointed.
    pub location: String,
}

/// What a backup uses of the packs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PackUse {
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// A page whose checksum did not match.
#[derive(Clone, Debug, Serialize)]
pub struct DamagedPage {
    /// The file.
    pub file: String,
    /// Block number in the relation.
    pub block: u32,
    /// The page's LSN.
    pub lsn: Option<Lsn>,
    /// Checksum in the page.
    pub checksum: u32,
    /// Checksum of its content.
    pub expected: u32,
}

impl BackupSummary {
    /// What the manifest says, in short.
    pub fn of(manifest: &Manifest) -> Self {
        let (span, totals, server) = (manifest.span(), manifest.totals(), manifest.server());
        Self {
            id: manifest.id.clone(),
            kind: match manifest.backup_kind() {
                BackupKind::Full => "full",
                BackupKind::Incremental => "incremental",
            },
            logical: manifest.is_logical(),
            label: manifest.label.clone(),
            started: Timestamp::from_microsecond(span.start_us).ok(),
            ended: Timestamp::from_microsecond(span.stop_us).ok(),
            start_lsn: Lsn::new(span.start_lsn),
            stop_lsn: Lsn::new(span.stop_lsn),
            timeline: span.timeline,
            postgresql: Major::from_server_version_num(server.version_num).number(),
            files: totals.files,
            bytes: totals.bytes,
            bytes_read: totals.bytes_read,
            bytes_new: totals.bytes_new,
            bytes_stored: totals.bytes_stored,
            damaged_pages: manifest.findings_total,
            warnings: manifest.warnings.len(),
        }
    }
}

impl BackupDetail {
    pub(super) async fn of(
        repository: &Repository,
        cluster: &ClusterName,
        state: &ArchiveState,
        manifest: &Manifest,
    ) -> Result<Self, CatalogueError> {
        let server = manifest.server();
        let mut pins = pin::shown(repository, cluster).await?;
        pins.retain(|pin| pin.backup == manifest.id);
        let expired = repository.expired(cluster).await?;
        let missed = |hole: &&Hole| !expired.has_wal_up_to(hole.to);
        let (reaches, holes) = if manifest.is_logical() {
            (None, Vec::new())
        } else {
            match window(repository, cluster, state, manifest, TargetTimeline::Latest).await {
                Ok(window) => (
                    Range::of(&window),
                    window.holes.iter().filter(missed).map(ToString::to_string).collect(),
                ),
                Err(error @ ReachableError::Repository(_)) => return Err(error.into()),
                Err(error) => (None, vec![error.to_string()]),
            }
        };
        Ok(Self {
            summary: BackupSummary::of(manifest),
            parent: Some(manifest.parent_id.clone()).filter(|id| !id.is_empty()),
            previous: Some(manifest.previous_id.clone()).filter(|id| !id.is_empty()),
            program: manifest.program.clone(),
            system_identifier: server.system_identifier.to_string(),
            server_version_num: server.version_num,
            data_directory: server.data_directory,
            owner: server.owner,
            data_checksums: server.data_checksums,
            pages_verified: manifest.totals().pages_verified,
            wal_segment_size: server.wal_segment_size,
            tablespaces: server
                .tablespaces
                .iter()
                .map(|one| TablespaceDetail { oid: one.oid, location: text(&one.location) })
                .collect(),
            packs: PackUse {
                count: manifest.packs.len(),
                bytes: manifest.packs.iter().map(|pack| pack.size).sum(),
            },
            damage: manifest.findings.iter().map(DamagedPage::of).collect(),
            warning_texts: manifest.warnings.clone(),
            reaches,
            holes,
            pins,
            databases: manifest
                .logical
                .iter()
                .flat_map(|record| &record.databases)
                .map(DatabaseDetail::of)
                .collect(),
        })
    }
}

impl DamagedPage {
    fn of(finding: &repository::manifest::PageFinding) -> Self {
        Self {
            file: text(&finding.path),
            block: finding.block,
            lsn: Lsn::new(finding.lsn),
            checksum: finding.found,
            expected: finding.computed,
        }
    }
}

/// Bytes of a path for people: what is no UTF-8 is replaced.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
