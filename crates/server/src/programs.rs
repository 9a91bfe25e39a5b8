//! PostgreSQL's client programs on this machine: which there are, and running one against a server.

use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use pg::Major;
use secrecy::ExposeSecret as _;

use crate::connection::{ConnectionSettings, ServerError};

/// How far past the newest known major an installation is looked for.
const FUTURE_MAJORS: u16 = 4;
/// What is kept of what a program says, from its end.
const WORDS_KEPT: usize = 8 << 10;

/// One of PostgreSQL's client programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its major version.
    pub major: Major,
    /// What it calls itself: `pg_dump (PostgreSQL) 17.10`.
    pub version: String,
}

/// Why a client program could not be found or did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is none that is new enough.
    #[error("{name} of PostgreSQL {server} or later is not on this machine{}", found_text(.found))]
    NotInstalled {
        /// The program.
        name: &'static str,
        /// The server's major.
        server: Major,
        /// The newest that is there, which is too old.
        found: Option<Major>,
    },
    /// It could not be started, fed or read.
    #[error("run {program}")]
    Run {
        /// Its path.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended badly.
    #[error("{program} failed ({status}){}", words_text(.words))]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        words: String,
    },
    /// The connection settings cannot be handed to it.
    #[error(transparent)]
    Settings(#[from] ServerError),
}

fn found_text(found: &Option<Major>) -> String {
    found.map(|major| format!("; the newest here is {major}")).unwrap_or_default()
}

fn words_text(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

impl Program {
    /// Finds a program that understands servers of `server`'s major: of that major, else of the next later one that is there.
    ///
    /// Looks into the folders that `PGKEEP_PG_BIN` and `PGKEEP_PG_BIN_<major>` name, then where Debian, Red Hat and Alpine put them, then in
    /// `PATH`; believes only what the program says of itself.
    pub fn find(name: &'static str, server: Major) -> Result<Self, ProgramError> {
        let newest = Major::supported().next_back().map_or(server.number(), Major::number) + FUTURE_MAJORS;
        let majors = || (server.number()..=newest).map(Major::new);
        let named = std::env::var_os("PGKEEP_PG_BIN").into_iter();
        let by_major = majors().flat_map(|major| {
            let variable = std::env::var_os(format!("PGKEEP_PG_BIN_{major}"));
            let usual = [
                format!("/usr/lib/postgresql/{major}/bin"),
                format!("/usr/pgsql-{major}/bin"),
                format!("/usr/libexec/postgresql{major}"),
            ];
            variable.into_iter().chain(usual.map(OsString::from))
        });
        let path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&path).map(PathBuf::into_os_string);
        let mut best: Option<Self> = None;
        let mut too_old: Option<Major> = None;
        for directory in named.chain(by_major).chain(in_path) {
            let Some(found) = Self::at(Path::new(&directory), name) else { continue };
            if found.major < server {
                too_old = too_old.max(Some(found.major));
            } else if best.as_ref().is_none_or(|best| found.major < best.major) {
                let exact = found.major == server;
                best = Some(found);
                if exact {
                    break;
                }
            }
        }
        best.ok_or(ProgramError::NotInstalled { name, server, found: too_old })
    }

    /// The program of that name in a folder, if it is there and says its version.
    fn at(directory: &Path, name: &str) -> Option<Self> {
        let path = directory.join(name);
        if !path.is_file() {
            return None;
        }
        let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let (_, number) = version.split_once("(PostgreSQL) ")?;
        let major = number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok().map(Major::new)?;
        Some(Self { path, major, version })
    }

    /// The program of the same installation that has another name.
    pub fn sibling(&self, name: &str) -> Option<Self> {
        Self::at(self.path.parent()?, name)
    }

    /// A command that runs it, connecting by `settings`: what they hold goes into its environment.
    pub fn command(&self, settings: Option<&ConnectionSettings>) -> Result<Command, ProgramError> {
        let mut command = Command::new(&self.path);
        // Messages are matched by nobody, but they are shown.
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        for (variable, value) in
            settings.map(ConnectionSettings::environment).transpose()?.into_iter().flatten()
        {
            command.env(variable, value.expose_secret());
        }
        Ok(command)
    }

    /// Starts it with what it says kept; the command tells what becomes of its input and output.
    pub fn start(&self, mut command: Command) -> Result<Running, ProgramError> {
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(|source| self.run_error(source))?;
        let stderr = child.stderr.take().expect("it was piped");
        Ok(Running {
            name: self.to_string(),
            child,
            words: Some(std::thread::spawn(move || keep_words(stderr))),
        })
    }

    fn run_error(&self, source: std::io::Error) -> ProgramError {
        ProgramError::Run { program: self.path.display().to_string(), source }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path.file_name().unwrap_or_default().to_string_lossy())
    }
}

/// A program at work. Dropped, it is killed: what only half of was read must not go on.
#[derive(Debug)]
pub struct Running {
    name: String,
    /// The process.
    pub child: Child,
    words: Option<JoinHandle<String>>,
}

impl Running {
    /// Waits for its end; an error if that was not a good one. What it warned of otherwise.
    pub fn finish(mut self) -> Result<String, ProgramError> {
        drop(self.child.stdin.take());
        drop(self.child.stdout.take());
        let status =
            self.child.wait().map_err(|source| ProgramError::Run { program: self.name.clone(), source })?;
        let words = self.words.take().and_then(|words| words.join().ok()).unwrap_or_default();
        if status.success() {
            return Ok(words);
        }
        Err(ProgramError::Failed { program: self.name.clone(), status, words })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail harmlessly for a process that has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep_words(mut stderr: ChildStderr) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..length]);
        if kept.len() > 2 * WORDS_KEPT {
            kept.drain(..kept.len() - WORDS_KEPT);
        }
    }
    let from = kept.len().saturating_sub(WORDS_KEPT);
    String::from_utf8_lossy(&kept[from..]).trim().to_owned()
}
