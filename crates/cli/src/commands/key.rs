//! `pgkeep key`: who can open the repository.

mod rotate;

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use jiff::Timestamp;
use repository::keys::{Slot, SlotKind};
use repository::secrets::{Access, Keyring};
use repository::{Repository, Secret};
use serde_json::json;

use super::Session;
use crate::failure::{Class, Failure, Outcome};
use crate::output::{moment, table, table_text};
use crate::secret_files::{self, Use};
use crate::{opening, terminal};

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Add a key: a passphrase for people, a file for machines, or a recovery key for paper
    Add(AddArguments),
    /// List the keys
    List,
    /// Remove a key; what it opened before must be thought of as still open to whoever had it
    Remove {
        /// The slot, as `pgkeep key list` shows it
        slot: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Put a new passphrase or key file in the place of one, which then opens nothing
    Rotate(RotateArguments),
    /// Write a credential that adds backups and WAL and cannot read them
    Writer {
        /// The file to make
        file: PathBuf,
    },
}

/// Which key to add.
#[derive(Debug, Args)]
#[group(skip)]
#[command(override_usage = "pgkeep key add --file FILE | --recovery FILE | --passphrase\n       \
    pgkeep key add --new-passphrase-file FILE")]
#[command(group(ArgGroup::new("kind").required(true).args(["file", "recovery", "passphrase", "new_passphrase_file"])))]
pub struct AddArguments {
    /// Make a key for machines and write it into this new file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Make another recovery key and write it into this new file
    #[arg(long, value_name = "FILE")]
    recovery: Option<PathBuf>,
    /// Ask for a passphrase
    #[arg(long)]
    passphrase: bool,
    /// Take the passphrase from this file
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// What to call it
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,
}

/// Which key to replace, and by what.
#[derive(Debug, Args)]
#[command(override_usage = "pgkeep key rotate [--slot ID] --file FILE | --passphrase\n       \
    pgkeep key rotate [--slot ID] --new-passphrase-file FILE")]
