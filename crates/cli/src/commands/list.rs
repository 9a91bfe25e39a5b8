//! `pgkeep list`: the backups.

use clap::Args;
use operations::catalogue::{self, BackupSummary, Listing};

use operations::pin::PinContent;

use super::Session;
use super::pin::how_long;
use crate::failure::{Class, Outcome};
use crate::opening;
use crate::output::{bytes, keep_whole, short_moment, table, table_text};
use crate::secret_files::Use;

/// Nothing of its own.
#[derive(Debug, Args)]
pub struct ListArguments {}

/// Lists the backups of the cluster. The exit code is that of damaged data if a backup is damaged or gone.
pub async fn run(session: &Session) -> Outcome<u8> {
    let repository = opening::open(&session.settings, Use::Read).await?;
    let listing = catalogue::list(&repository, &session.settings.cluster).await?;
    let others = if listing.backups.is_empty() && listing.damaged.is_empty() {
        catalogue::clusters(&repository).await?.iter().map(ToString::to_string).collect()
    } else {
        Vec::new()
    };
    session.output.show(&listing, || text(&listing, &others))?;
    let whole = listing.damaged.is_empty() && listing.chain.is_empty();
    Ok(if whole { 0 } else { Class::Damaged as u8 })
}

fn text(listing: &Listing, others: &[String]) -> String {
    if listing.backups.is_empty() && listing.damaged.is_empty() {
        let others: Vec<_> = others.iter().filter(|name| **name != listing.cluster).cloned().collect();
        let known = if others.is_empty() {
            String::new()
        } else {
            format!(" The repository has: {}.", others.join(", "))
        };
        return format!("Cluster {} has no backup.{known}\n", listing.cluster);
    }
    let mut shown = table(&["BACKUP", "CONSISTENT AT (UTC)", "SIZE", "STORED", ""]);
    for backup in &listing.backups {
        shown.add_row(row(backup, listing.pins.iter().find(|pin| pin.backup == backup.id)));
    }
    keep_whole(&mut shown, 0);
    keep_whole(&mut shown, 1);
    let mut text = table_text(&shown);
    for damaged in &listing.damaged {
        crate::failure::push_wrapped(
            &mut text,
            "damaged: ",
            &format!("{}: {}", damaged.id, damaged.why),
            crate::output::width(),
        );
    }
    for finding in &listing.chain {
        crate::failure::push_wrapped(&mut text, "missing: ", finding, crate::output::width());
    }
    text
}

fn row(backup: &BackupSummary, pin: Option<&PinContent>) -> [String; 5] {
    let mut remark = if backup.damaged_pages > 0 {
        format!("{} damaged pages", backup.damaged_pages)
    } else {
        backup.label.clone()
    };
    if let Some(pin) = pin {
        remark = format!("{remark} pinned {}", how_long(pin)).trim_start().to_owned();
    }
    [
        backup.id.clone(),
        backup.ended.map(short_moment).unwrap_or_default(),
        bytes(backup.bytes),
        bytes(backup.bytes_stored),
        remark,
    ]
}
