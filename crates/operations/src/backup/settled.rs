//! When a file's change time tells of every change to come.
//!
//! The next backup takes a file over unread if its change time is the one that this backup noted. That proves something
//! only if this backup read every change that could have been given that time: the time must lie in the past of the clock
//! that times are taken from, and writers that have set it must be done. The file may have been changed between being
//! listed and being read; then its time differs from the noted one, and it is read again.

use std::time::Duration;

use server::files::{OpenFile, file_clock_ns};

/// Above what the clock for file times goes on by, 1 to 10 ms.
const STEP: Duration = Duration::from_millis(50);
/// Where nothing is known of the file system: times of whole seconds, or of another machine's clock.
const COARSE_STEP: Duration = Duration::from_secs(2);

/// Whether the change time with which the file was listed tells of every change from now on; the file must be read after this
/// call. What the checkpoint at the beginning of the backup wrote is waited for, a moment: it is often all that there is
/// to read, now and the next time. What was changed since then is not trusted. `started_ns` is by the clock that the file's
/// times are from; over SQL that is the server's, and the wait is none: there the coarse rule holds.
pub(crate) fn wait(file: &dyn OpenFile, ctime_ns: i64, started_ns: i64) -> bool {
    if ctime_ns > started_ns {
        return false;
    }
    if !has_fraction(ctime_ns) || !file.has_local_times() {
        return rest(started_ns, ctime_ns, COARSE_STEP).is_none();
    }
    // Once is enough, unless somebody sets the clock back.
    for _ in 0..3 {
        match rest(file_clock_ns(), ctime_ns, STEP) {
            Some(rest) => std::thread::sleep(rest),
            None => {
                file.wait_for_writers();
                return true;
            }
        }
    }
    false
}

/// A file system of whole seconds is known by its times.
fn has_fraction(time_ns: i64) -> bool {
    time_ns % 1_000_000_000 != 0
}

/// How long from `now` until a time is settled; `None` if it is.
fn rest(now_ns: i64, ctime_ns: i64, step: Duration) -> Option<Duration> {
    let rest = ctime_ns.saturating_add(step.as_nanos() as i64).saturating_sub(now_ns);
    (rest >= 0).then(|| Duration::from_nanos(rest as u64 + 1).min(step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use server::files::{FileMetadata, FilesError};
    use std::sync::atomic::{AtomicBool, Ordering};

    const MS: i64 = 1_000_000;

    #[derive(Debug, Default)]
    struct File {
        is_local: bool,
        waited: AtomicBool,
    }

    impl OpenFile for File {
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<usize, FilesError> {
            Ok(0)
        }

        fn metadata(&self) -> Result<FileMetadata, FilesError> {
            Err(FilesError::Vanished { path: Vec::new() })
        }

        fn has_local_times(&self) -> bool {
            self.is_local
        }

        fn wait_for_writers(&self) {
            self.waited.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_time_is_settled_a_step_after_it() {
        assert_eq!(rest(100 * MS, 50 * MS, STEP), Some(Duration::from_nanos(1)));
        assert_eq!(rest(100 * MS + 1, 50 * MS, STEP), None);
        assert_eq!(rest(100 * MS, 80 * MS, STEP), Some(Duration::from_nanos(30_000_001)));
    }

    #[test]
    fn what_was_written_before_the_backup_is_waited_for_and_what_came_later_not_trusted() {
        let local = File { is_local: true, ..File::default() };
        // Never a whole second, which would look like a file system without fractions.
        let now = file_clock_ns() | 1;
        assert!(!wait(&local, now + 2, now) && !local.waited.load(Ordering::Relaxed));
        assert!(wait(&local, now, now) && local.waited.load(Ordering::Relaxed));
        assert!(file_clock_ns() - now > 50 * MS);
    }

    #[test]
    fn elsewhere_a_time_must_be_two_seconds_older_than_the_backup() {
        let (started, remote) = (file_clock_ns() | 1, File::default());
        assert!(!wait(&remote, started - 1999 * MS, started));
        assert!(wait(&remote, started - 2001 * MS, started));
        let whole_second = started / 1_000_000_000 * 1_000_000_000;
        let local = File { is_local: true, ..File::default() };
        assert!(!wait(&local, whole_second, started));
        assert!(wait(&local, whole_second - 3_000_000_000, started));
    }
}
