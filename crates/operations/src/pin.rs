//! Pinning: saying of a backup that no policy may expire it, until some moment or for ever.

use jiff::{SignedDuration, Timestamp};
use repository::pins::{Pin, PinNote};
use repository::{ClusterName, Repository, RepositoryError};
use serde::Serialize;

use crate::catalogue::{CatalogueError, resolve};

/// Until when a pin holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// For ever, or until it is removed.
    Removed,
    /// Until this moment.
    Moment(Timestamp),
    /// For so long, by the storage's clock.
    Span(SignedDuration),
}

/// A pin as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinContent {
    /// The backup.
    pub backup: String,
    /// Until when; `None` for ever.
    pub until: Option<Timestamp>,
    /// Why, for people.
    pub note: String,
    /// Who made it.
    pub who: String,
}

impl PinContent {
    fn of(pin: &Pin) -> Self {
        let note = &pin.note;
        Self {
            backup: pin.backup.clone(),
            until: pin.until(),
            note: note.note.clone(),
            who: note.who.clone(),
        }
    }
}

/// Pins a backup; `id` as for [`resolve`].
pub async fn pin(
    repository: &Repository,
    cluster: &ClusterName,
    id: &str,
    until: Until,
    note: &str,
    who: &str,
) -> Result<PinContent, CatalogueError> {
    let id = resolve(repository, cluster, id).await?;
    let now = repository.storage_clock().await?.unwrap_or_else(Timestamp::now);
    let until = match until {
        Until::Removed => None,
        Until::Moment(moment) => Some(moment),
        // What no calendar reaches is for ever.
        Until::Span(span) => now.checked_add(span).ok(),
    };
    let note = PinNote {
        made_us: now.as_microsecond(),
        until_us: until.map(Timestamp::as_microsecond),
        note: note.to_owned(),
        who: who.to_owned(),
    };
    Ok(PinContent::of(&repository.pin(cluster, &id, &note).await?))
}

/// Removes every pin of a backup, and says which; `id` as for [`resolve`].
pub async fn unpin(
    repository: &Repository,
    cluster: &ClusterName,
    id: &str,
) -> Result<Vec<PinContent>, CatalogueError> {
    let id = resolve(repository, cluster, id).await?;
    let mut removed = Vec::new();
    for pin in repository.pins(cluster).await?.into_iter().filter(|pin| pin.backup == id) {
        repository.unpin(cluster, &pin).await?;
        removed.push(PinContent::of(&pin));
    }
    Ok(removed)
}

/// The pins that may hold: one that ended by this host's clock is left out, for only the storage's decides when expiring.
pub(crate) async fn shown(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<Vec<PinContent>, RepositoryError> {
    let pins = repository.pins(cluster).await?;
    Ok(pins.iter().filter(|pin| pin.holds(Some(Timestamp::now()))).map(PinContent::of).collect())
}
