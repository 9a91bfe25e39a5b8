//! `pgkeep wal receive`: WAL as the server writes it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use operations::receive::{
    FurtherRepository, Notice, Open, ReceiveRequest, drop_slot, is_slot_name, pause_after, receive,
};
use pg::Lsn;
use repository::Repository;
use serde_json::{Value, json};

use crate::commands::Session;
use crate::commands::signals::stop_signal;
use crate::failure::{Class, Failure, Outcome};
use crate::opening;
use crate::output::{print, print_error};
use crate::secret_files::Use;
use crate::settings::{Rank, Settings, keys};

/// A failure that goes on is told again after so long.
const REPEAT_AFTER: Duration = Duration::from_secs(30);
/// How often it is told what was stored.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// How to receive.
#[derive(Debug, Args)]
#[command(
    after_help = "Receives until it is told to stop (SIGTERM, SIGINT), and then has everything stored that came. \
        To have commits wait until they are in the repository, put the slot's name into \
        synchronous_standby_names; a smaller --max-lag makes them wait less and stores more often."
)]
pub struct ReceiveArguments {
    /// How long what was written may wait until it is stored [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = lag)]
    max_lag: Option<Duration>,
    /// The slot on the server [default: pgkeep_ and the cluster's name]
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    /// Drop the slot when the server keeps more WAL for it; 0 for no limit [default: 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    slot_limit: Option<u64>,
    /// End when everything before this position is stored
    #[arg(long, value_name = "LSN")]
    until: Option<Lsn>,
    /// Receive nothing: remove the slot from the server, which then keeps no more WAL for it
    #[arg(long, conflicts_with_all = ["max_lag", "slot_limit", "until"])]
    drop_slot: bool,
}

