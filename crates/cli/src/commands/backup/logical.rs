//! `pgkeep backup` of rows and definitions.

use std::sync::Arc;

use clap::Args;
use operations::backup::BackupReport;
use operations::catalogue::BackupSummary;
use operations::logical::{LogicalError, LogicalRequest, Selection, back_up};
use operations::monitor::Monitor;
use operations::probe::{Mode, Probe, Way};
use repository::{ClusterName, Repository};
use server::connection::{Connection, ServerError};
use server::facts::ServerFacts;

use super::{BackupArguments, NotTaken};
use crate::failure::{Class, Failure, Outcome};
use crate::output::{bytes, elapsed, facts, moment};
use crate::settings::Settings;

/// What of the server is wanted in a logical backup.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logical backups")]
pub struct LogicalArguments {
    /// A database to store; can be given again [default: the one that the
    /// URL names]
    #[arg(long, value_name = "NAME")]
    database: Vec<String>,
    /// Store every database of the server
    #[arg(long, conflicts_with = "database")]
    all_databases: bool,
    /// Store this schema and no other; `*` stands for any characters
    #[arg(long, value_name = "PATTERN")]
    schema: Vec<String>,
    /// Leave out a schema
    #[arg(long, value_name = "PATTERN")]
    exclude_schema: Vec<String>,
    /// Leave out a table, `schema.table` or `table`
    #[arg(long, value_name = "PATTERN")]
    exclude_table: Vec<String>,
    /// Keep a table's definition and leave out its rows
    #[arg(long, value_name = "PATTERN")]
    exclude_rows: Vec<String>,
}

impl LogicalArguments {
    /// Refuses what a backup of files cannot do.
    pub fn refuse(&self) -> Outcome {
        let given = self.all_databases
            || [&self.database, &self.schema, &self.exclude_schema, &self.exclude_table, &self.exclude_rows]
                .iter()
                .any(|list| !list.is_empty());
        if !given {
            return Ok(());
        }
        Err(Failure::wrong("take a backup of files")
            .because("it is of the whole cluster; databases and tables can be chosen in a logical one only")
            .hint("--mode logical, with a --cluster name of its own"))
    }

    /// What is wanted, by these and by the settings.
    fn selection(&self, settings: &Settings) -> Selection {
        let or_settings = |given: &[String], name| {
            if given.is_empty() { settings.list(name) } else { given.to_vec() }
        };
        let databases = or_settings(&self.database, "logical.databases");
        let all = self.all_databases || (self.database.is_empty() && databases == ["*"]);
        Selection {
            databases: if all { Vec::new() } else { databases },
            all_databases: all,
            schemas: or_settings(&self.schema, "logical.schemas"),
            exclude_schemas: or_settings(&self.exclude_schema, "logical.exclude_schemas"),
            exclude_tables: or_settings(&self.exclude_table, "logical.exclude_tables"),
            exclude_rows: or_settings(&self.exclude_rows, "logical.exclude_rows"),
        }
    }
}

/// Which way to go: what the stream is bound to decides, and for a new one what is possible.
pub(super) async fn decide(
    repository: &Repository,
    cluster: &ClusterName,
    mode: Mode,
    connection: Connection,
) -> Result<(Mode, Connection), NotTaken> {
    if mode != Mode::Auto {
        return Ok((mode, connection));
    }
    let what = format!("back up cluster {cluster}");
    let identity = repository.identity(cluster).await;
    match identity.map_err(|error| NotTaken::Here(Failure::caused(&what, &error)))? {
        Some(identity) if identity.logical => return Ok((Mode::Logical, connection)),
        Some(_) => return Ok((mode, connection)),
        None => {}
    }
    let probed = tokio::task::spawn_blocking(move || {
        let facts = ServerFacts::read(&connection)?;
        Ok((Probe::of(&facts).choose(Mode::Auto), connection))
    });
    let anywhere = |failure| NotTaken::Anywhere(failure);
    let probed = probed.await.map_err(|error| anywhere(Failure::caused(&what, &error).class(Class::Bug)))?;
    let (way, connection) = probed.map_err(|error: ServerError| anywhere(Failure::caused(&what, &error)))?;
    let mode = if way == Ok(Way::Logical) { Mode::Logical } else { mode };
    Ok((mode, connection))
}

/// Takes a logical backup.
pub(super) async fn take(
    arguments: &BackupArguments,
    settings: &Settings,
    repository: Arc<Repository>,
    connection: Connection,
    monitor: Arc<dyn Monitor>,
) -> Result<BackupReport, NotTaken> {
    let request = LogicalRequest {
        cluster: settings.cluster.clone(),
        label: arguments.label.clone(),
        full: arguments.full,
        selection: arguments.logical.selection(settings),
        workers: settings.workers(),
        level: settings.compression_level(),
        lock_timeout: settings.duration("logical.lock_timeout"),
    };
    back_up(connection, repository, &request, monitor).await.map_err(|error| {
        let failure = Failure::caused(format!("back up cluster {}", request.cluster), &error);
        match error {
            LogicalError::Repository(_) | LogicalError::Archive(_) => NotTaken::Here(failure),
            _ => NotTaken::Anywhere(failure),
        }
    })
}

/// What is told of it.
pub(super) fn text(report: &BackupReport, summary: &BackupSummary) -> String {
    let speed = summary.bytes_read as f64 / report.elapsed.as_secs_f64().max(0.001);
    let mut lines = vec![
        ("Backup", format!("{} (logical, {})", summary.id, summary.kind)),
        ("Consistent at", summary.ended.map(moment).unwrap_or_default()),
    ];
    for database in report.manifest.logical.iter().flat_map(|record| &record.databases) {
        let what = format!(
            "{}: {} rows in {} tables, {}",
            database.name,
            database.rows,
            database.tables,
            bytes(database.bytes)
        );
        lines.push(("Database", what));
        lines.extend(database.uncovered.iter().map(|text| ("Not covered", text.clone())));
    }
    lines.extend([
        ("Read", format!("{}, of which new: {}", bytes(summary.bytes_read), bytes(summary.bytes_new))),
        ("Stored", bytes(summary.bytes_stored)),
        ("Read back", bytes(report.bytes_read_back)),
        ("Took", format!("{} ({}/s)", elapsed(report.elapsed), bytes(speed as u64))),
    ]);
    facts(&lines)
}
