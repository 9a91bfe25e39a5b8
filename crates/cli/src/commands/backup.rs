//! `pgkeep backup`: take one now.

mod logical;

use clap::Args;
use operations::backup::{BackupReport, BackupRequest, ChangedBy, Tuning, backup_tuned};
use operations::catalogue::BackupSummary;
use operations::probe::Mode;
use serde_json::json;

use super::Session;
use crate::failure::{Class, Failure, Outcome};
use crate::output::{bytes, elapsed, facts, moment, print_error};
use crate::secret_files::Use;
use crate::{opening, progress};

/// How to take it.
#[derive(Debug, Args)]
pub struct BackupArguments {
    /// Read and store everything, independent of all earlier backups
    #[arg(long)]
    full: bool,
    /// Read everything and compare it, instead of trusting the files' times
    #[arg(long)]
    reread: bool,
    /// Let the server spread its checkpoint over minutes instead of hurrying
    #[arg(long)]
    spread_checkpoint: bool,
    /// What to store: auto, local (files, the data directory is here), sql
    /// (files, through the server), logical (rows and definitions, with
    /// pg_dump) [default: auto]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// How to find what changed since the last backup: content (read files that
    /// may have changed and compare), wal-summary (read only the blocks that
    /// the server's WAL summaries name; PostgreSQL 17.13, 18.7 and later with
    /// summarize_wal) [default: content]
    #[arg(long, value_name = "WAY")]
    changed_by: Option<ChangedBy>,
    /// What to call it
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,
    #[command(flatten)]
    logical: logical::LogicalArguments,
}

/// Takes a backup. The exit code is that of damaged data if the server has damaged pages, although the backup is made.
pub async fn run(session: &Session, arguments: &BackupArguments) -> Outcome<u8> {
    let settings = &session.settings;
    let repository = opening::open(settings, Use::Read).await?;
    let connection = opening::connect(settings).await?;
    let mode = arguments.mode.unwrap_or_else(|| settings.mode());
    let (mode, connection) = logical::decide(&repository, &settings.cluster, mode, connection).await?;
    if mode == Mode::Logical {
        return logical::run(session, arguments, repository, connection).await;
    }
    arguments.logical.refuse()?;
    let request = BackupRequest {
        cluster: settings.cluster.clone(),
        mode,
        label: arguments.label.clone(),
        full: arguments.full,
        reread: arguments.reread,
        changed_by: arguments.changed_by.unwrap_or_else(|| settings.changed_by()),
        spread_checkpoint: arguments.spread_checkpoint,
        workers: settings.workers(),
        level: settings.compression_level(),
        wal_timeout: settings.duration("wal_timeout"),
        primary: settings.primary(),
    };
    let monitor = progress::monitor(session.quiet);
    let what = format!("back up cluster {}", request.cluster);
    let report = backup_tuned(connection, repository, &request, monitor, &tuning())
        .await
        .map_err(|error| Failure::caused(what, &error))?;
    let summary = BackupSummary::of(&report.manifest);
    let value = json!({"backup": summary, "elapsed_s": report.elapsed.as_secs_f64(), "warnings": report.manifest.warnings});
    session.output.show(&value, || text(&report, &summary))?;
    for warning in report.manifest.warnings.iter().filter(|_| !session.output.json) {
        print_error(&format!("warning: {warning}\n"));
    }
    Ok(damage_code(&report, &summary))
}

/// Lets a test have WAL summaries of every minor believed. A release build does not look.
fn tuning() -> Tuning {
    let any_minor = cfg!(debug_assertions) && std::env::var_os("PGKEEP_BELIEVE_SUMMARIES").is_some();
    Tuning { any_minor, ..Tuning::default() }
}

fn damage_code(report: &BackupReport, summary: &BackupSummary) -> u8 {
    if summary.damaged_pages == 0 {
        return 0;
    }
    let first = report.manifest.findings.first();
    let place = first.map(|page| format!("; first: {} block {}", page.path.escape_ascii(), page.block));
    let told = Failure::new(Class::Damaged, "the backup is made, and the server has damaged pages")
        .because(format!(
            "{} pages with a wrong checksum{}",
            summary.damaged_pages,
            place.unwrap_or_default()
        ))
        .hint(format!("`pgkeep info {}` lists them; earlier backups may still hold them whole", summary.id));
    print_error(&told.render(crate::output::width()));
    Class::Damaged as u8
}

fn text(report: &BackupReport, summary: &BackupSummary) -> String {
    let speed = summary.bytes_read as f64 / report.elapsed.as_secs_f64().max(0.001);
    facts(&[
        ("Backup", format!("{} ({})", summary.id, summary.kind)),
        ("Consistent at", summary.ended.map(moment).unwrap_or_default()),
        ("Cluster", format!("{} in {} files", bytes(summary.bytes), summary.files)),
        ("Read", format!("{}, of which new: {}", bytes(summary.bytes_read), bytes(summary.bytes_new))),
        ("Stored", bytes(summary.bytes_stored)),
        ("Took", format!("{} ({}/s)", elapsed(report.elapsed), bytes(speed as u64))),
    ])
}
