//! How a script should take each error, and what to do about it.

use std::error::Error;

use operations::backup::BackupError;
use operations::catalogue::CatalogueError;
use operations::init::InitError;
use operations::reachable::{PathError, ReachableError};
use operations::receive::ReceiveError;
use operations::restore::{RestoreError, describe_moment};
use repository::RepositoryError;
use repository::archive::ArchiveError;
use repository::chunk::CodecError;
use repository::description::DescriptionError;
use repository::keys::KeyError;
use repository::seal::SealError;
use server::backup::BackupError as SessionError;
use server::connection::ServerError;
use server::files::FilesError;
use server::throwaway::ThrowawayError;
use storage::{LocationError, OpenError, StorageError};

use super::Class;

type AnyError<'a> = &'a (dyn Error + 'static);

/// The class of one layer of an error; `None` when it is for the layers below to say.
///
/// A transparent error shows the layers below itself as its own, so it is taken apart here.
pub(super) fn class_of(error: AnyError<'_>) -> Option<Class> {
    below_repository(error)
        .or_else(|| error.downcast_ref().and_then(operation_class))
        .or_else(|| error.downcast_ref().and_then(restore_class))
        .or_else(|| error.downcast_ref().and_then(receive_class))
        .or_else(|| error.downcast_ref().and_then(catalogue_class))
        .or_else(|| server_room(error))
        .or_else(|| match error.downcast_ref()? {
            InitError::Exists => Some(Class::Conflict),
            InitError::NoKey => Some(Class::WrongRequest),
            InitError::Key(below) => Some(key_class(below)),
            InitError::Repository(below) => repository_class(below),
            InitError::Unfit { .. } | InitError::Probe(_) => None,
        })
        .or_else(|| (error.is::<LocationError>() || error.is::<OpenError>()).then_some(Class::WrongRequest))
        .or_else(|| error.is::<CodecError>().then_some(Class::Bug))
}

fn below_repository(error: AnyError<'_>) -> Option<Class> {
    if let Some(error) = error.downcast_ref::<StorageError>() {
        return Some(storage_class(error));
    }
    if let Some(error) = error.downcast_ref::<RepositoryError>() {
        return repository_class(error);
    }
    if let Some(error) = error.downcast_ref::<ArchiveError>() {
        return archive_class(error);
    }
    if let Some(error) = error.downcast_ref::<SealError>() {
        return Some(seal_class(error));
    }
    error.downcast_ref::<KeyError>().map(key_class)
}

fn storage_class(error: &StorageError) -> Class {
    match error {
        StorageError::NotFound { .. } | StorageError::RootMissing { .. } => Class::NotFound,
        StorageError::NameTaken { .. } => Class::Conflict,
        StorageError::Truncated { .. } | StorageError::TooLarge { .. } => Class::Damaged,
        StorageError::Refused { .. } => Class::WrongRequest,
        StorageError::Transient { .. } | StorageError::Full { .. } => Class::TryAgain,
        StorageError::Other { .. } => Class::Other,
    }
}

fn repository_class(error: &RepositoryError) -> Option<Class> {
    Some(match error {
        RepositoryError::Absent => Class::NotFound,
        RepositoryError::Exists => Class::Conflict,
        RepositoryError::Storage(below) => storage_class(below),
        RepositoryError::Seal(below) => seal_class(below),
        RepositoryError::Key(below) => key_class(below),
        RepositoryError::Description(DescriptionError::Format { .. }) => Class::WrongRequest,
        RepositoryError::Description(_) => Class::Damaged,
        RepositoryError::NoSlotOpens | RepositoryError::SlotRemoved { .. } => Class::WrongRequest,
        RepositoryError::Content { .. } | RepositoryError::Missing { .. } => Class::Damaged,
    })
}

fn archive_class(error: &ArchiveError) -> Option<Class> {
    match error {
        ArchiveError::Conflict { .. } | ArchiveError::OtherCluster { .. } => Some(Class::Conflict),
        ArchiveError::Absent { .. } => Some(Class::NotFound),
        ArchiveError::Content { .. } => Some(Class::TryAgain),
        ArchiveError::Repository(below) => repository_class(below),
    }
}

fn seal_class(error: &SealError) -> Class {
    if matches!(error, SealError::NoPrivateKey { .. }) { Class::WrongRequest } else { Class::Damaged }
}

fn key_class(error: &KeyError) -> Class {
    match error {
        KeyError::SlotForm { .. } | KeyError::Parameters { .. } => Class::Damaged,
        _ => Class::WrongRequest,
    }
}

fn operation_class(error: &BackupError) -> Option<Class> {
    match error {
        BackupError::NotReady { .. } => Some(Class::WrongRequest),
        BackupError::WalMissing { .. }
        | BackupError::StandbyWalMissing { .. }
        | BackupError::Vanished { .. }
        | BackupError::Changed { .. } => Some(Class::TryAgain),
        BackupError::Server(below) => Some(server_class(below)),
        BackupError::Session(below) => session_class(below),
        BackupError::Repository(below) => repository_class(below),
        BackupError::Archive(below) => archive_class(below),
        BackupError::Codec(_) => Some(Class::Bug),
        BackupError::Files(FilesError::OtherServer) => Some(Class::TryAgain),
        _ => None,
    }
}

fn receive_class(error: &ReceiveError) -> Option<Class> {
    match error {
        ReceiveError::Server(below) => Some(server_class(below)),
        ReceiveError::Archive(below) => archive_class(below),
        ReceiveError::Mismatch(_) | ReceiveError::OtherServer { .. } => Some(Class::Conflict),
        ReceiveError::Unusable { .. } | ReceiveError::SlotName { .. } => Some(Class::WrongRequest),
        ReceiveError::Spool { .. } => Some(Class::TryAgain),
    }
}

fn restore_class(error: &RestoreError) -> Option<Class> {
    Some(match error {
        RestoreError::NoBackup { .. }
        | RestoreError::UnknownBackup { .. }
        | RestoreError::TargetTooEarly { .. }
        | RestoreError::BackupTooLate { .. }
        | RestoreError::TargetTooLate { .. } => Class::NotFound,
        RestoreError::DamagedManifest { .. } | RestoreError::BackupWalMissing { .. } => Class::Damaged,
        RestoreError::NotEmpty { .. } | RestoreError::NotOurs { .. } => Class::Conflict,
        RestoreError::Tablespace { .. }
        | RestoreError::UnknownTablespace { .. }
        | RestoreError::UnknownOwner { .. }
        | RestoreError::UnknownMajor { .. } => Class::WrongRequest,
        RestoreError::NoSpace { .. } => Class::TryAgain,
        RestoreError::Reachable(below) => return reachable_class(below),
        RestoreError::Repository(below) => return repository_class(below),
        _ => return None,
    })
}

fn reachable_class(error: &ReachableError) -> Option<Class> {
    match error {
        ReachableError::Repository(below) => repository_class(below),
        ReachableError::Archive { source, .. } => archive_class(source),
        ReachableError::Manifest { .. } | ReachableError::Path(PathError::Damaged { .. }) => {
            Some(Class::Damaged)
        }
        ReachableError::Path(_) => Some(Class::NotFound),
    }
}

fn catalogue_class(error: &CatalogueError) -> Option<Class> {
    match error {
        CatalogueError::NoBackup { .. } | CatalogueError::Unknown { .. } => Some(Class::NotFound),
        CatalogueError::Ambiguous { .. } => Some(Class::WrongRequest),
        CatalogueError::Repository(below) => repository_class(below),
        CatalogueError::Reachable(below) => reachable_class(below),
    }
}

fn server_room(error: AnyError<'_>) -> Option<Class> {
    if let Some(error) = error.downcast_ref::<ServerError>() {
        return Some(server_class(error));
    }
    if let Some(error) = error.downcast_ref::<SessionError>() {
        return session_class(error);
    }
    match error.downcast_ref()? {
        ThrowawayError::NotInstalled { .. } => Some(Class::NotFound),
        _ => None,
    }
}

fn server_class(error: &ServerError) -> Class {
    let request = matches!(error, ServerError::InvalidSettings { .. } | ServerError::PasswordNeeded);
    if request || error.is_permission_denied() {
        Class::WrongRequest
    } else if error.is_transient() {
        Class::TryAgain
    } else {
        Class::Other
    }
}

fn session_class(error: &SessionError) -> Option<Class> {
    match error {
        SessionError::UnsupportedMajor { .. } | SessionError::InvalidLabel { .. } => {
            Some(Class::WrongRequest)
        }
        SessionError::SessionLost { .. } | SessionError::Promoted { .. } => Some(Class::TryAgain),
        _ => None,
    }
}

/// What to do about one layer of an error, where that is the same whatever was being done.
pub(super) fn hint_of(error: AnyError<'_>) -> Option<String> {
    if let Some(hint) = error.downcast_ref().and_then(restore_hint) {
        return Some(hint);
    }
    if let Some(BackupError::NotReady { hint, .. }) = error.downcast_ref() {
        return Some(hint.clone());
    }
    plain_hint(error).map(str::to_owned)
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
    if let Some(ReceiveError::Server(ServerError::Connect { message })) = error.downcast_ref() {
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

impl From<CatalogueError> for super::Failure {
    fn from(error: CatalogueError) -> Self {
        Self::caused("read the catalogue", &error)
    }
}
