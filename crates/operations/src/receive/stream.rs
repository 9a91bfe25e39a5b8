//! The thread that receives: one connection after another, each from where the last one ended.

mod history;
mod keep;
mod talk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pg::timeline::TimelineHistory;
use pg::wal::SegmentName;
use pg::{Lsn, TimelineId};
use server::connection::{Connection, ConnectionSettings, Message, Replication, ServerError, WalData};
use server::facts::Slot;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::position::{self, Position, segment_start};
use super::store::{Store, chain};
use super::{Notice, ReceiveError};
use crate::failpoint;
use keep::is_gone;
use talk::{SILENCE_MAX, Talk};

/// The pause before the first new attempt; it doubles up to the second. Together with the time limit of a connection it
/// keeps receiving within ten seconds of whatever had stopped it.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long the end of receiving waits until everything that came is stored.
const FAREWELL: Duration = Duration::from_secs(30);

/// What the receiving thread needs.
pub(super) struct Stream {
    pub(super) settings: ConnectionSettings,
    pub(super) slot: String,
    pub(super) store: Arc<Store>,
    pub(super) handle: Handle,
    /// Somebody wants the end.
    pub(super) stop: Arc<AtomicBool>,
    /// The slot holds more than it may.
    pub(super) over_limit: Arc<AtomicBool>,
    /// Receive to here and no further.
    pub(super) until: Option<Lsn>,
}

/// How a connection ended.
enum Ended {
    /// As was wanted.
    Stopped,
    /// The slot was dropped.
    SlotDropped,
}

/// Why a connection ended that another one may follow.
enum Broken {
    /// For good.
    Fatal(ReceiveError),
    /// For now, on the server's side.
    Server(ServerError),
    /// For now, on ours: the repository, or the spool.
    Here {
        /// What failed.
        what: &'static str,
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
    Broken::Here { what: "the segment in hand (in the spool folder)", error: error.to_string() }
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
                Ok(Ended::SlotDropped) => self.wait_for_storage(),
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Server(error)) => {
                    failures = failures_after(failures, begun);
                    (self.store.tell)(Notice::ServerFails { error: chain(&error), failures });
                    self.pause(failures);
                }
                Err(Broken::Here { what, error }) => {
                    failures = failures_after(failures, begun);
                    let waited = self.store.intake.overdue(Instant::now());
                    (self.store.tell)(Notice::StorageFails { what: what.to_owned(), error, waited });
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
        let pause = PAUSE.saturating_mul(1 << (failures - 1).min(8)).min(PAUSE_MAX);
        let begun = Instant::now();
        while begun.elapsed() < pause && !self.must_stop() {
            std::thread::sleep(Duration::from_millis(20).min(pause));
        }
    }

    /// A network that was cut is noticed within ten seconds, not within the minute that is enough for a backup's session.
    fn settings(&self) -> ConnectionSettings {
        let prompt = [
            ("keepalives_idle", "4"),
            ("keepalives_interval", "2"),
            ("keepalives_count", "3"),
            ("tcp_user_timeout", "10000"),
        ];
        let named =
            self.settings.clone().application_name(&self.slot).connect_timeout(Duration::from_secs(5));
        prompt.into_iter().fold(named, |settings, (keyword, value)| settings.with(keyword, value))
    }

    /// A session for a moment.
    fn sql(&self) -> Result<Connection, Broken> {
        Ok(Connection::connect(&self.settings())?)
    }

    /// One connection, over as many timelines as it brings.
    fn connection(&self) -> Result<Ended, Broken> {
        if self.over_limit.load(Ordering::Acquire) {
            return self.give_up_slot();
        }
        let host = {
            let sql = self.sql()?;
            self.ensure_slot(&sql)?;
            sql.host()
        };
        let mut replication = Replication::connect(&self.settings())?;
        self.store.intake.wake(Some(replication.waker()));
        let ended = self.timelines(&host, &mut replication);
        self.store.intake.wake(None);
        match ended {
            Ok(Ended::SlotDropped) => {
                drop(replication);
                self.give_up_slot()
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
                Err(Broken::Server(error)) if is_gone(&error) => self.note_gap(&start, &history, error)?,
                Err(broken) => return Err(broken),
            }
        }
    }

    /// A storage that fails now is waited for like a server that does; a conflict is not.
    fn repository_failed(&self, error: repository::archive::ArchiveError) -> Broken {
        use repository::archive::ArchiveError::{Conflict, OtherCluster};
        match error {
            error @ (Conflict { .. } | OtherCluster { .. }) => Broken::Fatal(error.into()),
            error => Broken::Here { what: "WAL", error: chain(&error) },
        }
    }

    /// Where to begin on this server; the intake expects its bytes from there on.
    fn begin(&self, history: &TimelineHistory) -> Result<Position, Broken> {
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
                let slot = Slot::named(&self.sql()?, &self.slot)?;
                let kept = slot.and_then(|slot| slot.restart_lsn).ok_or_else(|| {
                    ServerError::UnexpectedAnswer { what: format!("slot {} keeps no WAL", self.slot) }
                })?;
                segment_start(history.timeline_at(kept), kept, size)
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
        let slot = Slot::named(&self.sql()?, &self.slot)?;
        match slot.and_then(|slot| slot.restart_lsn).filter(|kept| *kept < stored.lsn) {
            Some(kept) => {
                // Much of it is there already, and is only compared.
                self.store.archives_too.store(true, Ordering::Relaxed);
                Ok(segment_start(history.timeline_at(kept), kept, self.store.intake.size()))
            }
            None => Ok(stored),
        }
    }

    /// Opens the segment at a position, with the parts that are stored of it.
    fn open(&self, start: &Position) -> Result<Position, Broken> {
        let Store { repository, cluster, intake, .. } = &*self.store;
        let segment = SegmentName::containing(start.timeline, start.lsn, intake.size());
        let parts = self.handle.block_on(repository.parts_of(cluster, &segment));
        let parts = parts.map_err(|error| self.repository_failed(error.into()))?;
        intake.begin(segment, parts).map_err(spool_failed)?;
        Ok(start.clone())
    }

    /// Streams one timeline; `None` when it ended.
    fn timeline(&self, replication: &mut Replication, start: &Position) -> Result<Option<Ended>, Broken> {
        let intake = &self.store.intake;
        let mut talk = Talk::new(start.lsn);
        loop {
            talk.report(replication, intake.durable(start.timeline))?;
            if self.over_limit.load(Ordering::Acquire) {
                return Ok(Some(Ended::SlotDropped));
            }
            if self.must_stop() || self.until.is_some_and(|until| talk.at >= until.get()) {
                self.farewell(Some((replication, &mut talk, start.timeline)))?;
                return Ok(Some(Ended::Stopped));
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
        }
        self.store.intake.take(wal.bytes(), Instant::now()).map_err(spool_failed)?;
        talk.at += wal.bytes().len() as u64;
        failpoint::reach("receive.taken");
        Ok(())
    }

    /// Has everything that came stored, and tells the server before it goes. The end of the connection is not waited for: its
    /// server may be gone.
    fn farewell(
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

    /// After the slot was dropped nothing is received until everything that came is stored.
    fn wait_for_storage(&self) {
        self.store.intake.close();
        while !self.must_stop() && !self.store.intake.wait_until_stored(Duration::from_millis(200)) {}
        self.over_limit.store(false, Ordering::Release);
    }
}
