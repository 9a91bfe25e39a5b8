//! A running `pgkeep wal receive`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pg::Lsn;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use server::throwaway::{Throwaway, ThrowawayBuilder};

use super::{Scene, ledger, number, sql, text, wait_for};

/// Points that a receiver comes by in good times, and the time at which it is killed there.
pub const POINTS: [(&str, u32); 11] = [
    ("receive.slot-created", 1),
    ("receive.first-message", 1),
    ("receive.taken", 3),
    ("receive.segment-full", 1),
    ("receive.part", 1),
    ("receive.part-stored", 1),
    ("receive.part-stored", 2),
    ("receive.whole", 1),
    ("receive.whole-stored", 1),
    ("receive.parts-removed", 1),
    ("receive.reported", 2),
];
/// Where a gap has just been written down.
pub const GAP_POINT: &str = "receive.gap";
/// Where a timeline has just ended, and where the history of the next one is stored.
pub const TIMELINE_POINTS: [&str; 2] = ["receive.timeline-ended", "receive.history-stored"];

pub struct Receiver {
    child: Child,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    pub fn start(scene: &Scene, url: &str, more: &[&str]) -> Self {
        Self::start_with(scene, url, more, None)
    }

    /// Waits until WAL comes.
    pub fn streaming(scene: &Scene, url: &str, more: &[&str]) -> Self {
        let mut receiver = Self::start(scene, url, more);
        receiver.wait_for("\"streaming\"");
        receiver
    }

    /// With a point at which it kills itself.
    pub fn start_with(scene: &Scene, url: &str, more: &[&str], failpoint: Option<&str>) -> Self {
        let mut command = scene.bare_command();
        if !more.contains(&"--config") {
            command.arg("--config").arg(scene.config());
        }
        command.args(["wal", "receive", "--json", "--database-url", url]).args(more);
        if let Some(point) = failpoint {
            command.env("PGKEEP_FAILPOINT", point);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let told: Arc<Mutex<Vec<Value>>> = Arc::default();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let sink = told.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().unwrap().push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        Self { child, told }
    }

    /// Everything that it told.
    pub fn told(&self) -> String {
        self.told.lock().unwrap().iter().map(|line| format!("{line}\n")).collect()
    }

    /// Waits until it tells something with these words.
    pub fn wait_for(&mut self, words: &str) {
        wait_for(words, || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the receiver ended with {status} before it told {words:?}: {}", self.told());
            }
            self.told().contains(words).then_some(())
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended by itself; returns what it said on standard error.
    pub fn wait(mut self) -> (std::process::ExitStatus, String) {
        let status = wait_for("the end of the receiver", || self.child.try_wait().unwrap());
        let mut said = String::new();
        std::io::Read::read_to_string(self.child.stderr.as_mut().unwrap(), &mut said).unwrap();
        (status, said)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Has it end in good order.
    pub fn stop(self) {
        self.signal(Signal::TERM);
        let told = self.told.clone();
        let (status, said) = self.wait();
        assert!(status.success(), "{status}: {said}{:?}", told.lock().unwrap());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the receiver told:\n{}", self.told());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of the server's WAL.
pub fn end_of_wal(server: &Throwaway) -> Lsn {
    text(server, "select pg_current_wal_flush_lsn()").parse().unwrap()
}

/// Waits until the server has heard from a receiver that everything before a position is stored. A standby tells it as well.
pub fn wait_until_flushed(server: &Throwaway, lsn: Lsn) {
    let sql = format!(
        "select count(*) from pg_stat_replication where flush_lsn >= '{lsn}' and application_name like 'pgkeep%'"
    );
    wait_for("what was written to be stored", || (number(server, &sql) > 0).then_some(()));
}

/// Where the archive ends.
pub fn stored_to(scene: &Scene) -> Lsn {
    let list = scene.json(&["wal", "list", "--offline"]);
    list["end"]["lsn"].as_str().unwrap_or("0/1").parse().unwrap()
}

/// A server with segments of 1 MiB, whose WAL goes into the repository by a receiver only.
pub fn start_server(
    scene: &Scene,
    configure: impl FnOnce(ThrowawayBuilder) -> ThrowawayBuilder,
) -> Throwaway {
    let builder = Throwaway::builder(&scene.binaries)
        .wal_segment_size_mib(1)
        .setting("wal_level", "replica")
        .setting("archive_mode", "off");
    configure(builder).start().unwrap()
}

pub fn switch(server: &Throwaway) {
    sql(server, "select pg_logical_emit_message(false, 'x', 'x'); select pg_switch_wal()");
}

/// Restores to the end and compares the ledger.
pub fn assert_restores(scene: &Scene, into: &str, last: i64) {
    let into = scene.restore(into, &["--to", "latest"]);
    let restored = scene.start_restored(&into);
    ledger::assert_prefix(&restored, last, "the restored ledger");
}

/// Works until the receiver is killed; false if it ends in another way.
pub fn wait_for_kill(mut receiver: Receiver, mut work: impl FnMut()) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    let begun = Instant::now();
    while receiver.is_running() && begun.elapsed() < Duration::from_secs(30) {
        work();
        std::thread::sleep(Duration::from_millis(30));
    }
    !receiver.is_running() && receiver.wait().0.signal() == Some(9)
}
