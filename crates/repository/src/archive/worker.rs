//! One thread's buffers and contexts for pieces of WAL; kept, because making them costs more than a piece.

use std::sync::Mutex;

use bytes::Bytes;

use crate::chunk::{Codec, CodecError, MAX_CHUNK};
use crate::seal::FrameCipher;

/// Content bytes of one frame; a byte for the encoding and four for the length stand before them.
pub(super) const PIECE: usize = MAX_CHUNK - 16;
/// Before the content of a frame: its sealed length, then (sealed) the encoding and the plaintext's length.
const HEAD: usize = 4 + 5;
/// Workers that are kept; more only at the same time.
const KEPT: usize = 16;

pub(super) struct Worker {
    codec: Codec,
    /// The piece in hand.
    pub plain: Vec<u8>,
    packed: Vec<u8>,
}

impl Worker {
    fn new() -> Self {
        Self { codec: Codec::for_wal(), plain: vec![0; PIECE], packed: Vec::new() }
    }

    /// The first `length` bytes of the piece in hand as a sealed frame behind its length, compressed where that helps.
    pub fn seal(
        &mut self,
        frames: &FrameCipher,
        number: u64,
        length: usize,
        last: bool,
    ) -> Result<Bytes, CodecError> {
        self.packed.clear();
        self.packed.resize(HEAD, 0);
        let encoding = self.codec.encode(&self.plain[..length], &mut self.packed)?;
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
