//! A region of a file on its way through a worker: read, its pages checked, digested.

use std::time::Duration;

use pg::page::{self, Verdict};
use repository::chunk::{MAX_CHUNK, PAGE};
use repository::manifest::PageFinding;
use server::files::{FilesError, OpenFile};

use super::error::BackupError;
use super::worker::SpanDone;
use super::{Context, MAX_SPAN_FINDINGS};

/// Bytes read at once: what fits into a processor's second cache beside the rest.
const READ: usize = 256 << 10;

/// What was read last; as long as a chunk, for it may become one.
pub(crate) struct Region<'c> {
    context: &'c Context,
    pub(crate) bytes: Vec<u8>,
    /// Digests of its pages, of which the last may be filled up with zeros.
    pub(crate) digests: Vec<[u8; 32]>,
}

impl<'c> Region<'c> {
    pub(crate) fn new(context: &'c Context) -> Self {
        Self { context, bytes: vec![0; MAX_CHUNK], digests: Vec::with_capacity(MAX_CHUNK / PAGE) }
    }

    /// Reads `wanted` bytes, less at the end of the file, and digests their pages. Everything that passes over the bytes
    /// does so while they are in the processor's nearest caches. Returns how many there were; `None` if the file is gone.
    pub(crate) fn read(
        &mut self,
        file: &dyn OpenFile,
        path: &[u8],
        offset: u64,
        wanted: usize,
        first_block: Option<u32>,
        done: &mut SpanDone,
    ) -> Result<Option<usize>, BackupError> {
        self.digests.clear();
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut len = 0;
        while len < wanted {
            let step = READ.min(wanted - len);
            let at = offset + len as u64;
            let got = match file.read_at(at, &mut bytes[len..len + step]) {
                Ok(got) => got,
                Err(error) if error.is_vanished() && len > 0 => break,
                Err(error) => {
                    self.bytes = bytes;
                    return if error.is_vanished() { Ok(None) } else { Err(error.into()) };
                }
            };
            if let Some(first_block) = first_block {
                let block = first_block + (at / PAGE as u64) as u32;
                self.verify(file, path, &mut bytes[len..len + got], at, block, done)?;
            }
            done.crc32c = crc32c::crc32c_append(done.crc32c, &bytes[len..len + got]);
            // A short last page is compared and stored as a whole one, filled up with zeros.
            let padded = got.next_multiple_of(PAGE);
            bytes[len + got..len + padded].fill(0);
            self.context.repository.digester().pages(&bytes[len..len + padded], &mut self.digests);
            len += got;
            done.bytes_read += got as u64;
            if got < step {
                break;
            }
        }
        self.bytes = bytes;
        Ok(Some(len))
    }

    /// Checks the pages' checksums; a page that was being written while it was read is read again.
    fn verify(
        &self,
        file: &dyn OpenFile,
        path: &[u8],
        region: &mut [u8],
        offset: u64,
        first_block: u32,
        done: &mut SpanDone,
    ) -> Result<(), BackupError> {
        for (number, page) in region.chunks_exact_mut(PAGE).enumerate() {
            let block = first_block + number as u32;
            done.pages_verified += 1;
            let Verdict::Mismatch { .. } = page::verify(page, block) else { continue };
            let at = offset + (number * PAGE) as u64;
            let settled = self.settle(file, page, at, block)?;
            let Verdict::Mismatch { expected, found, lsn } = settled else { continue };
            if done.findings.len() >= MAX_SPAN_FINDINGS {
                done.findings_left_out += 1;
            } else {
                done.findings.push(PageFinding {
                    path: path.to_vec(),
                    block,
                    lsn,
                    found: u32::from(found),
                    computed: u32::from(expected),
                });
            }
        }
        Ok(())
    }

    /// Reads a page with a wrong checksum again, and gives the verdict that stays. A page whose LSN is past the start of
    /// the backup is not waited for: whether the WAL repairs it is known when the backup's end is.
    fn settle(
        &self,
        file: &dyn OpenFile,
        page: &mut [u8],
        at: u64,
        block: u32,
    ) -> Result<Verdict, FilesError> {
        for pause_ms in [0, 2, 20, 100] {
            std::thread::sleep(Duration::from_millis(pause_ms));
            if file.read_at(at, page)? < PAGE {
                // Truncated meanwhile; the WAL says so too.
                page.fill(0);
                return Ok(Verdict::New);
            }
            match page::verify(page, block) {
                Verdict::Mismatch { lsn, .. } if lsn < self.context.start_lsn => {}
                settled => return Ok(settled),
            }
        }
        Ok(page::verify(page, block))
    }
}
