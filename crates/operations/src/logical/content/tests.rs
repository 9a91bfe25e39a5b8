mod generations;

use proptest::prelude::*;
use repository::content::LEAF_SPAN;
use repository::description::Description;
use repository::manifest::Manifest;
use repository::secrets::{Access, Keyring, RepositoryId};
use storage::Memory;
use tokio::runtime::Runtime;

use super::*;
use crate::backup::earlier::{Earlier as EarlierBackup, EarlierPacks};
use crate::backup::live::pack_refs;
use crate::logical::FileReader;
use crate::logical::rows::{MAX_PIECE, RowSum};

const PATH: &str = "databases/d/rows/s/t/000000";

/// A repository in memory, and a runtime that waits for it.
struct Room {
    runtime: Runtime,
    repository: Arc<Repository>,
}

/// What storing a file left.
struct Stored {
    manifest: Manifest,
    sum: RowSum,
    new: u64,
    read_back: u64,
    leaves: usize,
}

impl Room {
    fn new() -> Self {
        let keyring = Keyring::generate(RepositoryId::random());
        let description = Description::new(&keyring.writer, jiff::Timestamp::now(), true);
        let storage = Arc::new(Memory::default());
        let repository = Repository::assemble(storage, description, Access::Full(keyring), None);
        Self { runtime: Runtime::new().unwrap(), repository: Arc::new(repository) }
    }

    /// Stores a file of these rows, after a backup that has it as it was before.
    fn store(&self, rows: &[Vec<u8>], before: Option<&Stored>) -> Stored {
        let manifests: Vec<Manifest> = before.map(|stored| stored.manifest.clone()).into_iter().collect();
        let stood_on = EarlierBackup { manifests: manifests.clone(), trust_times: false, is_parent: true };
        let reading = EarlierPacks::read(&self.repository, std::slice::from_ref(&stood_on));
        let packs = self.runtime.block_on(reading).unwrap();
        let tail_lens = packs.references.iter().map(|(id, pack)| (*id, pack.tail_len)).collect();
        let earlier = Earlier { manifests, lost: packs.lost.clone(), tail_lens };
        let memory = PackMemory::bounded(64 << 20);
        let handle = self.runtime.handle().clone();
        let shared = Shared::new(&self.repository, &earlier, &[], 1, memory, handle);
        let mut sink = Sink::new(&shared);
        let mut file = sink.file(PATH.to_owned()).unwrap();
        rows.iter().for_each(|row| file.row(row).unwrap());
        let sum = file.finish().unwrap();
        sink.finish().unwrap();
        let finished = shared.finish().unwrap();
        let packs = pack_refs(&finished.live, &shared.uploader, &packs).unwrap();
        let manifest = Manifest { packs, pages: finished.pages, ..Manifest::default() };
        // A host that only writes cannot look.
        let can_read = self.repository.access().can_read();
        let leaves = match can_read.then(|| self.entry(&manifest).content) {
            Some(Content::Leaves(leaves)) => leaves.len(),
            _ => 0,
        };
        let read_back = shared.read_back.load(Ordering::Relaxed);
        Stored { manifest, sum, new: finished.totals.bytes_new, read_back, leaves }
    }

    fn entry(&self, manifest: &Manifest) -> Entry {
        self.runtime.block_on(self.repository.find_entry(manifest, PATH.as_bytes())).unwrap().unwrap()
    }

    fn read(&self, stored: &Stored) -> Vec<u8> {
        let entry = self.entry(&stored.manifest);
        self.runtime.block_on(FileReader::new(&self.repository).read_all(&entry)).unwrap()
    }
}

/// Rows that differ, each of this length.
fn rows(count: u64, length: usize, from: u64) -> Vec<Vec<u8>> {
    let row = |number: u64| {
        let mut text: Vec<u8> =
            blake3::hash(&number.to_le_bytes()).to_hex().as_bytes().repeat(length / 64 + 1);
        text.truncate(length - 1);
        text.push(b'\n');
        text
    };
    (from..from + count).map(row).collect()
}

fn crc_of(rows: &[Vec<u8>]) -> u32 {
    crc32c::crc32c(&rows.concat())
}

