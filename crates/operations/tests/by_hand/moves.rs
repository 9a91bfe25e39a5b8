//! Pruning what was moved before, what is stored twice, and what is not as `moved/` says.

use std::sync::Arc;

use repository::content::Extent;
use repository::moved::{Moved, MovedRun};
use repository::{PackId, layout};
use storage::Faulty;

use super::desk::{Desk, cluster, day, ending_path, id, pages, prune};
use super::hiding::Hiding;

/// A backup with one file of such pages.
fn file(extents: &[Extent]) -> Vec<super::desk::File> {
    vec![("base/5/1".to_owned(), extents.to_vec())]
}

/// A pack of twenty pages, of which only six are named: they were moved to the second pack. Two days have passed.
async fn moved_once(desk: &mut Desk) -> (PackId, PackId) {
    let numbers: Vec<u64> = (0..20).collect();
    let old = desk.pack(&[&numbers]).await;
    desk.at(1);
    desk.backup(&id(1), &file(&[pages(old, 0, 0, 6)]), &[]).await;
    desk.at(2);
    assert_eq!(desk.prune().await.moved_packs, 1);
    (old, desk.host().moved(old).await.unwrap().unwrap().packs()[0])
}

#[tokio::test]
async fn a_list_page_that_is_stored_twice_stays_where_each_backup_names_it() {
    let mut desk = Desk::new().await;
    let data = desk.pack(&[&[1, 2, 3]]).await;
    let one = |at: usize, page: u32| (ending_path(at), vec![pages(data, 0, page, 1)]);
    let first = desk.backup(&id(1), &[one(0, 0), one(1, 1)], &[]).await;
    // A table comes and goes: then the list begins byte for byte as that of the first, whose pages it does not know.
    let other = desk.backup(&id(2), &[one(0, 2), one(1, 1)], &first.pages).await;
    let mut files = vec![one(0, 0), one(1, 1)];
    // What fills its map goes with it.
    files.extend((1000..5000).map(|number: u32| {
        (format!("base/6/{number}{}", blake3::hash(&number.to_le_bytes()).to_hex().repeat(3)), Vec::new())
    }));
    let again = desk.backup(&id(3), &files, &other.pages).await;
    assert_eq!(again.pages[0].digest, first.pages[0].digest);
    assert_ne!(again.pages[0], first.pages[0], "the same page in another place");
    let last = desk.backup(&id(4), &files[..2], &again.pages).await;
    assert_eq!(last.pages[0], again.pages[0]);

    desk.expire(&other.id).await;
    desk.expire(&again.id).await;
    for number in (5..30).step_by(3) {
        desk.at(number);
        desk.prune().await;
    }
    assert!(!desk.has(again.pages[0].extent().unwrap().pack), "what was mostly dead was moved");
    for backup in [&first, &last] {
        assert_eq!(desk.read(backup).await.unwrap(), [1, 2], "{}", backup.id);
    }
}

