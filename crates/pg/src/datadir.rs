//! The data directory: which of its files belong in a backup, and what a relation file's name says.
//!
//! Paths are bytes, relative to the data directory, separated by `/`, without a leading `./`. Tablespaces are
//! seen through their links, as `pg_tblspc/<oid>/PG_15_202209061/…`.

mod relation;

pub use relation::{Fork, RelationFile, Tablespace, first_block, has_page_checksums, is_temporary_relation};

use crate::Major;

/// The control file. It is read last in a backup and written last in a restore, so that no directory looks
/// like a cluster before it is one.
pub const CONTROL_FILE: &[u8] = b"global/pg_control";

/// Directories the server empties or rebuilds when it starts; kept, empty, for their permissions.
/// Source: `excludeDirContents`, `backup/basebackup.c`.
const EMPTIED: [&[u8]; 7] = [
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_replslot",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat_tmp",
    b"pg_subtrans",
];

/// Directories of the log. Its segments come from the archive.
const LOG_DIRECTORIES: [&[u8]; 3] = [b"pg_wal", b"pg_wal/archive_status", b"pg_wal/summaries"];

/// Files at the top of the data directory that belong to the running server, to an earlier backup, or to the
/// backup itself, which brings its own. Source: `excludeFiles`, `backup/basebackup.c`, and the names that a
/// finished or cancelled recovery gives to two of them.
const TOP_FILES: [&[u8]; 9] = [
    b"backup_label",
    b"backup_label.old",
    b"backup_manifest",
    b"current_logfiles.tmp",
    b"postgresql.auto.conf.tmp",
    b"postmaster.opts",
    b"postmaster.pid",
    b"tablespace_map",
    b"tablespace_map.old",
];

/// The start of the names of temporary files and directories, anywhere: `PG_TEMP_FILE_PREFIX`.
const TEMPORARY_PREFIX: &[u8] = b"pgsql_tmp";

/// The start of the names of relation caches, anywhere: `RELCACHE_INIT_FILENAME`. They are rebuilt at need.
const RELATION_CACHE_PREFIX: &[u8] = b"pg_internal.init";

/// The start of the names of files that we leave in a data directory ourselves.
const OUR_PREFIX: &[u8] = b"pgkeep-";

/// What a backup does with one entry of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Stores it; of a directory, the directory and what is in it.
    Copy,
    /// Stores the directory without anything in it, and does not look into it.
    KeepEmptyDir,
    /// Leaves the file out.
    SkipFile,
    /// Leaves the directory out with everything in it.
    SkipDir,
}

/// The rule for the entry at `path`. A symbolic link in place of a directory (`pg_wal` is often one) is
/// judged as the directory: pass `is_dir` as true for it.
///
/// The names that the server excludes by name alone at any depth are excluded so here, except those that only
/// ever lie at the top: a file of an extension deeper down may be called as it likes. Whether a relation is
/// unlogged depends on its neighbours and is the caller's to decide, see [`RelationFile::init_fork_of`].
/// Source: `sendDir`, `backup/basebackup.c`.
pub fn classify(path: &[u8], is_dir: bool) -> Rule {
    let skip = if is_dir { Rule::SkipDir } else { Rule::SkipFile };
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
    let top = path.split(|&b| b == b'/').next().unwrap_or(path);
    if name.starts_with(TEMPORARY_PREFIX) || name.starts_with(RELATION_CACHE_PREFIX) && !is_dir {
        return skip;
    }
    if EMPTIED.contains(&top) || top == b"pg_wal" {
        let kept = is_dir && (EMPTIED.contains(&path) || LOG_DIRECTORIES.contains(&path));
        return if kept { Rule::KeepEmptyDir } else { skip };
    }
    let at_top = name.len() == path.len();
    if at_top && (name.starts_with(OUR_PREFIX) || !is_dir && TOP_FILES.contains(&name)) {
        return skip;
    }
    if !is_dir && is_temporary_relation(path) {
        return Rule::SkipFile;
    }
    Rule::Copy
}

/// The directory of one server inside a tablespace, such as `PG_15_202209061`. Clusters of other majors may
/// share the tablespace's location, each with its own. Source: `TABLESPACE_VERSION_DIRECTORY`,
/// `common/relpath.h`.
pub fn tablespace_version_directory(major: Major, catalog_version: u32) -> String {
    format!("PG_{major}_{catalog_version}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_server_rebuilds_is_kept_empty() {
        for directory in EMPTIED.into_iter().chain(LOG_DIRECTORIES) {
            assert_eq!(classify(directory, true), Rule::KeepEmptyDir);
            assert_eq!(classify(&[directory, b"/0000"].concat(), false), Rule::SkipFile);
            assert_eq!(classify(&[directory, b"/slot"].concat(), true), Rule::SkipDir);
        }
        for directory in
            [&b"pg_stat"[..], b"base", b"pg_walx", b"base/pg_notify", b"pg_logical", b"pg_tblspc"]
        {
            assert_eq!(classify(directory, true), Rule::Copy);
        }
    }

    #[test]
    fn what_belongs_to_the_running_server_stays_behind() {
        for file in TOP_FILES.into_iter().chain([
            &b"pgsql_tmp123"[..],
            b"base/pgsql_tmp/pgsql_tmp7.1",
            b"base/5/pg_internal.init",
            b"global/pg_internal.init.4711",
            b"pgkeep-restore",
            b"pg_replslot/a/state",
            b"base/5/t3_16384",
        ]) {
            assert_eq!(classify(file, false), Rule::SkipFile, "{}", file.escape_ascii());
        }
        assert_eq!(classify(b"base/pgsql_tmp", true), Rule::SkipDir);
        assert_eq!(classify(b"pg_tblspc/16385/PG_15_202209061/pgsql_tmp", true), Rule::SkipDir);
    }

    #[test]
    fn everything_else_is_copied() {
        for file in [
            &b"PG_VERSION"[..],
            b"global/pg_control",
            b"global/pg_filenode.map",
            b"postgresql.auto.conf",
            b"current_logfiles",
            b"standby.signal",
            b"pg_stat/pgstat.stat",
            b"base/5/16384_init",
            b"extension/backup_manifest",
            b"pg_xact/0000",
            b"\xff\xfe",
        ] {
            assert_eq!(classify(file, false), Rule::Copy, "{}", file.escape_ascii());
        }
    }

    #[test]
    fn a_tablespace_holds_one_directory_of_each_server() {
        assert_eq!(tablespace_version_directory(Major::new(15), 202_209_061), "PG_15_202209061");
    }

    proptest! {
        #[test]
        fn any_path_has_a_rule(path: Vec<u8>, is_dir: bool) {
            let rule = classify(&path, is_dir);
            let of_the_other_kind = if is_dir { Rule::SkipFile } else { Rule::SkipDir };
            prop_assert_ne!(rule, of_the_other_kind);
        }
    }
}
