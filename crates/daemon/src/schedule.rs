//! When something is due: a cron expression in a time zone, each moment put off by a share of the jitter.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::str::FromStr as _;
use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// The text is not a schedule.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text:?} is no schedule: {why}")]
pub struct ScheduleError {
    text: String,
    why: String,
}

/// Moments that come again and again.
#[derive(Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
    jitter: Duration,
    seed: u64,
}

impl fmt::Debug for Schedule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Schedule({} in {:?})", self.cron.as_str(), self.zone.iana_name())
    }
}

impl Schedule {
    /// A cron expression of five fields (minute, hour, day, month, day of the week) in a time zone of the IANA database. `seed` sets
    /// apart what must not begin at the same moment.
    pub fn new(text: &str, zone: &str, jitter: Duration, seed: &str) -> Result<Self, ScheduleError> {
        let wrong = |why: String| ScheduleError { text: text.to_owned(), why };
        if text.split_whitespace().count() != 5 {
            return Err(wrong("expected five fields, such as 0 2 * * *".to_owned()));
        }
        let cron = Cron::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let zone = TimeZone::get(zone).map_err(|_| wrong(format!("there is no time zone {zone}")))?;
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        let schedule = Self { cron, zone, jitter, seed: hasher.finish() };
        // A day that no month has.
        schedule.next(Timestamp::UNIX_EPOCH).ok_or_else(|| wrong("it never comes".to_owned()))?;
        Ok(schedule)
    }

    /// The last scheduled moment whose work may have begun at `now`.
    pub fn last(&self, now: Timestamp) -> Option<Timestamp> {
        let mut due = self.before(now, true)?;
        // One that is put off to after now, and then the one before it.
        for _ in 0..2 {
            if self.begins(due) <= now {
                return Some(due);
            }
            due = self.before(due, false)?;
        }
        Some(due)
    }

    /// When the work of the next scheduled moment begins whose work does not begin until after `now`.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let last = self.last(now).unwrap_or(now);
        let mut due = self.after(last)?;
        while self.begins(due) <= now {
            due = self.after(due)?;
        }
        Some(self.begins(due))
    }

    /// When the work of a scheduled moment begins: the same on every host that has this seed.
    pub fn begins(&self, due: Timestamp) -> Timestamp {
        let jitter = self.jitter.as_secs();
        if jitter == 0 {
            return due;
        }
        let mut hasher = DefaultHasher::new();
        (self.seed, due.as_second()).hash(&mut hasher);
        due + Duration::from_secs(hasher.finish() % jitter)
    }

    fn before(&self, moment: Timestamp, inclusive: bool) -> Option<Timestamp> {
        let found = self.cron.find_previous_occurrence(&self.zoned(moment), inclusive).ok()?;
        Some(found.timestamp())
    }

    fn after(&self, moment: Timestamp) -> Option<Timestamp> {
        Some(self.cron.find_next_occurrence(&self.zoned(moment), false).ok()?.timestamp())
    }

    fn zoned(&self, moment: Timestamp) -> Zoned {
        moment.to_zoned(self.zone.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn moments(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
        let mut now = at(from);
        let mut next = || {
            now = schedule.next(now).unwrap();
            now.strftime("%m-%d %H:%M").to_string()
        };
        (0..count).map(|_| next()).collect()
    }

    fn daily(zone: &str) -> Schedule {
        Schedule::new("0 2 * * *", zone, Duration::ZERO, "").unwrap()
    }

    #[test]
    fn each_day_has_one_moment_whatever_the_clocks_do() {
        assert_eq!(
            moments(&daily("UTC"), "2028-02-28T12:00:00Z", 3),
            ["02-29 02:00", "03-01 02:00", "03-02 02:00"]
        );
        // Berlin skips 02:00 on 2026-03-29, and has it twice on 2026-10-25.
        let berlin = |from| moments(&daily("Europe/Berlin"), from, 3);
        assert_eq!(berlin("2026-03-28T00:00:00Z"), ["03-28 01:00", "03-29 01:00", "03-30 00:00"]);
        assert_eq!(berlin("2026-10-24T12:00:00Z"), ["10-25 00:00", "10-26 01:00", "10-27 01:00"]);
    }

    #[test]
    fn last_is_the_moment_before_and_its_own() {
        let last = |now| daily("UTC").last(at(now)).unwrap().to_string();
        assert_eq!(last("2026-11-28T01:59:59Z"), "2026-11-27T02:00:00Z");
        assert_eq!(last("2026-11-28T02:00:00Z"), "2026-11-28T02:00:00Z");
        assert_eq!(last("2026-11-28T23:00:00Z"), "2026-11-28T02:00:00Z");
    }

    #[test]
    fn jitter_puts_off_by_less_than_itself_and_each_seed_otherwise() {
        let hour = Duration::from_secs(3600);
        let of = |seed: &str| Schedule::new("0 2 * * *", "UTC", hour, seed).unwrap();
        let mut begins = std::collections::BTreeSet::new();
        for number in 0..20 {
            let schedule = of(&number.to_string());
            let due = at("2026-11-28T02:00:00Z");
            let begin = schedule.begins(due);
            assert!(begin >= due && begin < due + hour);
            assert_eq!(begin, of(&number.to_string()).begins(due));
            assert_eq!(schedule.next(due - Duration::from_secs(1)), Some(begin));
            if begin > due {
                assert_eq!(schedule.last(begin - Duration::from_secs(1)), Some(at("2026-11-27T02:00:00Z")));
            }
            assert_eq!(schedule.last(begin), Some(due));
            begins.insert(begin);
        }
        assert!(begins.len() > 10);
    }

    #[test]
    fn what_is_no_schedule_is_said() {
        let wrong =
            |text: &str, zone: &str| Schedule::new(text, zone, Duration::ZERO, "").unwrap_err().to_string();
        assert!(wrong("daily", "UTC").contains("five fields"));
        assert!(wrong("* * * * * *", "UTC").contains("five fields"));
        assert!(wrong("0 25 * * *", "UTC").contains("no schedule"));
        assert!(wrong("0 2 31 2 *", "UTC").contains("no schedule"));
        assert!(wrong("0 2 * * *", "Mars/Olympus").contains("time zone"));
    }
}
