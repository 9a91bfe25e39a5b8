//! Verify and check beside a prune, and of what was moved and is not there.

use std::sync::Arc;

use operations::check::check;
use operations::findings::Finding;
use operations::monitor::{Event, Monitor, Silent};
use operations::verify::{Budget, Verified, VerifyRequest, known_damage, verify};
use pg::Lsn;
use repository::archive::WalName;
use repository::expired::ExpiredNote;
use repository::layout;
use repository::proof::{Damage, Look};
use storage::{Memory, ObjectName};

use super::desk::{Desk, SEGMENT, cluster, day, id, pages, segment};

async fn verified(desk: &Desk, monitor: Arc<dyn Monitor>) -> Verified {
    within(desk, None, monitor).await
}

async fn within(desk: &Desk, budget: Option<Budget>, monitor: Arc<dyn Monitor>) -> Verified {
    let request = VerifyRequest {
        cluster: cluster(),
        backups: Vec::new(),
        budget,
        older_than: None,
        workers: 1,
        host: "test".into(),
        stop: Arc::default(),
    };
    verify(&desk.host(), &request, monitor).await.unwrap()
}

/// The objects that something is said against.
fn objects(verified: &Verified) -> Vec<&str> {
    verified.report.findings.iter().filter_map(|finding| finding.object.as_deref()).collect()
}

/// Deletes an object when a phase begins.
#[derive(Debug)]
struct Deleting(Arc<Memory>, ObjectName, &'static str);

impl Monitor for Deleting {
    fn event(&self, event: Event) {
        if let Event::Phase(phase) = event
            && phase == self.2
        {
            self.0.damage(&self.1, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_prune_moves_meanwhile_is_not_damaged() {
    let mut desk = Desk::new().await;
    let numbers: Vec<u64> = (0..20).collect();
    let old = desk.pack(&[&numbers]).await;
    desk.backup(&id(1), &[("base/5/1".into(), vec![pages(old, 0, 0, 6)])], &[]).await;
    desk.at(2);
    assert_eq!(desk.prune().await.moved_packs, 1);
    let found =
        verified(&desk, Arc::new(Deleting(desk.memory.clone(), layout::pack(old), "verify packs"))).await;
    assert!(!desk.has(old));
    assert_eq!(objects(&found), [] as [&str; 0]);
    let known = known_damage(&desk.host(), &cluster()).await.unwrap();
    assert!(known.packs.is_empty() && known.backups.is_empty(), "{known:?}");

    // What an earlier version wrote down of such a pack is forgotten.
    let mut proofs = desk.host().proofs(&cluster()).await.unwrap();
    let damage = Damage { what: "lost".into(), backups: vec![id(1)] };
    let look = Look {
        at_us: day(3).as_microsecond(),
        damaged: vec![(layout::pack(old).to_string(), damage)],
        ..Look::default()
    };
    desk.host().record_proof(&cluster(), &look, &mut proofs).await.unwrap();
    let known = known_damage(&desk.host(), &cluster()).await.unwrap();
    assert!(known.packs.is_empty() && known.backups.is_empty(), "{known:?}");
    // A pack that is neither there nor moved stays known.
    desk.memory.damage(&layout::moved(old), None);
    assert_eq!(known_damage(&desk.host(), &cluster()).await.unwrap().packs, [old]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_was_moved_to_one_that_is_lost_is_missing() {
    let mut desk = Desk::new().await;
    let numbers: Vec<u64> = (0..20).collect();
    let old = desk.pack(&[&numbers]).await;
    let backup = desk.backup(&id(1), &[("base/5/1".into(), vec![pages(old, 0, 0, 6)])], &[]).await;
    for number in [2, 5] {
        desk.at(number);
        desk.prune().await;
    }
    let new = desk.host().moved(old).await.unwrap().unwrap().packs()[0];
    let lost = |found: &operations::check::CheckReport| {
        found.findings.iter().any(|finding| finding.object.as_deref() == Some(layout::pack(new).as_str()))
    };
    let named = || backup.packs.iter().map(|pack| (pack.id().unwrap(), pack));
    assert!(!lost(&check(&desk.host(), &cluster()).await.unwrap()));
    assert!(desk.host().lost_packs(named()).await.unwrap().is_empty());
    desk.memory.damage(&layout::pack(new), None);
    let found = check(&desk.host(), &cluster()).await.unwrap();
    assert!(lost(&found), "{found:?}");
    assert!(desk.host().lost_packs(named()).await.unwrap().contains(&old));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_known_is_told_when_it_is_not_looked_at() {
    let mut desk = Desk::new().await;
    let (damaged, whole) = (desk.pack(&[&[1]]).await, desk.pack(&[&[2]]).await);
    desk.backup(&id(1), &[("base/5/1".into(), vec![pages(damaged, 0, 0, 1)])], &[]).await;
    let mut bytes = desk.memory.bytes(&layout::pack(damaged)).unwrap().to_vec();
    bytes[100] ^= 1;
    desk.memory.damage(&layout::pack(damaged), Some(bytes.into()));
    let object = layout::pack(damaged);
    assert!(objects(&verified(&desk, Arc::new(Silent)).await).contains(&object.as_str()));
    // A newer backup's packs come first, and there is time for one.
    desk.at(2);
    desk.backup(&id(2), &[("base/5/1".into(), vec![pages(whole, 0, 0, 1)])], &[]).await;
    let found = within(&desk, Some(Budget::Bytes(1)), Arc::new(Silent)).await;
    assert_eq!((found.report.packs_proved, objects(&found)), (1, vec![object.as_str()]));
    assert!(found.report.is_damaged());

    // By a check, too, which reads no pack, as long as a backup needs it.
    let told = async || {
        let found = check(&desk.host(), &cluster()).await.unwrap().findings;
        let of_it = |finding: &&Finding| finding.object.as_deref() == Some(object.as_str());
        found.iter().find(of_it).map(|finding| finding.backups.clone())
    };
    assert_eq!(told().await, Some(vec![id(1)]));
    desk.expire(&id(1)).await;
    assert_eq!(told().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_wal_that_goes_before_it_is_read_is_missing_unless_it_expired() {
    let mut desk = Desk::new().await;
    let pack = desk.pack(&[&[1]]).await;
    desk.backup(&id(1), &[("base/5/1".into(), vec![pages(pack, 0, 0, 1)])], &[]).await;
    desk.wal(1).await;
    let name = layout::wal_file(&cluster(), WalName::File(segment(1)));
    let bytes = desk.memory.bytes(&name).unwrap();
    let deleting = || Arc::new(Deleting(desk.memory.clone(), name.clone(), "verify WAL"));
    assert!(objects(&verified(&desk, deleting()).await).contains(&name.as_str()));
    // It came back, and an expire that notes it first takes it away.
    desk.memory.damage(&name, Some(bytes));
    let position = Lsn::new(3 * SEGMENT).unwrap();
    desk.host().note_expired_wal(&cluster(), position, &ExpiredNote::default()).await.unwrap();
    assert!(!objects(&verified(&desk, deleting()).await).contains(&name.as_str()));
    assert!(desk.memory.bytes(&name).is_none());
}
