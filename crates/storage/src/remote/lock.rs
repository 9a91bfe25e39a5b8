//! Object lock of S3: an object is created with its lock by one request, and its lock made longer by another.

use super::document::element;
use super::fault::{self, Answer};
use super::signed::{Ask, Signed, Told};
use super::{Action, Call, Remote};
use crate::{LockMode, LockRule, ObjectName, StorageError};
use bytes::Bytes;
use jiff::Timestamp;
use object_store::PutMode;

const MODE: &str = "x-amz-object-lock-mode";
const UNTIL: &str = "x-amz-object-lock-retain-until-date";
const HOLD: &str = "x-amz-object-lock-legal-hold";

/// The lock of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lock {
    pub until: Timestamp,
    mode: LockMode,
}

impl Remote {
    /// Returns when the bucket has said that it has object lock. Asked once, before anything else about locks: a server that
    /// does not know them would pass over a lock in silence, or take the request that makes one longer for an upload.
    pub(super) async fn require_lock(&self, action: &Action) -> Result<(), StorageError> {
        self.lockable.get_or_try_init(|| self.ask_for_lock(action)).await.map(drop)
    }

    async fn ask_for_lock(&self, action: &Action) -> Result<(), StorageError> {
        let ask = Ask { method: "GET", key: "", query: "?object-lock", headers: Vec::new(), parts: &[] };
        let without = || StorageError::NoLock { why: "the bucket has no object lock".to_owned() };
        match self.signed(action).await?.send(ask, action.clone(), None).await {
            Ok(told) if element(&told.text, "ObjectLockEnabled") == Some("Enabled") => Ok(()),
            Ok(_) => Err(without()),
            Err(StorageError::Other { source, .. }) => Err(match source.downcast_ref::<Answer>() {
                Some(answer) if answer.code_is(&["ObjectLockConfigurationNotFoundError"]) => without(),
                _ => StorageError::NoLock { why: format!("the storage knows no object lock: {source}") },
            }),
            Err(error) => Err(error),
        }
    }

    async fn signed(&self, action: &Action) -> Result<&Signed, StorageError> {
        self.client(action).await?.signed.as_ref().ok_or_else(StorageError::no_lock)
    }

    async fn ask(
        &self,
        call: Call,
        name: &ObjectName,
        ask: impl FnOnce(&mut Ask<'_>),
        parts: &[Bytes],
    ) -> Result<Told, StorageError> {
        let action = Action::new(call, name.as_str());
        self.require_lock(&action).await?;
        let path = self.path(name);
        let mut asked = Ask { method: "GET", key: path.as_ref(), query: "", headers: Vec::new(), parts };
        ask(&mut asked);
        self.signed(&action).await?.send(asked, action, Some(name)).await
    }

    /// Creates an object, locked from its first moment on if the rule says so. Others go the same way: where a bucket locks
    /// by itself, S3 demands the digest that comes with them.
    pub(super) async fn put_by_rule(
        &self,
        name: &ObjectName,
        parts: &[Bytes],
        mode: PutMode,
        rule: LockRule,
    ) -> Result<(), StorageError> {
        let put = |ask: &mut Ask<'_>| {
            ask.method = "PUT";
            if let Some(until) = rule.until(name, Timestamp::now()) {
                ask.headers = vec![(MODE, rule.mode.to_string()), (UNTIL, until.to_string())];
            }
            if mode == PutMode::Create {
                ask.headers.push(("if-none-match", "*".to_owned()));
            }
        };
        self.ask(Call::Create, name, put, parts).await.map(drop)
    }

    /// Makes the lock of an object longer. S3 refuses to make one shorter, and to change a stricter mode.
    pub(super) async fn extend_lock(&self, name: &ObjectName, until: Timestamp) -> Result<(), StorageError> {
        let mode = self.settings.lock.ok_or_else(StorageError::no_lock)?.mode;
        let refused = match self.put_retention(name, mode, until).await {
            Err(error @ StorageError::Refused { .. }) => error,
            done => return done,
        };
        match self.lock_of(name).await? {
            Some(lock) if lock.until >= until => Ok(()),
            Some(lock) if lock.mode != mode => self.put_retention(name, lock.mode, until).await,
            _ => Err(refused),
        }
    }

    async fn put_retention(
        &self,
        name: &ObjectName,
        mode: LockMode,
        until: Timestamp,
    ) -> Result<(), StorageError> {
        let text = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{mode}</Mode>\
             <RetainUntilDate>{until}</RetainUntilDate></Retention>"
        );
        let put = |ask: &mut Ask<'_>| {
            ask.method = "PUT";
            ask.query = "?retention";
        };
        self.ask(Call::Lock, name, put, &[Bytes::from(text)]).await.map(drop)
    }

    /// The lock of an object, which may have ended. It comes with the answer to every read; so a credential that may read
    /// and not see locks sees none.
    pub(super) async fn lock_of(&self, name: &ObjectName) -> Result<Option<Lock>, StorageError> {
        let get = |ask: &mut Ask<'_>| ask.headers = vec![("range", "bytes=0-0".to_owned())];
        let told = self.ask(Call::LockedUntil, name, get, &[]).await?;
        let mode =
            if told.header(MODE) == Some("COMPLIANCE") { LockMode::Compliance } else { LockMode::Governance };
        if told.header(HOLD) == Some("ON") {
            return Ok(Some(Lock { until: Timestamp::MAX, mode }));
        }
        let Some(text) = told.header(UNTIL) else { return Ok(None) };
        let until = text.parse().map_err(|error| StorageError::Other {
            action: Action::new(Call::LockedUntil, name.as_str()),
            source: format!("the time in the answer cannot be read: {}", fault::innermost(&error)).into(),
        })?;
        Ok(Some(Lock { until, mode }))
    }
}
