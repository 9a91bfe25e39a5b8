//! `pgkeep wal list`: what the archive holds, what is missing, and how far it is behind the server.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use operations::catalogue::{End, GapContent, WalContent, wal_content};
use pg::Lsn;
use serde::Serialize;
use server::connection::Connection;

use crate::commands::Session;
use crate::failure::{Failure, Outcome, push_wrapped};
use crate::opening;
use crate::output::{bytes, exact_moment, facts, span, table, table_text, width};
use crate::secret_files::Use;

/// How long the server may take to say where it is; the list does not depend on it.
const SERVER_PATIENCE: Duration = Duration::from_secs(3);

/// What to show.
#[derive(Debug, Args)]
pub struct WalListArguments {
    /// Do not ask the server how far the archive is behind
    #[arg(long)]
    offline: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    content: &'a WalContent,
    lag: Option<Lag>,
}

/// How far the archive is behind the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Lag {
    /// The end of the server's WAL.
    server_lsn: Lsn,
    /// Bytes of it that are not stored.
    bytes: u64,
    /// Seconds since the newest stored commit, or since something was stored; 0 when nothing is missing.
    seconds: Option<i64>,
}

/// Shows the list; the exit code says nothing of lag and gaps, which `status` judges.
pub async fn run(session: &Session, arguments: &WalListArguments) -> Outcome<u8> {
    let repository = opening::open(&session.settings, Use::Read).await?;
    let content = wal_content(&repository, &session.settings.cluster)
        .await
        .map_err(|error| Failure::caused("list the WAL archive", &error))?;
    let lag = match content.end.filter(|_| !arguments.offline && session.settings.names_a_server()) {
        Some(end) => lag(session, end).await,
        None => None,
    };
    session.output.show(&Shown { content: &content, lag }, || text(&content, lag))?;
    Ok(0)
}

async fn lag(session: &Session, end: End) -> Option<Lag> {
    let server = session.settings.server().connect_timeout(SERVER_PATIENCE);
    let asked = tokio::task::spawn_blocking(move || {
        let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn()
                   ELSE pg_catalog.pg_current_wal_flush_lsn() END";
        Connection::connect(&server)?.query_one(sql, &[])?.first()?.parse::<Lsn>(0)
    });
    let server_lsn =
        asked.await.ok()?.inspect_err(|error| tracing::info!(%error, "the server was not asked")).ok()?;
    let bytes = server_lsn.get().saturating_sub(end.lsn.get());
    let since = end.last_commit.or(end.stored).map(|moment| (Timestamp::now() - moment).get_seconds().max(0));
    Some(Lag { server_lsn, bytes, seconds: if bytes == 0 { Some(0) } else { since } })
}

fn text(content: &WalContent, lag: Option<Lag>) -> String {
    let Some(bound_to) = &content.bound_to else {
        return format!("Cluster {} has no WAL.\n", content.cluster);
    };
    let mut lines = vec![("Cluster", content.cluster.clone()), ("Bound to", bound_to.clone())];
    if let Some(end) = content.end {
        let commit = end.last_commit.map(|moment| format!(", last commit {}", exact_moment(moment)));
        let text = format!("LSN {} on timeline {}{}", end.lsn, end.timeline, commit.unwrap_or_default());
        lines.push(("Stored to", text));
    }
    if let Some(lag) = lag {
        lines.push(("Behind", lag_text(lag)));
    }
    let mut text = facts(&lines);
    text.push('\n');
    text.push_str(&timelines_text(content));
    if !content.others.is_empty() {
        text.push_str(&format!("and {} other files (.backup, .partial)\n", content.others.len()));
    }
    for part in content.timelines.iter().flat_map(|timeline| &timeline.unfinished) {
        for (from, to) in &part.holes {
            let hole =
                format!("bytes {from} to {to} of {} are missing, though later ones are stored", part.segment);
            push_wrapped(&mut text, "problem: ", &hole, width());
        }
    }
    for gap in &content.gaps {
        let head = if gap.filled { "notice:  " } else { "problem: " };
        push_wrapped(&mut text, head, &gap_text(gap), width());
    }
    text
}

fn lag_text(lag: Lag) -> String {
    match (lag.bytes, lag.seconds) {
        (0, _) => format!("nothing; the server is at {}", lag.server_lsn),
        (behind, Some(seconds)) => {
            format!("{}, {}; the server is at {}", bytes(behind), span(seconds), lag.server_lsn)
        }
        (behind, None) => format!("{}; the server is at {}", bytes(behind), lag.server_lsn),
    }
}

fn timelines_text(content: &WalContent) -> String {
    let mut shown = table(&["TL", "FIRST", "LAST", "SEGMENTS", "STORED"]);
    for timeline in &content.timelines {
        let number = timeline.timeline.to_string();
        for run in &timeline.runs {
            let columns = [run.first.clone(), run.last.clone(), run.segments.to_string(), bytes(run.bytes)];
            shown.add_row(std::iter::once(number.clone()).chain(columns));
        }
        for part in &timeline.unfinished {
            let length = format!("its first {}", bytes(part.length.into()));
            let parts = if part.parts == 1 { "1 part".to_owned() } else { format!("{} parts", part.parts) };
            shown.add_row([number.clone(), part.segment.clone(), length, parts, bytes(part.bytes)]);
        }
        if timeline.history {
            shown.add_row([number, format!("{:08X}.history", timeline.timeline.get())]);
        }
    }
    table_text(&shown)
}

fn gap_text(gap: &GapContent) -> String {
    let noticed =
        gap.noticed.map(|moment| format!(" (noticed {})", exact_moment(moment))).unwrap_or_default();
    let filled = if gap.filled { "; it has come in another way since" } else { "" };
    format!(
        "WAL from {} to {} on timeline {} was not received{noticed}: {}{filled}",
        gap.from, gap.to, gap.timeline, gap.why
    )
}
