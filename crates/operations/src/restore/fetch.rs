//! Fetching: pack by pack in parallel, each needed range read once, each page written once where it belongs.

mod runs;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, bounded};
use repository::chunk::{Codec, MAX_CHUNK};
use repository::content::Extent;
use repository::moved::MOVES_MAX;
use repository::pack::OpenPack;
use repository::pages::pieces;
use repository::{PackId, Repository, RepositoryError};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};
use storage::{DirectFile, aligned_buffer};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub(crate) use runs::{Frame, read_run};
use runs::{Run, plan_runs};

use super::error::RestoreError;
use super::tree::Tree;
use crate::backup::display_path;
use crate::failpoint;
use crate::monitor::{Event, Monitor};

/// Requests on their way ahead of each worker.
const AHEAD: usize = 2;
/// Sealed chunks of each request that wait for their worker.
const FRAMES_AHEAD: usize = 2;
/// Files that all threads together keep open, well below the usual limit of 1024.
const OPEN_FILES: usize = 512;
/// Threads for each worker asked for: while one waits for the disk another opens and decompresses.
const THREADS: usize = 2;
/// Files of so many bytes get their room on disk before their first byte.
const ALLOCATE_MIN: u64 = 1 << 20;

/// Bytes of one file that are to be fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) extent: Extent,
    pub(crate) file: u32,
    pub(crate) file_offset: u64,
}

/// A file being restored.
#[derive(Debug)]
pub(crate) struct FileTarget {
    pub(crate) path: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) mode: u32,
}

/// A part of the restore that fits into memory: some files, and what is to be fetched for them.
#[derive(Default)]
pub(crate) struct Window {
    pub(crate) files: Vec<FileTarget>,
    pub(crate) pieces: Vec<Piece>,
}

pub(crate) struct Fetcher<'f> {
    pub(crate) repository: &'f Arc<Repository>,
    pub(crate) tail_lens: &'f HashMap<PackId, u32>,
    pub(crate) tree: &'f Tree,
    pub(crate) handle: &'f Handle,
    pub(crate) monitor: &'f dyn Monitor,
    pub(crate) workers: usize,
    /// Bytes written to files so far.
    pub(crate) written: AtomicU64,
}

struct Job<'w> {
    id: PackId,
    pack: OpenPack,
    pieces: &'w [Piece],
}

