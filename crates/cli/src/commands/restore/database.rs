//! `pgkeep restore --into postgres://…`: a logical backup into a database.

use std::env;
use std::io::{self, BufRead as _};
use std::path::Path;

use clap::Args;
use operations::logical::restore::{How, RestorePlan, RestoreReport, RestoreRequest, execute, plan};
use serde_json::json;
use server::connection::ConnectionSettings;

use super::RestoreArguments;
use crate::commands::Session;
use crate::failure::{Failure, Outcome};
use crate::output::{bytes, elapsed, facts, moment, print_error};
use crate::secret_files::Use;
use crate::{opening, progress};

/// How a logical backup is restored.
#[derive(Debug, Args)]
#[command(next_help_heading = "Into a database")]
pub struct DatabaseArguments {
    /// Restore into a new database beside the target and exchange the names
    /// when it is whole; the old one is kept under another name
    #[arg(long)]
    swap: bool,
    /// After --swap, drop the old database
    #[arg(long, requires = "swap")]
    drop_old: bool,
    /// Drop what the backup has and make it anew, in one transaction
    #[arg(long, conflicts_with = "swap")]
    clean: bool,
    /// Which database of the backup [default: the only one, or the one named
    /// as the target]
    #[arg(long, value_name = "NAME")]
    from_database: Option<String>,
    /// Only this table, `schema.table` or `table`; can be given again
    #[arg(long, value_name = "TABLE", conflicts_with = "swap")]
    table: Vec<String>,
    /// Another name for the one table, without its indexes and constraints
    #[arg(long = "as", value_name = "TABLE", requires = "table")]
    rename: Option<String>,
    /// Only this schema; can be given again
    #[arg(long, value_name = "SCHEMA", conflicts_with_all = ["table", "swap"])]
    schema: Vec<String>,
    /// Only rows: the tables must be there
    #[arg(long, conflicts_with_all = ["swap", "schema_only", "rename"])]
    data_only: bool,
    /// Only definitions
    #[arg(long)]
    schema_only: bool,
    /// Everything belongs to the role that restores
    #[arg(long)]
    no_owner: bool,
    /// Leave out GRANT and REVOKE
    #[arg(long)]
    no_privileges: bool,
    /// The role to restore as (SET ROLE)
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl DatabaseArguments {
    /// Refuses, for a directory, what only a database takes.
    pub fn refuse(&self) -> Outcome {
        let given = self.swap
            || self.clean
            || self.data_only
            || self.schema_only
            || self.no_owner
            || self.no_privileges
            || self.role.is_some()
            || self.from_database.is_some()
            || !self.table.is_empty()
            || !self.schema.is_empty();
        if !given {
            return Ok(());
        }
        Err(Failure::wrong("restore into a directory")
            .because(
                "a directory gets the whole cluster; parts of it are for a logical backup and a database",
            )
            .hint("--into postgres://…"))
    }
}

/// The database that `--into` means; `None` if it is a directory.
pub fn target(into: &Path) -> Outcome<Option<ConnectionSettings>> {
    let Some(text) = into.to_str() else { return Ok(None) };
    if let Some(name) = text.strip_prefix("env:") {
        let url = env::var(name).map_err(|_| {
            Failure::wrong("find the database to restore into")
                .because(format!("the variable {name} is not set"))
        })?;
        return Ok(Some(ConnectionSettings::new(url)));
    }
    let is_url = text.starts_with("postgres://") || text.starts_with("postgresql://");
    Ok(is_url.then(|| ConnectionSettings::new(text)))
}

/// Plans, shows, asks, and carries it out.
pub async fn run(session: &Session, arguments: &RestoreArguments, target: ConnectionSettings) -> Outcome {
    let (settings, chosen) = (&session.settings, &arguments.database);
    let what = "restore into a database";
    if arguments.to != "latest" {
        return Err(Failure::wrong(what)
            .because("a logical backup is of one moment; --to is for backups with WAL")
            .hint("name the backup: `pgkeep list` shows their moments"));
    }
    let repository = opening::open(settings, Use::Read).await?;
    let mut request = RestoreRequest {
        cluster: settings.cluster.clone(),
        backup: arguments.backup.clone(),
        database: chosen.from_database.clone(),
        target,
        how: match (chosen.swap, chosen.clean) {
            (true, _) => How::Swap,
            (_, true) => How::Clean,
            _ => How::Empty,
        },
        tables: chosen.table.clone(),
        schemas: chosen.schema.clone(),
        rename: chosen.rename.clone(),
        definitions_only: chosen.schema_only,
        rows_only: chosen.data_only,
        no_owner: chosen.no_owner,
        no_privileges: chosen.no_privileges,
        role: chosen.role.clone(),
        drop_old: chosen.drop_old,
        workers: settings.workers(),
    };
    if let Some(text) = &request.backup {
        let found = operations::catalogue::resolve(&repository, &settings.cluster, text).await;
        request.backup = Some(found.map_err(|error| Failure::caused(what, &error))?);
    }
    let plan = plan(repository, request).await.map_err(|error| Failure::caused(what, &error))?;
    let planned = plan_json(&plan);
    if arguments.dry_run {
        return session.output.show(&planned, || plan_text(&plan));
    }
    if !chosen.yes && !confirmed(&plan)? {
        return Err(Failure::wrong("Restore cancelled").hint("it goes on only at `yes`; --yes does not ask"));
    }
    let monitor = progress::monitor(session.quiet);
    let report = execute(plan, monitor).await.map_err(|error| Failure::caused(what, &error))?;
    let value = json!({"plan": planned, "elapsed_s": report.elapsed.as_secs_f64(), "database": report.database,
        "tables": report.tables, "rows": report.rows, "bytes": report.bytes,
        "kept_as": report.kept_as, "warnings": report.warnings});
    session.output.show(&value, || report_text(&report))?;
    for warning in report.warnings.iter().filter(|_| !session.output.json) {
        print_error(&format!("warning: {warning}\n"));
    }
    Ok(())
}

/// Shows what will be done and reads the answer.
fn confirmed(plan: &RestorePlan) -> Outcome<bool> {
    print_error(&format!("{}Type yes to go on: ", plan_text(plan)));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::caused("read the answer", &error))?;
    Ok(answer.trim() == "yes")
}

