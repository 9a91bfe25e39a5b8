//! Storing what came: whole segments as they are complete, parts of the first unfinished one as they are due.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use pg::wal::{FileName, SegmentName, StreamIdentity, check_segment};
use repository::archive::{ArchiveError, Identity, Part, WalContent as _};
use repository::{ClusterName, Repository};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::further::Further;
use super::health::Health;
use super::intake::{Compared, Intake, Work};
use super::segment::{Stretch, Ticket};
use super::{Notice, ReceiveError, Tell};
use crate::failpoint;

/// The pause after a failure, which doubles up to the second.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What storing needs.
pub(super) struct Store {
    pub(super) repository: Arc<Repository>,
    pub(super) cluster: ClusterName,
    pub(super) intake: Arc<Intake>,
    pub(super) identity: Identity,
    pub(super) max_lag: Duration,
    /// Threads that compress one segment.
    pub(super) threads: usize,
    /// Whether the server also archives by itself, so that segments may be there already.
    pub(super) archives_too: AtomicBool,
    pub(super) tell: Tell,
    /// Whether that works.
    pub(super) health: Health,
    /// Where else whole segments go.
    pub(super) further: Arc<Further>,
}

impl Store {
    /// Stores until `ended` says that nothing more comes and nothing is waited for. Failures that may pass are tried again for
    /// ever: what is not stored stays on the server.
    pub(super) async fn run(self: Arc<Self>, mut ended: watch::Receiver<bool>) -> Result<(), ReceiveError> {
        let mut tasks = JoinSet::new();
        loop {
            if *ended.borrow() {
                // What is under way is not waited for: nobody was told that it is stored.
                return Ok(());
            }
            let due = loop {
                match self.intake.next_work(Instant::now(), self.max_lag, Timestamp::now()) {
                    Ok(work) => drop(tasks.spawn(self.clone().work(work))),
                    Err(due) => break due,
                }
            };
            let wait = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(done) = tasks.join_next() => done.expect("storing does not panic and is not cancelled")?,
                () = self.intake.news.notified() => {}
                () = wait => {}
                _ = ended.changed() => {}
            }
        }
    }

    async fn work(self: Arc<Self>, work: Work) -> Result<(), ReceiveError> {
        match work {
            Work::Whole(ticket, name, content) => self.whole(ticket, name, content).await,
            Work::Part(ticket, part, content) => self.part(ticket, part, content).await,
            Work::Compare(ticket, parts) => self.compare(ticket, parts).await,
            Work::Remove(parts) => {
                // They cost a little room, and a later start removes them.
                if let Err(error) = self.repository.remove_parts(&self.cluster, &parts).await {
                    (self.tell)(Notice::Warning(format!("parts that are no longer needed stay: {error}")));
                }
                failpoint::reach("receive.parts-removed");
                self.intake.removed();
                Ok(())
            }
        }
    }

    async fn whole(
        &self,
        ticket: Ticket,
        name: SegmentName,
        content: Arc<Stretch>,
    ) -> Result<(), ReceiveError> {
        self.check(&name, &content)?;
        failpoint::reach("receive.whole");
        let stored = self.store_whole(name, content.clone()).await;
        let stored = self.judge(&name.to_string(), stored).await?;
        if stored {
            failpoint::reach("receive.whole-stored");
            self.further.offer(name, &content);
            (self.tell)(Notice::Stored { name });
        }
        self.intake.whole_done(ticket, stored);
        Ok(())
    }

    async fn store_whole(&self, name: SegmentName, content: Arc<Stretch>) -> Result<(), ArchiveError> {
        let file = FileName::Segment(name);
        if self.archives_too.load(Ordering::Relaxed)
            && let Some(stored) = self.repository.stored_digest(&self.cluster, &file).await?
        {
            let found = (self.digest(&content).await?, content.length());
            return if found == stored {
                Ok(())
            } else {
                Err(ArchiveError::Conflict { name: (&file).into() })
            };
        }
        self.repository.store_wal_file(&self.cluster, &file, content, self.threads).await.map(drop)
    }

    async fn part(&self, ticket: Ticket, part: Part, content: Arc<Stretch>) -> Result<(), ReceiveError> {
        self.check(&part.segment, &content)?;
        failpoint::reach("receive.part");
        let stored = self.repository.store_wal_file(&self.cluster, &part, content, 1).await.map(drop);
        let stored = self.judge(&part.to_string(), stored).await?;
        if stored {
            failpoint::reach("receive.part-stored");
            (self.tell)(Notice::PartStored { part });
        }
        self.intake.part_done(ticket, part, stored);
        Ok(())
    }

    /// Whether the parts of an earlier run hold what the server sent again. Other bytes under the same name mean that two
    /// servers wrote the same timeline. Damage is told and passed over: what came is there to be stored again.
    async fn compare(&self, ticket: Ticket, parts: Vec<(Part, Arc<Stretch>)>) -> Result<(), ReceiveError> {
        let mut found = Compared::default();
        for (part, content) in parts {
            let mut is_there = true;
            let compared = match self.is_same(&part, &content).await {
                Ok(found) => {
                    is_there = found;
                    Ok(())
                }
                Err(ArchiveError::Repository(error)) if error.is_damage() => {
                    let error = chain(&error);
                    let text = format!("{part} is damaged and is kept; its WAL is stored again: {error}");
                    (self.tell)(Notice::Warning(text));
                    found.damaged.push(part);
                    continue;
                }
                Err(error) => Err(error),
            };
            if !self.judge(&part.to_string(), compared).await? {
                break;
            }
            if is_there { &mut found.same } else { &mut found.gone }.push(part);
        }
        self.intake.compared(ticket, &found);
        Ok(())
    }

    /// Whether a stored part holds what came; false if it is not there.
    async fn is_same(&self, part: &Part, content: &Arc<Stretch>) -> Result<bool, ArchiveError> {
        match self.repository.stored_digest(&self.cluster, part).await? {
            None => Ok(false),
            Some(stored) if stored == (self.digest(content).await?, content.length()) => Ok(true),
            Some(_) => Err(ArchiveError::Conflict { name: part.into() }),
        }
    }

    async fn digest(&self, content: &Arc<Stretch>) -> Result<[u8; 32], ArchiveError> {
        let (content, hasher) = (content.clone(), self.repository.digester().content_hasher());
        let name = content.name();
        let digest = tokio::task::spawn_blocking(move || content.digest(hasher)).await;
        let digest = digest.expect("digesting does not panic and is not cancelled");
        digest.map_err(|source| ArchiveError::Content { name, source })
    }

    fn check(&self, name: &SegmentName, content: &Stretch) -> Result<(), ReceiveError> {
        let Identity { system_identifier, .. } = self.identity;
        let segment_size = self.intake.size();
        let head = content.head().map_err(|source| ReceiveError::Spool { source })?;
        check_segment(&head, name, &StreamIdentity { system_identifier, segment_size })?;
        Ok(())
    }

    /// True when it worked, false after a pause when it is to be tried again.
    async fn judge(&self, what: &str, stored: Result<(), ArchiveError>) -> Result<bool, ReceiveError> {
        match stored {
            Ok(()) => {
                if self.health.worked() {
                    (self.tell)(Notice::StorageBack);
                }
                Ok(true)
            }
            Err(error @ (ArchiveError::Conflict { .. } | ArchiveError::OtherCluster { .. })) => {
                Err(error.into())
            }
            Err(ArchiveError::Content { source, .. }) => Err(ReceiveError::Spool { source }),
            Err(error) => {
                let failures = self.health.failed();
                let pause = PAUSE.saturating_mul(1 << failures.min(8)).min(PAUSE_MAX);
                let waited = self.intake.overdue(Instant::now());
                (self.tell)(Notice::StorageFails { what: what.to_owned(), error: chain(&error), waited });
                sleep(pause).await;
                Ok(false)
            }
        }
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
