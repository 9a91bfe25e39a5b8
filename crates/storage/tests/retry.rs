//! Trying again, on a clock that jumps.
#![allow(clippy::unwrap_used)] // Helpers of tests, outside of test functions.

mod support;

use std::sync::Arc;
use std::time::Duration;
use storage::{
    Call, Calls, Fault, Faulty, Memory, Recording, Retry, RetryPolicy, Rule, Storage, StorageError,
};
use support::{bytes, name};
use tokio::time::Instant;

type Layers = Retry<Faulty<Recording<Arc<Memory>>>>;

fn layers(rules: &[(Calls, u64, u64, Fault)]) -> (Layers, Arc<Memory>) {
    let memory = Arc::new(Memory::new());
    let faulty = Faulty::new(Recording::new(memory.clone()));
    for (calls, skip, hit, fault) in rules {
        faulty.add(Rule { calls: *calls, skip: *skip, hit: *hit, fault: fault.clone() });
    }
    (Retry::new(faulty, RetryPolicy::default()), memory)
}

const CREATE: Calls = Calls::Of(Call::Create);

#[tokio::test(start_paused = true)]
async fn a_create_whose_reply_was_lost_succeeds_once() {
    let (retry, memory) = layers(&[(CREATE, 0, 1, Fault::LoseReply)]);
    retry.create(&name("a"), &[bytes("one ")[0].clone(), bytes("two")[0].clone()]).await.unwrap();
    assert_eq!(memory.bytes(&name("a")).unwrap(), "one two");
    assert_eq!(retry.inner().inner().counts().calls(Call::Create), 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_taken_by_others_stays_taken_after_a_failure() {
    for (stored, fault) in
        [("other", Fault::Fail), ("longer than ours", Fault::Fail), ("o", Fault::Hang), ("", Fault::Fail)]
    {
        let (retry, memory) = layers(&[(CREATE, 0, 2, fault)]);
        memory.create(&name("a"), &bytes(stored)).await.unwrap();
        let created = retry.create(&name("a"), &bytes("mine!")).await;
        assert!(matches!(created, Err(StorageError::NameTaken { .. })), "{created:?}");
        assert_eq!(memory.bytes(&name("a")).unwrap(), stored);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_failure_the_same_bytes_are_a_taken_name() {
    let (retry, memory) = layers(&[]);
    memory.create(&name("a"), &bytes("mine")).await.unwrap();
    let created = retry.create(&name("a"), &bytes("mine")).await;
    assert!(matches!(created, Err(StorageError::NameTaken { .. })), "{created:?}");
    assert_eq!(retry.inner().inner().counts().total(), 1, "nothing was read back");
}

#[tokio::test(start_paused = true)]
async fn reading_back_is_tried_again_too() {
    let (retry, _) = layers(&[(CREATE, 0, 1, Fault::LoseReply), (Calls::Reads, 0, 3, Fault::Fail)]);
    retry.create(&name("a"), &bytes("mine")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_whose_reply_was_lost_is_done() {
    let (retry, memory) = layers(&[(Calls::Of(Call::Delete), 0, 1, Fault::LoseReply)]);
    memory.create(&name("a"), &bytes("x")).await.unwrap();
    retry.delete(&name("a")).await.unwrap();
    assert_eq!(memory.names(), []);
    assert!(retry.delete(&name("a")).await.unwrap_err().is_not_found());
}

#[tokio::test(start_paused = true)]
async fn what_will_not_pass_is_not_tried_again() {
    for fault in [Fault::Refuse, Fault::Full] {
        let (retry, _) = layers(&[(Calls::Any, 0, 1, fault)]);
        assert!(!retry.read_all(&name("a"), 9).await.unwrap_err().is_transient());
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_ends_by_its_deadline_and_says_why() {
    let policy = RetryPolicy::default();
    for fault in [Fault::Fail, Fault::Hang, Fault::LoseReply] {
        for call in Call::ALL {
            if fault == Fault::Hang && matches!(call, Call::List | Call::ListChildren) {
                continue; // A listing bounds its own pages.
            }
            let (retry, _) = layers(&[(Calls::Any, 0, u64::MAX, fault.clone())]);
            let start = Instant::now();
            let error = support_call(&retry, call).await.unwrap_err();
            assert!(error.is_transient(), "{call} {fault:?}: {error:?}");
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.starts_with("gave up after "), "{source}");
            let took = start.elapsed();
            let bytes = Duration::from_secs(1);
            assert!(took <= policy.deadline + bytes, "{call} {fault:?} took {took:?}");
            assert!(took > policy.deadline / 2, "{call} {fault:?} took only {took:?}");
        }
    }
}

async fn support_call(storage: &dyn Storage, call: Call) -> Result<(), StorageError> {
    let name = name("a");
    match call {
        Call::Create => storage.create(&name, &bytes("x")).await,
        Call::Read => storage.read(&name, 0..1).await.map(drop),
        Call::ReadTail => storage.read_tail(&name, 1).await.map(drop),
        Call::ReadAll => storage.read_all(&name, 1).await.map(drop),
        Call::Size => storage.size(&name).await.map(drop),
        Call::List => storage.list("a").await.map(drop),
        Call::ListChildren => storage.list_children("a").await.map(drop),
        Call::Delete => storage.delete(&name).await,
        Call::Lock => storage.lock_until(&name, jiff::Timestamp::MAX).await,
        Call::LockedUntil => storage.locked_until(&name).await.map(drop),
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_get_time() {
    let policy = RetryPolicy::default();
    let slow = Fault::Delay(policy.attempt + Duration::from_secs(200));
    let (retry, _) = layers(&[(CREATE, 0, u64::MAX, slow.clone())]);
    retry.create(&name("pack"), &[vec![0; 64 << 20].into()]).await.unwrap();
    let (retry, _) = layers(&[(CREATE, 0, u64::MAX, slow)]);
    assert!(retry.create(&name("small"), &bytes("x")).await.unwrap_err().is_transient());
}
