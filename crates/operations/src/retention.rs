//! Retention: which backups a policy keeps, and why. Facts in, decisions out; nothing here reads or deletes.
//!
//! The policy's clock is never ahead of the newest good backup: a clock that jumped, or backups that stopped, let nothing go.
//! Only good backups count for anything. One that is suspect or broken takes no other's place, and goes only when it has left
//! the window and enough good ones are there.

use std::collections::BTreeSet;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A backup with less than this part of the bytes of the good one before it may have lost what is missing: it is suspect.
pub const SMALL_PART: u64 = 2;

/// How far back every moment stays restorable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// So long before the policy's now.
    Span(SignedDuration),
    /// From the oldest of so many of the newest good backups on.
    Backups(u32),
}

/// The text is no span and no number of backups.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is neither a span such as 30d or 12w nor a number of backups such as 14")]
pub struct InvalidKeep {
    text: String,
}

impl FromStr for Keep {
    type Err = InvalidKeep;

    fn from_str(text: &str) -> Result<Self, InvalidKeep> {
        let invalid = || InvalidKeep { text: text.chars().take(80).collect() };
        let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
        let count: u32 = digits.parse().ok().filter(|count| *count > 0).ok_or_else(invalid)?;
        let hours = match &text[digits.len()..] {
            "" => return Ok(Self::Backups(count)),
            "h" => 1,
            "d" => 24,
            "w" => 7 * 24,
            _ => return Err(invalid()),
        };
        // A thousand years is for ever, and more than calendars can count.
        let hours = (i64::from(count) * hours).min(1000 * 366 * 24);
        Ok(Self::Span(SignedDuration::from_hours(hours)))
    }
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The window within which every moment is restorable.
    pub keep: Keep,
    /// The newest good backup of each of so many days (UTC), and so on.
    pub daily: u32,
    /// Weeks begin on Monday.
    pub weekly: u32,
    /// Of calendar months.
    pub monthly: u32,
    /// Of calendar years.
    pub yearly: u32,
    /// So many good backups are kept whatever else is said; at least one.
    pub at_least: u32,
}

/// Whether a backup can be relied on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing speaks against it.
    Good,
    /// It may be restorable, and may not be what one wants back.
    Suspect(String),
    /// It cannot be restored.
    Broken(String),
}

/// What the policy must know of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its id.
    pub id: String,
    /// When it was consistent, by the server's clock; `None` if nobody knows.
    pub stop: Option<Timestamp>,
    /// Whether it can be relied on.
    pub standing: Standing,
    /// What its pin says, if one holds.
    pub pin: Option<String>,
}

impl Fact {
    fn is_good(&self) -> bool {
        self.standing == Standing::Good
    }
}

/// What becomes of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it stays.
    pub keep: bool,
    /// Whether all WAL from its start on stays with it.
    pub in_window: bool,
    /// Why, for people.
    pub reason: String,
}

impl Decision {
    fn window(reason: String) -> Self {
        Self { keep: true, in_window: true, reason }
    }

    fn alone(reason: String) -> Self {
        Self { keep: true, in_window: false, reason }
    }
}

/// The policy's now: the earliest of the clocks and of the newest good backup's stop. `None` without a good backup.
pub fn policy_now(facts: &[Fact], clocks: &[Timestamp]) -> Option<Timestamp> {
    let newest = facts.iter().rev().find(|fact| fact.is_good())?.stop?;
    clocks.iter().copied().chain([newest]).min()
}

