//! The thread that receives: one connection after another, each from where the last one ended.

mod history;
mod keep;
mod place;
mod talk;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pg::Lsn;
use server::connection::{Message, Replication, ServerError, WalData};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::host::Host;
use super::position::Position;
use super::store::{Store, chain};
use super::{Notice, ReceiveError, pause_after};
use crate::failpoint;
use keep::is_gone;
use talk::{SILENCE_MAX, Talk};

/// What the receiving thread needs.
pub(super) struct Stream {
    pub(super) host: Arc<Host>,
    pub(super) slot: String,
    pub(super) store: Arc<Store>,
    pub(super) handle: Handle,
    /// Somebody wants the end.
    pub(super) stop: Arc<AtomicBool>,
    /// Receive to here and no further.
    pub(super) until: Option<Lsn>,
}

/// How a connection ended.
enum Ended {
    /// As was wanted.
    Stopped,
    /// The slot was dropped.
    SlotDropped,
    /// Nothing can be stored.
    StorageDown,
}

/// Why a connection ended that another one may follow.
enum Broken {
    /// For good.
    Fatal(ReceiveError),
    /// For now, on the server's side.
    Server(ServerError),
    /// For now: the repository could not be asked.
    Repository {
        /// How.
        error: String,
    },
    /// For now: the segment in hand could not be kept.
    Spool {
        /// How.
        error: String,
    },
}

impl From<ReceiveError> for Broken {
    fn from(error: ReceiveError) -> Self {
        Self::Fatal(error)
    }
}

impl From<ServerError> for Broken {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::InvalidSettings { .. } | ServerError::NulByte => Self::Fatal(error.into()),
            error => Self::Server(error),
        }
    }
}

/// A disk that is full may not stay so; what did not fit is streamed again.
fn spool_failed(error: std::io::Error) -> Broken {
    Broken::Spool { error: error.to_string() }
}

/// How many attempts failed in a row, with one that began then; a connection that held for a while ends a row.
fn failures_after(failures: u32, begun: Instant) -> u32 {
    if begun.elapsed() > SILENCE_MAX { 1 } else { failures + 1 }
}

