//! A host: a clock that is wrong, a database, and processes that do one thing each and may die.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pg::timeline::TimelineId;
use pg::wal::{FileName, SegmentName};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use repository::archive::{ArchiveError, WalInfo};
use repository::lease::{Lease, LeaseError};
use repository::manifest::Span;
use repository::{ClusterName, Repository, RepositoryError};
use storage::StorageError;
use tokio::time::sleep;

use crate::backup::{self, Reader};
use crate::link::Arrival;
use crate::model::Files;
use crate::world::World;

/// The segments of all hosts' WAL; a few, so that two of them push the same.
const SEGMENTS: u32 = 12;

pub struct Host {
    number: usize,
    cluster: ClusterName,
    /// How wrong its clock is: up to a day.
    skew: SignedDuration,
    files: Files,
    versions: u64,
    /// Its own files about the repository, if it keeps some.
    local: Option<tempfile::TempDir>,
    /// Whether it has the key to read; a host that has not needs its own files to compare with.
    reads: bool,
    random: StdRng,
}

/// How a process ended that did not die.
type Ended = Result<(), RepositoryError>;

pub fn segment_name(number: u32) -> FileName {
    FileName::Segment(SegmentName { timeline: TimelineId::FIRST, log: 0, segment: number })
}

impl Host {
    pub fn new(number: usize, world: &World, mut random: StdRng) -> Self {
        let skew = SignedDuration::from_secs(random.random_range(-86_400..=86_400));
        let cluster = world.clusters[random.random_range(0..world.clusters.len())].clone();
        let local = random.random_bool(0.3).then(|| tempfile::tempdir().unwrap());
        let reads = random.random_bool(0.8);
        Self { number, cluster, skew, files: Files::new(), versions: 0, local, reads, random }
    }

    pub async fn live(mut self, world: &World) {
        for _ in 0..self.random.random_range(3..=6) {
            // Mostly at the same time as the others.
            let longest = if self.random.random_bool(0.7) { 60_000 } else { 6 * 3_600_000 };
            sleep(Duration::from_millis(self.random.random_range(0..longest))).await;
            let death = self.random.random_bool(0.25).then(|| {
                let arrival = match self.random.random_range(0..3) {
                    0 => Arrival::Never,
                    1 => Arrival::Now,
                    _ => Arrival::Later(Duration::from_millis(self.random.random_range(0..600_000))),
                };
                (self.random.random_range(0..16), arrival)
            });
            if self.random.random_bool(0.2) {
                self.spoil_local();
            }
            let random = StdRng::seed_from_u64(self.random.random());
            let local = self.local.as_ref().map(tempfile::TempDir::path);
            let (repository, link) = world.process(death, random, local, self.reads);
            let died = tokio::select! {
                biased;
                () = link.died.notified() => true,
                ended = self.act(world, &repository) => {
                    self.told(world, ended);
                    false
                }
            };
            let mut model = world.model.lock().unwrap();
            model.counts.crashes += u64::from(died);
            if model.alone == Some(self.number) {
                model.alone = None;
            }
        }
    }

    async fn act(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        match self.random.random_range(0..10) {
            0..=2 => self.back_up(world, repository).await,
            3..=4 => self.push(world, repository).await,
            5 => self.verify(world, repository).await,
            _ => self.care(world, repository).await,
        }
    }

    /// Half of the host's own files are cut short: as good as none.
    fn spoil_local(&mut self) {
        let mut open: Vec<_> = self.local.iter().map(|folder| folder.path().to_owned()).collect();
        while let Some(path) = open.pop() {
            if path.is_dir() {
                let mut below: Vec<_> = path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
                below.sort();
                open.extend(below);
            } else if self.random.random_bool(0.5) {
                std::fs::write(path, b"cut").unwrap();
            }
        }
    }

    /// An error may come whenever the storage fails; what it may not be is damage that nobody did.
    fn told(&self, world: &World, ended: Ended) {
        let Err(error) = ended else { return };
        let mut model = world.model.lock().unwrap();
        model.counts.failures += 1;
        if error.is_damage() && !world.damages {
            model.broken.push(format!("host {}: {error}", self.number));
        }
    }

    /// What this host believes to be the time.
    fn now(&self, world: &World) -> Timestamp {
        world.store.now() + self.skew
    }

    /// Some files come, go and change.
    fn change(&mut self) {
        for _ in 0..self.random.random_range(1..4) {
            let path = format!("base/1/{}", self.random.random_range(0..5));
            self.versions += 1;
            // No other host's file has this version.
            let version = self.versions * 8 + self.number as u64;
            let length = self.random.random_range(1..9_000);
            let content = version.to_le_bytes().into_iter().cycle().take(length).collect();
            match self.random.random_bool(0.8) {
                true => drop(self.files.insert(path, (version, content))),
                false => drop(self.files.remove(&path)),
            }
        }
    }

