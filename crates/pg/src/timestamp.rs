//! Moments as PostgreSQL stores them.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Microseconds from the Unix epoch to 2000-01-01 00:00:00 UTC, PostgreSQL's epoch.
const EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// A moment as WAL records hold it: microseconds since 2000-01-01 00:00:00 UTC, negative before.
///
/// Every bit pattern is a value, because it is read from files. Source: `TimestampTz`,
/// `datatype/timestamp.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PgTimestamp(pub i64);

impl PgTimestamp {
    /// The same moment for the rest of the program; `None` outside the years -9999 to 9999.
    pub fn to_timestamp(self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.0.checked_add(EPOCH_UNIX_US)?).ok()
    }
}

impl From<Timestamp> for PgTimestamp {
    /// The moment to the microsecond, rounded towards the past, as a recovery target must be.
    fn from(moment: Timestamp) -> PgTimestamp {
        let rounded_up = i64::from(moment.subsec_nanosecond() < 0 && moment.subsec_nanosecond() % 1000 != 0);
        PgTimestamp(moment.as_microsecond() - EPOCH_UNIX_US - rounded_up)
    }
}

impl TryFrom<PgTimestamp> for Timestamp {
    type Error = OutOfRange;

    fn try_from(moment: PgTimestamp) -> Result<Timestamp, OutOfRange> {
        moment.to_timestamp().ok_or(OutOfRange { moment })
    }
}

/// A stored moment that no calendar of ours reaches; in practice a damaged record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read moment {} µs after 2000-01-01: outside the years -9999 to 9999", moment.0)]
pub struct OutOfRange {
    /// What was read.
    pub moment: PgTimestamp,
}

/// The moment `seconds` after the Unix epoch (`pg_time_t`); `None` outside the years -9999 to 9999.
pub fn from_unix_seconds(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_duration(SignedDuration::from_secs(seconds)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_epoch_is_the_first_of_january_2000() {
        assert_eq!(PgTimestamp(0).to_timestamp().unwrap().to_string(), "2000-01-01T00:00:00Z");
        assert_eq!(PgTimestamp(-1).to_timestamp().unwrap().to_string(), "1999-12-31T23:59:59.999999Z");
        assert_eq!(PgTimestamp(i64::MAX).to_timestamp(), None);
        assert_eq!(PgTimestamp(i64::MIN).to_timestamp(), None);
    }

    #[test]
    fn part_of_a_microsecond_rounds_to_the_past() {
        let after: Timestamp = "2000-01-01T00:00:00.0000019Z".parse().unwrap();
        assert_eq!(PgTimestamp::from(after), PgTimestamp(1));
        let before: Timestamp = "1969-12-31T23:59:59.9999999Z".parse().unwrap();
        assert_eq!(PgTimestamp::from(before), PgTimestamp(-EPOCH_UNIX_US - 1));
    }

    proptest! {
        #[test]
        fn moments_round_trip(us in -300_000_000_000_000_000i64..200_000_000_000_000_000) {
            let moment = PgTimestamp(us);
            prop_assert_eq!(PgTimestamp::from(moment.to_timestamp().unwrap()), moment);
        }

        #[test]
        fn any_bits_are_read_without_panic(us: i64) {
            let _ = PgTimestamp(us).to_timestamp();
        }
    }
}
