//! What a backup says of each file: its entry, and the extents that hold its content.
//!
//! Entries stand in list pages, in byte order of their paths; a large file's extents stand in map leaves, one for each 16 MiB. Both
//! name packs by an index into a small dictionary of their own, so that their bytes stay the same, and are shared with
//! the parent, as long as nothing in them changed. `docs/format.md` §5.

mod leaf;

use prost::Message;

use crate::chunk::{MAX_CHUNK, PAGE};
use crate::layout::PackId;
use crate::pack::MAX_CHUNKS;

pub use leaf::{Composed, Leaf, PieceDigest};

/// Bytes of a file that one leaf covers.
pub const LEAF_SPAN: u64 = 16 << 20;

/// A run of content: `length` bytes that begin at `offset` in the plaintext of a chunk, and go on, where the chunk ends,
/// with the first byte of the pack's next chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The pack.
    pub pack: PackId,
    /// The chunk's number in the pack.
    pub chunk: u32,
    /// Where in the chunk's plaintext, in bytes; a multiple of 8 KiB for file content, but for rows of a logical backup.
    pub offset: u32,
    /// How many bytes.
    pub length: u64,
}

/// Where a file's bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Extents in file order; files of up to 16 MiB.
    Inline(Vec<Extent>),
    /// One leaf for each 16 MiB of the file, in order; each names the bytes that hold the leaf.
    Leaves(Vec<Extent>),
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// The link of a tablespace below `pg_tblspc`.
    TablespaceLink,
}

/// One file, directory or tablespace link of a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Path below the data directory, as bytes; tablespace files are below `pg_tblspc/<oid>/`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Content bytes.
    pub size: u64,
    /// Time of the last change of content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Time of the last change of the inode, nanoseconds since 1970; with inode and size it tells an untouched file.
    pub ctime_ns: i64,
    /// Inode number on the server's filesystem.
    pub inode: u64,
    /// CRC-32C of the content, for PostgreSQL's `backup_manifest`; [`Entry::known_crc32c`] says whether it is known.
    pub crc32c: u32,
    /// Where the bytes are.
    pub content: Content,
    /// Where a tablespace link points; empty otherwise.
    pub target: Vec<u8>,
}

impl Entry {
    /// The CRC-32C of the content; `None` if the file was read only in part, whose entry has zero. A whole file that happens
    /// to have that sum counts as unknown, too.
    pub fn known_crc32c(&self) -> Option<u32> {
        (self.crc32c != 0 || self.size == 0).then_some(self.crc32c)
    }

    /// The OID of the tablespace whose link this is.
    pub fn tablespace_oid(&self) -> Option<u32> {
        let name =
            self.path.strip_prefix(b"pg_tblspc/").filter(|_| self.kind == EntryKind::TablespaceLink)?;
        std::str::from_utf8(name).ok()?.parse().ok()
    }
}

/// A path that stays below its root: relative, no empty, `.` or `..` part, no NUL, at most 4095 bytes.
pub fn is_safe_path(path: &[u8]) -> bool {
    path.len() < 4096
        && !path.contains(&0)
        && path.split(|&byte| byte == b'/').all(|part| !part.is_empty() && part != b"." && part != b"..")
}

/// What could not be read as a list page or leaf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct ContentError {
    /// What was wrong.
    pub what: &'static str,
}

#[derive(Clone, PartialEq, Message)]
struct StoredPage {
    #[prost(bytes = "vec", repeated, tag = "1")]
    packs: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<StoredEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredEntry {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint32, tag = "3")]
    mode: u32,
    #[prost(uint64, tag = "4")]
    size: u64,
    #[prost(sint64, tag = "5")]
    mtime_ns: i64,
    #[prost(sint64, tag = "6")]
    ctime_ns: i64,
    #[prost(uint64, tag = "7")]
    inode: u64,
    #[prost(fixed32, tag = "8")]
    crc32c: u32,
    /// Four numbers an extent: pack's index, chunk, offset, length.
    #[prost(uint64, repeated, tag = "9")]
    extents: Vec<u64>,
    #[prost(uint64, repeated, tag = "10")]
    leaves: Vec<u64>,
    #[prost(bytes = "vec", tag = "11")]
    target: Vec<u8>,
}

/// The packs that a page or leaf names, in order of first use.
#[derive(Default)]
struct Dictionary {
    packs: Vec<PackId>,
}

impl Dictionary {
    fn index(&mut self, pack: PackId) -> u64 {
        // Runs name the same pack again and again: look from the end.
        let found = self.packs.iter().rposition(|known| *known == pack);
        found.unwrap_or_else(|| {
            self.packs.push(pack);
            self.packs.len() - 1
        }) as u64
    }

    fn flatten(&mut self, extents: &[Extent]) -> Vec<u64> {
        let mut numbers = Vec::with_capacity(extents.len() * 4);
        for extent in extents {
            let pack = self.index(extent.pack);
            numbers.extend([pack, u64::from(extent.chunk), u64::from(extent.offset), extent.length]);
        }
        numbers
    }

    fn stored(self) -> Vec<Vec<u8>> {
        self.packs.iter().map(|pack| pack.0.to_vec()).collect()
    }

    fn read(stored: &[Vec<u8>]) -> Result<Self, ContentError> {
        let pack =
            |bytes: &Vec<u8>| bytes[..].try_into().map(PackId).map_err(|_| ContentError { what: "pack id" });
        Ok(Self { packs: stored.iter().map(pack).collect::<Result<_, _>>()? })
    }

