//! What differs between the majors of PostgreSQL, as a table.
//!
//! [`Major`] is any major; [`Major::facts`] answers for those in the table. Code asks the facts and never
//! compares numbers, so that a new major is one new row.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A major version of PostgreSQL, such as 17. Any number is a value; [`Major::is_supported`] says whether we
/// know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Major(u16);

/// What this program needs to know about one major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MajorFacts {
    /// The major these facts are of.
    pub major: Major,
    /// `PG_CONTROL_VERSION`, `catalog/pg_control.h`.
    pub control_version: u32,
    /// `CATALOG_VERSION_NO` of the releases, `catalog/catversion.h`. Betas had others.
    pub catalog_version: u32,
    /// `XLOG_PAGE_MAGIC`, `access/xlog_internal.h`.
    pub wal_magic: u16,
    /// How an online backup is started and stopped over SQL.
    pub backup_functions: BackupFunctions,
    /// `PostgreSQL-Backup-Manifest-Version` of the manifests its own tools write; its `pg_verifybackup` reads
    /// up to this one.
    pub manifest_version: u8,
    /// Whether the server keeps WAL summaries, and so has `pg_wal/summaries`.
    pub wal_summaries: bool,
    /// The first minor whose WAL summaries are not known to miss changes; `None` where there are no summaries. Those of
    /// earlier minors may, and a server that is updated keeps them. Source: release notes of 18.7, 2026-11-12.
    pub summaries_whole_from: Option<u32>,
    /// Whether the setting `promote_trigger_file` exists; 16 removed it.
    pub promote_trigger_file: bool,
}

/// The SQL functions of an online backup, which were renamed when exclusive backups were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupFunctions {
    /// `pg_start_backup(label, fast, exclusive => false)` and `pg_stop_backup(exclusive => false, wait)`: 13
    /// and 14.
    Exclusivity,
    /// `pg_backup_start(label, fast)` and `pg_backup_stop(wait)`: 15 and later.
    Renamed,
}

impl BackupFunctions {
    /// The name of the function that starts a backup.
    pub const fn start(self) -> &'static str {
        match self {
            BackupFunctions::Exclusivity => "pg_start_backup",
            BackupFunctions::Renamed => "pg_backup_start",
        }
    }

    /// The name of the function that stops a backup.
    pub const fn stop(self) -> &'static str {
        match self {
            BackupFunctions::Exclusivity => "pg_stop_backup",
            BackupFunctions::Renamed => "pg_backup_stop",
        }
    }

    /// The starting function with its argument types, as `has_function_privilege` takes it.
    pub const fn start_signature(self) -> &'static str {
        match self {
            BackupFunctions::Exclusivity => "pg_start_backup(text, boolean, boolean)",
            BackupFunctions::Renamed => "pg_backup_start(text, boolean)",
        }
    }

    /// The stopping function with its argument types, as `has_function_privilege` takes it.
    pub const fn stop_signature(self) -> &'static str {
        match self {
            BackupFunctions::Exclusivity => "pg_stop_backup(boolean, boolean)",
            BackupFunctions::Renamed => "pg_backup_stop(boolean)",
        }
    }
}

/// Every major we know, oldest first.
pub const KNOWN: [MajorFacts; 6] = [
    MajorFacts {
        major: Major(13),
        control_version: 1300,
        catalog_version: 202_007_201,
        wal_magic: 0xD106,
        backup_functions: BackupFunctions::Exclusivity,
        manifest_version: 1,
        wal_summaries: false,
        summaries_whole_from: None,
        promote_trigger_file: true,
    },
    MajorFacts {
        major: Major(14),
        control_version: 1300,
        catalog_version: 202_107_181,
        wal_magic: 0xD10D,
        backup_functions: BackupFunctions::Exclusivity,
        manifest_version: 1,
        wal_summaries: false,
        summaries_whole_from: None,
        promote_trigger_file: true,
    },
    MajorFacts {
        major: Major(15),
        control_version: 1300,
        catalog_version: 202_209_061,
        wal_magic: 0xD110,
        backup_functions: BackupFunctions::Renamed,
        manifest_version: 1,
        wal_summaries: false,
        summaries_whole_from: None,
        promote_trigger_file: true,
    },
    MajorFacts {
        major: Major(16),
        control_version: 1300,
        catalog_version: 202_307_071,
        wal_magic: 0xD113,
        backup_functions: BackupFunctions::Renamed,
        manifest_version: 1,
        wal_summaries: false,
        summaries_whole_from: None,
        promote_trigger_file: false,
    },
    MajorFacts {
        major: Major(17),
        control_version: 1700,
        catalog_version: 202_406_281,
        wal_magic: 0xD116,
        backup_functions: BackupFunctions::Renamed,
        manifest_version: 2,
        wal_summaries: true,
        summaries_whole_from: Some(13),
        promote_trigger_file: false,
    },
    MajorFacts {
        major: Major(18),
        control_version: 1800,
        catalog_version: 202_506_291,
        wal_magic: 0xD118,
        backup_functions: BackupFunctions::Renamed,
        manifest_version: 2,
        wal_summaries: true,
        summaries_whole_from: Some(7),
        promote_trigger_file: false,
    },
];

