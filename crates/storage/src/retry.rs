//! Trying again.

mod stream;

use crate::chance;
use crate::error::{Action, Call};
use crate::{Children, Entry, LockRule, ObjectName, Storage, StorageError, Tail, planted};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;

/// The most bytes for which a call gets extra time when it does not say how many it will move.
const UNSTATED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One failure is everyday; so many mean that somebody is waiting and should know why.
const WORTH_A_WARNING: u32 = 3;

/// How long one call goes on trying, and how long one try may take.
///
/// Bytes to be moved add time to both: below `slowest_bytes_per_second` a connection counts as stuck. The
/// defaults outlast a restart of a storage server and a throttled minute, and still end well before an
/// operator gives up; whoever must answer PostgreSQL sooner sets a shorter `deadline`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// From the start of a call to its failure, for a call that moves no bytes.
    pub deadline: Duration,
    /// The longest one try may take, for a call that moves no bytes.
    pub attempt: Duration,
    /// The longest pause after the first failure; it doubles with each failure. The pause itself is drawn by
    /// chance between half of it and all of it, so that many clients do not return at once.
    pub first_pause: Duration,
    /// What the pause stops doubling at.
    pub longest_pause: Duration,
    /// The speed by which bytes add time.
    pub slowest_bytes_per_second: u64,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            deadline: Duration::from_secs(120),
            attempt: Duration::from_secs(30),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(10),
            slowest_bytes_per_second: 256 * 1024,
        }
    }
}

impl RetryPolicy {
    fn time_for(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.slowest_bytes_per_second.max(1) as f64)
    }

    /// The pause after the failure number `failures`, counted from one.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << (failures - 1).min(20));
        doubled.min(self.longest_pause).mul_f64(chance::between(0.5, 1.0))
    }
}

/// Why trying ended.
#[derive(Debug, thiserror::Error)]
enum GaveUp {
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    #[error("gave up after {tries} tries in {} s", .elapsed.as_secs())]
    Deadline { tries: u32, elapsed: Duration, source: crate::Cause },
}

/// A storage whose calls are repeated until they succeed, fail for good, or their time is over.
///
/// All calls can be repeated. A create whose reply was lost finds its name taken: then the object is read
/// back, and the same bytes are a success. Two writers that create the same bytes under one name may
/// therefore both succeed if the storage falters; where only one may, the bytes must tell them apart.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    policy: RetryPolicy,
}

impl<S: Storage> Retry<S> {
    /// Repeats the calls on `inner` by `policy`.
    pub fn new(inner: S, policy: RetryPolicy) -> Retry<S> {
        Retry { inner, policy }
    }

