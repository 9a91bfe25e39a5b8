//! The work itself: threads take the next chunk until there is none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::index::{self, Stored};
use crate::plan::{self, CHUNK, Entry, Piece};
use crate::{Outcome, at};

const PAGE: usize = 8192;
const TAG: usize = 16;
/// Sealed chunks are gathered to about this before they are written, as a pack is.
const GATHER: usize = 8 << 20;
/// So many bytes of the one file are worth a call to the disk.
const STEP_FULL: u64 = 64 << 20;
/// So many of many files: each call writes whatever waits. More often was slower, and never was slowest.
const STEP_RESTORE: u64 = 256 << 20;
/// The keys of a benchmark protect nothing.
const KEY: [u8; 32] = [7; 32];

/// Stores the files below `from` in `to`; returns the bytes read and written.
pub fn full(from: &Path, to: &Path, threads: usize, level: i32) -> Outcome<(u64, u64)> {
    let entries = plan::entries(from)?;
    let chunks = plan::chunks(&entries);
    at(to, fs::create_dir_all(to))?;
    let path = to.join("chunks");
    let out = at(&path, File::create(&path))?;
    let (next, end) = (AtomicUsize::new(0), AtomicU64::new(0));
    let begin = || at(&path, out.sync_data());
    let mut stored = while_writing(&end, STEP_FULL, begin, || {
        in_threads(threads, || {
            let mut store = Store::new(from, &entries, &out, &end, level)?;
            while let Some((number, pieces)) = take(&next, &chunks) {
                store.chunk(number as u32, pieces)?;
            }
            store.finish()
        })
    })?;
    stored.sort_unstable_by_key(|chunk| chunk.position);
    let index = index::encode(&entries, &stored);
    let position = end.load(Ordering::Relaxed);
    at(&path, out.write_all_at(&index, position))?;
    at(&path, out.write_all_at(&position.to_le_bytes(), position + index.len() as u64))?;
    at(&path, out.sync_all())?;
    let read = entries.iter().filter_map(|entry| entry.size).sum();
    Ok((read, position + index.len() as u64 + 8))
}

/// Brings the files back from `from` into `to`; returns the bytes read and written.
pub fn restore(from: &Path, to: &Path, threads: usize) -> Outcome<(u64, u64)> {
    let path = from.join("chunks");
    let file = at(&path, File::open(&path))?;
    let size = at(&path, file.metadata())?.len();
    let mut position = [0; 8];
    at(&path, file.read_exact_at(&mut position, size.saturating_sub(8)))?;
    let position = u64::from_le_bytes(position);
    let mut bytes = vec![0; size.saturating_sub(8 + position) as usize];
    at(&path, file.read_exact_at(&mut bytes, position))?;
    let (entries, chunks) = index::decode(&bytes)?;

    at(to, fs::create_dir_all(to))?;
    for entry in &entries {
        let path = to.join(&entry.path);
        match entry.size {
            None => at(&path, fs::create_dir_all(&path))?,
            Some(0) => drop(at(&path, File::create(&path))?),
            Some(_) => {}
        }
    }
    let (next, written) = (AtomicUsize::new(0), AtomicU64::new(0));
    let folder = at(to, File::open(to))?;
    let sync = || at(to, rustix::fs::syncfs(&folder).map_err(io::Error::from));
    while_writing(&written, STEP_RESTORE, sync, || {
        in_threads(threads, || {
            let mut fetch = Fetch::new(&file, to, &entries)?;
            while let Some((_, chunk)) = take(&next, &chunks) {
                let bytes = fetch.chunk(chunk).map_err(|error| format!("chunk {}: {error}", chunk.number))?;
                written.fetch_add(bytes, Ordering::Relaxed);
            }
            Ok(Vec::<()>::new())
        })
    })?;
    sync()?;
    Ok((size, entries.iter().filter_map(|entry| entry.size).sum()))
}

/// Runs `work` on each of the threads and joins what they return.
fn in_threads<T: Send>(threads: usize, work: impl Fn() -> Outcome<Vec<T>> + Sync) -> Outcome<Vec<T>> {
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let mut all = Vec::new();
        for one in running {
            all.extend(one.join().map_err(|_| "a thread panicked")??);
        }
        Ok(all)
    })
}

/// Has the disk begin while the threads work: left alone, the kernel would wait until gigabytes are written.
fn while_writing<T>(
    written: &AtomicU64,
    step: u64,
    begin: impl Fn() -> Outcome<()> + Sync,
    work: impl FnOnce() -> Outcome<T>,
) -> Outcome<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let disk = scope.spawn(|| -> Outcome<()> {
            let mut begun = 0;
            while !done.load(Ordering::Acquire) {
                let now = written.load(Ordering::Relaxed);
                if now >= begun + step {
                    begin()?;
                    begun = now;
                } else {
                    thread::park_timeout(Duration::from_millis(20));
                }
            }
            Ok(())
        });
        let result = work();
        done.store(true, Ordering::Release);
        disk.thread().unpark();
        disk.join().map_err(|_| "a thread panicked")??;
        result
    })
}

fn take<'a, T>(next: &AtomicUsize, all: &'a [T]) -> Option<(usize, &'a T)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    Some((number, all.get(number)?))
}

fn cipher() -> Outcome<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, &KEY).map(LessSafeKey::new).map_err(|error| error.to_string())
}

