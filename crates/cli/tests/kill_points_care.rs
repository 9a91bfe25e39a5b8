//! C01: what verifies, expires, copies and prunes is killed at every named point, as by `kill -9`; then the plain command again
//! does the work, and nothing that was kept is lost.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use scene::points::{COPY, EXPIRE, PRUNE, VERIFY, backups, scene_with_ledger};
use scene::{flush_wal, judges, ledger, sql};
use server::throwaway::StopMode;

#[test]
fn c01_a_verification_that_was_killed_anywhere_has_proved_what_it_wrote_down() {
    let (scene, server) = scene_with_ledger(20);
    scene.backup(&server, &[]);
    flush_wal(&server);
    let proofs = scene.path("repository/clusters/main/proofs");
    let count = || std::fs::read_dir(&proofs).map_or(0, Iterator::count);
    for point in VERIFY {
        // Enough proofs for one to take their place.
        while count() < 7 && point != "verify.seen" && point != "verify.recorded" {
            scene.json(&["verify", "--budget", "1B"]);
        }
        let before = count();
        scene.killed_at(point, &["verify"]);
        match point {
            "verify.seen" => assert_eq!(count(), before),
            "verify.recorded" => assert_eq!(count(), before + 1),
            "verify.merged" => assert!(count() > 8, "the old ones are still there"),
            _ => assert_eq!(count(), 1, "{point}"),
        }
        let report = scene.json(&["verify", "--older-than", "1d"]);
        let written = point != "verify.seen";
        // The last batch and the WAL are written down one after the other.
        assert!(!written || report["packs_proved"] == 0, "{point}: {report}");
        assert_eq!(
            (&report["findings"], &report["never_proved"]),
            (&serde_json::json!([]), &serde_json::json!(0))
        );
        if point != "verify.removed" {
            std::fs::read_dir(&proofs)
                .unwrap()
                .for_each(|entry| std::fs::remove_file(entry.unwrap().path()).unwrap());
        }
    }
}

#[test]
fn c01_an_expire_that_was_killed_anywhere_is_finished_by_the_next() {
    let (scene, server) = scene_with_ledger(10);
    let expire = ["expire", "--set", "retention.keep=1", "--set", "retention.keep_at_least=1"];
    scene.backup(&server, &[]);
    for (point, rows) in EXPIRE.into_iter().zip(11..) {
        ledger::add(&server, rows, rows);
        flush_wal(&server);
        scene.backup(&server, &[]);
        scene.killed_at(point, &expire);
        // What is left is whole, and nothing in it looks stolen.
        scene.ok(&["list"]);
        scene.ok(&["status"]);
        scene.end_leases();
        scene.ok(&expire);
        assert_eq!(backups(&scene), 1, "{point}");
        scene.ok(&["status"]);
        let into = scene.restore("restored", &[]);
        judges::verify_backup(&scene, &into);
        std::fs::remove_dir_all(into).unwrap();
    }
    flush_wal(&server);
    let restored = scene.start_restored(&scene.restore("restored", &[]));
    ledger::assert_prefix(&restored, 10 + EXPIRE.len() as i64, "after all kills");
}

#[test]
fn c01_a_copy_that_was_killed_anywhere_is_finished_by_the_next() {
    let (scene, server) = scene_with_ledger(10);
    scene.backup(&server, &[]);
    ledger::add(&server, 11, 40);
    scene.backup(&server, &[]);
    ledger::add(&server, 41, 60);
    flush_wal(&server);
    for (number, point) in COPY.into_iter().enumerate() {
        let place = |name: &str| scene.text_path(&format!("{name}-{number}"));
        let (other, key, paper) = (place("other"), place("other-key"), place("other-paper"));
        let own = ["--repository", &other, "--key-file", &key];
        scene.ok(&[&["init", "--no-server", "--recovery-key-file", &paper][..], &own].concat());
        let copy = ["copy", "--to", &other, "--to-key-file", &key];
        scene.killed_at(point, &copy);
        assert_eq!(scene.json(&copy)["report"]["damaged"], serde_json::json!([]), "{point}");
        assert_eq!(scene.json(&copy)["report"]["stored_bytes"], 0, "{point}: there was nothing left to do");
        let into = scene.restore(&format!("copied-{number}"), &own);
        judges::verify_backup(&scene, &into);
        let mut restored = scene.start_restored(&into);
        ledger::assert_prefix(&restored, 60, point);
        restored.stop(StopMode::Fast).unwrap();
    }
}

#[test]
fn c01_a_prune_that_was_killed_anywhere_is_finished_by_the_next() {
    let (scene, server) = scene_with_ledger(10);
    sql(&server, "create table t (id int, x text) with (autovacuum_enabled = off)");
    let fill = "insert into t select g, string_agg(md5(random()::text), '') from generate_series(1, 16000) g, \
                generate_series(1, 30) group by g";
    let prune = ["prune", "--grace", "0s"];
    for (point, rows) in PRUNE.into_iter().zip(11..) {
        // Of the first backup little is named by the second, and nothing of what only the first had.
        sql(&server, &format!("truncate t; {fill}"));
        scene.backup(&server, &["--full"]);
        ledger::add(&server, rows, rows);
        sql(&server, "update t set x = reverse(x) where id % 100 >= 4");
        scene.backup(&server, &[]);
        flush_wal(&server);
        let expire = ["expire", "--set", "retention.keep=1", "--set", "retention.keep_at_least=1"];
        scene.ok(&expire);
        if point == "prune.deleted" || point == "prune.swept" {
            scene.ok(&prune);
        }
        scene.killed_at(point, &prune);
        scene.end_leases();
        for _ in 0..3 {
            scene.ok(&prune);
        }
        scene.ok(&["check"]);
        scene.ok(&["verify"]);
        let into = scene.restore("restored", &[]);
        judges::verify_backup(&scene, &into);
        std::fs::remove_dir_all(into).unwrap();
    }
    let restored = scene.start_restored(&scene.restore("restored", &[]));
    ledger::assert_prefix(&restored, 10 + PRUNE.len() as i64, "after all kills");
}
