//! The point at which replay stops.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::Lsn;

/// The longest name of a restore point, in bytes: `MAXFNAMELEN` less its terminator.
const NAME_MAX_BYTES: usize = 63;

/// The point at which replay stops.
///
/// As text: `latest`, `immediate`, an LSN, a transaction id, a moment with its offset, or the name of a
/// restore point. A prefix (`time:`, `lsn:`, `xid:`, `name:`) says which when the text could be several. Text
/// that begins with a digit and is none of these is refused and not taken for a name: a mistyped moment must
/// not turn into "replay everything".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// The end of the WAL that can be had.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// The last commit up to this moment. PostgreSQL knows microseconds; finer parts are dropped.
    Time(Timestamp),
    /// A position in the log.
    Lsn(Lsn),
    /// A transaction. PostgreSQL compares the low 32 bits.
    Xid(u64),
    /// A restore point made by `pg_create_restore_point`: 1 to 63 bytes.
    Name(String),
}

/// Text that is not a recovery target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing we know.
    #[error(
        "read recovery target {text:?}: expected latest, immediate, a time, an LSN, a transaction id, or name:NAME"
    )]
    Unknown {
        /// What was read.
        text: String,
    },
    /// A moment whose offset from UTC is not given, where nobody may guess it.
    #[error(
        "read recovery target {text:?}: a time needs its offset, as in 2026-11-20 03:00:00Z or 2026-11-20 03:00:00+02"
    )]
    NoOffset {
        /// What was read.
        text: String,
    },
    /// A name that no restore point can have.
    #[error("read recovery target {text:?}: the name of a restore point has 1 to 63 bytes")]
    Name {
        /// What was read.
        text: String,
    },
}

impl RecoveryTarget {
    /// As [`FromStr`], and takes a moment without an offset as one of `zone`.
    pub fn parse_in(text: &str, zone: &TimeZone) -> Result<RecoveryTarget, TargetError> {
        parse(text, Some(zone))
    }
}

impl FromStr for RecoveryTarget {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<RecoveryTarget, TargetError> {
        parse(text, None)
    }
}

impl fmt::Display for RecoveryTarget {
    /// Text that [`FromStr`] reads back to the same target.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryTarget::Latest => f.write_str("latest"),
            RecoveryTarget::Immediate => f.write_str("immediate"),
            RecoveryTarget::Time(moment) => write!(f, "{moment}"),
            RecoveryTarget::Lsn(lsn) => write!(f, "{lsn}"),
            RecoveryTarget::Xid(xid) => write!(f, "xid:{xid}"),
            RecoveryTarget::Name(name) => write!(f, "name:{name}"),
        }
    }
}

fn parse(text: &str, zone: Option<&TimeZone>) -> Result<RecoveryTarget, TargetError> {
    let text = text.trim();
    let unknown = || TargetError::Unknown { text: text.to_owned() };
    match text.split_once(':') {
        Some(("time", rest)) => return parse_time(rest.trim(), zone)?.ok_or_else(unknown),
        Some(("lsn", rest)) => return rest.parse().map(RecoveryTarget::Lsn).map_err(|_| unknown()),
        Some(("xid", rest)) => return parse_xid(rest).ok_or_else(unknown),
        Some(("name", rest)) => return parse_name(rest),
        _ => {}
    }
    match text {
        "latest" => return Ok(RecoveryTarget::Latest),
        "immediate" => return Ok(RecoveryTarget::Immediate),
        _ => {}
    }
    if let Ok(lsn) = text.parse() {
        return Ok(RecoveryTarget::Lsn(lsn));
    }
    if let Some(target) = parse_xid(text).or(parse_time(text, zone)?) {
        return Ok(target);
    }
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    match text.chars().next() {
        Some(first) if first.is_alphabetic() && text.chars().all(is_word) => parse_name(text),
        _ => Err(unknown()),
    }
}

fn parse_xid(text: &str) -> Option<RecoveryTarget> {
    let digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits_only.then(|| text.parse().ok().map(RecoveryTarget::Xid)).flatten()
}

fn parse_name(name: &str) -> Result<RecoveryTarget, TargetError> {
    if (1..=NAME_MAX_BYTES).contains(&name.len()) && !name.contains('\0') {
        Ok(RecoveryTarget::Name(name.to_owned()))
    } else {
        Err(TargetError::Name { text: name.to_owned() })
    }
}

