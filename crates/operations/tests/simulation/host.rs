//! A host: a clock that is wrong, a database, and processes that do one thing each and may die.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pg::timeline::TimelineId;
use pg::wal::{FileName, SegmentName};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use repository::archive::{ArchiveError, WalInfo};
use repository::lease::{Lease, LeaseError};
use repository::manifest::Span;
use repository::{ClusterName, Repository, RepositoryError, layout};
use storage::StorageError;
use tokio::time::sleep;

use crate::backup::{self, Taken};
use crate::link::Arrival;
use crate::model::{Database, Files};
use crate::reader::Reader;
use crate::world::World;

pub const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Host {
    pub number: usize,
    pub cluster: ClusterName,
    /// How wrong its clock is: up to a day.
    skew: SignedDuration,
    /// Its own files about the repository, if it keeps some.
    local: Option<tempfile::TempDir>,
    /// Whether it has the key to read; a host that has not needs its own files to compare with.
    reads: bool,
    pub random: StdRng,
}

/// How a process ended that did not die.
pub type Ended = Result<(), RepositoryError>;

pub fn segment_name(number: u32) -> FileName {
    FileName::Segment(SegmentName { timeline: TimelineId::FIRST, log: 0, segment: number })
}

impl Host {
    pub fn new(number: usize, world: &World, mut random: StdRng) -> Self {
        let skew = SignedDuration::from_secs(random.random_range(-86_400..=86_400));
        let cluster = world.clusters[usize::from(random.random_bool(0.25))].clone();
        let local = random.random_bool(0.3).then(|| tempfile::tempdir().unwrap());
        let reads = random.random_bool(0.8);
        Self { number, cluster, skew, local, reads, random }
    }

    pub async fn live(mut self, world: &World) {
        for day in 0..self.random.random_range(2..=6) {
            // All hosts are at work in the same hours, days apart: what was marked in some may go in later ones.
            let hour = 3 * day * DAY + Duration::from_millis(self.random.random_range(0..600_000));
            sleep(hour.saturating_sub(world.store.began.elapsed())).await;
            for _ in 0..self.random.random_range(1..=4) {
                // Mostly at the same time as the others.
                let longest = if self.random.random_bool(0.8) { 60_000 } else { 6 * 3_600_000 };
                sleep(Duration::from_millis(self.random.random_range(0..longest))).await;
                self.run(world).await;
            }
        }
    }

