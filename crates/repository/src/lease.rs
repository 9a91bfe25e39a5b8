//! Leases: who does what must be alone, until when.
//!
//! A lease is a row of numbered steps, each an object that is created once: taking, keeping and giving back a lease each
//! create the next number, and two hosts cannot create the same one. A step whose holder has not gone on for its time is
//! overtaken. How old a step is, the storage's own clock says, never a host's. The number is the fence: it only grows, and a
//! holder asks before each irreversible piece of work whether anybody has gone past it ([`Lease::confirm`]).
//!
//! A listing may be old or lack a step, so it only tells where to begin: from there each number is asked for itself, and old
//! steps stay for days, so that a number which somebody has gone past is taken and cannot be created again.
//!
//! Where a storage cannot create conditionally two hosts may believe for a moment to have created the same step; there a
//! holder waits and reads back what stands in the end. Whatever is done under a lease must stay safe, if slower, when two do
//! it at once: storages cannot refuse a request that was sent before a lease was lost.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use storage::StorageError;
use tokio::time::{Instant, sleep};

use crate::layout;
use crate::note::shortened;
use crate::repository::{Repository, RepositoryError};
use crate::seal::Kind;

/// How long a step holds. Long enough for a slow storage to take three renewals, short enough that a crash holds up the
/// next night's run no longer than a coffee.
pub const LEASE_TIME: Duration = Duration::from_secs(300);
/// A holder goes on when this part of its time is over.
const RENEW_AFTER: Duration = Duration::from_secs(100);
/// How long a storage without conditional writes is given to settle on one of two that wrote at once.
const SETTLE: Duration = Duration::from_secs(3);
/// How often somebody who waits looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How much older than the newest a step is when it goes. No listing is as old.
const KEPT: Duration = Duration::from_secs(2 * 24 * 3600);
/// So many of the newest steps stay however old they are: where they were the only ones, a listing that lacks the newest would
/// be empty, and somebody would begin anew.
const KEPT_STEPS: usize = 3;
/// Steps beyond this many are from a storage that plays games.
const MOST_STEPS: usize = 10_000;

/// Why a lease is not had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else has it.
    #[error("{what} is being done by {holder} already")]
    Held {
        /// What it is for.
        what: String,
        /// Who says to have it: host and process.
        holder: String,
    },
    /// Somebody else has taken it, because this process did not go on for too long.
    #[error("the lease for {what} was lost to another process")]
    Lost {
        /// What it is for.
        what: String,
    },
    /// The repository could not be read or written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl From<StorageError> for LeaseError {
    fn from(error: StorageError) -> Self {
        Self::Repository(error.into())
    }
}

#[derive(Clone, PartialEq, Message)]
struct Step {
    /// Chosen anew for each lease, so that two processes of one host, or of its clone, are two.
    #[prost(fixed64, tag = "1")]
    owner: u64,
    /// Who it is, for people.
    #[prost(string, tag = "2")]
    holder: String,
    #[prost(uint32, tag = "3")]
    seconds: u32,
    #[prost(bool, tag = "4")]
    released: bool,
}

/// The right to do something alone, kept by going on.
pub struct Lease {
    repository: Arc<Repository>,
    what: String,
    number: u64,
    step: Step,
    renewed: Instant,
}

impl Lease {
    /// Takes the lease for `what` (a word of letters and `-`), waiting up to `patience` while somebody else has it.
    /// `holder` says who takes it, for people: `host, process 123`.
    pub async fn take(
        repository: &Arc<Repository>,
        what: &str,
        holder: &str,
        patience: Duration,
    ) -> Result<Self, LeaseError> {
        let step = Step {
            owner: u64::from_le_bytes(storage::chance::bytes()),
            holder: shortened(holder, 100).to_owned(),
            seconds: LEASE_TIME.as_secs() as u32,
            released: false,
        };
        let began = Instant::now();
        loop {
            let (number, held_by) = newest(repository, what).await?;
            match held_by {
                None => {
                    let renewed = Instant::now();
                    let mut lease = Self {
                        repository: repository.clone(),
                        what: what.to_owned(),
                        number,
                        step: step.clone(),
                        renewed,
                    };
                    if lease.go_on(false).await? {
                        lease.remove_older().await;
                        return Ok(lease);
                    }
                }
                Some(holder) if began.elapsed() >= patience => {
                    return Err(LeaseError::Held { what: what.to_owned(), holder });
                }
                Some(_) => sleep(LOOK_AGAIN.min(patience)).await,
            }
        }
    }

    /// Fails unless the lease is still this process's, which is asked of the storage; goes on with it when it is time.
    /// To be called before each irreversible piece of work.
    pub async fn confirm(&mut self) -> Result<(), LeaseError> {
        if storage::planted::has("lease.unchecked") {
            return Ok(());
        }
        if self.renewed.elapsed() >= RENEW_AFTER {
            let ours = self.go_on(false).await?;
            self.remove_older().await;
            return if ours { Ok(()) } else { Err(self.lost()) };
        }
        if self.repository.stored_size(&layout::lease(&self.what, self.number + 1)).await?.is_some() {
            return Err(self.lost());
        }
        if self.repository.description().create_only || self.is_ours().await? {
            Ok(())
        } else {
            Err(self.lost())
        }
    }

    /// Gives it back, so that the next one need not wait.
    pub async fn release(mut self) -> Result<(), LeaseError> {
        self.go_on(true).await?;
        self.remove_older().await;
        Ok(())
    }

