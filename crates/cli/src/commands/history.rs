//! `pgkeep history`: what ran, when, how long, and why it failed.

use clap::Args;
use repository::run::Run;
use serde_json::json;

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::opening;
use crate::output::{keep_whole, short_moment, span, table, table_text};
use crate::secret_files::Use;

/// Characters of what is told of a run in the table.
const WHAT_MAX: usize = 160;

/// Which runs.
#[derive(Debug, Args)]
pub struct HistoryArguments {
    /// Only of this job: backup, expire, prune or verify
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// How many, the newest first
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    limit: usize,
}

/// Shows the runs that `run` and `serve` wrote down.
pub async fn run(session: &Session, arguments: &HistoryArguments) -> Outcome<u8> {
    let cluster = &session.settings.cluster;
    let repository = opening::open(&session.settings, Use::Add).await?;
    let runs = repository.runs(cluster, arguments.job.as_deref(), arguments.limit).await;
    let runs = runs.map_err(|error| Failure::caused("read the history", &error))?;
    let shown: Vec<_> = runs.iter().map(value).collect();
    session.output.show(&json!({"cluster": cluster.to_string(), "runs": shown}), || text(&runs))?;
    Ok(0)
}

fn value(run: &Run) -> serde_json::Value {
    json!({
        "job": run.job, "began": run.began, "ended": run.ended, "due": run.due, "code": run.code,
        "seconds": run.seconds(), "host": run.host, "did": run.did, "why": run.why,
    })
}

fn text(runs: &[Run]) -> String {
    if runs.is_empty() {
        return "Nothing ran yet: `pgkeep run` and `pgkeep serve` write down what they do.\n".to_owned();
    }
    let mut shown = table(&["BEGAN (UTC)", "JOB", "TIME", "", "WHAT"]);
    for run in runs {
        let (how, what) = if run.code == 0 { ("done", &run.did) } else { ("FAILED", &run.why) };
        // The hint, and everything else, is in the JSON.
        let what: String = what.lines().next().unwrap_or_default().chars().take(WHAT_MAX).collect();
        let time = span(run.seconds());
        shown.add_row([short_moment(run.began), run.job.clone(), time, how.to_owned(), what]);
    }
    for column in 0..4 {
        keep_whole(&mut shown, column);
    }
    table_text(&shown)
}
