//! Counting what is asked of a storage, because requests cost money and time.

use crate::error::Call;
use crate::{Children, Entry, LockRule, ObjectName, Storage, StorageError, Tail};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A storage that counts its calls and the bytes that pass.
#[derive(Debug)]
pub struct Recording<S> {
    inner: S,
    calls: [AtomicU64; Call::ALL.len()],
    failures: AtomicU64,
    bytes_written: AtomicU64,
    bytes_read: AtomicU64,
}

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    calls: [u64; Call::ALL.len()],
    /// Calls that ended in an error, whichever.
    pub failures: u64,
    /// Bytes of creates that succeeded.
    pub bytes_written: u64,
    /// Bytes of reads that succeeded.
    pub bytes_read: u64,
}

impl Counts {
    /// Calls of one kind, successful or not.
    pub fn calls(&self, call: Call) -> u64 {
        self.calls[call as usize]
    }

    /// Calls of every kind.
    pub fn total(&self) -> u64 {
        self.calls.iter().sum()
    }
}

impl<S: Storage> Recording<S> {
    /// Counts from zero.
    pub fn new(inner: S) -> Recording<S> {
        Recording {
            inner,
            calls: Default::default(),
            failures: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            calls: std::array::from_fn(|at| self.calls[at].load(Relaxed)),
            failures: self.failures.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
        }
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        self.calls.iter().for_each(|calls| calls.store(0, Relaxed));
        for counter in [&self.failures, &self.bytes_written, &self.bytes_read] {
            counter.store(0, Relaxed);
        }
    }

    /// The storage below.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    async fn run<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StorageError>>,
        bytes_read: impl Fn(&T) -> usize,
    ) -> Result<T, StorageError> {
        self.calls[call as usize].fetch_add(1, Relaxed);
        let done = work.await;
        match &done {
            Ok(answer) => self.bytes_read.fetch_add(bytes_read(answer) as u64, Relaxed),
            Err(_) => self.failures.fetch_add(1, Relaxed),
        };
        done
    }
}

#[async_trait]
impl<S: Storage> Storage for Recording<S> {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        self.run(Call::Create, self.inner.create(name, parts), |()| 0).await?;
        self.bytes_written.fetch_add(parts.iter().map(Bytes::len).sum::<usize>() as u64, Relaxed);
        Ok(())
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.run(Call::Read, self.inner.read(name, range), Bytes::len).await
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        self.run(Call::ReadTail, self.inner.read_tail(name, max), |tail| tail.bytes.len()).await
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        self.run(Call::ReadAll, self.inner.read_all(name, limit), Bytes::len).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        self.run(Call::Size, self.inner.size(name), |_| 0).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        self.run(Call::List, self.inner.list(prefix), |_| 0).await
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        self.run(Call::ListChildren, self.inner.list_children(prefix), |_| 0).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.run(Call::Delete, self.inner.delete(name), |()| 0).await
    }

    async fn remove(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.run(Call::Delete, self.inner.remove(name), |()| 0).await
    }

    fn lock_rule(&self) -> Option<LockRule> {
        self.inner.lock_rule()
    }

    async fn lock_until(&self, name: &ObjectName, until: Timestamp) -> Result<(), StorageError> {
        self.run(Call::Lock, self.inner.lock_until(name, until), |()| 0).await
    }

    async fn locked_until(&self, name: &ObjectName) -> Result<Option<Timestamp>, StorageError> {
        self.run(Call::LockedUntil, self.inner.locked_until(name), |_| 0).await
    }
}
