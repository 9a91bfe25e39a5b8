//! Object lock: on a server of ours with every fault, on one that others wrote (`PGKEEP_TEST_S3_ENDPOINT`, moto), and in
//! memory. What should be locked is locked from its first moment on, or there is an error.
#![allow(clippy::unwrap_used)] // Helpers of tests, outside of test functions.

mod support;

use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use storage::{
    Calls, Fault, Faulty, Location, LockMode, Memory, Retry, RetryPolicy, Rule, Settings, Storage,
    StorageError, open,
};
use support::bucket::{Bucket, Dialect, Quirk, error};
use support::http::{self, Reply, serve};
use support::lies::{KINDS, LOGIN};
use support::{bytes, hasty, lock_rule, name, s3_location, s3_settings};

const HOUR: Duration = Duration::from_secs(3600);
const KEY: &str = "some/prefix/locked/object";

/// Opens a store at the endpoint that locks for an hour.
fn locking(endpoint: &str, mode: LockMode) -> Arc<dyn Storage> {
    // A machine at work takes its time to make a client.
    let retry = RetryPolicy { deadline: Duration::from_secs(8), attempt: Duration::from_secs(2), ..hasty() };
    let settings = Settings { retry, lock: Some(lock_rule(HOUR, mode)), ..s3_settings(endpoint) };
    open(&s3_location(), &settings).unwrap()
}

async fn served(bucket: &Bucket) -> String {
    let bucket = bucket.clone();
    serve(move |request| bucket.answer(&request)).await
}

fn assert_about_an_hour(until: Timestamp) {
    let ahead = until.duration_since(Timestamp::now());
    let hour = SignedDuration::from_hours(1);
    assert!(
        ahead <= hour + SignedDuration::from_secs(1) && ahead > hour - SignedDuration::from_mins(2),
        "{until}"
    );
}

#[tokio::test]
async fn an_object_is_created_with_its_lock_and_others_without() {
    for mode in [LockMode::Governance, LockMode::Compliance] {
        let bucket = Bucket::new(Dialect::S3, Quirk::None).lockable();
        let storage = locking(&served(&bucket).await, mode);
        storage.create(&name("locked/object"), &["one ".into(), "two".into()]).await.unwrap();
        storage.create(&name("free/object"), &bytes("x")).await.unwrap();
        assert_eq!(storage.read_all(&name("locked/object"), 99).await.unwrap(), "one two");
        let (set, until) = bucket.lock(KEY).unwrap();
        assert_eq!(set, mode.to_string());
        assert_about_an_hour(until.parse().unwrap());
        let told = storage.locked_until(&name("locked/object")).await.unwrap();
        assert_eq!(told, Some(until.parse().unwrap()));
        assert_eq!(storage.locked_until(&name("free/object")).await.unwrap(), None);
        for other in ["other", "one two"] {
            let again = storage.create(&name("locked/object"), &bytes(other)).await;
            assert!(matches!(again, Err(StorageError::NameTaken { .. })), "{again:?}");
        }
        let absent = storage.locked_until(&name("locked/absent")).await.unwrap_err();
        assert!(absent.is_not_found(), "{absent:?}");
        let absent = storage.lock_until(&name("locked/absent"), Timestamp::MAX).await.unwrap_err();
        assert!(absent.is_not_found(), "{absent:?}");
    }
}

#[tokio::test]
async fn a_lock_gets_longer_and_never_shorter_or_milder() {
    let bucket = Bucket::new(Dialect::S3, Quirk::None).lockable();
    let endpoint = served(&bucket).await;
    let object = name("locked/object");
    let storage = locking(&endpoint, LockMode::Compliance);
    storage.create(&object, &bytes("x")).await.unwrap();
    let (later, latest) = ("2040-01-01T00:00:00Z", "2041-01-01T00:00:00Z");
    storage.lock_until(&object, later.parse().unwrap()).await.unwrap();
    assert_eq!(bucket.lock(KEY).unwrap(), ("COMPLIANCE".to_owned(), later.to_owned()));
    // Longer already.
    storage.lock_until(&object, Timestamp::now()).await.unwrap();
    assert_eq!(bucket.lock(KEY).unwrap().1, later);
    // Configured otherwise since: the stricter mode stays.
    let milder = locking(&endpoint, LockMode::Governance);
    milder.lock_until(&object, latest.parse().unwrap()).await.unwrap();
    assert_eq!(bucket.lock(KEY).unwrap(), ("COMPLIANCE".to_owned(), latest.to_owned()));
}

