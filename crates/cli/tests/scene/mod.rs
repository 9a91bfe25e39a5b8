//! The scene of the end-to-end scenarios: a copy of the program that the user of the servers can reach, a configuration,
//! a repository, servers that archive through the program, and the judges of a restore.
//!
//! A scenario is named by its id in the list of what can go wrong. Everything runs as the user that servers run as, with
//! nobody's environment.
#![allow(dead_code, clippy::print_stderr)] // each file of scenarios uses a part of it

pub mod judges;
pub mod ledger;
pub mod points;
pub mod receiver;
pub mod wire;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pg::Major;
use serde_json::Value;
use server::settings_check::archive_command;
use server::throwaway::{Binaries, RunAs, Throwaway, ThrowawayBuilder};

/// Majors that a run leaves out, as in `16,18`. Nothing else excuses a missing PostgreSQL.
const SKIP_MAJORS: &str = "PGKEEP_TEST_SKIP_MAJORS";
/// Whatever a scenario waits for comes within this time, or not at all.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Scene {
    folder: tempfile::TempDir,
    pub binaries: Binaries,
    pub run_as: RunAs,
    /// Given to every call of the program.
    pub variables: Vec<(String, String)>,
    /// How backups read the files.
    pub reading: Reading,
}

/// How backups read the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As a superuser, from the data directory.
    Locally,
    /// As the role that `init --grants` makes, through the server.
    OverSql,
}

/// The role of `init --grants`.
pub const ROLE: &str = "pgkeep";

/// What a call of the program said.
#[derive(Debug)]
pub struct Said {
    pub output: Output,
    pub out: String,
    pub err: String,
}

impl Scene {
    /// A repository in a folder, not made yet; `None` when the major is left out on demand.
    pub fn of(major: u16) -> Option<Self> {
        let left_out = std::env::var(SKIP_MAJORS).unwrap_or_default();
        if left_out.split(',').any(|one| one.trim() == major.to_string()) {
            eprintln!("NOT TESTED: PostgreSQL {major}, because {SKIP_MAJORS} says so");
            return None;
        }
        let binaries = Binaries::find(Some(Major::new(major)));
        let missing =
            || format!("PostgreSQL {major} is missing: ./test fetches it; PGKEEP_PG_BIN_{major} names it");
        Some(Self::with(
            binaries.unwrap_or_else(|| panic!("{}", missing())),
            "repository = \"./repository\"\n",
        ))
    }

    /// A scene of whichever PostgreSQL there is, for what does not depend on it.
    pub fn any() -> Self {
        Self::with(Binaries::require(None).unwrap(), "repository = \"./repository\"\n")
    }

    /// A scene with these lines in its configuration.
    pub fn with(binaries: Binaries, config: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("pgkeep-scene-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let run_as = RunAs::unprivileged().unwrap();
        let reading = Reading::Locally;
        let scene = Self { folder, binaries, run_as, variables: Vec::new(), reading };
        // The folder of the build may be closed to the user that the servers run as.
        std::fs::copy(env!("CARGO_BIN_EXE_pgkeep"), scene.program()).unwrap();
        let ours = "key_file = \"key\"\nstate_dir = \"state\"\n";
        std::fs::write(scene.config(), format!("{ours}{config}")).unwrap();
        scene.run_as.give(scene.folder.path()).unwrap();
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text_path(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn config(&self) -> PathBuf {
        self.path("pgkeep.toml")
    }

    pub fn program(&self) -> PathBuf {
        self.path("pgkeep")
    }

    /// A new file or folder that belongs to the user of the servers.
    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        self.run_as.give(&self.path(name)).unwrap();
        self.text_path(name)
    }

    pub fn make_folder(&self, name: &str) -> String {
        std::fs::create_dir_all(self.path(name)).unwrap();
        self.run_as.give(&self.path(name)).unwrap();
        self.text_path(name)
    }

    /// The program without a configuration.
    pub fn bare_command(&self) -> Command {
        let mut command = Command::new(self.program());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        self.run_as.apply(&mut command);
        command
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare_command();
        command.arg("--config").arg(self.config()).args(arguments);
        command
    }

    /// Another program as the user of the servers.
    pub fn as_user<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        self.run_as.apply(command);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    /// Runs what must succeed.
    pub fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code(), 0, "pgkeep {arguments:?}: {}{}", said.out, said.err);
        said
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let said = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", said.out))
    }

    /// Runs with a point armed at which the program must be killed.
    pub fn killed_at(&self, point: &str, arguments: &[&str]) {
        use std::os::unix::process::ExitStatusExt as _;
        let said = said(self.command(arguments).env("PGKEEP_FAILPOINT", point));
        assert_eq!(said.output.status.signal(), Some(9), "{point} in {arguments:?}: {said:?}");
    }

