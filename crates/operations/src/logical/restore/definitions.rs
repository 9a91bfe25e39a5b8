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

    fn text(self) -> &'static str {
        match self {
            Self::PreData => "tables and what they need",
            Self::Data => "large objects",
            Self::PostData => "indexes and constraints",
        }
    }
}

/// The archive, in a file without a name, which `pg_restore` can read from any place.
pub(super) struct Definitions {
    file: File,
    program: Program,
    arguments: Vec<String>,
    schemas: Vec<String>,
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
            schemas: schemas(&plan.request),
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
            let failed = LogicalError::relation("run, of the definitions,", section.text());
            return connection.run_script(&script).map_err(failed);
        }
        let mut command = self.command(Some(target), true)?;
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
    pub(super) fn script(&self, section: Section) -> Result<Vec<u8>, LogicalError> {
        let mut script = Vec::new();
        self.each_line(true, &[section.argument()], &mut |line| {
            script.extend_from_slice(line);
            Ok(())
        })?;
        Ok(script)
    }

    /// A part as SQL that can be taken apart, of all schemas whatever was asked for.
    pub(super) fn text(&self, section: Section) -> Result<String, LogicalError> {
        let mut script = Vec::new();
        self.each_line(false, &[section.argument()], &mut |line| {
            script.extend_from_slice(line);
            Ok(())
        })?;
        let what = "the definitions are in no known encoding; restore the whole database";
        String::from_utf8(script).map_err(|_| LogicalError::Choice { what: what.to_owned() })
    }

    /// The statements that drop everything that has a definition, if it is there.
    pub(super) fn drops(&self) -> Result<Vec<Vec<u8>>, LogicalError> {
        let (mut statements, mut open, mut ended) = (Vec::new(), Vec::new(), false);
        self.each_line(true, &["--clean", "--if-exists", "--schema-only"], &mut |line| {
            // The first definition has a headline.
            ended |= line.starts_with(b"-- Name: ");
            if !ended && (!open.is_empty() || !(line.starts_with(b"--") || line == b"\n")) {
                open.extend_from_slice(line);
            }
            if is_whole(&open) {
                statements.push(std::mem::take(&mut open));
            }
            Ok(())
        })?;
        Ok(statements)
    }

    /// Hands out the statements that make the large objects, each dropped before if it is there.
    pub(super) fn large_objects(
        &self,
        run: &mut dyn FnMut(&[u8]) -> Result<(), LogicalError>,
    ) -> Result<(), LogicalError> {
        let mut open = Vec::new();
        self.each_line(true, &[Section::Data.argument()], &mut |line| {
            if let Some(unlink) = unlinked(line) {
                run(unlink.as_bytes())?;
            }
            let mut words = ["SELECT ", "ALTER ", "COMMENT ", "GRANT ", "REVOKE "].iter();
            if !open.is_empty() || words.any(|word| line.starts_with(word.as_bytes())) {
                open.extend_from_slice(line);
            }
            if is_whole(&open) {
                run(&open)?;
                open.clear();
            }
            Ok(())
        })
    }

    /// Hands out the lines of a script, each with its newline. Scripts of late minors begin and end with commands of psql's that keep
    /// it from running others; they are left out, and no other would be run either.
    fn each_line(
        &self,
        chosen_schemas: bool,
        arguments: &[&str],
        visit: &mut dyn FnMut(&[u8]) -> Result<(), LogicalError>,
    ) -> Result<(), LogicalError> {
        let mut command = self.command(None, chosen_schemas)?;
        command.arg("--file=-").args(arguments).stdout(Stdio::piped());
        let mut running = self.program.start(command)?;
        let mut stdout = BufReader::new(running.child.stdout.take().expect("it was piped"));
        let failed = |source| LogicalError::Pipe { action: "read what pg_restore writes", source };
        let (mut line, mut began) = (Vec::new(), false);
        loop {
            line.clear();
            if stdout.read_until(b'\n', &mut line).map_err(failed)? == 0 {
                break;
            }
            let is_first = !began && line.starts_with(b"\\restrict ");
            began |= is_first;
            let unknown = self.old_target && line == UNKNOWN_BEFORE.as_bytes();
            let is_last = began && line.starts_with(b"\\unrestrict ");
            if !(is_first || unknown || is_last) {
                visit(&line)?;
            }
        }
        running.finish().map(drop)?;
        Ok(())
    }

    fn command(
        &self,
        target: Option<&ConnectionSettings>,
        chosen_schemas: bool,
    ) -> Result<Command, ProgramError> {
        let mut command = self.program.command(target)?;
        // Opened anew by each of its jobs, and so read from the beginning.
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        command.args(&self.arguments).args(self.schemas.iter().filter(|_| chosen_schemas)).arg(path);
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
    arguments
}

fn schemas(request: &RestoreRequest) -> Vec<String> {
    let mut arguments: Vec<String> =
        request.schemas.iter().map(|schema| format!("--schema={schema}")).collect();
    if !arguments.is_empty() {
        // They are of no schema; what they publish of one would be added to them.
        arguments.push("--no-publications".to_owned());
    }
    arguments
}

/// What drops, if it is there, the large object that this line makes.
fn unlinked(line: &[u8]) -> Option<String> {
    let oid = line.strip_prefix(b"SELECT pg_catalog.lo_create('")?.strip_suffix(b"');\n")?;
    let oid: u32 = str::from_utf8(oid).ok()?.parse().ok()?;
    Some(format!(
        "SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid = {oid}"
    ))
}

/// What drops the large objects that a script makes, if they are there. Those of pg_dump before 17 are made before the rows.
pub(super) fn unlinks(script: &[u8]) -> Vec<String> {
    let (mut found, mut is_object) = (Vec::new(), false);
    for line in script.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b"-- Name: ") {
            is_object = line.windows(13).any(|part| part == b"; Type: BLOB;");
        }
        found.extend(unlinked(line).filter(|_| is_object));
    }
    found
}

/// Whether these lines are a whole statement: it ends with a semicolon, and every quote in it is closed.
fn is_whole(lines: &[u8]) -> bool {
    let mut quote = None;
    for byte in lines {
        match quote {
            None if matches!(byte, b'\'' | b'"') => quote = Some(*byte),
            Some(open) if open == *byte => quote = None,
            _ => {}
        }
    }
    quote.is_none() && lines.ends_with(b";\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_ends_with_a_semicolon_outside_of_quotes() {
        for whole in
            ["DROP TABLE a;\n", "DROP TABLE \"a;\nb\";\n", "COMMENT ON LARGE OBJECT 1 IS 'it''s;\n';\n"]
        {
            assert!(is_whole(whole.as_bytes()), "{whole}");
        }
        for open in ["", "DROP TABLE a\n", "DROP TABLE \"a;\n", "COMMENT ON LARGE OBJECT 1 IS 'it''s;\n"] {
            assert!(!is_whole(open.as_bytes()), "{open}");
        }
    }
}
