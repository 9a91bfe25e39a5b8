//! When a file's change time tells of every change to come.
//!
//! The next backup takes a file over unread if its change time is the one that this backup noted. That proves something
//! only if no change after this backup's first read could be given the same time: if the time is older than that read by
//! more than a step of the clock that made it. The file may have been changed between being listed and being read;
//! then its time differs from the noted one, and it is read again.

use std::time::Duration;

use jiff::Timestamp;
use server::files::{COARSE_TIME_STEP, OpenFile};

/// Whether the file, about to be read, was changed long enough ago. What the checkpoint at the beginning of the backup
/// wrote is waited for where that takes a moment only: it is often all that there is to read, now and the next time.
pub(crate) fn wait(file: &dyn OpenFile, ctime_ns: i64, started_ns: i64) -> bool {
    let now = now_ns();
    if rest(now, ctime_ns, COARSE_TIME_STEP).is_none() {
        return true;
    }
    // A file system of whole seconds is known by its times.
    let step = if ctime_ns % 1_000_000_000 == 0 { COARSE_TIME_STEP } else { file.time_step() };
    match rest(now, ctime_ns, step) {
        None => true,
        Some(rest) if step < COARSE_TIME_STEP && ctime_ns <= started_ns => {
            std::thread::sleep(rest);
            true
        }
        Some(_) => false,
    }
}

/// How long from `now` until a time is settled; `None` if it is. A time in the future is as long away as that.
fn rest(now: i64, ctime_ns: i64, step: Duration) -> Option<Duration> {
    let step = step.as_nanos() as i64;
    let rest = ctime_ns.saturating_add(step).saturating_sub(now);
    (rest >= 0).then(|| Duration::from_nanos(rest as u64 + 1))
}

pub(crate) fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use server::files::{FileMetadata, FilesError};

    const MS: i64 = 1_000_000;

    #[derive(Debug)]
    struct File(Duration);

    impl OpenFile for File {
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<usize, FilesError> {
            Ok(0)
        }

        fn metadata(&self) -> Result<FileMetadata, FilesError> {
            Err(FilesError::Vanished { path: Vec::new() })
        }

        fn time_step(&self) -> Duration {
            self.0
        }
    }

    #[test]
    fn a_time_is_settled_a_step_after_it() {
        let step = Duration::from_millis(50);
        assert_eq!(rest(100 * MS, 50 * MS, step), Some(Duration::from_nanos(1)));
        assert_eq!(rest(100 * MS + 1, 50 * MS, step), None);
        assert_eq!(rest(100 * MS, 200 * MS, step), Some(Duration::from_nanos(150_000_001)));
    }

    #[test]
    fn only_what_was_written_before_the_backup_is_waited_for() {
        let fine = File(Duration::from_millis(50));
        // Never a whole second, which would look like a file system without fractions.
        let now = now_ns() | 1;
        assert!(wait(&fine, now, now));
        assert!(now_ns() - now > 50 * MS);
        let now = now_ns() | 1;
        assert!(!wait(&fine, now, now - 1));
        assert!(wait(&fine, now - 60 * MS, 0));
        assert!(!wait(&File(COARSE_TIME_STEP), now - 60 * MS, now));
        let whole_second = now / 1_000_000_000 * 1_000_000_000;
        assert!(!wait(&fine, whole_second, now));
        assert!(wait(&fine, whole_second - 3_000_000_000, 0));
    }
}
