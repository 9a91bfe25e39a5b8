//! Several repositories: one read of the database is written to each, and one that fails does not fail the others.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use scene::points::{CARRY, COPY};
use scene::{Said, Scene, flush_wal, judges, ledger, sql, text, wait_for};
use serde_json::{Value, json};
use server::throwaway::{Binaries, StopMode, Throwaway};

const FIRST: &str = "[[repository]]\nurl = \"./repository\"\n";
const SECOND: &str = "[[repository]]\nname = \"second\"\nurl = \"./second\"\nkey_file = \"key-second\"\n";
const IN_SECOND: [&str; 2] = ["--repository", "second"];

/// Two repositories in folders, made, and a server whose ledger has ten rows.
fn two(second: &str) -> (Scene, Throwaway) {
    let scene = Scene::with(Binaries::require(None).unwrap(), &format!("{FIRST}{SECOND}{second}"));
    scene.init();
    let server = server(&scene);
    (scene, server)
}

fn server(scene: &Scene) -> Throwaway {
    let server =
        scene.start_server(|builder| builder.wal_segment_size_mib(1).setting("log_checkpoints", "on"));
    ledger::make(&server);
    ledger::add(&server, 1, 10);
    server
}

fn backup(scene: &Scene, server: &Throwaway) -> Said {
    scene.run(&["backup", "--mode", "local", "--json", "--database-url", &server.conninfo()])
}

fn value(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}", said.all()))
}

/// What each repository is said to have got.
fn results(said: &Said) -> Vec<String> {
    let value = value(said);
    let repositories = value["repositories"].as_array().unwrap();
    repositories.iter().map(|one| one["result"].as_str().unwrap().to_owned()).collect()
}

