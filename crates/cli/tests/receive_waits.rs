//! `pgkeep wal receive` while it has to wait: for a storage that is down, a server that has no room or is not there, and with
//! several hosts, of which only one has what comes next.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use scene::receiver::{Receiver, assert_restores, end_of_wal, start_server, switch, wait_until_flushed};
use scene::{Scene, ledger, number, sql, wait_for};
use server::throwaway::{StopMode, Throwaway};

/// The folder of the WAL in the repository, which nobody may open until this is dropped.
struct Down(PathBuf);

impl Down {
    fn of(scene: &Scene) -> Self {
        let down = Self(scene.path("repository/clusters/main/wal"));
        down.allow(0o000);
        down
    }

    fn allow(&self, mode: u32) {
        std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        self.allow(0o700);
    }
}

fn slots(server: &Throwaway, condition: &str) -> i64 {
    number(server, &format!("select count(*) from pg_replication_slots where {condition}"))
}

#[test]
fn a_server_that_shuts_down_does_not_wait_for_a_storage_that_is_down() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let mut server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let mut receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    let down = Down::of(&scene);
    ledger::add(&server, 1, 20);
    switch(&server);
    ledger::add(&server, 21, 40);
    receiver.wait_for("cannot be stored");
    let begun = Instant::now();
    server.stop(StopMode::Fast).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    receiver.wait_for("the connection to the server is closed");
    server.start().unwrap();
    ledger::add(&server, 41, 60);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(slots(&server, "active"), 0, "it waits without a connection: {}", receiver.told());
    drop(down);
    let begun = Instant::now();
    wait_until_flushed(&server, end_of_wal(&server));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    receiver.stop();
    assert_restores(&scene, "restored", 60);
}

#[test]
fn a_dropped_slot_is_not_made_again_before_the_storage_answers_though_nothing_is_left_to_store() {
    let Some(scene) = Scene::of(17) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let url = server.conninfo();
    let receiver = Receiver::streaming(&scene, &url, &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    receiver.stop();
    let down = Down::of(&scene);
    for round in 0..12 {
        ledger::add(&server, round * 10 + 1, round * 10 + 10);
        switch(&server);
    }
    let mut receiver = Receiver::start(&scene, &url, &["--max-lag", "20ms", "--slot-limit", "8MiB"]);
    receiver.wait_for("the repository fails");
    receiver.wait_for("is dropped so that");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(slots(&server, "true"), 0, "{}", receiver.told());
    assert_eq!(receiver.told().matches("is dropped so that").count(), 1, "{}", receiver.told());
    drop(down);
    // The server had not removed anything yet: there is a slot again, and no gap.
    wait_for("a new slot", || (slots(&server, "active") == 1).then_some(()));
    ledger::add(&server, 121, 130);
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    assert_restores(&scene, "restored", 130);
}

#[test]
fn a_server_that_is_not_there_or_has_no_room_is_waited_for_from_the_start() {
    let Some(scene) = Scene::of(16) else { return };
    scene.init();
    let mut server = start_server(&scene, |builder| builder.setting("max_wal_senders", "1"));
    let first = Receiver::streaming(&scene, &server.conninfo(), &["--slot", "pgkeep_first"]);
    let mut receiver = Receiver::start(&scene, &server.conninfo(), &[]);
    receiver.wait_for("max_wal_senders");
    first.kill();
    receiver.wait_for("\"streaming\"");
    receiver.stop();
    server.stop(StopMode::Fast).unwrap();
    let mut receiver = Receiver::start(&scene, &server.conninfo(), &[]);
    receiver.wait_for("the server fails");
    server.start().unwrap();
    let begun = Instant::now();
    receiver.wait_for("\"streaming\"");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    receiver.stop();
}

#[test]
fn a_server_that_refuses_us_is_not_waited_for() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    sql(&server, "create role reader login");
    let refused = |user: &str, words: &[&str]| {
        let url = server.conninfo().replace("user='postgres'", &format!("user={user}"));
        scene.run(&["wal", "receive", "--database-url", &url]).refused(2, words);
    };
    refused("nobody_at_all", &["nobody_at_all"]);
    refused("reader", &["ALTER ROLE"]);
}

/// Settings with several hosts, of which libpq may take any.
fn hosts(servers: &[&Throwaway]) -> String {
    let folders: Vec<_> =
        servers.iter().map(|server| server.socket_directory().to_str().unwrap().to_owned()).collect();
    format!("host={} port={} dbname=postgres user=postgres", folders.join(","), servers[0].port())
}

#[test]
fn a_host_that_lacks_what_comes_next_is_no_gap_while_another_one_has_it() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let primary = start_server(&scene, |builder| builder);
    ledger::make(&primary);
    let receiver = Receiver::streaming(&scene, &primary.conninfo(), &["--max-lag", "20ms"]);
    scene.backup(&primary, &[]);
    ledger::add(&primary, 1, 20);
    wait_until_flushed(&primary, end_of_wal(&primary));
    receiver.stop();
    for _ in 0..3 {
        switch(&primary);
    }
    // Its WAL begins with the copy that it is made from.
    let standby = Throwaway::builder(&scene.binaries).start_standby_of(&primary).unwrap();
    ledger::add(&primary, 21, 40);
    let mut receiver = Receiver::start(&scene, &hosts(&[&standby, &primary]), &["--max-lag", "20ms"]);
    receiver.wait_for("target_session_attrs");
    wait_until_flushed(&primary, end_of_wal(&primary));
    assert!(!receiver.told().contains("is gone for good"), "{}", receiver.told());
    assert_eq!(slots(&standby, "true"), 0, "nobody would empty it: {}", receiver.told());
    receiver.stop();
    let status = scene.json(&["status"]);
    assert_eq!(status["problems"].as_array().unwrap().len(), 0, "{status}");
    assert_restores(&scene, "restored", 40);
}

#[test]
fn all_sessions_are_with_the_host_that_was_chosen_first() {
    let Some(scene) = Scene::of(17) else { return };
    scene.init();
    let primary = start_server(&scene, |builder| builder);
    let standby = Throwaway::builder(&scene.binaries).start_standby_of(&primary).unwrap();
    let any = hosts(&[&primary, &standby]) + " load_balance_hosts=random";
    for round in 0..8 {
        // A slot of its own each time: it is only where this receiver made it.
        let receiver = Receiver::streaming(&scene, &any, &["--slot", &format!("pgkeep_{round}")]);
        let told = receiver.told();
        assert!(!told.contains("the server fails"), "{told}");
        receiver.stop();
    }
}
