//! One history: the storage, its weather, the hosts, and the last judgement.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use repository::archive::Identity;
use repository::description::Description;
use repository::secrets::{Access, Keyring, RepositoryId};
use repository::{ClusterName, Repository, layout};
use storage::{Faulty, Memory, ObjectName, Odds, Retry, RetryPolicy, Storage, StorageError};
use tokio::time::{Instant, sleep};

use crate::host::Host;
use crate::judge;
use crate::link::{Arrival, Link};
use crate::model::{Counts, Model};

/// The storage that all hosts share.
#[derive(Debug)]
pub struct Store {
    pub memory: Arc<Memory>,
    pub faulty: Faulty<Arc<Memory>>,
    /// Whether it refuses to create what is there.
    create_only: bool,
    epoch: Timestamp,
    pub began: Instant,
    /// What some plan listed, or may go without one.
    planned: Mutex<BTreeSet<ObjectName>>,
    /// What was to be deleted and no plan listed.
    pub unplanned: Mutex<Vec<ObjectName>>,
}

impl Store {
    /// From now on these may be deleted.
    pub fn allow(&self, names: impl IntoIterator<Item = ObjectName>) {
        self.planned.lock().unwrap().extend(names);
    }

    fn may_go(&self, name: &ObjectName) -> bool {
        let is_wal_note = layout::parse_expired_wal(name.last_part()).is_some();
        name.as_str().starts_with(layout::LEASES)
            || is_wal_note
            || self.planned.lock().unwrap().contains(name)
    }

    /// The storage at this moment of its own clock.
    pub fn at(&self) -> &Faulty<Arc<Memory>> {
        self.memory.set_clock(self.now());
        &self.faulty
    }

    /// What the storage's own clock says.
    pub fn now(&self) -> Timestamp {
        self.epoch + self.began.elapsed()
    }

    /// Creates an object, or deletes it.
    pub async fn write(&self, name: &ObjectName, parts: Option<&[Bytes]>) -> Result<(), StorageError> {
        let Some(parts) = parts else {
            if !self.may_go(name) {
                self.unplanned.lock().unwrap().push(name.clone());
            }
            return self.at().delete(name).await;
        };
        if self.create_only {
            return self.at().create(name, parts).await;
        }
        // As a bucket without conditional writes is written to: look, then write, and time between.
        match self.at().size(name).await {
            Ok(_) => return Err(StorageError::NameTaken { name: name.clone() }),
            Err(StorageError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        sleep(Duration::from_millis(5)).await;
        match self.at().create(name, parts).await {
            Err(StorageError::NameTaken { .. }) => {
                self.memory.damage(name, Some(parts.concat().into()));
                Ok(())
            }
            other => other,
        }
    }
}

pub struct World {
    pub store: Arc<Store>,
    pub model: Mutex<Model>,
    pub clusters: Vec<ClusterName>,
    /// So many good backups make the window.
    pub keep: u32,
    keyring: Keyring,
    pub description: Description,
    /// Whether reads may come back damaged.
    pub damages: bool,
    odds: Odds,
    random: StdRng,
}

/// The weather of a history.
fn weather(random: &mut StdRng, create_only: bool) -> Odds {
    // Whoever settles who was first by waiting relies on writes that do not wait longer.
    let longest = if create_only { Duration::from_secs(40) } else { Duration::from_millis(800) };
    match random.random_range(0..5) {
        0 => Odds::default(),
        1 => Odds { fail: 300, lose_reply: 300, delay: 300, longest, ..Odds::default() },
        2 => Odds { late: 1_500, stale: 1_000, omit: 1_000, repeat: 1_000, longest, ..Odds::default() },
        3 => Odds { refuse: 100, full: 100, truncate: 200, flip: 200, longest, ..Odds::default() },
        _ => Odds::all(100, longest),
    }
}

impl World {
    pub async fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let create_only = random.random_bool(0.75);
        let clusters = ["main", "other"].map(|name| ClusterName::new(name).unwrap()).to_vec();
        let keep = random.random_range(1..=2);
        let memory = Arc::new(Memory::new());
        let epoch: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
        memory.set_clock(epoch);
        let keyring = Keyring::generate(RepositoryId([7; 16]));
        let description = Description::new(&keyring.writer, epoch, create_only);
        let created = Repository::create(memory.clone(), keyring.clone(), &[], description.clone(), None);
        let created = created.await.unwrap();
        let identity = Identity { system_identifier: 7, segment_size: 16 << 20, major: 15, logical: false };
        for cluster in &clusters {
            created.bind(cluster, &identity).await.unwrap();
        }
        let odds = weather(&mut random, create_only);
        let faulty = Faulty::by_chance(seed, odds, memory.clone());
        let (planned, unplanned) = (Mutex::default(), Mutex::default());
        let store = Store { memory, faulty, create_only, epoch, began: Instant::now(), planned, unplanned };
        let damages = odds.flip + odds.truncate > 0;
        let (store, model) = (Arc::new(store), Mutex::default());
        Self { store, model, clusters, keep, keyring, description, damages, odds, random }
    }

    /// Says what happens, where one history is told.
    pub fn tell(&self, host: usize, what: impl FnOnce() -> String) {
        if crate::TOLD.load(std::sync::atomic::Ordering::Relaxed) {
            let time = self.store.now().strftime("%d. %H:%M:%S%.3f");
            eprintln!("{time} host {host}: {}", what());
        }
    }

    pub fn create_only(&self) -> bool {
        self.store.create_only
    }

    /// A new process of a host that keeps files of its own in `local`, and perhaps may only write.
    pub fn process(
        &self,
        death: Option<(u64, Arrival)>,
        random: StdRng,
        local: Option<&Path>,
        reads: bool,
    ) -> (Arc<Repository>, Arc<Link>) {
        let link = Arc::new(Link::new(self.store.clone(), death, random));
        let storage = Arc::new(Retry::new(link.clone(), RetryPolicy::default()));
        (Arc::new(self.repository(storage, local, reads)), link)
    }

    pub fn repository(&self, storage: Arc<dyn Storage>, local: Option<&Path>, reads: bool) -> Repository {
        let access = match reads {
            true => Access::Full(self.keyring.clone()),
            false => Access::Write(self.keyring.writer.clone()),
        };
        Repository::assemble(storage, self.description.clone(), access, local)
    }

    pub async fn live(mut self) -> Result<Counts, String> {
        let count = self.random.random_range(2..=3);
        let seeds: Vec<u64> = (0..count).map(|_| self.random.random()).collect();
        let hosts: Vec<Host> = seeds
            .into_iter()
            .enumerate()
            .map(|(number, seed)| Host::new(number, &self, StdRng::seed_from_u64(seed)))
            .collect();
        let world = &self;
        futures_util::future::join_all(hosts.into_iter().map(|host| host.live(world))).await;
        // What was still on its way arrives, the sun comes out, and everything is looked at.
        sleep(Duration::from_secs(3600)).await;
        self.store.faulty.clear();
        self.model.lock().unwrap().counts.minutes = self.store.began.elapsed().as_secs() / 60;
        judge::everything(&self).await;
        let model = self.model.into_inner().unwrap();
        match model.broken.first() {
            None => Ok(model.counts),
            Some(_) => Err(format!("{} under {:?}", model.broken.join("; "), self.odds)),
        }
    }
}
