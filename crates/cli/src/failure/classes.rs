//! How a script should take each error.

use std::error::Error;

use operations::backup::BackupError;
use operations::catalogue::CatalogueError;
use operations::check::CheckError;
use operations::copy::CopyError;
use operations::expire::ExpireError;
use operations::init::InitError;
use operations::logical::LogicalError;
use operations::prune::PruneError;
use operations::reachable::{PathError, ReachableError};
use operations::receive::ReceiveError;
use operations::restore::RestoreError;
use operations::verify::VerifyError;
use repository::RepositoryError;
use repository::archive::ArchiveError;
use repository::chunk::CodecError;
use repository::description::DescriptionError;
use repository::keys::KeyError;
use repository::lease::LeaseError;
use repository::seal::SealError;
use server::backup::BackupError as SessionError;
use server::connection::ServerError;
use server::files::FilesError;
use server::programs::ProgramError;
use server::throwaway::ThrowawayError;
use storage::{LocationError, OpenError, StorageError};

use super::Class;

pub(super) type AnyError<'a> = &'a (dyn Error + 'static);

/// The class of one layer of an error; `None` when it is for the layers below to say.
///
/// A transparent error shows the layers below itself as its own, so it is taken apart here.
pub(super) fn class_of(error: AnyError<'_>) -> Option<Class> {
    below_repository(error)
        .or_else(|| error.downcast_ref().and_then(operation_class))
        .or_else(|| error.downcast_ref().and_then(restore_class))
        .or_else(|| error.downcast_ref().and_then(logical_class))
        .or_else(|| error.downcast_ref().and_then(receive_class))
        .or_else(|| error.downcast_ref().and_then(catalogue_class))
        .or_else(|| error.downcast_ref().and_then(prune_class))
        .or_else(|| error.downcast_ref().and_then(lease_class))
        .or_else(|| error.downcast_ref().and_then(verify_class))
        .or_else(|| match error.downcast_ref()? {
            CheckError::Repository(below) => repository_class(below),
            CheckError::Reachable(below) => reachable_class(below),
        })
        .or_else(|| error.downcast_ref().and_then(expire_class))
        .or_else(|| error.downcast_ref().and_then(copy_class))
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
        StorageError::Refused { .. } | StorageError::NoLock { .. } => Class::WrongRequest,
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
        RepositoryError::Overtaken | RepositoryError::Lost { .. } => Class::TryAgain,
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

fn logical_class(error: &LogicalError) -> Option<Class> {
    match error {
        LogicalError::Server(below) | LogicalError::Relation { source: below, .. } => {
            Some(server_class(below))
        }
        LogicalError::Program(ProgramError::NotInstalled { .. })
        | LogicalError::Incomplete { .. }
        | LogicalError::Pooler { .. } => Some(Class::WrongRequest),
        LogicalError::Program(ProgramError::Settings(below)) => Some(server_class(below)),
        LogicalError::Repository(below) => repository_class(below),
        LogicalError::Archive(below) => archive_class(below),
        LogicalError::Codec(_) => Some(Class::Bug),
        LogicalError::Restless { .. } | LogicalError::Locked { .. } => Some(Class::TryAgain),
        LogicalError::NotEmpty { .. } | LogicalError::Filled { .. } | LogicalError::Exists { .. } => {
            Some(Class::Conflict)
        }
        LogicalError::Choice { .. } | LogicalError::Definitions { .. } => Some(Class::WrongRequest),
        LogicalError::NotWhole { .. } => Some(Class::Damaged),
        _ => None,
    }
}

fn receive_class(error: &ReceiveError) -> Option<Class> {
    match error {
        ReceiveError::Server(below) => Some(server_class(below)),
        ReceiveError::Archive(below) => archive_class(below),
        ReceiveError::Mismatch(_) | ReceiveError::OtherServer { .. } => Some(Class::Conflict),
        ReceiveError::Unusable { .. } | ReceiveError::SlotName { .. } => Some(Class::WrongRequest),
        ReceiveError::Spool { .. } | ReceiveError::NotStored { .. } => Some(Class::TryAgain),
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
        | RestoreError::Logical { .. }
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

fn prune_class(error: &PruneError) -> Option<Class> {
    match error {
        PruneError::Unreadable { .. } => Some(Class::Damaged),
        PruneError::Listing { .. } => Some(Class::TryAgain),
        PruneError::Codec(_) => Some(Class::Bug),
        PruneError::Lease(below) => lease_class(below),
        PruneError::Repository(below) => repository_class(below),
    }
}

fn copy_class(error: &CopyError) -> Option<Class> {
    match error {
        CopyError::SameRepository => Some(Class::WrongRequest),
        CopyError::NoCluster { .. } => Some(Class::NotFound),
        CopyError::Conflict { .. } => Some(Class::Conflict),
        CopyError::WalMissing { .. } | CopyError::LeftBehind { .. } => Some(Class::Damaged),
        CopyError::Codec(_) => Some(Class::Bug),
        CopyError::Catalogue(below) => catalogue_class(below),
        // The layer below says it.
        CopyError::Source(_) | CopyError::SourceWal(_) | CopyError::Target(_) | CopyError::TargetWal(_) => {
            None
        }
    }
}

fn lease_class(error: &LeaseError) -> Option<Class> {
    match error {
        LeaseError::Held { .. } | LeaseError::Lost { .. } => Some(Class::TryAgain),
        LeaseError::Repository(below) => repository_class(below),
    }
}

fn verify_class(error: &VerifyError) -> Option<Class> {
    match error {
        VerifyError::WriterOnly => Some(Class::WrongRequest),
        VerifyError::Interrupted => Some(Class::TryAgain),
        VerifyError::Repository(below) => repository_class(below),
        VerifyError::Reachable(below) => reachable_class(below),
    }
}

fn expire_class(error: &ExpireError) -> Option<Class> {
    match error {
        ExpireError::Repository(below) => repository_class(below),
        ExpireError::Lease(below) => lease_class(below),
        ExpireError::Reachable(below) => reachable_class(below),
        ExpireError::Listing { .. } => Some(Class::TryAgain),
        ExpireError::RolledBack { .. } => Some(Class::Damaged),
        ExpireError::Changed { .. } => Some(Class::Conflict),
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
    let request = matches!(
        error,
        ServerError::InvalidSettings { .. } | ServerError::PasswordNeeded | ServerError::Refused { .. }
    );
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

impl From<CatalogueError> for super::Failure {
    fn from(error: CatalogueError) -> Self {
        Self::caused("read the catalogue", &error)
    }
}
