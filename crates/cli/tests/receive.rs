//! `pgkeep wal receive`: every byte as the server wrote it, about a second behind, whatever happens in between.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use scene::receiver::{Receiver, assert_restores, end_of_wal, start_server, stored_to, wait_until_flushed};
use scene::{Scene, judges, ledger, number, sql, wait_for};
use server::throwaway::Throwaway;

/// PostgreSQL's own receiver, beside ours.
fn start_sentinel(scene: &Scene, server: &Throwaway, folder: &str) -> Child {
    let folder = scene.make_folder(folder);
    let mut command = server.command("pg_receivewal");
    command.args(["--slot", "sentinel", "--create-slot", "--if-not-exists"]);
    scene.as_user(&mut command);
    assert!(command.status().unwrap().success());
    let mut command = server.command("pg_receivewal");
    command.args(["--slot", "sentinel", "--no-loop", "-D", &folder]).stdout(Stdio::null());
    scene.as_user(&mut command).spawn().unwrap()
}

/// Every whole segment that PostgreSQL's receiver has is byte for byte what the archive gives back.
fn assert_same_as_sentinel(scene: &Scene, folder: &Path) -> usize {
    let mut compared = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.len() != 24 {
            continue;
        }
        let target = scene.text_path("got");
        scene.ok(&["wal", "get", &name, &target]);
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&target).unwrap(), "{name} differs");
        compared += 1;
    }
    compared
}

fn streamed_is_what_segments_hold(major: u16, segment_size_mib: u32) {
    let Some(scene) = Scene::of(major) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder.wal_segment_size_mib(segment_size_mib));
    ledger::make(&server);
    let mut sentinel = start_sentinel(&scene, &server, "sentinel");
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "100ms"]);
    for round in 0..4 {
        ledger::add(&server, round * 50 + 1, round * 50 + 50);
        sql(
            &server,
            "create table if not exists filler (x text); insert into filler
            select repeat(md5(g::text), 30) from generate_series(1, 3000) g; select pg_switch_wal()",
        );
    }
    let end = end_of_wal(&server);
    wait_until_flushed(&server, end);
    assert!(stored_to(&scene) >= end);
    wait_for("the sentinel", || {
        let whole = |name: std::ffi::OsString| name.len() == 24;
        let names =
            std::fs::read_dir(scene.path("sentinel")).unwrap().map(|entry| entry.unwrap().file_name());
        (names.filter(|name| whole(name.clone())).count() >= 4).then_some(())
    });
    receiver.stop();
    sentinel.kill().unwrap();
    sentinel.wait().unwrap();
    let compared = assert_same_as_sentinel(&scene, &scene.path("sentinel"));
    assert!(compared >= 4, "{compared} segments");
    let list = scene.json(&["wal", "list", "--offline"]);
    let unfinished = list["timelines"][0]["unfinished"].as_array().unwrap();
    assert!(unfinished.len() <= 1, "parts of whole segments are gone: {list}");
}

#[test]
fn a12_streamed_wal_is_what_segments_of_1_mib_hold_on_15() {
    streamed_is_what_segments_hold(15, 1);
}

#[test]
fn a12_streamed_wal_is_what_segments_of_16_mib_hold_on_16() {
    streamed_is_what_segments_hold(16, 16);
}

#[test]
fn a12_streamed_wal_is_what_segments_of_64_mib_hold_on_17() {
    streamed_is_what_segments_hold(17, 64);
}

#[test]
fn a12_streamed_wal_is_what_segments_of_16_mib_hold_on_18() {
    streamed_is_what_segments_hold(18, 16);
}

/// The server is killed and its disk deleted while clients write; returns what they were told is committed, with the moment.
fn lose_the_server_under_load(mut server: Throwaway, receiver: Receiver) -> Vec<(i64, Instant)> {
    let begun = Instant::now();
    let writers: Vec<_> = (1..=3i64)
        .map(|client| {
            let connection = server.connect().unwrap();
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                for id in client * 1_000_000.. {
                    let row = "insert into ledger (id, payload)
                        select id, repeat(md5(id::text), 1 + (id % 40)::int) from (select $1::bigint as id) given";
                    if connection.execute(row, &[&id.to_string()]).is_err() {
                        return acknowledged;
                    }
                    acknowledged.push((id, Instant::now()));
                    std::thread::sleep(Duration::from_millis(1));
                }
                acknowledged
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(4));
    server.kill();
    let data = server.data_directory().to_owned();
    drop(server);
    let _ = std::fs::remove_dir_all(data);
    let mut acknowledged: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    acknowledged.sort_by_key(|(_, at)| *at);
    assert!(acknowledged.len() > 20, "{} rows in {:?}", acknowledged.len(), begun.elapsed());
    // What came before the end is stored, although the server is gone.
    std::thread::sleep(Duration::from_millis(500));
    receiver.stop();
    acknowledged
}

#[test]
fn a_commit_that_waits_for_the_receiver_survives_the_loss_of_the_server() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    sql(&server, "alter system set synchronous_standby_names = 'pgkeep_main'");
    sql(&server, "select pg_reload_conf()");
    wait_for("synchronous replication", || {
        let sql = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        (number(&server, sql) == 1).then_some(())
    });
    let acknowledged = lose_the_server_under_load(server, receiver);
    let into = scene.restore("restored", &["--to", "latest"]);
    judges::verify_backup(&scene, &into);
    let restored = scene.start_restored(&into);
    let found = ledger::ids(&restored);
    for (id, _) in &acknowledged {
        assert!(
            found.contains(id),
            "{id} was acknowledged and is lost; {} of {}",
            found.len(),
            acknowledged.len()
        );
    }
}

