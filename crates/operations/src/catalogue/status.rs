//! The answer of 3 am: from when to when can be restored, what is missing, how old is the newest restorable moment.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pg::recovery::TargetTimeline;
use pg::{Lsn, TimelineId};
use repository::archive::{Gap, GapNote};
use repository::expired::Expired;
use repository::{ClusterName, Repository};
use serde::Serialize;

use super::{BackupSummary, CatalogueError, DamagedBackup};
use crate::reachable::{ArchiveState, Hole, ReachableError, Window, window};

/// What can be restored of one cluster, and what cannot.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The cluster.
    pub cluster: String,
    /// What its stream is bound to; `None` if nothing was ever stored.
    pub bound_to: Option<String>,
    /// How many backups can be read.
    pub backups: usize,
    /// The newest of them.
    pub newest_backup: Option<BackupSummary>,
    /// Stretches of time and WAL within which every moment can be restored, oldest first.
    pub ranges: Vec<Range>,
    /// Single moments that can be restored: those of logical backups, oldest first.
    pub moments: Vec<Timestamp>,
    /// The newest commit that can be restored.
    pub newest_moment: Option<Timestamp>,
    /// Seconds from the newest restorable commit to now.
    pub newest_moment_age_s: Option<i64>,
    /// WAL segments in the archive.
    pub segments: u64,
    /// Bytes that they take.
    pub wal_bytes: u64,
    /// Backups whose manifest cannot be read.
    pub damaged: Vec<DamagedBackup>,
    /// What is wrong, the gravest first.
    pub problems: Vec<Problem>,
}

/// A place in the log and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The place.
    pub lsn: Lsn,
    /// The server's clock there, if it is known.
    pub time: Option<Timestamp>,
}

/// A stretch within which every moment can be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The timeline that a restore to its end follows.
    pub timeline: TimelineId,
    /// The end of its first backup.
    pub from: Place,
    /// The end of its WAL, with the time of the last commit before it.
    pub to: Place,
    /// The first backup of it, from which all of it is reached.
    pub first_backup: String,
    /// How many backups lie in it.
    pub backups: usize,
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Notice,
    /// Something cannot be restored.
    Loss,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// What is the case.
    pub what: String,
}

impl Range {
    /// What one backup can be brought to; `None` when WAL that it needs is missing.
    pub(super) fn of(window: &Window) -> Option<Self> {
        let to = window.to?;
        Some(Self {
            timeline: window.timeline,
            from: Place { lsn: window.from.lsn, time: window.from.time },
            // Without a later commit the backup's own end is the newest moment.
            to: Place { lsn: to.lsn, time: to.time.or(window.from.time) },
            first_backup: String::new(),
            backups: 1,
        })
    }
}

/// What can be restored of a cluster at `now`.
pub async fn status(
    repository: &Repository,
    cluster: &ClusterName,
    now: Timestamp,
) -> Result<Status, CatalogueError> {
    let listed = repository.backups(cluster).await?;
    let expired = repository.expired(cluster).await?;
    let mut problems = Vec::new();
    for finding in repository.check_chain(cluster, &listed, &expired) {
        problems.push(Problem { severity: Severity::Loss, what: finding.to_string() });
    }
    let state = ArchiveState::read(repository, cluster).await?;
    let (mut ranges, mut damaged, mut readable) = (Vec::new(), Vec::new(), Vec::new());
    let (mut newest_start, mut moments) = (0, Vec::new());
    for backup in listed {
        let manifest = match backup.manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                let why = error.to_string();
                problems
                    .push(Problem { severity: Severity::Loss, what: format!("backup {}: {why}", backup.id) });
                damaged.push(DamagedBackup { id: backup.id, why });
                continue;
            }
        };
        if manifest.is_logical() {
            moments.extend(Timestamp::from_microsecond(manifest.span().stop_us));
            readable.push(BackupSummary::of(&manifest));
            continue;
        }
        match window(repository, cluster, &state, &manifest, TargetTimeline::Latest).await {
            Ok(window) => join(&mut ranges, &mut problems, &manifest.id, &window, &expired),
            Err(error @ ReachableError::Repository(_)) => return Err(error.into()),
            Err(error) => {
                problems.push(Problem {
                    severity: Severity::Loss,
                    what: format!("backup {}: {error}", manifest.id),
                });
            }
        }
        newest_start = newest_start.max(manifest.span().start_lsn);
        readable.push(BackupSummary::of(&manifest));
    }
    for (gap, note) in state.open_gaps() {
        problems.push(gap_problem(gap, note, newest_start));
    }
    for (timeline, why) in &state.damaged_histories {
        problems.push(Problem {
            severity: Severity::Notice,
            what: format!("history of timeline {timeline}: {why}"),
        });
    }
    problems.extend(page_problem(readable.last()));
    problems.extend(unfinished(repository, cluster, readable.last()).await?);
    if readable.is_empty() && damaged.is_empty() {
        problems.push(Problem { severity: Severity::Notice, what: "there is no backup yet".to_owned() });
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    problems.dedup();
    Ok(assemble(cluster, now, &state, (ranges, moments), readable, damaged, problems))
}

