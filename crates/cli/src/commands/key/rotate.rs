//! `pgkeep key rotate`: a new passphrase or key file in the place of an old one.

use jiff::Timestamp;
use operations::rotation::{RotationError, rotate};
use repository::keys::{Slot, SlotKind};
use repository::{Repository, Secret};
use serde_json::json;

use super::{RotateArguments, Session, keyring, secret_files, slots};
use crate::failure::{Class, Failure, Outcome};

pub(super) async fn run(session: &Session, repository: &Repository, arguments: &RotateArguments) -> Outcome {
    let (slots, unreadable) = slots(repository).await?;
    let own = own_slot(session, &slots)?;
    let old = arguments.slot.clone().or_else(|| own.clone()).ok_or_else(|| {
        Failure::wrong("replace a key")
            .because("it is not known which slot this command opened the repository with")
            .hint("say which to replace: --slot ID, of `pgkeep key list`")
    })?;
    let what = format!("replace key {old}");
    let found = slots.iter().find(|slot| slot.id == old);
    if found.is_none() && !unreadable.contains(&old) {
        return Err(unknown(what));
    }
    let (keyring, now) = (keyring(repository)?, Timestamp::now());
    let label = found.map_or("", |slot| slot.label.as_str());
    let (new, secret) = match &arguments.file {
        Some(file) => {
            let kind = found.map(|slot| slot.kind).filter(|kind| *kind == SlotKind::Recovery);
            let (slot, key) = Slot::for_key(keyring, kind.unwrap_or(SlotKind::KeyFile), label, now);
            // The key first: a slot whose key is nowhere would only look like a way in.
            secret_files::write_new(file, &format!("{}\n", *key.to_text()))?;
            (slot, Secret::Key(key))
        }
        None => {
            let passphrase = match &arguments.new_passphrase_file {
                Some(file) => secret_files::read_passphrase(file)?,
                None => secret_files::ask_new_passphrase()?,
            };
            let slot = Slot::for_passphrase(keyring, &passphrase, label, now);
            (slot.map_err(|error| Failure::caused(&what, &error))?, Secret::Passphrase(passphrase))
        }
    };
    rotate(repository, &old, &new, &secret).await.map_err(|error| match error {
        RotationError::Unknown { .. } => unknown(what.clone()),
        error => Failure::caused(&what, &error)
            .hint("`pgkeep key list` shows which keys there are; the old one was not removed before the new one opened"),
    })?;
    let (file, is_own) = (arguments.file.as_ref(), own.as_ref() == Some(&old));
    let value = json!({"slot": new.id, "kind": new.kind.to_string(), "file": file, "removed": old});
    session.output.show(&value, || {
        let place = file.map(|file| format!("; the key is in {}", file.display())).unwrap_or_default();
        let own = "The old one is what this command used: change what is configured.\n";
        let tail = if is_own { own } else { "" };
        format!("Added key {} ({}){place}.\nRemoved key {old}.\n{tail}", new.id, new.kind)
    })
}

/// The slot that the configured secret opens; `None` if somebody was asked for a passphrase.
fn own_slot(session: &Session, slots: &[Slot]) -> Outcome<Option<String>> {
    if let Some(Secret::Key(key)) = secret_files::key(&session.settings)? {
        return Ok(Some(key.slot().to_owned()));
    }
    let Some(passphrase) = secret_files::passphrase(&session.settings)? else { return Ok(None) };
    let opens =
        |slot: &&Slot| slot.kind == SlotKind::Passphrase && slot.open_with_passphrase(&passphrase).is_ok();
    Ok(slots.iter().find(opens).map(|slot| slot.id.clone()))
}

fn unknown(what: String) -> Failure {
    Failure::new(Class::NotFound, what).because("there is no such key").hint("`pgkeep key list`")
}