/// The backups of one repository.
fn ids(scene: &Scene, options: &[&str]) -> Vec<String> {
    let listed = scene.json(&[&["list"], options].concat());
    let ids = listed["backups"].as_array().unwrap().iter();
    let mut ids: Vec<String> = ids.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

/// What is restored from a repository has so many rows, and is whole.
fn assert_restores(scene: &Scene, into: &str, options: &[&str], rows: i64) -> Vec<String> {
    let into = scene.restore(into, options);
    judges::verify_backup(scene, &into);
    let mut restored = scene.start_restored(&into);
    ledger::assert_prefix(&restored, rows, &format!("{options:?}"));
    let dump = judges::dump(scene, &restored);
    restored.stop(StopMode::Fast).unwrap();
    judges::check_checksums(scene, &into);
    dump
}

/// A repository that is away for as long as this lives.
struct Away {
    there: PathBuf,
    away: PathBuf,
}

impl Away {
    fn of(scene: &Scene, name: &str) -> Self {
        let (there, away) = (scene.path(name), scene.path(&format!("{name}-away")));
        std::fs::rename(&there, &away).unwrap();
        Self { there, away }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        std::fs::rename(&self.away, &self.there).unwrap();
    }
}

#[test]
fn one_read_of_the_database_is_in_both_and_both_restore_equal() {
    let (scene, server) = two("");
    let said = backup(&scene, &server);
    assert_eq!((said.code(), results(&said)), (0, vec!["taken".to_owned(), "copied".to_owned()]));
    ledger::add(&server, 11, 30);
    let said = backup(&scene, &server);
    assert_eq!(said.code(), 0, "{}", said.all());
    let log = server.log();
    let begun = log.lines().filter(|line| line.contains("checkpoint starting: immediate force wait")).count();
    assert_eq!(begun, 2, "two backups in two repositories, begun twice: {log}");
    let copied = &value(&said)["repositories"][1]["copied"];
    assert_eq!(copied["backups"].as_array().unwrap().len(), 1, "the first one is there already");
    let stored = value(&said)["backup"]["bytes_stored"].as_u64().unwrap();
    let of_copy = copied["stored_bytes"].as_u64().unwrap();
    assert!(of_copy < 2 * stored + (1 << 20), "{of_copy} for what took {stored}: only what is new");
    ledger::add(&server, 31, 40);
    flush_wal(&server);
    assert_eq!(ids(&scene, &[]), ids(&scene, &IN_SECOND));
    // The WAL came by archive_command, into both.
    let first = assert_restores(&scene, "one", &[], 40);
    let second = assert_restores(&scene, "two", &IN_SECOND, 40);
    judges::assert_same_dump(&judges::dump(&scene, &server), &first);
    judges::assert_same_dump(&first, &second);
    let status = scene.json(&["status"]);
    let both = status["repositories"].as_array().unwrap();
    assert_eq!((both.len(), &both[0]["newest_backup"]), (2, &both[1]["newest_backup"]), "{status}");
    assert_eq!(both[1]["reachable"], true);
    scene.ok(&["check"]);
    scene.ok(&[&["check"][..], &IN_SECOND].concat());
}

#[test]
fn one_of_them_may_be_on_s3_with_settings_of_its_own() {
    let Ok(endpoint) = std::env::var("PGKEEP_TEST_S3_ENDPOINT") else {
        assert!(std::env::var("PGKEEP_TEST_SKIP_REMOTE").is_ok(), "no S3 server: ./test starts one");
        eprintln!("NOT TESTED: S3, because PGKEEP_TEST_SKIP_REMOTE says so");
        return;
    };
    let bucket = std::env::var("PGKEEP_TEST_S3_BUCKET").unwrap();
    let unique = tempfile::Builder::new().prefix("several").rand_bytes(12).tempdir().unwrap();
    let prefix = unique.path().file_name().unwrap().to_str().unwrap();
    let table = format!(
        "[[repository]]\nname = \"second\"\nurl = \"s3://{bucket}/{prefix}\"\nkey_file = \"key-second\"\n\
         s3.endpoint = \"{endpoint}\"\ns3.region = \"us-east-1\"\ns3.addressing = \"path\"\n\
         s3.access_key_id = \"test\"\ns3.secret_access_key = \"test\"\n"
    );
    let scene = Scene::with(Binaries::require(None).unwrap(), &format!("{FIRST}{table}"));
    scene.init();
    let server = server(&scene);
    assert_eq!(backup(&scene, &server).code(), 0);
    ledger::add(&server, 11, 20);
    flush_wal(&server);
    let first = assert_restores(&scene, "one", &[], 20);
    let second = assert_restores(&scene, "two", &IN_SECOND, 20);
    judges::assert_same_dump(&first, &second);
    assert!(!scene.ok(&["config"]).out.contains("secret_access_key = test"));
}

#[test]
fn without_the_second_the_first_has_it_and_the_next_backup_repairs_the_second() {
    let (scene, server) = two("");
    let away = Away::of(&scene, "second");
    let said = backup(&scene, &server);
    said.refused(3, &["repository second does not have the backup", "second", "the next backup brings it"]);
    assert_eq!(results(&said), ["taken", "failed"]);
    ledger::add(&server, 11, 20);
    // PostgreSQL hears nothing of it.
    flush_wal(&server);
    let archiver = text(&server, "select failed_count from pg_stat_archiver");
    assert_eq!(archiver, "0", "{}", server.log());
    assert!(server.log().contains("the copy that follows the next backup brings it"));
    let status = scene.run(&["status", "--json"]);
    assert_eq!(status.code(), 3, "{}", status.all());
    let second = &value(&status)["repositories"][1];
    assert_eq!((&second["reachable"], second["outage"]["since"].is_string()), (&json!(false), true));
    assert_eq!(ids(&scene, &[]).len(), 1);
    let both = Away::of(&scene, "repository");
    backup(&scene, &server).refused(3, &["repository second:", "is missing"]);
    drop((away, both));
    ledger::add(&server, 21, 30);
    let said = backup(&scene, &server);
    assert_eq!((said.code(), results(&said)), (0, vec!["taken".to_owned(), "copied".to_owned()]));
    assert_eq!(ids(&scene, &[]), ids(&scene, &IN_SECOND));
    let oldest = ids(&scene, &[])[0].clone();
    flush_wal(&server);
    assert_restores(&scene, "two", &IN_SECOND, 30);
    // Through all WAL that it missed.
    assert_restores(&scene, "from-the-oldest", &[&[&*oldest][..], &IN_SECOND].concat(), 30);
}

#[test]
fn without_the_first_the_second_has_it_and_gives_it_back() {
    let (scene, server) = two("");
    assert_eq!(backup(&scene, &server).code(), 0);
    ledger::add(&server, 11, 20);
    let away = Away::of(&scene, "repository");
    let said = backup(&scene, &server);
    said.refused(3, &["repository main does not have the backup"]);
    assert_eq!(results(&said), ["failed", "taken"]);
    // The archiver is held up by the first; the second has what waits nevertheless.
    let failed = "select (failed_count > 0)::int from pg_stat_archiver";
    wait_for("a failure that PostgreSQL knows", || (scene::number(&server, failed) == 1).then_some(()));
    ledger::add(&server, 21, 25);
    for row in 26..=30 {
        ledger::add(&server, row, row);
        sql(&server, "select pg_switch_wal()");
    }
    let last = text(&server, "select pg_walfile_name(pg_current_wal_insert_lsn() - 1)");
    wait_for("all that waits in the second", || {
        let status = value(&scene.run(&[&["status", "--json"][..], &IN_SECOND].concat()));
        let newest = status["ranges"].as_array().unwrap().last().unwrap()["to"]["lsn"].clone();
        let newest: pg::Lsn = newest.as_str().unwrap().parse().unwrap();
        let end = text(
            &server,
            "select '0/0'::pg_lsn + floor((pg_current_wal_insert_lsn() - '0/0') / 1048576) * 1048576",
        );
        (newest >= end.parse().unwrap()).then_some(())
    });
    assert_restores(&scene, "two", &IN_SECOND, 30);
    drop(away);
    // It asks again within a minute, or when there is more.
    flush_wal(&server);
    assert!(text(&server, "select last_archived_wal from pg_stat_archiver") >= last);
    let said = backup(&scene, &server);
    assert_eq!(said.code(), 0, "{}", said.all());
    assert_eq!(value(&said)["repositories"][1]["copied"]["brought_back"].as_array().unwrap().len(), 1);
    assert_eq!((ids(&scene, &[]).len(), ids(&scene, &[])), (3, ids(&scene, &IN_SECOND)));
    scene.ok(&["check"]);
    let middle = ids(&scene, &[])[1].clone();
    assert_restores(&scene, "one", &[&*middle], 30);
}

#[test]
fn a_push_waits_for_a_silent_second_for_its_bound_and_then_lets_it_rest() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let scene = Scene::with(
        Binaries::require(None).unwrap(),
        &format!(
            "{FIRST}[[repository]]\nname = \"second\"\nurl = \"s3://bucket/place\"\nkey_file = \"key-second\"\n\
         push_timeout = \"2s\"\ns3.endpoint = \"http://127.0.0.1:{port}\"\ns3.allow_http = true\n\
         s3.region = \"us-east-1\"\ns3.access_key_id = \"a\"\ns3.secret_access_key = \"b\"\n"
        ),
    );
    let key = |name: &str| scene.text_path(name);
    // The one that answers is made for itself; its key serves as the other's, which is never opened.
    scene.ok(&["init", "--no-server", "--repository", "main", "--recovery-key-file", "paper"]);
    std::fs::copy(key("key"), key("key-second")).unwrap();
    scene.run_as.give(&scene.path("key-second")).unwrap();
    let server = scene.start_server(|builder| builder.setting("archive_command", "false"));
    let first = text(&server, "select pg_walfile_name(pg_switch_wal())");
    let pushed = |more: &[&str]| {
        let file = server.data_directory().join("pg_wal").join(&first);
        let begun = Instant::now();
        let said = scene.run(&[&["wal", "push", file.to_str().unwrap()][..], more].concat());
        (said, begun.elapsed())
    };
    let (said, took) = pushed(&[]);
    said.refused(0, &["in repository second", "within 2 s"]);
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&took), "{took:?}");
    let (said, took) = pushed(&[]);
    assert!(said.code() == 0 && took < Duration::from_secs(2), "it rests: {took:?} {}", said.all());
    // Unless it is required.
    let config = std::fs::read_to_string(scene.config()).unwrap();
    scene.write("pgkeep.toml", &config.replace("name = \"second\"", "name = \"second\"\nrequired = true"));
    let (said, _) = pushed(&[]);
    assert!((1..=125).contains(&said.code()), "{}", said.all());
    said.refused(said.code(), &["in repository second"]);
}

