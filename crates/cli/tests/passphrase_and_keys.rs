//! X06 and the way of the keys through the program: who opens a repository, who no longer does, and who may only add.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::path::Path;

use scene::{Said, Scene, flush_wal, ledger};
use serde_json::Value;

const PASSPHRASE: &str = "correct horse battery staple";

/// Calls the program with a repository and this way to open it, and no configuration.
fn call(scene: &Scene, opening: &[&str], arguments: &[&str]) -> Said {
    let shared = ["--repository", "./repository", "--state-dir", "./state"];
    scene::said(scene.bare_command().args(arguments).args(shared).args(opening))
}

fn ok(scene: &Scene, opening: &[&str], arguments: &[&str]) -> Said {
    let said = call(scene, opening, arguments);
    assert_eq!(said.code(), 0, "{arguments:?}: {}", said.all());
    said
}

fn keys(scene: &Scene, opening: &[&str]) -> Vec<Value> {
    let said = ok(scene, opening, &["key", "list", "--json"]);
    serde_json::from_str::<Value>(&said.out).unwrap()["keys"].as_array().unwrap().clone()
}

fn slot(keys: &[Value], kind: &str) -> String {
    let found = keys.iter().find(|key| key["kind"].as_str().unwrap().starts_with(kind));
    found.unwrap_or_else(|| panic!("no {kind} in {keys:?}"))["slot"].as_str().unwrap().to_owned()
}

const WITH_PASSPHRASE: &[&str] = &["--passphrase-file", "passphrase"];
const INIT: &[&str] = &["init", "--no-server", "--recovery-key-file", "recovery-key"];

/// A scene in whose folder no configuration is found.
fn bare_scene() -> Scene {
    let scene = Scene::any();
    std::fs::remove_file(scene.config()).unwrap();
    scene
}

fn scene_with_passphrase() -> Scene {
    let scene = bare_scene();
    scene.write("passphrase", &format!("{PASSPHRASE}\n"));
    ok(&scene, WITH_PASSPHRASE, INIT);
    scene
}

#[test]
fn x06_a_passphrase_and_the_recovery_key_each_open_the_repository() {
    let scene = scene_with_passphrase();
    assert_eq!(keys(&scene, WITH_PASSPHRASE).len(), 2);
    assert_eq!(keys(&scene, &["--key-file", "recovery-key"]).len(), 2);
    assert_eq!(keys(&scene, &["--passphrase-command", &format!("echo '{PASSPHRASE}'")]).len(), 2);
    assert!(
        scene::said(std::process::Command::new("ls").arg("-l").arg(scene.path("recovery-key")))
            .out
            .starts_with("-rw-------")
    );

    scene.write("wrong", "correct horse battery stable\n");
    call(&scene, &["--passphrase-file", "wrong"], &["list"]).refused(2, &["hint:", "recovery key"]);
    call(&scene, &["--passphrase-file", "missing"], &["list"]).refused(3, &["missing"]);
    call(&scene, &[], &["list"]).refused(2, &["no key and no passphrase", "hint:", "--key-file"]);
    // Recovery must not take "wrong key" for "no such segment".
    let said =
        call(&scene, &["--passphrase-file", "wrong"], &["wal", "get", "000000010000000000000001", "x"]);
    assert!(said.code() > 200, "{}", said.all());
}

#[test]
fn x06_weak_passphrases_and_missing_places_make_nothing() {
    let scene = bare_scene();
    for weak in ["", "\n", "short\n"] {
        scene.write("passphrase", weak);
        call(&scene, WITH_PASSPHRASE, INIT).refused(2, &["passphrase"]);
    }
    call(&scene, &[], INIT).refused(2, &["neither a key file nor a passphrase", "hint:"]);
    scene.write("passphrase", &format!("{PASSPHRASE}\n"));
    call(&scene, WITH_PASSPHRASE, &["init", "--no-server"])
        .refused(2, &["recovery key", "--recovery-key-file"]);
    // A folder may be there by now, for the next attempt; nothing is in it but folders.
    assert_eq!(files_below(&scene.path("repository")), 0);
    assert!(!scene.path("recovery-key").exists());
    call(&scene, WITH_PASSPHRASE, &["list"]).refused(3, &["hint:", "`pgkeep init`"]);
    // A folder that holds something else is not ours to fill.
    scene.make_folder("repository");
    scene.write("repository/notes.txt", "mine");
    call(&scene, WITH_PASSPHRASE, INIT).refused(6, &["notes.txt", "hint:"]);
    assert!(!scene.path("recovery-key").exists());
}

fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

#[test]
fn x06_init_twice_changes_nothing() {
    let scene = scene_with_passphrase();
    let key = std::fs::read(scene.path("recovery-key")).unwrap();
    let before = keys(&scene, WITH_PASSPHRASE);
    ok(&scene, WITH_PASSPHRASE, INIT);
    ok(&scene, WITH_PASSPHRASE, &["init", "--no-server", "--recovery-key-file", "another"]);
    assert!(!scene.path("another").exists());
    assert_eq!(std::fs::read(scene.path("recovery-key")).unwrap(), key);
    assert_eq!(keys(&scene, WITH_PASSPHRASE), before);
}

#[test]
fn x06_keys_are_added_and_removed_and_the_last_one_stays() {
    let scene = scene_with_passphrase();
    let by_key = &["--key-file", "machine"];
    ok(&scene, WITH_PASSPHRASE, &["key", "add", "--file", "machine", "--label", "the host"]);
    scene.write("second", "another good passphrase\n");
    ok(&scene, by_key, &["key", "add", "--new-passphrase-file", "second"]);
    ok(&scene, by_key, &["key", "add", "--recovery", "paper"]);
    assert_eq!(keys(&scene, &["--passphrase-file", "second"]).len(), 5);
    assert_eq!(keys(&scene, &["--key-file", "paper"]).len(), 5);
    call(&scene, by_key, &["key", "add", "--file", "machine"]).refused(6, &["exists already", "hint:"]);

    let machine = slot(&keys(&scene, by_key), "key");
    call(&scene, by_key, &["key", "remove", &machine]).refused(6, &["uses itself", "hint:"]);
    call(&scene, WITH_PASSPHRASE, &["key", "remove", &machine]).refused(2, &["--yes"]);
    ok(&scene, WITH_PASSPHRASE, &["key", "remove", &machine, "--yes"]);
    call(&scene, by_key, &["list"]).refused(2, &["hint:", "`pgkeep key add`"]);
    call(&scene, WITH_PASSPHRASE, &["key", "remove", &machine, "--yes"]).refused(3, &["no such key"]);

    let by_paper = &["--key-file", "paper"];
    let mut left = 4;
    while left > 1 {
        // Its own slot is the one that it is refused to remove without `--yes`.
        let others = keys(&scene, by_paper);
        let is_own =
            |slot: &str| call(&scene, by_paper, &["key", "remove", slot]).all().contains("uses itself");
        let other =
            others.iter().map(|key| key["slot"].as_str().unwrap()).find(|slot| !is_own(slot)).unwrap();
        ok(&scene, by_paper, &["key", "remove", other, "--yes"]);
        left -= 1;
        assert_eq!(keys(&scene, by_paper).len(), left);
    }
    let last = slot(&keys(&scene, by_paper), "recovery");
    call(&scene, by_paper, &["key", "remove", &last, "--yes"]).refused(6, &["last one", "hint:"]);
    assert_eq!(keys(&scene, by_paper).len(), 1);
}

