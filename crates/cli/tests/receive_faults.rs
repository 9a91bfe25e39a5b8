//! `pgkeep wal receive` when something goes wrong: killed at every point, without its server, storage, network or slot, and
//! over a promotion. It goes on without a gap, or the gap is known.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scene::receiver::{
    GAP_POINT, POINTS, Receiver, assert_restores, end_of_wal, start_server, stored_to, switch, wait_for_kill,
    wait_until_flushed,
};
use scene::wire::Wire;
use scene::{Scene, ledger, number, sql, text, wait_for};

#[test]
fn killed_at_any_point_it_goes_on_and_nothing_is_missing() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let mut last = 0;
    for (at, (point, time)) in POINTS.iter().enumerate() {
        let point = format!("{point}:{time}");
        let receiver = Receiver::start_with(&scene, &server.conninfo(), &["--max-lag", "20ms"], Some(&point));
        let killed = wait_for_kill(receiver, || {
            ledger::add(&server, last + 1, last + 20);
            last += 20;
            if last % 100 == 0 {
                switch(&server);
            }
        });
        assert!(killed, "{point} was not reached");
        if at == 0 {
            // From here on a backup can be brought to anything that comes.
            let receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
            scene.backup(&server, &[]);
            receiver.kill();
        }
    }
    ledger::add(&server, last + 1, last + 20);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    let status = scene.json(&["status"]);
    assert_eq!(status["problems"].as_array().unwrap().len(), 0, "{status}");
    assert_restores(&scene, "restored", last + 20);
}

/// How many of something a campaign asks for; a slice of it runs always.
fn campaign(variable: &str, slice: u64) -> u64 {
    std::env::var(variable).map_or(slice, |text| text.parse().unwrap())
}

/// `PGKEEP_TEST_KILLS=200 cargo nextest run -p cli --test receive_faults at_random` kills as often.
#[test]
fn killed_at_random_times_under_load_it_loses_nothing() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let url = server.conninfo();
    let mut receiver = Receiver::streaming(&scene, &url, &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    let load = ledger::Load::start(&server, 2);
    // A multiplicative sequence is random enough for times, and the same in every run.
    let mut random = 0x9E37_79B9_u64;
    for _ in 0..campaign("PGKEEP_TEST_KILLS", 5) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(50 + (random >> 33) % 900));
        receiver.kill();
        receiver = Receiver::start(&scene, &url, &["--max-lag", "20ms"]);
    }
    let (acknowledged, _) = load.stop();
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    let status = scene.json(&["status"]);
    assert_eq!(status["problems"].as_array().unwrap().len(), 0, "{status}");
    let into = scene.restore("restored", &["--to", "latest"]);
    assert_eq!(ledger::ids(&scene.start_restored(&into)), acknowledged);
}

#[test]
fn a12_killed_it_is_back_within_ten_seconds() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &[]);
    receiver.kill();
    let begun = Instant::now();
    let _receiver = Receiver::streaming(&scene, &server.conninfo(), &[]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_restarts_is_followed() {
    let Some(scene) = Scene::of(17) else { return };
    scene.init();
    let mut server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "50ms"]);
    scene.backup(&server, &[]);
    ledger::add(&server, 1, 50);
    server.restart().unwrap();
    let begun = Instant::now();
    ledger::add(&server, 51, 100);
    wait_until_flushed(&server, end_of_wal(&server));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    receiver.stop();
    assert_restores(&scene, "restored", 100);
}

