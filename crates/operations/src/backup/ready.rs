//! Whether the server can be backed up as it is, from where this runs.

use pg::control::ControlFile;
use repository::archive::Identity;
use server::facts::{ArchiveMode, ServerFacts};
use server::files::LocalFiles;

use super::BackupError;

pub(crate) fn open_files(facts: &ServerFacts) -> Result<LocalFiles, BackupError> {
    let Some(directory) = &facts.data_directory else {
        return Err(BackupError::NotReady {
            what: format!("role {} may not see where the data directory is", facts.role),
            hint: "grant it pg_read_all_settings, or connect as a superuser".into(),
        });
    };
    LocalFiles::new(directory).map_err(|error| match error {
        server::files::FilesError::DataDirectory { path, source } => BackupError::NotReady {
            what: format!("the data directory {} cannot be read here: {source}", path.display()),
            hint: "run pgkeep on the database server, as the user that PostgreSQL runs as".into(),
        },
        other => other.into(),
    })
}

pub(crate) fn check_ready(facts: &ServerFacts, control: &ControlFile) -> Result<(), BackupError> {
    let not_ready = |what: String, hint: &str| Err(BackupError::NotReady { what, hint: hint.to_owned() });
    if facts.system_identifier.is_some_and(|id| id != control.system_identifier) {
        return not_ready(
            "the data directory on this machine belongs to another cluster than the server that answered"
                .into(),
            "run pgkeep on the machine of the server, or correct database_url",
        );
    }
    if facts.in_recovery {
        return not_ready("the server is a standby".into(), "take the backup from its primary");
    }
    if !facts.can_backup {
        let functions = if facts.version_num >= 150_000 { "pg_backup_start" } else { "pg_start_backup" };
        return not_ready(
            format!("role {} may not take backups", facts.role),
            &format!("grant it EXECUTE on {functions} and its counterpart, or connect as a superuser"),
        );
    }
    if facts.archive_mode == ArchiveMode::Off {
        return not_ready(
            "archive_mode is off, so the WAL that a backup needs would never arrive".into(),
            "set archive_mode = on and archive_command as `pgkeep init` prints them, then restart PostgreSQL",
        );
    }
    Ok(())
}

pub(crate) fn identity(facts: &ServerFacts, control: &ControlFile) -> Identity {
    Identity {
        system_identifier: control.system_identifier,
        segment_size: control.wal_segment_size.bytes(),
        major: u32::from(facts.major.number()),
    }
}
