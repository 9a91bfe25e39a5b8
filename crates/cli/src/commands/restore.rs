//! `pgkeep restore`: a past moment, in a new data directory.

mod database;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use operations::restore::{RestorePlan, RestoreReport, RestoreRequest, describe_moment, execute, plan};
use pg::recovery::{RecoveryTarget, TargetAction, TargetTimeline};
use serde_json::{Value, json};
use server::settings_check::{restore_command, up_to_gap_command};

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::output::{bytes, elapsed, facts, print_error};
use crate::secret_files::{self, Use};
use crate::{opening, progress};

/// What to restore, and to where.
#[derive(Debug, Args)]
#[command(
    after_help = "A target is `latest`, `immediate`, a time with its offset (2026-11-20 03:00:00+00), an LSN \
    (16/B374D848), a transaction id, or the name of a restore point; time:, lsn:, xid: and name: say \
    which is meant. Nothing is written before it is known that the target can be reached."
)]
pub struct RestoreArguments {
    /// A backup's id [default: the newest that ends before the target]
    backup: Option<String>,
    /// The data directory to make; or, for a logical backup, the database:
    /// postgres://…, or env:NAME for a URL in that variable
    #[arg(long, value_name = "DIR|URL")]
    into: PathBuf,
    /// Where to stop: a time, lsn:…, xid:…, name:…, immediate or latest
    #[arg(long, value_name = "TARGET", default_value = "latest")]
    to: String,
    /// Stop just before the target instead of just after it
    #[arg(long)]
    exclusive: bool,
    /// Which timeline to follow: latest, current, or a number
    #[arg(long, value_name = "TIMELINE", default_value = "latest")]
    timeline: TargetTimeline,
    /// What the server does at the target: promote, pause or shutdown
    #[arg(long, value_name = "ACTION", default_value = "promote")]
    action: TargetAction,
    /// A new place for a tablespace, by OID or old path; can be given again
    #[arg(long, value_name = "OID=DIR", value_parser = mapping)]
    tablespace: Vec<(String, PathBuf)>,
    /// A folder for all other tablespaces
    #[arg(long, value_name = "DIR")]
    tablespaces_under: Option<PathBuf>,
    /// Go over an existing directory of the same cluster, and keep what is right in it
    #[arg(long)]
    delta: bool,
    /// Who gets the files, when run as root [default: the cluster's user]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Leave archive_mode as it was; by default the restored cluster does not archive
    #[arg(long)]
    keep_archiving: bool,
    /// The restore_command of the restored cluster [default: this program]
    #[arg(long, value_name = "COMMAND")]
    restore_command: Option<String>,
    /// Show what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    database: database::DatabaseArguments,
}

fn mapping(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && new.starts_with('/') => {
            Ok((old.to_owned(), PathBuf::from(new)))
        }
        _ => Err("expected OID=/path or /old/path=/path".to_owned()),
    }
}

/// Plans the restore and carries it out.
pub async fn run(session: &Session, arguments: &RestoreArguments) -> Outcome {
    let settings = &session.settings;
    if let Some(target) = database::target(&arguments.into)? {
        return database::run(session, arguments, target).await;
    }
    arguments.database.refuse()?;
    let what = format!("restore to {}", arguments.to);
    let target: RecoveryTarget = arguments
        .to
        .parse()
        .map_err(|error| Failure::caused(&what, &error).class(crate::failure::Class::WrongRequest))?;
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| Failure::caused(format!("use {}", path.display()), &error))
    };
    let request = RestoreRequest {
        cluster: settings.cluster.clone(),
        backup: arguments.backup.clone(),
        into: absolute(&arguments.into)?,
        target,
        inclusive: !arguments.exclusive,
        timeline: arguments.timeline,
        action: arguments.action,
        tablespace_map: arguments.tablespace.clone(),
        tablespaces_under: arguments.tablespaces_under.as_deref().map(absolute).transpose()?,
        delta: arguments.delta,
        restore_command: command(session, arguments, restore_command)?,
        keep_archiving: arguments.keep_archiving,
        owner: arguments.owner.clone(),
        workers: settings.workers(),
    };
    let repository = opening::open(settings, Use::Read).await?;
    let mut request = request;
    if let Some(text) = &request.backup {
        let found = operations::catalogue::resolve(&repository, &settings.cluster, text).await;
        request.backup = Some(found.map_err(|error| Failure::caused(&what, &error))?);
    }
    let mut plan =
        plan(Arc::clone(&repository), request).await.map_err(|error| Failure::caused(&what, &error))?;
    if let Some(segment) = plan.segment_before_gap() {
        let spell = |program: &Path, words: &[&str]| up_to_gap_command(program, words, &segment);
        plan.request.restore_command = command(session, arguments, spell)?;
    }
    if arguments.dry_run {
        return session.output.show(&plan_json(&plan), || plan_text(&plan));
    }
    let planned = plan_json(&plan);
    let monitor = progress::monitor(session.quiet);
    let report = execute(plan, monitor).await.map_err(|error| {
        Failure::caused(&what, &error).hint("the same command again goes on where this one stopped")
    })?;
    let value = json!({"plan": planned, "elapsed_s": report.elapsed.as_secs_f64(),
        "outside_configuration": report.outside_configuration});
    session.output.show(&value, || report_text(&report, arguments))?;
    let secrets = settings.secrets_in_variables();
    if arguments.restore_command.is_none() && !secrets.is_empty() {
        let notice =
            format!("notice: the restored server's environment must have {} too\n", secrets.join(", "));
        print_error(&notice);
    }
    Ok(())
}