#[test]
fn a14_a_dropped_slot_whose_wal_is_gone_is_a_gap_that_everybody_tells_of() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let settings = [("max_wal_size", "4MB"), ("min_wal_size", "2MB"), ("wal_keep_size", "4MB")];
    let server = start_server(&scene, |builder| {
        settings.iter().fold(builder, |builder, (name, value)| builder.setting(name, value))
    });
    ledger::make(&server);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    ledger::add(&server, 1, 30);
    sql(&server, "select pg_create_restore_point('before')");
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    scene.ok(&["wal", "receive", "--drop-slot", "--database-url", &server.conninfo()]);
    for _ in 0..8 {
        switch(&server);
    }
    sql(&server, "checkpoint");
    sql(&server, "checkpoint");

    let oldest = text(
        &server,
        "select name from pg_ls_waldir() where length(name) = 24 and name <= pg_walfile_name(pg_current_wal_lsn())
        order by name limit 1",
    );

    let begun = Instant::now();
    let killed = Receiver::start_with(&scene, &server.conninfo(), &[], Some(GAP_POINT));
    assert!(wait_for_kill(killed, || {}), "the gap is written down before anything else");
    let mut receiver = Receiver::start(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    receiver.wait_for("is gone for good");
    assert!(begun.elapsed() < Duration::from_secs(60));
    ledger::add(&server, 31, 60);
    switch(&server);
    wait_until_flushed(&server, end_of_wal(&server));
    let problems = scene.run(&["status", "--json"]);
    assert_eq!(problems.code(), 5, "{}", problems.all());
    assert!(
        problems.out.contains("take one now") && problems.out.contains("already been removed"),
        "{}",
        problems.out
    );
    let list = scene.run(&["wal", "list", "--offline"]);
    list.refused(0, &["problem: WAL from", "was not received"]);
    let list = scene.json(&["wal", "list", "--offline"]);
    assert!(!list["gaps"][0]["filled"].as_bool().unwrap());
    assert_eq!(
        list["timelines"][0]["runs"][1]["first"].as_str(),
        Some(&*oldest),
        "what the server still had is there: {list}"
    );

    // What lies before the gap is reached, to the last byte; what would stop in it is refused; the next backup goes on.
    let early = scene.restore("early", &["--to", "name:before"]);
    ledger::assert_prefix(&scene.start_restored(&early), 30, "before the gap");
    let refused = scene.run(&["restore", "--into", &scene.text_path("late"), "--to", "latest"]);
    refused.refused(3, &["WAL is missing from"]);
    scene.backup(&server, &[]);
    ledger::add(&server, 61, 90);
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    let said = scene.run(&["status"]);
    assert!(!said.out.contains("take one now"), "{}", said.out);
    assert_restores(&scene, "late", 90);
}

#[test]
fn a_storage_that_is_down_is_waited_for_and_nothing_is_missing() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let mut receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    let wal = scene.path("repository/clusters/main/wal");
    let forbid = |folder: &Path, mode| {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap()
    };
    forbid(&wal, 0o000);
    for round in 0..6 {
        ledger::add(&server, round * 20 + 1, round * 20 + 20);
        switch(&server);
    }
    receiver.wait_for("cannot be stored");
    std::thread::sleep(Duration::from_secs(campaign("PGKEEP_TEST_OUTAGE_S", 1)));
    assert_eq!(
        number(
            &server,
            "select count(*) from pg_stat_replication where flush_lsn > (select restart_lsn + 1048576 from pg_replication_slots)"
        ),
        0
    );
    forbid(&wal, 0o700);
    receiver.wait_for("can be stored again");
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    assert_restores(&scene, "restored", 120);
}

#[test]
fn killed_while_one_segment_cannot_be_stored_it_stores_that_one_too() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let mut receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    // Something that is no segment stands where the one being written is to go.
    let name = text(&server, "select pg_walfile_name(pg_current_wal_lsn() + 1)");
    let obstacle = scene.make_folder(&format!("repository/clusters/main/wal/00000001/00000000/{name}"));
    for round in 0..4 {
        ledger::add(&server, round * 20 + 1, round * 20 + 20);
        switch(&server);
    }
    receiver.wait_for("cannot be stored");
    std::thread::sleep(Duration::from_secs(1));
    receiver.kill();
    sql(&server, "checkpoint");
    std::fs::remove_dir(obstacle).unwrap();
    let receiver = Receiver::start(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    let status = scene.json(&["status"]);
    assert_eq!(status["problems"].as_array().unwrap().len(), 0, "{status}");
    assert_restores(&scene, "restored", 80);
}

