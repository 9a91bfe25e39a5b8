//! What to do about each error, where that is the same whatever was being done.

use operations::backup::BackupError;
use operations::catalogue::CatalogueError;
use operations::logical::LogicalError;
use operations::probe::dump_hint;
use operations::reachable::ReachableError;
use operations::receive::ReceiveError;
use operations::restore::{RestoreError, describe_moment};
use operations::verify::VerifyError;
use repository::RepositoryError;
use repository::archive::ArchiveError;
use repository::seal::SealError;
use server::connection::ServerError;
use server::files::FilesError;
use server::programs::ProgramError;
use storage::StorageError;

use super::classes::AnyError;

/// What to do about one layer of an error, where that is the same whatever was being done.
pub(super) fn hint_of(error: AnyError<'_>) -> Option<String> {
    if let Some(hint) = error.downcast_ref().and_then(restore_hint) {
        return Some(hint);
    }
    if let Some(VerifyError::WriterOnly) = error.downcast_ref() {
        return Some(WRITER_ONLY.to_owned());
    }
    if let Some(BackupError::NotReady { hint, .. }) = error.downcast_ref() {
        return Some(hint.clone());
    }
    if let Some(hint) = error.downcast_ref().and_then(logical_hint) {
        return Some(hint);
    }
    plain_hint(error).map(str::to_owned)
}

fn logical_hint(error: &LogicalError) -> Option<String> {
    Some(match error {
        LogicalError::Program(ProgramError::NotInstalled { server, .. }) => dump_hint(*server),
        LogicalError::Pooler { hint, .. } => hint.clone(),
        LogicalError::Incomplete { .. } => {
            "grant the role SELECT on them (and BYPASSRLS against row security), or leave them out on purpose: --exclude-table"
                .to_owned()
        }
        LogicalError::NotEmpty { .. } => {
            "--swap restores into a new database and exchanges the names when it is whole; --clean drops what the backup has, in \
             one transaction"
                .to_owned()
        }
        LogicalError::Filled { .. } => "--clean empties the tables before, in one transaction".to_owned(),
        LogicalError::Locked { .. } => {
            "see who holds it: SELECT * FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted; or wait longer: \
             logical.lock_timeout"
                .to_owned()
        }
        LogicalError::Exists { .. } => "another name; or --force, which lets it take that one's place".to_owned(),
        LogicalError::Definitions { .. } => {
            "a later pgkeep may know them; `pgkeep restore --into postgres://…` needs not to take them apart".to_owned()
        }
        LogicalError::Restless { .. } => "something creates, drops or truncates tables all the time; try again".to_owned(),
        _ => return None,
    })
}

fn restore_hint(error: &RestoreError) -> Option<String> {
    Some(match error {
        RestoreError::TargetTooEarly { earliest, .. } => match earliest {
            Some(earliest) => format!("the earliest reachable moment is {}", describe_moment(*earliest)),
            None => "no backup can be restored at all: `pgkeep status`".to_owned(),
        },
        RestoreError::BackupTooLate { end, .. } => {
            format!("it ends at {}; leave the backup out to have one chosen", describe_moment(*end))
        }
        RestoreError::TargetTooLate { latest, .. } => {
            format!("the latest reachable moment is {}", describe_moment(*latest))
        }
        RestoreError::Logical { .. } => "restore it into a database: --into postgres://…".to_owned(),
        RestoreError::NotEmpty { .. } => {
            "name an empty or new directory, or --delta to keep what is right in this one".to_owned()
        }
        RestoreError::UnknownOwner { owner } if owner.is_empty() => {
            "a backup over SQL does not know who owned the files; say who gets them: --owner USER".to_owned()
        }
        RestoreError::UnknownOwner { .. } => "say who gets the files: --owner USER".to_owned(),
        RestoreError::Tablespace { oid, .. } => {
            format!(
                "give it another place, --tablespace {oid}=/path, or all of them, --tablespaces-under /path"
            )
        }
        RestoreError::UnknownTablespace { .. } => {
            "`pgkeep info` lists the tablespaces of a backup".to_owned()
        }
        RestoreError::Reachable(ReachableError::Path(_)) => {
            "`pgkeep wal list` shows the timelines".to_owned()
        }
        RestoreError::NoBackup { .. } | RestoreError::UnknownBackup { .. } => {
            "`pgkeep list` shows the backups".to_owned()
        }
        _ => return None,
    })
}

