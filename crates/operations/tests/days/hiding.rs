//! A storage whose listings always lack one object that it has.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use storage::{Children, Entry, Memory, ObjectName, Storage, StorageError, Tail};

#[derive(Debug)]
pub struct Hiding {
    pub inner: Arc<Memory>,
    pub hidden: ObjectName,
}

#[async_trait]
impl Storage for Hiding {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        self.inner.create(name, parts).await
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.inner.read(name, range).await
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        self.inner.read_tail(name, max).await
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        self.inner.read_all(name, limit).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        self.inner.size(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let mut entries = self.inner.list(prefix).await?;
        entries.retain(|entry| entry.name != self.hidden);
        Ok(entries)
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        self.inner.list_children(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.inner.delete(name).await
    }
}
