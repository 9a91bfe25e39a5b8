//! `pgkeep pin`: backups that no policy may expire.

use clap::Args;
use jiff::Timestamp;
use operations::owner::holder;
use operations::pin::{PinContent, Until, pin, unpin};
use operations::retention::Keep;
use serde_json::json;

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::opening;
use crate::output::moment;
use crate::secret_files::Use;

/// Which backup, and until when.
#[derive(Debug, Args)]
pub struct PinArguments {
    /// A backup's id, the beginning of one, or `latest`
    backup: String,
    /// Until when: a time such as 2027-01-31T00:00:00Z, or a span such as 90d [default: for ever]
    #[arg(long, value_name = "TIME|SPAN", value_parser = until)]
    until: Option<Until>,
    /// Why, for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    /// Remove every pin of the backup
    #[arg(long, conflicts_with_all = ["until", "note"])]
    remove: bool,
}

fn until(text: &str) -> Result<Until, String> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(Until::Moment(moment));
    }
    match text.parse() {
        Ok(Keep::Span(span)) => Ok(Until::Span(span)),
        _ => Err("expected a time such as 2027-01-31T00:00:00Z or a span such as 90d".to_owned()),
    }
}

/// Pins it, or removes its pins.
pub async fn run(session: &Session, arguments: &PinArguments) -> Outcome<u8> {
    let (cluster, repository) =
        (&session.settings.cluster, opening::open(&session.settings, Use::Read).await?);
    if arguments.remove {
        let removed = unpin(&repository, cluster, &arguments.backup).await;
        let removed = removed.map_err(|error| Failure::caused("remove the pins of a backup", &error))?;
        session.output.show(&json!({"removed": removed}), || match &removed[..] {
            [] => "The backup is not pinned.\n".to_owned(),
            pins => format!("Removed {} of backup {}.\n", counted(pins.len()), pins[0].backup),
        })?;
        return Ok(0);
    }
    let (until, who) = (arguments.until.unwrap_or(Until::Removed), holder());
    let pinned = pin(&repository, cluster, &arguments.backup, until, &arguments.note, &who).await;
    let pinned = pinned.map_err(|error| Failure::caused("pin a backup", &error))?;
    session.output.show(&json!({"pinned": pinned}), || {
        format!("Pinned backup {}, {}.\n", pinned.backup, how_long(&pinned))
    })?;
    Ok(0)
}

fn counted(pins: usize) -> String {
    if pins == 1 { "the pin".to_owned() } else { format!("{pins} pins") }
}

/// `until 2027-01-31 00:00:00+00`, or `for ever`.
pub fn how_long(pin: &PinContent) -> String {
    pin.until.map_or("for ever".to_owned(), |until| format!("until {}", moment(until)))
}
