//! Receiving WAL as the server writes it: over its replication protocol, into the repository, at most about a second behind.
//!
//! Whole segments are stored as `wal push` stores them, under the same names. The unfinished one is stored in parts, each
//! once, which go when their segment is whole. The server hears that WAL is flushed only when the repository holds it without
//! a hole before it, so a receiver can be a synchronous standby: acknowledged then means stored.
//!
//! `Stream` is the thread that receives, `Store` the task that stores, and `Intake` where they meet. Nothing is kept on this
//! host: where to go on is seen from what is stored, and what was not stored yet is still on the server, in whose name a slot
//! keeps it. WAL that the server does not have any more is a gap, which is written down and told.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pg::wal::{SegmentMismatch, SegmentName};
use pg::{Lsn, TimelineId};
use repository::archive::{ArchiveError, Gap, Part};
use repository::{ClusterName, Repository};
use server::connection::{Connection, ConnectionSettings, ServerError};
use server::facts::{ArchiveMode, Slot};
use tokio::runtime::Handle;
use tokio::sync::watch;

mod further;
mod health;
mod host;
mod intake;
mod level;
mod limit;
mod position;
mod segment;
mod slot;
mod start;
mod store;
mod stream;

pub use further::{FurtherRepository, Open};
pub use slot::{default_slot_name, is_slot_name};

use further::Further;
use health::Health;
use host::Host;
use intake::Intake;
use start::Start;
use store::Store;
use stream::Stream;

/// What to receive, and how.
#[derive(Clone, Debug)]
pub struct ReceiveRequest {
    /// The stream in the repository.
    pub cluster: ClusterName,
    /// The slot on the server, which is made if it is not there; also the name by which `synchronous_standby_names` knows us.
    pub slot: String,
    /// How old the first byte may be that is in no part yet.
    pub max_lag: Duration,
    /// How much WAL the server may have to keep for us before the slot is dropped; `None` for no limit.
    pub slot_limit: Option<u64>,
    /// The folder for the bytes of the segment in hand.
    pub spool: PathBuf,
    /// Threads that compress.
    pub workers: usize,
    /// Ends when everything before this position is stored; `None` goes on until somebody stops it.
    pub until: Option<Lsn>,
}

/// Something worth telling while receiving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// WAL comes.
    Streaming {
        /// Of this timeline.
        timeline: TimelineId,
        /// From here on.
        from: Lsn,
        /// From this host.
        host: String,
        /// In the name of this slot.
        slot: String,
    },
    /// A segment is stored whole.
    Stored {
        /// Which.
        name: SegmentName,
    },
    /// A part of an unfinished segment is stored.
    PartStored {
        /// Which.
        part: Part,
    },
    /// The server has left a timeline.
    TimelineEnded {
        /// Which.
        timeline: TimelineId,
        /// The one after it, and where it begins.
        next: Option<(TimelineId, Lsn)>,
    },
    /// WAL is missing, for ever: the server had removed it.
    Gap {
        /// Which.
        gap: Gap,
        /// What the server said.
        why: String,
    },
    /// The slot was made.
    SlotMade {
        /// Its name.
        slot: String,
    },
    /// The server had given the slot up, so a new one is made.
    SlotLost {
        /// Its name.
        slot: String,
        /// `lost`.
        status: String,
    },
    /// The slot was dropped, so that the server's disk does not fill.
    SlotDropped {
        /// Its name.
        slot: String,
    },
    /// The server could not be reached, or ended the connection.
    ServerFails {
        /// How.
        error: String,
        /// How many times in a row.
        failures: u32,
    },
    /// The repository could not be read; that is tried again.
    RepositoryFails {
        /// How.
        error: String,
    },
    /// The connection to the server is closed until something can be stored again.
    StorageDown {
        /// How long nothing was stored.
        waited: Duration,
        /// The slot that keeps what is written meanwhile.
        slot: String,
    },
    /// Something could not be stored; it is tried again.
    StorageFails {
        /// What.
        what: String,
        /// How.
        error: String,
        /// How long the oldest byte has been waiting.
        waited: Duration,
    },
    /// Storing works again.
    StorageBack,
    /// A further repository does not get what the first has. It is copied later.
    FurtherFails {
        /// Which.
        repository: String,
        /// How.
        error: String,
    },
    /// A further repository takes segments again.
    FurtherBack {
        /// Which.
        repository: String,
    },
    /// Something that the user should know.
    Warning(String),
}

