use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::datadir::RelationFile;

const SEGMENT: u32 = 131_072;

fn file(path: &str) -> RelationFile {
    RelationFile::parse(path.as_bytes()).unwrap()
}

fn read_all(summaries: &[&[u8]]) -> ChangedBlocks {
    let mut changed = ChangedBlocks::default();
    summaries.iter().for_each(|bytes| read(*bytes, &mut changed).unwrap());
    changed
}

fn blocks(changed: &ChangedBlocks, path: &str, upto: u32) -> Vec<u32> {
    (0..upto).filter(|block| changed.of(&file(path), SEGMENT).contains(*block)).collect()
}

/// What `pg_walsummary` of 17.10 prints of them is in the comments.
#[test]
fn summaries_of_a_real_server_are_read() {
    // TS 1663, DB 1, REL 1259, FORK main: blocks 2 and 8; TS 1664, DB 0, REL 1262, FORK main and vm: block 0
    let changed = read_all(&[include_bytes!("../../../testdata/wal_summary_blocks")]);
    assert_eq!(blocks(&changed, "base/1/1259", 20), [2, 8]);
    assert_eq!(blocks(&changed, "global/1262", 3), [0]);
    assert!(blocks(&changed, "base/1/1259.1", 20).is_empty());
    assert!(blocks(&changed, "base/2/1259", 20).is_empty());
    assert_eq!(blocks(&changed, "pg_tblspc/1663/PG_17_202406281/1/1259", 20), [2, 8]);
    // Other forks are not in the WAL, or not worth it.
    assert_eq!(blocks(&changed, "base/2/1259_fsm", 2), [0, 1]);
    assert_eq!(blocks(&changed, "global/1262_vm", 2), [0, 1]);
    // TS 1663, DB 4, REL 0, FORK main: limit 0
    let changed = read_all(&[include_bytes!("../../../testdata/wal_summary_database")]);
    assert_eq!(blocks(&changed, "base/4/1259", 2), [0, 1]);
    assert!(blocks(&changed, "base/5/1259", 2).is_empty());
    // REL 16385, FORK main: limit 0, blocks 0 to 44
    let changed = read_all(&[include_bytes!("../../../testdata/wal_summary_limits")]);
    assert_eq!(blocks(&changed, "base/5/16385", 100), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_torn_or_changed_summary_is_refused() {
    let whole = include_bytes!("../../../testdata/wal_summary_blocks");
    for length in 0..whole.len() {
        assert!(read(&whole[..length], &mut ChangedBlocks::default()).is_err(), "{length}");
        let mut flipped = whole.to_vec();
        flipped[length] ^= 4;
        assert!(read(&flipped[..], &mut ChangedBlocks::default()).is_err(), "{length}");
    }
    assert!(read(&[&whole[..], b"x"].concat()[..], &mut ChangedBlocks::default()).is_err());
}

#[test]
fn a_hole_is_found_wherever_it_is() {
    let lsn = |number: u64| Lsn::new(number).unwrap();
    let timeline = |number| TimelineId::new(number).unwrap();
    let range = |on, start, end| SummaryRange { timeline: timeline(on), start: lsn(start), end: lsn(end) };
    let all = [range(1, 30, 40), range(1, 10, 20), range(1, 20, 30), range(2, 40, 50)];
    let covered = |start, end| covers(&all, timeline(1), lsn(start), lsn(end)).map(|found| found.len());
    assert_eq!(covered(10, 40), Ok(3));
    assert_eq!(covered(15, 35), Ok(3));
    assert_eq!(covered(20, 30), Ok(1));
    assert_eq!(covered(20, 20), Ok(0));
    assert_eq!(covered(5, 40), Err(lsn(5)));
    assert_eq!(covered(10, 41), Err(lsn(40)));
    assert_eq!(covers(&all[..2], timeline(1), lsn(10), lsn(40)), Err(lsn(20)));
    assert_eq!(all[0].path(), "pg_wal/summaries/00000001000000000000001E0000000000000028.summary");
}

#[test]
fn what_does_not_fit_counts_as_changed() {
    let key = |relfilenode| RelationKey { tablespace: 1663, database: 5, relfilenode };
    let mut changed = ChangedBlocks::with_limit(9000);
    changed.mark(key(1), 0, &[7]);
    changed.mark(key(2), 0, &[1; CHUNK]);
    changed.mark(key(3), 0, &[1; CHUNK]);
    assert_eq!(blocks(&changed, "base/5/1", 20), [7]);
    assert_eq!(blocks(&changed, "base/5/2", 20), [0, 16]);
    assert_eq!(blocks(&changed, "base/5/3", 20), (0..20).collect::<Vec<_>>());
    for relation in 4..100 {
        changed.mark(key(relation), 0, &[7]);
    }
    assert!(changed.of(&file("base/5/99"), SEGMENT).contains(0));
    assert!(!changed.of(&file("base/6/99"), SEGMENT).contains(0));
}

const CHUNK: usize = super::changed::CHUNK_WORDS;

/// Limit and changed blocks, by relfilenode and fork.
type Relations = BTreeMap<(u32, u32), (Option<u32>, BTreeSet<u32>)>;

/// A summary as `WriteBlockRefTable` writes it.
fn stored(relations: &Relations) -> Vec<u8> {
    let mut bytes = 0x652B_137B_u32.to_le_bytes().to_vec();
    for (&(relfilenode, fork), (limit, blocks)) in relations {
        let chunks = blocks.last().map_or(0, |last| last / 65_536 + 1);
        for number in [1663, 5, relfilenode, fork, limit.unwrap_or(u32::MAX), chunks] {
            bytes.extend(number.to_le_bytes());
        }
        let of = |chunk: u32| blocks.iter().filter(move |block| **block / 65_536 == chunk).map(|b| *b as u16);
        for chunk in 0..chunks {
            bytes.extend((of(chunk).count().min(CHUNK) as u16).to_le_bytes());
        }
        for chunk in 0..chunks {
            if of(chunk).count() < CHUNK {
                // The server does not sort them.
                of(chunk)
                    .collect::<Vec<_>>()
                    .iter()
                    .rev()
                    .for_each(|number| bytes.extend(number.to_le_bytes()));
            } else {
                let mut bits = vec![0_u16; CHUNK];
                of(chunk).for_each(|number| bits[usize::from(number / 16)] |= 1 << (number % 16));
                bits.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            }
        }
    }
    bytes.extend([0; 24]);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn any_summary() -> impl Strategy<Value = Relations> {
    let dense = (0_u32..3, 4000_usize..9000).prop_map(|(step, count)| {
        (0..count as u32).map(|block| block * (step + 1)).collect::<BTreeSet<u32>>()
    });
    let sparse = proptest::collection::btree_set(0_u32..200_000, 0..20);
    let relation = (proptest::option::of(0_u32..150_000), prop_oneof![3 => sparse, 1 => dense]);
    proptest::collection::btree_map((1_u32..4, 0_u32..2), relation, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn several_summaries_say_what_each_says(summaries in proptest::collection::vec(any_summary(), 0..4)) {
        let files: Vec<_> = summaries.iter().map(stored).collect();
        let changed = read_all(&files.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for relation in 1_u32..4 {
            let said = |block: u32| summaries.iter().filter_map(|one| one.get(&(relation, 0))).any(|(limit, blocks)| {
                limit.is_some_and(|limit| block >= limit) || blocks.contains(&block)
            });
            for block in (0..200_000).step_by(7).chain(0..300).chain(65_530..65_540).chain(131_070..131_080) {
                let (segment, in_file) = (block / SEGMENT, block % SEGMENT);
                let path = if segment == 0 { format!("base/5/{relation}") } else { format!("base/5/{relation}.{segment}") };
                prop_assert_eq!(changed.of(&file(&path), SEGMENT).contains(in_file), said(block), "{} {}", path, block);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>, magic: bool) {
        let bytes = if magic { [&0x652B_137B_u32.to_le_bytes()[..], &bytes].concat() } else { bytes };
        let _ = read(&bytes[..], &mut ChangedBlocks::default());
    }
}