/// Adds what a backup reaches to the last range if it is the same stretch of WAL, or as a range of its own.
fn join(ranges: &mut Vec<Range>, problems: &mut Vec<Problem>, id: &str, window: &Window, expired: &Expired) {
    // WAL that was expired is missing on purpose.
    let missed = |hole: &&Hole| !expired.has_wal_up_to(hole.to);
    for hole in window.holes.iter().filter(missed) {
        problems.push(Problem { severity: Severity::Loss, what: hole.to_string() });
    }
    let Some(range) = Range::of(window) else {
        let what = format!("backup {id} cannot be restored: WAL that it needs is missing");
        problems.push(Problem { severity: Severity::Loss, what });
        return;
    };
    match ranges.last_mut().filter(|last| (last.timeline, last.to.lsn) == (range.timeline, range.to.lsn)) {
        Some(last) => {
            last.backups += 1;
            last.to.time = last.to.time.max(range.to.time);
        }
        None => ranges.push(Range { first_backup: id.to_owned(), ..range }),
    }
}

/// A gap is a loss until a backup begins behind it, and from then on worth knowing: what lies in it is gone.
fn gap_problem(gap: &Gap, note: &GapNote, newest_backup_start: u64) -> Problem {
    let noticed = Timestamp::from_microsecond(note.noticed_us).unwrap_or_default();
    let mut what = format!(
        "the server no longer had the WAL {gap} when it was asked for at {noticed:.0} ({})",
        note.why
    );
    let behind = newest_backup_start >= gap.to.get();
    if !behind {
        what.push_str("; nothing after it can be restored before the next backup: take one now");
    }
    Problem { severity: if behind { Severity::Notice } else { Severity::Loss }, what }
}

/// Backups later than the newest that exists, which left what they had stored, or a claim.
async fn unfinished(
    repository: &Repository,
    cluster: &ClusterName,
    newest: Option<&BackupSummary>,
) -> Result<Vec<Problem>, CatalogueError> {
    let after = newest.map(|newest| newest.id.as_str());
    let attempts = repository.partials(cluster, after).await?;
    let failed = attempts.iter().filter_map(|manifests| Some(manifests.last()?.id.clone()));
    let claims = repository.claims(cluster).await?;
    let claimed = claims.into_iter().map(|claim| claim.backup).filter(|id| Some(id.as_str()) > after);
    let ids: BTreeSet<String> = failed.chain(claimed).collect();
    let what = |id| format!("backup {id} is at work, or failed; the next one takes up what it stored");
    Ok(ids.into_iter().map(|id| Problem { severity: Severity::Notice, what: what(id) }).collect())
}

fn page_problem(newest: Option<&BackupSummary>) -> Option<Problem> {
    let newest = newest.filter(|backup| backup.damaged_pages > 0)?;
    let what = format!(
        "{} damaged pages on the server when backup {} was taken: `pgkeep info {}`",
        newest.damaged_pages, newest.id, newest.id
    );
    Some(Problem { severity: Severity::Notice, what })
}

fn assemble(
    cluster: &ClusterName,
    now: Timestamp,
    state: &ArchiveState,
    (ranges, moments): (Vec<Range>, Vec<Timestamp>),
    mut readable: Vec<BackupSummary>,
    damaged: Vec<DamagedBackup>,
    problems: Vec<Problem>,
) -> Status {
    let newest_moment = ranges.iter().filter_map(|range| range.to.time).chain(moments.iter().copied()).max();
    let segments = || state.inventory.segments.values();
    Status {
        cluster: cluster.to_string(),
        bound_to: state.identity.as_ref().map(ToString::to_string),
        backups: readable.len(),
        newest_backup: readable.pop(),
        newest_moment_age_s: newest_moment.map(|moment| (now - moment).get_seconds().max(0)),
        newest_moment,
        ranges,
        moments,
        segments: segments().map(|timeline| timeline.len() as u64).sum(),
        wal_bytes: segments()
            .flat_map(|timeline| timeline.values())
            .chain(state.inventory.parts.values())
            .sum(),
        damaged,
        problems,
    }
}