    /// Lets the time pass after which the leases of the dead are overtaken.
    pub fn end_leases(&self) {
        let Ok(steps) = std::fs::read_dir(self.path("repository/leases/maintenance")) else { return };
        for step in steps {
            let file = std::fs::File::options().write(true).open(step.unwrap().path()).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
        }
    }

    pub fn init(&self) -> Said {
        self.ok(&["init", "--no-server", "--recovery-key-file", "recovery-key"])
    }

    /// Starts a server that archives through the program.
    pub fn start_server(&self, configure: impl FnOnce(ThrowawayBuilder) -> ThrowawayBuilder) -> Throwaway {
        let config = self.config();
        let command = archive_command(&self.program(), &["--config", config.to_str().unwrap()]);
        let builder = Throwaway::builder(&self.binaries)
            .setting("wal_level", "replica")
            .setting("archive_mode", "on")
            .setting("archive_command", &command);
        configure(builder).start().unwrap()
    }

    pub fn backup(&self, server: &Throwaway, more: &[&str]) -> Value {
        let url = self.backup_url(server);
        let mode = if self.reading == Reading::OverSql { "sql" } else { "local" };
        self.json(&[&["backup", "--database-url", &url, "--mode", mode], more].concat())["backup"].clone()
    }

    /// As whom a backup connects; the role is made if need be.
    pub fn backup_url(&self, server: &Throwaway) -> String {
        let superuser = server.conninfo();
        if self.reading == Reading::Locally {
            return superuser;
        }
        if number(server, &format!("select count(*) from pg_roles where rolname = '{ROLE}'")) == 0 {
            let script = self.ok(&["init", "--grants", "--database-url", &superuser]).out;
            sql(server, &script);
        }
        format!("{superuser} user={ROLE}")
    }

    /// Restores into a new folder of this name.
    pub fn restore(&self, into: &str, more: &[&str]) -> PathBuf {
        let path = self.text_path(into);
        self.ok(&[&["restore", "--into", &path], more].concat());
        self.path(into)
    }

    /// Starts a server on a restored directory and waits until it is promoted.
    pub fn start_restored(&self, into: &Path) -> Throwaway {
        self.start_restored_with(into, |builder| builder)
    }

    pub fn start_restored_with(
        &self,
        into: &Path,
        configure: impl FnOnce(ThrowawayBuilder) -> ThrowawayBuilder,
    ) -> Throwaway {
        let builder = configure(Throwaway::builder(&self.binaries).setting("fsync", "off"));
        let server = builder.start_existing(into).unwrap();
        wait_for("the promotion", || (number(&server, "select pg_is_in_recovery()::int") == 0).then_some(()));
        server
    }
}

impl Said {
    pub fn code(&self) -> i32 {
        self.output.status.code().unwrap_or(-1)
    }

    /// Both streams.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    /// What must have failed in this way, with these words in what was said, however it was wrapped.
    pub fn refused(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code(), code, "{}", self.all());
        let flat = self.all().split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(flat.contains(word), "{word:?} is not in: {}", self.all());
        }
        self
    }
}

pub fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { out: text(&output.stdout), err: text(&output.stderr), output }
}

/// Asks until there is an answer. A campaign that makes more than usual waits longer: `PGKEEP_TEST_PATIENCE_S`.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let said = std::env::var("PGKEEP_TEST_PATIENCE_S").ok();
    let patience = said.map_or(PATIENCE, |text| Duration::from_secs(text.parse().unwrap()));
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < patience, "{what} did not come within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends the current segment and waits until it is archived.
pub fn flush_wal(server: &Throwaway) {
    // An empty segment is not switched.
    sql(server, "select pg_logical_emit_message(false, 'flush', '')");
    let last = text(server, "select pg_walfile_name(pg_switch_wal())");
    let asked = format!("select (coalesce(last_archived_wal, '') >= '{last}')::int from pg_stat_archiver");
    let begun = Instant::now();
    while number(server, &asked) == 0 {
        assert!(begun.elapsed() < PATIENCE, "{last} was not archived: {}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn sql(server: &Throwaway, script: &str) {
    server.connect().unwrap().run_script(script).unwrap();
}

/// The one number that a query gives.
pub fn number(server: &Throwaway, sql: &str) -> i64 {
    let rows = server.connect().unwrap().query_one(sql, &[]).unwrap();
    rows.first().unwrap().parse(0).unwrap()
}

/// The one text that a query gives.
pub fn text(server: &Throwaway, sql: &str) -> String {
    let rows = server.connect().unwrap().query_one(sql, &[]).unwrap();
    rows.first().unwrap().required(0).unwrap().to_owned()
}
