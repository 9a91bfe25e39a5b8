//! Faults on purpose.

mod listing;
mod odds;

pub use odds::Odds;

use crate::error::{Action, Call};
use crate::{Children, Entry, LockRule, ObjectName, Storage, StorageError, Tail};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::future::Future;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done; the error is transient.
    Fail,
    /// Nothing is done; access is refused.
    Refuse,
    /// Nothing is done; there is no space.
    Full,
    /// It is done, but the answer is a transient error.
    LoseReply,
    /// The answer has only so many of its bytes.
    Truncate(usize),
    /// The lowest bit of this byte of the answer is another.
    Flip(usize),
    /// It is done later.
    Delay(Duration),
    /// It never ends.
    Hang,
    /// It is done, but listings show it only after this time.
    Late(Duration),
    /// The listing lacks this one of its entries, counted from zero and again from the first behind the last.
    Omit(usize),
    /// The listing has this one of its entries twice.
    Repeat(usize),
    /// The listing is the one before, if this prefix was listed before.
    Stale,
}

/// Which calls a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Calls of one kind.
    Of(Call),
    /// Creates, deletes and locks.
    Writes,
    /// All that change nothing.
    Reads,
    /// Every call.
    Any,
}

/// A fault for some of the calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The calls that are counted.
    pub calls: Calls,
    /// How many of them are left alone first.
    pub skip: u64,
    /// How many of them are hit after that; `u64::MAX` for all.
    pub hit: u64,
    /// What happens to them.
    pub fault: Fault,
}

/// A storage on which chosen calls go wrong.
#[derive(Debug)]
pub struct Faulty<S> {
    inner: S,
    /// Rules with the number of calls each has counted.
    rules: Mutex<Vec<(Rule, u64)>>,
    /// What happens to calls that no rule hits.
    chance: Mutex<Option<(StdRng, Odds)>>,
    listings: listing::Listings,
}

impl<S: Storage> Faulty<S> {
    /// Nothing goes wrong yet.
    pub fn new(inner: S) -> Faulty<S> {
        Faulty { inner, rules: Mutex::default(), chance: Mutex::default(), listings: Default::default() }
    }

    /// Calls go wrong by chance: the same calls in the same order the same way for the same `seed`.
    pub fn by_chance(seed: u64, odds: Odds, inner: S) -> Faulty<S> {
        let faulty = Faulty::new(inner);
        faulty.set_odds(seed, odds);
        faulty
    }

    /// From now on calls go wrong by these odds.
    pub fn set_odds(&self, seed: u64, odds: Odds) {
        *locked(&self.chance) = Some((StdRng::seed_from_u64(seed), odds));
    }

    /// The create, delete or lock number `n`, counted from zero, fails without being done.
    pub fn failing_write(n: u64, inner: S) -> Faulty<S> {
        let faulty = Faulty::new(inner);
        faulty.add(Rule { calls: Calls::Writes, skip: n, hit: 1, fault: Fault::Fail });
        faulty
    }

    /// Everything from the create, delete or lock number `n` on fails: what a process that died there would have
    /// left.
    pub fn dying_at_write(n: u64, inner: S) -> Faulty<S> {
        let faulty = Faulty::new(inner);
        faulty.add(Rule { calls: Calls::Writes, skip: n, hit: u64::MAX, fault: Fault::Refuse });
        faulty
    }

    /// Adds a rule, which counts from now on. The first rule that hits a call decides.
    pub fn add(&self, rule: Rule) {
        self.rules().push((rule, 0));
    }

    /// Lets everything go right again.
    pub fn clear(&self) {
        self.rules().clear();
        *locked(&self.chance) = None;
    }

