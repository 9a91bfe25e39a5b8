//! Packs: each read by one request for its chunks, every chunk opened, decompressed and digested, and what is in it compared
//! with what the file lists say.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pg::page::{self, Verdict};
use repository::chunk::{Codec, MAX_CHUNK, PAGE};
use repository::content::Extent;
use repository::moved::is_absent_pack;
use repository::pack::{OpenPack, PackTable};
use repository::pages::pieces;
use repository::{PackId, Repository, RepositoryError, layout};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::subjects::Subjects;
use super::walk::{Piece, Pieces};
use super::{Run, VerifyError};
use crate::findings::is_damage;
use crate::monitor::{Event, Monitor};
use crate::restore::fetch::{Frame, read_run};

/// Threads for each worker asked for: while one waits for the storage another opens and decompresses.
const THREADS: usize = 2;
/// Sealed chunks that wait for their thread.
const FRAMES_AHEAD: usize = 4;

/// A page whose checksum does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadPage {
    pub(super) chunk: u32,
    pub(super) offset: u32,
    pub(super) block: u32,
    pub(super) lsn: u64,
}

/// What is wrong with a pack.
#[derive(Default)]
pub(super) struct PackState {
    /// Where its chunks are; `None` if all of it is lost.
    pub(super) table: Option<PackTable>,
    /// Why the pack cannot be opened.
    pub(super) lost: Option<String>,
    /// Chunks that are damaged, and how.
    pub(super) chunks: BTreeMap<u32, String>,
    /// File lists name what it does not have.
    pub(super) lacks: Option<String>,
    /// Its bytes are as they were stored, and a page in them is damaged.
    pub(super) pages: Vec<BadPage>,
}

impl PackState {
    /// Whether the pack itself is damaged, not only what was stored in it.
    pub(super) fn is_damaged(&self) -> bool {
        self.lost.is_some() || self.lacks.is_some() || !self.chunks.is_empty()
    }

    /// In words.
    pub(super) fn what(&self) -> String {
        let chunk = self.chunks.iter().next().map(|(number, why)| match self.chunks.len() {
            1 => format!("chunk {number}: {why}"),
            count => format!("{count} chunks; the first is {number}: {why}"),
        });
        self.lost.clone().or(chunk).or(self.lacks.clone()).unwrap_or_default()
    }
}

/// The packs that something is wrong with.
pub(super) type DamagedPacks = BTreeMap<PackId, PackState>;

/// What came of one pack.
type Outcome = (PackId, u64, Result<Seen, RepositoryError>);

#[derive(Default)]
struct Seen {
    state: PackState,
    /// Pages whose checksum was looked at.
    pages: u64,
    /// It is gone because its pages were moved since the run began; nothing is known of them.
    is_moved: bool,
}

/// Verifies the packs of a batch; returns those that were moved elsewhere since the run began. What was seen before it ended
/// early is in the run's look.
pub(super) async fn verify(
    run: &mut Run<'_>,
    subjects: &Subjects,
    batch: &[PackId],
    pieces: Pieces,
    damaged: &mut DamagedPacks,
) -> (Vec<PackId>, Result<(), VerifyError>) {
    let items: Vec<Item> = batch.iter().filter_map(|id| Item::of(*id, subjects, &pieces)).collect();
    let shared = Shared {
        repository: run.repository.clone(),
        items,
        next: AtomicUsize::new(0),
        stop: run.request.stop.clone(),
        failed: AtomicBool::new(false),
        monitor: run.monitor.clone(),
    };
    let (threads, handle) = (run.request.workers.max(1) * THREADS, Handle::current());
    let outcomes = tokio::task::spawn_blocking(move || shared.all(threads, &handle)).await;
    let (mut moved, mut ended) = (Vec::new(), run.check_stop());
    for (id, size, seen) in outcomes.expect("verifying does not panic") {
        match seen {
            Ok(seen) if seen.is_moved => moved.push(id),
            Ok(seen) => {
                run.report.bytes_read += size;
                run.report.pages_verified += seen.pages - (seen.state.pages.len() as u64).min(seen.pages);
                if !seen.state.is_damaged() {
                    run.report.packs_proved += 1;
                    run.look.packs.push(id);
                }
                if seen.state.is_damaged() || !seen.state.pages.is_empty() {
                    damaged.insert(id, seen.state);
                }
            }
            Err(error) => ended = Err(error.into()),
        }
    }
    (moved, ended)
}

struct Item {
    id: PackId,
    size: u64,
    tail_len: Option<u32>,
    pieces: Vec<Piece>,
}

impl Item {
    fn of(id: PackId, subjects: &Subjects, pieces: &Pieces) -> Option<Self> {
        let pack = subjects.packs.get(&id)?;
        let pieces = pieces.get(&id).cloned().unwrap_or_default();
        Some(Self { id, size: pack.size, tail_len: pack.tail_len, pieces })
    }
}

struct Shared {
    repository: Arc<Repository>,
    items: Vec<Item>,
    next: AtomicUsize,
    stop: Arc<AtomicBool>,
    failed: AtomicBool,
    monitor: Arc<dyn Monitor>,
}

