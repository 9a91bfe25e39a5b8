//! Committed repositories of each format version must open for ever, and be readable without pgkeep.
//!
//! `testdata/format-1` was written by `write_testdata` below; it is never written again.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use repository::archive::{Identity, WalInfo};
use repository::chunk::{Codec, MAX_CHUNK, PAGE};
use repository::content::{Content, Entry, EntryKind, Extent, ExtentBuilder, LEAF_SPAN, Leaf};
use repository::description::Description;
use repository::file_list::FileListWriter;
use repository::keys::{Slot, SlotKey, SlotKind};
use repository::manifest::{Manifest, PackRef};
use repository::pack::{PackMemory, PackWriter};
use repository::secrets::Keyring;
use repository::{ClusterName, Repository, Secret};
use sha2::Digest as _;
use storage::Filesystem;

const PASSPHRASE: &str = "correct horse battery staple";

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/format-1")
}

fn cluster() -> ClusterName {
    ClusterName::new("main").unwrap()
}

/// Content that compresses, does not repeat and is the same each time.
fn sample(seed: u8, len: usize) -> Vec<u8> {
    let line = |number: usize| format!("{seed} row {number} {}\n", number * 2_654_435_761 % 1_000_003);
    (0..).flat_map(|number| line(number).into_bytes()).take(len).collect()
}