#[test]
fn without_waiting_less_than_two_seconds_are_lost_with_the_server() {
    let Some(scene) = Scene::of(17) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &[]);
    scene.backup(&server, &[]);
    let acknowledged = lose_the_server_under_load(server, receiver);
    let into = scene.restore("restored", &["--to", "latest"]);
    let restored = scene.start_restored(&into);
    let found = ledger::ids(&restored);
    let last = acknowledged.last().unwrap().1;
    let lost: Vec<_> = acknowledged.iter().filter(|(id, _)| !found.contains(id)).collect();
    let lost_time = lost.first().map_or(Duration::ZERO, |(_, at)| last.duration_since(*at));
    eprintln!("lost {} of {} commits, {lost_time:?}", lost.len(), acknowledged.len());
    assert!(lost_time < Duration::from_secs(2), "{lost_time:?} are lost");
}

#[test]
fn a_busy_server_costs_a_part_a_second_and_an_idle_one_nothing() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder.wal_segment_size_mib(64));
    ledger::make(&server);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &[]);
    let begun = Instant::now();
    for at in 0..400 {
        ledger::add(&server, at * 2 + 1, at * 2 + 2);
        std::thread::sleep(Duration::from_millis(10));
    }
    wait_until_flushed(&server, end_of_wal(&server));
    let seconds = begun.elapsed().as_secs();
    let parts = || {
        let list = scene.json(&["wal", "list", "--offline"]);
        list["timelines"][0]["unfinished"][0]["parts"].as_u64().unwrap()
    };
    let stored = parts();
    assert!((3..=seconds + 1).contains(&stored), "{stored} parts in {seconds} s");
    std::thread::sleep(Duration::from_secs(4));
    // A server writes a note of its running transactions some time after the last one, and nothing more.
    assert!(parts() <= stored + 1, "{} parts after {stored}", parts());
    let list = scene.run(&["wal", "list", "--database-url", &server.conninfo()]);
    list.refused(0, &["Behind nothing; the server is at"]);
    receiver.stop();
}

/// Harms each part that is stored; returns their files.
fn damage_parts(folder: &Path) -> Vec<PathBuf> {
    let mut damaged = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damaged.extend(damage_parts(&path));
        } else if path.file_name().unwrap().to_str().unwrap().contains('-') {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[20] ^= 1;
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            damaged.push(path);
        }
    }
    damaged
}

#[test]
fn damaged_parts_are_told_and_kept_and_their_wal_is_stored_again() {
    let Some(scene) = Scene::of(17) else { return };
    scene.init();
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    scene.backup(&server, &[]);
    ledger::add(&server, 1, 30);
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.kill();
    let damaged = damage_parts(&scene.path("repository/clusters/main/wal"));
    assert!(!damaged.is_empty());
    let mut receiver = Receiver::streaming(&scene, &server.conninfo(), &["--max-lag", "20ms"]);
    receiver.wait_for("is damaged and is kept");
    ledger::add(&server, 31, 60);
    wait_until_flushed(&server, end_of_wal(&server));
    receiver.stop();
    assert!(damaged.iter().all(|path| path.exists()));
    assert_restores(&scene, "restored", 60);
}

#[test]
fn a_host_that_may_only_add_receives_and_resumes() {
    let Some(scene) = Scene::of(16) else { return };
    scene.init();
    scene.ok(&["key", "writer", "writer"]);
    let config = "repository = \"./repository\"\nwriter_file = \"writer\"\nstate_dir = \"state-of-writer\"\n";
    let config = scene.write("writer.toml", config);
    let server = start_server(&scene, |builder| builder);
    ledger::make(&server);
    let url = server.conninfo();
    scene.make_folder("state-of-writer");
    for round in 0..3 {
        let receiver = Receiver::streaming(&scene, &url, &["--max-lag", "20ms", "--config", &config]);
        if round == 0 {
            scene.backup(&server, &[]);
        }
        ledger::add(&server, round * 30 + 1, round * 30 + 30);
        wait_until_flushed(&server, end_of_wal(&server));
        receiver.kill();
    }
    let into = scene.restore("restored", &["--to", "latest"]);
    ledger::assert_prefix(&scene.start_restored(&into), 90, "what the writer added");
}