#[group(skip)]
#[command(
    after_help = "The new key is added and tried before the old one is removed. Whoever had the old key may have \
    kept what it opened: only `pgkeep copy` into a fresh repository gives what is stored other keys."
)]
#[command(group(ArgGroup::new("by").required(true).args(["file", "passphrase", "new_passphrase_file"])))]
pub struct RotateArguments {
    /// The slot to replace, as `pgkeep key list` shows it
    /// [default: the one that this command opens the repository with]
    #[arg(long, value_name = "ID")]
    slot: Option<String>,
    /// Make a new key and write it into this new file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Ask for the new passphrase
    #[arg(long)]
    passphrase: bool,
    /// Take the new passphrase from this file
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

/// Does it.
pub async fn run(session: &Session, command: &KeyCommand) -> Outcome {
    let repository = opening::open(&session.settings, Use::Read).await?;
    match command {
        KeyCommand::Add(arguments) => add(session, &repository, arguments).await,
        KeyCommand::List => list(session, &repository).await,
        KeyCommand::Remove { slot, yes } => remove(session, &repository, slot, *yes).await,
        KeyCommand::Rotate(arguments) => rotate::run(session, &repository, arguments).await,
        KeyCommand::Writer { file } => {
            secret_files::write_new(file, &repository.access().writer().to_text())?;
            let text = format!("Wrote a writer credential to {}.\n", file.display());
            session.output.show(&json!({"file": file}), || text)
        }
    }
}

fn keyring(repository: &Repository) -> Outcome<&Keyring> {
    match repository.access() {
        Access::Full(keyring) => Ok(keyring),
        Access::Write(_) => Err(Failure::wrong("add a key")
            .because("a writer credential does not hold what a key opens")
            .hint("give a key file or a passphrase")),
    }
}

async fn add(session: &Session, repository: &Repository, arguments: &AddArguments) -> Outcome {
    let (keyring, now, label) = (keyring(repository)?, Timestamp::now(), arguments.label.as_str());
    let failed = |error: &(dyn std::error::Error + 'static)| Failure::caused("add a key", error);
    let made = match (&arguments.file, &arguments.recovery) {
        (Some(file), _) => Some((file, Slot::for_key(keyring, SlotKind::KeyFile, label, now))),
        (None, Some(file)) => Some((file, Slot::for_key(keyring, SlotKind::Recovery, label, now))),
        (None, None) => None,
    };
    let (slot, file) = match made {
        Some((file, (slot, key))) => {
            // The key first: a slot whose key is nowhere would only look like a way in.
            secret_files::write_new(file, &format!("{}\n", *key.to_text()))?;
            (slot, Some(file))
        }
        None => {
            let passphrase = match &arguments.new_passphrase_file {
                Some(file) => secret_files::read_passphrase(file)?,
                None => secret_files::ask_new_passphrase()?,
            };
            (Slot::for_passphrase(keyring, &passphrase, label, now).map_err(|error| failed(&error))?, None)
        }
    };
    if let Err(error) = repository.add_slot(&slot).await {
        if let Some(file) = file {
            // It opens nothing.
            let _ = std::fs::remove_file(file);
        }
        return Err(failed(&error));
    }
    let value = json!({"slot": slot.id, "kind": slot.kind.to_string(), "file": file});
    session.output.show(&value, || {
        let place = file.map(|file| format!("; the key is in {}", file.display())).unwrap_or_default();
        format!("Added key {} ({}){place}.\n", slot.id, slot.kind)
    })
}

async fn list(session: &Session, repository: &Repository) -> Outcome {
    let (slots, unreadable) = slots(repository).await?;
    let rows: Vec<_> = slots
        .iter()
        .map(|slot| json!({"slot": slot.id, "kind": slot.kind, "label": slot.label, "created": slot.created}))
        .collect();
    session.output.show(&json!({"keys": rows, "unreadable": unreadable}), || {
        let mut shown = table(&["SLOT", "KIND", "MADE", "LABEL"]);
        for slot in &slots {
            shown.add_row([slot.id.clone(), slot.kind.to_string(), moment(slot.created), slot.label.clone()]);
        }
        let mut text = table_text(&shown);
        for id in &unreadable {
            text.push_str(&format!("{id} cannot be read: it opens nothing\n"));
        }
        text
    })
}

async fn slots(repository: &Repository) -> Outcome<(Vec<Slot>, Vec<String>)> {
    repository.slots().await.map_err(|error| Failure::caused("list the keys", &error))
}

async fn remove(session: &Session, repository: &Repository, id: &str, yes: bool) -> Outcome {
    let what = format!("remove key {id}");
    let (slots, unreadable) = slots(repository).await?;
    let Some(slot) = slots.iter().find(|slot| slot.id == id) else {
        if unreadable.iter().any(|other| other == id) {
            return finish_removal(session, repository, id).await;
        }
        return Err(Failure::new(Class::NotFound, what)
            .because("there is no such key")
            .hint("`pgkeep key list`"));
    };
    if slots.len() == 1 {
        return Err(Failure::new(Class::Conflict, what)
            .because("it is the last one, and without it nobody could ever read the repository again")
            .hint("add another one first: `pgkeep key add`"));
    }
    if let Some(Secret::Key(key)) = secret_files::key(&session.settings)?
        && key.slot() == id
        && !yes
    {
        return Err(Failure::new(Class::Conflict, what)
            .because("it is the key that this command uses itself")
            .hint("use another key for this, or say --yes"));
    }
    if !yes {
        if !terminal::is_interactive() {
            return Err(Failure::wrong(what).because("nobody is there to be asked").hint("say --yes"));
        }
        let question = format!("Remove key {id} ({}, {:?})?", slot.kind, slot.label);
        if !terminal::confirm(&question)? {
            return Err(Failure::wrong(what).because("the answer was not yes"));
        }
    }
    finish_removal(session, repository, id).await
}

async fn finish_removal(session: &Session, repository: &Repository, id: &str) -> Outcome {
    repository.remove_slot(id).await.map_err(|error| Failure::caused(format!("remove key {id}"), &error))?;
    session.output.show(&json!({"removed": id}), || format!("Removed key {id}.\n"))
}
