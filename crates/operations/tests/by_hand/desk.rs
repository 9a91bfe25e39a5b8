//! A repository in memory whose packs, pages and backups a test lays out by hand, without a server.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use operations::monitor::Silent;
use operations::prune::{PruneError, PruneReport, PruneRequest, execute, plan};
use pg::wal::FileName;
use repository::archive::{Identity, WalInfo};
use repository::chunk::{Codec, PAGE};
use repository::content::{Content, Entry, EntryKind, Extent};
use repository::description::Description;
use repository::expired::ExpiredNote;
use repository::file_list::FileListWriter;
use repository::manifest::{Manifest, PackRef, PageRef, ServerRecord, Span, Totals};
use repository::pack::{PackMemory, PackWriter};
use repository::pages::pieces;
use repository::secrets::{Access, Keyring, RepositoryId};
use repository::{ClusterName, PackId, Repository, RepositoryError};
use storage::{Memory, Storage};

pub const DAY: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a segment of WAL.
pub const SEGMENT: u64 = 1 << 20;

pub fn cluster() -> ClusterName {
    ClusterName::new("main").unwrap()
}

/// The moment at which a day of the tests begins.
pub fn day(number: u32) -> Timestamp {
    "2026-09-01T02:00:00Z".parse::<Timestamp>().unwrap() + DAY * number
}

pub fn id(number: u32) -> String {
    day(number).strftime("%Y%m%dT%H%M%SZ-full").to_string()
}

pub fn segment(number: u32) -> FileName {
    format!("0000000100000000{:08X}", number + 1).parse().unwrap()
}

pub struct Desk {
    pub memory: Arc<Memory>,
    pub keyring: Keyring,
    pub description: Description,
    /// Every pack that was stored.
    packs: HashMap<PackId, PackRef>,
}

/// A file of a backup: its path, and where its content is.
pub type File = (String, Vec<Extent>);

impl Desk {
    pub async fn new() -> Self {
        let (memory, keyring) = (Arc::new(Memory::default()), Keyring::generate(RepositoryId::random()));
        memory.set_clock(day(0));
        let description = Description::new(&keyring.writer, day(0), true);
        Repository::create(memory.clone(), keyring.clone(), &[], description.clone(), None).await.unwrap();
        Self { memory, keyring, description, packs: HashMap::new() }
    }

    /// As a host opens it that has seen nothing of it.
    pub fn host(&self) -> Arc<Repository> {
        self.over(self.memory.clone())
    }

    pub fn over(&self, storage: Arc<dyn Storage>) -> Arc<Repository> {
        let access = Access::Full(self.keyring.clone());
        Arc::new(Repository::assemble(storage, self.description.clone(), access, None))
    }

    pub fn at(&self, number: u32) {
        self.memory.set_clock(day(number));
    }

    /// Stores a pack of such chunks of such pages.
    pub async fn pack(&mut self, chunks: &[&[u64]]) -> PackId {
        let (host, mut codec) = (self.host(), Codec::new(1));
        let mut pack = PackWriter::new(&self.keyring.writer, &PackMemory::unbounded());
        for pages in chunks {
            let plain: Vec<u8> = pages.iter().flat_map(|page| page_of(*page)).collect();
            let mut digests = Vec::new();
            host.digester().pages(&plain, &mut digests);
            pack.add_pages(&mut codec, host.digester(), &plain, &digests).unwrap();
        }
        let pack = pack.finish();
        let id = pack.id;
        self.packs.insert(id, PackRef::new(id, pack.len, pack.tail_len));
        host.store_pack(pack).await.unwrap();
        id
    }

    /// Stores the list of a backup with these files, and the backup. `known` are the list pages that it may name again.
    pub async fn backup(&mut self, id: &str, files: &[File], known: &[PageRef]) -> Manifest {
        let manifest = self.unpublished(id, files, known).await;
        self.publish(&manifest).await
    }

    /// The backup itself, when all that it names was stored.
    pub async fn publish(&self, manifest: &Manifest) -> Manifest {
        let host = self.host();
        let previous = host.predecessor(&cluster()).await.unwrap();
        host.publish(&cluster(), manifest.clone(), previous.as_ref()).await.unwrap()
    }

