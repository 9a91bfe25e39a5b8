//! HTTP faults at every call (S01, S03, S04, S05 of the reliability page): the right result, or an error that
//! says so. Never a wrong result, and never a "not there" that was not proven.
#![allow(clippy::unwrap_used)] // Helpers of tests, outside of test functions.

mod support;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use storage::{Call, Location, LockMode, Settings, Storage, StorageError, open, probe};
use support::bucket::{Bucket, Dialect, Quirk, error};
use support::http::{Reply, serve};
use support::lies::{KINDS, Kind, LOGIN};
use support::{bytes, hasty, lock_rule, name, s3_location, s3_settings};

const CONTENT: &str = "some bytes that are stored";
/// A bucket with one object, on which the requests from number `first` on, `count` of them, go wrong.
async fn faulty_bucket(kind: Kind, first: u64, count: u64) -> (Arc<dyn Storage>, Bucket) {
    let bucket = Bucket::new(Dialect::S3, Quirk::None).lockable();
    bucket.objects.lock().unwrap().insert("some/prefix/kept/object".to_owned(), CONTENT.into());
    let (served, requests) = (bucket.clone(), AtomicU64::new(0));
    let endpoint = serve(move |request| {
        let number = requests.fetch_add(1, SeqCst);
        let faulty = number >= first && number - first < count;
        if faulty { kind.apply(&served, &request) } else { served.answer(&request) }
    })
    .await;
    let lock = Some(lock_rule(Duration::from_secs(3600), LockMode::Governance));
    let settings = Settings { retry: hasty(), lock, ..s3_settings(&endpoint) };
    (open(&s3_location(), &settings).unwrap(), bucket)
}

/// Makes the call on `kept/object` (`made/object` for a create) and checks a success to be the truth.
async fn call(storage: &dyn Storage, bucket: &Bucket, call: Call) -> Result<(), StorageError> {
    let object = name("kept/object");
    let length = CONTENT.len() as u64;
    match call {
        Call::Create => {
            storage.create(&name("made/object"), &bytes("new bytes")).await?;
            assert_eq!(bucket.objects.lock().unwrap()["some/prefix/made/object"], b"new bytes");
        }
        Call::Read => assert_eq!(storage.read(&object, 5..9).await?, CONTENT[5..9]),
        Call::ReadTail => {
            let tail = storage.read_tail(&object, 6).await?;
            assert_eq!((tail.size, tail.bytes), (length, Bytes::from_static(b"stored")));
        }
        Call::ReadAll => assert_eq!(storage.read_all(&object, 1000).await?, CONTENT),
        Call::Size => assert_eq!(storage.size(&object).await?, length),
        Call::List => {
            let entries = storage.list("kept").await?;
            assert_eq!(entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["kept/object"]);
        }
        Call::ListChildren => assert_eq!(storage.list_children("").await?.prefixes, ["kept"]),
        Call::Delete => {
            storage.delete(&object).await?;
            assert!(!bucket.objects.lock().unwrap().contains_key("some/prefix/kept/object"));
        }
        Call::Lock => {
            storage.lock_until(&object, "2040-01-02T03:04:05Z".parse().unwrap()).await?;
            let (mode, until) = bucket.lock("some/prefix/kept/object").unwrap();
            assert_eq!((&mode[..], &until[..]), ("GOVERNANCE", "2040-01-02T03:04:05Z"));
        }
        Call::LockedUntil => assert_eq!(storage.locked_until(&object).await?, None),
    }
    Ok(())
}

fn assert_honest(context: &str, failure: &StorageError) {
    let honest = matches!(
        failure,
        StorageError::Transient { .. }
            | StorageError::Refused { .. }
            | StorageError::Other { .. }
            | StorageError::NoLock { .. }
    );
    assert!(honest, "{context}: {failure:?}");
    let text = format!("{failure:?} {failure}");
    assert!(!text.contains("canary-secret-key") && !text.contains("Signature="), "{text}");
}

