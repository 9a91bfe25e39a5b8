//! Object lock on an S3 server, with the program: what is stored is locked, what is locked stays and is told of, and what is
//! not possible is said.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use scene::{Scene, flush_wal, judges, ledger};
use server::throwaway::Binaries;

const ENDPOINT: &str = "PGKEEP_TEST_S3_ENDPOINT";
const SKIP: &str = "PGKEEP_TEST_SKIP_REMOTE";

fn endpoint() -> Option<String> {
    let Ok(endpoint) = std::env::var(ENDPOINT) else {
        assert!(
            std::env::var(SKIP).is_ok(),
            "no S3 server: ./test starts one and sets {ENDPOINT}; {SKIP}=1 goes without"
        );
        eprintln!("NOT TESTED: object lock, because {SKIP} says so");
        return None;
    };
    Some(endpoint.trim_end_matches('/').to_owned())
}

/// The test's server wants a signature and does not look at it.
const SIGNED: &str = "Authorization: AWS4-HMAC-SHA256 Credential=test/20261128/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n";

/// The head of the answer to a request.
fn head(endpoint: &str, request: &str, lines: &str) -> String {
    let host = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).unwrap();
    let text = format!(
        "{request} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n{SIGNED}{lines}Connection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).split("\r\n\r\n").next().unwrap().to_owned()
}

/// A scene in a bucket of its own, with object lock or without, whose objects are locked for `span`.
fn scene(endpoint: &str, bucket: &str, has_lock: bool, span: &str) -> Scene {
    let lines = if has_lock { "x-amz-bucket-object-lock-enabled: true\r\n" } else { "" };
    let made = head(endpoint, &format!("PUT /{bucket}"), lines);
    assert!(made.contains(" 200 ") || made.contains(" 409 "), "{made}");
    let config = format!(
        "repository = \"s3://{bucket}/here\"\nlock = \"{span}\"\npush_timeout = \"10s\"\n\n[retention]\nkeep = 1\nkeep_at_least = 1\n\n\
         [s3]\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\naccess_key_id = \"test\"\nsecret_access_key = \"test\"\n"
    );
    Scene::with(Binaries::require(None).unwrap(), &config)
}

fn unique(name: &str) -> String {
    let unique = tempfile::Builder::new().prefix(name).rand_bytes(12).tempdir().unwrap();
    unique.path().file_name().unwrap().to_str().unwrap().to_lowercase()
}

fn two_full_backups(scene: &Scene) -> server::throwaway::Throwaway {
    scene.init();
    let server = scene.start_server(|builder| builder);
    ledger::make(&server);
    ledger::add(&server, 1, 200);
    scene.backup(&server, &["--full"]);
    scene.backup(&server, &["--full"]);
    flush_wal(&server);
    server
}

#[test]
fn what_is_stored_is_locked_and_stays_and_comes_back() {
    let Some(endpoint) = endpoint() else { return };
    let bucket = unique("lock");
    let scene = scene(&endpoint, &bucket, true, "30d");
    let server = two_full_backups(&scene);
    scene.backup(&server, &[]);
    let listed = scene.json(&["list"]);
    let first = listed["backups"][0]["id"].as_str().unwrap().to_owned();
    for name in ["repository".to_owned(), format!("clusters/main/backups/{first}")] {
        let head = head(&endpoint, &format!("GET /{bucket}/here/{name}"), "").to_lowercase();
        assert!(head.contains("x-amz-object-lock-mode: governance"), "{name}: {head}");
        assert!(head.contains("x-amz-object-lock-retain-until-date: "), "{name}: {head}");
    }
    let checked = scene.json(&["check"]);
    let of_locks = |finding: &serde_json::Value| finding["what"].as_str().unwrap().contains("lock");
    assert!(!checked["findings"].as_array().unwrap().iter().any(of_locks), "{checked}");

    let expired = scene.json(&["expire"]);
    assert_eq!(expired["done"]["backups_expired"].as_array().unwrap().len(), 0, "{expired}");
    assert!(expired["plan"]["backups"][0]["locked_until"].is_string(), "{expired}");
    let shown = scene.ok(&["expire", "--dry-run"]).out;
    let flat = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains("locked until"), "{shown}");
    assert_eq!(scene.json(&["list"])["backups"].as_array().unwrap().len(), 3);
    let into = scene.restore("restored", &[]);
    judges::verify_backup(&scene, &into);
    ledger::assert_prefix(&scene.start_restored(&into), 200, "out of a locked bucket");
}

