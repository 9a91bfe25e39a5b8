//! Rounds by hand and by the daemon: each job once for each scheduled moment, recorded, and honest about failures.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use scene::{Scene, ledger, wait_for};
use serde_json::Value;
use server::throwaway::Throwaway;

fn jobs(value: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    value["jobs"].as_array().unwrap().iter().map(|job| (text(&job["job"]), text(&job["result"]))).collect()
}

/// What ran, the newest first, with its exit code.
fn history(scene: &Scene) -> Vec<(String, u64)> {
    let shown = scene.json(&["history"]);
    let runs = shown["runs"].as_array().unwrap().iter();
    runs.map(|run| (run["job"].as_str().unwrap().to_owned(), run["code"].as_u64().unwrap())).collect()
}

fn backups(scene: &Scene) -> usize {
    scene.json(&["list"])["backups"].as_array().unwrap().len()
}

fn with_server() -> (Scene, Throwaway) {
    let scene = Scene::any();
    scene.init();
    let server = scene.start_server(|builder| builder);
    ledger::make(&server);
    ledger::add(&server, 1, 50);
    (scene, server)
}

#[test]
fn a_round_backs_up_keeps_order_and_verifies_and_is_in_the_history() {
    let (scene, server) = with_server();
    assert!(scene.ok(&["history"]).out.contains("Nothing ran yet"));
    let url = server.conninfo();
    let done = scene.json(&["run", "--database-url", &url, "--set", "mode=local"]);
    let all = ["backup", "expire", "prune", "verify"];
    assert_eq!(jobs(&done), all.map(|job| (job.to_owned(), "done".to_owned())), "{done}");
    assert_eq!(done["code"], 0);
    assert_eq!(backups(&scene), 1);
    assert_eq!(history(&scene), ["verify", "prune", "expire", "backup"].map(|job| (job.to_owned(), 0)));
    let shown = scene.ok(&["history", "--job", "backup"]).out;
    let id = scene.json(&["list"])["backups"][0]["id"].as_str().unwrap().to_owned();
    assert!(shown.contains("done") && shown.contains(&id), "{shown}");
    let only = scene.json(&["run", "--only", "verify"]);
    assert_eq!(jobs(&only), [("verify".to_owned(), "done".to_owned())]);
    assert!(scene.ok(&["check"]).out.len() > 1, "records are no strays");
    assert_eq!(scene.json(&["check"])["strays"].as_array().unwrap().len(), 0);
}

#[test]
fn on_a_day_without_a_backup_nothing_is_removed_and_the_failure_is_told() {
    let (scene, server) = with_server();
    let url = server.conninfo();
    drop(server);
    let said = scene.run(&["run", "--json", "--database-url", &url, "--set", "mode=local"]);
    assert_eq!(said.code(), 4, "{}", said.all());
    let value: Value = serde_json::from_str(&said.out).unwrap();
    let expected = [("backup", "failed"), ("expire", "skipped"), ("prune", "skipped"), ("verify", "done")];
    assert_eq!(jobs(&value), expected.map(|(job, how)| (job.to_owned(), how.to_owned())), "{value}");
    assert_eq!(history(&scene), [("verify".to_owned(), 0), ("backup".to_owned(), 4)]);
    let why = scene.json(&["history", "--job", "backup"])["runs"][0]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("connect"), "{why}");
    assert!(scene.ok(&["history"]).out.contains("FAILED"));
    scene.run(&["run", "--only", "cleaning"]).refused(2, &["cleaning"]);
}

struct Daemon(Child);

impl Daemon {
    fn start(scene: &Scene, url: &str) -> Self {
        let mut command = scene.command(&["serve", "--database-url", url, "--set", "mode=local"]);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap())
    }

    /// Tells it to end, and waits.
    fn end(mut self) -> (i32, Duration) {
        let began = Instant::now();
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        (self.0.wait().unwrap().code().unwrap(), began.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn w04_two_daemons_do_what_was_missed_once_and_again_nothing_after_a_restart() {
    let (scene, server) = with_server();
    let url = server.conninfo();
    let daemons = [Daemon::start(&scene, &url), Daemon::start(&scene, &url)];
    // Whatever the hour is, the last scheduled moment of each job was missed.
    let all = || {
        let ran = history(&scene);
        ["backup", "expire", "prune", "verify"]
            .iter()
            .all(|job| ran.iter().any(|run| run.0 == *job))
            .then_some(ran)
    };
    wait_for("every job", all);
    for daemon in daemons {
        let (code, took) = daemon.end();
        assert!(code == 0 && took < Duration::from_secs(10), "{code} after {took:?}");
    }
    let ran = history(&scene);
    let backup: Vec<_> = ran.iter().filter(|run| run.0 == "backup").collect();
    assert_eq!((backup.len(), backups(&scene)), (1, 1), "{ran:?}");
    assert!(ran.iter().all(|run| run.1 == 0), "{ran:?}");

    let again = Daemon::start(&scene, &url);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(again.end().0, 0);
    assert_eq!(backups(&scene), 1);
}

#[test]
fn a_schedule_that_is_none_is_refused_before_anything_begins() {
    let scene = Scene::any();
    scene.init();
    scene.run(&["serve", "--set", "schedule.backup=daily"]).refused(2, &["schedule.backup", "five fields"]);
    scene.run(&["serve", "--set", "schedule.time_zone=Moon"]).refused(2, &["time zone"]);
}
