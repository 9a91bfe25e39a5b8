//! Reading pages of the source: chunks are opened, checked, and kept for the next pages that stand in them.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use repository::chunk::Codec;
use repository::content::Extent;
use repository::moved::{MOVES_MAX, Moved, is_absent_pack};
use repository::pack::OpenPack;
use repository::{PackId, Repository, RepositoryError, layout};

/// Opened chunks that are kept, of at most 1 MiB each; twice what is read ahead.
const CHUNKS: usize = 32;
/// Opened packs that are kept; a table has at most 1 MiB, and a tenth of that as a rule. A span of a logical backup's file has
/// rows in so many at most.
const PACKS: usize = 32;
/// Records of moved packs that are kept.
const MOVES: usize = 16;
/// Chunks, and stored bytes, that are read by one request.
const AHEAD_CHUNKS: u32 = 16;
const AHEAD_BYTES: u64 = 8 << 20;

pub(crate) struct Reader {
    source: Arc<Repository>,
    packs: LruCache<PackId, Arc<OpenPack>>,
    chunks: LruCache<(PackId, u32), Arc<Vec<u8>>>,
    /// Packs that are absent, so that they are asked for once.
    moves: LruCache<PackId, Arc<Moved>>,
    at_once: u32,
    codec: Codec,
    /// Stored bytes that were read.
    pub(crate) bytes_read: u64,
}

impl Reader {
    pub(crate) fn new(source: Arc<Repository>) -> Self {
        Self::with_chunks(source, CHUNKS, AHEAD_CHUNKS)
    }

    /// A reader that keeps so many chunks, and reads at most `at_once` of them by one request.
    pub(crate) fn with_chunks(source: Arc<Repository>, chunks: usize, at_once: u32) -> Self {
        let room = |count| NonZeroUsize::new(count).expect("not zero");
        Self {
            source,
            packs: LruCache::new(room(PACKS)),
            chunks: LruCache::new(room(chunks)),
            at_once,
            moves: LruCache::new(room(MOVES)),
            codec: Codec::new(1),
            bytes_read: 0,
        }
    }

    /// The bytes of `at`, which stands in one chunk, wherever that was moved to. `ahead` is what will be asked for next.
    pub(crate) async fn read(&mut self, at: Extent, ahead: &[Extent]) -> Result<Vec<u8>, RepositoryError> {
        let (mut open, mut bytes) = (vec![(at, 0)], Vec::with_capacity(at.length as usize));
        while let Some((piece, moves)) = open.pop() {
            let known = self.moves.get(&piece.pack).filter(|_| moves < MOVES_MAX).cloned();
            if let Some(moved) = known {
                open.extend(moved.forward(piece)?.into_iter().rev().map(|piece| (piece, moves + 1)));
                continue;
            }
            let chunk = match self.chunk(piece.pack, piece.chunk, ahead).await {
                Err(absent) if is_absent_pack(&absent, piece.pack) && moves < MOVES_MAX => {
                    let moved = self.source.moved_or(piece.pack, absent).await?;
                    self.moves.put(piece.pack, moved);
                    open.push((piece, moves));
                    continue;
                }
                other => other?,
            };
            let start = piece.offset as usize;
            let found = chunk.get(start..start + piece.length as usize);
            let missing = || RepositoryError::Missing {
                pack: piece.pack,
                what: format!("end of chunk {}", piece.chunk),
            };
            bytes.extend_from_slice(found.ok_or_else(missing)?);
        }
        Ok(bytes)
    }

    async fn chunk(
        &mut self,
        pack: PackId,
        number: u32,
        ahead: &[Extent],
    ) -> Result<Arc<Vec<u8>>, RepositoryError> {
        if let Some(plain) = self.chunks.get(&(pack, number)) {
            return Ok(plain.clone());
        }
        let open = match self.packs.get(&pack) {
            Some(open) => open.clone(),
            None => {
                let open = Arc::new(self.source.open_pack(pack, None).await?);
                self.packs.put(pack, open.clone());
                open
            }
        };
        let chunks = &open.table.chunks;
        let missing = || RepositoryError::Missing { pack, what: format!("chunk {number}") };
        let first = chunks.get(number as usize).ok_or_else(missing)?.offset;
        let end =
            |chunk: u32| chunks.get(chunk as usize).map(|info| info.offset + u64::from(info.stored_len));
        let mut last = number;
        for piece in ahead.iter().filter(|piece| piece.pack == pack) {
            if piece.chunk == last + 1
                && piece.chunk < number + self.at_once
                && end(piece.chunk).is_some_and(|end| end - first <= AHEAD_BYTES)
            {
                last = piece.chunk;
            }
        }
        let range = first..end(last).ok_or_else(missing)?;
        self.bytes_read += range.end - range.start;
        let mut sealed = self.source.storage().read(&layout::pack(pack), range).await?.to_vec();
        for chunk in (number..=last).rev() {
            // What is copied is checked: the target must not give a damaged page a good digest.
            let plain =
                open.chunk_within(chunk, first, &mut sealed, &mut self.codec, self.source.digester())?;
            self.chunks.put((pack, chunk), Arc::new(plain));
        }
        self.chunks.get(&(pack, number)).cloned().ok_or_else(missing)
    }
}
