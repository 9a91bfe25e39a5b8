//! Making the object of a file: several threads read, digest, compress, check and seal its pieces.
//!
//! Up to [`HELD_MAX`] a file is passed once, and its frames wait in memory until the digest that stands before them is
//! known. A larger one is passed twice, first for the digest and what is recorded, then for the frames, which are written
//! as they come; if it changed in between, the digests differ and nothing is stored.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use prost::Message as _;
use storage::ObjectName;

use super::worker::{PIECE, Worker, Workers};
use super::{WalContent, WalInfo};
use crate::chunk::Digester;
use crate::seal::{Kind, Sealer};
use crate::secrets::WriterCredential;

/// The largest file whose frames are held in memory: two of them, if nothing in them can be compressed, and the workers
/// stay far below 96 MiB.
const HELD_MAX: u64 = 16 << 20;

/// Why a file could not be made an object.
pub(super) enum Unmade {
    Read(io::Error),
    Check,
}

/// An object about to be created.
pub(super) enum Made {
    Held([u8; 32], Vec<Bytes>),
    Streamed([u8; 32], Bytes),
}

/// What the threads that make an object share.
#[derive(Clone)]
pub(super) struct Maker {
    content: Arc<dyn WalContent>,
    length: u64,
    name: ObjectName,
    writer: WriterCredential,
    sealer: Arc<Sealer>,
    workers: Arc<Workers>,
    digester: Digester,
}

/// What is done with each piece beside its digest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// It is shown and sealed.
    Whole,
    /// It is shown.
    Survey,
    /// It is sealed.
    Seal,
}

struct Piece {
    number: u64,
    frame: Bytes,
}

/// What was read so far. Reading and digesting take a fifth of the work, so that they need not be shared out; and only
/// who reads in order can show in order.
struct Reading {
    /// The number of the last frame that was read; the first one has what is recorded.
    number: u64,
    digest: blake3::Hasher,
}

impl Maker {
    pub fn new(
        writer: &WriterCredential,
        name: &ObjectName,
        content: Arc<dyn WalContent>,
        workers: Arc<Workers>,
        digester: Digester,
    ) -> Self {
        Self {
            length: content.length(),
            content,
            name: name.clone(),
            sealer: Arc::new(Sealer::new(writer, Kind::Wal, name, &[])),
            digester,
            writer: writer.clone(),
            workers,
        }
    }

    /// Makes the object, or what stands before the frames of a large one.
    pub fn make(&self, threads: usize) -> Result<Made, Unmade> {
        let is_held = self.length <= HELD_MAX;
        let (digest, pieces) = self.pass(if is_held { Pass::Whole } else { Pass::Survey }, threads)?;
        let info = self.content.info().map_err(Unmade::Read)?;
        let head = self.head(&digest, &info);
        if is_held {
            let frames = pieces.into_iter().map(|piece| piece.frame);
            return Ok(Made::Held(digest, std::iter::once(head).chain(frames).collect()));
        }
        Ok(Made::Streamed(digest, head))
    }

    /// The header and the first frame.
    fn head(&self, digest: &[u8; 32], info: &WalInfo) -> Bytes {
        let mut public = digest.to_vec();
        public.extend_from_slice(&self.length.to_le_bytes());
        let mut head = self.sealer.header_with(&self.writer, &self.name, &public);
        let start = head.len() + 4;
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(&info.encode_to_vec());
        self.sealer.frames().seal_tail(0, &mut head, start, self.last() == 0);
        let length = (head.len() - start) as u32;
        head[start - 4..start].copy_from_slice(&length.to_le_bytes());
        head.into()
    }

    /// The number of the last frame; the first one has what is recorded.
    fn last(&self) -> u64 {
        self.length.div_ceil(PIECE as u64)
    }

    fn reading(&self) -> Mutex<Reading> {
        Mutex::new(Reading { number: 0, digest: self.digester.content_hasher() })
    }

    /// The digest and all pieces in order.
    fn pass(&self, pass: Pass, threads: usize) -> Result<([u8; 32], Vec<Piece>), Unmade> {
        let reading = self.reading();
        let work = || {
            let mut pieces = Vec::new();
            let done = self.work(pass, &reading, |piece| {
                pieces.push(piece);
                true
            });
            done.map(|()| pieces)
        };
        let mut pieces = std::thread::scope(|scope| {
            let others = threads.clamp(1, self.last().max(1) as usize) - 1;
            let others: Vec<_> = (0..others).map(|_| scope.spawn(work)).collect();
            let mut pieces = work()?;
            for other in others {
                pieces.append(&mut other.join().expect("sealing does not panic")?);
            }
            Ok(pieces)
        })?;
        pieces.sort_unstable_by_key(|piece| piece.number);
        Ok((digest_of(&reading), pieces))
    }

