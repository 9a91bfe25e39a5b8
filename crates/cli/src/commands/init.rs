//! `pgkeep init`: the repository, its keys, and what the server needs.

mod checked;
mod report;
mod written_config;

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use operations::init::{InitRequest, Prepared, prepare};
use repository::description::Description;
use repository::keys::SlotKey;
use repository::{Repository, RepositoryError};
use secrecy::SecretString;
use storage::probe::Capabilities;
use storage::{Location, Storage, StorageError, make_root};

use super::Session;
use crate::failure::{Class, Failure, Outcome};
use crate::opening::{self, storage_at};
use crate::settings::Settings;
use crate::{output, secret_files, terminal};
use report::Report;

/// How often the recovery key's last group may be mistyped.
const TRIES: usize = 3;

/// How to make it.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The repository is opened by a passphrase (--passphrase-file, --passphrase-command, or typed in) or by \
    a generated key, which is written into the new file that --key-file names; both may be given. \
    A recovery key for the day when all else is lost is shown on the terminal, or written to \
    --recovery-key-file. Of several configured repositories each is made, with keys of its own; the name of each \
    further one is put behind the name of the recovery key's file. Running it again changes nothing and checks \
    the server again."
)]
pub struct InitArguments {
    /// Write the recovery key into this new file instead of showing it
    #[arg(long, value_name = "FILE")]
    recovery_key_file: Option<PathBuf>,
    /// Write the settings into this new file
    #[arg(long, value_name = "FILE")]
    write_config: Option<PathBuf>,
    /// Do not look at the server
    #[arg(long)]
    no_server: bool,
    /// Only print the SQL that makes a role for physical backups of the server,
    /// with no more rights than these need [default name: pgkeep]
    #[arg(long, value_name = "ROLE", num_args = 0..=1, default_missing_value = "pgkeep", conflicts_with = "no_server")]
    grants: Option<String>,
}

/// The keys that the new repository shall have.
struct Wanted {
    passphrase: Option<SecretString>,
    key_file: Option<PathBuf>,
}

/// Makes the repository, or says that it is there, and checks the server.
pub async fn run(session: &Session, arguments: &InitArguments) -> Outcome {
    let settings = &session.settings;
    if let Some(role) = &arguments.grants {
        return grants(session, role).await;
    }
    if arguments.write_config.is_some() && !settings.is_alone() {
        return Err(Failure::wrong("write the settings into a new file")
            .because("it would have one of the several repositories that the configuration has"));
    }
    let location = settings.location()?;
    let mut report = one(settings, arguments, &location).await?;
    let failed = further(settings, arguments, &mut report).await;
    if let Some(path) = &arguments.write_config {
        written_config::write(path, settings, &location)?;
        report.config = Some(path.clone());
    }
    report.find_command(settings, &location)?;
    if !arguments.no_server {
        report.check_server(settings).await;
    }
    session.output.show(&report.to_json(), || report.text())?;
    failed.map_or(Ok(()), Err)
}

/// Makes one repository, or finds it.
async fn one(settings: &Settings, arguments: &InitArguments, location: &Location) -> Outcome<Report> {
    match existing(settings, location).await? {
        Some(description) => Ok(Report::existing(settings, location, &description)),
        None => make(settings, arguments, location).await,
    }
}

/// Makes the further repositories, each for itself; returns the first failure.
async fn further(settings: &Settings, arguments: &InitArguments, report: &mut Report) -> Option<Failure> {
    let mut first = None;
    for settings in settings.further() {
        let recovery = arguments.recovery_key_file.as_ref().map(|path| {
            let mut path = path.clone().into_os_string();
            path.push(format!(".{}", settings.name));
            PathBuf::from(path)
        });
        let arguments = InitArguments { recovery_key_file: recovery, ..arguments.clone() };
        let made = match settings.location() {
            Ok(location) => one(settings, &arguments, &location).await,
            Err(failure) => Err(failure),
        };
        let made = made.unwrap_or_else(|failure| {
            let report = Report::failed(settings, failure.because.join(": "));
            let again = "when that is mended, run `pgkeep init` again";
            let what = format!("{}, called {}", failure.what, settings.name);
            first.get_or_insert(Failure { what, ..failure }.hint(again));
            report
        });
        report.further.push((settings.name.clone(), made));
    }
    first
}

/// Prints the script for a role of this server's version; nothing is changed anywhere.
async fn grants(session: &Session, role: &str) -> Outcome {
    let connection = opening::connect(&session.settings).await?;
    let major = pg::Major::from_server_version_num(connection.server_version_num());
    let script = server::grants::script(major, role);
    session.output.show(&serde_json::json!({"role": role, "sql": script}), || script.clone())
}

/// The description of the repository that is there already.
async fn existing(settings: &Settings, location: &Location) -> Outcome<Option<Description>> {
    let storage = storage_at(settings, location, true)?;
    match Repository::describe(&*storage).await {
        Ok(description) => Ok(Some(description)),
        Err(RepositoryError::Absent | RepositoryError::Storage(StorageError::RootMissing { .. })) => Ok(None),
        Err(error) => Err(Failure::caused(format!("look for a repository at {location}"), &error)),
    }
}

