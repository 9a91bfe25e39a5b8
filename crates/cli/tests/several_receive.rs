//! Several repositories and `pgkeep wal receive`: whole segments are in each, and the first waits for none of the others.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use scene::receiver::{Receiver, end_of_wal, start_server, switch, wait_until_flushed};
use scene::{Scene, judges, ledger, wait_for};
use server::throwaway::Binaries;

const TABLES: &str = "[[repository]]\nurl = \"./repository\"\n\
    [[repository]]\nname = \"second\"\nurl = \"./second\"\nkey_file = \"key-second\"\n";
const IN_SECOND: [&str; 2] = ["--repository", "second"];

/// The end of the WAL that a repository has whole.
fn stored_to(scene: &Scene, options: &[&str]) -> pg::Lsn {
    let list = scene.json(&[&["wal", "list", "--offline"], options].concat());
    list["end"]["lsn"].as_str().unwrap_or("0/1").parse().unwrap()
}

fn assert_restores(scene: &Scene, into: &str, last: i64) {
    let into = scene.restore(into, &IN_SECOND);
    judges::verify_backup(scene, &into);
    ledger::assert_prefix(&scene.start_restored(&into), last, "from the second");
}

#[test]
fn whole_segments_are_in_both_and_a_second_that_is_away_holds_nothing_up() {
    let scene = Scene::with(Binaries::require(None).unwrap(), TABLES);
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "100ms"]);
    scene.backup(&server, &[]);
    ledger::add(&server, 1, 20);
    switch(&server);
    let end = end_of_wal(&server);
    // Nothing but the receiver brings it there.
    wait_for("the segment in the second", || (stored_to(&scene, &IN_SECOND) >= end).then_some(()));
    receiver.stop();
    assert_restores(&scene, "received", 20);

    std::fs::rename(scene.path("second"), scene.path("away")).unwrap();
    let mut receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "100ms"]);
    for round in 0..8 {
        ledger::add(&server, 21 + round, 21 + round);
        switch(&server);
    }
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.wait_for("repository second does not get what the first has");
    let told = receiver.told();
    assert_eq!(told.matches("does not get").count(), 1, "once, not for each segment: {told}");
    std::fs::rename(scene.path("away"), scene.path("second")).unwrap();
    assert!(stored_to(&scene, &IN_SECOND) < stored_to(&scene, &[]), "it missed some");
    scene.backup(&server, &[]);
    receiver.stop();
    scene.ok(&["copy", "--to", "second", "--wal"]);
    assert_restores(&scene, "copied", 28);
}

#[test]
fn a_required_repository_is_refused_since_it_is_not_waited_for() {
    let scene = Scene::with(Binaries::require(None).unwrap(), &format!("{TABLES}required = true\n"));
    scene.init();
    let said = scene.run(&["wal", "receive", "--database-url", "host=/nowhere"]);
    said.refused(2, &["repository second is required", "pgkeep wal push"]);
}
