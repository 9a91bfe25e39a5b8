//! `pgkeep status`: from when to when can be restored, and what is missing.

mod others;

use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use operations::catalogue::{self, Range, Severity, Status};
use operations::failure_note::{About, NotedFailure};
use repository::Repository;
use serde::Serialize;
use serde_json::json;
use server::connection::Connection;

use super::Session;
use crate::failure::{Class, Failure, Outcome, push_wrapped};
use crate::opening;
use crate::output::{bytes, exact_moment, facts, moment, span, width};
use crate::secret_files::Use;
use crate::settings::Settings;
use others::Other;

/// Nothing of its own.
#[derive(Debug, Args)]
pub struct StatusArguments {}

#[derive(Serialize)]
struct Shown<'a> {
    repository: String,
    repository_id: &'a str,
    #[serde(flatten)]
    status: &'a Status,
    archiver: Option<&'a Archiver>,
    /// What the last backup from this host failed with, until there is one.
    failed_backup: Option<&'a NotedFailure>,
    /// All of them, where several are configured.
    #[serde(skip_serializing_if = "<[Other]>::is_empty")]
    repositories: &'a [Other],
}

/// What the server says of its archiving.
#[derive(Debug, Serialize)]
struct Archiver {
    archived: u64,
    last_archived: Option<String>,
    last_archived_time: Option<String>,
    failed: u64,
    last_failed: Option<String>,
    last_failed_time: Option<String>,
    /// True while the last thing that happened is a failure.
    failing: bool,
}

/// Shows the status. The exit code is that of damaged data if something is lost, and that of not found if nothing can be
/// restored; while the server fails to archive, or a further repository lacks something or cannot be reached, it is "try again".
pub async fn run(session: &Session) -> Outcome<u8> {
    let settings = &session.settings;
    let (first, others) = tokio::join!(first(settings), others::ask(settings));
    let (repository, status) = match first {
        Ok(found) => found,
        Err(failure) => return without_first(session, failure, others),
    };
    let mut repositories = Vec::new();
    if !others.is_empty() {
        repositories.push(Other::of(settings, Ok(&status)));
        repositories.extend(others);
        let (first, others) = repositories.split_at_mut(1);
        others.iter_mut().for_each(|other| other.compare(&first[0]));
    }
    // What a server does with its WAL is nothing to rows that are stored by SQL.
    let archiver = if status.moments.is_empty() { archiver(settings).await } else { None };
    let failed_backup = failed_backup(settings, &status);
    let shown = Shown {
        repository: settings.location()?.to_string(),
        repository_id: repository.id(),
        status: &status,
        archiver: archiver.as_ref(),
        failed_backup: failed_backup.as_ref(),
        repositories: &repositories,
    };
    session.output.show(&shown, || text(&repository, &shown))?;
    let lost = status.problems.iter().any(|problem| problem.severity == Severity::Loss);
    let failing = archiver.as_ref().is_some_and(|archiver| archiver.failing);
    let other = repositories.iter().skip(1).map(Other::code).find(|code| *code != 0);
    let is_empty = status.ranges.is_empty() && status.moments.is_empty();
    Ok(match (lost, is_empty, failing) {
        (true, _, _) => Class::Damaged as u8,
        (false, true, _) => Class::NotFound as u8,
        (false, false, true) => Class::TryAgain as u8,
        (false, false, false) => other.unwrap_or(0),
    })
}

/// What the last backup from this host failed with, unless another host has made one since.
fn failed_backup(settings: &Settings, status: &Status) -> Option<NotedFailure> {
    let ended = status.newest_backup.as_ref().and_then(|newest| newest.ended);
    settings
        .failure_note(About::Backup)
        .read()
        .filter(|failed| ended.is_none_or(|ended| ended < failed.tried))
}

async fn first(settings: &Settings) -> Outcome<(Arc<Repository>, Status)> {
    let repository = opening::open(settings, Use::Read).await?;
    let status = catalogue::status(&repository, &settings.cluster, Timestamp::now()).await?;
    Ok((repository, status))
}

/// The first repository cannot be asked: what the others have is the more worth knowing.
fn without_first(session: &Session, failure: Failure, others: Vec<Other>) -> Outcome<u8> {
    if others.is_empty() {
        return Err(failure);
    }
    let mut all = vec![Other::of(&session.settings, Err(&failure))];
    all.extend(others);
    session.output.show(&json!({"repositories": all}), || others::text(&all))?;
    Err(failure)
}