impl Major {
    /// The major with this number, known or not.
    pub const fn new(number: u16) -> Major {
        Major(number)
    }

    /// The major of a `server_version_num`, such as 150018. Before 10 a major had two parts; all of those
    /// come out as 9 or less, which is all we say about them.
    pub fn from_server_version_num(number: u32) -> Major {
        Major(u16::try_from(number / 10_000).unwrap_or(u16::MAX))
    }

    /// The major whose releases have this catalogue version; `None` for betas and for majors we do not know.
    pub fn from_catalog_version(catalog_version: u32) -> Option<Major> {
        KNOWN.iter().find(|facts| facts.catalog_version == catalog_version).map(|facts| facts.major)
    }

    /// The major that writes WAL pages with this magic number; `None` if we know of none.
    pub fn from_wal_magic(magic: u16) -> Option<Major> {
        KNOWN.iter().find(|facts| facts.wal_magic == magic).map(|facts| facts.major)
    }

    /// The number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// What we know of this major; `None` if nothing.
    pub fn facts(self) -> Option<&'static MajorFacts> {
        KNOWN.iter().find(|facts| facts.major == self)
    }

    /// Whether this program is made and tested for this major.
    pub fn is_supported(self) -> bool {
        self.facts().is_some()
    }

    /// Whether WAL summaries that a server of this `server_version_num` wrote may be relied on; not for majors that we do
    /// not know.
    pub fn writes_whole_summaries(server_version_num: u32) -> bool {
        let facts = Major::from_server_version_num(server_version_num).facts();
        facts
            .and_then(|facts| facts.summaries_whole_from)
            .is_some_and(|least| server_version_num % 10_000 >= least)
    }

    /// Every supported major, oldest first.
    pub fn supported() -> impl DoubleEndedIterator<Item = Major> + ExactSizeIterator {
        KNOWN.iter().map(|facts| facts.major)
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Major {
    type Err = MajorError;

    /// Reads a number, or the first line of a `PG_VERSION` file (`15\n`; before 10, `9.6\n`).
    fn from_str(text: &str) -> Result<Major, MajorError> {
        let digits = text.trim_end().split('.').next().unwrap_or_default();
        let digits_only = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digits_only
            .then(|| digits.parse().ok().map(Major))
            .flatten()
            .ok_or_else(|| MajorError { text: text.trim_end().to_owned() })
    }
}

/// Text that names no major version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read PostgreSQL version {text:?}: expected a major such as 17")]
pub struct MajorError {
    /// What was read.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_without_twins() {
        for pair in KNOWN.windows(2) {
            assert!(pair[0].major < pair[1].major);
            assert!(pair[0].wal_magic < pair[1].wal_magic);
            assert!(pair[0].catalog_version < pair[1].catalog_version);
            assert!(pair[0].control_version <= pair[1].control_version);
        }
        assert_eq!(Major::supported().map(Major::number).collect::<Vec<_>>(), [13, 14, 15, 16, 17, 18]);
    }

    #[test]
    fn a_major_is_found_by_any_of_its_numbers() {
        assert_eq!(Major::from_server_version_num(150_018), Major::new(15));
        assert_eq!(Major::from_server_version_num(90_624), Major::new(9));
        assert_eq!(Major::from_server_version_num(u32::MAX), Major::new(u16::MAX));
        assert_eq!(Major::from_catalog_version(202_209_061), Some(Major::new(15)));
        assert_eq!(Major::from_wal_magic(0xD118), Some(Major::new(18)));
        assert_eq!(Major::from_wal_magic(0xD105), None);
    }

    #[test]
    fn a_version_file_is_read() {
        assert_eq!("15\n".parse(), Ok(Major::new(15)));
        assert_eq!("9.6\n".parse(), Ok(Major::new(9)));
        for text in ["", "\n", "x", "-1", "99999", ".6"] {
            assert!(text.parse::<Major>().is_err(), "{text}");
        }
    }

    #[test]
    fn summaries_are_whole_from_a_minor_on() {
        for (version, whole) in [
            (160_020, false),
            (170_012, false),
            (170_013, true),
            (180_004, false),
            (180_006, false),
            (180_007, true),
            (190_009, false),
        ] {
            assert_eq!(Major::writes_whole_summaries(version), whole, "{version}");
        }
        assert!(KNOWN.iter().all(|facts| facts.wal_summaries == facts.summaries_whole_from.is_some()));
    }

    #[test]
    fn an_unknown_major_is_not_supported() {
        assert!(Major::new(15).is_supported());
        assert!(!Major::new(12).is_supported());
        assert!(!Major::new(19).is_supported());
    }
}
