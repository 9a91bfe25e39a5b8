use proptest::prelude::*;

use super::*;

fn extent() -> impl Strategy<Value = Extent> {
    (0u8..4, 0u32..1024, 0u32..128, 1u64..400).prop_map(|(pack, chunk, page, pages)| Extent {
        pack: PackId([pack; 16]),
        chunk,
        offset: page * 8192,
        length: pages * 8192,
    })
}

prop_compose! {
    fn entry()(
        path in "[a-z]{1,8}(/[a-z0-9_.]{1,8}x){0,3}", inode in any::<u64>(), time in any::<i64>(),
        extents in prop::collection::vec(extent(), 0..5),
    ) -> Entry {
        Entry {
            path: path.into_bytes(), kind: EntryKind::File, mode: 0o600, size: extents.iter().map(|extent| extent.length).sum(),
            mtime_ns: time, ctime_ns: time ^ 5, inode, crc32c: 7, content: Content::Inline(extents), target: vec![],
        }
    }
}

proptest! {
    #[test]
    fn pages_and_leaves_survive(entries in prop::collection::vec(entry(), 0..20), extents in prop::collection::vec(extent(), 0..50)) {
        prop_assert_eq!(decode_page(&encode_page(&entries)).unwrap(), entries);
        let span = extents.iter().map(|extent| extent.length).sum();
        let mut leaf = Leaf::of(extents);
        for first in (1..leaf.extents.len() as u32).step_by(7) {
            let extents = (leaf.extents.len() as u32 - first).min(3);
            leaf.composed.push(Composed { first, extents, digest: PieceDigest(u64::from(first) << 40) });
        }
        let bytes = leaf.encode();
        prop_assert!(Leaf::decode(&bytes, span + 1).is_err());
        let again = Leaf::decode(&bytes, span).unwrap();
        prop_assert_eq!(again.pieces().map(|(extents, _)| extents.len()).sum::<usize>(), leaf.extents.len());
        prop_assert_eq!(again.pieces().filter_map(|(_, digest)| digest).count(), leaf.composed.len());
        prop_assert_eq!(again, leaf);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_page(&bytes);
        let _ = Leaf::decode(&bytes, 8192).map(|leaf| leaf.pieces().count());
    }
}

#[test]
fn hostile_paths_are_refused() {
    for path in [&b"../x"[..], b"/etc/passwd", b"a//b", b"a/./b", b"a/../b", b"", b"a\0b", &[b'a'; 5000]] {
        assert!(!is_safe_path(path));
    }
    assert!(is_safe_path(b"base/1/1259_fsm") && is_safe_path(b"odd \xff name"));
}

#[test]
fn following_pieces_become_one_extent() {
    let piece = |chunk, offset, length| Extent { pack: PackId([1; 16]), chunk, offset, length };
    let mut builder = ExtentBuilder::default();
    builder.push(piece(0, 8192, 8192), 16384);
    builder.push(piece(1, 0, 16384), 16384);
    builder.push(piece(3, 0, 100), 16384);
    builder.push(piece(3, 8192, 8192), 16384);
    assert_eq!(builder.finish(), [piece(0, 8192, 24576), piece(3, 0, 100), piece(3, 8192, 8192)]);
}
