//! From a location and settings to a storage.

use crate::error::Call;
use crate::filesystem::{Filesystem, failed, make_directories};
use crate::{Location, Remote, Retry, Settings, Storage, StorageError};
use std::path::Path;
use std::sync::Arc;

/// Why a storage cannot be used as it is configured. No storage has been asked yet.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting that is needed, wrong or in contradiction with another.
    #[error("{0}")]
    Setting(String),
}

/// The storage at `location`, with [`Retry`] around a bucket. Nothing is asked and nothing is made before the
/// first call.
pub fn open(location: &Location, settings: &Settings) -> Result<Arc<dyn Storage>, OpenError> {
    if settings.lock.is_some() && !matches!(location, Location::S3(_)) {
        let why = "objects are locked in buckets of S3 and kin only, that have object lock; this is none";
        return Err(OpenError::Setting(why.to_owned()));
    }
    match location {
        Location::Directory(path) => Ok(Arc::new(Filesystem::new(path))),
        _ => Ok(Arc::new(Retry::new(Remote::new(location, settings)?, settings.retry.clone()))),
    }
}

/// Makes the directory that holds everything, durably, with those above it. A bucket must exist; nothing is
/// done for it.
///
/// For a new repository only: an existing one whose directory is missing is a mount that went away.
pub async fn make_root(location: &Location) -> Result<(), StorageError> {
    let Location::Directory(path) = location else { return Ok(()) };
    let path = path.clone();
    let shown = path.display().to_string();
    let made = tokio::task::spawn_blocking(move || {
        // What exists may belong to others and be unreadable; only what is made needs syncing.
        let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        make_directories(&path, existing)
    })
    .await;
    made.unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(|error| failed(Call::Create, &shown, error))
}
