//! The way of one process to the storage: it takes time, and the process may die on it.

use std::future::{Future, pending};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use storage::{Children, Entry, ObjectName, Storage, StorageError, Tail};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::world::Store;

/// What becomes of the write on which a process dies.
#[derive(Clone, Copy, Debug)]
pub enum Arrival {
    Never,
    Now,
    /// It was on its way, and arrives when others have gone on.
    Later(Duration),
}

/// Of one process.
#[derive(Debug)]
pub struct Link {
    store: Arc<Store>,
    calls: AtomicU64,
    death: Option<(u64, Arrival)>,
    pub died: Notify,
    random: Mutex<StdRng>,
    is_calm: bool,
}

impl Link {
    pub fn new(store: Arc<Store>, death: Option<(u64, Arrival)>, random: StdRng) -> Self {
        Self {
            store,
            calls: AtomicU64::new(0),
            death,
            died: Notify::new(),
            random: Mutex::new(random),
            is_calm: false,
        }
    }

    /// One that takes no time, on which nobody dies.
    pub fn calm(store: Arc<Store>) -> Self {
        let calm = Self::new(store, None, StdRng::seed_from_u64(0));
        Self { is_calm: true, ..calm }
    }

    /// Half the time there, and half back.
    fn latency(&self) -> Duration {
        Duration::from_millis(self.random.lock().unwrap().random_range(1..40))
    }

    async fn die<T>(&self) -> T {
        self.died.notify_one();
        pending().await
    }

    async fn pass<T>(&self, work: impl Future<Output = Result<T, StorageError>>) -> Result<T, StorageError> {
        if self.is_calm {
            return work.await;
        }
        let number = self.calls.fetch_add(1, Relaxed);
        sleep(self.latency()).await;
        if self.death.is_some_and(|(at, _)| number >= at) {
            return self.die().await;
        }
        let answer = work.await;
        sleep(self.latency()).await;
        answer
    }

    async fn write(&self, name: &ObjectName, parts: Option<&[Bytes]>) -> Result<(), StorageError> {
        let number = self.calls.load(Relaxed);
        if let Some((at, arrival)) = self.death
            && number >= at
        {
            let (store, name, parts) = (self.store.clone(), name.clone(), parts.map(<[Bytes]>::to_vec));
            match arrival {
                Arrival::Never => {}
                Arrival::Now => drop(store.write(&name, parts.as_deref()).await),
                Arrival::Later(time) => drop(tokio::spawn(async move {
                    sleep(time).await;
                    drop(store.write(&name, parts.as_deref()).await);
                })),
            }
            return self.die().await;
        }
        self.pass(self.store.write(name, parts)).await
    }
}

#[async_trait]
impl Storage for Link {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        self.write(name, Some(parts)).await
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.pass(self.store.at().read(name, range)).await
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        self.pass(self.store.at().read_tail(name, max)).await
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        self.pass(self.store.at().read_all(name, limit)).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        self.pass(self.store.at().size(name)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        self.pass(self.store.at().list(prefix)).await
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        self.pass(self.store.at().list_children(prefix)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.write(name, None).await
    }
}
