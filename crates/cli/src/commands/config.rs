//! `pgkeep config`: the settings that apply, and where each comes from.

use clap::Args;
use serde_json::json;

use super::Session;
use crate::failure::Outcome;
use crate::output::{table, table_text};
use crate::settings::{KEYS, Settings, Shown, masked};

/// Which settings.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// Also the settings that have no value, with their variables
    #[arg(long)]
    all: bool,
}

/// Shows the settings; secrets are masked.
pub fn run(session: &Session, arguments: &ConfigArguments) -> Outcome {
    let settings = &session.settings;
    let state = settings.state_dir().map(|path| path.display().to_string());
    let spool = settings.spool_dir().map(|path| path.display().to_string());
    let worked_out = |name: &str| match name {
        "state_dir" => state.clone(),
        "spool_dir" => spool.clone(),
        "workers" => Some(settings.workers().to_string()),
        _ => None,
    };
    let rows: Vec<_> = KEYS
        .iter()
        .map(|key| match settings.values().get(key.name) {
            Some(found) => (key, Some(masked(key, &found.text)), found.origin.to_string()),
            None => (key, worked_out(key.name), "default".to_owned()),
        })
        .filter(|(_, value, _)| arguments.all || value.is_some())
        .collect();
    let others: Vec<_> = settings.further().iter().flat_map(|other| differing(settings, other)).collect();
    let mut json: Vec<_> = rows
        .iter()
        .map(|(key, value, from)| {
            let from = value.is_some().then_some(from);
            json!({"name": key.name, "value": value, "from": from, "secret": key.shown == Shown::Never, "variable": key.variable})
        })
        .collect();
    json.extend(others.iter().map(|other| {
        json!({"repository": other.repository, "name": other.name, "value": other.value, "from": other.from})
    }));
    let file = settings.file.as_ref().map(|path| path.display().to_string());
    session.output.show(&json!({"file": file, "settings": json}), || {
        let mut shown = table(&["SETTING", "VALUE", "FROM"]);
        for (key, value, from) in &rows {
            let from = if value.is_some() { from.clone() } else { format!("not set ({})", key.variable) };
            shown.add_row([key.name.to_owned(), value.clone().unwrap_or_default(), from]);
        }
        for Other { repository, name, value, from } in &others {
            shown.add_row([format!("{name} ({repository})"), value.clone(), from.clone()]);
        }
        let file = file.clone().unwrap_or_else(|| "none".to_owned());
        format!("{}\nConfiguration file: {file}\n", table_text(&shown))
    })
}

/// A setting that another repository has for itself.
struct Other {
    repository: String,
    name: &'static str,
    value: String,
    from: String,
}

/// What applies to another repository and not to the first.
fn differing(first: &Settings, other: &Settings) -> Vec<Other> {
    let mut found = Vec::new();
    for key in KEYS {
        let (there, here) = (other.values().get(key.name), first.values().get(key.name));
        if there.map(|there| &there.text) == here.map(|here| &here.text) {
            continue;
        }
        let (value, from) = match there {
            Some(there) => (masked(key, &there.text), there.origin.to_string()),
            None => (String::new(), "not set".to_owned()),
        };
        found.push(Other { repository: other.name.clone(), name: key.name, value, from });
    }
    found
}