fn lag(text: &str) -> Result<Duration, String> {
    keys::duration(text).ok_or_else(|| "expected a span of time such as 1s or 200ms".to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    keys::size(text).ok_or_else(|| "expected a number of bytes such as 512MiB or 10GiB".to_owned())
}

/// Receives; returns when somebody stops it.
pub async fn run(session: &Session, arguments: &ReceiveArguments) -> Outcome<u8> {
    let settings = &session.settings;
    let slot = arguments.slot.clone().unwrap_or_else(|| settings.slot());
    if !is_slot_name(&slot) {
        return Err(Failure::wrong("receive WAL")
            .because(format!("{slot:?} is not the name of a slot: 1 to 63 of a-z, 0-9 and _")));
    }
    if arguments.drop_slot {
        return remove_slot(session, slot).await;
    }
    let request = ReceiveRequest {
        cluster: settings.cluster.clone(),
        slot,
        max_lag: arguments.max_lag.unwrap_or_else(|| settings.duration("max_lag")),
        slot_limit: match arguments.slot_limit {
            Some(limit) => Some(limit).filter(|limit| *limit > 0),
            None => settings.slot_limit(),
        },
        spool: settings.spool_dir().unwrap_or_else(std::env::temp_dir),
        workers: settings.workers(),
        until: arguments.until,
    };
    let further = further(settings)?;
    let teller =
        Arc::new(Teller { json: session.output.json, quiet: session.quiet, state: Mutex::default() });
    let tell = {
        let teller = teller.clone();
        Arc::new(move |notice| teller.tell(&notice))
    };
    // A second signal ends the program at once.
    let mut stop = stop_signal(|| std::process::exit(i32::from(Class::TryAgain as u8)))?;
    let repository = tokio::select! {
        repository = open_when_it_answers(settings, &teller) => repository?,
        _ = stop.wait_for(|stop| *stop) => return Ok(0),
    };
    receive(settings.server(), repository, further, &request, tell, stop)
        .await
        .map(|()| 0)
        .map_err(|error| Failure::caused("receive WAL", &error))
}

/// The further repositories. Receiving waits for none of them.
fn further(settings: &Settings) -> Outcome<Vec<FurtherRepository>> {
    if let Some(required) = settings.further().iter().find(|other| other.rank == Rank::Required) {
        return Err(Failure::wrong("receive WAL")
            .because(format!(
                "repository {} is required, and what is received counts as stored when the first repository has it",
                required.name
            ))
            .hint("archive by `pgkeep wal push`, or leave out `required`"));
    }
    let one = |other: &Settings| {
        let (settings, name) = (Arc::new(other.clone()), other.name.clone());
        let open: Open = Arc::new(move || {
            let settings = settings.clone();
            Box::pin(async move {
                let opened = opening::open(&settings, Use::Add).await;
                opened.map_err(|failure| failure.because.join(": "))
            })
        });
        FurtherRepository { name, open, timeout: other.duration("push_timeout") }
    };
    Ok(settings.further().iter().map(one).collect())
}

/// Opens the repository; a storage that does not answer is waited for, as it is later.
async fn open_when_it_answers(settings: &Settings, teller: &Teller) -> Outcome<Arc<Repository>> {
    let mut failures = 0;
    loop {
        match opening::open(settings, Use::Add).await {
            Err(failure) if failure.class == Class::TryAgain => {
                failures += 1;
                teller.tell(&Notice::RepositoryFails { error: failure.because.join(": ") });
                tokio::time::sleep(pause_after(failures)).await;
            }
            opened => return opened,
        }
    }
}

async fn remove_slot(session: &Session, slot: String) -> Outcome<u8> {
    let (server, name) = (session.settings.server(), slot.clone());
    let dropped = tokio::task::spawn_blocking(move || drop_slot(&server, &name)).await;
    let dropped = dropped
        .map_err(|error| Failure::caused("remove the slot", &error))?
        .map_err(|error| Failure::caused(format!("remove slot {slot}"), &error))?;
    session.output.show(&json!({"slot": slot, "removed": dropped}), || match dropped {
        true => format!("Slot {slot} is removed. The server keeps no more WAL for it.\n"),
        false => format!("The server has no slot {slot}.\n"),
    })?;
    Ok(0)
}

/// Tells what happens: a line each on standard error, or an object each on standard output.
struct Teller {
    json: bool,
    quiet: bool,
    state: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    segments: u64,
    parts: u64,
    newest: Option<String>,
    summary_at: Option<Instant>,
    failure_at: Option<Instant>,
}

impl Teller {
    fn tell(&self, notice: &Notice) {
        let mut told = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match notice {
            Notice::Stored { name } => {
                told.segments += 1;
                told.newest = Some(name.to_string());
                tracing::info!(segment = %name, "stored");
            }
            Notice::PartStored { part } => {
                told.parts += 1;
                told.newest = Some(part.to_string());
                tracing::debug!(%part, "stored");
            }
            Notice::ServerFails { .. } | Notice::RepositoryFails { .. } | Notice::StorageFails { .. } => {
                if told.failure_at.is_some_and(|at| at.elapsed() < REPEAT_AFTER) {
                    return;
                }
                told.failure_at = Some(Instant::now());
                self.line("problem", notice);
            }
            Notice::StorageDown { .. } => self.line("problem", notice),
            Notice::Streaming { .. } | Notice::StorageBack => {
                told.failure_at = None;
                self.line("event", notice);
            }
            Notice::Gap { .. } | Notice::SlotLost { .. } | Notice::SlotDropped { .. } => {
                self.line("loss", notice)
            }
            Notice::Warning(_) | Notice::FurtherFails { .. } => self.line("warning", notice),
            Notice::TimelineEnded { .. } | Notice::SlotMade { .. } | Notice::FurtherBack { .. } => {
                self.line("event", notice)
            }
        }
        self.summary(&mut told);
    }

    fn line(&self, kind: &str, notice: &Notice) {
        let now = Timestamp::now();
        if self.json {
            // Whoever read it is gone: there is nobody to tell.
            let _ = print(&format!("{}\n", value(now, kind, notice)));
        } else if !self.quiet || kind != "event" {
            let head = if kind == "event" { String::new() } else { format!("{kind}: ") };
            print_error(&format!("{now:.0} {head}{}\n", text(notice)));
        }
    }

    fn summary(&self, told: &mut Told) {
        let due = told.summary_at.get_or_insert_with(Instant::now).elapsed() >= SUMMARY_EVERY;
        let Some(newest) = told.newest.take_if(|_| due) else { return };
        let now = Timestamp::now();
        let Told { segments, parts, .. } = *told;
        if self.json {
            let value =
                json!({"at": now, "kind": "stored", "segments": segments, "parts": parts, "newest": newest});
            let _ = print(&format!("{value}\n"));
        } else if !self.quiet {
            print_error(&format!(
                "{now:.0} stored {segments} segments and {parts} parts, the newest {newest}\n"
            ));
        }
        *told = Told { summary_at: Some(Instant::now()), failure_at: told.failure_at, ..Told::default() };
    }
}

fn text(notice: &Notice) -> String {
    match notice {
        Notice::Streaming { timeline, from, host, slot } => {
            format!("receiving from {host}, slot {slot}, timeline {timeline} from {from} on")
        }
        Notice::Stored { name } => format!("stored {name}"),
        Notice::PartStored { part } => format!("stored {part}"),
        Notice::TimelineEnded { timeline, next: Some((next, at)) } => {
            format!("timeline {timeline} ended; {next} goes on from {at}")
        }
        Notice::TimelineEnded { timeline, next: None } => format!("timeline {timeline} ended"),
        Notice::Gap { gap, why } => {
            format!(
                "WAL {gap} is gone for good ({why}); take a backup now: nothing behind the gap can be restored before"
            )
        }
        Notice::SlotMade { slot } => format!("slot {slot} is made"),
        Notice::SlotLost { slot, status } => {
            format!("the server has given up slot {slot} ({status}); a new one is made")
        }
        Notice::SlotDropped { slot } => {
            format!(
                "slot {slot} is dropped so that the server's disk does not fill; it is made again when WAL can be stored"
            )
        }
        Notice::ServerFails { error, failures: 1 } => format!("the server fails: {error}"),
        Notice::ServerFails { error, failures } => {
            format!("the server fails, {failures} times in a row: {error}")
        }
        Notice::RepositoryFails { error } => format!("the repository fails: {error}"),
        Notice::StorageDown { waited, slot } => format!(
            "nothing could be stored for {} s: the connection to the server is closed until it can, and slot {slot} keeps \
             what is written",
            waited.as_secs()
        ),
        Notice::StorageFails { what, error, waited } => {
            format!("{what} cannot be stored, for {} s now: {error}", waited.as_secs())
        }
        Notice::StorageBack => "WAL can be stored again".to_owned(),
        Notice::FurtherFails { repository, error } => format!(
            "repository {repository} does not get what the first has: {error}; the copy that follows the next backup brings it"
        ),
        Notice::FurtherBack { repository } => format!("repository {repository} takes WAL again"),
        Notice::Warning(text) => text.clone(),
    }
}

fn value(at: Timestamp, kind: &str, notice: &Notice) -> Value {
    let mut value = json!({"at": at, "kind": kind, "text": text(notice)});
    match notice {
        Notice::Streaming { timeline, from, host, slot } => {
            value["streaming"] = json!({"timeline": timeline, "from": from, "host": host, "slot": slot});
        }
        Notice::TimelineEnded { timeline, next } => {
            value["timeline_ended"] = json!({"timeline": timeline, "next": next.map(|next| next.0)});
        }
        Notice::Gap { gap, .. } => {
            value["gap"] = json!({"timeline": gap.timeline, "from": gap.from, "to": gap.to});
        }
        _ => {}
    }
    value
}
