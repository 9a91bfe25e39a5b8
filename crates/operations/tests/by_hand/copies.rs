//! Two copies at once, a copy that goes on after one that died, and WAL that goes meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use operations::copy::{CopyError, CopyReport, CopyRequest, execute, plan};
use operations::monitor::{Event, Monitor, Silent};
use repository::{Repository, layout};
use storage::{Call, Calls, Fault, Faulty, Rule};

use super::desk::{Desk, cluster, id, pages, segment};

fn request() -> CopyRequest {
    CopyRequest {
        cluster: cluster(),
        backups: Vec::new(),
        only_wal: false,
        workers: 1,
        level: 1,
        note_every: 8 << 20,
    }
}

async fn copy(
    source: &Arc<Repository>,
    target: &Arc<Repository>,
    monitor: &dyn Monitor,
) -> Result<CopyReport, CopyError> {
    let planned = plan(source, target, &request()).await?;
    execute(source, target, &planned, &request(), monitor).await
}

/// A repository with two backups and their WAL, and an empty one.
async fn two() -> (Desk, Desk) {
    let (mut source, target) = (Desk::new().await, Desk::new().await);
    for number in [1, 2] {
        let pack = source.pack(&[&[u64::from(number), 7]]).await;
        source.backup(&id(number), &[("base/5/1".into(), vec![pages(pack, 0, 0, 2)])], &[]).await;
        source.wal(number).await;
    }
    (source, target)
}

/// Does something once, at the event of this number after the pages begin to be copied; 0 is before the WAL.
struct Meanwhile<F>(AtomicUsize, usize, Mutex<Option<F>>);

impl<F: FnOnce() + Send> Meanwhile<F> {
    fn at(event: usize, what: F) -> Self {
        Self(AtomicUsize::new(0), event, Mutex::new(Some(what)))
    }

    fn is_done(&self) -> bool {
        self.2.lock().unwrap().is_none()
    }
}

impl<F: FnOnce() + Send> Monitor for Meanwhile<F> {
    fn event(&self, event: Event) {
        let seen = self.0.load(Ordering::Acquire);
        let counts = seen > 0 || matches!(event, Event::Phase("copy backups"));
        let is_now = if self.1 == 0 { matches!(event, Event::Phase("copy WAL")) } else { seen + 1 == self.1 };
        self.0.fetch_add(usize::from(counts), Ordering::AcqRel);
        if is_now && (counts || self.1 == 0) {
            self.2.lock().unwrap().take().into_iter().for_each(|what| what());
        }
    }
}

/// Waits for a future inside of a call that is none.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

async fn assert_copied(target: &Desk) {
    for number in [1, 2] {
        let manifest = target.host().manifest(&cluster(), &id(number)).await.unwrap();
        assert_eq!(target.read(&manifest).await.unwrap(), [u64::from(number), 7]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_at_once_neither_takes_the_others_claim_and_both_end_well() {
    // The other fails, or is faster.
    for fails in [true, false] {
        let (source, target) = two().await;
        let other = || {
            let failing = Arc::new(Faulty::new(source.memory.clone()));
            let planned = wait(plan(&source.over(failing.clone()), &target.host(), &request())).unwrap();
            if fails {
                failing.add(Rule {
                    calls: Calls::Reads, // All but the notes of gaps.
                    skip: 1,
                    hit: u64::MAX,
                    fault: Fault::Refuse,
                });
            }
            let (from, to) = (source.over(failing.clone()), target.host());
            let done = wait(execute(&from, &to, &planned, &request(), &Silent));
            assert_eq!(done.is_err(), fails, "{done:?}");
        };
        let monitor = Meanwhile::at(1, other);
        let report = copy(&source.host(), &target.host(), &monitor).await.unwrap();
        assert!(monitor.is_done() && report.is_whole());
        assert_eq!(report.backups, [id(1), id(2)]);
        assert_copied(&target).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_can_be_deleted_a_copy_goes_on_after_one_that_died() {
    let (source, target) = two().await;
    target.host().claim(&cluster(), &id(1), "one that died").await.unwrap();
    // Its claim is young, or is about to end.
    for number in [1, 5] {
        target.at(number);
        let faulty = Arc::new(Faulty::new(target.memory.clone()));
        faulty.add(Rule { calls: Calls::Of(Call::Delete), skip: 0, hit: u64::MAX, fault: Fault::Refuse });
        let report = copy(&source.host(), &target.over(faulty), &Silent).await.unwrap();
        assert!(report.is_whole());
        assert_copied(&target).await;
        target.memory.damage(&layout::manifest(&cluster(), &id(1)), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_claims_first_and_publishes_nothing_whose_wal_went_meanwhile() {
    let (source, target) = two().await;
    let claimed = || assert!(target.memory.bytes(&layout::claim(&cluster(), &id(1))).is_some());
    let monitor = Meanwhile::at(0, claimed);
    copy(&source.host(), &target.host(), &monitor).await.unwrap();
    assert!(monitor.is_done());

    let (source, target) = two().await;
    let gone = layout::wal_file(&cluster(), &segment(1));
    // The first file of the first backup was copied.
    let monitor = Meanwhile::at(3, || target.memory.damage(&gone, None));
    let report = copy(&source.host(), &target.host(), &monitor).await.unwrap();
    assert!(monitor.is_done() && !report.is_whole());
    assert_eq!(report.backups, [id(2)], "{:?}", report.damaged);
    assert_eq!(target.host().backup_ids(&cluster()).await.unwrap(), [id(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_expired_meanwhile_is_not_damaged() {
    let (source, target) = two().await;
    let planned = plan(&source.host(), &target.host(), &request()).await.unwrap();
    source.expire(&id(1)).await;
    let report = execute(&source.host(), &target.host(), &planned, &request(), &Silent).await.unwrap();
    assert!(report.is_whole(), "{:?}", report.damaged);
    assert_eq!(report.backups, [id(2)]);
    // As check, verify and expire read what a listing showed.
    assert!(source.host().listed(&cluster(), id(1)).await.unwrap().is_none());
    // Without a note it is lost.
    source.memory.damage(&layout::manifest(&cluster(), &id(2)), None);
    assert!(source.host().listed(&cluster(), id(2)).await.unwrap().unwrap().manifest.is_err());
    let report = execute(&source.host(), &Desk::new().await.host(), &planned, &request(), &Silent).await;
    assert!(!report.unwrap().is_whole());
}
