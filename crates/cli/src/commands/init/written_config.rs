//! The configuration file that `init` writes.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use storage::Location;

use crate::failure::{Class, Failure, Outcome};
use crate::settings::{Form, KEYS, Origin, Settings, Shown, masked};

/// Writes what was said by options and variables, secrets left out, into a new file.
pub fn write(path: &Path, settings: &Settings, location: &Location) -> Outcome {
    let text = text(settings, location);
    let written = OpenOptions::new().write(true).create_new(true).open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| {
        let failure = Failure::caused(format!("write {}", path.display()), &error);
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            failure.class(Class::Conflict)
        } else {
            failure
        }
    })
}

fn text(settings: &Settings, location: &Location) -> String {
    let mut table = toml::Table::new();
    for key in KEYS.iter().filter(|key| key.shown != Shown::Never) {
        let said = settings.values().get(key.name).filter(|found| found.origin != Origin::Default);
        // A connection string may stand there if there is no password in it.
        let Some(found) = said.filter(|found| masked(key, &found.text) == found.text) else { continue };
        let text = match key.form {
            Form::Location => location.to_string(),
            Form::Path => std::path::absolute(&found.text)
                .map_or_else(|_| found.text.clone(), |path| path.to_string_lossy().into_owned()),
            _ => found.text.clone(),
        };
        let value = match key.form {
            Form::Number(..) => text.parse().map_or(toml::Value::String(text), toml::Value::Integer),
            Form::Switch => toml::Value::Boolean(text == "true"),
            _ => toml::Value::String(text),
        };
        match key.name.split_once('.') {
            Some((group, name)) => {
                let inner = table.entry(group).or_insert_with(|| toml::Value::Table(toml::Table::new()));
                inner.as_table_mut().expect("groups are tables").insert(name.to_owned(), value);
            }
            None => drop(table.insert(key.name.to_owned(), value)),
        }
    }
    format!("# Settings of pgkeep; `pgkeep config --all` lists every one there is.\n{table}")
}