#[test]
fn without_the_first_a_push_fails_and_the_second_has_the_segment() {
    let (scene, server) = two("push_timeout = \"5s\"\n");
    let name = text(&server, "select pg_walfile_name(pg_switch_wal())");
    wait_for("the archiver", || {
        (text(&server, "select coalesce(max(last_archived_wal), '') from pg_stat_archiver") >= name)
            .then_some(())
    });
    let away = Away::of(&scene, "repository");
    sql(&server, "create table later ()");
    let name = text(&server, "select pg_walfile_name(pg_switch_wal())");
    let file = server.data_directory().join("pg_wal").join(&name);
    let said = scene.run(&["wal", "push", file.to_str().unwrap()]);
    assert!((1..=125).contains(&said.code()), "{}", said.all());
    said.refused(said.code(), &["in repository main"]);
    let fetched = scene.text_path("fetched");
    scene.ok(&[&["wal", "get", &name, &fetched][..], &IN_SECOND].concat());
    assert_eq!(std::fs::read(fetched).unwrap(), std::fs::read(file).unwrap());
    drop(away);
}

#[test]
fn c01_killed_between_the_two_both_are_whole_and_the_next_backup_brings_the_rest() {
    let (scene, server) = two("");
    let url = server.conninfo();
    let take = ["backup", "--mode", "local", "--database-url", &url];
    // The WAL is there already, by archive_command.
    let points = CARRY.into_iter().chain(COPY.into_iter().filter(|point| *point != "copy.wal"));
    for (point, row) in points.zip(11..) {
        ledger::add(&server, row, row);
        scene.killed_at(point, &take);
        for options in [&[][..], &IN_SECOND] {
            let said = scene.run(&[&["check"], options].concat());
            assert!(said.code() == 0 || ids(&scene, options).is_empty(), "{point}: {}", said.all());
        }
        scene.ok(&take);
        assert_eq!(ids(&scene, &[]), ids(&scene, &IN_SECOND), "{point}");
    }
    flush_wal(&server);
    assert_restores(&scene, "one", &[], 14);
    assert_restores(&scene, "two", &IN_SECOND, 14);
}

