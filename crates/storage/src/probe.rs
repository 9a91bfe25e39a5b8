//! Finding out what a storage really does, before trusting it.

use crate::error::Call;
use crate::{ObjectName, Storage, StorageError};
use bytes::Bytes;

/// What a storage was seen to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A second create under a taken name was refused and left the first bytes. Without it only one writer at
    /// a time is safe.
    pub create_only: bool,
    /// What was written came back byte for byte, with the right size.
    pub read_back: bool,
    /// The written object was in the listing at once.
    pub list: bool,
    /// The object could be deleted. Without it nothing can expire, which may be wanted of a writer's
    /// credential.
    pub delete: bool,
}

impl Capabilities {
    /// Whether all is as it should be.
    pub fn is_complete(&self) -> bool {
        self.create_only && self.read_back && self.list && self.delete
    }
}

/// Why a storage could not be probed to the end.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A step failed with an error that says nothing about capabilities.
    #[error("the probe could not {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// How it failed.
        source: StorageError,
    },
}

/// Writes, reads, overwrites, lists and deletes one object below `probe/`, under a random name.
///
/// To learn the truth about create-only writes, open the storage with `conditional_put` on.
pub async fn probe(storage: &dyn Storage) -> Result<Capabilities, ProbeError> {
    let name = ObjectName::new(format!("probe/{:016x}", rand::random::<u64>()))
        .expect("hexadecimal digits are legal");
    // Longer than a chunk of the framing that some endpoints leave in the object, with every byte value.
    let first: Bytes = (0..=255_u8).cycle().take(70_000).collect();
    storage.create(&name, std::slice::from_ref(&first)).await.map_err(step("write an object"))?;
    let checked = look(storage, &name, &first).await;
    let deleted = delete(storage, &name).await;
    let (read_back, create_only, list) = checked?;
    Ok(Capabilities { create_only, read_back, list, delete: deleted? })
}

async fn look(
    storage: &dyn Storage,
    name: &ObjectName,
    first: &Bytes,
) -> Result<(bool, bool, bool), ProbeError> {
    let read_back = holds(storage, name, first).await?;
    let create_only = refuses_overwrite(storage, name, first).await?;
    let entries = storage.list("probe").await.map_err(step("list objects"))?;
    Ok((read_back, create_only, entries.iter().any(|entry| entry.name == *name)))
}

async fn holds(storage: &dyn Storage, name: &ObjectName, bytes: &Bytes) -> Result<bool, ProbeError> {
    let size = storage.size(name).await.map_err(step("read the size of what it wrote"))?;
    match storage.read_all(name, bytes.len() as u64).await {
        Ok(stored) => Ok(size == bytes.len() as u64 && stored == *bytes),
        // Larger than what was written: something was added.
        Err(StorageError::TooLarge { .. } | StorageError::Truncated { .. }) => Ok(false),
        Err(source) => Err(ProbeError::Step { step: "read back what it wrote", source }),
    }
}

async fn refuses_overwrite(
    storage: &dyn Storage,
    name: &ObjectName,
    first: &Bytes,
) -> Result<bool, ProbeError> {
    let other = first.slice(..first.len() - 1);
    match storage.create(name, std::slice::from_ref(&other)).await {
        Err(StorageError::NameTaken { .. }) => {}
        Ok(()) => return Ok(false),
        Err(source) => return Err(ProbeError::Step { step: "write under a taken name", source }),
    }
    Ok(!holds(storage, name, &other).await?)
}

async fn delete(storage: &dyn Storage, name: &ObjectName) -> Result<bool, ProbeError> {
    match storage.delete(name).await {
        Ok(()) => {}
        Err(StorageError::Refused { action, .. }) if action.call == Call::Delete => return Ok(false),
        Err(source) => return Err(ProbeError::Step { step: "delete what it wrote", source }),
    }
    match storage.size(name).await {
        Err(StorageError::NotFound { .. }) => Ok(true),
        Ok(_) => Ok(false),
        Err(source) => Err(ProbeError::Step { step: "look for what it deleted", source }),
    }
}

fn step(step: &'static str) -> impl Fn(StorageError) -> ProbeError {
    move |source| ProbeError::Step { step, source }
}
