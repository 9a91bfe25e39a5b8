//! A backup exists only if prune has known of it all the time, and if all that it names is there.

use std::sync::Arc;
use std::time::Duration;

use repository::manifest::Manifest;
use repository::{Repository, RepositoryError, layout};
use storage::{Call, Calls, Fault, Faulty, Rule};

use super::desk::{Desk, cluster, id, pages};

/// A claimed backup of one pack, and that pack, published by a host over some storage.
async fn claimed(desk: &mut Desk) -> Manifest {
    let pack = desk.pack(&[&[1, 2, 3]]).await;
    let manifest = desk.unpublished(&id(1), &[("base/5/1".into(), vec![pages(pack, 0, 0, 3)])], &[]).await;
    desk.host().claim(&cluster(), &id(1), "test").await.unwrap();
    manifest
}

async fn publish(host: &Repository, manifest: &Manifest) -> Result<Manifest, RepositoryError> {
    let previous = host.predecessor(&cluster()).await.unwrap();
    host.publish_claimed(&cluster(), manifest.clone(), previous.as_ref()).await
}

async fn exists(desk: &Desk) -> bool {
    desk.host().has_backup(&cluster(), &id(1)).await.unwrap()
}

fn over(desk: &Desk, rule: Rule) -> Arc<Repository> {
    let faulty = Faulty::new(desk.memory.clone());
    faulty.add(rule);
    desk.over(Arc::new(faulty))
}

#[tokio::test]
async fn a_backup_that_names_what_is_gone_never_exists() {
    let mut desk = Desk::new().await;
    let manifest = claimed(&mut desk).await;
    let pack = manifest.packs[0].id().unwrap();
    let bytes = desk.memory.bytes(&layout::pack(pack)).unwrap();
    for left in [None, Some(bytes.slice(..bytes.len() - 1))] {
        desk.memory.damage(&layout::pack(pack), left);
        let refused = publish(&desk.host(), &manifest).await;
        assert!(matches!(refused, Err(RepositoryError::Lost { pack: lost }) if lost == pack), "{refused:?}");
        assert!(!exists(&desk).await);
    }
    desk.memory.damage(&layout::pack(pack), Some(bytes));
    // A listing that leaves the pack out is no proof.
    let omit = Rule { calls: Calls::Of(Call::List), skip: 0, hit: u64::MAX, fault: Fault::Omit(0) };
    publish(&over(&desk, omit), &manifest).await.unwrap();
    assert_eq!(desk.read(&manifest).await.unwrap(), [1, 2, 3]);
}

#[tokio::test]
async fn a_backup_whose_claim_is_gone_never_exists() {
    let mut desk = Desk::new().await;
    let manifest = claimed(&mut desk).await;
    desk.host().remove_claim(&cluster(), &id(1)).await.unwrap();
    let refused = publish(&desk.host(), &manifest).await;
    assert!(matches!(refused, Err(RepositoryError::Overtaken)), "{refused:?}");
    assert!(!exists(&desk).await);
}

#[tokio::test]
async fn a_backup_whose_claim_goes_while_it_is_written_is_taken_back() {
    let mut desk = Desk::new().await;
    let manifest = claimed(&mut desk).await;
    let pause = Fault::Delay(Duration::from_millis(300));
    let host = over(&desk, Rule { calls: Calls::Of(Call::Create), skip: 0, hit: 1, fault: pause });
    let removed = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!exists(&desk).await, "the host is asleep");
        desk.host().remove_claim(&cluster(), &id(1)).await.unwrap();
    };
    let (refused, ()) = tokio::join!(publish(&host, &manifest), removed);
    assert!(matches!(refused, Err(RepositoryError::Overtaken)), "{refused:?}");
    assert!(!exists(&desk).await);

    // The host that remembers it sees no rollback in that, and the next backup follows.
    let pack = desk.pack(&[&[4]]).await;
    let next = desk.unpublished(&id(2), &[("base/5/1".into(), vec![pages(pack, 0, 0, 1)])], &[]).await;
    host.claim(&cluster(), &id(2), "test").await.unwrap();
    publish(&host, &next).await.unwrap();
    let found = operations::check::check(&host, &cluster()).await.unwrap();
    let is_of_the_desk = |what: &str| what == "no key slot can be read" || what.contains("WAL");
    assert!(found.findings.iter().all(|finding| is_of_the_desk(&finding.what)), "{found:?}");
}
