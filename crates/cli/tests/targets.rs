//! R01, R02, R03, R10: every kind of target gives exactly the rows that were committed before it; what cannot be reached
//! is refused before anything is written; timelines; and a restored copy that leaves the archive alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::process::Command;

use scene::{Reading, Scene, flush_wal, ledger, number, sql, text};
use server::throwaway::{StopMode, Throwaway};

/// Moments between and at the commits of a ledger, each in the words of `--to`.
struct Moments {
    /// Between two commits.
    between: String,
    /// To the microsecond the time of a commit.
    commit: String,
    /// Where the record of a commit begins.
    lsn: String,
    xid: String,
}

const NOW: &str = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'";

/// Adds row `id` and looks at its commit from all sides.
fn commit(server: &Throwaway, id: i64) -> Moments {
    let connection = server.connect().unwrap();
    let one =
        |sql: &str| connection.query_one(sql, &[]).unwrap().first().unwrap().required(0).unwrap().to_owned();
    connection.execute("begin", &[]).unwrap();
    let row = format!("insert into ledger (id, payload) values ({id}, repeat(md5('{id}'), {}))", 1 + id % 40);
    connection.execute(&row, &[]).unwrap();
    let xid = one("select pg_current_xact_id()::text");
    let lsn = one("select pg_current_wal_insert_lsn()::text");
    connection.execute("commit", &[]).unwrap();
    let stamp = format!("pg_xact_commit_timestamp('{xid}'::xid) at time zone 'UTC'");
    let commit = one(&format!("select to_char({stamp}, 'YYYY-MM-DD HH24:MI:SS.US') || '+00'"));
    Moments { between: one(NOW), commit, lsn: format!("lsn:{lsn}"), xid: format!("xid:{xid}") }
}

/// A cluster with rows 1 to 10, a backup, rows 11 to 30 in the archive, and what was seen of the commit of row 15.
struct Past {
    scene: Scene,
    server: Throwaway,
    backup: String,
    before_backup: String,
    at_15: Moments,
}

fn past(major: u16) -> Option<Past> {
    past_reading(major, Reading::Locally)
}

fn past_reading(major: u16, reading: Reading) -> Option<Past> {
    let mut scene = Scene::of(major)?;
    scene.reading = reading;
    scene.init();
    // The exact time of a commit is a target too.
    let server = scene.start_server(|builder| builder.setting("track_commit_timestamp", "on"));
    ledger::make(&server);
    ledger::add(&server, 1, 5);
    let before_backup = text(&server, NOW);
    ledger::add(&server, 6, 10);
    let backup = scene.backup(&server, &[])["id"].as_str().unwrap().to_owned();
    ledger::add(&server, 11, 14);
    let at_15 = commit(&server, 15);
    ledger::add(&server, 16, 20);
    sql(&server, "select pg_create_restore_point('before-release')");
    ledger::add(&server, 21, 30);
    flush_wal(&server);
    Some(Past { scene, server, backup, before_backup, at_15 })
}

impl Past {
    /// Restores with these arguments into a folder of its own, and compares the ledger with rows `1..=last`.
    fn assert_reaches(&self, arguments: &[&str], last: i64) {
        let into = self.scene.restore("restored", arguments);
        let mut restored = self.scene.start_restored(&into);
        ledger::assert_prefix(&restored, last, &arguments.join(" "));
        restored.stop(StopMode::Immediate).unwrap();
        std::fs::remove_dir_all(into).unwrap();
    }
}

#[test]
fn r01_each_kind_of_target_is_an_exact_prefix() {
    let Some(past) = past(15) else { return };
    each_kind_of_target(&past);
}

#[test]
fn r01_each_kind_of_target_is_an_exact_prefix_of_what_came_over_sql() {
    for major in [15, 16, 17, 18] {
        let Some(past) = past_reading(major, Reading::OverSql) else { continue };
        each_kind_of_target(&past);
    }
}

