//! `pgkeep copy`: backups and WAL into another repository.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use operations::copy::{CopyError, CopyReport, CopyRequest, Plan, execute, plan};
use operations::monitor::Event;
use repository::{Repository, Secret};
use serde_json::json;

use super::Session;
use crate::failure::{Class, Failure, Outcome};
use crate::output::{bytes, keep_whole, table, table_text};
use crate::secret_files::{self, Use};
use crate::settings::{Form, Settings, span};
use crate::{opening, progress};

/// Bytes of a backup on its way that an interruption costs at most, about.
pub const NOTE_EVERY: u64 = 512 << 20;

/// What to copy, and where to.
#[derive(Debug, Args)]
#[command(
    after_help = "The other repository must exist: `pgkeep init` makes it. Everything is sealed anew under its \
    keys, so that copying into a fresh repository is also how all of one is re-keyed. What it has already is not \
    copied again; interrupted, run it again."
)]
pub struct CopyArguments {
    /// Backups to copy, with the WAL between start and stop of each
    /// [default: all that the other lacks, and all WAL]
    #[arg(value_name = "ID")]
    backups: Vec<String>,
    /// The repository to copy into: a location, or the name of a configured one
    #[arg(long, value_name = "LOCATION")]
    to: String,
    /// A file with a key of that repository
    #[arg(long, value_name = "FILE", conflicts_with = "to_passphrase_file")]
    to_key_file: Option<PathBuf>,
    /// A file with a passphrase of that repository
    #[arg(long, value_name = "FILE")]
    to_passphrase_file: Option<PathBuf>,
    /// Lock what is copied for this long, in a bucket that has object lock; a
    /// configured repository has its own setting `lock`
    #[arg(long, value_name = "SPAN", value_parser = span_argument)]
    to_lock: Option<std::time::Duration>,
    /// Copy all WAL that it lacks, and no backups
    #[arg(long, conflicts_with = "backups")]
    wal: bool,
    /// Show what would be copied, and copy nothing
    #[arg(long)]
    dry_run: bool,
}

fn span_argument(text: &str) -> Result<std::time::Duration, String> {
    span(text).ok_or_else(|| format!("expected {}", Form::Span.expected()))
}

/// Copies; the exit code says whether some of it is damaged and stayed behind.
pub async fn run(session: &Session, arguments: &CopyArguments) -> Outcome<u8> {
    let settings = &session.settings;
    let source = opening::open(settings, Use::Read).await?;
    let target = target(settings, arguments).await?;
    let request = CopyRequest {
        cluster: settings.cluster.clone(),
        backups: arguments.backups.clone(),
        only_wal: arguments.wal,
        workers: settings.workers(),
        level: settings.compression_level(),
        note_every: NOTE_EVERY,
    };
    let failed = |error: CopyError| Failure::caused(format!("copy into {}", arguments.to), &error);
    let monitor = progress::monitor(session.quiet);
    monitor.event(Event::Phase("look"));
    let plan = plan(&source, &target, &request).await.map_err(failed)?;
    let is_readable = plan.damaged.is_empty();
    if arguments.dry_run {
        drop(monitor);
        session.output.show(&json!({"plan": plan}), || planned(&plan))?;
        return Ok(if is_readable { 0 } else { Class::Damaged as u8 });
    }
    let report = execute(&source, &target, &plan, &request, &*monitor).await.map_err(failed)?;
    drop(monitor);
    session.output.show(&json!({"plan": plan, "report": report}), || done(&report))?;
    Ok(if report.is_whole() { 0 } else { Class::Damaged as u8 })
}

/// Opens the other repository: with what is configured for it, or with the key or passphrase that is named.
async fn target(settings: &Settings, arguments: &CopyArguments) -> Outcome<Arc<Repository>> {
    let configured = settings.other(&arguments.to);
    if configured.is_some() && arguments.to_lock.is_some() {
        return Err(Failure::wrong(format!("copy into {}", arguments.to))
            .because("it is a configured repository, and --to-lock is for others")
            .hint("put `lock` into its [[repository]] table"));
    }
    let secret = match (&arguments.to_key_file, &arguments.to_passphrase_file) {
        (Some(file), _) => secret_files::key_in(file)?,
        (None, Some(file)) => Secret::Passphrase(secret_files::read_passphrase(file)?),
        (None, None) => {
            let configured = configured.ok_or_else(|| {
                Failure::wrong("open the repository to copy into")
                    .because(
                        "no key and no passphrase of it is named, and it is not the name of a configured one",
                    )
                    .hint("--to-key-file or --to-passphrase-file")
            })?;
            return opening::open(configured, Use::Read).await;
        }
    };
    match configured {
        Some(configured) => {
            let (place, lock) = (configured.location()?.to_string(), configured.storage().lock);
            opening::open_other(configured, &place, &secret, lock).await
        }
        None => {
            let lock = arguments.to_lock.and_then(|span| settings.lock_for(span));
            opening::open_other(settings, &arguments.to, &secret, lock).await
        }
    }
}

fn planned(plan: &Plan) -> String {
    let mut text = if plan.backups.is_empty() {
        "No backup to copy.\n".to_owned()
    } else {
        let mut shown = table(&["BACKUP", "SIZE"]);
        for backup in &plan.backups {
            shown.add_row([backup.id.clone(), bytes(backup.bytes)]);
        }
        keep_whole(&mut shown, 0);
        table_text(&shown)
    };
    if !plan.shared.is_empty() {
        text.push_str(&format!("{} backups are there already\n", plan.shared.len()));
    }
    text.push_str(&format!("{} files of the WAL archive are to be copied\n", plan.wal_files));
    for backup in &plan.damaged {
        tell(&mut text, &format!("{}: {}", backup.id, backup.why));
    }
    text
}

fn done(report: &CopyReport) -> String {
    let mut text = format!(
        "Copied {} backups ({} stored) and {} files of the WAL archive.\n",
        report.backups.len(),
        bytes(report.stored_bytes),
        report.wal_files
    );
    for backup in &report.damaged {
        tell(&mut text, &format!("{} was not copied: {}", backup.id, backup.why));
    }
    for file in &report.damaged_wal {
        tell(&mut text, &format!("not copied: {file}"));
    }
    text
}

fn tell(text: &mut String, what: &str) {
    crate::failure::push_wrapped(text, "damaged: ", what, crate::output::width());
}
