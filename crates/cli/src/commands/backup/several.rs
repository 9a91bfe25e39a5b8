//! A backup into several repositories: the database is read once, and what was taken is carried to the others.

use std::sync::Arc;

use operations::copy::{Carried, CopyRequest, carry};
use repository::Repository;
use serde_json::{Value, json};

use crate::commands::Session;
use crate::commands::copy::NOTE_EVERY;
use crate::failure::{Class, Failure, Outcome, push_wrapped};
use crate::output::{bytes, facts, print_error, width};
use crate::secret_files::Use;
use crate::settings::Settings;
use crate::{opening, progress};

/// What became of the backup in one repository.
pub struct Share {
    name: String,
    location: String,
    end: End,
}

enum End {
    /// The database was read into it.
    Taken,
    /// What another took was copied into it.
    Copied(Box<Carried>),
    /// It does not have the backup.
    Failed(Failure),
}

impl Share {
    /// Of the repository that took the backup.
    pub fn taken(settings: &Settings) -> Self {
        Self::of(settings, End::Taken)
    }

    /// Of a repository that could not take it.
    pub fn failed(settings: &Settings, failure: Failure) -> Self {
        Self::of(settings, End::Failed(failure))
    }

    fn of(settings: &Settings, end: End) -> Self {
        let location = settings.location().map(|location| location.to_string()).unwrap_or_default();
        Self { name: settings.name.clone(), location, end }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let (result, more) = match &self.end {
            End::Taken => ("taken", Value::Null),
            End::Copied(carried) => ("copied", json!(carried)),
            End::Failed(failure) => ("failed", failure.to_json()["error"].clone()),
        };
        let mut value = json!({"name": self.name, "location": self.location, "result": result});
        if !more.is_null() {
            value[if result == "failed" { "error" } else { "copied" }] = more;
        }
        value
    }
}

/// A backup that was taken.
pub struct Taken<'a> {
    /// Where.
    pub repository: &'a Arc<Repository>,
    /// Its id.
    pub id: &'a str,
    /// The newest backup that was there before.
    pub newest: Option<&'a str>,
}

/// Carries the backup into a repository; what fails there is its own failure only.
pub async fn carry_into(session: &Session, taken: &Taken<'_>, settings: &Settings) -> Share {
    match carried(session, taken, settings).await {
        Ok(carried) => Share::of(settings, End::Copied(Box::new(carried))),
        Err(failure) => Share::failed(settings, failure),
    }
}

async fn carried(session: &Session, taken: &Taken<'_>, settings: &Settings) -> Outcome<Carried> {
    let repository = opening::open(settings, Use::Read).await?;
    let request = CopyRequest {
        cluster: settings.cluster.clone(),
        backups: Vec::new(),
        only_wal: false,
        workers: settings.workers(),
        level: settings.compression_level(),
        note_every: NOTE_EVERY,
    };
    let monitor = progress::monitor(session.quiet);
    let carried = carry(taken.repository, &repository, taken.id, taken.newest, &request, &*monitor).await;
    carried.map_err(|error| Failure::caused(format!("copy backup {} into it", taken.id), &error))
}

/// A line about each repository.
pub fn text(shares: &[Share]) -> String {
    let lines: Vec<(&str, String)> = shares
        .iter()
        .map(|share| {
            let what = match &share.end {
                End::Taken => "has it".to_owned(),
                End::Copied(carried) => copied(carried),
                End::Failed(_) => "failed".to_owned(),
            };
            (&*share.name, format!("{}: {what}", share.location))
        })
        .collect();
    format!("\n{}", facts(&lines))
}

fn copied(carried: &Carried) -> String {
    let report = &carried.report;
    let mut text =
        format!("has it, {} stored, {} files of WAL", bytes(report.stored_bytes), report.wal_files);
    if report.backups.len() > 1 {
        text.push_str(&format!(", {} earlier backups", report.backups.len() - 1));
    }
    if !carried.brought_back.is_empty() {
        text.push_str(&format!("; it gave back {}", carried.brought_back.join(", ")));
    }
    text
}

/// Tells of the repositories that do not have the backup, and of what is damaged; the code is the first failure's.
pub fn tell_failures(shares: &[Share]) -> u8 {
    let mut code = 0;
    for share in shares {
        match &share.end {
            End::Taken => {}
            End::Copied(carried) => {
                for backup in &carried.report.damaged {
                    tell(&format!("{} was not copied into {}: {}", backup.id, share.name, backup.why));
                }
                for file in &carried.report.damaged_wal {
                    tell(&format!("not copied into {}: {file}", share.name));
                }
            }
            End::Failed(failure) => {
                let told =
                    failure.clone().within(format!("repository {} does not have the backup", share.name));
                let hint = Some("the next backup brings it, and so does `pgkeep copy`".to_owned());
                let told = Failure { hint, ..told };
                print_error(&told.render(width()));
                code = if code == 0 { failure.class as u8 } else { code };
            }
        }
    }
    code
}

fn tell(what: &str) {
    let mut text = String::new();
    push_wrapped(&mut text, "warning: ", what, width());
    print_error(&text);
}

/// Of a backup that no repository took: all of them told, with the class of the first.
pub fn none_took_it(shares: Vec<Share>) -> Failure {
    let mut failures = shares.into_iter().filter_map(|share| match share.end {
        End::Failed(failure) => Some((share.name, failure)),
        _ => None,
    });
    let Some((_, mut told)) = failures.next() else {
        return Failure::new(Class::Bug, "back up into no repository");
    };
    for (name, other) in failures {
        told.because.push(format!("repository {name}: {}: {}", other.what, other.because.join(": ")));
    }
    told
}