#[test]
fn a_slot_past_its_limit_is_dropped_before_it_fills_the_servers_disk() {
    let Some(scene) = Scene::of(17) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let url = server.conninfo();
    let mut receiver = Receiver::streaming(&scene, &url, &["--max-lag", "20ms", "--slot-limit", "8MiB"]);
    scene.backup(&server, &[]);
    let wal = scene.path("repository/clusters/main/wal");
    std::fs::set_permissions(&wal, std::fs::Permissions::from_mode(0o000)).unwrap();
    for round in 0..12 {
        ledger::add(&server, round * 10 + 1, round * 10 + 10);
        switch(&server);
    }
    ledger::add(&server, 121, 125);
    receiver.wait_for("more than the limit of 8 MiB");
    receiver.wait_for("is dropped so that");
    assert_eq!(number(&server, "select count(*) from pg_replication_slots"), 0);
    std::fs::set_permissions(&wal, std::fs::Permissions::from_mode(0o700)).unwrap();
    // The server had not removed anything yet: there is a slot again, and no gap.
    wait_for("a new slot", || {
        (number(&server, "select count(*) from pg_replication_slots where active") == 1).then_some(())
    });
    ledger::add(&server, 126, 130);
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    assert_restores(&scene, "restored", 130);
}

#[test]
fn a_network_that_was_cut_is_back_and_so_is_the_receiver() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let wire = Wire::to(&server);
    let mut receiver = Receiver::streaming(&scene, &wire.conninfo(&server), &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    wire.cut.store(true, Ordering::Relaxed);
    ledger::add(&server, 1, 50);
    receiver.wait_for("said nothing for");
    // The server has given the lost connection up by itself, and with it the slot.
    wait_for("the slot", || {
        (number(&server, "select count(*) from pg_replication_slots where active") == 0).then_some(())
    });
    ledger::add(&server, 51, 100);
    std::thread::sleep(Duration::from_secs(campaign("PGKEEP_TEST_CUT_S", 0)));
    wire.cut.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    wait_until_flushed(&server, end_of_wal(&server));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    receiver.stop();
    assert_restores(&scene, "restored", 100);
}

#[test]
fn what_archive_command_pushes_too_is_stored_once() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = scene.start_server(|builder| builder.wal_segment_size_mib(1));
    ledger::make(&server);
    let mut receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    for round in 0..5 {
        ledger::add(&server, round * 20 + 1, round * 20 + 20);
        scene::flush_wal(&server);
    }
    wait_until_flushed(&server, end_of_wal(&server));
    assert_eq!(number(&server, "select failed_count from pg_stat_archiver"), 0, "{}", server.log());
    assert!(receiver.is_running(), "{}", receiver.told());
    receiver.stop();
    assert_restores(&scene, "restored", 100);
}

#[test]
fn another_clusters_server_is_refused() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let (first, other) = (start_server(&scene, |builder| builder), start_server(&scene, |builder| builder));
    let until = end_of_wal(&first).to_string();
    scene.ok(&["wal", "receive", "--until", &until, "--database-url", &first.conninfo()]);
    assert!(stored_to(&scene) >= until.parse().unwrap());
    let said = scene.run(&["wal", "receive", "--database-url", &other.conninfo()]);
    said.refused(6, &["belongs to another cluster"]);
    let said = scene.run(&["wal", "receive", "--slot", "Bad-Name", "--database-url", &first.conninfo()]);
    said.refused(2, &["is not the name of a slot"]);
}

#[test]
fn a_frozen_receiver_does_not_keep_the_slot_from_its_successor() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    let frozen = Receiver::streaming(&scene, &server.conninfo(), &[]);
    frozen.signal(Signal::STOP);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &[]);
    assert!(text(&server, "select application_name from pg_stat_replication limit 1").starts_with("pgkeep"));
    frozen.kill();
    receiver.stop();
}
