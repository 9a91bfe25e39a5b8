//! Expiring, when only a claim, a pin or a mark tells of a backup, or that one is being copied here again.
#![allow(clippy::unwrap_used, missing_docs)]
#![allow(dead_code)] // each file of scenarios uses a part of the days

mod days;

use std::sync::Arc;

use days::{Hiding, Scene, cluster, day, expire_with, first_segment, id, request};
use operations::expire::{ExpireError, ExpireRequest, plan};
use repository::layout;
use repository::mark::MarkNote;

#[tokio::test]
async fn a_backup_kept_alone_that_listings_lack_keeps_its_wal() {
    let scene = Scene::of(60).await;
    let mut request = request("7d");
    request.policy.monthly = 2;
    scene.expire(&request).await.unwrap();
    // The newest of September; nobody follows it any more.
    assert_eq!(scene.ids().await[..2], [id(29), id(52)]);
    scene.memory.set_clock(day(60));
    scene.add(60, 1000, 0).await;
    let hidden = layout::manifest(&cluster(), &id(29));
    let hiding = scene.over(Arc::new(Hiding { inner: scene.memory.clone(), hidden }));
    for _ in 0..2 {
        let refused = expire_with(&hiding, &request).await.unwrap_err();
        assert!(matches!(refused, ExpireError::Listing { .. }), "{refused}");
    }
    assert!(scene.wal().contains(&first_segment(29)));
    // Its pin or a mark of prune tells of it as well.
    scene.repository.remove_claim(&cluster(), &id(29)).await.unwrap();
    let note = MarkNote::new(&[], &[], vec![format!("main/{}", id(29))]);
    scene.repository.write_mark(day(60), &note).await.unwrap();
    assert!(expire_with(&hiding, &request).await.is_err());
}

#[tokio::test]
async fn a_copy_that_brings_an_expired_backup_again_is_at_work() {
    let scene = Scene::of(60).await;
    scene.expire(&request("30d")).await.unwrap();
    // The window goes on, and so would the WAL before it.
    for number in 60..63 {
        scene.memory.set_clock(day(number));
        scene.add(number, 1000, 0).await;
    }
    let request = ExpireRequest { host_clock: day(62), ..request("30d") };
    assert!(!plan(&scene.repository, &request).await.unwrap().wal.is_empty());
    scene.repository.remove_claim(&cluster(), &id(28)).await.unwrap();
    scene.repository.claim(&cluster(), &id(28), "a copy").await.unwrap();
    let planned = plan(&scene.repository, &request).await.unwrap();
    assert!(planned.wal.is_empty(), "{:?}", planned.wal);
}
