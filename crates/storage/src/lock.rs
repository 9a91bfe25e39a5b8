//! Object lock: objects that nobody can remove before a time, whoever's credentials they have.

use crate::ObjectName;
use jiff::{SignedDuration, Timestamp};
use std::fmt;
use std::time::Duration;

/// How a storage locks what is created in it.
#[derive(Clone, Copy, Debug)]
pub struct LockRule {
    /// For how long, in general.
    pub span: Duration,
    /// How strictly.
    pub mode: LockMode,
    /// For how long, given the span, an object of this name is locked when it is created; `None` for one that is not.
    pub time_for: fn(&ObjectName, Duration) -> Option<Duration>,
}

/// Who may end a lock before its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMode {
    /// Whoever has the permission to bypass it.
    #[default]
    Governance,
    /// Nobody.
    Compliance,
}

impl LockRule {
    /// Until when an object of this name is locked that is created `now`, in whole seconds.
    pub fn until(&self, name: &ObjectName, now: Timestamp) -> Option<Timestamp> {
        (self.time_for)(name, self.span).map(|time| later(now, time))
    }

    /// The whole span from `now` on, in whole seconds.
    pub fn span_from(&self, now: Timestamp) -> Timestamp {
        later(now, self.span)
    }
}

/// `time` after `now`, rounded up: storages know whole seconds.
fn later(now: Timestamp, time: Duration) -> Timestamp {
    let sum = SignedDuration::try_from(time).ok().and_then(|time| now.checked_add(time).ok());
    let sum = sum.unwrap_or(Timestamp::MAX);
    let whole = sum.as_second() + i64::from(sum.subsec_nanosecond() > 0);
    Timestamp::from_second(whole).unwrap_or(Timestamp::MAX)
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockMode::Governance => "GOVERNANCE",
            LockMode::Compliance => "COMPLIANCE",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_at_a_whole_second_and_never_early() {
        let rule = LockRule {
            span: Duration::from_millis(1500),
            mode: LockMode::Governance,
            time_for: |name, span| (name.as_str() != "free").then_some(span * 2),
        };
        let now: Timestamp = "2026-11-28T10:00:00.25Z".parse().unwrap();
        let second = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(rule.span_from(now), second("2026-11-28T10:00:02Z"));
        assert_eq!(rule.until(&ObjectName::new("a").unwrap(), now), Some(second("2026-11-28T10:00:04Z")));
        assert_eq!(rule.until(&ObjectName::new("free").unwrap(), now), None);
        let whole = second("2026-11-28T10:00:00.5Z");
        assert_eq!(rule.span_from(whole), second("2026-11-28T10:00:02Z"));
        let forever = LockRule { span: Duration::MAX, ..rule };
        assert!(forever.span_from(now) > now);
    }
}
