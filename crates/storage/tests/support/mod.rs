//! What several test binaries need; not all of them need all of it.
#![allow(dead_code)]

pub mod bucket;
pub mod http;
pub mod lies;

use bytes::Bytes;
use std::time::Duration;
use storage::{Location, LockMode, LockRule, ObjectName, RetryPolicy, S3Settings, Settings};

pub fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

pub fn bytes(text: &str) -> [Bytes; 1] {
    [Bytes::copy_from_slice(text.as_bytes())]
}

/// Tries often and gives up soon.
pub fn hasty() -> RetryPolicy {
    RetryPolicy {
        deadline: Duration::from_millis(400),
        attempt: Duration::from_millis(150),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(40),
        slowest_bytes_per_second: 1 << 40,
    }
}

/// Settings for an S3 server on this machine.
pub fn s3_settings(endpoint: &str) -> Settings {
    Settings {
        s3: S3Settings {
            endpoint: Some(endpoint.to_owned()),
            access_key_id: Some("AKIDEXAMPLE".to_owned()),
            secret_access_key: Some("canary-secret-key".to_owned().into()),
            ..S3Settings::default()
        },
        ..Settings::default()
    }
}

pub fn s3_location() -> Location {
    Location::parse("s3://bucket/some/prefix").unwrap()
}

/// Locks what is below `locked/`.
pub fn lock_rule(span: Duration, mode: LockMode) -> LockRule {
    LockRule { span, mode, time_for: |name, span| name.as_str().starts_with("locked/").then_some(span) }
}
