//! Writing past the page cache.
//!
//! Large files that nobody reads soon cost a copy into the page cache, and evict what the machine's own work needs there.
//! [`DirectFile`] has the disk take them from our memory, where the file system can; otherwise it writes as usual.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// What memory and offsets must be multiples of: no device or file system in use asks for more.
const ALIGNMENT: usize = 4096;

/// Shorter writes are cheaper through the page cache, which gathers them.
const DIRECT_MIN: usize = 256 << 10;

/// An empty buffer with room for `capacity` bytes that begins at a page of memory once its padding is skipped: the first
/// `.1` bytes of `.0`. It stays there as long as it does not outgrow its room.
///
/// Room that is never written to takes no memory.
pub fn aligned_buffer(capacity: usize) -> (Vec<u8>, usize) {
    let mut buffer: Vec<u8> = Vec::with_capacity(ALIGNMENT + capacity);
    let padding = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    buffer.resize(padding, 0);
    (buffer, padding)
}

/// A file that is written past the page cache where that is possible.
///
/// The bytes are in the file when a write returns, and durable only after [`File::sync_all`], as with any file.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    direct: bool,
    /// False once the file system refused.
    able: bool,
}

impl DirectFile {
    /// Takes a file that was opened for writing.
    pub fn new(file: File) -> Self {
        Self { file, direct: false, able: true }
    }

    /// Writes all of `bytes` at `offset`: what is long and aligned goes to the disk, the rest to the page cache.
    pub fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut rest = 0;
        let aligned = is_aligned(bytes.as_ptr() as usize) && is_aligned(offset as usize);
        if aligned && bytes.len() >= DIRECT_MIN && self.able {
            rest = bytes.len() - bytes.len() % ALIGNMENT;
        }
        if rest > 0
            && let Err(error) =
                self.set_direct(true).and_then(|()| self.file.write_all_at(&bytes[..rest], offset))
        {
            // "Cannot" is said by the flag on some file systems, and by the first write on others.
            if error.kind() != io::ErrorKind::InvalidInput {
                return Err(error);
            }
            (rest, self.able) = (0, false);
        }
        if rest == bytes.len() {
            return Ok(());
        }
        self.set_direct(false)?;
        self.file.write_all_at(&bytes[rest..], offset + rest as u64)
    }

    /// The file, for all else.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn set_direct(&mut self, direct: bool) -> io::Result<()> {
        if self.direct != direct {
            let flags = fcntl_getfl(&self.file)?;
            let changed = if direct { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
            fcntl_setfl(&self.file, changed)?;
            self.direct = direct;
        }
        Ok(())
    }
}

fn is_aligned(number: usize) -> bool {
    number.is_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_other_writes_make_one_file() {
        const STEP: usize = DIRECT_MIN;
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = directory.path().join("file");
        let mut file = DirectFile::new(File::create(&path).unwrap());
        let (mut buffer, padding) = aligned_buffer(5 * STEP);
        buffer.extend((0..5 * STEP).map(|at| (at / 7) as u8));
        let bytes = &buffer[padding..];
        assert!(is_aligned(bytes.as_ptr() as usize));
        // Whole, with a rest, from an unaligned place in memory, and to one in the file.
        file.write_all_at(&bytes[..2 * STEP], 0).unwrap();
        file.write_all_at(&bytes[2 * STEP..3 * STEP + 100], 2 * STEP as u64).unwrap();
        file.write_all_at(&bytes[3 * STEP + 100..4 * STEP], 3 * STEP as u64 + 100).unwrap();
        file.write_all_at(&bytes[4 * STEP..], 4 * STEP as u64).unwrap();
        file.file().sync_all().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn a_file_that_cannot_be_written_directly_is_written_as_usual() {
        // A device that has no such way, and takes all.
        let file = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let mut file = DirectFile::new(file);
        let (mut buffer, padding) = aligned_buffer(DIRECT_MIN);
        buffer.resize(padding + DIRECT_MIN, b'x');
        file.write_all_at(&buffer[padding..], 0).unwrap();
        assert!(!file.able);
    }
}
