//! Fetching a file of the archive: frames are opened by several threads and handed on in order, a few at a time.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::IntoIter;

use bytes::{Bytes, BytesMut};
use pg::wal::FileName;
use prost::Message as _;
use storage::{ObjectName, StorageError};

use super::{ArchiveError, MAX_WAL_FILE, WalInfo, WalName, public_of};
use crate::chunk::{Codec, Encoding};
use crate::layout::{self, ClusterName};
use crate::repository::Repository;
use crate::seal::{Header, Kind, MAX_FRAME, Opener, SealError, TAG_LEN};

/// Objects up to this are fetched by one request; larger ones by one more, in parts of half of it.
const WHOLE_MAX: u64 = 17 << 20;

/// Takes the content in order. What it took is good only once the fetch ended well.
pub trait WalSink: Send + 'static {
    /// Takes the next bytes.
    fn take(&mut self, piece: &[u8]) -> io::Result<()>;
}

impl WalSink for Vec<u8> {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        self.extend_from_slice(piece);
        Ok(())
    }
}

/// A file of the archive that came whole and is authentic.
pub struct FetchedWal<S> {
    /// What is recorded with it.
    pub info: WalInfo,
    /// The digest of its content, [`crate::chunk::Digester::content`].
    pub digest: [u8; 32],
    /// What took the content.
    pub sink: S,
}

impl Repository {
    /// Fetches a small file of the archive, whole and checked; [`ArchiveError::Absent`] only if that is proven.
    pub async fn fetch_wal(
        &self,
        cluster: &ClusterName,
        file: &FileName,
    ) -> Result<(WalInfo, Vec<u8>), ArchiveError> {
        let fetched = self.fetch_wal_into(cluster, file, 1, Vec::new()).await?;
        Ok((fetched.info, fetched.sink))
    }

    /// Fetches a file of the archive into `sink`, with so many threads; [`ArchiveError::Absent`] only if that is proven.
    /// The sink comes back when the whole content was there and authentic.
    pub async fn fetch_wal_into<S: WalSink>(
        &self,
        cluster: &ClusterName,
        file: impl Into<WalName>,
        threads: usize,
        sink: S,
    ) -> Result<FetchedWal<S>, ArchiveError> {
        let file = file.into();
        let name = layout::wal_file(cluster, file);
        let (size, first) = match self.storage().read_all(&name, WHOLE_MAX).await {
            Ok(object) => (object.len() as u64, object),
            Err(StorageError::NotFound { .. }) => return Err(ArchiveError::Absent { name: file }),
            Err(StorageError::TooLarge { size, .. }) => {
                (size, self.storage().read(&name, 0..WHOLE_MAX / 2).await?)
            }
            Err(error) => return Err(error.into()),
        };
        let header = Header::parse(self.access().writer(), Kind::Wal, &name, &first)?;
        let (digest, length) = public_of(&name, &header)?;
        let opener = Opener::new(self.access(), Kind::Wal, &name, &header)?;
        if length > MAX_WAL_FILE {
            return Err(SealError::Content { name, what: "length" }.into());
        }
        let mut reader = Reader {
            name: name.clone(),
            opener: Arc::new(opener),
            threads,
            number: 0,
            info: None,
            digest: Box::new(self.digester().content_hasher()),
            came: 0,
            length,
            sink,
        };
        let mut at = first.len() as u64;
        let mut part = first.slice(header.len..);
        loop {
            let is_end = at == size;
            let passed = tokio::task::spawn_blocking(move || {
                let rest = reader.pass(&part, is_end).map(|used| part.slice(used..));
                (reader, rest)
            });
            let (back, rest) = passed.await.expect("opening does not panic and is not cancelled");
            reader = back;
            let rest = rest.map_err(|unread| unread.into_error(&file))?;
            if is_end {
                break;
            }
            let end = size.min(at + WHOLE_MAX / 2);
            let more = self.storage().read(&name, at..end).await?;
            at = end;
            part = joined(rest, more);
        }
        let bad = |what| SealError::Content { name: name.clone(), what };
        let info = reader.info.ok_or_else(|| bad("description"))?;
        let found = *reader.digest.finalize().as_bytes();
        if reader.came != length || found != digest || info.name != file.to_string() {
            return Err(bad("digest").into());
        }
        Ok(FetchedWal { info, digest, sink: reader.sink })
    }
}

fn joined(rest: Bytes, more: Bytes) -> Bytes {
    let mut part = BytesMut::with_capacity(rest.len() + more.len());
    part.extend_from_slice(&rest);
    part.extend_from_slice(&more);
    part.freeze()
}

/// Why a content could not be handed on.
enum Unread {
    Seal(SealError),
    Sink(io::Error),
}

impl Unread {
    fn into_error(self, file: &WalName) -> ArchiveError {
        match self {
            Self::Seal(error) => error.into(),
            Self::Sink(source) => ArchiveError::Content { name: *file, source },
        }
    }
}

/// A place in an object that moves from part to part.
struct Reader<S> {
    name: ObjectName,
    opener: Arc<Opener>,
    threads: usize,
    /// Of the next frame.
    number: u64,
    info: Option<WalInfo>,
    digest: Box<blake3::Hasher>,
    came: u64,
    length: u64,
    sink: S,
}

/// A frame in a part of an object.
struct Frame {
    number: u64,
    range: Range<usize>,
    last: bool,
}

/// A frame's content on its way to its turn.
type Opened = (u64, Result<Vec<u8>, SealError>);

