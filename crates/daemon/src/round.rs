//! Jobs after each other: each is alone in the whole repository, done once for each scheduled moment, and written down.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use operations::owner::{holder, host_name};
use repository::lease::{Lease, LeaseError};
use repository::run::Run;
use repository::{ClusterName, Repository};
use serde::Serialize;
use tokio::sync::watch;

use crate::job::{Ended, Job, KILLED, Program};

/// How often a lease is gone on with while its job is at work.
const CONFIRM: Duration = Duration::from_secs(60);
/// Runs that are looked at for one that was for the same moment.
pub(crate) const LOOK_BACK: usize = 8;

/// What became of one job of a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The job.
    pub job: &'static str,
    /// How it ended.
    pub result: JobResult,
    /// The exit code: 0 unless it failed.
    pub code: u8,
    /// What it did, or why it did nothing.
    pub message: String,
    /// Seconds.
    pub seconds: i64,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// Somebody else does it, or has done it.
    Elsewhere,
    /// Not begun, because one before it failed or the daemon ends.
    Skipped,
}

/// What rounds need.
pub struct Rounds {
    /// The repository.
    pub repository: Arc<Repository>,
    /// The cluster.
    pub cluster: ClusterName,
    /// Our own program.
    pub program: Program,
    /// Becomes true when everything is to end.
    pub stop: watch::Receiver<bool>,
}

impl Rounds {
    /// Runs the jobs in order, for a scheduled moment or because somebody asks. After one that failed, those that take something away
    /// are skipped: nothing is removed on a day without a backup.
    pub async fn run(&self, jobs: &[Job], due: Option<Timestamp>, told: &dyn Fn(&Outcome)) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = Vec::new();
        for job in jobs {
            let failed = outcomes.iter().find(|outcome| outcome.result == JobResult::Failed);
            let why = match failed {
                _ if *self.stop.borrow() => Some("everything is to end".to_owned()),
                Some(failed) if removes(job) => Some(format!("{} failed before it", failed.job)),
                _ => None,
            };
            let outcome = match why {
                Some(message) => not_run(job, JobResult::Skipped, message),
                None => self.one(job, due).await,
            };
            told(&outcome);
            outcomes.push(outcome);
        }
        outcomes
    }

    async fn one(&self, job: &Job, due: Option<Timestamp>) -> Outcome {
        let what = format!("{}-{}", job.name, self.cluster);
        let mut lease = match Lease::take(&self.repository, &what, &holder(), Duration::ZERO).await {
            Ok(lease) => lease,
            Err(LeaseError::Held { holder, .. }) => {
                return not_run(job, JobResult::Elsewhere, format!("{holder} does it"));
            }
            Err(error) => return not_run(job, JobResult::Failed, error.to_string()),
        };
        let outcome = match self.done_elsewhere(job, due).await {
            Ok(Some(host)) => not_run(job, JobResult::Elsewhere, format!("{host} has done it")),
            Ok(None) => self.alone(job, due, &mut lease).await,
            Err(error) => not_run(job, JobResult::Failed, error),
        };
        if let Err(error) = lease.release().await {
            tracing::warn!(%error, "a lease is not given back; it ends by itself");
        }
        outcome
    }

    /// Where the job was done for this moment.
    async fn done_elsewhere(&self, job: &Job, due: Option<Timestamp>) -> Result<Option<String>, String> {
        let Some(due) = due else { return Ok(None) };
        let runs = self.repository.runs(&self.cluster, Some(job.name), LOOK_BACK).await;
        let runs = runs.map_err(|error| error.to_string())?;
        Ok(runs.into_iter().find(|run| run.code == 0 && run.due >= Some(due)).map(|run| run.host))
    }

    async fn alone(&self, job: &Job, due: Option<Timestamp>, lease: &mut Lease) -> Outcome {
        let began = Timestamp::now();
        let ended = self.process(job, lease).await.unwrap_or_else(|error| Ended {
            code: KILLED,
            did: String::new(),
            why: error.to_string(),
        });
        let run = Run {
            job: job.name.to_owned(),
            began,
            ended: Timestamp::now(),
            due,
            code: ended.code,
            host: host_name(),
            did: ended.did.clone(),
            why: ended.why.clone(),
        };
        if let Err(error) = self.repository.record_run(&self.cluster, &run).await {
            tracing::warn!(job = job.name, %error, "what ran is not written down");
        }
        let (result, message) =
            if ended.code == 0 { (JobResult::Done, ended.did) } else { (JobResult::Failed, ended.why) };
        Outcome { job: job.name, result, code: ended.code, message, seconds: run.seconds() }
    }

    /// The job itself, while its lease is gone on with.
    async fn process(&self, job: &Job, lease: &mut Lease) -> io::Result<Ended> {
        let running = self.program.start(job)?;
        let mut waiting = std::pin::pin!(running.wait(stopped(self.stop.clone())));
        loop {
            tokio::select! {
                ended = &mut waiting => return ended,
                () = tokio::time::sleep(CONFIRM) => {
                    // What a job does stays right if two do it at once.
                    if let Err(error) = lease.confirm().await {
                        tracing::warn!(job = job.name, %error, "the lease is not kept");
                    }
                }
            }
        }
    }
}

/// What is told of a job that was not begun.
fn not_run(job: &Job, result: JobResult, message: String) -> Outcome {
    // Code 4: try again.
    let code = if result == JobResult::Failed { 4 } else { 0 };
    Outcome { job: job.name, result, code, message, seconds: 0 }
}

/// Whether a job takes something away.
fn removes(job: &Job) -> bool {
    matches!(job.name, "expire" | "prune")
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // Without a sender nobody stops anything.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