fn each_kind_of_target(past: &Past) {
    let at = &past.at_15;
    past.assert_reaches(&["--to", "latest"], 30);
    past.assert_reaches(&["--to", "immediate"], 10);
    past.assert_reaches(&["--to", "name:before-release"], 20);
    past.assert_reaches(&["--to", &at.between], 15);
    past.assert_reaches(&["--to", &at.commit], 15);
    past.assert_reaches(&["--to", &at.commit, "--exclusive"], 14);
    past.assert_reaches(&["--to", &at.lsn], 15);
    past.assert_reaches(&["--to", &at.lsn, "--exclusive"], 14);
    past.assert_reaches(&["--to", &at.xid], 15);
    past.assert_reaches(&["--to", &at.xid, "--exclusive"], 14);
    past.assert_reaches(&[&past.backup, "--to", &format!("time:{}", at.between)], 15);
}

#[test]
fn r01_a_time_is_an_exact_prefix_on_18() {
    let Some(past) = past(18) else { return };
    past.assert_reaches(&["--to", &past.at_15.between], 15);
}

#[test]
fn r01_a_paused_restore_waits_readable_at_its_target() {
    let Some(past) = past(15) else { return };
    let into = past.scene.restore("restored", &["--to", &past.at_15.between, "--action", "pause"]);
    let builder = Throwaway::builder(&past.scene.binaries).setting("hot_standby", "on");
    let restored = builder.start_existing(&into).unwrap();
    scene::wait_for("the target", || {
        let paused = number(&restored, "select (pg_get_wal_replay_pause_state() = 'paused')::int");
        (paused == 1).then_some(())
    });
    ledger::assert_prefix(&restored, 15, "paused");
}

#[test]
fn r02_what_cannot_be_reached_is_refused_before_anything_is_written() {
    let Some(past) = past(15) else { return };
    let scene = &past.scene;
    let into = scene.text_path("restored");
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        scene.run(&[&["restore", "--into", &into], arguments].concat()).refused(code, words);
        scene.run(&[&["restore", "--dry-run", "--into", &into], arguments].concat()).refused(code, words);
        assert!(!scene.path("restored").exists(), "{arguments:?} wrote something");
    };
    refused(
        &["--to", &past.before_backup],
        3,
        &["no backup ends before", "hint:", "earliest reachable moment is"],
    );
    refused(&["--to", "lsn:0/1000028"], 3, &["no backup ends before", "earliest reachable moment is"]);
    refused(
        &["--to", "2099-01-01 00:00:00+00"],
        3,
        &["does not reach", "hint:", "latest reachable moment is"],
    );
    refused(&["--to", "lsn:7F/0"], 3, &["does not reach", "latest reachable moment is"]);
    refused(&["20200101T000000Z-full"], 3, &["20200101T000000Z-full", "hint:", "`pgkeep list`"]);
    refused(&["--to", "yesterday at noon"], 2, &["yesterday at noon"]);
    refused(&["--to", "latest", "--cluster", "other"], 3, &["other", "hint:"]);
    refused(
        &["--to", "latest", "--timeline", "9"],
        3,
        &["nothing of timeline 9", "hint:", "`pgkeep wal list`"],
    );
    let ends_too_late: &[&str] = &[&past.backup, "--to", &past.before_backup];
    refused(ends_too_late, 3, &["ends after", "hint:", "leave the backup out"]);

    // The hint's moment is one that can be reached.
    let said = scene.run(&["restore", "--into", &into, "--to", "2099-01-01 00:00:00+00", "--json"]);
    assert!(said.err.contains("\"not_found\"") && said.err.contains("\"exit_code\":3"), "{}", said.err);
}

#[test]
fn r06_a_directory_that_holds_something_is_refused_and_left_alone() {
    let Some(mut past) = past(15) else { return };
    let scene = &past.scene;
    let full = scene.make_folder("full");
    scene.write("full/notes.txt", "mine");
    scene.run(&["restore", "--into", &full]).refused(6, &["is not empty", "hint:", "--delta"]);
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(scene.path("full/notes.txt")).unwrap(), "mine");
    scene.run(&["restore", "--into", &full, "--delta"]).refused(6, &["cannot be restored over"]);
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1);

    // Not even a delta goes over a cluster whose server runs.
    let data = past.server.data_directory().to_str().unwrap().to_owned();
    scene.run(&["restore", "--into", &data, "--delta"]).refused(6, &["cannot be restored over"]);
    past.server.restart().unwrap();
    ledger::assert_prefix(&past.server, 30, "the server that ran");
    let empty = scene.make_folder("empty");
    scene.ok(&["restore", "--into", &empty]);
}

