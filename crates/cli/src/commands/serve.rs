//! `pgkeep serve`: every round at its time, until it is told to end.

use clap::Args;
use daemon::round::Outcome as JobOutcome;
use daemon::schedule::Schedule;
use daemon::serve::{Entry, serve};
use jiff::Timestamp;

use super::Session;
use super::round::{Step, job, line, rounds};
use super::signals::stop_signal;
use crate::failure::{Class, Failure, Outcome};
use crate::opening;
use crate::output::{moment, print};
use crate::secret_files::Use;
use crate::settings::Settings;

/// Nothing of its own: `schedule.*` in the configuration says when.
#[derive(Debug, Args)]
pub struct ServeArguments {}

/// Serves. A job that is at work when it is told to end is told, too.
pub async fn run(session: &Session) -> Outcome<u8> {
    let settings = &session.settings;
    let repository = opening::open(settings, Use::Add).await?;
    let seed = format!("{} {}", repository.id(), settings.cluster);
    let entries = entries(settings, &seed)?;
    let stop = stop_signal(|| {})?;
    let rounds = rounds(session, repository, stop)?;
    for entry in &entries {
        let names: Vec<&str> = entry.jobs.iter().map(|job| job.name).collect();
        let next = entry.schedule.next(Timestamp::now()).map(moment).unwrap_or_default();
        print(&format!("{}: next at {next}\n", names.join(", ")))?;
    }
    let told = |outcome: &JobOutcome| {
        let _ = print(&format!("{} {}\n", moment(Timestamp::now()), line(outcome)));
    };
    serve(&rounds, &entries, &told).await;
    print("Told to end.\n")?;
    Ok(0)
}

fn entries(settings: &Settings, seed: &str) -> Outcome<Vec<Entry>> {
    let of = |name: &str, steps: &[Step]| -> Outcome<Entry> {
        let (zone, jitter) = (settings.word("schedule.time_zone"), settings.duration("schedule.jitter"));
        let schedule = Schedule::new(settings.word(name), zone, jitter, &format!("{seed} {name}"));
        let schedule = schedule.map_err(|error| {
            Failure::caused(format!("use the setting {name}"), &error).class(Class::WrongRequest)
        })?;
        Ok(Entry { schedule, jobs: steps.iter().map(|step| job(settings, *step)).collect() })
    };
    Ok(vec![
        of("schedule.backup", &[Step::Backup, Step::Expire, Step::Prune])?,
        of("schedule.verify", &[Step::Verify])?,
    ])
}
