//! The two files that say what a cluster is, wherever they are read.

use std::thread;
use std::time::Duration;

use pg::Major;
use pg::control::{CONTROL_FILE_SIZE, ControlFile};
use pg::datadir::CONTROL_FILE;

use super::FilesError;

/// How often `pg_control` is read again when its CRC does not match, and after what pause. The server may be just
/// writing it, which the file system may show half done; its own tools try 10 times (`get_controlfile`).
const CONTROL_TRIES: u32 = 10;
const CONTROL_PAUSE: Duration = Duration::from_millis(20);

/// The major version in `PG_VERSION`. `read` gives the first bytes of a file, as many as there are up to a length.
pub(super) fn read_major(
    mut read: impl FnMut(&[u8], usize) -> Result<Vec<u8>, FilesError>,
) -> Result<Major, FilesError> {
    let text = required(read(b"PG_VERSION", 64))?;
    Ok(String::from_utf8_lossy(&text).parse()?)
}

/// The bytes of `pg_control`, whole and with the right CRC, and what they say.
pub(super) fn read_control_file(
    mut read: impl FnMut(&[u8], usize) -> Result<Vec<u8>, FilesError>,
) -> Result<(Vec<u8>, ControlFile), FilesError> {
    let mut tries = 1;
    loop {
        let bytes = required(read(CONTROL_FILE, CONTROL_FILE_SIZE))?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(error) if error.is_transient() && tries < CONTROL_TRIES => {
                tries += 1;
                thread::sleep(CONTROL_PAUSE);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Turns "vanished" into "missing", for files that no running cluster is without.
fn required<T>(result: Result<T, FilesError>) -> Result<T, FilesError> {
    result.map_err(|error| match error {
        FilesError::Vanished { path } => FilesError::Missing { path },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_caught_half_written_is_read_again_and_a_damaged_one_refused() {
        let mut tries = 0;
        let read = |_: &[u8], length: usize| {
            tries += 1;
            Ok(vec![1; length])
        };
        assert!(matches!(read_control_file(read), Err(FilesError::Control(_))));
        assert!(tries >= 1);
        let gone = |path: &[u8], _| Err(FilesError::Vanished { path: path.to_owned() });
        assert!(matches!(read_control_file(gone), Err(FilesError::Missing { .. })));
        assert!(matches!(read_major(gone), Err(FilesError::Missing { .. })));
    }
}
