//! Whole segments into further repositories, as far as that can be done in time.
//!
//! Each has a task and a short queue of its own. Nothing here is waited for: what a repository could not take is copied into
//! it later, and neither the first repository nor what the server hears depends on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use pg::wal::{FileName, SegmentName};
use repository::archive::Identity;
use repository::{ClusterName, Repository};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::segment::Stretch;
use super::store::chain;
use super::{Notice, Tell};
use crate::failure_note::REST;

/// Segments that wait for one repository: each keeps its file in the spool folder.
const QUEUE: usize = 4;
/// How long what waits may take at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens a repository, or says why that does not work.
pub type Open = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<Repository>, String>> + Send + Sync>;

/// A repository beside the first.
#[derive(Clone)]
pub struct FurtherRepository {
    /// What it is called.
    pub name: String,
    /// Opens it, when the first segment is whole, and again after a failure.
    pub open: Open,
    /// How long one segment may take.
    pub timeout: Duration,
}

type Segment = (SegmentName, Arc<Stretch>);

/// The further repositories, each with its task.
pub(super) struct Further {
    all: Vec<One>,
}

struct One {
    /// `None` ends the task.
    queue: mpsc::Sender<Option<Segment>>,
    health: Arc<Health>,
    /// Taken by whoever waits for its end.
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Tells of each change once.
struct Health {
    name: String,
    fails: AtomicBool,
    tell: Tell,
}

impl Health {
    fn failed(&self, error: String) {
        if !self.fails.swap(true, Ordering::Relaxed) {
            (self.tell)(Notice::FurtherFails { repository: self.name.clone(), error });
        }
    }

    fn worked(&self) {
        if self.fails.swap(false, Ordering::Relaxed) {
            (self.tell)(Notice::FurtherBack { repository: self.name.clone() });
        }
    }
}

impl Further {
    /// Starts a task for each.
    pub(super) fn start(
        repositories: Vec<FurtherRepository>,
        cluster: &ClusterName,
        identity: &Identity,
        tell: &Tell,
    ) -> Self {
        let start = |repository: FurtherRepository| {
            let (queue, waiting) = mpsc::channel(QUEUE);
            let (name, fails, tell) = (repository.name.clone(), AtomicBool::new(false), tell.clone());
            let health = Arc::new(Health { name, fails, tell });
            let carrier =
                Carrier { repository, opened: None, cluster: cluster.clone(), identity: identity.clone() };
            let task = Mutex::new(Some(tokio::spawn(carrier.run(waiting, health.clone()))));
            One { queue, health, task }
        };
        Self { all: repositories.into_iter().map(start).collect() }
    }

    /// Gives a segment that the first repository has to all of them; returns at once.
    pub(super) fn offer(&self, name: SegmentName, content: &Arc<Stretch>) {
        for one in &self.all {
            if one.queue.try_send(Some((name, content.clone()))).is_err() {
                one.health.failed("it takes segments more slowly than they come".to_owned());
            }
        }
    }

    /// Gives what waits a last chance.
    pub(super) async fn finish(&self) {
        let all = self.all.iter().map(async |one| {
            let task = one.task.lock().unwrap_or_else(PoisonError::into_inner).take();
            let last = async {
                // A task that is gone needs no word.
                let _ = one.queue.send(None).await;
                if let Some(task) = task {
                    let _ = task.await;
                }
            };
            if timeout(PATIENCE, last).await.is_err() {
                one.health.failed("what came last was not stored in time".to_owned());
            }
        });
        join_all(all).await;
    }
}

/// What the task of one repository has.
struct Carrier {
    repository: FurtherRepository,
    opened: Option<Arc<Repository>>,
    cluster: ClusterName,
    identity: Identity,
}

impl Carrier {
    async fn run(mut self, mut waiting: mpsc::Receiver<Option<Segment>>, health: Arc<Health>) {
        let mut failed_at: Option<Instant> = None;
        while let Some(Some((name, content))) = waiting.recv().await {
            if failed_at.is_some_and(|at| at.elapsed() < REST) {
                continue;
            }
            let bound = self.repository.timeout;
            let late = |_| Err(format!("{name} was not stored within {} s", bound.as_secs()));
            match timeout(bound, self.store(name, content)).await.unwrap_or_else(late) {
                Ok(()) => {
                    failed_at = None;
                    health.worked();
                }
                Err(error) => {
                    (failed_at, self.opened) = (Some(Instant::now()), None);
                    health.failed(error);
                }
            }
        }
    }

    async fn store(&mut self, name: SegmentName, content: Arc<Stretch>) -> Result<(), String> {
        let repository = match &self.opened {
            Some(repository) => repository.clone(),
            None => {
                let repository = (self.repository.open)().await?;
                let bound = repository.bind(&self.cluster, &self.identity).await;
                bound.map_err(|error| chain(&error))?;
                self.opened.insert(repository).clone()
            }
        };
        let file = FileName::Segment(name);
        let stored = repository.store_wal_file(&self.cluster, &file, content, 1).await;
        stored.map(drop).map_err(|error| chain(&error))
    }
}