    /// One thread's share: takes piece after piece until none is left or `give` wants no more.
    fn work(
        &self,
        pass: Pass,
        reading: &Mutex<Reading>,
        mut give: impl FnMut(Piece) -> bool,
    ) -> Result<(), Unmade> {
        let mut worker = self.workers.take();
        let done = loop {
            match self.one(pass, reading, &mut worker) {
                Ok(Some(piece)) => {
                    if !give(piece) {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(why) => break Err(why),
            }
        };
        self.workers.give_back(worker);
        if done.is_err() {
            // The others need not go on.
            reading.lock().unwrap_or_else(PoisonError::into_inner).number = self.last();
        }
        done
    }

    /// Reads the next piece and does with it what is to be done; `None` when there is none.
    fn one(
        &self,
        pass: Pass,
        reading: &Mutex<Reading>,
        worker: &mut Worker,
    ) -> Result<Option<Piece>, Unmade> {
        let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = reading.number * PIECE as u64;
        if offset >= self.length {
            return Ok(None);
        }
        let length = PIECE.min((self.length - offset) as usize);
        let piece = &mut worker.plain[..length];
        self.content.read_at(piece, offset).map_err(Unmade::Read)?;
        reading.digest.update(piece);
        if pass != Pass::Seal {
            self.content.see(piece);
        }
        reading.number += 1;
        let number = reading.number;
        drop(reading);
        let frame = match pass {
            Pass::Survey => Bytes::new(),
            _ => worker
                .seal(self.sealer.frames(), number, length, number == self.last())
                .map_err(|_| Unmade::Check)?,
        };
        Ok(Some(Piece { number, frame }))
    }

    /// The object's parts, sealed by threads that end with it. If they fail, `why` has the reason.
    pub fn stream(
        self,
        digest: [u8; 32],
        head: Bytes,
        threads: usize,
        why: Arc<Mutex<Option<Unmade>>>,
    ) -> Streamed {
        let (sender, pieces) = sync_channel(threads.max(1));
        let reading = Arc::new(self.reading());
        for _ in 0..threads.max(1) {
            let (maker, reading, sender) = (self.clone(), reading.clone(), sender.clone());
            std::thread::spawn(move || {
                let done = maker.work(Pass::Seal, &reading, |piece| sender.send(Ok(piece)).is_ok());
                if let Err(failed) = done {
                    let _ = sender.send(Err(failed));
                }
            });
        }
        Streamed {
            head: Some(head),
            pieces,
            early: BTreeMap::new(),
            given: 0,
            reading,
            maker: self,
            digest,
            why,
        }
    }
}

fn digest_of(reading: &Mutex<Reading>) -> [u8; 32] {
    *reading.lock().unwrap_or_else(PoisonError::into_inner).digest.finalize().as_bytes()
}

/// The parts of an object, in order.
pub(super) struct Streamed {
    head: Option<Bytes>,
    pieces: Receiver<Result<Piece, Unmade>>,
    /// Pieces that came before their turn; as many as there are threads, at most.
    early: BTreeMap<u64, Piece>,
    /// Frames that were given.
    given: u64,
    reading: Arc<Mutex<Reading>>,
    maker: Maker,
    digest: [u8; 32],
    why: Arc<Mutex<Option<Unmade>>>,
}

impl Iterator for Streamed {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(head) = self.head.take() {
            return Some(Ok(head));
        }
        let number = self.given + 1;
        while !self.early.contains_key(&number) && number <= self.maker.last() {
            match self.pieces.recv() {
                Ok(Ok(piece)) => drop(self.early.insert(piece.number, piece)),
                Ok(Err(why)) => return Some(Err(self.fail(why))),
                Err(_) => return Some(Err(self.fail(Unmade::Check))),
            }
        }
        let piece = self.early.remove(&number)?;
        self.given = number;
        let is_last = number == self.maker.last();
        if is_last && digest_of(&self.reading) != self.digest {
            return Some(Err(self.fail(Unmade::Read(io::Error::other("it changed meanwhile")))));
        }
        Some(Ok(piece.frame))
    }
}

impl Streamed {
    fn fail(&self, why: Unmade) -> io::Error {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        io::Error::other("the object could not be made")
    }
}