impl Fetcher<'_> {
    /// Fetches and writes everything in the window.
    pub(crate) fn run(&self, window: &mut Window) -> Result<(), RestoreError> {
        for _ in 0..=MOVES_MAX {
            window.pieces.sort_unstable_by_key(|piece| (piece.extent, piece.file, piece.file_offset));
            window.pieces = self.pieces(&window.files, &window.pieces)?;
            if window.pieces.is_empty() {
                return Ok(());
            }
        }
        let pack = window.pieces[0].extent.pack;
        let endless = RepositoryError::Missing { pack, what: "an end of its moves".into() };
        Err(pack_error(pack, &window.files, &window.pieces, endless))
    }

    /// Fetches and writes these; returns those whose packs were moved, by their new places.
    fn pieces(&self, files: &[FileTarget], all: &[Piece]) -> Result<Vec<Piece>, RestoreError> {
        let stop = AtomicBool::new(false);
        let (jobs_in, jobs_out) = bounded::<Job<'_>>(self.workers);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.workers * THREADS)
                .map(|_| {
                    let (jobs, stop) = (jobs_out.clone(), &stop);
                    scope.spawn(move || {
                        let result = Worker::new(self, files).run(&jobs, stop);
                        if result.is_err() {
                            stop.store(true, Ordering::Release);
                        }
                        // Whoever hands out jobs must not wait for a worker that has gone.
                        jobs.iter().for_each(drop);
                        result
                    })
                })
                .collect();
            drop(jobs_out);
            let handed_out = self.open_packs(files, all, &stop, |job| jobs_in.send(job).is_ok());
            drop(jobs_in);
            for worker in workers {
                worker.join().expect("a worker does not panic")?;
            }
            handed_out
        })
    }

    /// Opens each pack ahead of its turn and hands it out with the pieces that are in it.
    fn open_packs<'w>(
        &self,
        files: &[FileTarget],
        all: &'w [Piece],
        stop: &AtomicBool,
        mut hand_out: impl FnMut(Job<'w>) -> bool,
    ) -> Result<Vec<Piece>, RestoreError> {
        let mut moved = Vec::new();
        type Opening<'w> = (PackId, &'w [Piece], JoinHandle<Result<OpenPack, RepositoryError>>);
        let mut opening: VecDeque<Opening<'w>> = VecDeque::new();
        let mut groups = all.chunk_by(|a, b| a.extent.pack == b.extent.pack);
        loop {
            while opening.len() < self.workers * 2
                && let Some(group) = groups.next()
            {
                let id = group[0].extent.pack;
                let (repository, tail_len) = (self.repository.clone(), self.tail_lens.get(&id).copied());
                opening.push_back((
                    id,
                    group,
                    self.handle.spawn(async move { repository.open_pack(id, tail_len).await }),
                ));
            }
            let Some((id, pieces, task)) = opening.pop_front() else { return Ok(moved) };
            if stop.load(Ordering::Acquire) {
                return Ok(moved);
            }
            let opened = self.handle.block_on(task).expect("opening a pack does not panic");
            let failed = |source| {
                stop.store(true, Ordering::Release);
                pack_error(id, files, pieces, source)
            };
            match opened {
                Ok(pack) => {
                    if !hand_out(Job { id, pack, pieces }) {
                        return Ok(moved);
                    }
                }
                Err(absent) => moved.extend(self.forward(id, pieces, absent).map_err(failed)?),
            }
        }
    }

    /// Where the pieces of a pack are that is not there.
    fn forward(
        &self,
        id: PackId,
        pieces: &[Piece],
        absent: RepositoryError,
    ) -> Result<Vec<Piece>, RepositoryError> {
        let moved = self.handle.block_on(self.repository.moved_or(id, absent))?;
        let mut forwarded = Vec::new();
        for piece in pieces {
            let mut file_offset = piece.file_offset;
            for extent in moved.forward(piece.extent)? {
                forwarded.push(Piece { extent, file: piece.file, file_offset });
                file_offset += extent.length;
            }
        }
        Ok(forwarded)
    }
}

fn pack_error(pack: PackId, files: &[FileTarget], pieces: &[Piece], source: RepositoryError) -> RestoreError {
    let needed_for =
        pieces.first().map_or_else(String::new, |piece| display_path(&files[piece.file as usize].path));
    RestoreError::Pack { pack, needed_for, source }
}

struct Worker<'f> {
    fetcher: &'f Fetcher<'f>,
    files: &'f [FileTarget],
    codec: Codec,
    /// Room for one chunk, after some padding that aligns it.
    plain: Vec<u8>,
    padding: usize,
    open: HashMap<u32, DirectFile>,
}

impl<'f> Worker<'f> {
    fn new(fetcher: &'f Fetcher<'f>, files: &'f [FileTarget]) -> Self {
        let (mut plain, padding) = aligned_buffer(MAX_CHUNK);
        plain.resize(padding + MAX_CHUNK, 0);
        Self { fetcher, files, codec: Codec::new(1), plain, padding, open: HashMap::new() }
    }

    fn run(&mut self, jobs: &Receiver<Job<'_>>, stop: &AtomicBool) -> Result<(), RestoreError> {
        for job in jobs {
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
            self.pack(&job)?;
        }
        Ok(())
    }

