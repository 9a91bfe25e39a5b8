//! `pgkeep wal receive` over promotions, with several hosts, and from a standby.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::path::Path;
use std::time::{Duration, Instant};

use scene::receiver::{
    Receiver, TIMELINE_POINTS, assert_restores, end_of_wal, start_server, wait_for_kill, wait_until_flushed,
};
use scene::{Scene, ledger, number, sql, wait_for};
use server::settings_check::restore_command;
use server::throwaway::{Throwaway, ThrowawayBuilder};

/// A standby of a server, in a folder of the scene, on a socket of its own.
fn start_standby(scene: &Scene, primary: &Throwaway, name: &str) -> Throwaway {
    start_standby_with(scene, primary, name, |builder| builder)
}

fn start_standby_with(
    scene: &Scene,
    primary: &Throwaway,
    name: &str,
    configure: impl FnOnce(ThrowawayBuilder) -> ThrowawayBuilder,
) -> Throwaway {
    let into = scene.text_path(name);
    let mut command = primary.command("pg_basebackup");
    command.args(["-D", &into, "-X", "stream", "-c", "fast", "-R"]);
    scene.as_user(&mut command);
    assert!(command.status().unwrap().success());
    let builder = configure(Throwaway::builder(&scene.binaries));
    builder.start_existing(Path::new(&into)).unwrap()
}

fn hosts(servers: &[&Throwaway]) -> String {
    let join = |part: &dyn Fn(&Throwaway) -> String| {
        servers.iter().map(|server| part(server)).collect::<Vec<_>>().join(",")
    };
    let folders = join(&|server| server.socket_directory().to_str().unwrap().to_owned());
    let ports = join(&|server| server.port().to_string());
    format!("host={folders} port={ports} dbname=postgres user=postgres")
}

/// Waits until the standby has replayed everything before `end`.
fn wait_until_replayed(standby: &Throwaway, end: impl std::fmt::Display) {
    let replayed = format!("select (pg_last_wal_replay_lsn() >= '{end}')::int");
    wait_for("the standby", || (number(standby, &replayed) == 1).then_some(()));
}

/// Has the receiver follow the promoted standby to the end of its WAL, and stop.
fn receive_second_timeline(mut receiver: Receiver, promoted: &Throwaway) {
    receiver.wait_for("\"timeline\":2");
    wait_until_flushed(promoted, end_of_wal(promoted));
    receiver.stop();
}

/// The settings that lead to whichever of the servers is the primary.
fn primary_of(servers: &[&Throwaway]) -> String {
    hosts(servers) + " target_session_attrs=read-write"
}

#[test]
fn a09_a_promoted_standby_is_followed_onto_its_timeline() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let mut primary = start_server(&scene, |builder| builder);
    ledger::make(&primary);
    let standby = start_standby(&scene, &primary, "standby");
    let mut receiver =
        Receiver::streaming(&scene, &primary_of(&[&primary, &standby]), &["--max-lag", "20ms"]);
    scene.backup(&primary, &[]);
    ledger::add(&primary, 1, 50);
    let end = end_of_wal(&primary);
    wait_until_flushed(&primary, end);
    wait_until_replayed(&standby, end);
    primary.kill();
    sql(&standby, "select pg_promote()");
    let begun = Instant::now();
    ledger::add(&standby, 51, 100);
    receiver.wait_for("\"timeline\":2");
    wait_until_flushed(&standby, end_of_wal(&standby));
    eprintln!("followed after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    receiver.stop();
    let status = scene.json(&["status"]);
    assert_eq!(status["problems"].as_array().unwrap().len(), 0, "{status}");
    let list = scene.json(&["wal", "list", "--offline"]);
    assert_eq!(
        (list["end"]["timeline"].as_u64(), list["timelines"][1]["history"].as_bool()),
        (Some(2), Some(true)),
        "{list}"
    );
    assert_restores(&scene, "restored", 100);
}

#[test]
fn wal_is_received_from_a_standby_too_and_over_its_promotion() {
    let Some(scene) = Scene::of(17) else { return };
    scene.init();
    let primary = start_server(&scene, |builder| builder);
    ledger::make(&primary);
    let standby = start_standby(&scene, &primary, "standby");
    let mut receiver = Receiver::streaming(&scene, &standby.conninfo(), &["--max-lag", "20ms"]);
    // The primary has no slot of ours: a backup of it wants to see that its WAL comes.
    wait_until_flushed(&standby, end_of_wal(&primary));
    // The stop of a backup of the primary ends its segment, which comes by way of the standby.
    scene.backup(&primary, &[]);
    ledger::add(&primary, 1, 50);
    let end = end_of_wal(&primary);
    wait_until_flushed(&standby, end);
    drop(primary);
    sql(&standby, "select pg_promote()");
    ledger::add(&standby, 51, 80);
    receiver.wait_for("\"timeline_ended\"");
    wait_until_flushed(&standby, end_of_wal(&standby));
    receiver.stop();
    assert_restores(&scene, "restored", 80);
}

