//! The loop: what is due is run, each scheduled moment once, missed ones when there is time again.

use std::time::Duration;

use jiff::Timestamp;
use repository::run::Run;

use crate::job::Job;
use crate::round::{LOOK_BACK, Outcome, Rounds};
use crate::schedule::Schedule;

/// The longest sleep: clocks are set, and machines are put to sleep.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// A job that failed is tried again after this, so often.
const RETRY_AFTER: Duration = Duration::from_secs(600);
const TRIES: usize = 3;

/// Jobs that are due together.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When.
    pub schedule: Schedule,
    /// What, in this order. By the first of them is known what was done.
    pub jobs: Vec<Job>,
}

impl Entry {
    /// The scheduled moment for which something is to be done now, by the last runs of the first job, newest first. Of several that
    /// were missed only the last: a backup of now is worth more than three.
    pub fn due(&self, now: Timestamp, runs: &[Run]) -> Option<Timestamp> {
        let due = self.schedule.last(now)?;
        let rests = tries(due, runs).next().is_some_and(|run| {
            let since = now.duration_since(run.ended);
            !since.is_negative() && since.unsigned_abs() < RETRY_AFTER
        });
        (!is_over(due, runs) && !rests).then_some(due)
    }
}

/// The runs for this scheduled moment, or a later one.
fn tries(due: Timestamp, runs: &[Run]) -> impl Iterator<Item = &Run> {
    runs.iter().filter(move |run| run.due >= Some(due))
}

/// Whether nothing will be done any more for this scheduled moment.
fn is_over(due: Timestamp, runs: &[Run]) -> bool {
    tries(due, runs).any(|run| run.code == 0) || tries(due, runs).count() >= TRIES
}

/// Serves until it is told to stop. Trouble with the repository is told, and waited for.
pub async fn serve(rounds: &Rounds, entries: &[Entry], told: &dyn Fn(&Outcome)) {
    let mut stop = rounds.stop.clone();
    // Up to which moment nothing is left to do: until the next one the repository need not be asked.
    let mut over = vec![None; entries.len()];
    while !*stop.borrow() {
        for (entry, over) in entries.iter().zip(&mut over) {
            let (now, Some(first)) = (Timestamp::now(), entry.jobs.first()) else { continue };
            let last = entry.schedule.last(now);
            if last <= *over {
                continue;
            }
            let runs = rounds.repository.runs(&rounds.cluster, Some(first.name), LOOK_BACK).await;
            match runs {
                Ok(runs) => match entry.due(now, &runs) {
                    Some(due) => drop(rounds.run(&entry.jobs, Some(due), told).await),
                    None => *over = last.filter(|last| is_over(*last, &runs)),
                },
                Err(error) => tracing::error!(%error, "what ran before is not known"),
            }
            if *stop.borrow() {
                return;
            }
        }
        let now = Timestamp::now();
        let next = entries.iter().filter_map(|entry| entry.schedule.next(now)).min();
        let sleep = next.map_or(SLEEP_MAX, |next| next.duration_since(now).unsigned_abs().min(SLEEP_MAX));
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            _ = stop.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-{text}Z").parse().unwrap()
    }

    fn entry() -> Entry {
        let schedule = Schedule::new("0 2 * * *", "UTC", Duration::ZERO, "").unwrap();
        Entry { schedule, jobs: vec![Job { name: "backup", words: vec!["backup".into()] }] }
    }

    fn run(due: Option<Timestamp>, ended: Timestamp, code: u8) -> Run {
        let job = "backup".to_owned();
        Run {
            job,
            began: ended,
            ended,
            due,
            code,
            host: String::new(),
            did: String::new(),
            why: String::new(),
        }
    }

    #[test]
    fn what_never_ran_is_due_at_once_and_what_was_missed_once() {
        assert_eq!(entry().due(at("28T15:00:00"), &[]), Some(at("28T02:00:00")));
        let three_days_ago = run(Some(at("25T02:00:00")), at("25T02:01:00"), 0);
        assert_eq!(entry().due(at("28T15:00:00"), &[three_days_ago]), Some(at("28T02:00:00")));
    }

    #[test]
    fn what_was_done_is_not_due_and_a_clock_that_is_set_back_makes_nothing_due_again() {
        let done = [run(Some(at("28T02:00:00")), at("28T02:05:00"), 0)];
        for now in ["28T02:05:00", "28T23:59:00", "29T01:59:59", "27T12:00:00"] {
            assert_eq!(entry().due(at(now), &done), None, "{now}");
        }
        assert_eq!(entry().due(at("29T02:00:00"), &done), Some(at("29T02:00:00")));
        // Somebody's own run is not the scheduled one.
        let by_hand = [run(None, at("28T01:00:00"), 0)];
        assert_eq!(entry().due(at("28T02:00:00"), &by_hand), Some(at("28T02:00:00")));
    }

    #[test]
    fn a_failure_is_tried_again_after_a_while_and_not_for_ever() {
        let due = Some(at("28T02:00:00"));
        let failed = |minute: u32| run(due, at(&format!("28T02:{minute:02}:00")), 4);
        let runs = [failed(5)];
        assert_eq!(entry().due(at("28T02:06:00"), &runs), None);
        assert_eq!(entry().due(at("28T02:15:00"), &runs), due);
        assert_eq!(entry().due(at("28T03:00:00"), &[failed(30), failed(18), failed(5)]), None);
        assert_eq!(entry().due(at("28T03:00:00"), &[failed(18), failed(5)]), due);
    }
}