#[tokio::test]
async fn a_bucket_without_object_lock_and_a_server_that_knows_none_are_told_before_anything_is_written() {
    let plain = Bucket::new(Dialect::S3, Quirk::None);
    let storage = locking(&served(&plain).await, LockMode::Governance);
    let failure = storage.create(&name("locked/object"), &bytes("x")).await.unwrap_err();
    assert_eq!(failure.to_string(), "objects cannot be locked here: the bucket has no object lock");
    for answer in [
        Reply::new(200, LOGIN),
        Reply::new(200, "<ListBucketResult><Name>b</Name></ListBucketResult>"),
        error(501, "NotImplemented"),
        error(400, "InvalidArgument"),
    ] {
        // It passes over headers, and would take a longer lock for an upload.
        let (bucket, answer) = (plain.clone(), answer.clone());
        let endpoint = serve(move |request| match request.query.contains_key("object-lock") {
            true => answer.clone(),
            false => bucket.answer(&request),
        });
        let storage = locking(&endpoint.await, LockMode::Governance);
        let object = name("locked/object");
        for failure in [
            storage.create(&object, &bytes("x")).await.unwrap_err(),
            storage.lock_until(&object, Timestamp::MAX).await.unwrap_err(),
            storage.locked_until(&object).await.map(drop).unwrap_err(),
        ] {
            assert!(matches!(failure, StorageError::NoLock { .. }), "{failure:?}");
        }
    }
    assert!(plain.objects.lock().unwrap().is_empty());
    let unconfigured = open(&s3_location(), &s3_settings(&served(&plain.lockable()).await)).unwrap();
    let failure = unconfigured.lock_until(&name("a"), Timestamp::MAX).await.unwrap_err();
    assert!(matches!(failure, StorageError::NoLock { .. }), "{failure:?}");
}

#[tokio::test]
async fn other_storages_say_that_they_lock_nothing() {
    let settings = Settings { lock: Some(lock_rule(HOUR, LockMode::Governance)), ..Settings::default() };
    for place in ["/tmp/somewhere", "gs://bucket/prefix", "az://container"] {
        let failure = open(&Location::parse(place).unwrap(), &settings).unwrap_err().to_string();
        assert!(failure.contains("in buckets of S3 and kin only"), "{failure}");
    }
}

#[tokio::test]
async fn whatever_goes_wrong_an_object_is_never_there_without_its_lock() {
    for kind in KINDS {
        // Which bucket it is, and the upload.
        for first in 0..2 {
            let bucket = Bucket::new(Dialect::S3, Quirk::None).lockable();
            let (inside, requests) = (bucket.clone(), AtomicU64::new(0));
            let endpoint = serve(move |request| match requests.fetch_add(1, SeqCst) == first {
                true => kind.apply(&inside, &request),
                false => inside.answer(&request),
            });
            let storage = locking(&endpoint.await, LockMode::Governance);
            let created = storage.create(&name("locked/object"), &bytes("some bytes")).await;
            assert!(created.is_ok() || !kind.passes(), "{kind:?} at {first}: {created:?}");
            let there = bucket.objects.lock().unwrap().contains_key(KEY);
            assert!(there || created.is_err(), "{kind:?} at {first}");
            assert_eq!(bucket.lock(KEY).is_some(), there, "{kind:?} at {first}");
        }
    }
}

#[tokio::test]
async fn a_longer_lock_is_tried_again() {
    let memory = Memory::new();
    memory.set_lock(Some(lock_rule(HOUR, LockMode::Governance)));
    let faulty = Faulty::new(memory);
    let object = name("locked/object");
    faulty.create(&object, &bytes("x")).await.unwrap();
    faulty.add(Rule { calls: Calls::Writes, skip: 0, hit: 3, fault: Fault::Fail });
    let retry = Retry::new(faulty, hasty());
    retry.lock_until(&object, Timestamp::MAX).await.unwrap();
    assert_eq!(retry.locked_until(&object).await.unwrap(), Some(Timestamp::MAX));
}

