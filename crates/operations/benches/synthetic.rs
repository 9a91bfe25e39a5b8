//! A repository as a large cluster would have it after 100 days, without the cluster: for `bench/check`; and one with content, of
//! which verifying is compared with plain reading and hashing: for `bench/verify`; and one with as many packs as one likes, of
//! which pruning takes memory: for `bench/prune`.
//!
//! `synthetic metadata FOLDER`, `synthetic content FOLDER MIB` or `synthetic packs FOLDER COUNT`; the figures go to standard
//! output as JSON.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use operations::monitor::Silent;
use operations::verify::{VerifyRequest, verify};
use pg::TimelineId;
use pg::wal::{FileName, SegmentName, SegmentSize};
use repository::archive::Identity;
use repository::chunk::{Codec, MAX_CHUNK};
use repository::content::{Content, Entry, EntryKind, Extent};
use repository::description::Description;
use repository::file_list::{FileList, FileListWriter};
use repository::keys::{Slot, SlotKind};
use repository::manifest::{Manifest, PackRef, ServerRecord, Span};
use repository::pack::{PackMemory, PackWriter};
use repository::secrets::{Keyring, RepositoryId};
use repository::{ClusterName, PackId, Repository, layout};

const BACKUPS: u64 = 100;
const PACKS: usize = 5000;
const NEW_PACKS: usize = 100;
const ENTRIES: u64 = 700_000;
const PACK_BYTES: u64 = 20 << 20;
const SEGMENTS_A_DAY: u64 = 60;
const SEGMENT: u64 = 16 << 20;

type Made = Result<(), Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Made {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = PathBuf::from(&arguments[2]);
    let repository = new_repository(&folder).await?;
    match arguments[1].as_str() {
        "metadata" => metadata(&folder.join("repository"), &repository).await,
        "packs" => packs(&folder.join("repository"), &repository, arguments[3].parse()?).await,
        _ => content(&folder.join("repository"), &repository, arguments[3].parse()?).await,
    }
}

async fn new_repository(folder: &Path) -> Result<Repository, Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    let keyring = Keyring::generate(RepositoryId::random());
    let now = jiff::Timestamp::now();
    let (slot, key) = Slot::for_key(&keyring, SlotKind::KeyFile, "bench", now);
    std::fs::write(folder.join("key"), key.to_text().as_bytes())?;
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder.join("key"), std::fs::Permissions::from_mode(0o600))?;
    std::fs::create_dir_all(folder.join("repository"))?;
    let location = folder.join("repository").display().to_string().parse()?;
    let storage = storage::open(&location, &storage::Settings::default())?;
    let description = Description::new(&keyring.writer, now, true);
    Ok(Repository::create(storage, keyring, &[slot], description, None).await?)
}

fn entry(path: String, size: u64, extents: Vec<Extent>) -> Entry {
    Entry {
        path: path.into_bytes(),
        kind: EntryKind::File,
        mode: 0o600,
        size,
        mtime_ns: 1,
        ctime_ns: 1,
        inode: 1,
        crc32c: 0,
        content: Content::Inline(extents),
        target: Vec::new(),
    }
}

fn manifest(number: u64, list: &FileList, packs: Vec<PackRef>) -> Manifest {
    let start = 0x1000_0000 + number * SEGMENTS_A_DAY * SEGMENT;
    let server =
        ServerRecord { wal_segment_size: SEGMENT as u32, version_num: 150_000, ..Default::default() };
    let span = Span { start_lsn: start + 40, stop_lsn: start + 4000, timeline: 1, ..Default::default() };
    Manifest {
        id: format!("{}T020000Z-full", 20_260_000 + number),
        cluster: "main".into(),
        server: Some(server),
        span: Some(span),
        pages: list.pages.clone(),
        packs,
        ..Default::default()
    }
}

/// Manifests are real; packs and segments have names and sizes, and nothing in them.
async fn metadata(root: &Path, repository: &Repository) -> Made {
    let cluster = ClusterName::new("main")?;
    let writer = repository.access().writer();
    let mut list = FileListWriter::new(writer, repository.local(), 1, &[]);
    for number in 0..ENTRIES {
        let extent = Extent { pack: PackId([7; 16]), chunk: 1, offset: 0, length: 8192 };
        list.add_entry(entry(format!("base/5/{number:09}"), 8192, vec![extent]))?;
    }
    let mut list = list.finish()?;
    let mut lists = Vec::new();
    for pack in std::mem::take(&mut list.packs) {
        lists.push(PackRef::new(pack.id, pack.len, pack.tail_len));
        repository.store_pack(pack).await?;
    }
    let mut packs: Vec<PackId> = Vec::new();
    for number in 0..BACKUPS {
        let new = if number == 0 { PACKS } else { NEW_PACKS };
        packs.drain(..packs.len().min(new));
        for _ in 0..new {
            let id = PackId::random();
            sparse(root, layout::pack(id).as_str(), PACK_BYTES)?;
            packs.push(id);
        }
        let refs = packs.iter().map(|id| PackRef::new(*id, PACK_BYTES, 40_000));
        let manifest = manifest(number, &list, refs.chain(lists.clone()).collect());
        let predecessor = repository.predecessor(&cluster).await?;
        repository.publish(&cluster, manifest, predecessor.as_ref()).await?;
    }
    let identity = Identity { system_identifier: 1, segment_size: SEGMENT as u32, major: 15, logical: false };
    repository.bind(&cluster, &identity).await?;
    let size = SegmentSize::new(SEGMENT as u32)?;
    for number in 0..(BACKUPS + 1) * SEGMENTS_A_DAY {
        let segment = SegmentName::from_number(TimelineId::FIRST, 0x10 + number, size);
        sparse(root, layout::wal_file(&cluster, &FileName::Segment(segment)).as_str(), 1 << 20)?;
    }
    let pages = list.pages.len();
    writeln!(std::io::stdout(), "{{\"backups\": {BACKUPS}, \"list_pages\": {pages}, \"packs\": {PACKS}}}")?;
    Ok(())
}

