//! Servers made for an hour: for `pgkeep demo`, for trial restores and for every test that needs PostgreSQL.
//!
//! A throwaway server listens on a socket in a directory of its own and on no network address, trusts whoever reaches
//! that socket, runs as an unprivileged user when we are root (PostgreSQL refuses to run as root), and is stopped and
//! removed when its value is dropped. It does not outlive the program unless the program is killed with `SIGKILL`.

mod binaries;
mod builder;
mod process;
mod run_as;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use binaries::Binaries;
pub use builder::ThrowawayBuilder;
pub use run_as::RunAs;

use pg::Major;

use crate::connection::{Connection, ConnectionSettings, ServerError};
use process::Postmaster;

/// The port that names the socket file; nothing listens on a network port.
const PORT: u16 = 5432;

/// How a server is asked to stop. Source: the signals of `pg_ctl stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ends sessions, writes a checkpoint, archives what is finished.
    Fast,
    /// Ends at once without a checkpoint; the next start recovers from the WAL.
    Immediate,
}

/// Why a throwaway server could not be made or moved.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// No PostgreSQL server is installed where we look.
    #[error(
        "find the programs of PostgreSQL {}: not in PGKEEP_PG_BIN_<major>, /usr/lib/postgresql, /usr/pgsql-<major> or PATH",
        .major.map_or("(any version)".to_owned(), |major| major.to_string())
    )]
    NotInstalled {
        /// The major version asked for; `None` when any would do.
        major: Option<Major>,
    },
    /// We are root and the system has no user to run a server as.
    #[error("run a server while being root: neither user postgres nor nobody exists")]
    NoUnprivilegedUser,
    /// A restored directory belongs to root, as whom PostgreSQL does not run.
    #[error("start a server on {}: it belongs to root; give it to the user the server is to run as", .path.display())]
    BelongsToRoot {
        /// The data directory.
        path: PathBuf,
    },
    /// A file or directory of the server could not be handled.
    #[error("{what} {}", .path.display())]
    File {
        /// Verb of what was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program could not be started or told it failed.
    #[error("run {program}: {output}")]
    Program {
        /// Its name.
        program: String,
        /// What it wrote, or why it did not start.
        output: String,
    },
    /// The server ended by itself before it accepted connections.
    #[error("start the server: it ended with {status}; its log:\n{log}")]
    Ended {
        /// The exit status.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// The server neither ended nor came up, or did not stop, in time.
    #[error("wait for the server: {what} took longer than {}s; its log:\n{log}", .waited.as_secs())]
    TooSlow {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// The server is up but a session could not be opened.
    #[error(transparent)]
    Connection(#[from] ServerError),
}

/// A running (or stopped) server that goes away with its value.
#[derive(Debug)]
pub struct Throwaway {
    /// Declared first: dropped first, so that the server has ended before its directory is removed.
    postmaster: Option<Postmaster>,
    binaries: Binaries,
    run_as: RunAs,
    data_directory: PathBuf,
    user: String,
    /// Given on the server's command line at every start.
    settings: Vec<(String, String)>,
    ready_within: Duration,
    /// Holds the socket, the log and, for a new cluster, the data directory.
    directory: tempfile::TempDir,
}

impl Throwaway {
    /// Begins the description of a server that will run these programs.
    pub fn builder(binaries: &Binaries) -> ThrowawayBuilder {
        ThrowawayBuilder::new(binaries.clone())
    }

    /// Starts the server again after [`Self::stop`] or [`Self::kill`]; nothing when it runs.
    pub fn start(&mut self) -> Result<(), ThrowawayError> {
        if self.is_running() {
            return Ok(());
        }
        self.postmaster = None;
        let settings = self.command_line_settings();
        let place = process::Place {
            program: self.binaries.program("postgres"),
            data_directory: &self.data_directory,
            working_directory: self.directory.path(),
            log: &self.log_file(),
        };
        self.postmaster = Some(Postmaster::start(&place, &settings, &self.run_as, self.ready_within)?);
        Ok(())
    }

    /// Stops the server and waits for its end, 60 s at most; nothing when it does not run.
    pub fn stop(&mut self, mode: StopMode) -> Result<(), ThrowawayError> {
        match self.postmaster.take() {
            Some(postmaster) => postmaster.stop(mode, &self.log_file()),
            None => Ok(()),
        }
    }

    /// Stops the server fast and starts it again.
    pub fn restart(&mut self) -> Result<(), ThrowawayError> {
        self.stop(StopMode::Fast)?;
        self.start()
    }

    /// Kills all processes of the server at once, as a crash of the machine would, short of losing written pages.
    pub fn kill(&mut self) {
        if let Some(postmaster) = self.postmaster.take() {
            postmaster.kill();
        }
    }

    /// True while the server's main process runs.
    pub fn is_running(&mut self) -> bool {
        self.postmaster.as_mut().is_some_and(Postmaster::is_running)
    }

    /// The connection string of the database `postgres`.
    pub fn conninfo(&self) -> String {
        self.conninfo_for("postgres")
    }

    /// The connection string of a database.
    pub fn conninfo_for(&self, database: &str) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let host = self.socket_directory().to_string_lossy().into_owned();
        format!("host={} port={PORT} user={} dbname={}", quoted(&host), quoted(&self.user), quoted(database))
    }

    /// Opens a session in the database `postgres`.
    pub fn connect(&self) -> Result<Connection, ServerError> {
        Connection::connect(&ConnectionSettings::new(self.conninfo()))
    }

    /// Opens a session in a database.
    pub fn connect_to(&self, database: &str) -> Result<Connection, ServerError> {
        Connection::connect(&ConnectionSettings::new(self.conninfo_for(database)))
    }

    /// Where the cluster is.
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// A directory that exists as long as the server, open to the user it runs as; for sockets, tablespaces, archives.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the socket is.
    pub fn socket_directory(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// The port that is part of the socket's name.
    pub fn port(&self) -> u16 {
        PORT
    }

    /// The programs it runs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The user it runs as.
    pub fn run_as(&self) -> &RunAs {
        &self.run_as
    }

    /// A client program of the same version (`pgbench`, `pg_dump`…), its environment set to reach this server.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.binaries.command(program);
        command.env("PGHOST", self.socket_directory()).env("PGPORT", PORT.to_string());
        command.env("PGUSER", &self.user).env("PGDATABASE", "postgres");
        command
    }

    /// The last lines of the server's log, up to 16 KiB.
    pub fn log(&self) -> String {
        process::log_tail(&self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn command_line_settings(&self) -> Vec<(String, String)> {
        let mut settings = vec![
            ("listen_addresses".to_owned(), String::new()),
            ("unix_socket_directories".to_owned(), self.socket_directory().to_string_lossy().into_owned()),
            ("port".to_owned(), PORT.to_string()),
        ];
        settings.extend(self.settings.iter().cloned());
        settings
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        if let Some(postmaster) = self.postmaster.take() {
            postmaster.kill();
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests;