/// Rows 1 to 20 were on both timelines, 101 to 120 are on the new one, and the old one goes to its last row.
fn assert_both_timelines(scene: &Scene, last_of_old: i64) {
    let newest = scene.restore("newest", &["--to", "latest"]);
    let found = ledger::ids(&scene.start_restored(&newest));
    assert_eq!(found, (1..=20).chain(101..=120).collect(), "the new timeline");
    let old = scene.restore("old", &["--to", "latest", "--timeline", "1"]);
    ledger::assert_prefix(&scene.start_restored(&old), last_of_old, "the old timeline to its end");
}

#[test]
fn what_a_promoted_standby_never_had_stays_on_the_old_timeline() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let mut primary = start_server(&scene, |builder| builder);
    ledger::make(&primary);
    let mut standby = start_standby(&scene, &primary, "standby");
    let receiver = Receiver::streaming(&scene, &primary_of(&[&primary, &standby]), &["--max-lag", "20ms"]);
    scene.backup(&primary, &[]);
    ledger::add(&primary, 1, 20);
    wait_until_replayed(&standby, end_of_wal(&primary));
    standby.stop(server::throwaway::StopMode::Fast).unwrap();
    // Acknowledged, received and stored; the standby never hears of it.
    ledger::add(&primary, 21, 40);
    scene::receiver::switch(&primary);
    ledger::add(&primary, 41, 45);
    wait_until_flushed(&primary, end_of_wal(&primary));
    primary.kill();
    standby.start().unwrap();
    sql(&standby, "select pg_promote()");
    ledger::add(&standby, 101, 120);
    receive_second_timeline(receiver, &standby);
    assert_both_timelines(&scene, 45);
}

#[test]
fn killed_while_it_changes_timelines_it_goes_on() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let primary = start_server(&scene, |builder| builder);
    ledger::make(&primary);
    let standby = start_standby(&scene, &primary, "standby");
    let url = standby.conninfo();
    let mut receiver = Receiver::start_with(&scene, &url, &["--max-lag", "20ms"], Some(TIMELINE_POINTS[0]));
    receiver.wait_for("\"streaming\"");
    // The primary has no slot of ours: a backup of it wants to see that its WAL comes.
    wait_until_flushed(&standby, end_of_wal(&primary));
    scene.backup(&primary, &[]);
    ledger::add(&primary, 1, 30);
    wait_until_flushed(&standby, end_of_wal(&primary));
    drop(primary);
    sql(&standby, "select pg_promote()");
    assert!(wait_for_kill(receiver, || {}), "the timeline ended");
    let receiver = Receiver::start_with(&scene, &url, &[], Some(TIMELINE_POINTS[1]));
    assert!(wait_for_kill(receiver, || {}), "the history was stored");
    ledger::add(&standby, 31, 60);
    let receiver = Receiver::start(&scene, &url, &["--max-lag", "20ms"]);
    receive_second_timeline(receiver, &standby);
    assert_restores(&scene, "restored", 60);
}

#[test]
fn a_restarted_receiver_keeps_what_only_the_repository_has() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let mut primary = start_server(&scene, |builder| builder);
    ledger::make(&primary);
    let mut standby = start_standby(&scene, &primary, "standby");
    let url = primary_of(&[&primary, &standby]);
    let receiver = Receiver::streaming(&scene, &url, &["--max-lag", "20ms"]);
    scene.backup(&primary, &[]);
    ledger::add(&primary, 1, 20);
    wait_until_replayed(&standby, end_of_wal(&primary));
    standby.stop(server::throwaway::StopMode::Fast).unwrap();
    // In the same segment, so that its beginning is streamed again and ends earlier.
    ledger::add(&primary, 21, 40);
    wait_until_flushed(&primary, end_of_wal(&primary));
    receiver.kill();
    primary.kill();
    standby.start().unwrap();
    sql(&standby, "select pg_promote()");
    ledger::add(&standby, 101, 120);
    let receiver = Receiver::start(&scene, &url, &["--max-lag", "20ms"]);
    receive_second_timeline(receiver, &standby);
    assert_both_timelines(&scene, 40);
}

#[test]
fn a_standby_that_has_more_than_the_archive_keeps_it_when_it_is_promoted() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let mut primary = start_server(&scene, |builder| builder);
    ledger::make(&primary);
    let command = restore_command(&scene.program(), &["--config", scene.config().to_str().unwrap()]);
    let receiver = Receiver::streaming(&scene, &primary.conninfo(), &["--max-lag", "20ms"]);
    let standby = start_standby_with(&scene, &primary, "standby", |builder| {
        builder.setting("restore_command", &command)
    });
    ledger::add(&primary, 1, 20);
    wait_until_flushed(&primary, end_of_wal(&primary));
    receiver.stop();
    ledger::add(&primary, 21, 60);
    wait_until_replayed(&standby, end_of_wal(&primary));
    primary.kill();
    // Time for it to ask the archive, which has only the beginning of the segment.
    std::thread::sleep(Duration::from_secs(2));
    sql(&standby, "select pg_promote()");
    ledger::assert_prefix(&standby, 60, "the promoted standby");
}
