//! Backups one after the other, of rows that change here and there.

use std::collections::HashSet;

use super::*;

/// As PostgreSQL leaves a table of which some rows were updated: they go, and stand where there is room.
fn update(rows: &mut Vec<Vec<u8>>, percent: u64, generation: u64) {
    let chosen = |number: usize| {
        let hash = blake3::hash(&(number as u64 * 1000 + generation).to_le_bytes());
        u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap()) % 100 < percent
    };
    let mut number = 0;
    let (mut gone, mut kept): (Vec<_>, Vec<_>) = std::mem::take(rows).into_iter().partition(|_| {
        number += 1;
        chosen(number)
    });
    for (number, row) in gone.iter_mut().enumerate() {
        let text = blake3::hash(&(number as u64 + generation * 1_000_003).to_le_bytes()).to_hex();
        row[..8].copy_from_slice(&text.as_bytes()[..8]);
    }
    // Half of them into the holes of those before, the others at the end.
    for (number, row) in gone.into_iter().enumerate() {
        let at = if number % 2 == 0 { (number * 7919) % kept.len() } else { kept.len() };
        kept.insert(at, row);
    }
    *rows = kept;
}

fn all_extents(room: &Room, stored: &Stored) -> Vec<Vec<Extent>> {
    let entry = room.entry(&stored.manifest);
    let spans = entry.size.div_ceil(LEAF_SPAN) as u32;
    let span = |index| room.runtime.block_on(room.repository.span_extents(&entry, index)).unwrap();
    (0..spans).map(span).collect()
}

#[test]
fn a_hundredth_of_the_rows_costs_about_that_in_every_generation() {
    for (length, count, limit_percent) in [(1000, 20_000, 3), (200, 60_000, 4)] {
        let room = Room::new();
        let mut now = rows(count, length, 0);
        let mut before = room.store(&now, None);
        let all = before.new;
        for generation in 1..=24 {
            update(&mut now, 1, generation);
            let after = room.store(&now, Some(&before));
            // Every third generation, what stands in the smallest packs is stored together.
            let limit = if generation > 16 { 3 * limit_percent } else { limit_percent };
            assert!(after.new * 100 <= all * limit, "{length}, {generation}: {} of {all} are new", after.new);
            if generation % 6 == 0 {
                assert!(room.read(&after) == now.concat(), "{length}, {generation}");
            }
            for extents in all_extents(&room, &after) {
                let packs: HashSet<_> = extents.iter().map(|extent| extent.pack).collect();
                assert!(packs.len() <= 2 * 16 + 2, "{length}, {generation}: {} packs", packs.len());
                assert!(
                    extents.len() <= LEAF_SPAN as usize / 256,
                    "{length}, {generation}: {} extents",
                    extents.len()
                );
            }
            let same = room.store(&now, Some(&after));
            // Later, packs that have little of a span may be left out again.
            if generation <= 12 {
                assert_eq!((same.new, same.read_back), (0, 0), "{length}, {generation}: nothing changed");
            }
            before = after;
        }
    }
}

#[test]
fn what_was_rewritten_or_appended_is_not_read_back() {
    let room = Room::new();
    let mut now = rows(40_000, 400, 0);
    let before = room.store(&now, None);
    now.extend(rows(20_000, 400, 1 << 30));
    let appended = room.store(&now, Some(&before));
    assert!(appended.read_back < 3 << 20, "{} bytes are read for an appended range", appended.read_back);
    let rewritten = rows(40_000, 400, 1 << 40);
    let after = room.store(&rewritten, Some(&before));
    assert_eq!(after.new, before.new);
    assert!(after.read_back < 3 << 20, "{} bytes are read for a rewritten range", after.read_back);
    assert!(room.read(&after) == rewritten.concat());
}