impl Shared {
    fn all(&self, threads: usize, handle: &Handle) -> Vec<Outcome> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| Worker::new(self, handle).run())).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("a worker does not panic")).collect()
        })
    }

    fn take(&self) -> Option<&Item> {
        if self.stop.load(Ordering::Acquire) || self.failed.load(Ordering::Acquire) {
            return None;
        }
        self.items.get(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

struct Worker<'s> {
    shared: &'s Shared,
    handle: &'s Handle,
    codec: Codec,
    plain: Vec<u8>,
}

impl<'s> Worker<'s> {
    fn new(shared: &'s Shared, handle: &'s Handle) -> Self {
        Self { shared, handle, codec: Codec::new(1), plain: vec![0; MAX_CHUNK] }
    }

    fn run(mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some(item) = self.shared.take() {
            let mut seen = self.look(item);
            // Damage that a second look does not see was on the way, not in the storage.
            if seen.as_ref().is_ok_and(|seen| seen.state.is_damaged()) {
                seen = self.look(item);
            }
            if seen.is_err() {
                self.shared.failed.store(true, Ordering::Release);
            }
            self.shared.monitor.event(Event::Advanced { bytes: item.size });
            outcomes.push((item.id, item.size, seen));
        }
        outcomes
    }

    /// Reads a pack; `Err` only if it could not be looked at.
    fn look(&mut self, item: &Item) -> Result<Seen, RepositoryError> {
        let repository = &self.shared.repository;
        let pack = match self.handle.block_on(repository.open_pack(item.id, item.tail_len)) {
            Ok(pack) => pack,
            Err(error) if is_damage(&error) => {
                let is_moved = is_absent_pack(&error, item.id)
                    && self.handle.block_on(repository.moved(item.id))?.is_some();
                let lost = (!is_moved).then(|| error.to_string());
                let state = PackState { lost, ..PackState::default() };
                return Ok(Seen { state, pages: 0, is_moved });
            }
            Err(error) => return Err(error),
        };
        let mut seen = Seen::default();
        let by_chunk = cut(item, &pack.table, &mut seen.state);
        let name = layout::pack(item.id);
        let end = pack.table.chunks.last().map_or(0, |last| last.offset + u64::from(last.stored_len));
        let found =
            item.tail_len.map(|tail_len| end + u64::from(tail_len)).filter(|found| *found != item.size);
        if let Some(found) = found {
            seen.state.lost = Some(format!("the pack has {found} bytes instead of {}", item.size));
            return Ok(seen);
        }
        let chunks = pack.table.chunks.iter();
        let ranges: Vec<_> =
            chunks.map(|info| info.offset..info.offset + u64::from(info.stored_len)).collect();
        let (frames_in, mut frames) = mpsc::channel::<Frame>(FRAMES_AHEAD);
        let storage = repository.storage().clone();
        self.handle.spawn(async move { read_run(&*storage, &name, ranges, frames_in).await });
        for number in 0..pack.table.chunks.len() as u32 {
            let frame = frames.blocking_recv().unwrap_or_else(|| {
                Err(RepositoryError::Missing { pack: item.id, what: format!("bytes of chunk {number}") })
            });
            match frame {
                Ok(mut frame) => {
                    if let Err(why) = self.chunk(&pack, number, &mut frame) {
                        seen.state.chunks.insert(number, why);
                    } else if let Some(list) = by_chunk.get(&number) {
                        self.pages(number, list, &mut seen);
                    }
                }
                // Nothing comes after this one.
                Err(error) if is_damage(&error) => {
                    let rest = number..pack.table.chunks.len() as u32;
                    seen.state.chunks.extend(rest.map(|number| (number, error.to_string())));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if seen.state.is_damaged() || !seen.state.pages.is_empty() {
            seen.state.table = Some(pack.table);
        }
        Ok(seen)
    }

    /// Opens a chunk and compares it with what the table says of it and of each of its pages.
    fn chunk(&mut self, pack: &OpenPack, number: u32, frame: &mut [u8]) -> Result<(), String> {
        let info = &pack.table.chunks[number as usize];
        let plain = &mut self.plain[..info.plain_len as usize];
        pack.chunk(number, frame, &mut self.codec, None, plain).map_err(|error| error.to_string())?;
        let (mut page, mut is_same) = (0, true);
        let digest = self.shared.repository.digester().chunk(plain, |found| {
            is_same &= pack.table.page(number, page).is_none_or(|stored| stored == found);
            page += 1;
        });
        match (digest == info.digest, is_same) {
            (true, true) => Ok(()),
            (false, _) => Err("its content has another digest than the pack's table says".to_owned()),
            (true, false) => Err("the pack's table has other digests of its pages".to_owned()),
        }
    }

    /// Checks the checksums of the relation pages in an opened chunk.
    fn pages(&self, chunk: u32, list: &[(Extent, u32)], seen: &mut Seen) {
        for (extent, first) in list {
            let start = extent.offset as usize;
            let bytes = &self.plain[start..start + extent.length as usize];
            for (number, page) in bytes.chunks_exact(PAGE).enumerate() {
                let block = first.wrapping_add(number as u32);
                seen.pages += 1;
                if let Verdict::Mismatch { lsn, .. } = page::verify(page, block) {
                    let offset = extent.offset + (number * PAGE) as u32;
                    seen.state.pages.push(BadPage { chunk, offset, block, lsn });
                }
            }
        }
    }
}

/// The pieces of relations, cut at the ends of chunks, by chunk. What the table does not have is noted.
fn cut(item: &Item, table: &PackTable, state: &mut PackState) -> HashMap<u32, Vec<(Extent, u32)>> {
    let mut by_chunk: HashMap<u32, Vec<(Extent, u32)>> = HashMap::new();
    for piece in &item.pieces {
        let Piece { chunk, offset, length, block } = *piece;
        match pieces(table, Extent { pack: item.id, chunk, offset, length }) {
            Ok(cut) => {
                let Some(mut block) = block else { continue };
                for extent in cut {
                    by_chunk.entry(extent.chunk).or_default().push((extent, block));
                    block = block.wrapping_add((extent.length / PAGE as u64) as u32);
                }
            }
            Err(error) => state.lacks = Some(error.to_string()),
        }
    }
    by_chunk
}
