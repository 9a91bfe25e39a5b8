//! `pgkeep expire`: removes the backups and the WAL that the policy keeps no longer.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use operations::expire::{ExpireRequest, Plan, Report, execute, plan};
use operations::owner::holder;
use serde::Serialize;

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::opening;
use crate::output::{bytes, keep_whole, moment, short_moment, table, table_text};
use crate::secret_files::Use;

/// How long to wait for somebody else who keeps the repository in order.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether only to look.
#[derive(Debug, Args)]
pub struct ExpireArguments {
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    plan: &'a Plan,
    /// Absent after a dry run.
    done: Option<&'a Report>,
}

/// Plans, shows the plan, and does it.
pub async fn run(session: &Session, arguments: &ExpireArguments) -> Outcome<u8> {
    let settings = &session.settings;
    let repository = opening::open(settings, Use::Read).await?;
    let known = operations::verify::known_damage(&repository, &settings.cluster).await;
    let known = known.map_err(|error| Failure::caused("read what verifications found", &error))?;
    let damaged = known.backups.into_iter().map(|id| (id, "a verification found it damaged".to_owned()));
    let request = ExpireRequest {
        cluster: settings.cluster.clone(),
        policy: settings.policy(),
        host_clock: Timestamp::now(),
        damaged: damaged.collect(),
        holder: holder(),
        patience: PATIENCE,
    };
    let planned = plan(&repository, &request);
    let planned = planned.await.map_err(|error| Failure::caused("plan what expires", &error))?;
    if !session.output.json {
        crate::output::print(&plan_text(&planned))?;
    }
    if arguments.dry_run {
        let shown = Shown { plan: &planned, done: None };
        session.output.show(&shown, || "Nothing was removed: this was a dry run.\n".to_owned())?;
        return Ok(0);
    }
    let done = execute(&repository, &planned, &request).await;
    let done = done.map_err(|error| Failure::caused("expire what the plan lists", &error))?;
    session.output.show(&Shown { plan: &planned, done: Some(&done) }, || done_text(&done))?;
    Ok(0)
}

fn plan_text(plan: &Plan) -> String {
    if plan.backups.is_empty() {
        return format!("Cluster {} has no backup, so nothing expires.\n", plan.cluster);
    }
    let mut shown = table(&["BACKUP", "ENDED (UTC)", "", "WHY"]);
    for line in &plan.backups {
        let ended = line.ended.map(short_moment).unwrap_or_default();
        let what = if line.keep { "keep" } else { "remove" };
        shown.add_row([line.id.clone(), ended, what.to_owned(), line.reason.clone()]);
    }
    for column in 0..3 {
        keep_whole(&mut shown, column);
    }
    let mut text = table_text(&shown);
    if let Some(now) = plan.now {
        text.push_str(&format!("Decided as of {}.\n", moment(now)));
    }
    match (&plan.wal[..], plan.wal_before) {
        ([], _) | (_, None) => text.push_str("No WAL is removed.\n"),
        ([first, ..], Some(position)) => text.push_str(&format!(
            "{} objects of WAL before {position}, {}, are needed by no backup that\nis kept, {} the first.\n",
            plan.wal.len(),
            bytes(plan.wal_bytes()),
            first.name
        )),
    }
    if let Some(first) = plan.wal_locked.until {
        let objects = plan.wal_locked.objects;
        text.push_str(&format!(
            "{objects} objects of WAL stay that are locked, the first until {}.\n",
            moment(first)
        ));
    }
    text
}

fn done_text(done: &Report) -> String {
    if *done == Report::default() {
        return "Nothing was to be removed.\n".to_owned();
    }
    format!(
        "Removed {} backups, and {} objects of WAL with {}.\n\
         The space of their packs is freed by `pgkeep prune`.\n",
        done.backups_expired.len(),
        done.wal_objects,
        bytes(done.wal_bytes)
    )
}