fn plain_hint(error: AnyError<'_>) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<RepositoryError>() {
        return repository_hint(error);
    }
    if let Some(error) = error.downcast_ref::<StorageError>() {
        return storage_hint(error);
    }
    if let Some(error) = error.downcast_ref::<ArchiveError>() {
        return archive_hint(error);
    }
    if let Some(error) = error.downcast_ref::<BackupError>() {
        return match error {
            BackupError::WalMissing { .. } => Some(
                "see the server's log for what archive_command says, and `SELECT * FROM pg_stat_archiver`",
            ),
            BackupError::StandbyWalMissing { .. } => Some(
                "its primary ends no segment while it is idle: set primary_url, so that this is asked of it, or run \
                 `pgkeep wal receive`; and see what archive_command says in the primary's log",
            ),
            BackupError::Repository(below) => repository_hint(below),
            BackupError::Archive(below) => archive_hint(below),
            BackupError::Files(FilesError::DataDirectory { .. }) => Some(NOT_THIS_MACHINE),
            _ => None,
        };
    }
    if let Some(ReceiveError::Server(
        ServerError::Connect { message } | ServerError::Refused { message, .. },
    )) = error.downcast_ref()
    {
        return replication_hint(message);
    }
    if let Some(CatalogueError::Repository(below)) = error.downcast_ref() {
        return repository_hint(below);
    }
    if let Some(CatalogueError::Unknown { .. }) = error.downcast_ref() {
        return Some("`pgkeep list` shows the backups");
    }
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(SealError::NoPrivateKey { .. }), _) => Some(WRITER_ONLY),
        (_, Some(ServerError::PasswordNeeded)) => {
            Some("put the password into the password file (~/.pgpass) or into PGPASSWORD")
        }
        _ => None,
    }
}

/// What a server says to whom it does not let replicate. Source: `ClientAuthentication`, `auth.c`, and `InitPostgres`.
fn replication_hint(message: &str) -> Option<&'static str> {
    if message.contains("pg_hba.conf") {
        return Some(
            "give pg_hba.conf a line for the database `replication`, this role and this address, and reload",
        );
    }
    let words = ["replication role", "WAL sender", "REPLICATION attribute"];
    words.iter().any(|word| message.contains(word)).then_some("as a superuser: ALTER ROLE … REPLICATION")
}

const NOT_THIS_MACHINE: &str = "run pgkeep on the server's machine, as the user that the server runs as";

const WRITER_ONLY: &str = "a writer credential only adds; give a key file or a passphrase to read";

fn storage_hint(error: &StorageError) -> Option<&'static str> {
    match error {
        StorageError::Refused { .. } => {
            Some("check the permissions, or the credentials and what they allow (`pgkeep config`)")
        }
        StorageError::NoLock { .. } => {
            Some("leave out the setting `lock`, or use a bucket of S3 that has object lock: docs/lock.md")
        }
        StorageError::RootMissing { .. } => {
            Some("if it should exist, check that it is mounted; `pgkeep init` makes one")
        }
        _ => None,
    }
}

fn repository_hint(error: &RepositoryError) -> Option<&'static str> {
    match error {
        RepositoryError::Absent => Some("`pgkeep init` makes one; `pgkeep config` shows where is looked"),
        RepositoryError::Storage(below) => storage_hint(below),
        RepositoryError::SlotRemoved { .. } => {
            Some("use another key, or the recovery key, and add a new one: `pgkeep key add`")
        }
        RepositoryError::NoSlotOpens => Some("the recovery key opens the repository too (--key-file)"),
        RepositoryError::Seal(SealError::NoPrivateKey { .. }) => Some(WRITER_ONLY),
        _ => None,
    }
}

fn archive_hint(error: &ArchiveError) -> Option<&'static str> {
    match error {
        ArchiveError::Repository(below) => repository_hint(below),
        ArchiveError::Absent { .. } | ArchiveError::Content { .. } => None,
        ArchiveError::Conflict { .. } | ArchiveError::OtherCluster { .. } => {
            Some("two clusters must not share a stream: give each its own name (--cluster)")
        }
    }
}