/// The command by which the restored cluster fetches its WAL: this program with these settings, unless it is given.
fn command(
    session: &Session,
    arguments: &RestoreArguments,
    spell: impl Fn(&Path, &[&str]) -> String,
) -> Outcome<String> {
    if let Some(command) = &arguments.restore_command {
        return Ok(command.clone());
    }
    if !secret_files::reads_unasked(&session.settings) {
        return Err(Failure::wrong(format!("restore to {}", arguments.to))
            .because("the restored server must fetch its WAL without asking anybody for a passphrase")
            .hint("`pgkeep key add --file FILE`, then --key-file FILE; or --passphrase-file FILE"));
    }
    let program = std::env::current_exe().map_err(|error| Failure::caused("find this program", &error))?;
    let options = session.settings.options_for_commands();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Ok(spell(&program, &options))
}

fn plan_json(plan: &RestorePlan) -> Value {
    let moment = |moment: &operations::reachable::Moment| json!({"lsn": moment.lsn, "time": moment.time});
    let tablespaces: Vec<_> =
        plan.tablespaces.iter().map(|one| json!({"oid": one.oid, "from": one.from, "to": one.to})).collect();
    json!({
        "backup": plan.backup, "into": plan.request.into, "target": plan.request.target.to_string(),
        "inclusive": plan.request.inclusive, "action": plan.request.action.to_string(),
        "timeline": plan.window.timeline, "postgresql": plan.major.number(),
        "files": plan.files, "bytes": plan.bytes, "packs": plan.packs, "fetch_bytes_max": plan.fetch_bytes,
        "reuse": plan.reuse, "resumed": plan.resumed, "tablespaces": tablespaces,
        "reachable_from": moment(&plan.window.from), "reachable_to": plan.window.to.as_ref().map(moment),
        "restore_command": plan.request.restore_command,
    })
}

fn plan_text(plan: &RestorePlan) -> String {
    let shown = |moment: operations::reachable::Moment| describe_moment((moment.lsn, moment.time));
    let mut lines = vec![
        ("Backup", plan.backup.clone()),
        ("Into", plan.request.into.display().to_string()),
        ("Target", plan.request.target.to_string()),
        ("Reachable", format!("from {}", shown(plan.window.from))),
        (
            "",
            plan.window
                .to
                .map(|to| format!("to {} on timeline {}", shown(to), plan.window.timeline))
                .unwrap_or_default(),
        ),
        ("PostgreSQL", plan.major.to_string()),
        ("Files", format!("{}, {}", plan.files, bytes(plan.bytes))),
        ("To fetch", format!("at most {} in {} packs", bytes(plan.fetch_bytes), plan.packs)),
        ("Then", format!("restore_command = {}", plan.request.restore_command)),
    ];
    if plan.reuse {
        lines.push((
            "Kept",
            "what is right in the directory; what does not belong to the backup is removed".to_owned(),
        ));
    }
    if plan.resumed {
        lines.push(("Resumed", "an interrupted restore of the same backup is gone on with".to_owned()));
    }
    for tablespace in &plan.tablespaces {
        lines.push((
            "Tablespace",
            format!("{} from {} to {}", tablespace.oid, tablespace.from.display(), tablespace.to.display()),
        ));
    }
    facts(&lines)
}

fn report_text(report: &RestoreReport, arguments: &RestoreArguments) -> String {
    let speed = report.bytes as f64 / report.elapsed.as_secs_f64().max(0.001);
    let mut lines = vec![
        ("Restored", format!("{} into {}", report.backup, report.into.display())),
        ("Files", format!("{}, {}", report.files, bytes(report.bytes))),
        ("Took", format!("{} ({}/s)", elapsed(report.elapsed), bytes(speed as u64))),
    ];
    if let Some(folder) = &report.outside_configuration {
        let text = format!("the configuration from outside the data directory is in {}", folder.display());
        lines.push(("Also", text));
    }
    let then = match arguments.action {
        TargetAction::Promote => "opens for writing",
        TargetAction::Pause => "waits, open for reading",
        TargetAction::Shutdown => "stops",
    };
    let replay = match arguments.to.as_str() {
        "latest" => "all the WAL there is".to_owned(),
        "immediate" => "WAL until it is consistent".to_owned(),
        target => format!("WAL up to {target}"),
    };
    lines.push(("Next", format!("start the server on it: it replays {replay}, then {then}")));
    facts(&lines)
}