#[test]
fn r03_each_of_several_timelines_can_be_restored() {
    let Some(past) = past(15) else { return };
    let Past { scene, mut server, .. } = past;
    server.stop(StopMode::Fast).unwrap();
    // 1 -> 2 -> 3, and 4 from where 1 ended: a fork beside the others.
    for (number, from, rows) in [(2, "1", 31..=40), (3, "2", 41..=50), (4, "1", 131..=140)] {
        let into = scene.restore("next", &["--to", "latest", "--timeline", from, "--keep-archiving"]);
        let mut next = scene.start_restored_with(&into, |builder| builder.setting("archive_mode", "on"));
        let timeline = "select timeline_id from pg_control_checkpoint()";
        sql(&next, "checkpoint");
        assert_eq!(scene::number(&next, timeline), number);
        ledger::add(&next, *rows.start(), *rows.end());
        if number != 3 {
            scene.backup(&next, &["--full"]);
        }
        ledger::add(&next, rows.end() + 1000, rows.end() + 1000);
        flush_wal(&next);
        next.stop(StopMode::Fast).unwrap();
        std::fs::remove_dir_all(into).unwrap();
    }
    let reached = |timeline: &str| {
        let into = scene.restore(&format!("on-{timeline}"), &["--to", "latest", "--timeline", timeline]);
        ledger::ids(&scene.start_restored(&into)).into_iter().collect::<Vec<_>>()
    };
    let rows = |more: &[std::ops::RangeInclusive<i64>]| {
        let mut rows: Vec<i64> = (1..=30).chain(more.iter().cloned().flatten()).collect();
        rows.sort_unstable();
        rows
    };
    assert_eq!(reached("1"), rows(&[]));
    assert_eq!(reached("2"), rows(&[31..=40, 1040..=1040]));
    assert_eq!(reached("3"), rows(&[31..=50, 1040..=1040, 1050..=1050]));
    assert_eq!(reached("4"), rows(&[131..=140, 1140..=1140]));
    assert_eq!(reached("latest"), rows(&[131..=140, 1140..=1140]), "the newest");
}

#[test]
fn r10_a_restored_copy_does_not_archive() {
    let Some(past) = past(15) else { return };
    let scene = &past.scene;
    let into = scene.restore("restored", &["--to", &past.at_15.between]);
    let before = scene.json(&["wal", "list"]);
    // As an administrator starts it: with what its own configuration says.
    let mut start = scene.binaries.command("pg_ctl");
    let socket = scene.make_folder("socket");
    start.args(["-w", "-t", "60", "-l", &scene.text_path("log"), "-o"]);
    start.arg(format!("-c listen_addresses= -c unix_socket_directories={socket}")).arg("-D").arg(&into);
    let stop =
        Stop { command: scene.binaries.command("pg_ctl"), into: into.to_str().unwrap().to_owned(), scene };
    let started = scene::said(stop.scene.as_user(start.arg("start").current_dir("/")));
    let log = || std::fs::read_to_string(scene.path("log")).unwrap_or_default();
    assert!(started.output.status.success(), "{}{}", started.all(), log());
    let url = format!("host={socket} user=postgres dbname=postgres");
    let connect =
        || server::connection::Connection::connect(&server::connection::ConnectionSettings::new(url.clone()));
    let restored = scene::wait_for("the promotion", || {
        let connection = connect().ok()?;
        connection.query_one("select 1 where not pg_is_in_recovery()", &[]).is_ok().then_some(connection)
    });
    restored.run_script("create table after_promotion as select 1 as one; checkpoint").unwrap();
    restored.query_one("select pg_switch_wal()", &[]).unwrap();
    let shown = restored.query_one("show archive_mode", &[]).unwrap();
    assert_eq!(shown.first().unwrap().required(0).unwrap(), "off");
    drop(stop);
    std::fs::remove_dir_all(into).unwrap();
    assert_eq!(scene.json(&["wal", "list"]), before, "the stream is as it was");
    ledger::add(&past.server, 31, 32);
    flush_wal(&past.server);
    past.assert_reaches(&["--to", "latest"], 32);
}

/// Stops a server that was started by hand, also when the scenario fails.
struct Stop<'s> {
    command: Command,
    into: String,
    scene: &'s Scene,
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.command.args(["-D", &self.into, "-m", "fast", "stop"]).current_dir("/");
        drop(self.scene.as_user(&mut self.command).output());
    }
}