#[tokio::test]
async fn memory_refuses_to_delete_what_is_locked() {
    let memory = Memory::new();
    memory.set_lock(Some(lock_rule(HOUR, LockMode::Governance)));
    let now: Timestamp = "2026-11-28T10:00:00Z".parse().unwrap();
    memory.set_clock(now);
    let (locked, free) = (name("locked/object"), name("free/object"));
    for object in [&locked, &free] {
        memory.create(object, &bytes("x")).await.unwrap();
    }
    memory.delete(&free).await.unwrap();
    assert!(matches!(memory.delete(&locked).await, Err(StorageError::Refused { .. })));
    memory.set_clock(now + HOUR);
    memory.delete(&locked).await.unwrap();
}

/// Settings for moto, with a bucket of this name made; `None` where the tests go without it.
async fn moto(bucket: &str, lock: bool) -> Option<Settings> {
    let skip = std::env::var("PGKEEP_TEST_SKIP_REMOTE").is_ok_and(|skip| skip == "1");
    let Ok(endpoint) = std::env::var("PGKEEP_TEST_S3_ENDPOINT") else {
        assert!(
            skip,
            "PGKEEP_TEST_S3_ENDPOINT is not set; PGKEEP_TEST_SKIP_REMOTE=1 does without this server"
        );
        return None;
    };
    let header = if lock { "x-amz-bucket-object-lock-enabled: true\r\n" } else { "" };
    let made = http::send_with(&endpoint, "PUT", &format!("/{bucket}"), header, "").await;
    assert!(matches!(made, 200 | 409), "make the bucket: {made}");
    let mut settings = s3_settings(&endpoint);
    settings.s3.region = Some("us-east-1".to_owned());
    settings.lock = Some(lock_rule(HOUR, LockMode::Governance));
    Some(settings)
}

#[tokio::test]
async fn s3_of_others_locks_what_is_created_and_makes_locks_longer() {
    let Some(settings) = moto("pgkeep-lock", true).await else { return };
    let place = Location::parse(&format!("s3://pgkeep-lock/{:016x}", rand::random::<u64>())).unwrap();
    let storage = open(&place, &settings).unwrap();
    let object = name("locked/object");
    storage.create(&object, &bytes("some bytes")).await.unwrap();
    assert_about_an_hour(storage.locked_until(&object).await.unwrap().unwrap());
    let later: Timestamp = "2040-01-01T00:00:00Z".parse().unwrap();
    storage.lock_until(&object, later).await.unwrap();
    assert_eq!(storage.locked_until(&object).await.unwrap(), Some(later));
    assert_eq!(storage.read_all(&object, 99).await.unwrap(), "some bytes");
    let again = storage.create(&object, &bytes("other")).await;
    assert!(matches!(again, Err(StorageError::NameTaken { .. })), "{again:?}");
    storage.create(&name("free/object"), &bytes("x")).await.unwrap();
    assert_eq!(storage.locked_until(&name("free/object")).await.unwrap(), None);
}

#[tokio::test]
async fn s3_of_others_tells_of_a_bucket_without_object_lock() {
    let Some(settings) = moto("pgkeep-no-lock", false).await else { return };
    let storage = open(&Location::parse("s3://pgkeep-no-lock/here").unwrap(), &settings).unwrap();
    let failure = storage.create(&name("locked/object"), &bytes("x")).await.unwrap_err();
    assert_eq!(failure.to_string(), "objects cannot be locked here: the bucket has no object lock");
    assert_eq!(storage.list("locked").await.unwrap(), []);
}

#[tokio::test]
async fn s3_of_others_that_locks_by_itself_takes_everything() {
    // The server's rule is for buckets that are empty.
    let bucket = format!("pgkeep-default-lock-{:016x}", rand::random::<u64>());
    let Some(settings) = moto(&bucket, true).await else { return };
    let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                <Mode>GOVERNANCE</Mode><Days>3</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    let endpoint = settings.s3.endpoint.clone().unwrap();
    let set = http::send_with(&endpoint, "PUT", &format!("/{bucket}?object-lock"), "", rule).await;
    assert_eq!(set, 200);
    let storage = open(&Location::parse(&format!("s3://{bucket}")).unwrap(), &settings).unwrap();
    for object in ["locked/object", "free/object"] {
        storage.create(&name(object), &bytes("x")).await.unwrap();
    }
    assert_about_an_hour(storage.locked_until(&name("locked/object")).await.unwrap().unwrap());
    let days = storage.locked_until(&name("free/object")).await.unwrap().unwrap();
    assert!(days > Timestamp::now() + 2 * 24 * HOUR, "{days}");
}
