//! Which blocks of which relations may have changed, in little memory.

use std::collections::{HashMap, HashSet};

use crate::datadir::{Fork, RelationFile, Tablespace, first_block};

/// Blocks of one chunk: 512 MiB of a relation.
pub(super) const CHUNK_BLOCKS: u32 = 1 << 16;
/// Words of a chunk's bitmap; so many numbers take as much.
pub(super) const CHUNK_WORDS: usize = CHUNK_BLOCKS as usize / 16;
/// What all bitmaps and numbers may take. 32 MiB tell of 2 TiB with changes everywhere, or of 16 million blocks far apart;
/// what does not fit counts as changed as a whole.
const MAX_BYTES: usize = 32 << 20;
/// What a relation takes beside its chunks, about.
const RELATION_BYTES: usize = 128;

/// `pg_default` and `pg_global`, `catalog/pg_tablespace.dat`.
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// A relation as the WAL names it; with the relfilenode 0 a whole database in one tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationKey {
    /// The tablespace's number.
    pub tablespace: u32,
    /// The database's; 0 for relations that belong to all.
    pub database: u32,
    /// The number in the file's name.
    pub relfilenode: u32,
}

impl RelationKey {
    /// The relation that a file is part of.
    pub fn of(file: &RelationFile) -> Self {
        let tablespace = match file.tablespace {
            Tablespace::Default => DEFAULT_TABLESPACE,
            Tablespace::Global => GLOBAL_TABLESPACE,
            Tablespace::Oid(oid) => oid,
        };
        Self { tablespace, database: file.database.unwrap_or(0), relfilenode: file.relfilenode }
    }
}

/// The changed blocks of relations' main forks.
///
/// Of the other forks nothing is kept, as if they had always changed: the free space map is not in the WAL, the rest is
/// small.
#[derive(Debug)]
pub struct ChangedBlocks {
    relations: HashMap<RelationKey, Relation>,
    /// Databases of which everything has changed, by tablespace and number.
    databases: HashSet<(u32, u32)>,
    bytes: usize,
    max_bytes: usize,
}

/// The changed blocks of one file.
#[derive(Debug, Clone, Copy)]
pub struct FileChanges<'c> {
    /// The number of its first block; `None` if all of it counts as changed.
    first_block: Option<u32>,
    relation: Option<&'c Relation>,
}

impl FileChanges<'_> {
    /// Whether the block with this number in the file may have changed.
    pub fn contains(&self, block_in_file: u32) -> bool {
        match self.first_block.and_then(|first| first.checked_add(block_in_file)) {
            Some(block) => self.relation.is_some_and(|relation| relation.contains(block)),
            None => true,
        }
    }
}

#[derive(Debug)]
struct Relation {
    /// The least length that it had: whatever its later blocks hold, it is something new.
    limit: u32,
    chunks: Vec<Chunk>,
}

#[derive(Debug, Default, Clone)]
enum Chunk {
    #[default]
    None,
    /// In rising order.
    Numbers(Vec<u16>),
    /// The lowest bit of the first word is the first block.
    Bits(Box<[u16; CHUNK_WORDS]>),
    All,
}

impl Default for ChangedBlocks {
    fn default() -> Self {
        Self::with_limit(MAX_BYTES)
    }
}

impl ChangedBlocks {
    /// Nothing changed so far, and so much memory for what did.
    pub fn with_limit(max_bytes: usize) -> Self {
        Self { relations: HashMap::new(), databases: HashSet::new(), bytes: 0, max_bytes }
    }

