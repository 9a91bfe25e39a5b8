//! Ranges that come piece by piece, over a connection that breaks (S03 of the reliability page).
#![allow(clippy::unwrap_used)] // Helpers of tests, outside of test functions.

mod support;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use std::sync::{Arc, Mutex};
use storage::{Settings, Storage as _, open};
use support::bucket::{Bucket, Dialect, Quirk};
use support::http::{Ending, serve};
use support::{bytes, hasty, name, s3_location, s3_settings};

const CONTENT: &str = "some bytes that are stored";

#[tokio::test]
async fn s03_a_stream_goes_on_where_its_connection_broke() {
    let bucket = Arc::new(Bucket::new(Dialect::S3, Quirk::None));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let endpoint = {
        let (bucket, asked) = (bucket.clone(), asked.clone());
        serve(move |request| {
            let range = request.headers.get("range").cloned();
            let reply = bucket.answer(&request);
            let Some(range) = range else { return reply };
            let mut asked = asked.lock().unwrap();
            asked.push(range);
            reply.ending(if asked.len() < 4 { Ending::HalfBody } else { Ending::Whole })
        })
        .await
    };
    let storage = open(&s3_location(), &Settings { retry: hasty(), ..s3_settings(&endpoint) }).unwrap();
    storage.create(&name("a"), &bytes(CONTENT)).await.unwrap();
    asked.lock().unwrap().clear();
    let pieces: Vec<Bytes> = storage.read_stream(&name("a"), 2..26).try_collect().await.unwrap();
    assert_eq!(pieces.concat(), &CONTENT.as_bytes()[2..]);
    // Each reply gives half of what it was asked for, and is not asked for that half again.
    assert_eq!(*asked.lock().unwrap(), ["bytes=2-25", "bytes=14-25", "bytes=20-25", "bytes=23-25"]);
}
