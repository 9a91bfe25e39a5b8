//! Backups and WAL that the policy keeps no longer, with the real program: whatever it keeps still restores.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use scene::{Scene, flush_wal, judges, ledger, sql, text};
use server::throwaway::{StopMode, Throwaway};

const EXPIRE: [&str; 7] = [
    "expire",
    "--set",
    "retention.keep=2",
    "--set",
    "retention.keep_at_least=1",
    "--set",
    "retention.keep_daily=0",
];

fn now(server: &Throwaway) -> String {
    text(server, "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'")
}

#[test]
fn what_is_kept_restores_and_the_rest_is_gone() {
    let scene = Scene::any();
    scene.init();
    scene.ok(&["expire"]);
    let server = scene.start_server(|builder| builder.wal_segment_size_mib(1).setting("wal_keep_size", "64"));
    ledger::make(&server);
    let (mut ids, mut moments) = (Vec::new(), Vec::new());
    for rows in 1..=5 {
        ledger::add(&server, rows * 10 - 9, rows * 10);
        ids.push(scene.backup(&server, &[])["id"].as_str().unwrap().to_owned());
        moments.push(now(&server));
        sql(&server, "select pg_sleep(1.1)");
        ledger::add(&server, rows * 10 + 1, rows * 10 + 1);
        sql(&server, &format!("delete from ledger where id = {}", rows * 10 + 1));
        flush_wal(&server);
    }
    scene.ok(&["pin", &ids[1], "--until", "90d", "--note", "before the move"]);
    let before = scene.json(&["wal", "list", "--offline"]);
    let dry = scene.ok(&[&EXPIRE[..], &["--dry-run"]].concat());
    assert!(dry.out.contains("pinned") && dry.out.contains("dry run"), "{}", dry.out);
    assert!(dry.out.lines().all(|line| line.chars().count() <= 80), "{}", dry.out);
    assert_eq!(scene.json(&["wal", "list", "--offline"]), before, "a dry run removes nothing");
    let done = scene.json(&EXPIRE);
    assert_eq!(done["done"]["backups_expired"], serde_json::json!([ids[0], ids[2]]));
    assert!(done["done"]["wal_bytes"].as_u64().unwrap() > 0);

    scene.ok(&["list"]);
    scene.ok(&["status"]);
    assert!(scene.ok(&["info", &ids[1]]).out.contains("before the move"));
    scene.run(&["restore", &ids[0], "--into", &scene.text_path("none"), "--dry-run"]).refused(3, &[&ids[0]]);
    // The pinned one alone, to its own end; the window to its beginning, to a moment in it and to its end.
    let alone = scene.restore("alone", &[&ids[1], "--to", "immediate"]);
    judges::verify_backup(&scene, &alone);
    ledger::assert_prefix(&scene.start_restored(&alone), 20, "the pinned backup");
    for (name, at, rows) in [("begin", 3, 40), ("within", 4, 50)] {
        let into = scene.restore(name, &["--to", &moments[at]]);
        let mut restored = scene.start_restored(&into);
        ledger::assert_prefix(&restored, rows, name);
        restored.stop(StopMode::Immediate).unwrap();
    }
    scene.ok(&["pin", &ids[1], "--remove"]);
    scene.ok(&EXPIRE);
    assert_eq!(scene.json(&["list"])["backups"].as_array().unwrap().len(), 2);
    scene.ok(&["status"]);
}