    /// The number that only grows: of two holders the one with the greater number is the later one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Creates the next step; false if somebody else did.
    async fn go_on(&mut self, released: bool) -> Result<bool, LeaseError> {
        let at = Instant::now();
        let name = layout::lease(&self.what, self.number + 1);
        let step = Step { released, ..self.step.clone() };
        match self.repository.write_note(Kind::Lease, &name, &step).await {
            Err(RepositoryError::Storage(StorageError::NameTaken { .. })) => return Ok(false),
            other => other?,
        }
        self.number += 1;
        self.renewed = at;
        if self.repository.description().create_only || released {
            return Ok(true);
        }
        sleep(SETTLE).await;
        self.is_ours().await
    }

    async fn is_ours(&self) -> Result<bool, LeaseError> {
        let name = layout::lease(&self.what, self.number);
        match self.repository.read_note::<Step>(Kind::Lease, &name).await {
            Ok(step) => Ok(step.owner == self.step.owner),
            // Whoever is further has removed it.
            Err(RepositoryError::Storage(StorageError::NotFound { .. })) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn lost(&self) -> LeaseError {
        LeaseError::Lost { what: self.what.clone() }
    }

    /// Removes steps that nobody can take for the newest any more. That they stay harms nobody.
    async fn remove_older(&self) {
        let Ok(steps) = steps(&self.repository, &self.what).await else { return };
        let Some((_, Some(newest))) = steps.last().copied() else { return };
        let is_old = |at: jiff::Timestamp| newest.duration_since(at).unsigned_abs() > KEPT && at < newest;
        let older = steps.into_iter().rev().skip(KEPT_STEPS);
        for (number, _) in older.filter(|(_, at)| at.is_some_and(is_old)) {
            if let Err(error) = self.repository.storage().delete(&layout::lease(&self.what, number)).await {
                tracing::debug!(%error, "an old step of a lease stays");
            }
        }
    }
}

/// The newest step's number (0 if there is none), and who holds it.
async fn newest(repository: &Repository, what: &str) -> Result<(u64, Option<String>), LeaseError> {
    let (mut number, mut modified) = steps(repository, what).await?.pop().unwrap_or_default();
    while repository.stored_size(&layout::lease(what, number + 1)).await?.is_some() {
        // When a step was made that no listing shows yet, nobody knows: just now.
        (number, modified) = (number + 1, None);
    }
    if number == 0 {
        return Ok((0, None));
    }
    let step: Step = match repository.read_note(Kind::Lease, &layout::lease(what, number)).await {
        Ok(step) => step,
        // Whoever went further has removed it: what is newest is seen at the next look.
        Err(RepositoryError::Storage(StorageError::NotFound { .. })) => {
            return Ok((number, Some("somebody who was just seen going on".to_owned())));
        }
        // What is no step of ours holds nobody up for longer than a step would.
        Err(error) if error.is_damage() => {
            tracing::warn!(%error, "a damaged step of a lease");
            Step {
                holder: "an unreadable lease".into(),
                seconds: LEASE_TIME.as_secs() as u32,
                ..Step::default()
            }
        }
        Err(error) => return Err(error.into()),
    };
    if step.released {
        return Ok((number, None));
    }
    let holds = Duration::from_secs(step.seconds.into()).min(2 * LEASE_TIME);
    let now = repository.storage_clock().await?;
    let age = modified.zip(now).map(|(modified, now)| now.duration_since(modified));
    let over = age
        .is_some_and(|age| age > jiff::SignedDuration::try_from(holds).unwrap_or(jiff::SignedDuration::MAX));
    Ok((number, (!over).then_some(step.holder)))
}

/// The numbers of the stored steps with the times at which the storage took them, in order.
async fn steps(
    repository: &Repository,
    what: &str,
) -> Result<Vec<(u64, Option<jiff::Timestamp>)>, StorageError> {
    let prefix = layout::lease_steps(what);
    let entries = repository.storage().list(&prefix).await?;
    let step = |entry: &storage::Entry| {
        let number = entry.name.as_str().strip_prefix(&prefix)?;
        Some((u64::from_str_radix(number, 16).ok()?, entry.modified))
    };
    let mut steps: Vec<_> = entries.iter().take(MOST_STEPS).filter_map(step).collect();
    steps.sort_unstable();
    Ok(steps)
}

impl Repository {
    /// What the storage's own clock says, by the time it gives an object that is created for this; `None` where it gives
    /// none. Hosts' clocks differ; what is compared with times of objects must come from here.
    pub async fn storage_clock(&self) -> Result<Option<jiff::Timestamp>, RepositoryError> {
        let name = layout::lease(CLOCK, u64::from_le_bytes(storage::chance::bytes()));
        self.write_note(Kind::Lease, &name, &Step::default()).await?;
        let entries = self.storage().list(&layout::lease_steps(CLOCK)).await?;
        for entry in &entries {
            // Others' are left by processes that died or may not delete.
            let old = entry.name == name || entries.len() > 100;
            if old && let Err(error) = self.storage().delete(&entry.name).await {
                tracing::debug!(%error, "an object that told the time stays");
            }
        }
        Ok(entries.iter().find(|entry| entry.name == name).and_then(|entry| entry.modified))
    }
}

const CLOCK: &str = "clock";

#[cfg(test)]
mod tests;
