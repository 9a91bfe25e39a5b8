//! One stream's conversation with its server: what it is told, and when it is taken for gone.

use std::time::Duration;

use pg::Lsn;
use server::connection::{Received, Replication, ServerError};
use tokio::time::Instant;

use crate::failpoint;

/// How often the server hears from us though nothing has changed: well below its `wal_sender_timeout`.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// A server that says nothing for so long although it was asked to is gone.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(8);
/// One stream's conversation with its server.
pub(super) struct Talk {
    pub(super) start: Lsn,
    /// Where the next byte is expected.
    pub(super) at: u64,
    reported: Option<Received>,
    reported_at: Instant,
    heard_at: Instant,
    pub(super) owes_reply: bool,
}

impl Talk {
    pub(super) fn new(start: Lsn) -> Self {
        let now = Instant::now();
        Self { start, at: start.get(), reported: None, reported_at: now, heard_at: now, owes_reply: false }
    }

    pub(super) fn heard(&mut self) {
        self.heard_at = Instant::now();
    }

    /// Tells the server what is durable, if that is news to it or it was not told for a while. Only what this connection
    /// brought is told, and nothing that is merely received: whoever waits for us waits for the repository.
    pub(super) fn report(
        &mut self,
        replication: &mut Replication,
        durable: Option<Lsn>,
    ) -> Result<(), ServerError> {
        let durable =
            durable.filter(|durable| *durable >= self.start).map(|durable| durable.get().min(self.at));
        let durable = durable.and_then(Lsn::new);
        let received = Received { written: durable, flushed: durable };
        let now = Instant::now();
        let due = now.duration_since(self.reported_at) >= REPORT_EVERY;
        if self.reported == Some(received) && !due && !self.owes_reply {
            return Ok(());
        }
        let silent = now.duration_since(self.heard_at) >= REPORT_EVERY;
        replication.report(received, silent)?;
        failpoint::reach("receive.reported");
        (self.reported, self.reported_at, self.owes_reply) = (Some(received), now, false);
        Ok(())
    }

    pub(super) fn check_silence(&self) -> Result<(), ServerError> {
        let silent = self.heard_at.elapsed();
        if silent < SILENCE_MAX {
            return Ok(());
        }
        let message = format!("the server said nothing for {} s", silent.as_secs());
        Err(ServerError::ConnectionLost { message })
    }
}
