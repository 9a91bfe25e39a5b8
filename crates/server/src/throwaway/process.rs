//! The server's main process: started, watched, stopped.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::run_as::file;
use super::{RunAs, StopMode, ThrowawayError};

const POLL_INTERVAL: Duration = Duration::from_millis(10);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Killed processes vanish within milliseconds; past this something is stuck in the kernel and waiting does not help.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// Where a server runs and from what.
pub(super) struct Place<'a> {
    pub(super) program: PathBuf,
    pub(super) data_directory: &'a Path,
    pub(super) working_directory: &'a Path,
    pub(super) log: &'a Path,
}

/// A running server. Killed, with all its processes, when dropped.
#[derive(Debug)]
pub(super) struct Postmaster {
    child: Child,
}

impl Postmaster {
    /// Starts the server and waits until it accepts connections.
    pub(super) fn start(
        place: &Place<'_>,
        settings: &[(String, String)],
        run_as: &RunAs,
        limit: Duration,
    ) -> Result<Self, ThrowawayError> {
        let log = File::options().create(true).append(true).open(place.log);
        let log = log.map_err(|source| file("open", place.log, source))?;
        let log_too = log.try_clone().map_err(|source| file("open", place.log, source))?;
        let mut command = Command::new(&place.program);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG")
                && !variable.to_string_lossy().starts_with("PGKEEP")
            {
                command.env_remove(variable);
            }
        }
        command.current_dir(place.working_directory).env("LC_ALL", "C").arg("-D").arg(place.data_directory);
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(log).stderr(log_too);
        run_as.apply(&mut command);
        let child = command.spawn().map_err(|error| ThrowawayError::Program {
            program: place.program.display().to_string(),
            output: error.to_string(),
        })?;
        let mut postmaster = Self { child };
        postmaster.wait_until_ready(place, limit)?;
        Ok(postmaster)
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(super) fn stop(mut self, mode: StopMode, log: &Path) -> Result<(), ThrowawayError> {
        let signal = match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        if self.is_running() {
            send(self.child.id(), signal);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while self.is_running() {
            if Instant::now() >= deadline {
                return Err(ThrowawayError::TooSlow {
                    what: "the stop",
                    waited: STOP_LIMIT,
                    log: log_tail(log),
                });
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Kills the main process and its children, and waits until none is left that could hold the shared memory.
    pub(super) fn kill(self) {
        drop(self);
    }

    /// Waits for the word `ready` in `postmaster.pid`, which needs no session and so no password.
    ///
    /// Source: `miscadmin.h` (`LOCK_FILE_LINE_PM_STATUS` is line 8; `ready` also in hot standby).
    fn wait_until_ready(&mut self, place: &Place<'_>, limit: Duration) -> Result<(), ThrowawayError> {
        let pid_file = place.data_directory.join("postmaster.pid");
        let pid = self.child.id().to_string();
        let deadline = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(ThrowawayError::Ended { status: status.to_string(), log: log_tail(place.log) });
            }
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            let mut lines = text.lines().map(str::trim);
            if lines.next() == Some(&pid) && lines.nth(6) == Some("ready") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ThrowawayError::TooSlow {
                    what: "the start",
                    waited: limit,
                    log: log_tail(place.log),
                });
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        // Children first seen, then killed with their parent: a server process that outlives it holds shared memory and
        // the next start would refuse the directory.
        send(self.child.id(), Signal::STOP);
        let children = children_of(self.child.id());
        for pid in children.iter().copied().chain([self.child.id()]) {
            send(pid, Signal::KILL);
        }
        // An error means that it has been waited for already.
        self.child.wait().ok();
        let deadline = Instant::now() + KILL_LIMIT;
        while children.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// The last lines of a log; empty when it cannot be read.
pub(super) fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut log = File::open(path)?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        log.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim_end().to_owned()
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // The process may have ended in between, which is as good.
        kill_process(pid, signal).ok();
    }
}

/// The processes whose parent is `parent`, from `/proc` (each server process is a child of the main one).
fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat_of(*pid).is_some_and(|(_, found)| found == parent)).collect()
}

/// True unless the process has ended; one that nobody has waited for yet has ended too.
fn is_alive(pid: u32) -> bool {
    stat_of(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// State and parent of a process. The name in brackets may hold anything, so fields are counted after the last bracket.
fn stat_of(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