    /// Extents of four numbers each, and the sum of their lengths.
    fn unflatten(&self, numbers: &[u64]) -> Result<(Vec<Extent>, u64), ContentError> {
        let bad = ContentError { what: "extent" };
        if !numbers.len().is_multiple_of(4) {
            return Err(bad);
        }
        let mut total = 0u64;
        let mut extents = Vec::with_capacity(numbers.len() / 4);
        for quad in numbers.chunks_exact(4) {
            let pack = usize::try_from(quad[0]).ok().and_then(|index| self.packs.get(index));
            let (Some(&pack), true, true) = (pack, quad[1] < MAX_CHUNKS as u64, quad[2] < MAX_CHUNK as u64)
            else {
                return Err(bad);
            };
            total = total.checked_add(quad[3]).filter(|_| quad[3] > 0).ok_or(bad.clone())?;
            extents.push(Extent { pack, chunk: quad[1] as u32, offset: quad[2] as u32, length: quad[3] });
        }
        Ok((extents, total))
    }
}

/// A list page's stored form.
pub fn encode_page(entries: &[Entry]) -> Vec<u8> {
    let mut dictionary = Dictionary::default();
    let entries = entries.iter().map(|entry| store_entry(entry, &mut dictionary)).collect();
    StoredPage { packs: dictionary.stored(), entries }.encode_to_vec()
}

fn store_entry(entry: &Entry, dictionary: &mut Dictionary) -> StoredEntry {
    let (extents, leaves) = match &entry.content {
        Content::Inline(extents) => (dictionary.flatten(extents), Vec::new()),
        Content::Leaves(leaves) => (Vec::new(), dictionary.flatten(leaves)),
    };
    StoredEntry {
        path: entry.path.clone(),
        kind: match entry.kind {
            EntryKind::File => 0,
            EntryKind::Directory => 1,
            EntryKind::TablespaceLink => 2,
        },
        mode: entry.mode,
        size: entry.size,
        mtime_ns: entry.mtime_ns,
        ctime_ns: entry.ctime_ns,
        inode: entry.inode,
        crc32c: entry.crc32c,
        extents,
        leaves,
        target: entry.target.clone(),
    }
}

/// Reads a list page; paths, lengths and kinds are checked, so that nothing read here can lead outside a target.
pub fn decode_page(bytes: &[u8]) -> Result<Vec<Entry>, ContentError> {
    let page = StoredPage::decode(bytes).map_err(|_| ContentError { what: "list page" })?;
    let dictionary = Dictionary::read(&page.packs)?;
    page.entries.into_iter().map(|entry| read_entry(entry, &dictionary)).collect()
}

fn read_entry(stored: StoredEntry, dictionary: &Dictionary) -> Result<Entry, ContentError> {
    if !is_safe_path(&stored.path) {
        return Err(ContentError { what: "a path that leaves its directory" });
    }
    let kind = match stored.kind {
        0 => EntryKind::File,
        1 => EntryKind::Directory,
        2 => EntryKind::TablespaceLink,
        _ => return Err(ContentError { what: "kind of entry" }),
    };
    let content = if stored.leaves.is_empty() {
        let (extents, total) = dictionary.unflatten(&stored.extents)?;
        if stored.size > LEAF_SPAN {
            return Err(ContentError { what: "a large file without leaves" });
        }
        if total != stored.size {
            return Err(ContentError { what: "extents of another length than their file" });
        }
        Content::Inline(extents)
    } else {
        let (leaves, _) = dictionary.unflatten(&stored.leaves)?;
        if leaves.len() as u64 != stored.size.div_ceil(LEAF_SPAN)
            || leaves.iter().any(|leaf| leaf.length > MAX_CHUNK as u64)
        {
            return Err(ContentError { what: "number or length of leaves" });
        }
        Content::Leaves(leaves)
    };
    if kind != EntryKind::File && stored.size != 0 {
        return Err(ContentError { what: "a directory with content" });
    }
    Ok(Entry {
        path: stored.path,
        kind,
        mode: stored.mode & 0o7777,
        size: stored.size,
        mtime_ns: stored.mtime_ns,
        ctime_ns: stored.ctime_ns,
        inode: stored.inode,
        crc32c: stored.crc32c,
        content,
        target: stored.target,
    })
}

/// Extents of one span or file, built piece by piece; pieces that follow each other in a pack become one.
#[derive(Default, Debug)]
pub struct ExtentBuilder {
    extents: Vec<Extent>,
    /// Where the last extent would go on: chunk and offset.
    next: Option<(PackId, u32, u32)>,
}

impl ExtentBuilder {
    /// Appends bytes that stand in one chunk; `chunk_len` is the chunk's plaintext length, so that a run over its end
    /// is known.
    pub fn push(&mut self, piece: Extent, chunk_len: u32) {
        let end = piece.offset + piece.length as u32;
        match self.extents.last_mut() {
            Some(last) if self.next == Some((piece.pack, piece.chunk, piece.offset)) => {
                last.length += piece.length
            }
            _ => self.extents.push(piece),
        }
        // A short last page of a file is padded in its chunk: what follows it there is not the file's.
        self.next = if !end.is_multiple_of(PAGE as u32) {
            None
        } else if end == chunk_len {
            Some((piece.pack, piece.chunk + 1, 0))
        } else {
            Some((piece.pack, piece.chunk, end))
        };
    }

    /// The extents.
    pub fn finish(self) -> Vec<Extent> {
        self.extents
    }
}

#[cfg(test)]
mod tests;