    /// The storage below.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn rules(&self) -> MutexGuard<'_, Vec<(Rule, u64)>> {
        locked(&self.rules)
    }

    fn fault(&self, call: Call) -> Option<Fault> {
        let mut decided = None;
        for (rule, counted) in self.rules().iter_mut() {
            if rule.calls.include(call) {
                let hits = *counted >= rule.skip && *counted - rule.skip < rule.hit;
                *counted += 1;
                if hits && decided.is_none() {
                    decided = Some(rule.fault.clone());
                }
            }
        }
        decided.or_else(|| locked(&self.chance).as_mut().and_then(|(random, odds)| odds.draw(call, random)))
    }

    /// Does `work` under the fault that its turn brings; `damage` is applied to its answer.
    async fn run<T>(
        &self,
        action: Action,
        work: impl Future<Output = Result<T, StorageError>>,
        damage: impl Fn(T, &Fault) -> T,
    ) -> Result<T, StorageError> {
        let Some(fault) = self.fault(action.call) else { return work.await };
        let source = || "a fault on purpose".into();
        match &fault {
            Fault::Fail => Err(StorageError::Transient { action, source: source() }),
            Fault::Refuse => Err(StorageError::Refused { action, source: source() }),
            Fault::Full => Err(StorageError::Full { action, source: source() }),
            Fault::LoseReply => {
                let _ = work.await;
                Err(StorageError::Transient { action, source: source() })
            }
            Fault::Truncate(_) | Fault::Flip(_) | Fault::Omit(_) | Fault::Repeat(_) | Fault::Stale => {
                Ok(damage(work.await?, &fault))
            }
            Fault::Late(time) => {
                self.listings.hide(&action.subject, *time);
                work.await
            }
            Fault::Delay(time) => {
                tokio::time::sleep(*time).await;
                work.await
            }
            Fault::Hang => std::future::pending().await,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Calls {
    fn include(self, call: Call) -> bool {
        let writes = matches!(call, Call::Create | Call::Delete | Call::Lock);
        match self {
            Calls::Of(one) => one == call,
            Calls::Writes => writes,
            Calls::Reads => !writes,
            Calls::Any => true,
        }
    }
}

#[async_trait]
impl<S: Storage> Storage for Faulty<S> {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        let action = Action::new(Call::Create, name.as_str());
        self.run(action, self.inner.create(name, parts), unharmed).await
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.run(Action::new(Call::Read, name.as_str()), self.inner.read(name, range), harmed).await
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        let harmed_tail = |tail: Tail, fault: &Fault| Tail { bytes: harmed(tail.bytes, fault), ..tail };
        self.run(Action::new(Call::ReadTail, name.as_str()), self.inner.read_tail(name, max), harmed_tail)
            .await
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        self.run(Action::new(Call::ReadAll, name.as_str()), self.inner.read_all(name, limit), harmed).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        self.run(Action::new(Call::Size, name.as_str()), self.inner.size(name), unharmed).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let all = async { Ok(Children { prefixes: Vec::new(), entries: self.inner.list(prefix).await? }) };
        Ok(self.listing(Action::new(Call::List, prefix), all).await?.entries)
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        self.listing(Action::new(Call::ListChildren, prefix), self.inner.list_children(prefix)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.run(Action::new(Call::Delete, name.as_str()), self.inner.delete(name), unharmed).await
    }

    async fn remove(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.run(Action::new(Call::Delete, name.as_str()), self.inner.remove(name), unharmed).await
    }

    fn lock_rule(&self) -> Option<LockRule> {
        self.inner.lock_rule()
    }

    async fn lock_until(&self, name: &ObjectName, until: Timestamp) -> Result<(), StorageError> {
        let action = Action::new(Call::Lock, name.as_str());
        self.run(action, self.inner.lock_until(name, until), unharmed).await
    }

    async fn locked_until(&self, name: &ObjectName) -> Result<Option<Timestamp>, StorageError> {
        let action = Action::new(Call::LockedUntil, name.as_str());
        self.run(action, self.inner.locked_until(name), unharmed).await
    }
}

fn unharmed<T>(answer: T, _: &Fault) -> T {
    answer
}

fn harmed(bytes: Bytes, fault: &Fault) -> Bytes {
    match fault {
        Fault::Truncate(keep) => bytes.slice(..bytes.len().min(*keep)),
        Fault::Flip(at) if *at < bytes.len() => {
            let mut bytes = bytes.to_vec();
            bytes[*at] ^= 1;
            bytes.into()
        }
        _ => bytes,
    }
}
