//! A connection in replication mode: who the server is, the histories of its timelines, and its WAL as a stream.
//!
//! Calls block, `next` for no longer than it is told; a [`Waker`] ends its wait from another thread. Source of the messages:
//! PostgreSQL's documentation, "Streaming Replication Protocol".

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pg::{Lsn, PgTimestamp, TimelineId};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::raw::{CopyMessage, CopyStep, Session};
use super::{ConnectionSettings, Rows, ServerError, c_string};

/// How long the server waits for a sign of life from us before it gives the connection, and our slot, free. Its own
/// default of a minute would keep a receiver that lost its network from coming back for so long.
const SENDER_TIMEOUT: &str = "10s";

/// Ends the wait of [`Replication::next`] from another thread.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Wakes it now, or at its next wait.
    pub fn wake(&self) {
        // The counter cannot overflow before somebody reads it, and a full one wakes as well.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn take(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

/// Who the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// The timeline that it writes, or replays.
    pub timeline: TimelineId,
    /// The end of the WAL that it has flushed; `None` before it has any.
    pub flushed: Option<Lsn>,
}

/// How far we have what the server sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Taken; the byte after the last one.
    pub written: Option<Lsn>,
    /// Durable. A server that has us as a synchronous standby tells its clients of commits up to here, and its slot lets
    /// go of WAL before it.
    pub flushed: Option<Lsn>,
}

/// WAL as it came.
pub struct WalData(CopyMessage);

/// What stands before the bytes: `w`, the position of the first one, the server's end of WAL, and its clock.
const WAL_HEADER: usize = 25;

impl WalData {
    /// The position of the first byte.
    pub fn start(&self) -> u64 {
        be_u64(&self.0.as_ref()[1..])
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.as_ref()[WAL_HEADER..]
    }

    /// The end of the server's WAL when it was sent.
    pub fn server_end(&self) -> Option<Lsn> {
        Lsn::new(be_u64(&self.0.as_ref()[9..]))
    }

    /// The server's clock when it was sent.
    pub fn sent_at(&self) -> Option<Timestamp> {
        clock(&self.0.as_ref()[17..])
    }
}

impl fmt::Debug for WalData {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "WalData({:X}, {} bytes)", self.start(), self.bytes().len())
    }
}

/// What [`Replication::next`] has.
#[derive(Debug)]
pub enum Message {
    /// WAL.
    Wal(WalData),
    /// A sign of life.
    Keepalive {
        /// The end of the server's WAL.
        server_end: Option<Lsn>,
        /// Whether it waits for an answer, or else ends the connection soon.
        reply_wanted: bool,
    },
    /// Nothing came in time, or somebody woke us.
    Nothing,
    /// The timeline ended; another may go on from it.
    TimelineEnded {
        /// The next one and where it begins.
        next: Option<(TimelineId, Lsn)>,
    },
}

/// A connection in replication mode.
#[derive(Debug)]
pub struct Replication {
    session: Session,
    waker: Arc<Waker>,
}

impl Replication {
    /// Opens one. The role needs the attribute `REPLICATION`, and `pg_hba.conf` a line for the database `replication`.
    pub fn connect(settings: &ConnectionSettings) -> Result<Self, ServerError> {
        let settings =
            settings.clone().with("replication", "true").with_option("wal_sender_timeout", SENDER_TIMEOUT);
        let session =
            Session::connect(&settings.resolve()?).map_err(|failure| settings.scrub_failure(failure))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let waker = eventfd(0, flags).map_err(|error| io_lost(error.into()))?;
        Ok(Self { session, waker: Arc::new(Waker(waker)) })
    }

    /// What ends a wait of [`Self::next`].
    pub fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// Asks the server who it is.
    pub fn identify_system(&mut self) -> Result<SystemIdentity, ServerError> {
        let rows = Rows::new(self.session.simple_query(c"IDENTIFY_SYSTEM")?);
        let row = rows.first()?;
        Ok(SystemIdentity {
            system_identifier: row.parse(0)?,
            timeline: row.parse(1)?,
            flushed: lsn_or_none(row.required(2)?)?,
        })
    }

    /// The history file of a timeline, byte for byte.
    pub fn timeline_history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, ServerError> {
        let sql = c_string(&format!("TIMELINE_HISTORY {}", timeline.get()))?;
        let rows = Rows::new(self.session.simple_query(&sql)?);
        Ok(rows.first()?.bytes(1).unwrap_or_default().to_vec())
    }

