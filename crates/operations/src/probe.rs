//! In which ways a server can be captured, from here and with the rights that we have; and why not in the others.

use std::fmt;
use std::str::FromStr;

use pg::Major;
use pg::control::{ClusterState, ControlFile};
use server::facts::ServerFacts;
use server::files::{FileSource as _, FilesError, LocalFiles};
use server::grants::quote;
use server::programs::Program;

/// Between a server's beginning and the moment that it calls its start lie the loading of libraries and the making of shared
/// memory, seconds at most.
const START_SLACK_S: i64 = 60;

/// Which way was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The best that is possible: local, else SQL.
    #[default]
    Auto,
    /// Files of a data directory on this machine.
    Local,
    /// Files through the server.
    Sql,
    /// Rows and definitions.
    Logical,
}

/// Every spelling of a mode.
pub const MODES: [&str; 4] = ["auto", "local", "sql", "logical"];

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "local" => Ok(Self::Local),
            "sql" => Ok(Self::Sql),
            "logical" => Ok(Self::Logical),
            other => Err(format!("{other:?} is none of {}", MODES.join(", "))),
        }
    }
}

/// A way that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Files of a data directory on this machine.
    LocalFiles,
    /// Files through the server, by ordinary sessions.
    SqlFiles,
    /// Rows and definitions, by ordinary sessions and `pg_dump`.
    Logical,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LocalFiles => "files of the data directory on this machine",
            Self::SqlFiles => "files through the server, over SQL",
            Self::Logical => "rows and definitions, over SQL and by pg_dump",
        })
    }
}

/// Why a way is not possible, and what would make it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What is in the way.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

impl Reason {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }
}

/// What was found about each way. No reason means that it is possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Against reading the files here.
    pub local: Vec<Reason>,
    /// Against reading them through the server.
    pub sql: Vec<Reason>,
    /// Against a logical backup.
    pub logical: Vec<Reason>,
}

impl Probe {
    /// Judges a server, and looks for its data directory on this machine.
    pub fn of(facts: &ServerFacts) -> Self {
        Self::judge(facts, find_locally(facts).err())
    }

    /// As [`Probe::of`], with what stands against reading the data directory here.
    fn judge(facts: &ServerFacts, not_here: Option<Reason>) -> Self {
        let either = physical(facts);
        let functions = facts.missing_file_functions.iter().map(|function| {
            let grant = format!("GRANT EXECUTE ON FUNCTION {function} TO {}", quote(&facts.role));
            Reason::new(format!("role {} may not call {function}", facts.role), grant)
        });
        Self {
            local: either.iter().cloned().chain(not_here).collect(),
            sql: either.iter().cloned().chain(functions).collect(),
            logical: logical(facts),
        }
    }

    /// The way to go; or why there is none.
    pub fn choose(&self, mode: Mode) -> Result<Way, Reason> {
        match mode {
            Mode::Local => all(&self.local).map_or(Ok(Way::LocalFiles), Err),
            Mode::Sql => all(&self.sql).map_or(Ok(Way::SqlFiles), Err),
            Mode::Logical => all(&self.logical).map_or(Ok(Way::Logical), Err),
            Mode::Auto if self.local.is_empty() => Ok(Way::LocalFiles),
            Mode::Auto if self.sql.is_empty() => Ok(Way::SqlFiles),
            Mode::Auto if self.logical.is_empty() => Ok(Way::Logical),
            Mode::Auto => Err(self.none()),
        }
    }

    /// The best way to store files, for a stream that has WAL.
    pub fn choose_files(&self, mode: Mode) -> Result<Way, Reason> {
        match self.choose(mode) {
            Ok(Way::Logical) => Err(self.none()),
            other => other,
        }
    }

    fn none(&self) -> Reason {
        let sql = all(&self.sql).expect("there is a reason, or it would have been chosen");
        // What stands against both is said once.
        let only_local: Vec<Reason> =
            self.local.iter().filter(|reason| !self.sql.contains(reason)).cloned().collect();
        let local = all(&only_local).map(|reason| format!("; {}", reason.what)).unwrap_or_default();
        let logical = all(&self.logical)
            .map(|reason| format!("; nor a logical one: {}", reason.what))
            .unwrap_or_default();
        Reason::new(
            format!("no physical backup is possible: {}{local}{logical}", sql.what),
            format!("{} (`pgkeep init --grants` prints all that a role needs)", sql.hint),
        )
    }
}