fn nonce(number: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The digest of the digests of the pages; the last page may be short.
fn digest(content: &[u8], digests: &mut Vec<u8>) -> [u8; 32] {
    digests.clear();
    for page in content.chunks(PAGE) {
        digests.extend_from_slice(blake3::keyed_hash(&KEY, page).as_bytes());
    }
    *blake3::keyed_hash(&KEY, digests).as_bytes()
}

/// The file that was open last: neighbouring pieces are mostly of one file.
struct LastFile {
    number: Option<u32>,
    file: Option<File>,
}

impl LastFile {
    const NONE: Self = Self { number: None, file: None };

    fn open(&mut self, number: u32, open: impl FnOnce() -> Outcome<File>) -> Outcome<&File> {
        if self.number != Some(number) {
            self.file = Some(open()?);
            self.number = Some(number);
        }
        self.file.as_ref().ok_or_else(|| "no file".to_owned())
    }
}

/// One thread on the way forwards.
struct Store<'a> {
    root: &'a Path,
    entries: &'a [Entry],
    out: &'a File,
    end: &'a AtomicU64,
    last: LastFile,
    compressor: zstd::bulk::Compressor<'static>,
    cipher: LessSafeKey,
    plain: Vec<u8>,
    digests: Vec<u8>,
    gathered: Vec<u8>,
    waiting: Vec<Stored>,
    done: Vec<Stored>,
    packed: Vec<u8>,
}

impl<'a> Store<'a> {
    fn new(
        root: &'a Path,
        entries: &'a [Entry],
        out: &'a File,
        end: &'a AtomicU64,
        level: i32,
    ) -> Outcome<Self> {
        Ok(Self {
            root,
            entries,
            out,
            end,
            last: LastFile::NONE,
            compressor: zstd::bulk::Compressor::new(level).map_err(|error| error.to_string())?,
            cipher: cipher()?,
            plain: vec![0; CHUNK],
            digests: Vec::with_capacity(CHUNK / PAGE * 32),
            gathered: Vec::with_capacity(GATHER + 2 * CHUNK),
            waiting: Vec::new(),
            done: Vec::new(),
            packed: Vec::with_capacity(zstd::zstd_safe::compress_bound(CHUNK)),
        })
    }

    fn chunk(&mut self, number: u32, pieces: &[Piece]) -> Outcome<()> {
        let mut filled = 0;
        for piece in pieces {
            let path = &self.entries[piece.file as usize].path;
            let root = self.root;
            let file = self.last.open(piece.file, || at(path, File::open(root.join(path))))?;
            let into = &mut self.plain[filled..filled + piece.length as usize];
            at(path, file.read_exact_at(into, piece.offset))?;
            filled += piece.length as usize;
        }
        let plain = &self.plain[..filled];
        let digest = digest(plain, &mut self.digests);
        self.packed.clear();
        let packed = self.compressor.compress_to_buffer(plain, &mut self.packed);
        packed.map_err(|error| format!("compress: {error}"))?;
        let tag = self.cipher.seal_in_place_separate_tag(nonce(number), Aad::empty(), &mut self.packed);
        let tag = tag.map_err(|error| format!("seal: {error}"))?;
        self.waiting.push(Stored {
            position: self.gathered.len() as u64,
            length: (self.packed.len() + TAG) as u32,
            digest,
            number,
            pieces: pieces.to_vec(),
        });
        self.gathered.extend_from_slice(&self.packed);
        self.gathered.extend_from_slice(tag.as_ref());
        if self.gathered.len() >= GATHER { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Outcome<()> {
        let position = self.end.fetch_add(self.gathered.len() as u64, Ordering::Relaxed);
        self.out.write_all_at(&self.gathered, position).map_err(|error| format!("write: {error}"))?;
        self.gathered.clear();
        self.done.extend(self.waiting.drain(..).map(|mut chunk| {
            chunk.position += position;
            chunk
        }));
        Ok(())
    }

    fn finish(mut self) -> Outcome<Vec<Stored>> {
        self.write()?;
        Ok(self.done)
    }
}

/// One thread on the way back.
struct Fetch<'a> {
    file: &'a File,
    root: &'a Path,
    entries: &'a [Entry],
    last: LastFile,
    decompressor: zstd::bulk::Decompressor<'static>,
    cipher: LessSafeKey,
    sealed: Vec<u8>,
    plain: Vec<u8>,
    digests: Vec<u8>,
}

impl<'a> Fetch<'a> {
    fn new(file: &'a File, root: &'a Path, entries: &'a [Entry]) -> Outcome<Self> {
        Ok(Self {
            file,
            root,
            entries,
            last: LastFile::NONE,
            decompressor: zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?,
            cipher: cipher()?,
            sealed: vec![0; zstd::zstd_safe::compress_bound(CHUNK) + TAG],
            plain: Vec::with_capacity(CHUNK),
            digests: Vec::with_capacity(CHUNK / PAGE * 32),
        })
    }

    fn chunk(&mut self, chunk: &Stored) -> Outcome<u64> {
        let sealed = self.sealed.get_mut(..chunk.length as usize).ok_or("its length")?;
        self.file.read_exact_at(sealed, chunk.position).map_err(|error| format!("read: {error}"))?;
        let packed = self.cipher.open_in_place(nonce(chunk.number), Aad::empty(), sealed);
        let packed = packed.map_err(|error| format!("open: {error}"))?;
        self.plain.clear();
        let plain = self.decompressor.decompress_to_buffer(packed, &mut self.plain);
        plain.map_err(|error| format!("decompress: {error}"))?;
        if digest(&self.plain, &mut self.digests) != chunk.digest {
            return Err("its digest".to_owned());
        }
        let mut rest = self.plain.as_slice();
        for piece in &chunk.pieces {
            let (content, after) = rest.split_at_checked(piece.length as usize).ok_or("its pieces")?;
            rest = after;
            let path = self.root.join(&self.entries[piece.file as usize].path);
            let open = || at(&path, File::options().write(true).create(true).truncate(false).open(&path));
            let file = self.last.open(piece.file, open)?;
            at(&path, file.write_all_at(content, piece.offset))?;
        }
        Ok(self.plain.len() as u64)
    }
}
