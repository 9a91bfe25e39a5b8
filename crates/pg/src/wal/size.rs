//! The size of WAL segments, fixed when a cluster is made.

use serde::{Deserialize, Serialize};

const MIN_BYTES: u32 = 1 << 20;
const MAX_BYTES: u32 = 1 << 30;

/// The size of every WAL segment of a cluster: a power of two from 1 MiB to 1 GiB.
///
/// Source: `IsValidWalSegSize`, `access/xlog_internal.h`. Serialised as the number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

/// A number that is no size of a WAL segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read WAL segment size {bytes}: expected a power of two from 1 MiB to 1 GiB")]
pub struct SegmentSizeError {
    /// What was read.
    pub bytes: u64,
}

impl SegmentSize {
    /// What `initdb` chooses unless told otherwise: 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// A checked size in bytes.
    pub fn new(bytes: u32) -> Result<SegmentSize, SegmentSizeError> {
        if bytes.is_power_of_two() && (MIN_BYTES..=MAX_BYTES).contains(&bytes) {
            Ok(SegmentSize(bytes))
        } else {
            Err(SegmentSizeError { bytes: bytes.into() })
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// How many segments share one "log" number, the middle eight digits of a name: 4 GiB worth.
    pub const fn per_log(self) -> u32 {
        // At least 4 (1 GiB segments), at most 4096 (1 MiB), so it fits.
        ((1u64 << 32) / self.0 as u64) as u32
    }

    /// Bytes from the start of the segment that holds `position` to `position`.
    pub const fn offset_of(self, position: u64) -> u32 {
        (position & (self.0 as u64 - 1)) as u32
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = SegmentSizeError;

    fn try_from(bytes: u32) -> Result<SegmentSize, SegmentSizeError> {
        SegmentSize::new(bytes)
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = SegmentSizeError;

    fn try_from(bytes: u64) -> Result<SegmentSize, SegmentSizeError> {
        u32::try_from(bytes).map_err(|_| SegmentSizeError { bytes }).and_then(SegmentSize::new)
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> u32 {
        size.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_within_the_limits_are_sizes() {
        assert_eq!(SegmentSize::DEFAULT.per_log(), 256);
        for shift in 20..=30 {
            let size = SegmentSize::new(1 << shift).unwrap();
            assert_eq!(u64::from(size.per_log()) * u64::from(size.bytes()), 1 << 32);
        }
        for bytes in [0, 1, 1 << 19, 1 << 31, 3 << 20, (16 << 20) + 1, u32::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
        assert!(SegmentSize::try_from((16u64 << 20) + (1 << 32)).is_err());
    }

    #[test]
    fn a_stored_size_is_checked_again() {
        assert_eq!(serde_json::from_str::<SegmentSize>("1048576").unwrap().bytes(), 1 << 20);
        assert!(serde_json::from_str::<SegmentSize>("1048577").is_err());
    }
}