    /// The storage whose calls are repeated.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn trying(&self, call: Call, subject: &str, bytes: u64) -> Trying<'_> {
        Trying::new(&self.policy, Action::new(call, subject), bytes)
    }

    async fn holds(
        &self,
        trying: &mut Trying<'_>,
        name: &ObjectName,
        parts: &[Bytes],
    ) -> Result<bool, StorageError> {
        let length = parts.iter().map(Bytes::len).sum::<usize>() as u64;
        match trying.run(|| self.inner.read_all(name, length)).await {
            Ok(stored) => Ok(stored.iter().eq(parts.iter().flatten())),
            Err(StorageError::TooLarge { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl<S: Storage> Storage for Retry<S> {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        let length = parts.iter().map(Bytes::len).sum::<usize>() as u64;
        let mut trying = self.trying(Call::Create, name.as_str(), length);
        match trying.run(|| self.inner.create(name, parts)).await {
            Err(StorageError::NameTaken { .. }) if trying.failures > 0 => {
                match planted::has("create.unread") || self.holds(&mut trying, name, parts).await? {
                    true => Ok(()),
                    false => Err(StorageError::NameTaken { name: name.clone() }),
                }
            }
            done => done,
        }
    }

    async fn prepare(&self, name: &ObjectName) {
        self.inner.prepare(name).await;
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let length = range.end.saturating_sub(range.start);
        self.trying(Call::Read, name.as_str(), length).run(|| self.inner.read(name, range.clone())).await
    }

    fn read_stream<'a>(
        &'a self,
        name: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxStream<'a, Result<Bytes, StorageError>> {
        self.stream(name, range)
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        let bytes = max.min(UNSTATED_BYTES_MAX);
        self.trying(Call::ReadTail, name.as_str(), bytes).run(|| self.inner.read_tail(name, max)).await
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        let bytes = limit.min(UNSTATED_BYTES_MAX);
        self.trying(Call::ReadAll, name.as_str(), bytes).run(|| self.inner.read_all(name, limit)).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        self.trying(Call::Size, name.as_str(), 0).run(|| self.inner.size(name)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        self.trying(Call::List, prefix, 0).run_unbounded(|| self.inner.list(prefix)).await
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        self.trying(Call::ListChildren, prefix, 0).run_unbounded(|| self.inner.list_children(prefix)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let mut trying = self.trying(Call::Delete, name.as_str(), 0);
        match trying.run(|| self.inner.delete(name)).await {
            // An earlier try whose reply was lost may have deleted it; gone it is.
            Err(StorageError::NotFound { .. }) if trying.failures > 0 => Ok(()),
            done => done,
        }
    }

    async fn remove(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.trying(Call::Delete, name.as_str(), 0).run(|| self.inner.remove(name)).await
    }

    fn lock_rule(&self) -> Option<LockRule> {
        self.inner.lock_rule()
    }

    async fn lock_until(&self, name: &ObjectName, until: Timestamp) -> Result<(), StorageError> {
        self.trying(Call::Lock, name.as_str(), 0).run(|| self.inner.lock_until(name, until)).await
    }

    async fn locked_until(&self, name: &ObjectName) -> Result<Option<Timestamp>, StorageError> {
        self.trying(Call::LockedUntil, name.as_str(), 0).run(|| self.inner.locked_until(name)).await
    }
}

/// One call on its way: what it has used of its time.
pub(crate) struct Trying<'a> {
    policy: &'a RetryPolicy,
    action: Action,
    bytes: u64,
    start: Instant,
    /// Tries that ended in a way that may have reached the storage.
    failures: u32,
}

impl<'a> Trying<'a> {
    pub(crate) fn new(policy: &'a RetryPolicy, action: Action, bytes: u64) -> Trying<'a> {
        Trying { policy, action, bytes, start: Instant::now(), failures: 0 }
    }

    /// Repeats `attempt`, each try and all of them together within their time.
    pub(crate) async fn run<T, F>(&mut self, attempt: impl Fn() -> F) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let longest = self.policy.attempt + self.policy.time_for(self.bytes);
        loop {
            let limit = longest.min(self.end().saturating_duration_since(Instant::now()));
            let failure = match tokio::time::timeout(limit, attempt()).await {
                Ok(Err(StorageError::Transient { source, .. })) => source,
                Ok(done) => return done,
                Err(_) => GaveUp::NoAnswer(limit).into(),
            };
            self.pause_after(failure).await?;
        }
    }

    /// Repeats `attempt`, whose length is not bounded because it takes care of its own parts, such as pages
    /// of a listing.
    async fn run_unbounded<T, F>(&mut self, attempt: impl Fn() -> F) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        loop {
            match attempt().await {
                Err(StorageError::Transient { source, .. }) => self.pause_after(source).await?,
                done => return done,
            }
        }
    }

    /// Waits before the next try, or fails when there is no time for one.
    async fn pause_after(&mut self, source: crate::Cause) -> Result<(), StorageError> {
        self.failures += 1;
        let pause = self.policy.pause(self.failures);
        if Instant::now() + pause >= self.end() {
            let source = GaveUp::Deadline { tries: self.failures, elapsed: self.start.elapsed(), source };
            return Err(StorageError::Transient { action: self.action.clone(), source: source.into() });
        }
        if self.failures < WORTH_A_WARNING {
            tracing::debug!(action = %self.action, tries = self.failures, ?pause, fault = %source, "trying again");
        } else {
            tracing::warn!(action = %self.action, tries = self.failures, fault = %source, "the storage does not answer; trying again");
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn end(&self) -> Instant {
        self.start + self.policy.deadline + self.policy.time_for(self.bytes)
    }
}