fn text(repository: &Repository, shown: &Shown<'_>) -> String {
    let status = shown.status;
    let mut lines = vec![
        ("Cluster", format!("{} in {} ({})", status.cluster, shown.repository, repository.id())),
        ("Bound to", status.bound_to.clone().unwrap_or_else(|| "nothing yet".to_owned())),
    ];
    for range in &status.ranges {
        lines.push(("Restorable", range_text(range)));
    }
    if let (Some(first), Some(last)) = (status.moments.first(), status.moments.last()) {
        let text = match status.moments.len() {
            1 => exact_moment(*last),
            count => format!("{count} moments, from {} to {}", moment(*first), moment(*last)),
        };
        lines.push(("Restorable", text));
    } else if status.ranges.is_empty() {
        lines.push(("Restorable", "nothing".to_owned()));
    }
    if let (Some(newest), Some(age)) = (status.newest_moment, status.newest_moment_age_s) {
        lines.push(("Newest moment", format!("{}, {} ago", exact_moment(newest), span(age))));
    }
    lines.push(("Backups", backups_text(status)));
    if status.moments.is_empty() {
        lines.push(("WAL", format!("{} segments, {}", status.segments, bytes(status.wal_bytes))));
    }
    if let Some(archiver) = shown.archiver {
        lines.push(("Archiver", archiver.text()));
    }
    let mut text = facts(&lines);
    let failing = shown.archiver.filter(|archiver| archiver.failing);
    if let Some(archiver) = failing {
        let what = "the server fails to hand over its WAL: what it writes now cannot be restored";
        let failed = archiver.last_failed.as_deref().unwrap_or("unknown");
        push_wrapped(&mut text, "problem: ", &format!("{what}; see its log about {failed}"), width());
    }
    if let Some(failed) = shown.failed_backup {
        let what = format!("the backup failed at {:.0}: {}", failed.tried, failed.why);
        push_wrapped(&mut text, "notice:  ", &what, width());
    }
    if status.problems.is_empty() && failing.is_none() && shown.failed_backup.is_none() {
        text.push_str("No problem is known.\n");
    }
    for problem in &status.problems {
        let head = if problem.severity == Severity::Loss { "problem: " } else { "notice:  " };
        push_wrapped(&mut text, head, &problem.what, width());
    }
    if !shown.repositories.is_empty() {
        text.push_str(&others::text(shown.repositories));
    }
    text
}

fn range_text(range: &Range) -> String {
    let place = |place: &catalogue::Place| place.time.map_or_else(|| format!("LSN {}", place.lsn), moment);
    let backups =
        if range.backups == 1 { "1 backup".to_owned() } else { format!("{} backups", range.backups) };
    format!(
        "from {} to {} ({backups}, to LSN {} on timeline {})",
        place(&range.from),
        place(&range.to),
        range.to.lsn,
        range.timeline
    )
}

fn backups_text(status: &Status) -> String {
    match &status.newest_backup {
        Some(newest) => {
            let age = newest.ended.map(|ended| (Timestamp::now() - ended).get_seconds());
            format!("{}, newest {} ({} ago)", status.backups, newest.id, span(age.unwrap_or(0)))
        }
        None => "none".to_owned(),
    }
}

/// Asks the server, if it can be reached: the status is about the repository and does not depend on it.
async fn archiver(settings: &Settings) -> Option<Archiver> {
    let connection = opening::connect(settings).await.ok()?;
    tokio::task::spawn_blocking(move || Archiver::ask(&connection)).await.ok()?
}

impl Archiver {
    fn ask(connection: &Connection) -> Option<Self> {
        let sql = "SELECT archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal, \
            last_failed_time, coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) \
            FROM pg_catalog.pg_stat_archiver";
        let rows = connection.query_one(sql, &[]).ok()?;
        let row = rows.first().ok()?;
        let text = |at: usize| row.text(at).ok().flatten().map(str::to_owned);
        Some(Self {
            archived: text(0)?.parse().ok()?,
            last_archived: text(1),
            last_archived_time: text(2),
            failed: text(3)?.parse().ok()?,
            last_failed: text(4),
            last_failed_time: text(5),
            failing: text(6).as_deref() == Some("t"),
        })
    }

    fn text(&self) -> String {
        match &self.last_archived {
            Some(last) => format!("{} files, last {last}; {} failures", self.archived, self.failed),
            None => "nothing handed over yet".to_owned(),
        }
    }
}