    fn pack(&mut self, job: &Job<'_>) -> Result<(), RestoreError> {
        let failed = |source| pack_error(job.id, self.files, job.pieces, source);
        let mut wanted = Vec::with_capacity(job.pieces.len());
        for piece in job.pieces {
            let mut file_offset = piece.file_offset;
            for extent in pieces(&job.pack.table, piece.extent).map_err(failed)? {
                wanted.push(Piece { extent, file: piece.file, file_offset });
                file_offset += extent.length;
            }
        }
        wanted.sort_unstable_by_key(|piece| (piece.extent.chunk, piece.file, piece.file_offset));
        let mut runs = plan_runs(&job.pack, &wanted).into_iter();
        let mut coming: VecDeque<(Run, mpsc::Receiver<Frame>)> = VecDeque::new();
        loop {
            while coming.len() <= AHEAD
                && let Some(run) = runs.next()
            {
                let (frames_in, frames) = mpsc::channel(FRAMES_AHEAD);
                let (storage, name) =
                    (self.fetcher.repository.storage().clone(), repository::layout::pack(job.id));
                let ranges = run.ranges.clone();
                self.fetcher.handle.spawn(async move { read_run(&*storage, &name, ranges, frames_in).await });
                coming.push_back((run, frames));
            }
            let Some((run, frames)) = coming.pop_front() else { return Ok(()) };
            self.write_run(job, frames, &wanted[run.pieces])?;
        }
    }

    fn write_run(
        &mut self,
        job: &Job<'_>,
        mut frames: mpsc::Receiver<Frame>,
        wanted: &[Piece],
    ) -> Result<(), RestoreError> {
        for group in wanted.chunk_by(|a, b| a.extent.chunk == b.extent.chunk) {
            let number = group[0].extent.chunk;
            let info = &job.pack.table.chunks[number as usize];
            // A storage that answers with less than it was asked for breaks its contract; that is damage, no crash.
            let short =
                || RepositoryError::Missing { pack: job.id, what: format!("bytes of chunk {number}") };
            let frame = frames.blocking_recv().unwrap_or_else(|| Err(short()));
            let mut frame = frame.map_err(|error| pack_error(job.id, self.files, group, error))?;
            let plain = &mut self.plain[self.padding..][..info.plain_len as usize];
            job.pack
                .chunk(number, &mut frame, &mut self.codec, None, plain)
                .map_err(|error| pack_error(job.id, self.files, group, error.into()))?;
            for piece in group {
                self.write(piece)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, piece: &Piece) -> Result<(), RestoreError> {
        let target = &self.files[piece.file as usize];
        let failed = || RestoreError::disk("write", self.fetcher.tree.full_path(&target.path));
        let file = match self.open.entry(piece.file) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(open_target(self.fetcher.tree, target).map_err(failed())?)
            }
        };
        let start = self.padding + piece.extent.offset as usize;
        let bytes = &self.plain[start..start + piece.extent.length as usize];
        file.write_all_at(bytes, piece.file_offset).map_err(failed())?;
        if piece.file_offset == 0 {
            // Whoever writes the beginning settles the rest; a file longer than it was is cut.
            let file = file.file();
            self.fetcher.tree.settle(file, target.mode).map_err(failed())?;
            if file.metadata().map_err(failed())?.len() > target.size {
                file.set_len(target.size).map_err(failed())?;
            }
        }
        if bytes.len() as u64 == target.size {
            self.open.remove(&piece.file);
        } else if self.open.len() >= OPEN_FILES / (self.fetcher.workers * THREADS) {
            self.open.clear();
        }
        failpoint::reach("restore.piece");
        self.fetcher.written.fetch_add(piece.extent.length, Ordering::Relaxed);
        self.fetcher.monitor.event(Event::Advanced { bytes: piece.extent.length });
        Ok(())
    }
}

/// Opens a file for writing, with room for all of it: a full disk is noticed at once, and several threads write to parts of
/// it without waiting for one another.
fn open_target(tree: &Tree, target: &FileTarget) -> io::Result<DirectFile> {
    let file = tree.open_for_writing(&target.path)?;
    // What is as long as it will be has its room, or is sparse on purpose.
    if target.size >= ALLOCATE_MIN && file.metadata()?.len() < target.size {
        match retry_on_intr(|| fallocate(&file, FallocateFlags::empty(), 0, target.size)) {
            // Not on every file system.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(DirectFile::new(file))
}