impl<S: WalSink> Reader<S> {
    /// Hands on the frames that are whole in `part`; returns how many bytes they have. A part that ends the object has
    /// nothing behind them.
    fn pass(&mut self, part: &[u8], is_end: bool) -> Result<usize, Unread> {
        let (mut frames, used) = self.frames(part, is_end).map_err(Unread::Seal)?;
        let is_start = self.number == 0;
        self.number += frames.len() as u64;
        if is_start && let Some(first) = frames.next() {
            self.read_info(part, &first).map_err(Unread::Seal)?;
        }
        let others = self.threads.saturating_sub(1).min(frames.len());
        if others == 0 {
            let (mut codec, mut plain) = (Codec::new(1), Vec::new());
            for frame in frames {
                open(&self.opener, &self.name, part, &frame, &mut codec, &mut plain).map_err(Unread::Seal)?;
                self.hand_on(&plain)?;
            }
            return Ok(used);
        }
        self.pass_with(others, part, frames)?;
        Ok(used)
    }

    /// The frames of a part, and how many bytes they have.
    fn frames(&self, part: &[u8], is_end: bool) -> Result<(IntoIter<Frame>, usize), SealError> {
        let (mut list, mut at, mut number) = (Vec::new(), 0, self.number);
        let wrong = || SealError::Length { name: self.name.clone() };
        while let Some(length) = part[at..].first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            if !(TAG_LEN..=MAX_FRAME + TAG_LEN).contains(&length) {
                return Err(wrong());
            }
            let range = at + 4..at + 4 + length;
            if range.end > part.len() {
                break;
            }
            at = range.end;
            list.push(Frame { number, range, last: is_end && at == part.len() });
            number += 1;
        }
        if is_end && (at != part.len() || list.is_empty()) {
            return Err(wrong());
        }
        Ok((list.into_iter(), at))
    }

    fn read_info(&mut self, part: &[u8], frame: &Frame) -> Result<(), SealError> {
        let mut bytes = part[frame.range.clone()].to_vec();
        let plain = self.opener.open_in_place(0, &mut bytes, frame.last)?;
        let bad = |_| SealError::Content { name: self.name.clone(), what: "description" };
        self.info = Some(WalInfo::decode(&*plain).map_err(bad)?);
        Ok(())
    }

    fn hand_on(&mut self, plain: &[u8]) -> Result<(), Unread> {
        self.came += plain.len() as u64;
        if self.came > self.length {
            let name = self.name.clone();
            return Err(Unread::Seal(SealError::Content { name, what: "length" }));
        }
        self.digest.update(plain);
        self.sink.take(plain).map_err(Unread::Sink)
    }

    /// Opens frames on `others` threads, and hands them on from this one.
    fn pass_with(&mut self, others: usize, part: &[u8], frames: IntoIter<Frame>) -> Result<(), Unread> {
        let mut number = frames.as_slice().first().map_or(0, |frame| frame.number);
        let (opener, name) = (self.opener.clone(), self.name.clone());
        let frames = &Mutex::new(frames);
        // As many frames are open at once as there are buffers.
        let (give_back, buffers) = channel::<Vec<u8>>();
        let buffers = &Mutex::new(buffers);
        let (opener, name) = (&opener, &name);
        std::thread::scope(move |scope| {
            let (sender, opened) = channel::<Opened>();
            (0..2 * others + 1).for_each(|_| drop(give_back.send(Vec::new())));
            for _ in 0..others {
                let sender = sender.clone();
                scope.spawn(move || open_all(opener, name, part, frames, buffers, &sender));
            }
            drop(sender);
            let mut early = BTreeMap::new();
            for (at, plain) in opened {
                early.insert(at, plain);
                while let Some(plain) = early.remove(&number) {
                    let plain = plain.map_err(Unread::Seal)?;
                    self.hand_on(&plain)?;
                    number += 1;
                    let _ = give_back.send(plain);
                }
            }
            Ok(())
        })
    }
}

/// Opens frame after frame. Whoever takes a frame has a buffer already, so that the frame whose turn it is never waits
/// for one.
fn open_all(
    opener: &Opener,
    name: &ObjectName,
    part: &[u8],
    frames: &Mutex<IntoIter<Frame>>,
    buffers: &Mutex<Receiver<Vec<u8>>>,
    sender: &Sender<Opened>,
) {
    let mut codec = Codec::new(1);
    loop {
        let buffer = buffers.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut plain) = buffer else { return };
        let frame = frames.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(frame) = frame else { return };
        let opened = open(opener, name, part, &frame, &mut codec, &mut plain);
        if sender.send((frame.number, opened.map(|()| plain))).is_err() {
            return;
        }
    }
}

fn open(
    opener: &Opener,
    name: &ObjectName,
    part: &[u8],
    frame: &Frame,
    codec: &mut Codec,
    plain: &mut Vec<u8>,
) -> Result<(), SealError> {
    let bad = |what| SealError::Content { name: name.clone(), what };
    let mut bytes = part[frame.range.clone()].to_vec();
    let stored = opener.open_in_place(frame.number, &mut bytes, frame.last)?;
    let (head, stored) = stored.split_first_chunk_mut::<5>().ok_or_else(|| bad("frame"))?;
    let [encoding, length @ ..] = *head;
    let encoding = Encoding::from_byte(encoding).ok_or_else(|| bad("encoding"))?;
    let length = u32::from_le_bytes(length) as usize;
    codec.decode(encoding, stored, length, plain).map_err(|_| bad("frame length"))
}