#[test]
fn names_choose_a_repository_and_copy_knows_them() {
    let (scene, server) = two("");
    let only = ["backup", "--database-url", &server.conninfo(), "--repository", "main"];
    assert_eq!(scene.json(&only)["repositories"], json!(null), "the others do not count then");
    scene.run(&[&["status"][..], &IN_SECOND].concat()).refused(3, &["nothing"]);
    assert_eq!(scene.json(&["copy", "--to", "second"])["report"]["backups"].as_array().unwrap().len(), 1);
    assert_eq!(ids(&scene, &[]), ids(&scene, &IN_SECOND));
    scene.run(&["copy", "--to", "third"]).refused(2, &["it is not the name of a configured one"]);
    let config = scene.ok(&["config"]).out;
    assert!(config.contains("repository (second)") && config.contains("key_file (second)"), "{config}");
    // Made twice, nothing changes; one that cannot be made is told and does not keep the first from being told.
    scene.init();
    scene.write("second-in-the-way", "");
    let config = std::fs::read_to_string(scene.config()).unwrap();
    scene.write("pgkeep.toml", &config.replace("./second", "./second-in-the-way"));
    let said = scene.run(&["init", "--no-server", "--recovery-key-file", "more"]);
    assert_ne!(said.code(), 0);
    said.refused(said.code(), &["it was there already", "called second"]);
}
