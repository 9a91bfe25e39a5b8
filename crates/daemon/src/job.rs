//! A job: one of our own commands, run as a process of its own.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

/// Bytes of a job's result that are looked at.
const RESULT_MAX: usize = 4 << 20;
/// Bytes of the end of its messages.
const MESSAGES_MAX: usize = 64 << 10;
/// How long a job that was asked to end may take for it.
const ENDING: Duration = Duration::from_secs(20);
/// How the failure begins that a command ends with.
const FAILURE: &[u8] = b"{\"error\":";
/// The exit code of a job that was ended by a signal, or could not be started.
pub const KILLED: u8 = 1;

/// One of our own commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// What it is called in the history: a word of letters.
    pub name: &'static str,
    /// The command's words.
    pub words: Vec<String>,
}

/// How to call our own program, with the settings that this process was given.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Options that every command takes.
    pub options: Vec<OsString>,
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: u8,
    /// What it did, in a line.
    pub did: String,
    /// Why it failed; empty if it did not.
    pub why: String,
}

/// A job at work.
pub struct Running {
    child: Child,
    job: Job,
}

impl Program {
    /// Starts a job. Its own process group is that of this process, so that an interrupt from a terminal reaches it too.
    pub fn start(&self, job: &Job) -> io::Result<Running> {
        let mut command = Command::new(&self.path);
        command.args(&self.options).args(["--json", "--quiet"]).args(&job.words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(Running { child: command.spawn()?, job: job.clone() })
    }
}

impl Running {
    /// Waits for its end. When `stop` is done, asks it to end, and after a while makes it.
    pub async fn wait(mut self, stop: impl Future<Output = ()>) -> io::Result<Ended> {
        let (out, messages) = (self.child.stdout.take(), self.child.stderr.take());
        let pid = self.child.id();
        let asked = async {
            stop.await;
            if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid as i32)) {
                let _ = kill_process(pid, Signal::TERM);
            }
            tokio::time::sleep(ENDING).await;
        };
        let ended = async { tokio::join!(beginning_of(out), end_of(messages), self.child.wait()) };
        let ended = tokio::select! {
            ended = ended => Some(ended),
            () = asked => None,
        };
        let Some((out, messages, status)) = ended else {
            self.child.start_kill()?;
            let status = self.child.wait().await?;
            return Ok(Ended { code: code(status), did: String::new(), why: "it was stopped".to_owned() });
        };
        let code = code(status?);
        let result = serde_json::from_slice(&out?).unwrap_or(Value::Null);
        let why = if code == 0 { String::new() } else { reason(&messages?, code) };
        Ok(Ended { code, did: summary(self.job.name, &result), why })
    }
}

fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED)
}