/// `None` for text that is no moment at all.
fn parse_time(text: &str, zone: Option<&TimeZone>) -> Result<Option<RecoveryTarget>, TargetError> {
    // "2026-11-20 03:00:00 UTC" is how people and logs write it; the standard form has Z.
    let spelled = ["UTC", "GMT"]
        .iter()
        .find_map(|name| text.strip_suffix(name))
        .map(|rest| format!("{}Z", rest.trim_end()));
    if let Ok(moment) = spelled.as_deref().unwrap_or(text).parse::<Timestamp>() {
        return Ok(Some(RecoveryTarget::Time(moment)));
    }
    match (text.parse::<DateTime>(), zone) {
        (Err(_), _) => Ok(None),
        (Ok(_), None) => Err(TargetError::NoOffset { text: text.to_owned() }),
        (Ok(local), Some(zone)) => Ok(zone
            .to_ambiguous_zoned(local)
            .compatible()
            .ok()
            .map(|moment| RecoveryTarget::Time(moment.timestamp()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(text: &str) -> RecoveryTarget {
        RecoveryTarget::Time(text.parse().unwrap())
    }

    #[test]
    fn every_kind_is_told_from_the_others() {
        let read = |text: &str| text.parse::<RecoveryTarget>().unwrap();
        assert_eq!(read("latest"), RecoveryTarget::Latest);
        assert_eq!(read("immediate"), RecoveryTarget::Immediate);
        assert_eq!(read("16/B374D848"), RecoveryTarget::Lsn("16/B374D848".parse().unwrap()));
        assert_eq!(read("4711"), RecoveryTarget::Xid(4711));
        assert_eq!(read("before_deploy-2.1"), RecoveryTarget::Name("before_deploy-2.1".into()));
        assert_eq!(read("name:2026-11-20"), RecoveryTarget::Name("2026-11-20".into()));
        assert_eq!(read("name:latest"), RecoveryTarget::Name("latest".into()));
        for text in [
            "2026-11-20 03:00:00Z",
            "2026-11-20T03:00:00Z",
            "2026-11-20 05:00:00+02",
            "2026-11-20 03:00:00 UTC",
            "time:2026-11-20 03:00Z",
            "2026-11-20 03:00:00+00",
        ] {
            assert_eq!(read(text), time("2026-11-20T03:00:00Z"), "{text}");
        }
    }

    #[test]
    fn a_moment_without_offset_needs_a_zone() {
        let text = "2026-11-20 03:00:00";
        assert_eq!(text.parse::<RecoveryTarget>(), Err(TargetError::NoOffset { text: text.into() }));
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(RecoveryTarget::parse_in(text, &zone).unwrap(), time("2026-11-20T01:00:00Z"));
    }

    #[test]
    fn what_looks_mistyped_is_no_name() {
        for text in
            ["", "2026-13-40 03:00Z", "16/", "0/0", "12h", "lsn:5", "xid:abc", "time:now", "a b", "name:"]
        {
            assert!(text.parse::<RecoveryTarget>().is_err(), "{text}");
        }
        assert!(format!("name:{}", "x".repeat(64)).parse::<RecoveryTarget>().is_err());
    }

    fn any_target() -> impl Strategy<Value = RecoveryTarget> {
        prop_oneof![
            Just(RecoveryTarget::Latest),
            Just(RecoveryTarget::Immediate),
            (-1_000_000_000_000_000i64..10_000_000_000_000_000)
                .prop_map(|us| RecoveryTarget::Time(Timestamp::from_microsecond(us).unwrap())),
            (1u64..).prop_map(|lsn| RecoveryTarget::Lsn(Lsn::new(lsn).unwrap())),
            any::<u64>().prop_map(RecoveryTarget::Xid),
            "[a-zA-Z0-9:/_.-]{1,63}".prop_map(RecoveryTarget::Name),
        ]
    }

    proptest! {
        #[test]
        fn text_round_trips(target in any_target()) {
            prop_assert_eq!(target.to_string().parse::<RecoveryTarget>().unwrap(), target);
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".*") {
            let _ = text.parse::<RecoveryTarget>();
            let _ = RecoveryTarget::parse_in(&text, &TimeZone::UTC);
        }
    }
}
