//! The rights that a backup by files over SQL needs, and the statements that give them to a role of its own.

use pg::Major;
use pg::version::BackupFunctions;

/// The functions that list and read files, as `has_function_privilege` takes them. Only superusers may call them unless
/// granted. Source: `system_functions.sql`.
pub const FILE_FUNCTIONS: [&str; 3] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// The one that ends a segment, for backups whose WAL would otherwise wait for a quiet server.
pub const SWITCH_FUNCTION: &str = "pg_switch_wal()";

/// Those that tell of WAL summaries, from 17 on. Everybody may call them unless that was taken away.
pub const SUMMARY_FUNCTIONS: [&str; 2] = ["pg_available_wal_summaries()", "pg_get_wal_summarizer_state()"];

/// The script that makes a role which may take physical backups of a server of this major, and nothing else.
///
/// It holds no password; how the role logs in is for `pg_hba.conf` and its administrator. The names of databases and
/// contents of tables stay out of the role's reach by SQL, but not by the files, which hold everything.
pub fn script(major: Major, role: &str) -> String {
    let functions = major.facts().map_or(BackupFunctions::Renamed, |known| known.backup_functions);
    let name = quote(role);
    let mut lines = vec![
        format!(
            "-- A role for physical backups of PostgreSQL {major}, to be run by a superuser in database postgres."
        ),
        "-- pgkeep connects to that database. Whoever has the role can read every byte of the cluster."
            .to_owned(),
        format!("CREATE ROLE {name} LOGIN REPLICATION;"),
        "-- To start and stop a backup.".to_owned(),
    ];
    let grant = |function: &str| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {name};");
    lines.extend([functions.start_signature(), functions.stop_signature()].map(grant));
    lines.push("-- To list and read the files of the data directory.".to_owned());
    lines.extend(FILE_FUNCTIONS.map(grant));
    lines.push("-- To know the cluster by its identifier, and to end a segment of the WAL.".to_owned());
    lines.extend(
        ["pg_control_system()", "pg_control_checkpoint()", "pg_control_recovery()", SWITCH_FUNCTION]
            .map(grant),
    );
    lines.push("-- To see where the data directory is, and how WAL is archived.".to_owned());
    lines.push(format!("GRANT pg_read_all_settings TO {name};"));
    if major.facts().is_some_and(|known| known.wal_summaries) {
        lines.push("-- For `pgkeep backup --changed-by wal-summary`.".to_owned());
        lines.extend(SUMMARY_FUNCTIONS.map(grant));
    }
    lines.push(
        "-- Only for configuration files outside the data directory (Debian's /etc/postgresql):".to_owned(),
    );
    lines.push(format!("-- GRANT pg_read_server_files TO {name};"));
    lines.join("\n") + "\n"
}

/// A role's name as SQL takes it.
pub fn quote(role: &str) -> String {
    format!("\"{}\"", role.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_major_has_its_own_names_and_no_script_has_a_password() {
        for major in Major::supported() {
            let script = script(major, "back\"up");
            let old = major < Major::new(15);
            assert_eq!(script.contains("pg_start_backup(text, boolean, boolean)"), old);
            assert_eq!(script.contains("pg_backup_stop(boolean)"), !old);
            assert_eq!(script.contains("pg_available_wal_summaries()"), major >= Major::new(17));
            assert!(script.contains("CREATE ROLE \"back\"\"up\" LOGIN REPLICATION;"));
            assert!(!script.to_lowercase().contains("password"));
        }
    }
}
