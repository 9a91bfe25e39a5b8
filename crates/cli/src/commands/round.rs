//! `pgkeep run`: one scheduled round, for whoever has a scheduler of his own.

use std::env;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use daemon::job::{Job, Program};
use daemon::round::{JobResult, Outcome as JobOutcome, Rounds};
use repository::Repository;
use serde_json::json;
use tokio::sync::watch;

use super::Session;
use super::signals::stop_signal;
use crate::failure::{Failure, Outcome};
use crate::opening;
use crate::output::{print, span};
use crate::secret_files::Use;
use crate::settings::Settings;

/// What a round can consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Take a backup
    Backup,
    /// Remove what the policy keeps no longer
    Expire,
    /// Free the space of it
    Prune,
    /// Read and prove a part of what is stored
    Verify,
}

/// Which jobs.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Only these, in the order of a round: backup, expire, prune, verify
    #[arg(long, value_name = "JOB", value_delimiter = ',', hide_possible_values = true)]
    only: Vec<Step>,
}

/// The job of a step.
pub fn job(settings: &Settings, step: Step) -> Job {
    let (name, words) = match step {
        Step::Backup => ("backup", vec!["backup"]),
        Step::Expire => ("expire", vec!["expire"]),
        Step::Prune => ("prune", vec!["prune"]),
        Step::Verify => ("verify", vec!["verify", "--budget", settings.word("schedule.verify_budget")]),
    };
    Job { name, words: words.into_iter().map(str::to_owned).collect() }
}

/// Everything that is needed to run jobs of our own.
pub fn rounds(
    session: &Session,
    repository: Arc<Repository>,
    stop: watch::Receiver<bool>,
) -> Outcome<Rounds> {
    let path = env::current_exe().map_err(|error| Failure::caused("find pgkeep's own program", &error))?;
    let program = Program { path, options: session.options.clone() };
    Ok(Rounds { repository, cluster: session.settings.cluster.clone(), program, stop })
}

/// Runs a round. The exit code is that of the first job that failed.
pub async fn run(session: &Session, arguments: &RunArguments) -> Outcome<u8> {
    let settings = &session.settings;
    let repository = opening::open(settings, Use::Add).await?;
    let all = [Step::Backup, Step::Expire, Step::Prune, Step::Verify];
    let is_wanted = |step: &Step| arguments.only.is_empty() || arguments.only.contains(step);
    let jobs: Vec<Job> = all.into_iter().filter(is_wanted).map(|step| job(settings, step)).collect();
    let rounds = rounds(session, repository, stop_signal(|| {})?)?;
    let told = |outcome: &JobOutcome| {
        if !session.quiet {
            let _ = print(&format!("{}\n", line(outcome)));
        }
    };
    let outcomes = rounds.run(&jobs, None, &told).await;
    let code = outcomes.iter().map(|outcome| outcome.code).find(|code| *code != 0).unwrap_or(0);
    session.output.show(&json!({"jobs": outcomes, "code": code}), String::new)?;
    Ok(code)
}

/// What is told of a job when it ended.
pub fn line(outcome: &JobOutcome) -> String {
    let how = match outcome.result {
        JobResult::Done => format!("done in {}", span(outcome.seconds)),
        JobResult::Failed => format!("FAILED after {}", span(outcome.seconds)),
        JobResult::Elsewhere => "left to another".to_owned(),
        JobResult::Skipped => "skipped".to_owned(),
    };
    let message = if outcome.message.is_empty() { String::new() } else { format!(": {}", outcome.message) };
    format!("{} {how}{message}", outcome.job)
}
