//! A logical backup as a file that PostgreSQL's own programs take without pgkeep: SQL for `psql`, or an archive for `pg_restore`.
//!
//! The archive is the stored one, which has definitions, large objects and no rows, with entries and data added for what it was
//! written without. It is made in one pass: how long each block will be is known before, and so is where it will stand. SQL is what
//! `pg_restore` makes of that very stream. Nothing is kept on disk but the definitions, which have to be read twice.

mod archive;
mod blocks;
mod contents;
mod output;
mod plan;
mod stream;

pub use output::{Compression, Destination};
pub use plan::{ExportPlan, plan};

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use repository::ClusterName;
use repository::logical::{self, OtherRecord};

use super::LogicalError;
use super::reader::{FileReader, records};
use super::restore::find;
use crate::monitor::{Event, Monitor};
use output::Output;
use stream::Stream;

/// Bytes that are handed to `pg_restore` or to the file at once.
const BUFFER: usize = 256 << 10;

/// What the file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// SQL, for `psql`.
    Plain,
    /// `pg_dump`'s custom format, for `pg_restore`.
    Custom,
}

/// What of the server's roles and tablespaces goes into the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GlobalsWanted {
    /// Nothing.
    #[default]
    No,
    /// All there is, before everything else.
    InFront,
    /// That and nothing else.
    Only,
}

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// The stream's name in the repository.
    pub cluster: ClusterName,
    /// The backup's id; the newest if `None`.
    pub backup: Option<String>,
    /// Which of the backup's databases; the only one if `None`.
    pub database: Option<String>,
    /// For which program.
    pub format: Format,
    /// Only these tables and what belongs to them, `schema.table` or `table`; all if empty.
    pub tables: Vec<String>,
    /// Only these schemas; all if empty.
    pub schemas: Vec<String>,
    /// SQL that drops everything before it makes it.
    pub clean: bool,
    /// SQL that is one transaction: with psql's ON_ERROR_STOP all of it or nothing.
    pub single_transaction: bool,
    /// SQL that gives nothing to any role.
    pub no_owner: bool,
    /// SQL without privileges.
    pub no_privileges: bool,
    /// The server's globals.
    pub globals: GlobalsWanted,
}

/// What was exported.
#[derive(Clone, Debug, Default)]
pub struct ExportReport {
    /// Tables whose rows are in the file, compared with what was stored.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// What is not in the file and might be expected there, for people.
    pub warnings: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Writes what was planned. A file gets its name when it is whole and would survive power loss.
pub async fn execute(
    plan: ExportPlan,
    destination: Destination,
    monitor: Arc<dyn Monitor>,
) -> Result<ExportReport, LogicalError> {
    let began = Instant::now();
    let mut output = Output::begin(destination)?;
    let wants = plan.request.globals;
    if wants != GlobalsWanted::No {
        let globals = find(&plan.repository, &plan.manifest, logical::GLOBALS).await?;
        let globals = FileReader::new(&plan.repository).read_all(&globals).await?;
        output.write_all(&globals).map_err(write_error)?;
    }
    let mut report = ExportReport::default();
    if wants != GlobalsWanted::Only {
        monitor.event(Event::Phase("read definitions"));
        let (definitions, others) = (definitions(&plan).await?, others(&plan).await?);
        tokio::task::block_in_place(|| {
            let stream = Stream::begin(&plan, definitions, &others, &mut report)?;
            monitor.event(Event::Phase("export rows"));
            monitor.event(Event::Total { bytes: plan.bytes(), files: plan.tables.len() as u64 });
            match plan.request.format {
                Format::Custom => stream.write(&mut output, &*monitor, &mut report),
                Format::Plain => sql(&plan, stream, &mut output, &*monitor, &mut report),
            }
        })?;
    }
    report.bytes = tokio::task::block_in_place(|| output.finish())?;
    report.elapsed = began.elapsed();
    Ok(report)
}

/// Has `pg_restore` make SQL of the archive, while the archive is made.
fn sql(
    plan: &ExportPlan,
    stream: Stream<'_>,
    output: &mut Output,
    monitor: &dyn Monitor,
    report: &mut ExportReport,
) -> Result<(), LogicalError> {
    let program = plan.program.as_ref().expect("a plan for SQL has found it");
    let mut command = program.command(None)?;
    command.args(["--format=custom", "--file=-"]).args(arguments(&plan.request));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = program.start(command)?;
    let mut stdout = running.child.stdout.take().expect("it was piped");
    let stdin = running.child.stdin.take().expect("it was piped");
    let (fed, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let poured = output.pour(&mut stdout);
            // The program learns that nobody wants more of it.
            drop(stdout);
            poured
        });
        let mut stdin = BufWriter::with_capacity(BUFFER, stdin);
        let fed = stream.write(&mut stdin, monitor, report);
        if fed.is_err() {
            // The rest would be half of something: it must not be taken for the end.
            let _ = running.child.kill();
        }
        // What is buffered was flushed, or nobody wants it.
        let (stdin, _) = stdin.into_parts();
        drop(stdin);
        (fed, writer.join().expect("writing does not panic"))
    });
    let is_pipe = matches!(&fed, Err(LogicalError::Pipe { .. }));
    if fed.is_err() && !is_pipe {
        return fed;
    }
    // A program that takes no more has said why, unless what it wrote was not taken.
    written.map_err(write_error)?;
    let words = running.finish()?;
    if !words.is_empty() {
        tracing::warn!(%words, "pg_restore warned");
    }
    fed
}

fn arguments(request: &ExportRequest) -> Vec<&'static str> {
    let clean: &[&str] = if request.clean { &["--clean", "--if-exists"] } else { &[] };
    let single = request.single_transaction.then_some("--single-transaction");
    let no_owner = request.no_owner.then_some("--no-owner");
    let no_privileges = request.no_privileges.then_some("--no-privileges");
    clean.iter().copied().chain(single).chain(no_owner).chain(no_privileges).collect()
}

/// The stored archive, in a file without a name.
async fn definitions(plan: &ExportPlan) -> Result<File, LogicalError> {
    let entry = find(&plan.repository, &plan.manifest, &logical::definitions(&plan.database.name)).await?;
    let failed = |source| LogicalError::Pipe { action: "keep the definitions in a temporary file", source };
    let mut file = tempfile::tempfile().map_err(failed)?;
    let mut reader = FileReader::new(&plan.repository);
    reader.read(&entry, |bytes| file.write_all(bytes).map_err(failed)).await?;
    Ok(file)
}

async fn others(plan: &ExportPlan) -> Result<Vec<OtherRecord>, LogicalError> {
    let entry = find(&plan.repository, &plan.manifest, &logical::others(&plan.database.name)).await?;
    records(&FileReader::new(&plan.repository).read_all(&entry).await?, "list of sequences")
}

fn write_error(source: io::Error) -> LogicalError {
    LogicalError::Export { action: "write the export", source }
}

fn definitions_error(what: impl Into<String>) -> LogicalError {
    LogicalError::Definitions { what: what.into() }
}
