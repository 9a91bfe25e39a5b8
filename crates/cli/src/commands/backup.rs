//! `pgkeep backup`: take one now.

mod logical;
mod several;

use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use operations::backup::{BackupReport, BackupRequest, ChangedBy, Tuning, backup_tuned};
use operations::catalogue::BackupSummary;
use operations::failure_note::About;
use operations::probe::Mode;
use repository::Repository;
use serde_json::json;

use super::Session;
use crate::failure::{Class, Failure, Outcome};
use crate::output::{bytes, elapsed, facts, moment, print_error};
use crate::secret_files::Use;
use crate::settings::Settings;
use crate::{opening, progress};
use several::Share;

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

/// Takes a backup. Whatever it failed with is shown by `status` until there is one.
pub async fn run(session: &Session, arguments: &BackupArguments) -> Outcome<u8> {
    let outcome = take_and_carry(session, arguments).await;
    let note = session.settings.failure_note(About::Backup);
    match &outcome {
        Ok(_) => note.worked(),
        Err(failure) => note.failed(Timestamp::now(), failure.why()),
    }
    outcome
}

/// Takes a backup into the first repository that works, and carries it to the others. The exit code is that of damaged data
/// if the server has damaged pages, although the backup is made, and a failure's if a repository does not have it.
async fn take_and_carry(session: &Session, arguments: &BackupArguments) -> Outcome<u8> {
    let all: Vec<&Settings> = session.settings.repositories().collect();
    let mut shares = Vec::new();
    for (number, settings) in all.iter().enumerate() {
        match take(session, arguments, settings).await {
            Ok(taken) => return finish(session, settings, &taken, shares, &all[number + 1..]).await,
            Err(NotTaken::Here(failure)) => shares.push(Share::failed(settings, failure)),
            Err(NotTaken::Anywhere(failure)) => return Err(failure),
        }
    }
    Err(several::none_took_it(shares))
}

/// A backup that one repository has.
struct Taken {
    repository: Arc<Repository>,
    report: BackupReport,
    /// The newest one that was there before.
    newest: Option<String>,
}

enum NotTaken {
    /// Another repository may take it.
    Here(Failure),
    /// The server cannot be backed up.
    Anywhere(Failure),
}

async fn take(
    session: &Session,
    arguments: &BackupArguments,
    settings: &Settings,
) -> Result<Taken, NotTaken> {
    let repository = opening::open(settings, Use::Read).await.map_err(NotTaken::Here)?;
    let connection = opening::connect(settings).await.map_err(NotTaken::Anywhere)?;
    let mode = arguments.mode.unwrap_or_else(|| settings.mode());
    let (mode, connection) = logical::decide(&repository, &settings.cluster, mode, connection).await?;
    let request = request(arguments, settings, mode);
    let what = || format!("back up cluster {}", request.cluster);
    let newest = match settings.is_alone() {
        true => Ok(None),
        false => repository.backup_ids(&request.cluster).await.map(|mut ids| ids.pop()),
    };
    let newest = newest.map_err(|error| NotTaken::Here(Failure::caused(what(), &error)))?;
    let monitor = progress::monitor(session.quiet);
    if mode == Mode::Logical {
        let report = logical::take(arguments, settings, repository.clone(), connection, monitor).await?;
        return Ok(Taken { repository, report, newest });
    }
    arguments.logical.refuse().map_err(NotTaken::Anywhere)?;
    match backup_tuned(connection, repository.clone(), &request, monitor, &tuning()).await {
        Ok(report) => Ok(Taken { repository, report, newest }),
        Err(error) => {
            let failure = Failure::caused(what(), &error);
            Err(if error.is_of_the_repository() {
                NotTaken::Here(failure)
            } else {
                NotTaken::Anywhere(failure)
            })
        }
    }
}

fn request(arguments: &BackupArguments, settings: &Settings, mode: Mode) -> BackupRequest {
    BackupRequest {
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
    }
}

/// Carries what was taken to the others that were not tried, and says what came of it.
async fn finish(
    session: &Session,
    by: &Settings,
    taken: &Taken,
    mut shares: Vec<Share>,
    others: &[&Settings],
) -> Outcome<u8> {
    let report = &taken.report;
    let summary = BackupSummary::of(&report.manifest);
    let carried =
        several::Taken { repository: &taken.repository, id: &summary.id, newest: taken.newest.as_deref() };
    shares.push(Share::taken(by));
    for other in others {
        shares.push(several::carry_into(session, &carried, other).await);
    }
    let is_alone = shares.len() == 1;
    let mut value = json!({"backup": summary, "elapsed_s": report.elapsed.as_secs_f64(), "warnings": report.manifest.warnings});
    if report.manifest.is_logical() {
        value["bytes_read_back"] = report.bytes_read_back.into();
    }
    if !is_alone {
        value["repositories"] = shares.iter().map(Share::to_json).collect();
    }
    session.output.show(&value, || {
        let more = if is_alone { String::new() } else { several::text(&shares) };
        format!("{}{more}", text(report, &summary))
    })?;
    for warning in report.manifest.warnings.iter().filter(|_| !session.output.json) {
        print_error(&format!("warning: {warning}\n"));
    }
    let damaged = damage_code(report, &summary);
    let failed = several::tell_failures(&shares);
    Ok(if failed == 0 { damaged } else { failed })
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
    if report.manifest.is_logical() {
        return logical::text(report, summary);
    }
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
