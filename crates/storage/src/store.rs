//! The trait that everything above this room talks to.

use crate::error::{Action, Call};
use crate::{Children, Entry, LockRule, ObjectName, StorageError, Tail};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// The parts of an object that are made while they are written, in order.
pub type Parts = Box<dyn Iterator<Item = io::Result<Bytes>> + Send>;

/// Durable objects under one root: each appears whole or not at all, and never changes.
///
/// A prefix is whole parts of a name, with or without a slash at its end; the empty prefix is the root.
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync {
    /// Creates the object out of `parts`, one after the other, locked as [`Storage::lock_rule`] says: never without
    /// the lock that it should have.
    ///
    /// `Ok` means that it would survive power loss. Fails with [`StorageError::NameTaken`], leaving what is
    /// there, if the object exists. When a retry finds that an earlier try of the same call had arrived (same
    /// bytes), that is `Ok`.
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError>;

    /// Creates the object as [`Storage::create`] does, out of parts that are made meanwhile; nothing is created if one
    /// of them fails. A directory holds none of them in memory, a bucket all.
    async fn create_from(&self, name: &ObjectName, parts: Parts) -> Result<(), StorageError> {
        let made = tokio::task::spawn_blocking(move || parts.collect::<io::Result<Vec<Bytes>>>()).await;
        let failed =
            |source| StorageError::Other { action: Action::new(Call::Create, name.as_str()), source };
        let parts = made.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))?;
        self.create(name, &parts).await
    }

    /// Does ahead what a later `create` of this name needs: makes its directories durable, gets ready to connect.
    /// Nothing depends on it; what fails here fails again in `create` and is told there.
    async fn prepare(&self, name: &ObjectName) {
        let _ = name;
    }

    /// The bytes `range`, counted from the start of the object, exactly as many as asked for.
    ///
    /// An object that ends earlier is [`StorageError::Truncated`], never a short answer.
    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError>;

    /// The bytes `range` piece by piece, in order, for ranges too large for memory. One request, whatever its length; it
    /// goes on only as far as pieces are taken.
    ///
    /// Pieces that came are good even if an error follows. An object that ends earlier is
    /// [`StorageError::Truncated`]. An empty range has no pieces, and asks nobody.
    fn read_stream<'a>(
        &'a self,
        name: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxStream<'a, Result<Bytes, StorageError>> {
        match range.is_empty() {
            true => stream::empty().boxed(),
            false => stream::once(self.read(name, range)).boxed(),
        }
    }

    /// The last bytes of the object, `max` or all of them if it has fewer, and its whole size.
    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError>;

    /// The whole object; [`StorageError::TooLarge`] if it has more than `limit` bytes.
    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError>;

    /// The size of the object, in bytes.
    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError>;

    /// Every object below `prefix`, however deep, ordered by name, each once; empty when there is none.
    ///
    /// A listing may be older than the objects: absence from it proves nothing (reliability: never delete
    /// from it alone).
    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError>;

    /// The level directly below `prefix`.
    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError>;

    /// Deletes the object: `Ok` if it was there and is gone, [`StorageError::NotFound`] if it was not there.
    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError>;

    /// Sees to it that the object is not there: also `Ok` if it was not. Where a bucket answers the delete of an absent
    /// object like any other, this saves the look before it.
    async fn remove(&self, name: &ObjectName) -> Result<(), StorageError> {
        match self.delete(name).await {
            Err(StorageError::NotFound { .. }) => Ok(()),
            done => done,
        }
    }

    /// How objects are locked when they are created; `None` if none is.
    fn lock_rule(&self) -> Option<LockRule> {
        None
    }

    /// Sees to it that the object is locked until `until` or later. Never makes a lock shorter.
    /// [`StorageError::NoLock`] where there is no [`Storage::lock_rule`].
    async fn lock_until(&self, name: &ObjectName, until: Timestamp) -> Result<(), StorageError> {
        let _ = (name, until);
        Err(StorageError::no_lock())
    }

    /// Until when the object is locked, which may be a time that has passed; `None` if it has no lock. An object under
    /// legal hold is locked for ever.
    async fn locked_until(&self, name: &ObjectName) -> Result<Option<Timestamp>, StorageError> {
        let _ = name;
        Err(StorageError::no_lock())
    }
}

#[async_trait]
impl<S: Storage + ?Sized> Storage for Arc<S> {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        (**self).create(name, parts).await
    }

    async fn create_from(&self, name: &ObjectName, parts: Parts) -> Result<(), StorageError> {
        (**self).create_from(name, parts).await
    }

    async fn prepare(&self, name: &ObjectName) {
        (**self).prepare(name).await;
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        (**self).read(name, range).await
    }

    fn read_stream<'a>(
        &'a self,
        name: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxStream<'a, Result<Bytes, StorageError>> {
        (**self).read_stream(name, range)
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        (**self).read_tail(name, max).await
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        (**self).read_all(name, limit).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        (**self).size(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        (**self).list(prefix).await
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        (**self).list_children(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        (**self).delete(name).await
    }

    async fn remove(&self, name: &ObjectName) -> Result<(), StorageError> {
        (**self).remove(name).await
    }

    fn lock_rule(&self) -> Option<LockRule> {
        (**self).lock_rule()
    }

    async fn lock_until(&self, name: &ObjectName, until: Timestamp) -> Result<(), StorageError> {
        (**self).lock_until(name, until).await
    }

    async fn locked_until(&self, name: &ObjectName) -> Result<Option<Timestamp>, StorageError> {
        (**self).locked_until(name).await
    }
}