/// All reasons as one.
fn all(reasons: &[Reason]) -> Option<Reason> {
    if reasons.is_empty() {
        return None;
    }
    let join = |part: fn(&Reason) -> &str| reasons.iter().map(part).collect::<Vec<_>>().join("; ");
    Some(Reason { what: join(|reason| &reason.what), hint: join(|reason| &reason.hint) })
}

/// What stands against a logical backup.
fn logical(facts: &ServerFacts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if let Some(pooler) = &facts.pooler {
        let what = format!("{pooler} stands between us and the server: a snapshot needs sessions of its own");
        reasons.push(Reason::new(what, pooler.hint()));
    }
    if let Err(error) = Program::find("pg_dump", facts.major) {
        reasons.push(Reason::new(error.to_string(), dump_hint(facts.major)));
    }
    reasons
}

/// Which package brings a `pg_dump` for servers of a major.
pub fn dump_hint(server: Major) -> String {
    format!(
        "install the client programs of PostgreSQL {server} or later (Debian: postgresql-client-{server}; Alpine: \
         postgresql{server}-client; macOS: brew install libpq), or name their folder in PGKEEP_PG_BIN"
    )
}

/// What stands against any backup by files.
fn physical(facts: &ServerFacts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if let Some(pooler) = &facts.pooler {
        let what = format!("{} stands between us and the server", pooler);
        reasons.push(Reason::new(format!("{what}: a backup needs a session of its own"), pooler.hint()));
    }
    if !facts.can_backup {
        let functions = facts.major.facts().map(|known| known.backup_functions);
        let name = functions.map_or("pg_backup_start", |functions| functions.start());
        let role = &facts.role;
        reasons.push(Reason::new(
            format!("role {role} may not take backups"),
            format!("grant it EXECUTE on {name} and its counterpart, or connect as a superuser"),
        ));
    }
    if facts.system_identifier.is_none() {
        let what = format!("role {} may not read the cluster's system identifier", facts.role);
        let grant = format!("GRANT EXECUTE ON FUNCTION pg_control_system() TO {}", quote(&facts.role));
        reasons.push(Reason::new(what, grant));
    }
    reasons
}

/// Opens the server's data directory on this machine, if it is the same one.
pub(crate) fn find_locally(facts: &ServerFacts) -> Result<LocalFiles, Reason> {
    let hint = "run pgkeep on the database server, as the user that PostgreSQL runs as";
    let Some(directory) = &facts.data_directory else {
        let what = format!("role {} may not see where the data directory is", facts.role);
        return Err(Reason::new(what, "grant it pg_read_all_settings, or connect as a superuser"));
    };
    let files = LocalFiles::new(directory).map_err(|error| {
        let why = match error {
            FilesError::DataDirectory { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let what = format!("the data directory {} cannot be read here: {why}", directory.display());
        Reason::new(what, hint)
    })?;
    let other = |what: &str| {
        let hint =
            "run pgkeep on the machine of the server, or correct database_url; or read the files over SQL";
        Err(Reason::new(what, hint))
    };
    let Ok((_, control)) = files.read_control_file() else {
        return other("the control file on this machine cannot be read");
    };
    if facts.system_identifier.is_some_and(|identifier| identifier != control.system_identifier) {
        return other(
            "the data directory on this machine belongs to another cluster than the server that answered",
        );
    }
    if !is_at_work(&files, &control, facts) {
        return other(
            "the data directory on this machine is that of another server of the cluster than the one that answered",
        );
    }
    Ok(files)
}

/// Whether the server that answered is the one that runs on this directory. A standby has the identifier of its primary and
/// often its path: a backup begun on the one and read from the other would be torn.
fn is_at_work(files: &LocalFiles, control: &ControlFile, facts: &ServerFacts) -> bool {
    let replays = matches!(control.state, ClusterState::InArchiveRecovery | ClusterState::InCrashRecovery);
    if replays != facts.in_recovery {
        return false;
    }
    let mut text = [0; 512];
    let Ok(length) = files.read_at(b"postmaster.pid", 0, &mut text) else { return false };
    let text = String::from_utf8_lossy(&text[..length]);
    // The third line is when the main process began: `LOCK_FILE_LINE_START_TIME`, `miscadmin.h`.
    let began = text.lines().nth(2).and_then(|line| line.trim().parse::<i64>().ok());
    began.is_some_and(|began| (facts.started.as_second() - began).abs() <= START_SLACK_S)
}

#[cfg(test)]
mod tests;
