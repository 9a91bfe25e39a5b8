//! Object lock: what a backup needs is locked for a span from the moment on when the backup begins to exist.
//!
//! What is new was locked when it was created. What is older has its lock made longer before the manifest is written.
//! Packs are locked for a quarter of the span more than they must be, and a manifest says until when each of its packs
//! is; so the next backup makes only those locks longer that would end too early, each pack's four times in a span.

use std::collections::HashSet;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use pg::TimelineId;
use pg::wal::FileName;
use storage::{LockRule, ObjectName, StorageError};

use crate::layout::{self, ClusterName, PackId};
use crate::manifest::{Manifest, PackRef};
use crate::pack::SealedPack;
use crate::repository::{Repository, RepositoryError};
use crate::seal::SealError;

/// Locks that are made longer at once: each is one small request, and a terabyte has 52,000 packs.
const AT_ONCE: usize = 32;

impl Repository {
    /// The place in a manifest of a pack that is going to be stored, with the lock that it gets then.
    pub fn new_pack_ref(&self, pack: &SealedPack) -> PackRef {
        let mut reference = PackRef::new(pack.id, pack.len, pack.tail_len);
        let until = self.storage().lock_rule().and_then(|rule| rule.until(&pack.name, Timestamp::now()));
        if let Some(until) = until {
            reference.set_locked_until(until);
        }
        reference
    }

    /// Sees to it that everything that a backup with this manifest needs is locked for the span from now on.
    pub(crate) async fn lock_needed(
        &self,
        cluster: &ClusterName,
        manifest: &mut Manifest,
    ) -> Result<(), RepositoryError> {
        let Some(rule) = self.storage().lock_rule() else { return Ok(()) };
        let now = Timestamp::now();
        self.lock_packs(rule, now, manifest).await?;
        let mut names = vec![layout::description(), layout::identity(cluster)];
        names.extend(self.storage().list(layout::KEYS).await?.into_iter().map(|entry| entry.name));
        // Whoever restores along this timeline asks for its history, which names those before it.
        let timeline = TimelineId::new(manifest.span().timeline).filter(|timeline| timeline.get() > 1);
        names.extend(timeline.map(|timeline| layout::wal_file(cluster, &FileName::History(timeline))));
        let until = rule.span_from(now);
        stream::iter(names)
            .map(|name| async move { self.lock_if_there(&name, until).await.map(drop) })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn lock_packs(
        &self,
        rule: LockRule,
        now: Timestamp,
        manifest: &mut Manifest,
    ) -> Result<(), RepositoryError> {
        let wanted = rule.span_from(now);
        let mut due = Vec::new();
        for (at, pack) in manifest.packs.iter().enumerate() {
            let unreadable = |source| RepositoryError::Content { place: "manifest".into(), source };
            if pack.locked_until().is_none_or(|until| until < wanted) {
                due.push((at, pack.id().map_err(unreadable)?));
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        // The old place of what was moved needs no lock, and would never be free with one.
        let moved: HashSet<PackId> = self.moved_ids().await?.into_iter().collect();
        let moved = &moved;
        let longer = |(at, id): (usize, PackId)| async move {
            let until = rule.until(&layout::pack(id), now).unwrap_or(wanted);
            let whole = self.lock_pack(id, moved, until).await?;
            Ok::<_, RepositoryError>((at, whole.then_some(until)))
        };
        let mut locks = stream::iter(due).map(longer).buffer_unordered(AT_ONCE);
        let mut unknown = 0_usize;
        while let Some((at, until)) = locks.try_next().await? {
            match until {
                Some(until) => manifest.packs[at].set_locked_until(until),
                None => unknown += 1,
            }
        }
        drop(locks);
        if unknown > 0 {
            manifest.warnings.push(format!(
                "prune moved pages of {unknown} packs, and this host cannot read where to: their locks were not made \
                 longer; a backup by a host whose key reads does it"
            ));
        }
        Ok(())
    }

    /// Locks a pack, or what its named pages were moved to; false if this host cannot read where that is.
    async fn lock_pack(
        &self,
        id: PackId,
        moved: &HashSet<PackId>,
        until: Timestamp,
    ) -> Result<bool, RepositoryError> {
        let (mut open, mut seen, mut whole) = (vec![id], HashSet::new(), true);
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            if !moved.contains(&id) && self.lock_if_there(&layout::pack(id), until).await? {
                continue;
            }
            if !self.lock_if_there(&layout::moved(id), until).await? {
                return Err(StorageError::NotFound { name: layout::pack(id) }.into());
            }
            match self.moved(id).await {
                Ok(Some(moved)) => open.extend(moved.packs()),
                Ok(None) => return Err(StorageError::NotFound { name: layout::pack(id) }.into()),
                Err(RepositoryError::Seal(SealError::NoPrivateKey { .. })) => whole = false,
                Err(error) => return Err(error),
            }
        }
        Ok(whole)
    }

    /// False if it is proven that the object is not there.
    async fn lock_if_there(&self, name: &ObjectName, until: Timestamp) -> Result<bool, RepositoryError> {
        match self.storage().lock_until(name, until).await {
            Ok(()) => Ok(true),
            Err(StorageError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Of objects that are going to be deleted, until when each is locked at `now`, in their order; `None` for one that is not
    /// locked, or not there. Nobody is asked where nothing is locked.
    pub async fn locks(
        &self,
        names: impl IntoIterator<Item = ObjectName>,
        now: Timestamp,
    ) -> Result<Vec<Option<Timestamp>>, RepositoryError> {
        let names = names.into_iter();
        if self.storage().lock_rule().is_none() {
            return Ok(names.map(|_| None).collect());
        }
        let locked = |name: ObjectName| async move {
            match self.storage().locked_until(&name).await {
                Ok(until) => Ok(until.filter(|until| *until > now)),
                Err(StorageError::NotFound { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        stream::iter(names).map(locked).buffered(AT_ONCE).try_collect().await
    }
}