    /// All of a backup but the manifest that makes it exist.
    pub async fn unpublished(&mut self, id: &str, files: &[File], known: &[PageRef]) -> Manifest {
        let host = self.host();
        let mut list = FileListWriter::new(&self.keyring.writer, host.local(), 1, known);
        let mut live: HashMap<PackId, u64> = HashMap::new();
        for (path, extents) in files {
            extents.iter().for_each(|extent| *live.entry(extent.pack).or_default() += extent.length);
            list.add_entry(entry(path, extents)).unwrap();
        }
        let list = list.finish().unwrap();
        for pack in list.packs {
            self.packs.insert(pack.id, PackRef::new(pack.id, pack.len, pack.tail_len));
            host.store_pack(pack).await.unwrap();
        }
        for page in &list.pages {
            let at = page.extent().unwrap();
            *live.entry(at.pack).or_default() += at.length;
        }
        let named = |(id, live)| {
            let mut pack = self.packs[&id].clone();
            pack.live = live;
            pack
        };
        let mut packs: Vec<PackRef> = live.into_iter().map(named).collect();
        packs.sort_by_key(|pack| pack.id().unwrap());
        let stop: Timestamp = time_of(id);
        let start_lsn = ((stop.as_second() - day(0).as_second()) / 86_400 + 1) as u64 * SEGMENT + 40;
        let bytes = files.iter().flat_map(|file| &file.1).map(|extent| extent.length).sum();
        Manifest {
            id: id.to_owned(),
            cluster: "main".into(),
            server: Some(ServerRecord {
                system_identifier: 7,
                wal_segment_size: SEGMENT as u32,
                ..Default::default()
            }),
            span: Some(Span {
                start_lsn,
                stop_lsn: start_lsn + 4000,
                timeline: 1,
                start_us: stop.as_microsecond() - 1_000_000,
                stop_us: stop.as_microsecond(),
                ..Default::default()
            }),
            totals: Some(Totals { files: files.len() as u64, bytes, ..Default::default() }),
            pages: list.pages,
            packs,
            ..Default::default()
        }
    }

    /// Stores the segment of WAL in which the backup of a day begins and ends.
    pub async fn wal(&self, number: u32) {
        let identity =
            Identity { system_identifier: 7, segment_size: SEGMENT as u32, major: 15, logical: false };
        self.host().bind(&cluster(), &identity).await.unwrap();
        let (name, content) = (segment(number), number.to_le_bytes());
        let info = WalInfo::new(&name, content.len() as u64, day(number));
        self.host().store_wal(&cluster(), &name, &content, &info, 1).await.unwrap();
    }

    /// Lets a backup go as expire does.
    pub async fn expire(&self, id: &str) {
        let host = self.host();
        let expired_us = host.storage_clock().await.unwrap().unwrap().as_microsecond();
        let note = ExpiredNote { expired_us, ..ExpiredNote::default() };
        host.note_expired(&cluster(), id, &note).await.unwrap();
        host.delete_manifest(&cluster(), id).await.unwrap();
    }

    pub async fn prune(&self) -> PruneReport {
        prune(&self.host()).await.unwrap()
    }

    /// Reads a backup as a restore does. Its pages, file after file, each as the number that it was made of.
    pub async fn read(&self, manifest: &Manifest) -> Result<Vec<u64>, RepositoryError> {
        let host = self.host();
        let (mut entries, mut pages) = (host.entries(manifest), Vec::new());
        while let Some(entry) = entries.next().await? {
            for extent in host.span_extents(&entry, 0).await? {
                let mut open = vec![extent];
                while let Some(extent) = open.pop() {
                    let pack = match host.open_pack(extent.pack, None).await {
                        Ok(pack) => pack,
                        Err(absent) => {
                            let moved = host.moved_or(extent.pack, absent).await?;
                            open.extend(moved.forward(extent)?.into_iter().rev());
                            continue;
                        }
                    };
                    for piece in pieces(&pack.table, extent)? {
                        let plain = host.read_chunk(piece.pack, piece.chunk).await?;
                        let bytes = &plain[piece.offset as usize..][..piece.length as usize];
                        pages.extend(bytes.chunks(PAGE).map(number_of));
                    }
                }
            }
        }
        Ok(pages)
    }

    pub fn has(&self, pack: PackId) -> bool {
        self.memory.bytes(&repository::layout::pack(pack)).is_some()
    }
}

pub async fn prune(host: &Arc<Repository>) -> Result<PruneReport, PruneError> {
    let request = PruneRequest::default();
    let planned = plan(host, &request).await?;
    execute(host, &planned, &request, "test", &Silent).await
}

/// So many pages of a chunk.
pub fn pages(pack: PackId, chunk: u32, first: u32, count: u32) -> Extent {
    Extent { pack, chunk, offset: first * PAGE as u32, length: u64::from(count) * PAGE as u64 }
}

/// A path behind which a list page ends, so that each such file has a page of its own.
pub fn ending_path(number: usize) -> String {
    let ends = |path: &String| {
        let hash = blake3::hash(path.as_bytes());
        u32::from_le_bytes(*hash.as_bytes().first_chunk().unwrap()).trailing_zeros() >= 8
    };
    (0..).map(|at| format!("base/5/{at:06}")).filter(ends).nth(number).unwrap()
}

fn entry(path: &str, extents: &[Extent]) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::File,
        mode: 0o600,
        size: extents.iter().map(|extent| extent.length).sum(),
        mtime_ns: 1,
        ctime_ns: 1,
        inode: 1,
        crc32c: 0,
        content: Content::Inline(extents.to_vec()),
        target: Vec::new(),
    }
}

/// A page that does not compress, and begins with its number.
fn page_of(number: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut page);
    page[..8].copy_from_slice(&number.to_le_bytes());
    page
}

fn number_of(page: &[u8]) -> u64 {
    let number = u64::from_le_bytes(*page.first_chunk().unwrap());
    assert_eq!(page, page_of(number), "another page");
    number
}

/// The time that an id begins with.
fn time_of(id: &str) -> Timestamp {
    jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &id[..16])
        .unwrap()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .unwrap()
        .timestamp()
}
