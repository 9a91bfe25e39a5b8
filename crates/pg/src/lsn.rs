//! Positions in the write-ahead log.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the write-ahead log.
///
/// Text form as PostgreSQL prints it, `16/B374D848`: high and low 32 bits in hexadecimal. PostgreSQL uses
/// zero for "none", so here that is `Option<Lsn>`. Serialised as that text. Source: `XLogRecPtr`,
/// `access/xlogdefs.h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(NonZeroU64);

/// Text that is not a position in the write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "read LSN {text:?}: expected two hexadecimal numbers of 1 to 8 digits, as in 16/B374D848, not both zero"
)]
pub struct LsnError {
    /// What was read.
    pub text: String,
}

impl Lsn {
    /// The position `value` bytes from the start of the log; `None` for zero, PostgreSQL's "invalid".
    pub const fn new(value: u64) -> Option<Lsn> {
        match NonZeroU64::new(value) {
            Some(value) => Some(Lsn(value)),
            None => None,
        }
    }

    /// Bytes from the start of the log.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The position `bytes` later; `None` past the end of what 64 bits can address.
    pub const fn checked_add(self, bytes: u64) -> Option<Lsn> {
        match self.0.checked_add(bytes) {
            Some(value) => Some(Lsn(value)),
            None => None,
        }
    }

    /// The position `bytes` earlier; `None` at or before the start of the log.
    pub const fn checked_sub(self, bytes: u64) -> Option<Lsn> {
        match self.get().checked_sub(bytes) {
            Some(value) => Lsn::new(value),
            None => None,
        }
    }

    /// Bytes from `earlier` to this position; `None` when `earlier` is later.
    pub const fn bytes_since(self, earlier: Lsn) -> Option<u64> {
        self.get().checked_sub(earlier.get())
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:X}/{:X}", self.get() >> 32, self.get() & 0xFFFF_FFFF))
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = LsnError;

    /// Accepts what `pg_lsn_in` accepts: 1 to 8 hexadecimal digits of either case on both sides of one slash.
    fn from_str(text: &str) -> Result<Lsn, LsnError> {
        let half = |digits: &str| -> Option<u64> {
            let digits_only =
                (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            digits_only.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Lsn::new((half(high)? << 32) | half(low)?))
            .ok_or_else(|| LsnError { text: text.to_owned() })
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_what_postgresql_prints() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn.get(), 0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!(Lsn::new(0x1_0000_0001).unwrap().to_string(), "1/1");
        assert_eq!("0/0000a".parse::<Lsn>().unwrap().get(), 10);
    }

    #[test]
    fn what_is_not_a_position_is_refused() {
        for text in [
            "",
            "/",
            "0/0",
            "1",
            "1/",
            "/1",
            "1/2/3",
            "123456789/0",
            "0/123456789",
            "+1/1",
            "1/ 1",
            "g/1",
            "-1/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn arithmetic_stops_at_both_ends() {
        let lsn = Lsn::new(10).unwrap();
        assert_eq!(lsn.checked_sub(10), None);
        assert_eq!(lsn.checked_sub(9), Lsn::new(1));
        assert_eq!(lsn.checked_add(u64::MAX), None);
        assert_eq!(lsn.bytes_since(Lsn::new(11).unwrap()), None);
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(value in 1u64..) {
            let lsn = Lsn::new(value).unwrap();
            prop_assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
            let json = serde_json::to_string(&lsn).unwrap();
            prop_assert_eq!(serde_json::from_str::<Lsn>(&json).unwrap(), lsn);
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".*") {
            let _ = text.parse::<Lsn>();
        }
    }
}