#[test]
fn rows_at_borders_and_longer_than_a_piece_change_and_come_back() {
    let room = Room::new();
    let mut now = rows(3_000, 300, 0);
    now.insert(1_500, rows(1, 700_000, 9).remove(0));
    let mut before = room.store(&now, None);
    type Change = fn(&mut Vec<Vec<u8>>);
    let changes: [(&str, Change); 7] = [
        ("the first row", |rows| rows[0][5] ^= 1),
        ("the last row", |rows| rows.last_mut().unwrap()[5] ^= 1),
        ("the first row goes", |rows| drop(rows.remove(0))),
        ("the last row goes", |rows| drop(rows.pop())),
        ("the long row", |rows| rows[1_499][300_000] ^= 1),
        ("a row beside it", |rows| rows[1_500][7] ^= 1),
        ("all go", Vec::clear),
    ];
    for (what, change) in changes {
        change(&mut now);
        let after = room.store(&now, Some(&before));
        assert!(after.new < if what == "the long row" { 300_000 } else { 20_000 }, "{what}: {}", after.new);
        assert!(room.read(&after) == now.concat(), "{what}");
        before = after;
    }
    now = rows(3_000, 300, 0);
    let after = room.store(&now, Some(&before));
    assert!(room.read(&after) == now.concat(), "after nothing");
}

#[test]
fn a_host_that_only_writes_stores_whole_pieces() {
    let mut room = Room::new();
    let mut now = rows(20_000, 300, 0);
    let first = room.store(&now, None);
    update(&mut now, 1, 1);
    let before = room.store(&now, Some(&first));
    update(&mut now, 1, 2);
    let reader = room.repository.clone();
    let (storage, description) = (reader.storage().clone(), reader.description().clone());
    let writer = Access::Write(reader.access().writer().clone());
    room.repository = Arc::new(Repository::assemble(storage, description, writer, None));
    let after = room.store(&now, Some(&before));
    assert_eq!((after.new, after.read_back), (now.concat().len() as u64, 0));
    room.repository = reader;
    assert!(room.read(&after) == now.concat());
}

#[test]
fn what_stands_in_a_lost_pack_is_stored_anew() {
    let room = Room::new();
    let mut now = rows(20_000, 300, 0);
    let first = room.store(&now, None);
    update(&mut now, 1, 1);
    let second = room.store(&now, Some(&first));
    let old: HashSet<_> = all_extents(&room, &first).concat().iter().map(|extent| extent.pack).collect();
    let data = all_extents(&room, &second).concat();
    let lost = data.iter().map(|extent| extent.pack).find(|pack| !old.contains(pack)).unwrap();
    room.runtime.block_on(room.repository.storage().delete(&repository::layout::pack(lost))).unwrap();
    update(&mut now, 1, 2);
    let third = room.store(&now, Some(&second));
    assert!(all_extents(&room, &third).concat().iter().all(|extent| extent.pack != lost));
    assert!(third.new * 100 < first.new * 8, "{} of {} are new", third.new, first.new);
    assert!(room.read(&third) == now.concat());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, ..ProptestConfig::default() })]

    /// Whatever changes from one to the next, each comes back, also when rows are the same as others.
    #[test]
    fn generations_of_any_rows_come_back(
        first in prop::collection::vec(0u64..400, 0..600),
        changes in prop::collection::vec(prop::collection::vec((0usize..600, prop::option::of(0u64..400)), 0..30), 1..5),
    ) {
        let room = Room::new();
        let row = |number: u64| rows(1, 20 + number as usize % 300, number).remove(0);
        let mut now: Vec<Vec<u8>> = first.into_iter().map(row).collect();
        let mut before = room.store(&now, None);
        for change in changes {
            for (at, to) in change {
                match to {
                    Some(number) if at < now.len() && number % 2 == 0 => now[at] = row(number),
                    Some(number) => now.insert(at.min(now.len()), row(number)),
                    None if at < now.len() => drop(now.remove(at)),
                    None => {}
                }
            }
            let after = room.store(&now, Some(&before));
            prop_assert!(room.read(&after) == now.concat());
            prop_assert_eq!(room.entry(&after.manifest).crc32c, crc_of(&now));
            before = after;
        }
    }
}
