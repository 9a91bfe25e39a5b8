//! S01, S07, S12: the storage fails, loses replies, or answers falsely, at each call in turn.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use operations::monitor::Silent;
use operations::restore::{execute, plan};
use repository::Repository;
use repository::secrets::Access;
use scene::{Scene, chain, read_everything, tree};
use storage::{Call, Calls, Fault, Faulty, Memory, ObjectName, Retry, RetryPolicy, Rule, Storage};

/// The calls of one kind that a backup or restore makes are far fewer; a rule that hits nothing ends its loop.
const CALLS: u64 = 60;

impl Scene {
    fn over(&self, storage: Arc<dyn Storage>) -> Arc<Repository> {
        self.opened(storage, Access::Full(self.keyring.clone()), None)
    }

    async fn ids(&self) -> BTreeSet<String> {
        self.repository.backup_ids(&self.cluster).await.unwrap().into_iter().collect()
    }
}

/// One fault at the `skip`-th of the calls.
fn one(calls: Calls, skip: u64, fault: &Fault) -> Rule {
    Rule { calls, skip, hit: 1, fault: fault.clone() }
}

fn patient(storage: Arc<dyn Storage>) -> Retry<Arc<dyn Storage>> {
    let policy = RetryPolicy {
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(5),
        ..RetryPolicy::default()
    };
    Retry::new(storage, policy)
}

/// Objects whose bytes are not what they were, of those that were there.
fn changed(before: &Memory, now: &Memory) -> Vec<ObjectName> {
    before.names().into_iter().filter(|name| before.bytes(name) != now.bytes(name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_a_backup_fails_loudly_at_each_failing_call_and_the_next_one_works() {
    let scene = Scene::new().await;
    scene.backup(true).await;
    let (mut failures, mut successes) = (0, 0);
    for calls in [Calls::Writes, Calls::Reads] {
        for fault in [Fault::Fail, Fault::Full, Fault::LoseReply] {
            if (calls, &fault) == (Calls::Reads, &Fault::Full) {
                continue;
            }
            for skip in 0..CALLS {
                let (before, published) = (scene.memory.snapshot(), scene.ids().await);
                let faulty = Arc::new(Faulty::new(scene.memory.clone()));
                let counted = Arc::new(storage::Recording::new(faulty.clone()));
                faulty.add(one(calls, skip, &fault));
                let taken = scene.backup_to(scene.over(counted.clone()), false).await;
                let now = scene.ids().await;
                assert_eq!(changed(&before, &scene.memory), [], "{calls:?} {skip} {fault:?}");
                let new: Vec<&String> = now.difference(&published).collect();
                match &taken {
                    Ok(manifest) => assert_eq!(new, [&manifest.id]),
                    // A manifest whose reply was lost exists, and is whole.
                    Err(_) if fault == Fault::LoseReply => assert!(new.len() <= 1),
                    Err(_) => assert_eq!(new, [] as [&String; 0], "{calls:?} {skip} {fault:?}"),
                }
                for id in new {
                    let manifest = scene.repository.manifest(&scene.cluster, id).await.unwrap();
                    read_everything(&scene.repository, &manifest).await;
                }
                let made = counted.counts();
                let writes = made.calls(Call::Create) + made.calls(Call::Delete);
                let hit = if calls == Calls::Writes { writes } else { made.total() - writes } > skip;
                if taken.is_ok() {
                    successes += 1
                } else {
                    failures += 1
                }
                // What only waits for WAL goes on for as long as that takes.
                if taken.is_ok() && (!hit || skip > 25) {
                    break;
                }
            }
        }
    }
    assert!(failures >= 12 && successes >= 4, "{failures} failures, {successes} successes");
    let manifest = scene.backup(false).await;
    read_everything(&scene.repository, &manifest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s01_a_backup_succeeds_over_passing_faults_when_calls_are_repeated() {
    let scene = Scene::new().await;
    for (calls, fault) in
        [(Calls::Writes, Fault::Fail), (Calls::Writes, Fault::LoseReply), (Calls::Reads, Fault::Fail)]
    {
        for skip in 0..6 {
            let faulty = Arc::new(Faulty::new(scene.memory.clone()));
            faulty.add(one(calls, skip, &fault));
            let repository = scene.over(Arc::new(patient(faulty)));
            let manifest = scene.backup_to(repository, false).await;
            let manifest = manifest.unwrap_or_else(|error| panic!("{skip} {fault:?}: {}", chain(&error)));
            read_everything(&scene.repository, &manifest).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s01_a_restore_over_false_answers_fails_or_is_exact() {
    let scene = Scene::with(|builder| builder.wal_segment_size_mib(1)).await;
    scene.sql("create table t as select g id, repeat(md5(g::text), 5) x from generate_series(1, 20000) g");
    let older = scene.backup(true).await;
    scene.sql("update t set x = 'changed' where id % 100 = 0");
    let newer = scene.backup(false).await;
    let folder = scene::open_folder();
    let into = folder.path().join("data");
    let restore = async |storage: Arc<dyn Storage>, backup: Option<&str>| {
        let result = async {
            let mut request = scene.restore_request(&into);
            request.backup = backup.map(str::to_owned);
            let plan = plan(scene.over(storage), request).await?;
            let backup = plan.backup.clone();
            execute(plan, Arc::new(Silent)).await?;
            Ok((backup, tree(&into)))
        };
        let result: Result<_, operations::restore::RestoreError> = result.await;
        let startable = into.join("global/pg_control").exists();
        drop(std::fs::remove_dir_all(&into));
        assert!(result.is_ok() || !startable, "a failed restore could be started");
        result
    };
    // A listing that leaves something out leads to the older backup, which is then exact.
    let mut exact = Vec::new();
    for backup in [&older, &newer] {
        exact.push(restore(scene.memory.clone(), Some(&backup.id)).await.unwrap());
    }
    let mut refused = 0;
    for call in [Call::Read, Call::ReadTail, Call::ReadAll, Call::List] {
        let faults = [
            Fault::Fail,
            Fault::Flip(3),
            Fault::Flip(100),
            Fault::Flip(4000),
            Fault::Truncate(0),
            Fault::Truncate(1),
            Fault::Truncate(5000),
        ];
        for fault in faults {
            for skip in 0..CALLS {
                let faulty = Arc::new(Faulty::new(scene.memory.clone()));
                faulty.add(one(Calls::Of(call), skip, &fault));
                let counted = Arc::new(storage::Recording::new(faulty));
                match restore(counted.clone(), None).await {
                    Ok(restored) => {
                        assert!(exact.contains(&restored), "{call:?} {skip} {fault:?} went unnoticed");
                    }
                    Err(_) => refused += 1,
                }
                if counted.counts().calls(call) <= skip {
                    break;
                }
            }
        }
    }
    assert!(refused > 40, "{refused} refusals");
    // With calls repeated a passing failure costs nothing.
    for skip in 0..12 {
        let faulty = Arc::new(Faulty::new(scene.memory.clone()));
        faulty.add(one(Calls::Reads, skip, &Fault::Fail));
        let restored = restore(Arc::new(patient(faulty)), None).await.unwrap();
        assert!(restored == exact[1]);
    }
}