impl Stream {
    /// Receives until somebody wants the end; what stops it for a while is told and tried again.
    pub(super) fn run(&self) -> Result<(), ReceiveError> {
        let mut failures = 0u32;
        while !self.must_stop() {
            let begun = Instant::now();
            match self.connection() {
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::SlotDropped | Ended::StorageDown) => self.wait_for_storage()?,
                Err(broken) => {
                    failures = failures_after(failures, begun);
                    self.tell_of(broken, failures)?;
                    self.pause(failures);
                }
            }
        }
        self.farewell(None)
    }

    fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.store.intake.has_failed()
    }

    /// Waits longer the more attempts failed.
    fn pause(&self, failures: u32) {
        let pause = pause_after(failures);
        let begun = Instant::now();
        while begun.elapsed() < pause && !self.must_stop() {
            std::thread::sleep(Duration::from_millis(20).min(pause));
        }
    }

    /// One connection, over as many timelines as it brings.
    fn connection(&self) -> Result<Ended, Broken> {
        if self.host.take_over_limit() {
            return self.give_up_slot();
        }
        let (made, name, beside) = {
            let sql = self.host.choose()?;
            (self.ensure_slot(&sql)?, sql.host(), sql.settings_beside())
        };
        let mut replication = Replication::connect(&beside)?;
        self.store.intake.wake(Some(replication.waker()));
        let ended = self.timelines(&name, &mut replication);
        self.store.intake.wake(None);
        // From here on the server waits for us no longer, neither with its slot nor with its end.
        drop(replication);
        match ended {
            Ok(Ended::SlotDropped) => self.give_up_slot(),
            Err(Broken::Server(error)) if made && is_gone(&error) => {
                // Another host is tried, and nobody would come back for what this one keeps.
                self.drop_slot(&self.host.session()?)?;
                Err(Broken::Server(error))
            }
            ended => ended,
        }
    }

    fn timelines(&self, host: &str, replication: &mut Replication) -> Result<Ended, Broken> {
        loop {
            let server = replication.identify_system()?;
            if server.system_identifier != self.store.identity.system_identifier {
                let found = server.system_identifier;
                return Err(Broken::Fatal(ReceiveError::OtherServer { found }));
            }
            let history = self.history(replication, server.timeline)?;
            let start = self.begin(&history)?;
            self.store.health.answers(true);
            replication.start(&self.slot, start.timeline, start.lsn)?;
            (self.store.tell)(Notice::Streaming {
                timeline: start.timeline,
                from: start.lsn,
                host: host.to_owned(),
                slot: self.slot.clone(),
            });
            match self.timeline(replication, &start) {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => {
                    failpoint::reach("receive.timeline-ended");
                    self.store.intake.close();
                }
                // The right server may be another one: the loss is written down only when none has it.
                Err(Broken::Server(error)) if is_gone(&error) && !self.host.pass_over() => {
                    self.note_gap(&start, &history, error)?;
                }
                Err(broken) => return Err(broken),
            }
        }
    }

    /// A storage that fails now is waited for like a server that does; a conflict is not.
    fn repository_failed(&self, error: repository::archive::ArchiveError) -> Broken {
        use repository::archive::ArchiveError::{Conflict, OtherCluster};
        match error {
            error @ (Conflict { .. } | OtherCluster { .. }) => Broken::Fatal(error.into()),
            error => {
                self.store.health.answers(false);
                Broken::Repository { error: chain(&error) }
            }
        }
    }

    /// Streams one timeline; `None` when it ended.
    fn timeline(&self, replication: &mut Replication, start: &Position) -> Result<Option<Ended>, Broken> {
        let intake = &self.store.intake;
        let mut talk = Talk::new(start.lsn);
        loop {
            talk.report(replication, intake.durable(start.timeline))?;
            if self.host.take_over_limit() {
                return Ok(Some(Ended::SlotDropped));
            }
            if self.must_stop() || self.until.is_some_and(|until| talk.at >= until.get()) {
                self.farewell(Some((replication, &mut talk, start.timeline)))?;
                return Ok(Some(Ended::Stopped));
            }
            if let Some(waited) = self.store.down_for() {
                // A server that is to shut down would wait for us to flush what it sent; the slot keeps it as well.
                (self.store.tell)(Notice::StorageDown { waited, slot: self.slot.clone() });
                return Ok(Some(Ended::StorageDown));
            }
            if !intake.wait_for_room(Duration::from_millis(200)) {
                continue;
            }
            match replication.next(Duration::from_millis(500))? {
                Message::Wal(wal) => {
                    talk.heard();
                    self.take(&wal, &mut talk)?;
                }
                Message::Keepalive { reply_wanted, .. } => {
                    talk.heard();
                    talk.owes_reply |= reply_wanted;
                }
                Message::Nothing => talk.check_silence()?,
                Message::TimelineEnded { next } => {
                    (self.store.tell)(Notice::TimelineEnded { timeline: start.timeline, next });
                    return Ok(None);
                }
            }
        }
    }

    fn take(&self, wal: &WalData, talk: &mut Talk) -> Result<(), Broken> {
        if wal.start() != talk.at {
            let what = format!("WAL from {:X} on where {:X} was expected", wal.start(), talk.at);
            return Err(ServerError::UnexpectedAnswer { what }.into());
        }
        if talk.at == talk.start.get() {
            failpoint::reach("receive.first-message");
            self.host.forgive();
        }
        self.store.intake.take(wal.bytes(), Instant::now()).map_err(spool_failed)?;
        talk.at += wal.bytes().len() as u64;
        failpoint::reach("receive.taken");
        Ok(())
    }
}
