//! The contract suite on everything that needs no server of others.
#![allow(clippy::unwrap_used)] // Helpers of tests, outside of test functions.

mod support;

use std::sync::Arc;
use std::time::Duration;
use storage::{
    Calls, Fault, Faulty, Filesystem, GcsSettings, Location, Memory, Odds, Recording, Retry, Rule, Settings,
    contract, open,
};
use support::bucket::{Bucket, Dialect, Quirk};
use support::{hasty, http, s3_location, s3_settings};

#[tokio::test]
async fn memory() {
    let memory = Memory::new();
    contract::check(&memory).await;
    assert_eq!(memory.names(), [], "cleaned up");
}

#[tokio::test]
async fn filesystem() {
    let directory = tempfile::tempdir().unwrap();
    contract::check(&Filesystem::new(directory.path())).await;
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "no directory and no temporary file stays"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn filesystem_on_many_threads() {
    let directory = tempfile::tempdir().unwrap();
    contract::check(&Filesystem::new(directory.path())).await;
}

#[tokio::test]
async fn wrappers() {
    contract::check(&Retry::new(Memory::new(), hasty())).await;
    contract::check(&Faulty::new(Memory::new())).await;
    contract::check(&Faulty::by_chance(1, Odds::default(), Memory::new())).await;
    contract::check(&Recording::new(Memory::new())).await;
    contract::check(&(Arc::new(Memory::new()) as Arc<dyn storage::Storage>)).await;
}

#[tokio::test]
async fn retry_hides_failing_reads() {
    for fault in [Fault::Fail, Fault::LoseReply] {
        let faulty = Faulty::new(Memory::new());
        for skip in (0..600).step_by(3) {
            faulty.add(Rule { calls: Calls::Reads, skip, hit: 1, fault: fault.clone() });
        }
        contract::check(&Retry::new(faulty, hasty())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn delays_by_chance_change_no_answer() {
    let odds = Odds { delay: 3_000, longest: Duration::from_secs(9), ..Odds::default() };
    for seed in 0..20 {
        contract::check(&Faulty::by_chance(seed, odds, Memory::new())).await;
    }
}

#[tokio::test]
async fn s3_bucket() {
    let bucket = Bucket::new(Dialect::S3, Quirk::None);
    let served = bucket.clone();
    let endpoint = http::serve(move |request| served.answer(&request)).await;
    contract::check(&*open(&s3_location(), &s3_settings(&endpoint)).unwrap()).await;
    assert!(bucket.objects.lock().unwrap().is_empty(), "cleaned up");
    let whole_bucket = Location::parse("s3://bucket").unwrap();
    contract::check(&*open(&whole_bucket, &s3_settings(&endpoint)).unwrap()).await;
}

#[tokio::test]
async fn s3_bucket_that_answers_ranges_of_empty_objects_whole() {
    let bucket = Bucket::new(Dialect::S3, Quirk::EmptyIsWhole);
    let endpoint = http::serve(move |request| bucket.answer(&request)).await;
    contract::check(&*open(&s3_location(), &s3_settings(&endpoint)).unwrap()).await;
}

#[tokio::test]
async fn gcs_bucket() {
    let bucket = Bucket::new(Dialect::Gcs, Quirk::None);
    let served = bucket.clone();
    let endpoint = http::serve(move |request| served.answer(&request)).await;
    let gcs = GcsSettings { endpoint: Some(endpoint), anonymous: true, ..GcsSettings::default() };
    let settings = Settings { gcs, list_page_size: Some(3), ..Settings::default() };
    let location = Location::parse("gs://bucket/some/prefix").unwrap();
    contract::check(&*open(&location, &settings).unwrap()).await;
    assert!(bucket.objects.lock().unwrap().is_empty(), "cleaned up");
}