#[tokio::test]
async fn s01_a_fault_that_passes_is_survived_by_every_call() {
    for kind in KINDS {
        for made in Call::ALL {
            // A delete is two requests on S3, and so is the first that may be about locks: both are hit in turn.
            let two = matches!(made, Call::Create | Call::Delete | Call::Lock | Call::LockedUntil);
            let requests = if two { 2 } else { 1 };
            for first in 0..requests {
                let (storage, bucket) = faulty_bucket(kind, first, 1).await;
                let context = format!("{kind:?} at request {first} of {made:?}");
                match call(&*storage, &bucket, made).await {
                    Ok(()) => {}
                    Err(failure) => {
                        assert!(!kind.passes(), "{context}: {failure:?}");
                        assert_honest(&context, &failure);
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn s01_a_fault_that_stays_is_an_error_in_time_and_never_an_absence() {
    let cases = KINDS.into_iter().flat_map(|kind| Call::ALL.map(|made| (kind, made)));
    // As many at once as one machine serves in the time that a call has.
    let cases = stream::iter(cases).for_each_concurrent(8, |(kind, made)| async move {
        let (storage, bucket) = faulty_bucket(kind, 0, u64::MAX).await;
        let context = format!("{kind:?} for ever at {made:?}");
        let start = Instant::now();
        let failure = call(&*storage, &bucket, made).await.expect_err(&context);
        assert_honest(&context, &failure);
        assert_eq!(failure.is_transient(), kind.passes(), "{context}: {failure:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{context} took {:?}", start.elapsed());
    });
    cases.await;
}

#[tokio::test]
async fn s01_a_server_that_is_not_there_is_transient() {
    let settings = Settings { retry: hasty(), ..s3_settings("http://127.0.0.1:9") };
    let storage = open(&s3_location(), &settings).unwrap();
    let failure = storage.read_all(&name("a"), 9).await.unwrap_err();
    assert!(failure.is_transient(), "{failure:?}");
}

#[tokio::test]
async fn s01_a_missing_bucket_is_not_a_missing_object() {
    let endpoint = serve(|_| error(404, "NoSuchBucket")).await;
    let lock = Some(lock_rule(Duration::from_secs(3600), LockMode::Governance));
    let storage = open(&s3_location(), &Settings { lock, ..s3_settings(&endpoint) }).unwrap();
    for made in Call::ALL {
        let failure = call(&*storage, &Bucket::new(Dialect::S3, Quirk::None), made).await.unwrap_err();
        assert!(matches!(failure, StorageError::RootMissing { .. }), "{made:?}: {failure:?}");
    }
}

#[tokio::test]
async fn s03_framing_kept_in_the_object_is_found_by_the_probe() {
    let found = probed(Quirk::StoresFraming).await.unwrap();
    assert!(!found.read_back && !found.is_complete(), "{found:?}");
}

#[tokio::test]
async fn s03_an_odd_etag_is_harmless_and_a_missing_one_is_told() {
    assert!(probed(Quirk::OddEtag).await.unwrap().is_complete());
    let failure = probed(Quirk::NoEtag).await.unwrap_err();
    assert_eq!(failure.to_string(), "the probe could not write an object");
}

#[tokio::test]
async fn s03_a_body_of_another_length_than_promised_is_never_taken() {
    for (range, body) in [("bytes 0-3/26", "some bytes"), ("bytes 0-9/26", "some"), ("bytes 5-9/26", "bytes")]
    {
        let reply = Reply::new(206, body).header("ETag", "\"e\"").header("Content-Range", range);
        let reply = reply.header("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT");
        let endpoint = serve(move |_| reply.clone()).await;
        let settings = Settings { retry: hasty(), ..s3_settings(&endpoint) };
        let storage = open(&s3_location(), &settings).unwrap();
        assert_honest(
            range,
            &storage.read(&name("a"), 0..10).await.map_or_else(
                |failure| match failure {
                    StorageError::Truncated { .. } => panic!("{range}: an object of 26 bytes is long enough"),
                    failure => failure,
                },
                |bytes| panic!("{range} gave {bytes:?}"),
            ),
        );
        let streamed: Result<Vec<Bytes>, _> = storage.read_stream(&name("a"), 0..10).try_collect().await;
        let failure = streamed.unwrap_err();
        assert!(!matches!(failure, StorageError::Truncated { .. }), "{range}: {failure:?}");
    }
}

#[tokio::test]
async fn s04_create_only_is_seen_where_it_holds_and_where_it_does_not() {
    assert!(probed(Quirk::None).await.unwrap().is_complete());
    let found = probed(Quirk::IgnoresConditions).await.unwrap();
    assert!(!found.create_only && found.read_back && found.list && found.delete, "{found:?}");
    assert!(probed(Quirk::KnowsNoConditions).await.is_err());
}

#[tokio::test]
async fn s04_without_create_only_a_taken_name_is_kept_all_the_same() {
    for quirk in [Quirk::IgnoresConditions, Quirk::KnowsNoConditions] {
        let bucket = Bucket::new(Dialect::S3, quirk);
        let endpoint = serve(move |request| bucket.answer(&request)).await;
        let settings = Settings { conditional_put: false, ..s3_settings(&endpoint) };
        let storage = open(&s3_location(), &settings).unwrap();
        storage.create(&name("a"), &bytes("first")).await.unwrap();
        let again = storage.create(&name("a"), &bytes("other")).await;
        assert!(matches!(again, Err(StorageError::NameTaken { .. })), "{again:?}");
        assert_eq!(storage.read_all(&name("a"), 9).await.unwrap(), "first");
    }
}

async fn probed(quirk: Quirk) -> Result<probe::Capabilities, probe::ProbeError> {
    let bucket = Bucket::new(Dialect::S3, quirk);
    let served = bucket.clone();
    let endpoint = serve(move |request| served.answer(&request)).await;
    let found = probe::probe(&*open(&s3_location(), &s3_settings(&endpoint)).unwrap()).await;
    assert!(found.is_err() || bucket.objects.lock().unwrap().is_empty(), "the probe leaves nothing");
    found
}

#[tokio::test]
async fn s05_every_page_of_a_long_listing_counts_once() {
    let bucket = Bucket::new(Dialect::S3, Quirk::None);
    let expected: Vec<String> =
        (0..2_600).map(|number| format!("packs/{:02x}/{number:05}", number % 7)).collect();
    for key in &expected {
        bucket.objects.lock().unwrap().insert(format!("some/prefix/{key}"), Vec::new());
    }
    for foreign in
        ["some/prefix/packs/", "some/prefix/packs/00/", "some/prefix/packs/two words", "some/prefix-x/y"]
    {
        bucket.objects.lock().unwrap().insert(foreign.to_owned(), Vec::new());
    }
    let mut expected = expected;
    expected.sort();
    let endpoint = serve(move |request| bucket.answer(&request)).await;
    for page in [None, Some(1000), Some(999), Some(37), Some(2), Some(1)] {
        let settings = Settings { list_page_size: page, ..s3_settings(&endpoint) };
        let storage = open(&s3_location(), &settings).unwrap();
        let entries = storage.list("packs").await.unwrap();
        assert!(
            entries.iter().map(|entry| entry.name.as_str()).eq(expected.iter()),
            "{page:?}: {}",
            entries.len()
        );
        let children = storage.list_children("packs").await.unwrap();
        assert_eq!((children.prefixes.len(), children.entries.len()), (7, 0), "{page:?}");
    }
}

#[tokio::test]
async fn s05_a_listing_that_is_cut_or_goes_round_is_an_error() {
    let row = "<Contents><Key>some/prefix/a</Key><Size>1</Size><LastModified>2026-11-22T10:00:00Z</LastModified></Contents>";
    let listing =
        |rest: &str| format!("<?xml version=\"1.0\"?><ListBucketResult>{row}{rest}</ListBucketResult>");
    let round = "<IsTruncated>true</IsTruncated><NextContinuationToken>same</NextContinuationToken>";
    let cut = listing("").replace("</ListBucketResult>", "");
    for text in
        [listing("<IsTruncated>true</IsTruncated>"), listing(round), cut, LOGIN.to_owned(), String::new()]
    {
        let reply = Reply::new(200, text.clone());
        let endpoint = serve(move |_| reply.clone()).await;
        let storage = open(&s3_location(), &s3_settings(&endpoint)).unwrap();
        for failure in [storage.list("").await.unwrap_err(), storage.list_children("").await.unwrap_err()] {
            assert!(matches!(failure, StorageError::Other { .. }), "{text}: {failure:?}");
        }
    }
}

#[tokio::test]
async fn http_to_another_machine_must_be_allowed() {
    let remote = s3_settings("http://storage.example");
    assert!(open(&s3_location(), &remote).is_err());
    assert!(open(&s3_location(), &Settings { allow_http: true, ..remote }).is_ok());
    for bad in
        ["storage.example", "ftp://storage.example", "https://user:hunter2@storage.example", "https://"]
    {
        let failure = open(&s3_location(), &s3_settings(bad)).unwrap_err();
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
    }
    assert!(open(&Location::parse("az://container").unwrap(), &Settings::default()).is_err());
}

#[tokio::test]
async fn secrets_are_in_no_debug_text() {
    let settings = s3_settings("https://storage.example");
    let storage = open(&s3_location(), &settings).unwrap();
    let text = format!("{settings:?} {storage:?}");
    assert!(!text.contains("canary-secret-key"), "{text}");
    assert!(text.contains("s3://bucket/some/prefix"), "{text}");
}

#[tokio::test]
async fn a_removal_is_one_request() {
    let (storage, _) = faulty_bucket(Kind::Forbidden403, 1, u64::MAX).await;
    storage.remove(&name("kept/object")).await.unwrap();
}
