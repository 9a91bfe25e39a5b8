//! Storing a file of the archive: `maker` makes the object, this gives it to the storage.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use storage::{ObjectName, StorageError};

use super::maker::{Made, Maker, Unmade};
use super::{ArchiveError, Stored, WalInfo, WalName, public_of};
use crate::layout::{self, ClusterName};
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Header, Kind, MAX_HEADER_LEN, SealError};

/// A file that is to be stored.
pub trait WalContent: Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> u64;
    /// Fills `buffer` with what begins at `offset`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Is shown the whole content once, in order.
    fn see(&self, piece: &[u8]);
    /// What is recorded with the file, asked when all of it was seen. Fails if it is another file by now.
    fn info(&self) -> io::Result<WalInfo>;
}

/// A content in memory, and what is recorded with it.
pub struct InMemory(pub Vec<u8>, pub WalInfo);

impl WalContent for InMemory {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn see(&self, _: &[u8]) {}
    fn info(&self) -> io::Result<WalInfo> {
        Ok(self.1.clone())
    }
}

impl Repository {
    /// Stores a small file of the archive, or a part, that is in memory.
    pub async fn store_wal(
        &self,
        cluster: &ClusterName,
        file: impl Into<WalName>,
        content: &[u8],
        info: &WalInfo,
        threads: usize,
    ) -> Result<Stored, ArchiveError> {
        let content = Arc::new(InMemory(content.to_vec(), info.clone()));
        self.store_wal_file(cluster, file, content, threads).await
    }

    /// Stores a file of the archive; `threads` work on it at once.
    pub async fn store_wal_file(
        &self,
        cluster: &ClusterName,
        file: impl Into<WalName>,
        content: Arc<dyn WalContent>,
        threads: usize,
    ) -> Result<Stored, ArchiveError> {
        let file = file.into();
        let name = layout::wal_file(cluster, file);
        let prepared = {
            let (storage, name) = (self.storage().clone(), name.clone());
            tokio::spawn(async move { storage.prepare(&name).await })
        };
        let length = content.length();
        let (workers, digester) = (self.workers().clone(), self.digester().clone());
        let maker = Maker::new(self.access().writer(), &name, content, workers, digester);
        let work = maker.clone();
        let made = tokio::task::spawn_blocking(move || work.make(threads)).await;
        let made = made.expect("sealing does not panic and is not cancelled");
        let made = made.map_err(|why| unmade(&file, &name, why))?;
        // Whatever became of it is told by what follows.
        let _ = prepared.await;
        let (digest, created) = match made {
            Made::Held(digest, parts) => (digest, self.storage().create(&name, &parts).await),
            Made::Streamed(digest, head) => {
                let why = Arc::new(Mutex::new(None));
                let frames = maker.stream(digest, head, threads, why.clone());
                let created = self.storage().create_from(&name, Box::new(frames)).await;
                if let Some(why) = why.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    return Err(unmade(&file, &name, why));
                }
                (digest, created)
            }
        };
        match created {
            Ok(()) => Ok(Stored::New),
            Err(StorageError::NameTaken { .. }) => match self.wal_digest(&name).await? {
                stored if stored == (digest, length) || storage::planted::has("wal.swapped") => {
                    Ok(Stored::AlreadyThere)
                }
                _ => Err(ArchiveError::Conflict { name: file }),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Digest and length of a stored file, from its authenticated header, which a writer may read; `None` if it is not
    /// there. The digest is [`crate::chunk::Digester::content`] of its content.
    pub async fn stored_digest(
        &self,
        cluster: &ClusterName,
        file: impl Into<WalName>,
    ) -> Result<Option<([u8; 32], u64)>, ArchiveError> {
        match self.wal_digest(&layout::wal_file(cluster, file)).await {
            Ok(found) => Ok(Some(found)),
            Err(ArchiveError::Repository(RepositoryError::Storage(StorageError::NotFound { .. }))) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn wal_digest(&self, name: &ObjectName) -> Result<([u8; 32], u64), ArchiveError> {
        let size = self.storage().size(name).await?;
        let head = self.storage().read(name, 0..size.min(MAX_HEADER_LEN as u64)).await?;
        let header = Header::parse(self.access().writer(), Kind::Wal, name, &head)?;
        public_of(name, &header).map_err(Into::into)
    }
}

fn unmade(file: &WalName, name: &ObjectName, why: Unmade) -> ArchiveError {
    match why {
        Unmade::Read(source) => ArchiveError::Content { name: *file, source },
        Unmade::Check => {
            SealError::Content { name: name.clone(), what: "compression failed its check" }.into()
        }
    }
}