/// Decides on each of the backups, which stand in the order in which they were made.
pub fn decide(policy: &Policy, now: Option<Timestamp>, facts: &[Fact]) -> Vec<Decision> {
    let good: Vec<usize> = (0..facts.len()).filter(|&at| facts[at].is_good()).collect();
    let (Some(now), false) = (now, good.is_empty()) else {
        let keep = |_: &Fact| Decision::window("there is no good backup, so nothing goes".to_owned());
        return facts.iter().map(keep).collect();
    };
    let window = Window::of(policy.keep, now, facts, &good);
    let calendar = calendar(policy, now, facts, &good);
    let least: BTreeSet<usize> = good.iter().rev().take(policy.at_least.max(1) as usize).copied().collect();
    let enough = good.len() >= policy.at_least.max(1) as usize;
    (0..facts.len())
        .map(|at| {
            let fact = &facts[at];
            if let Some(reason) = window.holds(at, fact) {
                return Decision::window(reason);
            }
            if let Some(pin) = &fact.pin {
                return Decision::alone(format!("pinned{pin}"));
            }
            if let Some(named) = calendar.iter().find(|(kept, _)| *kept == at) {
                return Decision::alone(named.1.to_owned());
            }
            if least.contains(&at) {
                return Decision::alone(format!("one of the newest {} good backups", policy.at_least.max(1)));
            }
            match &fact.standing {
                Standing::Good => gone("older than what is kept".to_owned()),
                _ if !enough => Decision::alone("there are too few good backups to let it go".to_owned()),
                Standing::Suspect(why) => gone(format!("older than what is kept, and suspect: {why}")),
                Standing::Broken(why) => gone(format!("older than what is kept, and broken: {why}")),
            }
        })
        .collect()
}

fn gone(reason: String) -> Decision {
    Decision { keep: false, in_window: false, reason }
}

struct Window {
    /// The window begins after this time; `None` when it is counted in backups.
    begin: Option<Timestamp>,
    /// The first backup that must stay for the window's beginning to be reached; `None` if the window is older than all.
    anchor: Option<usize>,
}

impl Window {
    fn of(keep: Keep, now: Timestamp, facts: &[Fact], good: &[usize]) -> Self {
        match keep {
            Keep::Backups(count) => {
                Self { begin: None, anchor: good.iter().rev().nth(count.max(1) as usize - 1).copied() }
            }
            Keep::Span(span) => {
                let begin = now.checked_sub(span).unwrap_or(Timestamp::MIN);
                // By time and not by order: a backup of a clock that stood wrong must not take the anchor's place.
                let before =
                    good.iter().copied().filter(|&at| facts[at].stop.is_some_and(|stop| stop <= begin));
                Self { begin: Some(begin), anchor: before.max_by_key(|&at| (facts[at].stop, at)) }
            }
        }
    }

    /// Why a backup belongs to the window, if it does.
    fn holds(&self, at: usize, fact: &Fact) -> Option<String> {
        let Some(anchor) = self.anchor else { return Some("within the window".to_owned()) };
        let Some(stop) = fact.stop else { return Some("nobody knows how old it is".to_owned()) };
        if at == anchor && self.begin.is_some() {
            return Some("the window begins with it".to_owned());
        }
        let inside = at >= anchor || self.begin.is_some_and(|begin| stop > begin);
        inside.then(|| match &fact.standing {
            Standing::Good => "within the window".to_owned(),
            Standing::Suspect(why) => format!("within the window, but suspect: {why}"),
            Standing::Broken(why) => format!("within the window, but broken: {why}"),
        })
    }
}

/// The good backups that stand for a day, week, month or year.
fn calendar(policy: &Policy, now: Timestamp, facts: &[Fact], good: &[usize]) -> Vec<(usize, &'static str)> {
    type Period = fn(Date) -> (i16, i16);
    let periods: [(u32, &'static str, Period); 4] = [
        (policy.daily, "the newest of its day", |date| (date.year(), date.day_of_year())),
        (policy.weekly, "the newest of its week", |date| {
            let week = date.iso_week_date();
            (week.year(), week.week().into())
        }),
        (policy.monthly, "the newest of its month", |date| (date.year(), date.month().into())),
        (policy.yearly, "the newest of its year", |date| (date.year(), 0)),
    ];
    // A time after now comes from a clock that stood wrong, and takes no day's place.
    let mut newest_first: Vec<(Timestamp, usize)> =
        good.iter().filter_map(|&at| Some((facts[at].stop.filter(|stop| *stop <= now)?, at))).collect();
    newest_first.sort_unstable();
    newest_first.reverse();
    let mut kept = Vec::new();
    for (count, reason, period) in periods {
        let mut seen = BTreeSet::new();
        for &(stop, at) in &newest_first {
            let of = period(stop.to_zoned(TimeZone::UTC).date());
            if seen.len() < count as usize && seen.insert(of) {
                kept.push((at, reason));
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests;
