//! X03, X05: objects forged with other keys are refused as such; crafted ones of a writer gone bad are refused within
//! bounds of memory and time.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use operations::catalogue;
use operations::monitor::Silent;
use operations::restore::{execute, plan};
use repository::chunk::Codec;
use repository::description::Description;
use repository::layout::{self, PackId};
use repository::manifest::Manifest;
use repository::pack::{PackMemory, PackWriter};
use repository::seal::{Kind, Sealer, seal_stream};
use repository::secrets::{Access, WriterCredential};
use repository::{Repository, Secret};
use scene::{Scene, chain};
use storage::{Memory, ObjectName, Storage as _};

const FORGED: &str = "20990101T000000Z-full";

/// The repository's public key and id, which its owner may have told anybody, with a writer secret of one's own.
fn impostor(scene: &Scene) -> WriterCredential {
    let writer = &scene.keyring.writer;
    let bytes = [&[2][..], &writer.repository.0, &writer.public_key, &[7; 32]].concat();
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    WriterCredential::parse(&format!("pgkeep-writer-1:{text}\n")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x03_objects_made_with_other_keys_are_refused_as_forged() {
    let scene = Scene::with(|builder| builder.wal_segment_size_mib(1)).await;
    let genuine = scene.backup(true).await;
    scene.flush_wal().await;
    // The impostor backs the same server up into a bucket of his own, and stores the same WAL.
    let (theirs, writer) = (Arc::new(Memory::default()), impostor(&scene));
    let description = Description::new(&writer, jiff::Timestamp::now(), true);
    theirs.create(&layout::description(), &[Bytes::from(description.encode())]).await.unwrap();
    let forger = Arc::new(Repository::assemble(theirs.clone(), description, Access::Write(writer), None));
    let identity = scene.repository.identity(&scene.cluster).await.unwrap().unwrap();
    forger.bind(&scene.cluster, &identity).await.unwrap();
    let pack = PackId([9; 16]);
    let mut segments = Vec::new();
    for name in scene.memory.names() {
        let last = name.as_str().rsplit('/').next().unwrap();
        if let (true, Ok(file)) = (name.as_str().contains("/wal/"), last.parse()) {
            let (info, content) = scene.repository.fetch_wal(&scene.cluster, &file).await.unwrap();
            forger.store_wal(&scene.cluster, &file, &content, &info, 1).await.unwrap();
            segments.push(file);
        }
    }
    let newer = Manifest { id: FORGED.into(), ..genuine.clone() };
    forger.publish(&scene.cluster, newer, None).await.unwrap();
    let foreign = forged_pack(&forger, pack, 1, 64);
    theirs.create(&layout::pack(pack), &[foreign]).await.unwrap();

    let bucket = Arc::new(scene.memory.snapshot());
    for name in theirs.names() {
        bucket.damage(&name, theirs.bytes(&name));
    }
    let repository = scene.readable(bucket.clone());
    let refused = |error: &dyn std::error::Error| {
        let text = chain(error);
        assert!(text.contains("other keys") || text.contains("another repository"), "{text}");
    };
    let description = Repository::describe(&*bucket).await.unwrap();
    let secret = Secret::Writer(scene.keyring.writer.clone());
    refused(&Repository::open(bucket.clone(), description, &secret, None).await.err().unwrap());
    refused(&repository.identity(&scene.cluster).await.unwrap_err());
    refused(&repository.manifest(&scene.cluster, FORGED).await.unwrap_err());
    refused(&repository.open_pack(pack, None).await.err().unwrap());
    assert!(segments.len() > 2);
    for file in &segments {
        refused(&repository.fetch_wal(&scene.cluster, file).await.unwrap_err());
    }
    // With only the manifest forged, the listing says so, and the newest genuine backup is what is restored.
    let bucket = Arc::new(scene.memory.snapshot());
    let name = layout::manifest(&scene.cluster, FORGED);
    bucket.damage(&name, theirs.bytes(&name));
    let repository = scene.readable(bucket);
    let listing = catalogue::list(&repository, &scene.cluster).await.unwrap();
    assert_eq!((listing.backups.len(), listing.damaged.len()), (1, 1));
    assert_eq!(listing.damaged[0].id, FORGED);
    let into = scene.folder.path().join("restored");
    assert_eq!(plan(repository, scene.restore_request(&into)).await.unwrap().backup, genuine.id);
}

/// A pack of one map chunk that decompresses to `plain_len` bytes and claims 1 MiB; its table claims `count` chunks.
fn forged_pack(repository: &Repository, id: PackId, count: u32, plain_len: usize) -> Bytes {
    let mut sealer = Sealer::new(repository.access().writer(), Kind::Pack, &layout::pack(id), &[]);
    let mut bytes = Vec::new();
    Codec::new(1).encode(&vec![0; plain_len], &mut bytes).unwrap();
    sealer.seal_tail(&mut bytes, 0, false);
    let (stored_len, start) = (bytes.len() as u32, bytes.len());
    bytes.push(1);
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&stored_len.to_le_bytes());
    bytes.extend_from_slice(&(1u32 << 20).to_le_bytes());
    bytes.extend_from_slice(&[1, 1]);
    bytes.extend_from_slice(&[0; 32]);
    sealer.seal_tail(&mut bytes, start, true);
    let table_len = (bytes.len() - start) as u32;
    bytes.extend_from_slice(sealer.header());
    bytes.extend_from_slice(&table_len.to_le_bytes());
    bytes.extend_from_slice(&count.min(1).to_le_bytes());
    bytes.extend_from_slice(b"PGKPACK\x01");
    bytes.into()
}

/// A field of a protobuf message: a number, or bytes.
fn number(tag: u64, value: u64) -> Vec<u8> {
    [varint(tag << 3), varint(value)].concat()
}

fn bytes(tag: u64, value: &[u8]) -> Vec<u8> {
    [varint(tag << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Most memory that this process ever held, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A bucket in which a writer gone bad put a backup whose manifest is `content`.
fn crafted(scene: &Scene, content: &[u8]) -> Arc<Memory> {
    let bucket = Arc::new(scene.memory.snapshot());
    let name: ObjectName = layout::manifest(&scene.cluster, FORGED);
    let object = seal_stream(&scene.keyring.writer, Kind::Manifest, &name, &[], content);
    bucket.damage(&name, Some(object));
    bucket
}

/// A bucket with a backup whose one list page is `page`.
async fn with_page(scene: &Scene, genuine: &Manifest, page: &[u8]) -> Arc<Repository> {
    let mut codec = Codec::new(1);
    let mut pack = PackWriter::new(&scene.keyring.writer, &PackMemory::unbounded());
    pack.add_map(&mut codec, scene.repository.digester(), page).unwrap();
    let pack = pack.finish();
    let place = [
        bytes(2, &scene.repository.digester().content(page)),
        bytes(3, &pack.id.0),
        number(6, page.len() as u64),
    ];
    let root = Manifest { id: FORGED.into(), pages: Vec::new(), ..genuine.clone() };
    let mut content = repository::backups::encode_for_tests(&root).to_vec();
    content.extend(bytes(12, &place.concat()));
    let repository = scene.readable(crafted(scene, &content));
    repository.store_pack(pack).await.unwrap();
    repository
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x05_bombs_of_a_writer_gone_bad_are_refused_in_bounded_memory_and_time() {
    let scene = Scene::with(|builder| builder.wal_segment_size_mib(1)).await;
    let genuine = scene.backup(true).await;
    let (began, base) = (Instant::now(), peak_memory());

    // A manifest of nothing but empty list elements: each byte would become forty.
    for field in [&[0x62, 0][..], &[0x6a, 0], &[0x7a, 0], &[0xa2, 1, 0], &[0xb2, 1, 0]] {
        let repository = scene.readable(crafted(&scene, &field.repeat(12 << 20)));
        assert!(repository.manifest(&scene.cluster, FORGED).await.is_err(), "{field:x?}");
    }
    let tablespaces = bytes(8, &[0x5a, 0].repeat(12 << 20));
    let repository = scene.readable(crafted(&scene, &tablespaces));
    assert!(repository.manifest(&scene.cluster, FORGED).await.is_err());

    // A pack whose chunk decompresses to more than it says, and tables that count what is not there.
    for (count, plain_len) in [(1, 64 << 20), (1025, 1 << 20), (u32::MAX, 1 << 20), (0, 1 << 20)] {
        let id = PackId::random();
        let bucket = scene.memory.snapshot();
        bucket.damage(&layout::pack(id), Some(forged_pack(&scene.repository, id, count, plain_len)));
        assert!(scene.readable(Arc::new(bucket)).read_chunk(id, 0).await.is_err(), "{count} {plain_len}");
    }

    // List pages: a million empty entries; a file of 32 PiB in one extent; one whose leaf is no leaf; paths outside.
    let pack = bytes(1, &genuine.packs[0].id().unwrap().0);
    let extents =
        |tag, numbers: &[u64]| bytes(tag, &numbers.iter().flat_map(|n| varint(*n)).collect::<Vec<u8>>());
    let file = |path: &[u8], size: u64, content: Vec<u8>| {
        [pack.clone(), bytes(2, &[bytes(1, path), number(3, 0o600), number(4, size), content].concat())]
            .concat()
    };
    let huge = 1u64 << 55;
    let pages = [
        [0x12, 0].repeat(1 << 19),
        file(b"base/huge", huge, extents(9, &[0, 0, 0, huge])),
        file(b"base/leaf", 32 << 20, extents(10, &[0, 0, 0, 64, 0, 0, 64, 64])),
        file(b"base/past", 8192, extents(9, &[0, 1023, 0, 8192])),
        file(b"base/past", 8192, extents(9, &[0, 0, (1 << 20) - 1, 8192])),
        file(b"../../outside", 0, Vec::new()),
        file(b"/etc/outside", 0, Vec::new()),
    ];
    for (at, page) in pages.iter().enumerate() {
        let repository = with_page(&scene, &genuine, page).await;
        let folder = scene::open_folder();
        let mut request = scene.restore_request(&folder.path().join("data"));
        request.backup = Some(FORGED.into());
        let plan = plan(repository, request).await.unwrap();
        assert!(execute(plan, Arc::new(Silent)).await.is_err(), "page {at}");
        assert!(!folder.path().join("data/global/pg_control").exists());
    }
    let (peak, elapsed) = (peak_memory() - base, began.elapsed());
    assert!(peak < 400 << 20, "{} MiB", peak >> 20);
    assert!(elapsed < Duration::from_secs(60), "{elapsed:?}");
}