/// Takes notices, from several threads; must return quickly.
pub type Tell = Arc<dyn Fn(Notice) + Send + Sync>;

/// Why receiving ended though nobody stopped it: what does not pass by waiting.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The server could not be asked what it is.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The archive holds other bytes under the same name, or is another cluster's.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The server sent something that is not what it should be.
    #[error(transparent)]
    Mismatch(#[from] SegmentMismatch),
    /// Another cluster answers where ours did.
    #[error("the server is another one now: its system identifier is {found}")]
    OtherServer {
        /// Its own.
        found: u64,
    },
    /// The server's version or segment size cannot be used.
    #[error("receive from this server: {what}")]
    Unusable {
        /// Why.
        what: String,
    },
    /// The file for the segment in hand could not be written or read.
    #[error("keep the segment in hand in the spool folder")]
    Spool {
        /// Why.
        source: std::io::Error,
    },
    /// It was to end and could not store what had come. All of it is still on the server.
    #[error("what came last could not be stored within {} s; the server still has it", .waited.as_secs())]
    NotStored {
        /// How long was waited.
        waited: Duration,
    },
    /// The name is none for a slot.
    #[error("{name:?} is not the name of a slot: 1 to 63 of a-z, 0-9 and _")]
    SlotName {
        /// As given.
        name: String,
    },
}

/// Receives until `stop` becomes true, or `request.until` is reached. At the end everything that came is stored. Whole segments
/// go into further repositories too, as far as these keep up.
pub async fn receive(
    settings: ConnectionSettings,
    repository: Arc<Repository>,
    further: Vec<FurtherRepository>,
    request: &ReceiveRequest,
    tell: Tell,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ReceiveError> {
    if !is_slot_name(&request.slot) {
        return Err(ReceiveError::SlotName { name: request.slot.clone() });
    }
    let settings = host::prompt(settings, &request.slot);
    let started = start::start(&settings, &repository, request, &tell, &stop).await?;
    let Some(Start { facts, identity, hosts, .. }) = started else { return Ok(()) };
    let further = Arc::new(Further::start(further, &request.cluster, &identity, &tell));
    let store = Arc::new(Store {
        intake: Arc::new(Intake::new(facts.wal_segment_size, request.spool.clone())),
        repository,
        cluster: request.cluster.clone(),
        identity,
        max_lag: request.max_lag,
        threads: request.workers.clamp(1, 2),
        archives_too: AtomicBool::new(facts.archive_mode != ArchiveMode::Off),
        tell,
        health: Health::new(),
        further: further.clone(),
    });
    let (stopping, host) = (Arc::new(AtomicBool::new(false)), Arc::new(Host::new(settings, hosts)));
    let stream = Stream {
        host: host.clone(),
        slot: request.slot.clone(),
        store: store.clone(),
        handle: Handle::current(),
        stop: stopping.clone(),
        until: request.until,
    };
    let (ended, has_ended) = watch::channel(false);
    let receiving = tokio::task::spawn_blocking(move || {
        let outcome = stream.run();
        ended.send_replace(true);
        outcome
    });
    let watching = limit::watch(host, request.clone(), store.clone());
    let storing = tokio::spawn(store.clone().run(has_ended));
    tokio::pin!(watching, storing);
    loop {
        tokio::select! {
            stored = &mut storing => {
                let stored = stored.expect("storing does not panic and is not cancelled");
                if stored.is_err() {
                    store.intake.fail();
                }
                let received = receiving.await.expect("receiving does not panic and is not cancelled");
                further.finish().await;
                return stored.and(received);
            }
            _ = stop.wait_for(|stop| *stop), if !stopping.load(Ordering::Relaxed) => {
                stopping.store(true, Ordering::Release);
            }
            () = &mut watching => {}
        }
    }
}

/// Removes the slot from the server; `false` if there was none. Nothing is kept for a receiver any more then.
pub fn drop_slot(settings: &ConnectionSettings, slot: &str) -> Result<bool, ServerError> {
    let connection = Connection::connect(settings)?;
    if Slot::named(&connection, slot)?.is_none() {
        return Ok(false);
    }
    slot::drop_slot(&connection, slot).map(|()| true)
}

/// The pause before another attempt, after so many that failed in a row: it doubles from the first to the last.
pub fn pause_after(failures: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_secs(2);
    FIRST.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LAST)
}
