//! One thread's buffers and contexts for pieces of WAL; kept, because making them costs more than a piece.

use std::sync::Mutex;

use bytes::Bytes;
use zstd::zstd_safe::CParameter;

use crate::chunk::{DEFAULT_LEVEL, Encoding, MAX_CHUNK};
use crate::seal::{FrameCipher, TAG_LEN};

/// Content bytes of one frame; a byte for the encoding and four for the length stand before them.
pub(super) const PIECE: usize = MAX_CHUNK - 16;
/// Before the content of a frame: its sealed length, then (sealed) the encoding and the plaintext's length.
const HEAD: usize = 4 + 5;
/// Workers that are kept; more only at the same time.
const KEPT: usize = 16;

pub(super) struct Worker {
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    /// The piece in hand.
    pub plain: Vec<u8>,
    packed: Vec<u8>,
    check: Vec<u8>,
}

/// The compressor gave something that does not decompress to what went in.
#[derive(Debug)]
pub(super) struct CheckFailed;

impl Worker {
    fn new() -> Self {
        let mut compressor = zstd::bulk::Compressor::new(DEFAULT_LEVEL).expect("a level of zstd");
        // WAL repeats itself in short runs: five bytes instead of level 1's seven cost nothing and save 3 %.
        compressor.set_parameter(CParameter::MinMatch(5)).expect("a parameter of zstd");
        Self {
            compressor,
            decompressor: zstd::bulk::Decompressor::new().expect("a context needs little memory"),
            plain: vec![0; PIECE],
            packed: vec![0; HEAD + PIECE + TAG_LEN],
            check: vec![0; PIECE],
        }
    }

    /// The first `length` bytes of the piece in hand as a sealed frame behind its length, compressed where that saves a
    /// sixteenth, and decompressed again to compare.
    pub fn seal(
        &mut self,
        frames: &FrameCipher,
        number: u64,
        length: usize,
        last: bool,
    ) -> Result<Bytes, CheckFailed> {
        let plain = &self.plain[..length];
        let most = length - length / 16;
        self.packed.resize(HEAD + PIECE, 0);
        let packed = self.compressor.compress_to_buffer(plain, &mut self.packed[HEAD..HEAD + most]);
        let (encoding, stored) = match packed {
            Ok(stored) if stored < most => {
                let check = &mut self.check[..length];
                let checked =
                    self.decompressor.decompress_to_buffer(&self.packed[HEAD..HEAD + stored], check);
                if checked.ok() != Some(length) || check != plain {
                    return Err(CheckFailed);
                }
                (Encoding::Zstd, stored)
            }
            // The only failure of this call is a result that does not fit.
            _ => {
                self.packed[HEAD..HEAD + length].copy_from_slice(plain);
                (Encoding::Plain, length)
            }
        };
        self.packed.truncate(HEAD + stored);
        self.packed[4] = encoding as u8;
        self.packed[5..HEAD].copy_from_slice(&(length as u32).to_le_bytes());
        frames.seal_tail(number, &mut self.packed, 4, last);
        let sealed = (self.packed.len() - 4) as u32;
        self.packed[..4].copy_from_slice(&sealed.to_le_bytes());
        Ok(Bytes::copy_from_slice(&self.packed))
    }
}

/// Workers that are not at work.
#[derive(Default)]
pub(crate) struct Workers(Mutex<Vec<Worker>>);

impl Workers {
    pub(super) fn take(&self) -> Worker {
        let kept = self.kept().pop();
        kept.unwrap_or_else(Worker::new)
    }

    pub(super) fn give_back(&self, worker: Worker) {
        let mut kept = self.kept();
        if kept.len() < KEPT {
            kept.push(worker);
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
