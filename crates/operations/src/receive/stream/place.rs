//! Where a connection begins.

use std::sync::atomic::Ordering;

use pg::timeline::TimelineHistory;
use pg::wal::SegmentName;
use server::connection::ServerError;
use server::facts::Slot;

use super::super::position::{self, Position, segment_start};
use super::super::store::Store;
use super::{Broken, Stream, spool_failed};

impl Stream {
    /// Where to begin on this server; the intake expects its bytes from there on.
    pub(super) fn begin(&self, history: &TimelineHistory) -> Result<Position, Broken> {
        let Store { repository, cluster, intake, .. } = &*self.store;
        let size = intake.size();
        let unread = |error: repository::RepositoryError| self.repository_failed(error.into());
        let here = intake.position().map(|(timeline, lsn)| Position { timeline, lsn });
        // A server that does not know the timeline we were on says nothing of where its own was left: what is stored does.
        let followed = here.clone().filter(|here| history.lineage().any(|one| one == here.timeline));
        let known = match followed {
            Some(here) => Some(here),
            None => {
                let stored = position::stored(repository, cluster, history, size);
                let stored = self.handle.block_on(stored).map_err(unread)?;
                stored.map(|stored| self.not_after_slot(stored, history)).transpose()?
            }
        };
        let start = match &known {
            Some(known) => position::begin(known, history, size),
            None => {
                let slot = Slot::named(&self.host.session()?, &self.slot)?;
                let kept = slot.and_then(|slot| slot.restart_lsn).ok_or_else(|| {
                    ServerError::UnexpectedAnswer { what: format!("slot {} keeps no WAL", self.slot) }
                })?;
                position::kept(kept, history, size)
            }
        };
        if here.as_ref() == Some(&start) && intake.can_go_on() {
            return Ok(start);
        }
        self.open(&segment_start(start.timeline, start.lsn, size))
    }

    /// A position, or the slot's if that is earlier: the slot was told of nothing that has a hole before it, whoever stored what
    /// is stored.
    fn not_after_slot(&self, stored: Position, history: &TimelineHistory) -> Result<Position, Broken> {
        let slot = Slot::named(&self.host.session()?, &self.slot)?;
        match slot.and_then(|slot| slot.restart_lsn).filter(|kept| *kept < stored.lsn) {
            Some(kept) => {
                // Much of it is there already, and is only compared.
                self.store.archives_too.store(true, Ordering::Relaxed);
                Ok(position::kept(kept, history, self.store.intake.size()))
            }
            None => Ok(stored),
        }
    }

    /// Opens the segment at a position, with the parts that are stored of it.
    pub(super) fn open(&self, start: &Position) -> Result<Position, Broken> {
        let Store { repository, cluster, intake, .. } = &*self.store;
        let segment = SegmentName::containing(start.timeline, start.lsn, intake.size());
        let parts = self.handle.block_on(repository.parts_of(cluster, &segment));
        let parts = parts.map_err(|error| self.repository_failed(error.into()))?;
        intake.begin(segment, parts).map_err(spool_failed)?;
        Ok(start.clone())
    }
}
