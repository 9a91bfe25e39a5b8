use super::*;
use crate::chunk::{Codec, Digester, MAX_CHUNK};
use crate::pack::{PackMemory, PackWriter};
use crate::secrets::Keyring;

fn table() -> PackTable {
    let writer = Keyring::for_test_vectors(1).writer;
    let (digester, mut codec) = (Digester::new(&writer), Codec::new(1));
    let mut pack = PackWriter::new(&writer, &PackMemory::unbounded());
    for plain in [vec![1; MAX_CHUNK], vec![2; 3 * PAGE]] {
        let mut digests = Vec::new();
        digester.pages(&plain, &mut digests);
        pack.add_pages(&mut codec, &digester, &plain, &digests).unwrap();
    }
    pack.add_map(&mut codec, &digester, &[3; 5000]).unwrap();
    pack.finish().table
}

fn run(chunk: u32, page: u32, pages: u32, to: u8, to_chunk: u32, to_page: u32) -> MovedRun {
    MovedRun { chunk, page, pages, to_pack: PackId([to; 16]), to_chunk, to_page }
}

#[test]
fn extents_follow_their_pages_and_what_was_not_moved_is_missing() {
    let runs = vec![run(1, 0, 2, 9, 4, 10), run(0, 126, 2, 8, 7, 3), run(2, 0, 0, 8, 1, 0)];
    let moved = Moved::decode(&Moved::new(table(), runs).encode()).unwrap();
    assert_eq!(moved.packs(), [PackId([8; 16]), PackId([9; 16])]);
    let old = PackId([1; 16]);
    let page = PAGE as u32;
    let at = |chunk, offset, length| Extent { pack: old, chunk, offset, length };
    // From the second of two moved pages over the end of the chunk into the middle of a page of the next.
    let forwarded = moved.forward(at(0, 127 * page, u64::from(page) + 100)).unwrap();
    let to = |pack: u8, chunk, offset, length| Extent { pack: PackId([pack; 16]), chunk, offset, length };
    assert_eq!(forwarded, [to(8, 7, 4 * page, u64::from(page)), to(9, 4, 10 * page, 100)]);
    assert_eq!(moved.forward(at(2, 40, 60)).unwrap(), [to(8, 1, 40, 60)]);
    for lost in [at(0, 125 * page, 10), at(1, page, 2 * u64::from(page)), at(0, 0, 1)] {
        assert!(matches!(moved.forward(lost), Err(RepositoryError::Missing { .. })), "{lost:?}");
    }
}

#[test]
fn pages_that_were_moved_as_a_chunk_of_the_map_are_missing_and_the_other_way_round() {
    // Of no pages there would be no end.
    let moved =
        Moved::new(table(), vec![run(0, 0, 0, 9, 4, 10), run(1, 1, 0, 9, 4, 10), run(2, 0, 1, 9, 4, 0)]);
    for (chunk, page) in [(0, 0), (1, 1), (1, 2), (2, 0)] {
        let offset = page * PAGE as u32;
        let lost = moved.forward(Extent { pack: PackId([1; 16]), chunk, offset, length: 100 });
        assert!(matches!(lost, Err(RepositoryError::Missing { .. })), "{chunk}: {lost:?}");
    }
}

proptest::proptest! {
    #[test]
    fn reading_any_bytes_never_panics(bytes in proptest::collection::vec(0u8.., 0..200), runs in proptest::collection::vec(0u32.., 0..30)) {
        let _ = Moved::decode(&bytes);
        let stored = StoredMoved { packs: vec![vec![1; 16]], runs, table: table().encode() };
        if let Ok(moved) = Moved::decode(&stored.encode_to_vec()) {
            let old = Extent { pack: PackId([1; 16]), chunk: 0, offset: 0, length: 2 << 20 };
            let _ = moved.forward(old);
        }
    }
}
