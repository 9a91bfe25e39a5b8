//! Before anything is received: what the server is, and whether the stream in the repository is its. Either may not answer yet,
//! which is waited for as it is later; what waiting does not change is an error at once.

use repository::archive::{ArchiveError, Identity};
use repository::{Repository, RepositoryError};
use server::connection::{Connection, ConnectionSettings, Replication, ServerError};
use server::facts::ServerFacts;
use tokio::sync::watch;

use super::store::chain;
use super::{Notice, ReceiveError, ReceiveRequest, Tell, pause_after};

/// What is known before anything is received.
pub(super) struct Start {
    pub(super) facts: ServerFacts,
    pub(super) identity: Identity,
    /// The settings of each host alone.
    pub(super) hosts: Vec<ConnectionSettings>,
    /// Whether libpq was told to take the primary among them.
    wants_primary: bool,
}

/// Binds the stream to the server; `None` when somebody wants the end first.
pub(super) async fn start(
    settings: &ConnectionSettings,
    repository: &Repository,
    request: &ReceiveRequest,
    tell: &Tell,
    stop: &watch::Receiver<bool>,
) -> Result<Option<Start>, ReceiveError> {
    let mut stop = stop.clone();
    let starting = async {
        let mut failures = 0;
        loop {
            failures += 1;
            let notice = match attempt(settings, repository, request).await {
                Ok(start) => break Ok(start),
                Err(ReceiveError::Server(error)) if error.is_transient() => {
                    Notice::ServerFails { error: chain(&error), failures }
                }
                Err(ReceiveError::Archive(error)) if may_pass(&error) => {
                    Notice::RepositoryFails { error: chain(&error) }
                }
                Err(error) => break Err(error),
            };
            tell(notice);
            tokio::time::sleep(pause_after(failures)).await;
        }
    };
    let start: Start = tokio::select! {
        start = starting => start?,
        _ = stop.wait_for(|stop| *stop) => return Ok(None),
    };
    if start.hosts.len() > 1 && !start.wants_primary {
        tell(Notice::Warning(format!(
            "{} hosts are given without target_session_attrs=read-write: whichever answers first is received from, though \
             it may be a standby that is behind, or no longer follows",
            start.hosts.len()
        )));
    }
    Ok(Some(start))
}

async fn attempt(
    settings: &ConnectionSettings,
    repository: &Repository,
    request: &ReceiveRequest,
) -> Result<Start, ReceiveError> {
    let settings = settings.clone();
    let asked = tokio::task::spawn_blocking(move || ask(&settings)).await;
    let start = asked.expect("asking does not panic and is not cancelled")?;
    if !start.facts.major.is_supported() {
        let what = format!("PostgreSQL {} is not supported", start.facts.major);
        return Err(ReceiveError::Unusable { what });
    }
    repository.bind(&request.cluster, &start.identity).await?;
    Ok(start)
}

/// Asks the server. The system identifier comes over the replication connection, which needs no other right.
fn ask(settings: &ConnectionSettings) -> Result<Start, ServerError> {
    let sql = Connection::connect(settings).map_err(|error| error.explained(settings))?;
    let facts = ServerFacts::read(&sql)?;
    let beside = sql.settings_beside();
    let mut replication = Replication::connect(&beside)
        .map_err(|error| error.explained(&beside.clone().with("replication", "true")))?;
    let identity = Identity {
        system_identifier: replication.identify_system()?.system_identifier,
        segment_size: facts.wal_segment_size.bytes(),
        major: u32::from(facts.major.number()),
        logical: false,
    };
    Ok(Start { facts, identity, hosts: sql.hosts(), wants_primary: sql.wants_primary() })
}

/// Whether the repository may answer later.
fn may_pass(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Repository(RepositoryError::Storage(error)) if error.is_transient())
}
