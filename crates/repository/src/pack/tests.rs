use super::*;
use crate::secrets::{Keyring, RepositoryId};

fn pages(digester: &Digester, plain: &[u8]) -> Vec<[u8; 32]> {
    plain.chunks(PAGE).map(|page| digester.page(page)).collect()
}

#[test]
fn a_pack_opens_from_its_end_and_gives_back_its_chunks() {
    let keyring = Keyring::generate(RepositoryId::random());
    let access = Access::Full(keyring.clone());
    let (mut codec, digester) = (Codec::new(1), Digester::new(&keyring.writer));
    let mut writer = PackWriter::new(&keyring.writer, &PackMemory::unbounded());
    let first: Vec<u8> = (0..3 * PAGE).map(|at| (at / 7) as u8).collect();
    writer.add_pages(&mut codec, &digester, &first, &pages(&digester, &first)).unwrap();
    writer.add_map(&mut codec, &digester, b"map").unwrap();
    let pack = writer.finish();
    let bytes = pack.parts.concat();
    let size = pack.len;
    let short_tail = &bytes[bytes.len() - FOOTER_LEN..];
    assert!(
        matches!(OpenPack::from_tail(&access, pack.id, size, short_tail).unwrap(), Tail::Need(need) if need == u64::from(pack.tail_len))
    );
    let Tail::Open(open) = OpenPack::from_tail(&access, pack.id, size, &bytes).unwrap() else {
        panic!("whole")
    };
    assert_eq!(open.table, pack.table);
    assert_eq!(open.table.page(0, 2), Some(short(&digester.page(&first[2 * PAGE..]))));
    assert_eq!((open.table.page(0, 3), open.table.page(1, 0)), (None, None));
    for (number, expected) in [(0, &first[..]), (1, b"map")] {
        let info = &open.table.chunks[number as usize];
        let mut plain = vec![0; info.plain_len as usize];
        let mut sealed = bytes[info.offset as usize..][..info.stored_len as usize].to_vec();
        open.chunk(number, &mut sealed, &mut codec, Some(&digester), &mut plain).unwrap();
        assert_eq!(plain, expected);
    }
    // Out of a range that holds both, and out of one that a storage cut short.
    let end = (open.table.chunks[1].offset + u64::from(open.table.chunks[1].stored_len)) as usize;
    let mut within =
        |keep: usize| open.chunk_within(1, 0, &mut bytes[..keep].to_vec(), &mut codec, &digester);
    assert_eq!(within(end).unwrap(), b"map");
    for keep in 0..end {
        assert!(matches!(within(keep), Err(SealError::NotAuthentic { .. })), "{keep}");
    }
    assert!(OpenPack::from_tail(&access, PackId::random(), size, &bytes).is_err());
    assert!(OpenPack::from_tail(&access, pack.id, size + 1, &bytes).is_err());
}

proptest::proptest! {
    #[test]
    fn tables_and_tails_take_any_bytes(bytes in proptest::collection::vec(0u8.., 0..600)) {
        let access = Access::Full(Keyring::for_test_vectors(1));
        let _ = PackTable::decode(&bytes);
        let _ = PackTable::decode(&[&[1, 2, 0, 0, 0], &bytes[..]].concat());
        let with_magic = [&bytes[..], &FOOTER_MAGIC].concat();
        let _ = OpenPack::from_tail(&access, PackId([0; 16]), 1 << 20, &with_magic);
    }
}

#[test]
fn pages_are_gathered_into_chunks_and_no_pack_has_more_than_it_may() {
    let keyring = Keyring::for_test_vectors(4);
    let access = crate::secrets::Access::Full(keyring.clone());
    let description =
        crate::description::Description::new(&keyring.writer, "2026-11-22T00:00:00Z".parse().unwrap(), true);
    let repository = crate::repository::Repository::assemble(
        std::sync::Arc::new(storage::Memory::new()),
        description,
        access,
        None,
    );
    let mut gatherer = Gatherer::new(&repository, 1);
    let (mut packs, mut places) = (Vec::new(), Vec::new());
    for number in 0..1500u32 {
        packs.extend(gatherer.take_full().unwrap());
        let page = [number as u8; 5000];
        places.push(gatherer.add_page(&page));
        gatherer.end_chunk().unwrap();
        packs.extend(gatherer.take_full().unwrap());
        places.push(gatherer.add_map(b"map").unwrap());
    }
    packs.extend(gatherer.finish().unwrap());
    assert_eq!(packs.iter().map(|pack| pack.table.chunks.len()).collect::<Vec<_>>(), [1024, 1024, 952]);
    for place in places {
        let pack = packs.iter().find(|pack| pack.id == place.pack).unwrap();
        assert!(place.page == 0 && (place.chunk as usize) < pack.table.chunks.len());
    }
    assert!(gatherer.finish().unwrap().is_none());
}
