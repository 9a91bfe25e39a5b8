use std::sync::Arc;

use storage::{Memory, Storage as _};

use super::*;
use crate::description::Description;
use crate::secrets::{Access, Keyring};

fn repository(memory: &Arc<Memory>) -> Repository {
    let keyring = Keyring::for_test_vectors(5);
    let description = Description::new(&keyring.writer, jiff::Timestamp::UNIX_EPOCH, true);
    Repository::assemble(memory.clone(), description, Access::Full(keyring), None)
}

fn pack(number: u8) -> PackId {
    PackId([number; 16])
}

fn look(at_us: i64, packs: &[u8]) -> Look {
    Look { at_us, host: "host".into(), packs: packs.iter().map(|id| pack(*id)).collect(), ..Look::default() }
}

fn damaged(at_us: i64, id: u8) -> Look {
    let damage = Damage { what: "frame 3".into(), backups: vec!["b".into()] };
    Look { damaged: vec![(layout::pack(pack(id)).to_string(), damage)], ..look(at_us, &[]) }
}

#[tokio::test]
async fn what_was_seen_last_stands_in_whatever_order_it_is_read() {
    let looks = [look(10, &[1, 2]), damaged(20, 1), look(30, &[3]), damaged(5, 3)];
    for turn in 0..looks.len() {
        let mut proofs = Proofs::default();
        (0..looks.len()).for_each(|at| proofs.add(&looks[(at + turn) % looks.len()]));
        assert_eq!([1, 2, 3, 4].map(|id| proofs.pack(pack(id))), [None, Some(10), Some(30), None]);
        assert_eq!(proofs.damaged_packs().map(|(id, _)| id).collect::<Vec<_>>(), [pack(1)]);
        proofs.add(&look(40, &[1]));
        assert_eq!((proofs.pack(pack(1)), proofs.damaged().count()), (Some(40), 0));
    }
}

#[tokio::test]
async fn many_proofs_become_one_that_says_the_same() {
    let memory = Arc::new(Memory::new());
    let (repository, cluster) = (repository(&memory), ClusterName::new("main").unwrap());
    let timeline = TimelineId::FIRST;
    for number in 0..60u8 {
        let mut proofs = repository.proofs(&cluster).await.unwrap();
        let wal = vec![(timeline, number.into()), (timeline, u64::from(number) + 1)];
        let seen = Look { wal, ..look(1_000_000 + i64::from(number), &[number, number + 1]) };
        repository.record_proof(&cluster, &seen, &mut proofs).await.unwrap();
        if !proofs.are_many() {
            continue;
        }
        let old = repository.merge_proofs(&cluster, &mut proofs, |id| id != pack(7)).await.unwrap();
        // A process that dies here leaves the old ones, which say nothing else.
        if number % 3 == 0 {
            repository.remove_proofs(&old).await;
        }
    }
    let proofs = repository.proofs(&cluster).await.unwrap();
    assert!(proofs.count() <= 3 * MERGE_FROM, "{}", proofs.count());
    assert_eq!(proofs.pack(pack(7)), None, "nobody asks for it any more");
    assert_eq!(proofs.pack(pack(0)), Some(1_000_000));
    assert_eq!(proofs.segment(timeline, 60), Some(1_000_059));
    assert_eq!(proofs.segment(timeline, 61), None);
}

#[tokio::test]
async fn a_damaged_proof_proves_nothing_and_is_named() {
    let memory = Arc::new(Memory::new());
    let (repository, cluster) = (repository(&memory), ClusterName::new("main").unwrap());
    repository.record_proof(&cluster, &look(1, &[1]), &mut Proofs::default()).await.unwrap();
    let name = memory.list("").await.unwrap()[0].name.clone();
    let good = memory.bytes(&name).unwrap();
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        memory.damage(&name, Some(bad.into()));
        let proofs = repository.proofs(&cluster).await.unwrap();
        assert_eq!((proofs.unreadable.len(), proofs.pack(pack(1))), (1, None), "{at}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(0u8.., 0..200)) {
        let _ = stored::decode(&bytes);
    }
}
