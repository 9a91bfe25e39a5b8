//! Trying again.

use std::time::Duration;

/// How long one call goes on trying, and how long one try may take.
///
/// Bytes to be moved add time to both: `slowest_bytes_per_second` is the speed below which a connection counts as stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// From the start of a call to its failure, for a call that moves no bytes.
    pub deadline: Duration,
    /// The longest one try may take, for a call that moves no bytes.
    pub attempt: Duration,
    /// The lower bound of the time between two tries; it doubles each time, half of it by chance.
    pub first_pause: Duration,
    /// The upper bound of the time between two tries.
    pub longest_pause: Duration,
    /// Allowed time for bytes, in bytes per second.
    pub slowest_bytes_per_second: u64,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            deadline: Duration::from_secs(120),
            attempt: Duration::from_secs(30),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(10),
            slowest_bytes_per_second: 256 * 1024,
        }
    }
}