    /// Begins to stream a timeline from `from` on, in the name of a slot, whose name has `a-z`, `0-9` and `_` only.
    pub fn start(&mut self, slot: &str, timeline: TimelineId, from: Lsn) -> Result<(), ServerError> {
        let sql = format!("START_REPLICATION SLOT {slot} PHYSICAL {from} TIMELINE {}", timeline.get());
        self.session.copy_both(&c_string(&sql)?)
    }

    /// What comes next in the stream; waits for it no longer than `wait`.
    pub fn next(&mut self, wait: Duration) -> Result<Message, ServerError> {
        let mut waited = false;
        loop {
            match self.session.copy_step()? {
                CopyStep::Message(message) => return read_message(message),
                CopyStep::Ended => {
                    let next = self.session.end_copy_both()?.map(Rows::new);
                    let next = next.as_ref().map(read_next_timeline).transpose()?.flatten();
                    return Ok(Message::TimelineEnded { next });
                }
                CopyStep::Wait if waited => return Ok(Message::Nothing),
                CopyStep::Wait => {}
            }
            waited = true;
            if self.wait(wait)? && !self.session.read_socket() {
                // What was lost is told by the next step.
                waited = false;
            }
        }
    }

    /// Tells the server how far its WAL was received; `reply` asks it for a sign of life.
    pub fn report(&mut self, received: Received, reply: bool) -> Result<(), ServerError> {
        let mut message = vec![b'r'];
        let position = |lsn: Option<Lsn>| lsn.map_or(0, Lsn::get).to_be_bytes();
        message.extend_from_slice(&position(received.written));
        message.extend_from_slice(&position(received.flushed));
        // Nothing is ever replayed here, so that no client must wait for it or believe it: `remote_apply` is not for us.
        message.extend_from_slice(&position(None));
        let now = PgTimestamp::from(Timestamp::now());
        message.extend_from_slice(&now.0.to_be_bytes());
        message.push(u8::from(reply));
        self.session.put_copy(&message)
    }

    /// Waits for the socket or the waker; true when the socket has something.
    fn wait(&self, wait: Duration) -> Result<bool, ServerError> {
        let socket = self.session.socket()?;
        let mut ready = [PollFd::new(&socket, PollFlags::IN), PollFd::new(&self.waker.0, PollFlags::IN)];
        let wait = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut ready, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io_lost(error.into())),
        }
        let [socket, woken] = ready.map(|one| !one.revents().is_empty());
        if woken {
            self.waker.take();
        }
        Ok(socket)
    }
}

fn read_message(message: CopyMessage) -> Result<Message, ServerError> {
    let bytes = message.as_ref();
    match bytes.first() {
        Some(b'w') if bytes.len() >= WAL_HEADER => Ok(Message::Wal(WalData(message))),
        Some(b'k') if bytes.len() >= 18 => {
            Ok(Message::Keepalive { server_end: Lsn::new(be_u64(&bytes[1..])), reply_wanted: bytes[17] == 1 })
        }
        other => {
            let what = format!("a message of kind {other:?} and {} bytes in the stream", bytes.len());
            Err(ServerError::UnexpectedAnswer { what })
        }
    }
}

/// After the end of a timeline the server names the next one. Source: `StartReplication`, `walsender.c`.
fn read_next_timeline(rows: &Rows) -> Result<Option<(TimelineId, Lsn)>, ServerError> {
    let Some(row) = rows.row(0) else { return Ok(None) };
    lsn_or_none(row.required(1)?)?.map(|lsn| Ok((row.parse(0)?, lsn))).transpose()
}

fn lsn_or_none(text: &str) -> Result<Option<Lsn>, ServerError> {
    if text == "0/0" {
        return Ok(None);
    }
    let odd = |error| ServerError::UnexpectedAnswer { what: format!("position {text:?}: {error}") };
    text.parse().map(Some).map_err(odd)
}

fn be_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn clock(bytes: &[u8]) -> Option<Timestamp> {
    PgTimestamp(i64::from_be_bytes(*bytes.first_chunk()?)).to_timestamp()
}

fn io_lost(error: io::Error) -> ServerError {
    ServerError::ConnectionLost { message: error.to_string() }
}

#[cfg(test)]
mod tests;
