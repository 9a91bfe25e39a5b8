//! EQ on an S3 server and on an Azure server: the whole way of a cluster's bytes, with the program that PostgreSQL calls.
//! And S01 in small: a server that is away is "try again", never "not found".
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use scene::receiver::{self, Receiver};
use scene::{Scene, flush_wal, judges, ledger, wait_for};
use server::throwaway::Binaries;

const ENDPOINT: &str = "PGKEEP_TEST_S3_ENDPOINT";
const BUCKET: &str = "PGKEEP_TEST_S3_BUCKET";
const SKIP: &str = "PGKEEP_TEST_SKIP_REMOTE";

/// A scene whose repository has a prefix of its own in the bucket; `None` when no object store is wanted.
fn scene_on_s3() -> Option<Scene> {
    let Ok(endpoint) = std::env::var(ENDPOINT) else {
        assert!(
            std::env::var(SKIP).is_ok(),
            "no S3 server: ./test starts one and sets {ENDPOINT}; {SKIP}=1 goes without"
        );
        eprintln!("NOT TESTED: S3, because {SKIP} says so");
        return None;
    };
    let bucket = std::env::var(BUCKET).unwrap();
    Some(Scene::with(Binaries::require(None).unwrap(), &config(&endpoint, &bucket)))
}

/// The same in an Azure container.
fn scene_on_azure() -> Option<Scene> {
    let Ok(endpoint) = std::env::var("PGKEEP_TEST_AZURE_ENDPOINT") else {
        let skipped = [SKIP, "PGKEEP_TEST_SKIP_AZURE"].iter().any(|name| std::env::var(name).is_ok());
        assert!(
            skipped,
            "no Azure server: ./test starts one, or says PGKEEP_TEST_SKIP_AZURE=1 where it cannot"
        );
        eprintln!("NOT TESTED: Azure, as was asked for");
        return None;
    };
    let container = std::env::var("PGKEEP_TEST_AZURE_CONTAINER").unwrap();
    let account = endpoint.rsplit('/').next().unwrap();
    let config = format!(
        "repository = \"az://{container}/{}\"\n\n[azure]\nendpoint = \"{endpoint}\"\naccount = \"{account}\"\n\
         access_key = \"{AZURITE_KEY}\"\n",
        prefix()
    );
    Some(Scene::with(Binaries::require(None).unwrap(), &config))
}

/// The key of every Azurite in the world, as its documentation prints it.
const AZURITE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

fn prefix() -> String {
    let unique = tempfile::Builder::new().prefix("e2e").rand_bytes(12).tempdir().unwrap();
    unique.path().file_name().unwrap().to_str().unwrap().to_owned()
}

fn config(endpoint: &str, bucket: &str) -> String {
    let prefix = prefix();
    format!(
        "repository = \"s3://{bucket}/{prefix}\"\npush_timeout = \"10s\"\n\n[s3]\nendpoint = \"{endpoint}\"\n\
         region = \"us-east-1\"\naddressing = \"path\"\naccess_key_id = \"test\"\nsecret_access_key = \"test\"\n"
    )
}

#[test]
fn eq_a10_a_cluster_goes_to_s3_and_comes_back() {
    scene_on_s3().iter().for_each(round_trip);
}

#[test]
fn eq_a10_a_cluster_goes_to_azure_and_comes_back() {
    scene_on_azure().iter().for_each(round_trip);
}

fn round_trip(scene: &Scene) {
    scene.init();
    let server = scene.start_server(|builder| builder);
    ledger::make(&server);
    let load = ledger::Load::start(&server, 1);
    let full = scene.backup(&server, &[]);
    let incremental = scene.backup(&server, &[]);
    assert_eq!((full["kind"].as_str(), incremental["kind"].as_str()), (Some("full"), Some("incremental")));
    let (acknowledged, _) = load.stop();
    // Several segments that wait at once are stored ahead.
    for _ in 0..4 {
        scene::sql(&server, "select pg_logical_emit_message(false, 'fill', ''); select pg_switch_wal()");
    }
    flush_wal(&server);
    assert_eq!(scene.json(&["list"])["backups"].as_array().unwrap().len(), 2);
    let source = judges::dump(scene, &server);
    let into = scene.restore("restored", &[]);
    judges::verify_backup(scene, &into);
    let restored = scene.start_restored(&into);
    assert_eq!(ledger::ids(&restored), acknowledged);
    judges::assert_same_dump(&source, &judges::dump(scene, &restored));
}