    async fn back_up(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        self.change();
        let full = self.random.random_bool(0.3);
        let now = self.now(world);
        let kind = if full { "full" } else { "incr" };
        let id = format!("{}-{kind}", now.strftime("%Y%m%dT%H%M%SZ"));
        let key = (self.cluster.clone(), id.clone());
        if world.model.lock().unwrap().begun.contains_key(&key) {
            // Two hosts whose clocks say the same second: only one can have the name. Tried, it would be refused.
            return Ok(());
        }
        world.model.lock().unwrap().begun.insert(key.clone(), self.files.clone());
        let start = u64::from(self.random.random_range(1..SEGMENTS)) << 24;
        let request = backup::Request {
            cluster: self.cluster.clone(),
            id,
            files: self.files.clone(),
            full,
            partial_after: self.random.random_bool(0.4).then(|| self.random.random_range(1..3)),
            span: Span {
                start_lsn: start,
                stop_lsn: start + 100,
                timeline: 1,
                start_us: now.as_microsecond(),
                stop_us: now.as_microsecond(),
                settled_before_ns: i64::MAX,
            },
        };
        let (taken, partials) = backup::take(repository, &request).await?;
        let mut model = world.model.lock().unwrap();
        model.counts.backups += 1;
        model.counts.incrementals += u64::from(taken);
        model.counts.partials += partials;
        model.acknowledged.push(key);
        Ok(())
    }

    async fn push(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        let number = self.random.random_range(0..SEGMENTS);
        // Where names are not kept by the storage, two histories in one stream are nobody's to tell.
        let other = world.create_only() && self.random.random_bool(0.2);
        let content = vec![if other { 100 + self.number as u8 } else { number as u8 }; 300];
        let name = segment_name(number);
        let info = WalInfo::new(&name, content.len() as u64, self.now(world));
        match repository.store_wal(&self.cluster, &name, &content, &info, 1).await {
            Ok(_) => world.model.lock().unwrap().acknowledge_wal(&self.cluster, number, content),
            Err(ArchiveError::Conflict { .. }) => world.model.lock().unwrap().counts.conflicts += 1,
            Err(ArchiveError::Repository(error)) => return Err(error),
            Err(error) => world.model.lock().unwrap().broken.push(error.to_string()),
        }
        Ok(())
    }

    async fn verify(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        let chosen = {
            let model = world.model.lock().unwrap();
            let count = model.acknowledged.len();
            (count > 0).then(|| model.acknowledged[self.random.random_range(0..count)].clone())
        };
        let Some((cluster, id)) = chosen.filter(|_| self.reads) else { return Ok(()) };
        let manifest = repository.manifest(&cluster, &id).await?;
        let files = Reader::new(repository).files(&manifest).await?;
        let mut model = world.model.lock().unwrap();
        model.counts.verified += 1;
        if files != model.begun[&(cluster, id.clone())] {
            model.broken.push(format!("backup {id} read back with other files"));
        }
        Ok(())
    }

    /// Takes the lease, and does what must be alone, piece by piece.
    async fn care(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        let patience = Duration::from_secs(self.random.random_range(0..1_500));
        let taken = Lease::take(repository, "maintenance", &format!("host {}", self.number), patience).await;
        let mut lease = match taken {
            Ok(lease) => lease,
            Err(error) => return self.without_lease(world, error),
        };
        world.model.lock().unwrap().counts.leases += 1;
        for _ in 0..self.random.random_range(1..6) {
            if let Err(error) = lease.confirm().await {
                return self.without_lease(world, error);
            }
            self.alone(world).await;
            // Some are slow in between: then the lease may be lost, and they must hear of it.
            let pause = if self.random.random_bool(0.5) { 900_000 } else { 60_000 };
            sleep(Duration::from_millis(self.random.random_range(0..pause))).await;
        }
        match lease.release().await {
            Err(error) => self.without_lease(world, error),
            Ok(()) => Ok(()),
        }
    }

    /// A piece of work that nobody else may be at.
    async fn alone(&mut self, world: &World) {
        {
            let mut model = world.model.lock().unwrap();
            if let Some(other) = model.alone.filter(|other| *other != self.number) {
                model.broken.push(format!("hosts {other} and {} are alone at the same time", self.number));
            }
            model.alone = Some(self.number);
        }
        sleep(Duration::from_millis(self.random.random_range(0..20_000))).await;
        world.model.lock().unwrap().alone = None;
    }

    fn without_lease(&self, world: &World, error: LeaseError) -> Ended {
        match error {
            LeaseError::Held { .. } => world.model.lock().unwrap().counts.refused_leases += 1,
            LeaseError::Lost { .. } => world.model.lock().unwrap().counts.lost_leases += 1,
            // Nobody can say which of two is alone without asking the storage.
            LeaseError::Repository(RepositoryError::Storage(StorageError::NameTaken { .. })) => {}
            LeaseError::Repository(error) => return Err(error),
        }
        Ok(())
    }
}
