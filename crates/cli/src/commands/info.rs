//! `pgkeep info`: everything about one backup.

use clap::Args;
use operations::catalogue::{self, BackupDetail};

use super::Session;
use super::pin::how_long;
use crate::failure::{Outcome, push_wrapped};
use crate::opening;
use crate::output::{bytes, exact_moment, facts, moment, width};
use crate::secret_files::Use;

/// Damaged pages that the text shows; JSON has all that are recorded.
const PAGES_SHOWN: usize = 20;

/// Which backup.
#[derive(Debug, Args)]
pub struct InfoArguments {
    /// A backup's id, the beginning of one, or `latest`
    #[arg(default_value = "latest")]
    backup: String,
}

/// Shows one backup.
pub async fn run(session: &Session, arguments: &InfoArguments) -> Outcome<u8> {
    let repository = opening::open(&session.settings, Use::Read).await?;
    let detail = catalogue::info(&repository, &session.settings.cluster, &arguments.backup).await?;
    session.output.show(&detail, || text(&detail))?;
    Ok(0)
}

fn text(detail: &BackupDetail) -> String {
    let summary = &detail.summary;
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let lsn = |lsn: Option<pg::Lsn>| lsn.map(|lsn| lsn.to_string()).unwrap_or_default();
    let mut lines = vec![
        (
            "Backup",
            format!("{} ({}{})", summary.id, if summary.logical { "logical, " } else { "" }, summary.kind),
        ),
        ("Label", summary.label.clone()),
        ("Started", summary.started.map(moment).unwrap_or_default()),
        ("Consistent at", summary.ended.map(exact_moment).unwrap_or_default()),
        (
            "WAL",
            format!(
                "{} to {} on timeline {}",
                lsn(summary.start_lsn),
                lsn(summary.stop_lsn),
                summary.timeline
            ),
        ),
        ("Restorable to", reaches(detail)),
        (
            "Server",
            format!(
                "PostgreSQL {}, system identifier {}",
                version(detail.server_version_num),
                detail.system_identifier
            ),
        ),
        ("Data directory", format!("{} (of user {})", detail.data_directory, detail.owner)),
        ("Files", format!("{}, {}", summary.files, bytes(summary.bytes))),
        ("Read", format!("{}, of which new: {}", bytes(summary.bytes_read), bytes(summary.bytes_new))),
        ("Stored", bytes(summary.bytes_stored)),
        ("Packs", format!("{}, {}", detail.packs.count, bytes(detail.packs.bytes))),
        ("Pages", pages(detail)),
        ("Compared with", or_none(&detail.parent)),
        ("Made by", detail.program.clone()),
    ];
    if summary.logical {
        // It has no place in the WAL and no files of the server's.
        let physical = ["WAL", "Restorable to", "Data directory", "Pages"];
        lines.retain(|(name, _)| !physical.contains(name));
    }
    for database in &detail.databases {
        let size = bytes(database.bytes);
        let what = format!("{}: {} rows in {} tables, {size}", database.name, database.rows, database.tables);
        lines.push(("Database", what));
        lines.extend(database.uncovered.iter().map(|text| ("Not covered", text.clone())));
    }
    for tablespace in &detail.tablespaces {
        lines.push(("Tablespace", format!("{} at {}", tablespace.oid, tablespace.location)));
    }
    for pin in &detail.pins {
        lines.push(("Pinned", format!("{} {}", how_long(pin), pin.note)));
    }
    let mut text = facts(&lines);
    for page in detail.damage.iter().take(PAGES_SHOWN) {
        let lsn = page.lsn.map(|lsn| format!(", LSN {lsn}")).unwrap_or_default();
        let what = format!("{} block {}{lsn}", page.file, page.block);
        push_wrapped(&mut text, "damaged page: ", &what, width());
    }
    for hole in &detail.holes {
        push_wrapped(&mut text, "problem: ", hole, width());
    }
    for warning in &detail.warning_texts {
        push_wrapped(&mut text, "warning: ", warning, width());
    }
    text
}

fn reaches(detail: &BackupDetail) -> String {
    match &detail.reaches {
        Some(range) => {
            let time = range.to.time.map(exact_moment).unwrap_or_default();
            format!("{time} (LSN {} on timeline {})", range.to.lsn, range.timeline)
        }
        None => "nothing: WAL that it needs is missing".to_owned(),
    }
}

fn pages(detail: &BackupDetail) -> String {
    if !detail.data_checksums {
        return "without checksums".to_owned();
    }
    format!("{} checksums verified, {} wrong", detail.pages_verified, detail.summary.damaged_pages)
}

/// `15.20` from 150020.
fn version(num: u32) -> String {
    format!("{}.{}", num / 10_000, num % 10_000)
}