#[test]
fn a_cluster_is_received_into_s3_and_comes_back_to_its_last_commit() {
    scene_on_s3().iter().for_each(received_round_trip);
}

#[test]
fn a_cluster_is_received_into_azure_and_comes_back_to_its_last_commit() {
    scene_on_azure().iter().for_each(received_round_trip);
}

fn received_round_trip(scene: &Scene) {
    scene.init();
    let mut server = receiver::start_server(scene, |builder| builder);
    ledger::make(&server);
    let url = server.conninfo();
    let receiver = Receiver::streaming(scene, &url, &["--max-lag", "100ms"]);
    scene.backup(&server, &[]);
    ledger::add(&server, 1, 200);
    receiver.kill();
    receiver::switch(&server);
    ledger::add(&server, 201, 260);
    let receiver = Receiver::start(scene, &url, &["--max-lag", "100ms"]);
    receiver::wait_until_flushed(&server, receiver::end_of_wal(&server));
    server.kill();
    receiver.stop();
    let list = scene.json(&["wal", "list", "--offline"]);
    assert_eq!(list["timelines"][0]["unfinished"].as_array().unwrap().len(), 1, "{list}");
    receiver::assert_restores(scene, "restored", 260);
}

#[test]
fn s01_a_second_init_finds_the_repository_and_another_prefix_has_none() {
    let Some(scene) = scene_on_s3() else { return };
    scene.init();
    let again = scene.ok(&["init", "--no-server", "--recovery-key-file", "another"]);
    assert!(!scene.path("another").exists(), "{}", again.out);
    let elsewhere = format!("s3://{}/nothing-here", std::env::var(BUCKET).unwrap());
    scene.run(&["list", "--repository", &elsewhere]).refused(3, &["hint:", "`pgkeep init`"]);
    // A bucket that is not there is not an empty one.
    let said = scene.run(&["list", "--repository", "s3://no-such-bucket-of-ours/x"]);
    assert_ne!(said.code(), 0, "{}", said.all());
    let said = scene.run(&[
        "wal",
        "get",
        "000000010000000000000001",
        "x",
        "--repository",
        "s3://no-such-bucket-of-ours/x",
    ]);
    assert!(said.code() > 200, "recovery must stop, not end early: {}", said.all());
}

#[test]
fn s01_a06_a_store_that_is_away_is_tried_again_and_never_not_found() {
    let Some(scene) = scene_on_s3() else { return };
    scene.init();
    let server = scene.start_server(|builder| builder);
    ledger::make(&server);
    ledger::add(&server, 1, 20);
    scene.backup(&server, &[]);
    let config = std::fs::read_to_string(scene.config()).unwrap();
    let endpoint = config.lines().find(|line| line.starts_with("endpoint")).unwrap();
    // Nobody listens on the port for nothing.
    scene.write("pgkeep.toml", &config.replace(endpoint, "endpoint = \"http://127.0.0.1:1\""));
    ledger::add(&server, 21, 40);
    scene::sql(&server, "select pg_switch_wal()");
    let said = scene.run(&["wal", "get", "000000010000000000000001", &scene.text_path("x")]);
    assert!(said.code() > 200, "{}", said.all());
    let failed = "select (failed_count > 0)::int from pg_stat_archiver";
    wait_for("a push that fails", || (scene::number(&server, failed) == 1).then_some(()));
    scene.write("pgkeep.toml", &config);
    flush_wal(&server);
    let into = scene.restore("restored", &[]);
    ledger::assert_prefix(&scene.start_restored(&into), 40, "after the store came back");
}
