//! Finished packs on their way: a bounded number at once, each counted when it is durable.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use repository::manifest::PackRef;
use repository::pack::SealedPack;
use repository::{PackId, Repository, RepositoryError};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::failpoint;

/// Packs on their way at once at most: they share one line, on which each must come through within the time for its bytes.
/// The memory of data packs is bounded before, by [`repository::pack::PackMemory`].
const IN_FLIGHT: usize = 4;

/// Stores packs in the background.
#[derive(Clone)]
pub(crate) struct Uploader {
    shared: Arc<Shared>,
}

struct Shared {
    repository: Arc<Repository>,
    handle: Handle,
    places: Arc<Semaphore>,
    durable: Mutex<HashMap<PackId, PackRef>>,
    failure: Mutex<Option<RepositoryError>>,
    failed: AtomicBool,
    stored_bytes: AtomicU64,
}

impl Uploader {
    pub(crate) fn new(repository: Arc<Repository>, handle: Handle) -> Self {
        Self {
            shared: Arc::new(Shared {
                repository,
                handle,
                places: Arc::new(Semaphore::new(IN_FLIGHT)),
                durable: Mutex::new(HashMap::new()),
                failure: Mutex::new(None),
                failed: AtomicBool::new(false),
                stored_bytes: AtomicU64::new(0),
            }),
        }
    }

    /// Hands a pack over; waits while too many are on their way. A failure shows in [`Uploader::failed`].
    pub(crate) fn submit(&self, pack: SealedPack) {
        let shared = self.shared.clone();
        let place = shared
            .handle
            .block_on(shared.places.clone().acquire_owned())
            .expect("the semaphore is never closed");
        let task = shared.clone();
        shared.handle.spawn(async move {
            let (id, size) = (pack.id, pack.len);
            let reference = task.repository.new_pack_ref(&pack);
            failpoint::reach("backup.pack");
            match task.repository.store_pack(pack).await {
                Ok(()) => {
                    task.stored_bytes.fetch_add(size, Ordering::Relaxed);
                    failpoint::reach("backup.pack-stored");
                    task.durable.lock().expect("no holder panics").insert(id, reference);
                }
                Err(error) => {
                    task.failed.store(true, Ordering::Release);
                    task.failure.lock().expect("no holder panics").get_or_insert(error);
                }
            }
            drop(place);
        });
    }

    /// True once a pack could not be stored.
    pub(crate) fn failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// A pack's place in a manifest, once this backup has stored it and it is durable.
    pub(crate) fn reference(&self, pack: PackId) -> Option<PackRef> {
        self.shared.durable.lock().expect("no holder panics").get(&pack).cloned()
    }

    /// Bytes stored so far.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.shared.stored_bytes.load(Ordering::Relaxed)
    }

    /// Waits until nothing is on its way; the first failure, if there was one.
    pub(crate) fn wait(&self) -> Result<(), RepositoryError> {
        let all = IN_FLIGHT as u32;
        drop(self.shared.handle.block_on(self.shared.places.acquire_many(all)).expect("never closed"));
        match self.shared.failure.lock().expect("no holder panics").take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