#[tokio::test]
async fn what_was_moved_twice_stays_for_a_backup_that_knew_it_before() {
    let mut desk = Desk::new().await;
    let (old, second) = moved_once(&mut desk).await;
    desk.backup(&id(2), &file(&[pages(old, 0, 0, 1)]), &[]).await;
    desk.at(5);
    desk.prune().await;
    assert!(!desk.has(old) && desk.has(second));
    // It compares with the first backup, which goes then.
    desk.at(6);
    desk.host().claim(&cluster(), &id(6), "somebody").await.unwrap();
    let at_work = desk.unpublished(&id(6), &file(&[pages(old, 0, 0, 6)]), &[]).await;
    desk.expire(&id(1)).await;
    desk.at(7);
    assert_eq!(desk.prune().await.moved_packs, 1, "most of the second pack is dead");
    desk.at(11);
    desk.prune().await;
    let published = desk.publish(&at_work).await;
    for number in [12, 15, 18] {
        desk.at(number);
        desk.prune().await;
    }
    assert_eq!(desk.read(&published).await.unwrap(), [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_listing_that_lacks_a_record_of_a_move_lets_nothing_go() {
    let mut desk = Desk::new().await;
    let (old, new) = moved_once(&mut desk).await;
    desk.at(5);
    desk.prune().await;
    assert!(!desk.has(old));
    let host = desk.over(Arc::new(Hiding { inner: desk.memory.clone(), hidden: layout::moved(old) }));
    for number in [6, 9, 12] {
        desk.at(number);
        let stopped = prune(&host).await.unwrap_err();
        assert!(stopped.to_string().contains("listing lacks"), "{stopped}");
    }
    assert!(desk.has(new));
}

#[tokio::test]
async fn a_pack_stays_whose_pages_are_not_where_they_were_moved_to() {
    // The new pack is lost, or one of its bytes is another.
    for lost in [true, false] {
        let mut desk = Desk::new().await;
        let (old, new) = moved_once(&mut desk).await;
        let bytes = desk.memory.bytes(&layout::pack(new)).unwrap();
        let mut flipped = bytes.to_vec();
        flipped[100] ^= 1;
        desk.memory.damage(&layout::pack(new), (!lost).then(|| flipped.into()));
        for number in [5, 8, 11] {
            desk.at(number);
            prune(&desk.host()).await.unwrap();
        }
        assert!(desk.has(old), "it has the only whole pages; lost: {lost}");
    }
    // A record that somebody made up sends the pages to others, or tells of another table.
    for forges_table in [false, true] {
        let mut desk = Desk::new().await;
        let old = desk.pack(&[&[1, 2, 3]]).await;
        let other = desk.pack(&[&[4, 5, 6]]).await;
        let files = file(&[pages(old, 0, 0, 3), pages(other, 0, 0, 3)]);
        let backup = desk.backup(&id(1), &files, &[]).await;
        let table = desk.host().open_pack(if forges_table { other } else { old }, None).await.unwrap().table;
        let run = MovedRun { chunk: 0, page: 0, pages: 3, to_pack: other, to_chunk: 0, to_page: 0 };
        desk.host().store_moved(old, &Moved::new(table, vec![run])).await.unwrap();
        for number in [2, 5, 8] {
            desk.at(number);
            desk.prune().await;
        }
        assert_eq!(desk.read(&backup).await.unwrap(), [1, 2, 3, 4, 5, 6]);
    }
}

#[tokio::test]
async fn one_damaged_pack_does_not_keep_the_others() {
    let mut desk = Desk::new().await;
    let numbers: Vec<u64> = (0..20).collect();
    let (damaged, whole, dead) =
        (desk.pack(&[&numbers]).await, desk.pack(&[&numbers]).await, desk.pack(&[&numbers]).await);
    desk.at(1);
    desk.backup(&id(1), &file(&[pages(damaged, 0, 0, 3), pages(whole, 0, 0, 4)]), &[]).await;
    let mut bytes = desk.memory.bytes(&layout::pack(damaged)).unwrap().to_vec();
    bytes[100] ^= 1;
    desk.memory.damage(&layout::pack(damaged), Some(bytes.into()));
    desk.memory.damage(&layout::mark("20260901T000000Z-large"), Some(vec![0; 17 << 20].into()));
    for number in [2, 5, 8] {
        desk.at(number);
        prune(&desk.host()).await.unwrap();
    }
    assert!(desk.has(damaged) && !desk.has(whole) && !desk.has(dead));
}

#[tokio::test]
async fn a_mark_tells_nothing_of_a_pack_that_was_named_since() {
    let mut desk = Desk::new().await;
    let (named, dead) = (desk.pack(&[&[1, 2]]).await, desk.pack(&[&[3, 4]]).await);
    let other = desk.pack(&[&[5]]).await;
    desk.backup(&id(1), &file(&[pages(other, 0, 0, 1)]), &[]).await;
    // At work since before the mark, and again when the first has gone.
    desk.at(1);
    desk.host().claim(&cluster(), &id(3), "one").await.unwrap();
    let one = desk.unpublished(&id(3), &file(&[pages(named, 0, 0, 2)]), &[]).await;
    desk.at(2);
    desk.prune().await;
    desk.at(3);
    desk.publish(&one).await;
    // The dead pack is still waiting for its grace, counted from the mark.
    desk.memory.set_clock(day(2) + std::time::Duration::from_secs(40 * 3600));
    desk.prune().await;
    assert!(desk.has(dead));
    desk.memory.set_clock(day(3) + std::time::Duration::from_secs(20 * 3600));
    desk.host().claim(&cluster(), &id(4), "two").await.unwrap();
    let two = desk.unpublished(&id(4), &file(&[pages(named, 0, 0, 2)]), &[]).await;
    desk.expire(&id(3)).await;
    desk.at(5);
    desk.prune().await;
    let published = desk.publish(&two).await;
    assert_eq!(desk.read(&published).await.unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_claim_goes_before_what_it_held() {
    let mut desk = Desk::new().await;
    let (named, held) = (desk.pack(&[&[1]]).await, desk.pack(&[&[2]]).await);
    desk.backup(&id(1), &file(&[pages(named, 0, 0, 1)]), &[]).await;
    desk.at(1);
    desk.host().claim(&cluster(), &id(2), "slow").await.unwrap();
    desk.at(2);
    desk.prune().await;
    let (mut deaths, mut went) = (0, false);
    while !went {
        let memory = Arc::new(desk.memory.snapshot());
        memory.set_clock(day(9));
        let dying = Arc::new(Faulty::dying_at_write(deaths, memory.clone()));
        // Whoever asks for the claim at any moment and finds it has all that it held.
        let _ = prune(&desk.over(dying)).await;
        let is_claimed = memory.bytes(&layout::claim(&cluster(), &id(2))).is_some();
        went = memory.bytes(&layout::pack(held)).is_none();
        assert!(!(is_claimed && went), "the pack went first, death {deaths}");
        deaths += 1;
        assert!(deaths < 50, "a week is over");
    }
}

#[tokio::test]
async fn a_backup_that_listings_lack_and_nobody_follows_keeps_its_packs() {
    let mut desk = Desk::new().await;
    let mut backups = Vec::new();
    for number in 1..5 {
        desk.at(number);
        let pack = desk.pack(&[&[u64::from(number)]]).await;
        desk.host().claim(&cluster(), &id(number), "a backup").await.unwrap();
        backups.push(desk.backup(&id(number), &file(&[pages(pack, 0, 0, 1)]), &[]).await);
    }
    desk.expire(&id(2)).await;
    desk.expire(&id(3)).await;
    for number in [5, 8, 11] {
        desk.at(number);
        desk.prune().await;
    }
    let hidden = layout::manifest(&cluster(), &id(1));
    let host = desk.over(Arc::new(Hiding { inner: desk.memory.clone(), hidden }));
    for number in [14, 17, 20] {
        desk.at(number);
        prune(&host).await.unwrap();
    }
    assert_eq!(desk.read(&backups[0]).await.unwrap(), [1]);
    let claimed: Vec<String> =
        desk.host().claims(&cluster()).await.unwrap().into_iter().map(|claim| claim.backup).collect();
    assert_eq!(claimed, [id(1), id(4)], "claims stay as long as their backups");
}

#[tokio::test]
async fn a_copy_of_an_expired_backup_is_waited_for() {
    let mut desk = Desk::new().await;
    let (one, other) = (desk.pack(&[&[1]]).await, desk.pack(&[&[2]]).await);
    desk.backup(&id(1), &file(&[pages(one, 0, 0, 1)]), &[]).await;
    desk.at(2);
    desk.backup(&id(2), &file(&[pages(other, 0, 0, 1)]), &[]).await;
    desk.expire(&id(1)).await;
    desk.at(3);
    desk.host().claim(&cluster(), &id(1), "a copy").await.unwrap();
    for number in [4, 7, 9] {
        desk.at(number);
        desk.prune().await;
    }
    assert!(desk.has(one) && desk.host().has_claim(&cluster(), &id(1)).await.unwrap());
    // It died.
    for number in [11, 14] {
        desk.at(number);
        desk.prune().await;
    }
    assert!(!desk.has(one) && !desk.host().has_claim(&cluster(), &id(1)).await.unwrap());
}
