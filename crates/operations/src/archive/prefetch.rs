//! Fetching ahead the segments that recovery will ask for next.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pg::wal::{FileName, SegmentName, SegmentSize};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::Context;
use super::get::{GetError, fetch_once};
use super::spool::{Role, Spool};

/// How often a full spool is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a prefetcher did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefetched {
    /// Segments that came into the spool.
    pub segments: u64,
}

/// Keeps the spool filled with the segments after `after`, until one is absent or fails, or nobody takes them.
///
/// One prefetcher works for a server at a time; a second returns at once. What nobody took is removed at the end. An
/// error is only worth a line in a log: the call that PostgreSQL waits for meets it again and tells it.
pub async fn prefetch(
    context: &Context,
    wal_directory: &Path,
    after: SegmentName,
) -> Result<Prefetched, GetError> {
    let nothing = Ok(Prefetched::default());
    let Some(spool) = Spool::open(context, wal_directory).map(Arc::new) else { return nothing };
    let Some(_lock) = spool.lock(Role::Prefetch).await else { return nothing };
    let Ok(Some(identity)) = context.repository.identity(&context.cluster).await else { return nothing };
    let Ok(size) = SegmentSize::new(identity.segment_size) else { return nothing };
    spool.sweep();
    spool.keep_only(|name| name.timeline == after.timeline && *name > after);
    let mut fetcher = Fetcher {
        context,
        spool: &spool,
        size,
        running: JoinSet::new(),
        next: after.next(size),
        failed: None,
        done: Prefetched::default(),
    };
    fetcher.run().await;
    let (failed, done) = (fetcher.failed, fetcher.done);
    wait_until_taken(context, &spool).await;
    spool.keep_only(|_| false);
    match failed {
        Some((_, error)) if !matches!(error, GetError::Absent { .. }) => Err(error),
        _ => Ok(done),
    }
}

type Fetched = (SegmentName, Result<(), GetError>);

struct Fetcher<'a> {
    context: &'a Context,
    spool: &'a Arc<Spool>,
    size: SegmentSize,
    running: JoinSet<Fetched>,
    /// The segment to begin with next; `None` when no more are to be begun.
    next: Option<SegmentName>,
    /// The earliest segment that did not come.
    failed: Option<(SegmentName, GetError)>,
    done: Prefetched,
}

impl Fetcher<'_> {
    async fn run(&mut self) {
        let (mut here, mut since) = (self.spool.fetched_names().len(), Instant::now());
        loop {
            self.begin(here);
            if self.running.is_empty() && (self.next.is_none() || since.elapsed() > self.context.limits.idle)
            {
                return;
            }
            let finished = tokio::select! {
                finished = self.running.join_next(), if !self.running.is_empty() => finished,
                () = tokio::time::sleep(LOOK_EVERY) => None,
            };
            if let Some(finished) = finished {
                self.finish(finished);
            }
            let now = self.spool.fetched_names().len();
            if now != here || !self.running.is_empty() {
                since = Instant::now();
            }
            here = now;
        }
    }

    /// Begins as many fetches as there is room for beside the segments that are `here`.
    fn begin(&mut self, here: usize) {
        let limits = &self.context.limits;
        let (queue, at_once) = (limits.queue(self.size), limits.files_at_once(self.size.bytes().into()));
        while self.running.len() < at_once && here + self.running.len() < queue {
            let Some(name) = self.next else { return };
            self.next = name.next(self.size);
            if self.spool.has_fetched(&name) {
                continue;
            }
            let Ok(incoming) = self.spool.announce(&name) else {
                self.next = None;
                return;
            };
            let (context, spool) = (self.context.clone(), self.spool.clone());
            let threads = (context.limits.workers / at_once).max(1);
            self.running.spawn(async move {
                let fetched = fetch_once(&context, &FileName::Segment(name), threads, incoming).await;
                let kept = match fetched {
                    Ok((incoming, digest)) => spool
                        .keep_fetched(&name, incoming, digest)
                        .await
                        .map_err(|source| GetError::Write { path: spool.path(&name), source }),
                    Err(error) => Err(error),
                };
                (name, kept)
            });
        }
    }

    fn finish(&mut self, finished: Result<Fetched, JoinError>) {
        let (name, kept) = finished.expect("a fetch does not panic, and none is cancelled");
        match kept {
            Ok(()) => self.done.segments += 1,
            // Those that are under way may come before this one, and are waited for.
            Err(error) => {
                self.spool.forget_fetched(&name);
                self.next = None;
                if self.failed.as_ref().is_none_or(|(earliest, _)| name < *earliest) {
                    self.failed = Some((name, error));
                }
            }
        }
    }
}

/// Gives recovery the time to take what is here.
async fn wait_until_taken(context: &Context, spool: &Spool) {
    let (mut here, mut since) = (spool.fetched_names().len(), Instant::now());
    while here > 0 && since.elapsed() < context.limits.idle {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = spool.fetched_names().len();
        if now != here {
            since = Instant::now();
        }
        here = now;
    }
}