/// Ten backups that name a tenth of `count` packs each; those have names and sizes, and nothing in them.
async fn packs(root: &Path, repository: &Repository, count: usize) -> Made {
    let cluster = ClusterName::new("main")?;
    let list = FileListWriter::new(repository.access().writer(), repository.local(), 1, &[]).finish()?;
    for first in 0..=u8::MAX {
        std::fs::create_dir_all(root.join(layout::packs_of(first)))?;
    }
    for number in 0..10 {
        let mut refs = Vec::new();
        for _ in 0..count / 10 {
            let id = PackId::random();
            std::fs::File::create(root.join(layout::pack(id).as_str()))?.set_len(PACK_BYTES)?;
            let mut named = PackRef::new(id, PACK_BYTES, 40_000);
            // All of it is in use: nothing is to be moved.
            named.live = 3 * PACK_BYTES;
            refs.push(named);
        }
        let predecessor = repository.predecessor(&cluster).await?;
        repository.publish(&cluster, manifest(number, &list, refs), predecessor.as_ref()).await?;
    }
    writeln!(std::io::stdout(), "{{\"packs\": {count}}}")?;
    Ok(())
}

fn sparse(root: &Path, name: &str, size: u64) -> std::io::Result<()> {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap())?;
    std::fs::File::create(path)?.set_len(size)
}

/// Packs of pages that compress to about a third, then the same bytes read and hashed, and verified, in turns.
async fn content(root: &Path, repository: &Repository, mib: u64) -> Made {
    let cluster = ClusterName::new("main")?;
    let writer = repository.access().writer().clone();
    let mut list = FileListWriter::new(&writer, repository.local(), 1, &[]);
    let (mut codec, memory, mut refs) = (Codec::new(1), PackMemory::unbounded(), Vec::new());
    let (mut pack, mut plain, mut digests) =
        (PackWriter::new(&writer, &memory), vec![0; MAX_CHUNK], Vec::new());
    for number in 0..mib {
        fill(&mut plain, number);
        digests.clear();
        repository.digester().pages(&plain, &mut digests);
        let chunk = pack.add_pages(&mut codec, repository.digester(), &plain, &digests)?;
        let extent = Extent { pack: pack.id(), chunk, offset: 0, length: MAX_CHUNK as u64 };
        list.add_entry(entry(format!("base/5/{number:09}"), MAX_CHUNK as u64, vec![extent]))?;
        if pack.is_full() || number + 1 == mib {
            let done = std::mem::replace(&mut pack, PackWriter::new(&writer, &memory)).finish();
            refs.push(PackRef::new(done.id, done.len, done.tail_len));
            repository.store_pack(done).await?;
        }
    }
    let mut list = list.finish()?;
    for pack in std::mem::take(&mut list.packs) {
        refs.push(PackRef::new(pack.id, pack.len, pack.tail_len));
        repository.store_pack(pack).await?;
    }
    let bytes: u64 = refs.iter().map(|pack| pack.size).sum();
    repository.publish(&cluster, manifest(0, &list, refs), None).await?;
    let (mut hashed, mut verified) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        hashed.push(hash_all(root));
        verified.push(verify_all(repository, &cluster).await?);
    }
    let (hash, verify) = (median(hashed), median(verified));
    writeln!(
        std::io::stdout(),
        "{{\"stored_mb\": {:.0}, \"plain_mb\": {mib}, \"read_and_hash_s\": {hash:.3}, \"verify_s\": {verify:.3}, \"ratio\": {:.2}}}",
        bytes as f64 / 1e6,
        hash / verify
    )?;
    Ok(())
}

/// A third of each page is noise.
fn fill(plain: &mut [u8], number: u64) {
    for (at, page) in plain.chunks_mut(8192).enumerate() {
        page.fill(at as u8);
        let mut noise =
            blake3::Hasher::new().update(&(number << 20 | at as u64).to_le_bytes()).finalize_xof();
        noise.fill(&mut page[..2700]);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Reads every pack and hashes it, on two threads.
fn hash_all(root: &Path) -> f64 {
    let folders = std::fs::read_dir(root.join("packs")).unwrap();
    let files: Vec<PathBuf> = folders
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut buffer = vec![0; 1 << 20];
                while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (mut file, mut hasher) = (std::fs::File::open(path).unwrap(), blake3::Hasher::new());
                    loop {
                        match file.read(&mut buffer).unwrap() {
                            0 => break,
                            got => drop(hasher.update(&buffer[..got])),
                        }
                    }
                    std::hint::black_box(hasher.finalize());
                }
            });
        }
    });
    began.elapsed().as_secs_f64()
}

async fn verify_all(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<f64, Box<dyn std::error::Error>> {
    let request = VerifyRequest {
        cluster: cluster.clone(),
        backups: Vec::new(),
        budget: None,
        older_than: None,
        workers: 2,
        host: "bench".into(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let began = Instant::now();
    let verified = verify(repository, &request, Arc::new(Silent)).await?;
    assert_eq!(verified.report.packs_proved, verified.report.packs, "{:?}", verified.stopped);
    Ok(began.elapsed().as_secs_f64())
}
