//! Waiting until what came is stored: at the end, and while nothing can be stored.

use std::time::Duration;

use pg::TimelineId;
use pg::wal::SegmentName;
use server::connection::Replication;
use tokio::time::Instant;

use super::super::store::{Store, chain};
use super::super::{Notice, ReceiveError};
use super::talk::Talk;
use super::{Broken, Stream};

/// How long the end of receiving waits until everything that came is stored.
const FAREWELL: Duration = Duration::from_secs(30);

impl Stream {
    /// Has everything that came stored, and tells the server before it goes. The end of the connection is not waited for: its
    /// server may be gone.
    pub(super) fn farewell(
        &self,
        mut connected: Option<(&mut Replication, &mut Talk, TimelineId)>,
    ) -> Result<(), ReceiveError> {
        let intake = &self.store.intake;
        intake.close();
        let begun = Instant::now();
        let stored = loop {
            let stored = intake.wait_until_stored(Duration::from_millis(500));
            if let Some((replication, talk, timeline)) = &mut connected {
                talk.owes_reply |= stored;
                if talk.report(replication, intake.durable(*timeline)).is_err() {
                    connected = None;
                }
            }
            if stored || begun.elapsed() >= FAREWELL || intake.has_failed() {
                break stored;
            }
        };
        // Why storing failed for good is told by whoever stores.
        if stored || intake.has_failed() { Ok(()) } else { Err(ReceiveError::NotStored { waited: FAREWELL }) }
    }

    /// Waits, with no connection to the server, until everything that came is stored and the repository answers. There may be
    /// nothing left to store, so it is asked: else a slot would be made again that nobody can empty. A slot past its limit is
    /// dropped meanwhile.
    pub(super) fn wait_for_storage(&self) -> Result<(), ReceiveError> {
        self.store.intake.close();
        let mut failures = 0;
        while !self.must_stop() {
            if self.host.take_over_limit() {
                self.try_to(&mut 0, self.give_up_slot().map(drop))?;
            }
            if self.store.intake.wait_until_stored(Duration::from_millis(200)) {
                if self.try_to(&mut failures, self.ask_repository())? {
                    return Ok(());
                }
                self.pause(failures);
            }
        }
        Ok(())
    }

    /// Asks what a new connection asks first: what is stored of the segment that comes next.
    fn ask_repository(&self) -> Result<(), Broken> {
        let Store { repository, cluster, intake, .. } = &*self.store;
        let next = match intake.position() {
            Some((timeline, lsn)) => SegmentName::containing(timeline, lsn, intake.size()),
            // Nothing was begun yet: any name shows whether there is an answer.
            None => SegmentName::from_number(TimelineId::FIRST, 1, intake.size()),
        };
        let asked = self.handle.block_on(repository.parts_of(cluster, &next));
        asked.map(drop).map_err(|error| self.repository_failed(error.into()))
    }

    /// Tells why something did not work that may work later, and that it did.
    fn try_to(&self, failures: &mut u32, outcome: Result<(), Broken>) -> Result<bool, ReceiveError> {
        let Err(broken) = outcome else { return Ok(true) };
        *failures += 1;
        self.tell_of(broken, *failures)?;
        Ok(false)
    }

    /// Tells of something that may work later; what never will is returned.
    pub(super) fn tell_of(&self, broken: Broken, failures: u32) -> Result<(), ReceiveError> {
        (self.store.tell)(match broken {
            Broken::Fatal(error) => return Err(error),
            Broken::Server(error) => Notice::ServerFails { error: chain(&error), failures },
            Broken::Repository { error } => Notice::RepositoryFails { error },
            Broken::Spool { error } => {
                let waited = self.store.intake.overdue(Instant::now());
                Notice::StorageFails {
                    what: "the segment in hand (in the spool folder)".to_owned(),
                    error,
                    waited,
                }
            }
        });
        Ok(())
    }
}
