//! What the further repositories have, beside the first.

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use operations::catalogue::{self, Severity, Status};
use operations::failure_note::{About, NotedFailure};
use pg::{Lsn, TimelineId};
use serde::Serialize;

use crate::failure::{Class, Failure, Outcome, push_wrapped};
use crate::opening;
use crate::output::{bytes, exact_moment, facts, span, width};
use crate::secret_files::Use;
use crate::settings::Settings;

/// How long a further repository may take to answer: what is known of the others is not kept back for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where stored WAL ends.
#[derive(Clone, Copy, Debug, Serialize)]
struct WalEnd {
    timeline: TimelineId,
    lsn: Lsn,
}

/// One of several repositories, in short.
#[derive(Debug, Serialize)]
pub struct Other {
    name: String,
    location: String,
    reachable: bool,
    /// Why not.
    error: Option<String>,
    backups: Option<usize>,
    newest_backup: Option<String>,
    newest_moment: Option<Timestamp>,
    /// The end of the newest stretch that can be restored.
    newest_wal: Option<WalEnd>,
    /// How far that is behind the first repository's, on the same timeline.
    wal_behind_bytes: Option<u64>,
    /// What is lost in it, or was not copied into it yet.
    lacks: Vec<String>,
    /// What this host noted when it last could not store WAL there.
    outage: Option<NotedFailure>,
    #[serde(skip)]
    class: Option<Class>,
}

impl Other {
    /// Of a repository whose status was asked for.
    pub fn of(settings: &Settings, status: Result<&Status, &Failure>) -> Self {
        let location = settings.location().map(|location| location.to_string()).unwrap_or_default();
        let (known, failure) = (status.ok(), status.err());
        let newest = known.and_then(|status| status.ranges.last());
        let lost = |status: &Status| -> Vec<String> {
            let lost = status.problems.iter().filter(|problem| problem.severity == Severity::Loss);
            lost.map(|problem| problem.what.clone()).collect()
        };
        Self {
            name: settings.name.clone(),
            location,
            reachable: known.is_some(),
            error: failure.map(|failure| failure.because.first().unwrap_or(&failure.what).clone()),
            backups: known.map(|status| status.backups),
            newest_backup: known.and_then(|status| Some(status.newest_backup.as_ref()?.id.clone())),
            newest_moment: known.and_then(|status| status.newest_moment),
            newest_wal: newest.map(|range| WalEnd { timeline: range.timeline, lsn: range.to.lsn }),
            wal_behind_bytes: None,
            lacks: known.map(lost).unwrap_or_default(),
            outage: settings.failure_note(About::Wal).read(),
            class: failure.map(|failure| failure.class),
        }
    }

    /// Compares it with the first.
    pub fn compare(&mut self, first: &Other) {
        if let Some(newest) = first.newest_backup.as_ref().filter(|_| self.reachable)
            && self.newest_backup.as_ref().is_none_or(|own| own < newest)
        {
            self.lacks.push(format!("backup {newest} is not there"));
        }
        if let (Some(own), Some(first)) = (self.newest_wal, first.newest_wal)
            && own.timeline == first.timeline
        {
            self.wal_behind_bytes = Some(first.lsn.get().saturating_sub(own.lsn.get()));
        }
    }

    /// The exit code that it asks for.
    pub fn code(&self) -> u8 {
        match self.class {
            Some(class) => class as u8,
            None if self.lacks.is_empty() && self.outage.is_none() => 0,
            None => Class::TryAgain as u8,
        }
    }

    fn text(&self) -> String {
        if let Some(error) = &self.error {
            return format!("{}: not to be reached: {error}", self.location);
        }
        let newest = self.newest_backup.as_deref().unwrap_or("none");
        let mut text = format!("{}: newest backup {newest}", self.location);
        if let Some(moment) = self.newest_moment {
            let age = (Timestamp::now() - moment).get_seconds();
            text.push_str(&format!(", newest moment {}, {} ago", exact_moment(moment), span(age)));
        }
        if let Some(WalEnd { timeline, lsn }) = self.newest_wal {
            text.push_str(&format!(", WAL to {lsn} on timeline {timeline}"));
        }
        if let Some(behind) = self.wal_behind_bytes.filter(|behind| *behind > 0) {
            text.push_str(&format!(", {} behind", bytes(behind)));
        }
        text
    }
}

/// Asks the further repositories, all at the same time.
pub async fn ask(settings: &Settings) -> Vec<Other> {
    join_all(settings.further().iter().map(async |other| {
        let asked = tokio::time::timeout(PATIENCE, status_of(other)).await;
        let late = || {
            Failure::new(Class::TryAgain, "ask the repository")
                .because(format!("it did not answer within {} s", PATIENCE.as_secs()))
        };
        Other::of(other, asked.unwrap_or_else(|_| Err(late())).as_ref())
    }))
    .await
}

async fn status_of(settings: &Settings) -> Outcome<Status> {
    let repository = opening::open(settings, Use::Read).await?;
    Ok(catalogue::status(&repository, &settings.cluster, Timestamp::now()).await?)
}

/// The lines about several repositories.
pub fn text(all: &[Other]) -> String {
    let lines: Vec<(&str, String)> = all.iter().map(|other| (&*other.name, other.text())).collect();
    let mut text = format!("\nRepositories\n{}", facts(&lines));
    for other in &all[1..] {
        for what in &other.lacks {
            let what = format!(
                "in {}: {what}; `pgkeep copy --to {}` brings what another has",
                other.name, other.name
            );
            push_wrapped(&mut text, "notice:  ", &what, width());
        }
        if let Some(outage) = &other.outage {
            let what =
                format!("WAL could not be stored in {} at {:.0}: {}", other.name, outage.tried, outage.why);
            push_wrapped(&mut text, "notice:  ", &what, width());
        }
    }
    text
}