#[test]
fn what_is_inserted_deleted_or_changed_stores_about_itself() {
    let room = Room::new();
    let mut now = rows(90_000, 200, 0);
    let mut before = room.store(&now, None);
    assert_eq!(before.new, now.concat().len() as u64);
    type Change = fn(&mut Vec<Vec<u8>>);
    let changes: [(&str, Change); 5] = [
        ("nothing", |_| ()),
        ("a row in the middle", |rows| rows.insert(45_000, b"something else\n".to_vec())),
        ("rows away", |rows| drop(rows.drain(100..110))),
        ("a changed row", |rows| rows[70_000][3] ^= 1),
        ("rows at the end", |now| now.extend(rows(10, 200, 1 << 40))),
    ];
    for (what, change) in changes {
        change(&mut now);
        let after = room.store(&now, Some(&before));
        let most = if what == "nothing" { 0 } else { 3 * MAX_PIECE as u64 };
        assert!(after.new <= most, "{what}: {} bytes are new", after.new);
        assert!(room.read(&after) == now.concat(), "{what}");
        before = after;
    }
}

/// The places of leaves are in the packs of the earlier backup: nothing of an unchanged span is stored again, not even its map.
#[test]
fn the_leaf_of_an_unchanged_span_is_named_again() {
    let room = Room::new();
    let mut now = rows(100_000, 400, 0);
    let before = room.store(&now, None);
    assert_eq!(before.leaves, 3);
    now.last_mut().unwrap()[0] ^= 1;
    let after = room.store(&now, Some(&before));
    let leaves = |stored: &Stored| match room.entry(&stored.manifest).content {
        Content::Leaves(leaves) => leaves,
        Content::Inline(_) => Vec::new(),
    };
    let (before, after) = (leaves(&before), leaves(&after));
    assert_eq!(before[..2], after[..2]);
    assert_ne!(before[2], after[2]);
}

#[test]
fn a_file_that_ends_exactly_where_a_span_ends_has_no_empty_one() {
    let room = Room::new();
    let span = LEAF_SPAN as usize;
    for (length, spans) in [(span - 1, 1), (span, 1), (span + 1, 2), (2 * span, 2)] {
        let mut bytes = rows(length as u64 / 512 + 1, 512, 9).concat();
        bytes.truncate(length - 1);
        bytes.push(b'\n');
        let lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let stored = room.store(&lines, None);
        assert_eq!(stored.leaves, spans, "{length}");
        assert!(room.read(&stored) == bytes, "{length}");
        assert_eq!(room.store(&lines, Some(&stored)).new, 0, "{length}");
    }
}

#[test]
fn one_row_of_many_pieces_and_a_file_of_nothing_come_back() {
    let room = Room::new();
    for rows in [Vec::new(), vec![b"\n".to_vec()], rows(3, 5 << 20, 0)] {
        let stored = room.store(&rows, None);
        assert!(room.read(&stored) == rows.concat());
        assert_eq!(
            (stored.sum.rows, room.entry(&stored.manifest).size),
            (rows.len() as u64, rows.concat().len() as u64)
        );
        assert_eq!(room.store(&rows, Some(&stored)).new, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, ..ProptestConfig::default() })]

    /// Whatever rows there are and were, they come back, and their sum is that of the rows.
    #[test]
    fn any_rows_come_back_whatever_was_there_before(
        lengths in prop::collection::vec(prop_oneof![4 => 1_usize..300, 1 => 1_usize..400_000], 0..60),
        cut in 0_usize..60,
    ) {
        let room = Room::new();
        let of = |lengths: &[usize]| -> Vec<Vec<u8>> {
            lengths.iter().flat_map(|length| rows(1, *length, *length as u64)).collect()
        };
        let first = of(&lengths);
        let before = room.store(&first, None);
        prop_assert!(room.read(&before) == first.concat());
        let mut second = first.clone();
        second.rotate_left(cut.min(first.len()));
        let after = room.store(&second, Some(&before));
        prop_assert!(room.read(&after) == second.concat());
        prop_assert_eq!(after.sum, before.sum);
        prop_assert_eq!(room.entry(&after.manifest).crc32c, crc_of(&second));
    }
}