async fn make(settings: &Settings, arguments: &InitArguments, location: &Location) -> Outcome<Report> {
    check_recovery(arguments)?;
    let wanted = wanted(settings)?;
    for path in
        [&wanted.key_file, &arguments.recovery_key_file, &arguments.write_config].into_iter().flatten()
    {
        check_new(path)?;
    }
    let what = || format!("make a repository at {location}");
    make_root(location).await.map_err(|error| Failure::caused(what(), &error))?;
    let storage = storage_at(settings, location, true)?;
    check_empty(&*storage, location).await?;
    let request = InitRequest {
        passphrase: wanted.passphrase,
        key_file: wanted.key_file.is_some(),
        label: operations::owner::host_name(),
        now: Timestamp::now(),
    };
    let prepared = prepare(&*storage, request).await.map_err(|error| Failure::caused(what(), &error))?;
    let files = keep_keys(&prepared, wanted.key_file.as_ref(), arguments)?;
    let capabilities = prepared.capabilities;
    let storage = if capabilities.create_only { storage } else { storage_at(settings, location, false)? };
    match prepared.create(storage, settings.state_dir().as_deref()).await {
        Ok(repository) => Ok(Report::made(settings, location, &repository, capabilities, files)),
        Err(error) => {
            // The files just made open nothing.
            for file in [&files.key, &files.recovery].into_iter().flatten() {
                let _ = std::fs::remove_file(file);
            }
            Err(Failure::caused(what(), &error))
        }
    }
}

/// Where the keys went.
#[derive(Clone, Debug, Default)]
pub struct KeyFiles {
    key: Option<PathBuf>,
    recovery: Option<PathBuf>,
}

/// Nobody would have the recovery key if it were neither shown nor written.
fn check_recovery(arguments: &InitArguments) -> Outcome {
    if arguments.recovery_key_file.is_some() || terminal::is_interactive() {
        return Ok(());
    }
    Err(Failure::wrong("make a repository")
        .because("there is no terminal on which to show the recovery key")
        .hint("--recovery-key-file FILE writes it into a file, for you to put away"))
}

fn wanted(settings: &Settings) -> Outcome<Wanted> {
    let key_file = settings.path("key_file");
    let mut passphrase = secret_files::passphrase(settings)?;
    if passphrase.is_none() && key_file.is_none() {
        if !terminal::is_interactive() {
            return Err(Failure::wrong("make a repository")
                .because("neither a key file nor a passphrase is named")
                .hint("--key-file FILE makes a key and writes it there; --passphrase-file FILE reads a passphrase"));
        }
        output::print_error("A passphrase of at least 12 characters opens the repository.\n");
        passphrase = Some(secret_files::ask_new_passphrase()?);
    }
    Ok(Wanted { passphrase, key_file })
}

fn check_new(path: &Path) -> Outcome {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(Failure::new(Class::Conflict, format!("write {}", path.display()))
        .because("it exists already")
        .hint("name a file that does not exist yet"))
}

/// A repository has a folder or prefix of its own. What an interrupted `init` left is ours.
async fn check_empty(storage: &dyn Storage, location: &Location) -> Outcome {
    let what = format!("make a repository at {location}");
    let children = storage.list_children("").await.map_err(|error| Failure::caused(&what, &error))?;
    let ours = ["keys", "probe"];
    let foreign = children
        .prefixes
        .iter()
        .map(|prefix| prefix.trim_end_matches('/'))
        .find(|prefix| !ours.contains(prefix));
    let object = children.entries.first().map(|entry| entry.name.as_str());
    match foreign.or(object) {
        None => Ok(()),
        Some(found) => Err(Failure::new(Class::Conflict, what)
            .because(format!("it holds something else: {found}"))
            .hint("give the repository a folder or a prefix of its own")),
    }
}

/// Puts the keys where they belong before anything depends on them.
fn keep_keys(
    prepared: &Prepared,
    key_file: Option<&PathBuf>,
    arguments: &InitArguments,
) -> Outcome<KeyFiles> {
    let mut files = KeyFiles::default();
    if let (Some(path), Some(key)) = (key_file, &prepared.key) {
        secret_files::write_new(path, &format!("{}\n", *key.to_text()))?;
        files.key = Some(path.clone());
    }
    let kept = match &arguments.recovery_key_file {
        Some(path) => secret_files::write_new(path, &format!("{}\n", *prepared.recovery.to_text()))
            .map(|()| files.recovery = Some(path.clone())),
        None => show_recovery_key(&prepared.recovery),
    };
    if kept.is_err()
        && let Some(path) = &files.key
    {
        let _ = std::fs::remove_file(path);
    }
    kept.map(|()| files)
}

/// Shows the recovery key and has its last group typed, so that it was at least looked at.
fn show_recovery_key(key: &SlotKey) -> Outcome {
    let text = key.to_text();
    output::print_error(&format!(
        "\nThis is the recovery key. Write it down or print it, and put it where neither\n\
         this machine nor the repository can take it with them:\n\n{}\n\n",
        *text
    ));
    let mut advice = String::new();
    crate::failure::push_wrapped(&mut advice, "", report::ALL_LOST, output::width());
    output::print_error(&format!("{advice}\n"));
    let last = text.rsplit('-').next().unwrap_or_default();
    for _ in 0..TRIES {
        if terminal::ask("Type its last four characters when you have it: ")?.eq_ignore_ascii_case(last) {
            return Ok(());
        }
    }
    Err(Failure::wrong("make a repository")
        .because("the end of the recovery key was mistyped")
        .hint("nothing was made; start again, or use --recovery-key-file"))
}

/// What of a storage is not as it should be, in words.
fn shortcomings(capabilities: &Capabilities) -> Vec<&'static str> {
    let mut found = Vec::new();
    if !capabilities.create_only {
        found.push("it overwrites objects: only one host may write to a cluster's stream at a time");
    }
    if !capabilities.delete {
        found.push("it does not delete: nothing can expire");
    }
    found
}