fn hex_digest(content: &[u8]) -> String {
    sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
struct Found {
    repository: String,
    files: BTreeMap<String, BTreeMap<String, String>>,
    wal: BTreeMap<String, String>,
}

fn expected() -> Found {
    serde_json::from_str(&std::fs::read_to_string(testdata().join("expected.json")).unwrap()).unwrap()
}

async fn open(secret: Secret) -> Repository {
    let storage = Arc::new(Filesystem::new(testdata().join("repository")));
    let description = Repository::describe(&*storage).await.unwrap();
    Repository::open(storage, description, &secret, None).await.unwrap()
}

async fn read_everything(repository: &Repository) -> Found {
    let mut found =
        Found { repository: repository.id().to_owned(), files: BTreeMap::new(), wal: BTreeMap::new() };
    for backup in repository.backups(&cluster()).await.unwrap() {
        let manifest = backup.manifest.unwrap();
        let mut entries = repository.entries(&manifest);
        while let Some(entry) = entries.next().await.unwrap() {
            if entry.kind == EntryKind::File {
                let digest = hex_digest(&read_file(repository, &entry).await);
                let path = String::from_utf8(entry.path).unwrap();
                found.files.entry(backup.id.clone()).or_default().insert(path, digest);
            }
        }
    }
    let inventory = repository.wal_inventory(&cluster()).await.unwrap();
    for segment in inventory.segments.values().flat_map(|segments| segments.keys()) {
        let (_, content) =
            repository.fetch_wal(&cluster(), &pg::wal::FileName::Segment(*segment)).await.unwrap();
        found.wal.insert(segment.to_string(), hex_digest(&content));
    }
    found
}

async fn read_file(repository: &Repository, entry: &Entry) -> Vec<u8> {
    let mut content = Vec::new();
    for index in 0..entry.size.div_ceil(LEAF_SPAN) as u32 {
        for extent in repository.span_extents(entry, index).await.unwrap() {
            let table = repository.table(extent.pack, None).await.unwrap();
            for piece in repository::pages::pieces(&table, extent).unwrap() {
                let plain = repository.read_chunk(piece.pack, piece.chunk).await.unwrap();
                content.extend_from_slice(&plain[piece.offset as usize..][..piece.length as usize]);
            }
        }
    }
    content
}

#[tokio::test]
async fn format_1_opens_with_each_of_its_secrets() {
    let key = std::fs::read_to_string(testdata().join("key")).unwrap();
    let with_key = open(Secret::Key(SlotKey::parse(&key).unwrap())).await;
    assert_eq!(read_everything(&with_key).await, expected());
    let with_passphrase = open(Secret::Passphrase(PASSPHRASE.into())).await;
    assert_eq!(with_passphrase.id(), with_key.id());
    assert_eq!(with_passphrase.identity(&cluster()).await.unwrap().unwrap().segment_size, 1 << 20);
}

#[test]
fn format_1_opens_without_pgkeep() {
    let Ok(python) = std::env::var("PGKEEP_TEST_PYTHON") else {
        eprintln!("SKIPPED: PGKEEP_TEST_PYTHON is not set; ./test sets it");
        assert!(std::env::var("CI").is_err(), "CI must run this test");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/read_repository.py");
    let output = std::process::Command::new(python)
        .arg(script)
        .arg(testdata().join("repository"))
        .arg(testdata().join("key"))
        .arg("main")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(serde_json::from_slice::<Found>(&output.stdout).unwrap(), expected());
}

/// Stores `content` as pages of full chunks; returns one list of extents for each 16 MiB.
fn store(
    pack: &mut PackWriter,
    codec: &mut Codec,
    repository: &Repository,
    content: &[u8],
) -> Vec<Vec<Extent>> {
    let mut spans = Vec::new();
    for span in content.chunks(LEAF_SPAN as usize) {
        let mut builder = ExtentBuilder::default();
        for chunk in span.chunks(MAX_CHUNK) {
            let mut plain = chunk.to_vec();
            plain.resize(chunk.len().next_multiple_of(PAGE), 0);
            let digests: Vec<_> = plain.chunks(PAGE).map(|page| repository.digester().page(page)).collect();
            let number = pack.add_pages(codec, repository.digester(), &plain, &digests).unwrap();
            let extent = Extent { pack: pack.id(), chunk: number, offset: 0, length: chunk.len() as u64 };
            builder.push(extent, plain.len() as u32);
        }
        spans.push(builder.finish());
    }
    spans
}

#[tokio::test]
#[ignore = "writes testdata/format-1, which exists already and must not change"]
async fn write_testdata() {
    let root = testdata();
    assert!(!root.exists(), "a format that was released never changes");
    std::fs::create_dir_all(root.join("repository")).unwrap();
    let keyring = Keyring::for_test_vectors(1);
    let now: jiff::Timestamp = "2026-11-22T02:00:00Z".parse().unwrap();
    let (slot, key) = Slot::for_key(&keyring, SlotKind::KeyFile, "test", now);
    let passphrase = Slot::for_passphrase(&keyring, &PASSPHRASE.into(), "test", now).unwrap();
    let storage = Arc::new(Filesystem::new(root.join("repository")));
    let description = Description::new(&keyring.writer, now, true);
    let repository =
        Repository::create(storage, keyring, &[slot, passphrase], description, None).await.unwrap();
    let identity = Identity {
        system_identifier: 7_000_000_000_000_000_001,
        segment_size: 1 << 20,
        major: 15,
        logical: false,
    };
    repository.bind(&cluster(), &identity).await.unwrap();
    write_backup(&repository).await;
    let segment: pg::wal::FileName = "000000010000000000000001".parse().unwrap();
    let content = sample(9, 1 << 20);
    let info = WalInfo {
        name: segment.to_string(),
        length: 1 << 20,
        stored_us: now.as_microsecond(),
        ..WalInfo::default()
    };
    repository.store_wal(&cluster(), &segment, &content, &info, 2).await.unwrap();
    std::fs::write(root.join("key"), format!("{}\n", *key.to_text())).unwrap();
    let found = serde_json::to_string_pretty(&read_everything(&repository).await).unwrap();
    std::fs::write(root.join("expected.json"), found + "\n").unwrap();
}

async fn write_backup(repository: &Repository) {
    let writer = repository.access().writer().clone();
    let (mut codec, mut pack) = (Codec::new(19), PackWriter::new(&writer, &PackMemory::unbounded()));
    let mut list = FileListWriter::new(&writer, repository.local(), 19, &[]);
    let sizes = [
        ("PG_VERSION", 3),
        ("base/5/1259", 3 * PAGE),
        ("base/5/16384", (LEAF_SPAN as usize) + 5 * PAGE + 17),
    ];
    let mut entries = Vec::new();
    for (seed, (path, size)) in sizes.into_iter().enumerate() {
        // The large file is mostly empty pages, to keep this folder small.
        let mut content = sample(seed as u8, size.min(1 << 20));
        content.resize(size, 0);
        let mut spans = store(&mut pack, &mut codec, repository, &content);
        let stored = if spans.len() == 1 {
            Content::Inline(spans.remove(0))
        } else {
            Content::Leaves(
                spans.iter().map(|extents| list.add_leaf(&Leaf::of(extents.clone())).unwrap()).collect(),
            )
        };
        entries.push(Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::File,
            mode: 0o600,
            size: size as u64,
            mtime_ns: 1,
            ctime_ns: 2,
            inode: seed as u64,
            crc32c: 0,
            content: stored,
            target: vec![],
        });
    }
    entries.into_iter().for_each(|entry| list.add_entry(entry).unwrap());
    let list = list.finish().unwrap();
    let mut packs = vec![pack.finish()];
    packs.extend(list.packs);
    let reference = |pack: &repository::pack::SealedPack| PackRef::new(pack.id, pack.len, pack.tail_len);
    let packs_of_manifest = packs.iter().map(reference).collect();
    for pack in packs {
        repository.store_pack(pack).await.unwrap();
    }
    let manifest = Manifest {
        id: "20261122T020000Z-full".into(),
        cluster: "main".into(),
        pages: list.pages,
        packs: packs_of_manifest,
        ..Manifest::default()
    };
    repository.publish(&cluster(), manifest, None).await.unwrap();
}