async fn beginning_of(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(RESULT_MAX as u64).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

/// The end of a stream. It is passed on line by line to our own standard error, where logs are read, but for the failure that a
/// command ends with: whoever waits for the job tells that in his own way.
async fn end_of(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let (mut kept, mut piece, mut passed) = (Vec::new(), vec![0; 8 << 10], 0);
    let Some(mut stream) = stream else { return Ok(kept) };
    loop {
        let length = stream.read(&mut piece).await?;
        kept.extend_from_slice(&piece[..length]);
        let whole = kept.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let until = if length == 0 || kept.len() > MESSAGES_MAX { kept.len() } else { whole.max(passed) };
        for line in kept[passed..until].split_inclusive(|byte| *byte == b'\n') {
            if !line.starts_with(FAILURE) {
                // Nobody may read them.
                let _ = io::stderr().write_all(line);
            }
        }
        if length == 0 {
            return Ok(kept);
        }
        let over = kept.len().saturating_sub(MESSAGES_MAX);
        kept.drain(..over);
        passed = until - over;
    }
}

/// What the failure says that a command ends with: a JSON object on the last line.
fn reason(messages: &[u8], code: u8) -> String {
    let text = String::from_utf8_lossy(messages);
    let failure = text.lines().rev().find(|line| line.as_bytes().starts_with(FAILURE));
    let failure: Option<Value> = failure.and_then(|line| serde_json::from_str(line).ok());
    let Some(Value::Object(error)) = failure.map(|mut failure| failure["error"].take()) else {
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        return last.map_or_else(|| format!("it ended with exit code {code}"), str::to_owned);
    };
    let said = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut why = said("what").to_owned();
    for because in error.get("because").and_then(Value::as_array).into_iter().flatten() {
        // A cause may begin with what it caused.
        let because = because.as_str().unwrap_or_default();
        let because = because.strip_prefix(&why).unwrap_or(because).trim_start_matches([':', ' ']);
        if !because.is_empty() {
            why = format!("{why}: {because}");
        }
    }
    let hint = said("hint");
    if hint.is_empty() { why } else { format!("{why}\nhint: {hint}") }
}

/// What a job did, by its result.
fn summary(job: &str, result: &Value) -> String {
    let number = |path: &str| result.pointer(path).and_then(Value::as_u64).unwrap_or_default();
    let list = |path: &str| result.pointer(path).and_then(Value::as_array).map_or(0, Vec::len);
    let counted = |count: u64, what: &str| {
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {what}{plural}")
    };
    match job {
        _ if result.is_null() => String::new(),
        "backup" => {
            let backup = result.get("backup").unwrap_or(result);
            let id = backup["id"].as_str().unwrap_or_default();
            let stored = backup["bytes_stored"].as_u64().unwrap_or_default();
            format!("{id}, {stored} bytes stored")
        }
        "expire" => format!("{} removed", counted(list("/done/backups_expired") as u64, "backup")),
        "prune" => format!(
            "{} deleted, {} marked",
            counted(number("/report/deleted_packs"), "pack"),
            counted(number("/report/marked_packs"), "pack")
        ),
        "verify" => format!(
            "{} and {} of WAL proved, {}",
            counted(number("/packs_proved"), "pack"),
            counted(number("/segments_proved"), "segment"),
            counted(list("/findings") as u64, "finding")
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shell(script: &str) -> (Program, Job) {
        let program = Program { path: "/bin/sh".into(), options: vec!["-c".into(), script.into()] };
        (program, Job { name: "backup", words: Vec::new() })
    }

    async fn run(script: &str) -> Ended {
        let (program, job) = shell(script);
        program.start(&job).unwrap().wait(std::future::pending()).await.unwrap()
    }

    #[tokio::test]
    async fn a_job_tells_what_it_did_and_why_it_failed() {
        let good = run(r#"echo '{"backup":{"id":"20261128T020000Z-full","bytes_stored":7}}'"#).await;
        assert_eq!((good.code, &*good.did, &*good.why), (0, "20261128T020000Z-full, 7 bytes stored", ""));
        let error =
            json!({"error": {"what": "connect", "because": ["connect: refused"], "hint": "start it"}});
        let bad = run(&format!("echo warming up >&2; echo '{error}' >&2; exit 4")).await;
        assert_eq!((bad.code, &*bad.why), (4, "connect: refused\nhint: start it"));
        let killed = run("kill -9 $$").await;
        assert_eq!((killed.code, &*killed.why), (KILLED, "it ended with exit code 1"));
    }

    #[tokio::test]
    async fn much_output_holds_nothing_up_and_is_not_kept() {
        let ended =
            run("head -c 20000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo last >&2; exit 2").await;
        assert_eq!(ended.code, 2);
        assert!(ended.why.len() <= MESSAGES_MAX && ended.why.ends_with("last"));
    }

    #[tokio::test]
    async fn a_job_is_asked_to_end() {
        let (program, job) = shell("trap 'exit 7' TERM; while :; do sleep 0.05; done");
        let running = program.start(&job).unwrap();
        let soon = tokio::time::sleep(Duration::from_millis(300));
        assert_eq!(running.wait(soon).await.unwrap().code, 7);
    }
}