    /// One process, which may die.
    async fn run(&mut self, world: &World) {
        let death = self.random.random_bool(0.25).then(|| {
            let arrival = match self.random.random_range(0..3) {
                0 => Arrival::Never,
                1 => Arrival::Now,
                _ => Arrival::Later(Duration::from_millis(self.random.random_range(0..600_000))),
            };
            let calls = if self.random.random_bool(0.5) { 20 } else { 700 };
            (self.random.random_range(0..calls), arrival)
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
        if died {
            world.tell(self.number, || format!("died: {death:?}"));
        }
        let mut model = world.model.lock().unwrap();
        model.counts.crashes += u64::from(died);
        if model.alone == Some(self.number) {
            model.alone = None;
        }
    }

    async fn act(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        match self.random.random_range(0..16) {
            0..4 => self.back_up(world, repository).await,
            4..6 => self.push(world, repository).await,
            6 => self.verify(world, repository).await,
            7..9 => self.care(world, repository).await,
            // To know what is named takes the key.
            _ if !self.reads => Ok(()),
            9..12 => self.expire(world, repository).await,
            _ => self.prune(world, repository).await,
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
        world.tell(self.number, || error.to_string());
        let mut model = world.model.lock().unwrap();
        model.counts.failures += 1;
        // A backup that does not come to exist loses nothing; but nothing that it names may have gone.
        let is_loss = error.is_damage() || matches!(error, RepositoryError::Lost { .. });
        if is_loss && !world.damages {
            model.broken.push(format!("host {}: {error}", self.number));
        }
    }

    /// What this host believes to be the time.
    pub fn now(&self, world: &World) -> Timestamp {
        world.store.now() + self.skew
    }

    /// Some files of the database come, go and change; what there is then.
    fn change(&mut self, world: &World) -> Files {
        let mut model = world.model.lock().unwrap();
        let Database { files, versions } = model.databases.entry(self.cluster.clone()).or_default();
        let count = if files.is_empty() { 12 } else { self.random.random_range(1..5) };
        for _ in 0..count {
            let path = format!("base/1/{}", self.random.random_range(0..8));
            *versions += 1;
            let mut content = vec![0; self.random.random_range(1..9_000)];
            StdRng::seed_from_u64(*versions).fill_bytes(&mut content);
            match self.random.random_bool(0.8) {
                true => drop(files.insert(path, (*versions, content))),
                false => drop(files.remove(&path)),
            }
        }
        files.clone()
    }

    async fn back_up(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        let files = self.change(world);
        let full = self.random.random_bool(0.3);
        let now = self.now(world);
        let kind = if full { "full" } else { "incr" };
        let id = backup::free_id(repository, &self.cluster, now, kind).await?;
        let key = (self.cluster.clone(), id.clone());
        if world.model.lock().unwrap().begun.contains_key(&key) {
            // Two hosts whose clocks say the same second: only one can have the name. Tried, it would be refused.
            return Ok(());
        }
        world.model.lock().unwrap().begun.insert(key.clone(), files.clone());
        world.store.allow([layout::claim(&self.cluster, &id)]);
        let cluster = self.cluster.clone();
        let partial_after = self.random.random_bool(0.4).then(|| self.random.random_range(1..3));
        let pauses = [0, 1].map(|_| match self.random.random_range(0..10) {
            0..2 => DAY.mul_f64(self.random.random_range(0.0..7.5)),
            _ => Duration::from_millis(self.random.random_range(0..60_000)),
        });
        let request = backup::Request { cluster, id: id.clone(), files, full, partial_after, pauses };
        let done = self.take(world, repository, &request).await;
        let mut model = match done {
            Err(error) => {
                repository.withdraw_claim(&self.cluster, &id).await;
                return Err(error);
            }
            Ok(None) => return Ok(()),
            Ok(Some((taken, partials))) => {
                let mut model = world.model.lock().unwrap();
                model.counts.incrementals += u64::from(taken);
                model.counts.partials += partials;
                model
            }
        };
        world.tell(self.number, || format!("{} has {}", key.0, key.1));
        model.counts.backups += 1;
        model.acknowledged.push(key);
        Ok(())
    }

    async fn take(
        &mut self,
        world: &World,
        repository: &Arc<Repository>,
        request: &backup::Request,
    ) -> Result<Option<(bool, u64)>, RepositoryError> {
        let begun = backup::begin(repository, request).await?;
        let segment = world.model.lock().unwrap().next_segment(&self.cluster);
        let key = (self.cluster.clone(), request.id.clone());
        world.model.lock().unwrap().place.insert(key, segment);
        let now = self.now(world).as_microsecond();
        let start = u64::from(segment) << 24;
        let span = Span {
            start_lsn: start + 40,
            stop_lsn: start + 100,
            timeline: 1,
            start_us: now,
            stop_us: now,
            settled_before_ns: i64::MAX,
        };
        world.tell(self.number, || format!("{} begins {} at {segment}", self.cluster, request.id));
        self.push_segment(world, repository, segment, segment as u8).await?;
        match begun.take(span).await? {
            Taken::There { taken, partials } => Ok(Some((taken, partials))),
            Taken::LacksWal => Ok(None),
            Taken::Overtaken => {
                world.model.lock().unwrap().counts.overtaken += 1;
                Ok(None)
            }
        }
    }

    async fn push(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        let number = {
            let mut model = world.model.lock().unwrap();
            match model.end.get(&self.cluster).copied() {
                Some(end) if self.random.random_bool(0.7) => self.random.random_range(1..=end),
                _ => model.next_segment(&self.cluster),
            }
        };
        // Where names are not kept by the storage, two histories in one stream are nobody's to tell.
        let other = world.create_only() && self.random.random_bool(0.2);
        let byte = if other { 100 + self.number as u8 } else { number as u8 };
        self.push_segment(world, repository, number, byte).await
    }

    async fn push_segment(
        &self,
        world: &World,
        repository: &Arc<Repository>,
        number: u32,
        byte: u8,
    ) -> Ended {
        let content = vec![byte; 300];
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
        let read = async {
            let manifest = repository.manifest(&cluster, &id).await?;
            Reader::new(repository).files(&manifest).await
        };
        let read = read.await;
        let mut model = world.model.lock().unwrap();
        let key = (cluster, id);
        if read.is_err() && model.expired.contains(&key) {
            return Ok(());
        }
        model.counts.verified += 1;
        if read? != model.begun[&key] {
            model.broken.push(format!("backup {} read back with other files", key.1));
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
        world.tell(self.number, || format!("has the lease, number {}", lease.number()));
        world.model.lock().unwrap().counts.leases += 1;
        for _ in 0..self.random.random_range(1..6) {
            if let Err(error) = lease.confirm().await {
                return self.without_lease(world, error);
            }
            world.tell(self.number, || format!("is alone by lease number {}", lease.number()));
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

    pub fn without_lease(&self, world: &World, error: LeaseError) -> Ended {
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
