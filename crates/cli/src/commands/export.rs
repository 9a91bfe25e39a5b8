//! `pgkeep export`: a logical backup as a file that psql or pg_restore takes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use operations::logical::export::{
    Compression, Destination, ExportReport, ExportRequest, Format, GlobalsWanted, execute, plan,
};
use serde_json::json;

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::output::{bytes, elapsed, facts, print_error};
use crate::secret_files::Use;
use crate::{opening, progress};

const WHAT: &str = "export a backup";

/// What to write, and where to.
#[derive(Debug, Args)]
#[command(
    after_help = "What comes out needs pgkeep no more: `psql -f FILE` takes the format plain, `pg_restore -d DATABASE FILE` the \
    format custom. A file whose name ends in .gz or .zst is compressed; psql takes what gunzip or zstd -d makes of it. \
    The file is not encrypted."
)]
pub struct ExportArguments {
    /// A backup's id, the beginning of one, or `latest`
    #[arg(default_value = "latest")]
    backup: String,
    /// For which program: plain is SQL, for psql; custom is an archive, for
    /// pg_restore
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: FormatArgument,
    /// The file to make; - for standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Let the file take the place of one that is there
    #[arg(long)]
    force: bool,
    /// Which database of the backup [default: the only one]
    #[arg(long, value_name = "NAME")]
    from_database: Option<String>,
    /// Only this table, `schema.table` or `table`, and what belongs to it; can
    /// be given again
    #[arg(long, value_name = "TABLE")]
    table: Vec<String>,
    /// Only this schema; can be given again
    #[arg(long, value_name = "SCHEMA", conflicts_with = "table")]
    schema: Vec<String>,
    /// SQL that drops everything, if it is there, before it makes it
    #[arg(long)]
    clean: bool,
    /// SQL that is one transaction: with ON_ERROR_STOP all of it or nothing
    #[arg(long)]
    single_transaction: bool,
    /// SQL by which everything belongs to the role that runs it
    #[arg(long)]
    no_owner: bool,
    /// SQL without GRANT and REVOKE
    #[arg(long)]
    no_privileges: bool,
    /// Roles and tablespaces before everything else
    #[arg(long)]
    globals: bool,
    /// Roles and tablespaces and nothing else
    #[arg(long, conflicts_with_all = ["globals", "table", "schema", "clean"])]
    globals_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArgument {
    Plain,
    Custom,
}

/// Plans the export and writes it.
pub async fn run(session: &Session, arguments: &ExportArguments) -> Outcome {
    let settings = &session.settings;
    let is_stream = arguments.output == Path::new("-");
    let destination = destination(arguments, is_stream)?;
    let repository = opening::open(settings, Use::Read).await?;
    let found = operations::catalogue::resolve(&repository, &settings.cluster, &arguments.backup).await;
    let request = ExportRequest {
        cluster: settings.cluster.clone(),
        backup: Some(found.map_err(|error| Failure::caused(WHAT, &error))?),
        database: arguments.from_database.clone(),
        format: match arguments.format {
            FormatArgument::Plain => Format::Plain,
            FormatArgument::Custom => Format::Custom,
        },
        tables: arguments.table.clone(),
        schemas: arguments.schema.clone(),
        clean: arguments.clean,
        single_transaction: arguments.single_transaction,
        no_owner: arguments.no_owner,
        no_privileges: arguments.no_privileges,
        globals: match (arguments.globals, arguments.globals_only) {
            (_, true) => GlobalsWanted::Only,
            (true, _) => GlobalsWanted::InFront,
            _ => GlobalsWanted::No,
        },
    };
    let plan = plan(Arc::clone(&repository), request).await;
    let mut plan = plan.map_err(|error| Failure::caused(WHAT, &error))?;
    let mut warnings = std::mem::take(&mut plan.warnings);
    let planned = (plan.manifest.id.clone(), plan.database.name.clone());
    let report = execute(plan, destination, progress::monitor(session.quiet)).await;
    let report = report.map_err(|error| Failure::caused(WHAT, &error))?;
    warnings.extend(report.warnings.iter().cloned());
    let text = || text(&planned, &report, &arguments.output, is_stream);
    if is_stream {
        // Standard output has the export.
        if !session.quiet {
            print_error(&text());
        }
    } else {
        let value = json!({"backup": planned.0, "database": planned.1, "output": arguments.output,
            "tables": report.tables, "rows": report.rows, "bytes": report.bytes,
            "elapsed_s": report.elapsed.as_secs_f64(), "warnings": warnings});
        session.output.show(&value, text)?;
    }
    for warning in warnings.iter().filter(|_| is_stream || !session.output.json) {
        print_error(&format!("warning: {warning}\n"));
    }
    Ok(())
}

fn destination(arguments: &ExportArguments, is_stream: bool) -> Outcome<Destination> {
    if is_stream {
        return Ok(Destination::Stream(Box::new(io::stdout())));
    }
    let compression = Compression::of_name(&arguments.output);
    if arguments.format == FormatArgument::Custom && compression != Compression::None {
        return Err(Failure::wrong(WHAT)
            .because(format!(
                "pg_restore takes no archive that is compressed like {}",
                arguments.output.display()
            ))
            .hint("a name without .gz or .zst, or --format plain"));
    }
    let path = std::path::absolute(&arguments.output);
    let path =
        path.map_err(|error| Failure::caused(format!("use {}", arguments.output.display()), &error))?;
    Ok(Destination::File { path, compression, force: arguments.force })
}

fn text(planned: &(String, String), report: &ExportReport, output: &Path, is_stream: bool) -> String {
    let (backup, database) = planned;
    let speed = report.bytes as f64 / report.elapsed.as_secs_f64().max(0.001);
    let to = if is_stream { "standard output".to_owned() } else { output.display().to_string() };
    facts(&[
        ("Exported", format!("{backup} of database {database} to {to}")),
        ("Rows", format!("{} in {} tables, compared with the backup", report.rows, report.tables)),
        ("Size", bytes(report.bytes)),
        ("Took", format!("{} ({}/s)", elapsed(report.elapsed), bytes(speed as u64))),
    ])
}
