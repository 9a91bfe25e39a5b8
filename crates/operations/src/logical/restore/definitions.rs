//! The definitions of a backup, by `pg_restore`: run by it, or taken from it as SQL.
//!
//! Never by psql: a script may hold commands of psql's, and those would run on this machine. What runs, runs on the server, as the
//! role that restores.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use repository::logical;
use server::connection::{Connection, ConnectionSettings};
use server::programs::{Program, ProgramError};

use super::{RestorePlan, RestoreRequest};
use crate::logical::LogicalError;
use crate::logical::reader::FileReader;

/// The first major whose scripts set what older servers do not know.
const SETS_TRANSACTION_TIMEOUT: u16 = 17;
const UNKNOWN_BEFORE: &str = "SET transaction_timeout = 0;\n";

/// A part of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// Whatever rows need: types, functions, tables.
    PreData,
    /// Large objects; rows are ours.
    Data,
    /// Whatever needs rows: indexes, constraints, triggers.
    PostData,
}

impl Section {
    fn argument(self) -> &'static str {
        match self {
            Self::PreData => "--section=pre-data",
            Self::Data => "--section=data",
            Self::PostData => "--section=post-data",
        }
    }
}

/// The archive, in a file without a name, which `pg_restore` can read from any place.
pub(super) struct Definitions {
    file: File,
    program: Program,
    arguments: Vec<String>,
    old_target: bool,
}

impl Definitions {
    /// Fetches them. Large objects may make them large: they go into a file on disk, which is gone with this.
    pub(super) async fn fetch(plan: &RestorePlan) -> Result<Self, LogicalError> {
        let entry = plan.file(&logical::definitions(&plan.database.name)).await?;
        let failed =
            |source| LogicalError::Pipe { action: "keep the definitions in a temporary file", source };
        let mut file = tempfile::tempfile().map_err(failed)?;
        let mut reader = FileReader::new(&plan.repository);
        reader.read(&entry, |bytes| file.write_all(bytes).map_err(failed)).await?;
        let new_program = plan.restore.major.number() >= SETS_TRANSACTION_TIMEOUT;
        Ok(Self {
            file,
            program: plan.restore.clone(),
            arguments: arguments(&plan.request),
            old_target: new_program && plan.target.major.number() < SETS_TRANSACTION_TIMEOUT,
        })
    }

    /// Runs a part on the target, `jobs` at once.
    pub(super) fn run(
        &self,
        section: Section,
        target: &ConnectionSettings,
        jobs: usize,
    ) -> Result<(), LogicalError> {
        if self.old_target {
            let script = self.script(section)?;
            let connection = Connection::connect(target)?;
            connection.remove_timeouts()?;
            return Ok(connection.run_script(&script)?);
        }
        let mut command = self.command(Some(target))?;
        command.args(["--exit-on-error", "--no-password", "--dbname="]).arg(section.argument());
        if jobs > 1 {
            command.arg(format!("--jobs={jobs}"));
        }
        let words = self.program.start(command)?.finish()?;
        if !words.is_empty() {
            tracing::warn!(%words, "pg_restore warned");
        }
        Ok(())
    }

    /// A part as SQL.
    pub(super) fn script(&self, section: Section) -> Result<String, LogicalError> {
        let mut text = String::new();
        self.each_line(&[section.argument()], &mut |line| {
            text.push_str(line);
            Ok(())
        })?;
        Ok(text)
    }

    /// What drops everything that has a definition, if it is there.
    pub(super) fn drops(&self) -> Result<String, LogicalError> {
        let (mut text, mut ended) = (String::new(), false);
        self.each_line(&["--clean", "--if-exists", "--schema-only"], &mut |line| {
            // The first definition has a headline.
            ended |= line.starts_with("-- Name: ");
            if !ended {
                text.push_str(line);
            }
            Ok(())
        })?;
        Ok(text)
    }

    /// Hands out the statements that make the large objects, each dropped before if it is there.
    pub(super) fn large_objects(
        &self,
        run: &mut dyn FnMut(&str) -> Result<(), LogicalError>,
    ) -> Result<(), LogicalError> {
        const CREATE: &str = "SELECT pg_catalog.lo_create('";
        self.each_line(&[Section::Data.argument()], &mut |line| {
            if let Some(rest) = line.strip_prefix(CREATE) {
                let oid = rest.split('\'').next().unwrap_or_default();
                run(&format!(
                    "SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid = '{oid}'"
                ))?;
            }
            let is_statement = ["SELECT ", "ALTER ", "COMMENT ", "GRANT ", "REVOKE "].iter();
            if is_statement.clone().any(|word| line.starts_with(word)) { run(line) } else { Ok(()) }
        })
    }

    /// Hands out the lines of a script, each with its newline. Scripts of late minors begin and end with commands of psql's that keep
    /// it from running others; they are left out, and no other would be run either.
    fn each_line(
        &self,
        arguments: &[&str],
        visit: &mut dyn FnMut(&str) -> Result<(), LogicalError>,
    ) -> Result<(), LogicalError> {
        let mut command = self.command(None)?;
        command.arg("--file=-").args(arguments).stdout(Stdio::piped());
        let mut running = self.program.start(command)?;
        let mut stdout = BufReader::new(running.child.stdout.take().expect("it was piped"));
        let failed = |source| LogicalError::Pipe { action: "read what pg_restore writes", source };
        let (mut line, mut began) = (String::new(), false);
        loop {
            line.clear();
            if stdout.read_line(&mut line).map_err(failed)? == 0 {
                break;
            }
            let is_first = !began && line.starts_with("\\restrict ");
            began |= is_first;
            let unknown = self.old_target && line == UNKNOWN_BEFORE;
            let is_last = began && line.starts_with("\\unrestrict ");
            if !(is_first || unknown || is_last) {
                visit(&line)?;
            }
        }
        running.finish().map(drop)?;
        Ok(())
    }

    fn command(&self, target: Option<&ConnectionSettings>) -> Result<Command, ProgramError> {
        let mut command = self.program.command(target)?;
        // Opened anew by each of its jobs, and so read from the beginning.
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        command.args(&self.arguments).arg(path);
        Ok(command)
    }
}

fn arguments(request: &RestoreRequest) -> Vec<String> {
    let mut arguments = Vec::new();
    if request.no_owner {
        arguments.push("--no-owner".to_owned());
    }
    if request.no_privileges {
        arguments.push("--no-privileges".to_owned());
    }
    arguments.extend(request.role.iter().map(|role| format!("--role={role}")));
    arguments.extend(request.schemas.iter().map(|schema| format!("--schema={schema}")));
    arguments
}
