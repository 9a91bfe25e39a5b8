//! What the server keeps for us, and what happens when it has not kept it.

use std::time::Duration;

use jiff::Timestamp;
use pg::Lsn;
use pg::timeline::TimelineHistory;
use repository::archive::{Gap, GapNote};
use server::connection::{Connection, ServerError};
use server::facts::Slot;

use super::super::Notice;
use super::super::position::{self, Position};
use super::super::slot;
use super::super::store::Store;
use super::{Broken, Ended, Stream};
use crate::failpoint;

impl Stream {
    /// Makes the slot if it is not there; true if it was made.
    pub(super) fn ensure_slot(&self, sql: &Connection) -> Result<bool, Broken> {
        let slot = Slot::named(sql, &self.slot)?;
        if let Some(slot) = slot {
            if !slot.is_lost() || slot.active {
                return Ok(false);
            }
            let status = slot.wal_status.unwrap_or_else(|| "never used".to_owned());
            (self.store.tell)(Notice::SlotLost { slot: self.slot.clone(), status });
            slot::drop_slot(sql, &self.slot)?;
        }
        slot::create(sql, &self.slot)?;
        failpoint::reach("receive.slot-created");
        (self.store.tell)(Notice::SlotMade { slot: self.slot.clone() });
        Ok(true)
    }

    /// Lets the server remove what it keeps for us.
    pub(super) fn give_up_slot(&self) -> Result<Ended, Broken> {
        self.drop_slot(&self.host.session()?)?;
        self.host.slot_dropped();
        (self.store.tell)(Notice::SlotDropped { slot: self.slot.clone() });
        Ok(Ended::SlotDropped)
    }

    pub(super) fn drop_slot(&self, sql: &Connection) -> Result<(), Broken> {
        let mut tries = 0;
        loop {
            match slot::drop_slot(sql, &self.slot) {
                // The server takes a moment to notice that nobody uses it any more.
                Err(error) if error.has_sqlstate("55006") && tries < 100 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(100));
                }
                // There is none.
                Err(error) if error.has_sqlstate("42704") => return Ok(()),
                dropped => return Ok(dropped?),
            }
        }
    }

    /// The server no longer has what comes next: that is written down, and receiving goes on where the server still can.
    pub(super) fn note_gap(
        &self,
        start: &Position,
        history: &TimelineHistory,
        error: ServerError,
    ) -> Result<(), Broken> {
        let Store { repository, cluster, intake, .. } = &*self.store;
        intake.close();
        let kept = self.kept_after(&self.host.session()?, start.lsn)?;
        let next = position::kept(kept, history, intake.size());
        if next.lsn <= start.lsn {
            return Err(Broken::Server(error));
        }
        let gap = Gap { timeline: start.timeline, from: start.lsn, to: next.lsn };
        let note = GapNote { noticed_us: Timestamp::now().as_microsecond(), why: error.to_string() };
        let recorded = self.handle.block_on(repository.record_gap(cluster, &gap, &note));
        recorded.map_err(|error| self.repository_failed(error))?;
        failpoint::reach("receive.gap");
        self.host.forgive();
        (self.store.tell)(Notice::Gap { gap, why: note.why });
        self.open(&next).map(drop)
    }

    /// The oldest WAL that the slot keeps after a position that is gone. A slot that keeps none is made anew.
    fn kept_after(&self, sql: &Connection, gone: Lsn) -> Result<Lsn, Broken> {
        let slot = Slot::named(sql, &self.slot)?;
        if let Some(kept) = slot.filter(|slot| !slot.is_lost()).and_then(|slot| slot.restart_lsn)
            && kept > gone
        {
            return Ok(kept);
        }
        self.drop_slot(sql)?;
        slot::create(sql, &self.slot)?;
        let made = Slot::named(sql, &self.slot)?.and_then(|slot| slot.restart_lsn);
        let what = || format!("slot {} keeps no WAL though it was just made", self.slot);
        Ok(made.ok_or_else(|| ServerError::UnexpectedAnswer { what: what() })?)
    }
}

/// The server no longer has the WAL that was asked for. Source: `XLogReadDetermineTimeline` and `WalSndSegmentOpen`,
/// `walsender.c` ("requested WAL segment … has already been removed").
pub(super) fn is_gone(error: &ServerError) -> bool {
    error.has_sqlstate("58P01")
}
