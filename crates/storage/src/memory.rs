//! Objects in memory, for tests: stricter than the real storages.

use crate::error::{Action, Call};
use crate::name::{below, checked_prefix};
use crate::{Children, Entry, LockRule, ObjectName, Storage, StorageError, Tail};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// A storage that lives as long as the value.
///
/// It refuses what only some real storages refuse: an object below another object (`a` and `a/b`), and the delete of an
/// object that is locked, which buckets only hide.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone)]
struct State {
    objects: BTreeMap<ObjectName, Object>,
    clock: Option<Timestamp>,
    lock: Option<LockRule>,
}

#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    created: Timestamp,
    locked_until: Option<Timestamp>,
}

impl Memory {
    /// An empty storage.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Creates later objects at `now`, instead of the machine's time.
    pub fn set_clock(&self, now: Timestamp) {
        self.state().clock = Some(now);
    }

    /// Locks what is created from now on, or nothing any more.
    pub fn set_lock(&self, rule: Option<LockRule>) {
        self.state().lock = rule;
    }

    /// The names of all objects, in order.
    pub fn names(&self) -> Vec<ObjectName> {
        self.state().objects.keys().cloned().collect()
    }

    /// The bytes of an object, without a call that a wrapper would see.
    pub fn bytes(&self, name: &ObjectName) -> Option<Bytes> {
        self.state().objects.get(name).map(|object| object.bytes.clone())
    }

    /// Puts other bytes under a name, or removes it: damage, as a test wants it.
    pub fn damage(&self, name: &ObjectName, bytes: Option<Bytes>) {
        let mut state = self.state();
        match bytes {
            Some(bytes) => {
                let created = state.now();
                state.objects.insert(name.clone(), Object { bytes, created, locked_until: None });
            }
            None => {
                state.objects.remove(name);
            }
        }
    }

    /// An independent copy of everything stored.
    pub fn snapshot(&self) -> Memory {
        Memory { state: Mutex::new(self.state().clone()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves a map that is still whole.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.bytes(name).ok_or_else(|| StorageError::NotFound { name: name.clone() })
    }
}

impl State {
    fn now(&self) -> Timestamp {
        self.clock.unwrap_or_else(Timestamp::now)
    }

    fn object(&mut self, name: &ObjectName) -> Result<&mut Object, StorageError> {
        self.objects.get_mut(name).ok_or_else(|| StorageError::NotFound { name: name.clone() })
    }

    /// Whether another object lies above or below `name`, which a file system could not hold.
    fn has_relative(&self, name: &ObjectName) -> bool {
        let above = name.as_str().match_indices('/').any(|(at, _)| {
            ObjectName::new(&name.as_str()[..at]).is_ok_and(|ancestor| self.objects.contains_key(&ancestor))
        });
        above || self.objects.keys().any(|other| below(other.as_str(), name.as_str()).is_some())
    }

    fn entries(&self, prefix: &str) -> Vec<Entry> {
        let inside = self.objects.iter().filter(|(name, _)| below(name.as_str(), prefix).is_some());
        inside
            .map(|(name, object)| Entry {
                name: name.clone(),
                size: object.bytes.len() as u64,
                modified: Some(object.created),
            })
            .collect()
    }
}

#[async_trait]
impl Storage for Memory {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        let mut state = self.state();
        if state.objects.contains_key(name) {
            return Err(StorageError::NameTaken { name: name.clone() });
        }
        if state.has_relative(name) {
            let action = Action::new(Call::Create, name.as_str());
            return Err(StorageError::Other {
                action,
                source: "an object is above or below this name".into(),
            });
        }
        let created = state.now();
        let locked_until = state.lock.and_then(|rule| rule.until(name, created));
        let object = Object { bytes: parts.concat().into(), created, locked_until };
        state.objects.insert(name.clone(), object);
        Ok(())
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let bytes = self.get(name)?;
        let size = bytes.len() as u64;
        if range.start > range.end || range.end > size {
            return Err(StorageError::Truncated { name: name.clone(), range, size });
        }
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        let bytes = self.get(name)?;
        let size = bytes.len() as u64;
        Ok(Tail { size, bytes: bytes.slice(size.saturating_sub(max) as usize..) })
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        let bytes = self.get(name)?;
        let size = bytes.len() as u64;
        if size > limit {
            return Err(StorageError::TooLarge { name: name.clone(), size, limit });
        }
        Ok(bytes)
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        Ok(self.get(name)?.len() as u64)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let prefix = checked_prefix(prefix).map_err(|error| bad_prefix(Call::List, prefix, error))?;
        Ok(self.state().entries(prefix))
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        let prefix = checked_prefix(prefix).map_err(|error| bad_prefix(Call::ListChildren, prefix, error))?;
        let (mut prefixes, mut entries) = (BTreeSet::new(), Vec::new());
        for entry in self.state().entries(prefix) {
            let whole = entry.name.as_str();
            let rest = below(whole, prefix).expect("entries() returns what is below the prefix");
            match rest.split_once('/') {
                Some((_, deeper)) => {
                    prefixes.insert(whole[..whole.len() - deeper.len() - 1].to_owned());
                }
                None => entries.push(entry),
            }
        }
        Ok(Children { prefixes: prefixes.into_iter().collect(), entries })
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let mut state = self.state();
        let now = state.now();
        let object = state.object(name)?;
        if let Some(until) = object.locked_until.filter(|until| *until > now) {
            let source = format!("the object is locked until {until}").into();
            return Err(StorageError::Refused { action: Action::new(Call::Delete, name.as_str()), source });
        }
        state.objects.remove(name);
        Ok(())
    }

    fn lock_rule(&self) -> Option<LockRule> {
        self.state().lock
    }

    async fn lock_until(&self, name: &ObjectName, until: Timestamp) -> Result<(), StorageError> {
        let mut state = self.state();
        if state.lock.is_none() {
            return Err(StorageError::no_lock());
        }
        let object = state.object(name)?;
        object.locked_until = object.locked_until.max(Some(until));
        Ok(())
    }

    async fn locked_until(&self, name: &ObjectName) -> Result<Option<Timestamp>, StorageError> {
        Ok(self.state().object(name)?.locked_until)
    }
}

/// The answer to a prefix that cannot be one.
pub(crate) fn bad_prefix(call: Call, prefix: &str, error: crate::NameError) -> StorageError {
    StorageError::Other { action: Action::new(call, prefix), source: Box::new(error) }
}