#[test]
fn when_the_lock_has_ended_it_goes() {
    let Some(endpoint) = endpoint() else { return };
    let scene = scene(&endpoint, &unique("lock"), true, "2s");
    let server = two_full_backups(&scene);
    std::thread::sleep(Duration::from_secs(4));
    let expired = scene.json(&["expire"]);
    assert_eq!(expired["done"]["backups_expired"].as_array().unwrap().len(), 1, "{expired}");
    let marked = scene.json(&["prune", "--grace", "0s"]);
    assert!(marked["report"]["marked_packs"].as_u64().unwrap() > 0, "{marked}");
    let pruned = scene.json(&["prune", "--grace", "0s"]);
    assert_eq!(pruned["report"]["deleted_packs"], marked["report"]["marked_packs"], "{pruned}");
    drop(server);
    let into = scene.restore("restored", &[]);
    ledger::assert_prefix(&scene.start_restored(&into), 200, "what is left");
}

#[test]
fn prune_says_what_is_locked() {
    let Some(endpoint) = endpoint() else { return };
    let scene = scene(&endpoint, &unique("lock"), true, "2s");
    two_full_backups(&scene);
    std::thread::sleep(Duration::from_secs(4));
    scene.ok(&["expire"]);
    let marked = scene.json(&["prune", "--grace", "0s"])["report"]["marked_packs"].as_u64().unwrap();
    // A lock of a day on a pack that was to go.
    let plan = scene.json(&["prune", "--grace", "0s", "--dry-run"]);
    let id = plan["plan"]["delete_dead"][0]["id"].as_str().unwrap();
    lock_for_a_day(&endpoint, &scene, id);
    let said = scene.ok(&["prune", "--grace", "0s"]).out;
    assert!(said.contains("locked; the first until "), "{said}");
    assert!(said.contains(&format!("deleted {} packs", marked - 1)), "{said}");
    let left = scene.json(&["prune", "--grace", "0s", "--dry-run"]);
    assert_eq!(left["plan"]["locked"][0]["id"].as_str(), Some(id), "{left}");
}

fn lock_for_a_day(endpoint: &str, scene: &Scene, pack: &str) {
    let config = std::fs::read_to_string(scene.config()).unwrap();
    let bucket = config.split("s3://").nth(1).unwrap().split('/').next().unwrap();
    let until = (jiff::Timestamp::now() + Duration::from_secs(24 * 3600)).strftime("%Y-%m-%dT%H:%M:%SZ");
    let body =
        format!("<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>");
    let host = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).unwrap();
    let text = format!(
        "PUT /{bucket}/here/packs/{}/{pack}?retention HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n{SIGNED}Connection: close\r\n\r\n{body}",
        &pack[..2],
        body.len()
    );
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
}

#[test]
fn where_nothing_can_be_locked_it_is_said_and_nothing_is_made() {
    let folder =
        Scene::with(Binaries::require(None).unwrap(), "repository = \"./repository\"\nlock = \"30d\"\n");
    let init = ["init", "--no-server", "--recovery-key-file", "recovery-key"];
    folder.run(&init).refused(2, &["buckets of S3 and kin only"]);
    assert!(!folder.path("repository").join("repository").exists());
    folder.run(&["list", "--set", "lock=soon"]).refused(2, &["a span of time such as 30d"]);

    let Some(endpoint) = endpoint() else { return };
    let scene = scene(&endpoint, &unique("plain"), false, "30d");
    scene.run(&init).refused(2, &["the bucket has no object lock", "hint:", "`lock`"]);
    assert!(!scene.path("key").exists() && !scene.path("recovery-key").exists(), "they would open nothing");
    scene.run(&["list"]).refused(3, &["no repository"]);
}

#[test]
fn a_further_repository_is_locked_by_its_own_table_and_not_by_copy() {
    let Some(endpoint) = endpoint() else { return };
    let bucket = unique("lock");
    head(&endpoint, &format!("PUT /{bucket}"), "x-amz-bucket-object-lock-enabled: true\r\n");
    let config = format!(
        "[[repository]]\nurl = \"./repository\"\n\n[[repository]]\nname = \"second\"\nurl = \"s3://{bucket}/here\"\n\
         key_file = \"key-second\"\nlock = \"30d\"\ns3.endpoint = \"{endpoint}\"\ns3.region = \"us-east-1\"\n\
         s3.access_key_id = \"test\"\ns3.secret_access_key = \"test\"\n"
    );
    let scene = Scene::with(Binaries::require(None).unwrap(), &config);
    scene.init();
    let server = scene.start_server(|builder| builder);
    ledger::make(&server);
    scene.backup(&server, &["--full"]);
    let listed = scene.json(&["list", "--repository", "second"]);
    let id = listed["backups"][0]["id"].as_str().unwrap().to_owned();
    let head = head(&endpoint, &format!("GET /{bucket}/here/clusters/main/backups/{id}"), "").to_lowercase();
    assert!(head.contains("x-amz-object-lock-mode: governance"), "{head}");
    let hints = ["--to-lock is for others", "hint:", "[[repository]]"];
    scene.run(&["copy", "--to", "second", "--to-lock", "1d"]).refused(2, &hints);
}