    /// What changed in one file, of relations in files of so many blocks.
    pub fn of(&self, file: &RelationFile, blocks_per_segment: u32) -> FileChanges<'_> {
        let key = RelationKey::of(file);
        let is_whole = file.fork != Fork::Main || self.databases.contains(&(key.tablespace, key.database));
        FileChanges {
            first_block: first_block(file.segment, blocks_per_segment).filter(|_| !is_whole),
            relation: self.relations.get(&key),
        }
    }

    /// The relation had no more than `limit` blocks at some time.
    pub(super) fn shrink(&mut self, key: RelationKey, limit: u32) {
        if key.relfilenode == 0 {
            self.databases.insert((key.tablespace, key.database));
        } else if let Some(relation) = self.relation(key) {
            relation.limit = relation.limit.min(limit);
        }
    }

    /// Blocks of one chunk changed: numbers, or as many words as a bitmap has.
    pub(super) fn mark(&mut self, key: RelationKey, chunk: usize, words: &[u16]) {
        let room = self.max_bytes.saturating_sub(self.bytes);
        let Some(relation) = self.relation(key) else { return };
        let mut grown = 0;
        if relation.chunks.len() <= chunk {
            grown = (chunk + 1 - relation.chunks.len()) * size_of::<Chunk>();
            relation.chunks.resize(chunk + 1, Chunk::None);
        }
        let place = &mut relation.chunks[chunk];
        let before = place.bytes();
        place.add(words);
        if place.bytes() > before + room {
            *place = Chunk::All;
        }
        let after = place.bytes();
        self.bytes = self.bytes + grown + after - before;
    }

    /// The entry of a relation; `None` when there is no room for one more, and its whole database counts as changed.
    fn relation(&mut self, key: RelationKey) -> Option<&mut Relation> {
        if !self.relations.contains_key(&key) {
            if self.bytes + RELATION_BYTES > self.max_bytes {
                self.databases.insert((key.tablespace, key.database));
                return None;
            }
            self.bytes += RELATION_BYTES;
        }
        Some(self.relations.entry(key).or_insert(Relation { limit: u32::MAX, chunks: Vec::new() }))
    }
}

impl Relation {
    fn contains(&self, block: u32) -> bool {
        let offset = (block % CHUNK_BLOCKS) as u16;
        block >= self.limit
            || match self.chunks.get((block / CHUNK_BLOCKS) as usize) {
                None | Some(Chunk::None) => false,
                Some(Chunk::All) => true,
                Some(Chunk::Numbers(numbers)) => numbers.binary_search(&offset).is_ok(),
                Some(Chunk::Bits(bits)) => bits[usize::from(offset / 16)] >> (offset % 16) & 1 == 1,
            }
    }
}

impl Chunk {
    fn bytes(&self) -> usize {
        match self {
            Self::None | Self::All => 0,
            Self::Numbers(numbers) => numbers.capacity() * size_of::<u16>(),
            Self::Bits(_) => CHUNK_WORDS * size_of::<u16>(),
        }
    }

    fn add(&mut self, words: &[u16]) {
        let mut bits = match std::mem::take(self) {
            Self::All => {
                *self = Self::All;
                return;
            }
            Self::Bits(bits) => bits,
            Self::None if words.len() < CHUNK_WORDS => {
                *self = Self::Numbers(sorted(words.to_vec()));
                return;
            }
            Self::Numbers(mut numbers) if numbers.len() + words.len() < CHUNK_WORDS => {
                numbers.extend_from_slice(words);
                *self = Self::Numbers(sorted(numbers));
                return;
            }
            Self::Numbers(numbers) => {
                let mut bits = Box::new([0; CHUNK_WORDS]);
                set(&mut bits, &numbers);
                bits
            }
            Self::None => Box::new([0; CHUNK_WORDS]),
        };
        if words.len() == CHUNK_WORDS {
            bits.iter_mut().zip(words).for_each(|(bits, word)| *bits |= word);
        } else {
            set(&mut bits, words);
        }
        *self = Self::Bits(bits);
    }
}

fn sorted(mut numbers: Vec<u16>) -> Vec<u16> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers.shrink_to_fit();
    numbers
}

fn set(bits: &mut [u16; CHUNK_WORDS], numbers: &[u16]) {
    for number in numbers {
        bits[usize::from(number / 16)] |= 1 << (number % 16);
    }
}
