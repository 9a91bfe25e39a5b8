//! `pgkeep prune`: reclaim space that no backup names.

use clap::Args;
use operations::monitor::Event;
use operations::owner::holder;
use operations::prune::{Plan, PlannedPack, PruneReport, PruneRequest, execute, plan};
use serde_json::json;

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::output::{bytes, keep_whole, moment, table, table_text};
use crate::secret_files::Use;
use crate::settings::{Form, duration, size};
use crate::{opening, progress};

/// What may go.
#[derive(Debug, Args)]
pub struct PruneArguments {
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long a pack stays after it was found that no backup names it
    /// [default: the setting prune.grace, 48h]
    #[arg(long, value_name = "SPAN", value_parser = duration_argument)]
    grace: Option<std::time::Duration>,
    /// Bytes that are moved at most out of packs that are mostly dead; 0 moves
    /// nothing [default: the setting prune.max_repack, 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = size_argument)]
    max_repack: Option<u64>,
}

fn duration_argument(text: &str) -> Result<std::time::Duration, String> {
    duration(text).ok_or_else(|| format!("expected {}", Form::Duration.expected()))
}

fn size_argument(text: &str) -> Result<u64, String> {
    size(text).ok_or_else(|| format!("expected {}", Form::Size.expected()))
}

/// Prunes the repository, of all its clusters.
pub async fn run(session: &Session, arguments: &PruneArguments) -> Outcome<()> {
    let settings = &session.settings;
    let repository = opening::open(settings, Use::Read).await?;
    let request = PruneRequest {
        grace: arguments.grace.unwrap_or_else(|| settings.duration("prune.grace")),
        max_repack: arguments.max_repack.unwrap_or_else(|| settings.size("prune.max_repack")),
        level: settings.compression_level(),
        ..PruneRequest::default()
    };
    let failed = |error: operations::prune::PruneError| Failure::caused("prune the repository", &error);
    let monitor = progress::monitor(session.quiet);
    monitor.event(Event::Phase("look"));
    let plan = plan(&repository, &request).await.map_err(failed)?;
    if arguments.dry_run || plan.is_empty() {
        drop(monitor);
        return session.output.show(&json!({"plan": plan}), || planned(&plan));
    }
    let report = execute(&repository, &plan, &request, &holder(), &*monitor).await.map_err(failed)?;
    drop(monitor);
    session.output.show(&json!({"plan": plan, "report": report}), || planned(&plan) + &done(&report))
}

fn planned(plan: &Plan) -> String {
    let mut rows: Vec<[String; 4]> = Vec::new();
    let mut row = |action: &str, packs: u64, size: u64, why: String| {
        if packs > 0 {
            rows.push([action.to_owned(), packs.to_string(), bytes(size), why]);
        }
    };
    let mut packs = |action: &str, packs: &[PlannedPack], why: String| {
        row(action, packs.len() as u64, packs.iter().map(|pack| pack.bytes).sum(), why);
    };
    packs("delete", &plan.delete_dead, "no backup names them, and their grace is over".into());
    packs("delete", &plan.delete_moved, "what is named of them was moved, and their grace is over".into());
    packs("mark", &plan.mark_dead, "no backup names them".into());
    packs("mark", &plan.mark_moved, "what is named of them was moved".into());
    packs("wait", &plan.waiting, waiting(plan));
    let locked = plan.locked_until.map(|first| format!("locked; the first until {}", moment(first)));
    packs("wait", &plan.locked, locked.unwrap_or_default());
    packs("wait", &plan.maybe_new, unfinished(plan));
    let named: u64 = plan.repack.iter().map(|pack| pack.named_bytes).sum();
    let all: u64 = plan.repack.iter().map(|pack| pack.bytes).sum();
    row("move", plan.repack.len() as u64, named, format!("that much is named of their {}", bytes(all)));
    row("delete", plan.ended.len() as u64, 0, "objects that tell nothing any more".into());
    let total = format!("{} packs, {}", plan.packs, bytes(plan.bytes));
    let mut text = if rows.is_empty() {
        format!("Nothing to do: {total}, all of it named by backups.\n")
    } else {
        let mut shown = table(&["ACTION", "PACKS", "SIZE", "WHY"]);
        for row in rows {
            shown.add_row(row);
        }
        keep_whole(&mut shown, 0);
        keep_whole(&mut shown, 2);
        format!("{}of {total}\n", table_text(&shown))
    };
    for warning in &plan.warnings {
        crate::failure::push_wrapped(&mut text, "warning: ", warning, crate::output::width());
    }
    text
}

fn waiting(plan: &Plan) -> String {
    match (plan.next, &plan.at_work) {
        (Some(next), _) => format!("marked; the first may go at {}", moment(next)),
        (None, Some(_)) => unfinished(plan),
        (None, None) => "marked; they may go with the next run".into(),
    }
}

fn unfinished(plan: &Plan) -> String {
    format!("backup {} is unfinished, or died", plan.at_work.as_deref().unwrap_or_default())
}

fn done(report: &PruneReport) -> String {
    let locked = report.locked_until.map(|first| {
        format!("{} packs were found locked, the first until {}\n", report.locked_packs, moment(first))
    });
    format!(
        "deleted {} packs ({}), marked {} ({}), moved the named pages of {} ({})\n{}",
        report.deleted_packs,
        bytes(report.deleted_bytes),
        report.marked_packs,
        bytes(report.marked_bytes),
        report.moved_packs,
        bytes(report.moved_bytes),
        locked.unwrap_or_default(),
    )
}