#[test]
fn x06_a_key_is_rotated_and_the_old_one_opens_nothing() {
    let scene = scene_with_passphrase();
    ok(&scene, WITH_PASSPHRASE, &["key", "add", "--file", "machine", "--label", "the host"]);
    scene.write("next", "another good passphrase\n");
    let rotated = ok(&scene, WITH_PASSPHRASE, &["key", "rotate", "--new-passphrase-file", "next"]);
    assert!(rotated.out.contains("change what is configured"), "{}", rotated.out);
    call(&scene, WITH_PASSPHRASE, &["list"]).refused(2, &["hint:"]);
    let by_next = &["--passphrase-file", "next"];
    let before = keys(&scene, by_next);
    assert_eq!(before.len(), 3);

    let (machine, paper) = (slot(&before, "key"), slot(&before, "recovery"));
    ok(&scene, by_next, &["key", "rotate", "--slot", &machine, "--file", "machine-2"]);
    call(&scene, &["--key-file", "machine"], &["list"]).refused(2, &["hint:"]);
    ok(&scene, by_next, &["key", "rotate", "--slot", &paper, "--file", "paper-2"]);
    let after = keys(&scene, &["--key-file", "machine-2"]);
    assert_eq!(after, keys(&scene, &["--key-file", "paper-2"]));
    let kept: Vec<_> = after.iter().map(|key| (key["kind"].as_str(), key["label"].as_str())).collect();
    assert!(kept.iter().any(|key| key.0 == Some("recovery")), "{kept:?}");
    assert!(kept.contains(&(Some("key-file"), Some("the host"))), "{kept:?}");

    call(&scene, by_next, &["key", "rotate", "--slot", &machine, "--file", "x"]).refused(3, &["no such key"]);
    assert!(!scene.path("x").exists());
    scene.write("weak", "short\n");
    call(&scene, by_next, &["key", "rotate", "--new-passphrase-file", "weak"]).refused(2, &["too weak"]);
    for point in ["rotation.added", "rotation.tried", "rotation.removed"] {
        scene.write("killed", &format!("{point} is a passphrase\n"));
        let rotation = ["key", "rotate", "--new-passphrase-file", "killed", "--slot"];
        let own = slot(&keys(&scene, &["--key-file", "paper-2"]), "passphrase");
        let mut command = scene.bare_command();
        command.args(rotation).arg(&own).args(["--repository", "./repository", "--key-file", "paper-2"]);
        let said = scene::said(command.env("PGKEEP_FAILPOINT", point));
        assert!(said.output.status.code().is_none(), "{point}: {}", said.all());
        assert!(keys(&scene, &["--passphrase-file", "killed"]).len() >= 3, "{point}");
    }
}

#[test]
fn x06_the_key_of_another_repository_opens_nothing() {
    let scene = scene_with_passphrase();
    let other = Scene::any();
    other.init();
    scene.write("foreign", &std::fs::read_to_string(other.path("key")).unwrap());
    call(&scene, &["--key-file", "foreign"], &["list"]).refused(2, &["hint:"]);
    scene.write("truncated", &std::fs::read_to_string(scene.path("recovery-key")).unwrap()[..20]);
    call(&scene, &["--key-file", "truncated"], &["list"]).refused(2, &["truncated"]);
    scene.write("zeros", &"\0".repeat(80));
    call(&scene, &["--key-file", "zeros"], &["list"]).refused(2, &["zeros"]);
    assert_eq!(keys(&scene, &["--key-file", "recovery-key"]).len(), 2, "the other keys still open it");
}

#[test]
fn x06_a_writer_adds_and_cannot_read() {
    let scene = Scene::any();
    scene.init();
    scene.ok(&["key", "writer", "writer"]);
    scene.write(
        "pgkeep.toml",
        "repository = \"./repository\"\nwriter_file = \"writer\"\nstate_dir = \"state\"\n",
    );
    let server = scene.start_server(|builder| builder);
    ledger::make(&server);
    ledger::add(&server, 1, 10);
    scene.backup(&server, &[]);
    ledger::add(&server, 11, 20);
    scene.backup(&server, &[]);
    ledger::add(&server, 21, 30);
    flush_wal(&server);
    let into = scene.text_path("restored");
    for command in ["list", "status"] {
        scene.run(&[command]).refused(2, &["writer credential", "hint:"]);
    }
    scene.run(&["restore", "--into", &into]).refused(2, &["hint:", "--key-file"]);
    let said = scene.run(&["wal", "get", "000000010000000000000001", &scene.text_path("segment")]);
    assert!(said.code() > 200 && !scene.path("segment").exists(), "{}", said.all());
    assert!(!scene.path("restored").exists());

    scene.write("pgkeep.toml", "repository = \"./repository\"\nkey_file = \"key\"\nstate_dir = \"state\"\n");
    let restored = scene.start_restored(&scene.restore("restored", &[]));
    ledger::assert_prefix(&restored, 30, "what the writer added");
}