fn plan_json(plan: &RestorePlan) -> serde_json::Value {
    let target = &plan.target;
    json!({
        "backup": plan.manifest.id, "database": plan.database.name, "tables": plan.tables.len(),
        "rows": plan.rows(), "bytes": plan.bytes(), "how": how_word(plan.request.how),
        "target": {"host": target.host, "port": target.port, "database": target.database, "role": target.role,
            "postgresql": target.major.number(), "relations": target.relations, "rows": target.rows,
            "bytes": target.bytes},
        "warnings": plan.warnings,
    })
}

fn how_word(how: How) -> &'static str {
    match how {
        How::Empty => "empty",
        How::Clean => "clean",
        How::Swap => "swap",
    }
}

fn plan_text(plan: &RestorePlan) -> String {
    let (target, request) = (&plan.target, &plan.request);
    let taken = jiff::Timestamp::from_microsecond(plan.database.taken_us).map(moment).unwrap_or_default();
    let then = match request.how {
        _ if !request.tables.is_empty() => match &request.rename {
            Some(name) => format!("makes table {name}"),
            None => "makes the tables that were chosen".to_owned(),
        },
        How::Empty => "fills the database, which is empty".to_owned(),
        How::Clean => {
            "OVERWRITES it: drops what the backup has and makes it anew, in one transaction".to_owned()
        }
        How::Swap if request.drop_old => "REPLACES it by a new database, and DROPS the old one".to_owned(),
        How::Swap => "REPLACES it by a new database, and keeps the old one under another name".to_owned(),
    };
    let mut lines = vec![
        ("Backup", format!("{} of database {}, taken {taken}", plan.manifest.id, plan.database.name)),
        ("Has", format!("{} rows in {} tables, {}", plan.rows(), plan.tables.len(), bytes(plan.bytes()))),
        (
            "Into",
            format!(
                "database {} on {} port {}, as {}",
                target.database, target.host, target.port, target.role
            ),
        ),
        (
            "There now",
            format!(
                "{} tables, views and sequences, about {} rows, {}",
                target.relations,
                target.rows,
                bytes(target.bytes)
            ),
        ),
        ("This", then),
    ];
    lines.extend(plan.warnings.iter().map(|warning| ("Warning", warning.clone())));
    facts(&lines)
}

fn report_text(report: &RestoreReport) -> String {
    let speed = report.bytes as f64 / report.elapsed.as_secs_f64().max(0.001);
    let mut lines = vec![
        ("Restored", format!("{} into database {}", report.backup, report.database)),
        ("Rows", format!("{} in {} tables, compared with the backup", report.rows, report.tables)),
        ("Took", format!("{} ({}/s)", elapsed(report.elapsed), bytes(speed as u64))),
    ];
    if let Some(old) = &report.kept_as {
        lines.push(("Old one", format!("kept as database {old}; drop it when you are sure")));
    }
    lines.push(("Next", "run ANALYZE, and your application's migrations".to_owned()));
    facts(&lines)
}
