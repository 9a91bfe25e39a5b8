//! What `init` found and did.

use std::path::{Path, PathBuf};

use repository::Repository;
use repository::description::Description;
use serde_json::{Value, json};
use server::facts::ServerFacts;
use server::settings_check;
use storage::Location;
use storage::probe::Capabilities;

use super::checked::Checked;
use super::{KeyFiles, shortcomings};
use crate::failure::{Failure, Outcome, push_wrapped};
use crate::opening;
use crate::output::{facts, moment, width};
use crate::settings::Settings;

/// What nobody can be told too early.
pub(super) const ALL_LOST: &str = "losing one key does not matter while another opens the repository; whoever loses them all \
    loses every backup, and nobody can help";

/// What is told once, with the first of several repositories.
const OF_THE_FIRST: [&str; 4] = ["config_file", "archive_command", "server", "further"];

/// Everything that the user should know at the end.
pub struct Report {
    made: bool,
    location: String,
    id: String,
    created: jiff::Timestamp,
    capabilities: Option<Capabilities>,
    create_only: bool,
    files: KeyFiles,
    passphrase_only: bool,
    secrets_in_variables: Vec<&'static str>,
    /// The configuration file that was written.
    pub config: Option<PathBuf>,
    command: String,
    server: Option<Server>,
    /// Why it could not be made.
    error: Option<String>,
    /// The further repositories, by name.
    pub further: Vec<(String, Report)>,
}

enum Server {
    Unreachable(String),
    Checked(Box<Checked>),
}

impl Report {
    /// A repository that was just made.
    pub fn made(
        settings: &Settings,
        location: &Location,
        repository: &Repository,
        capabilities: Capabilities,
        files: KeyFiles,
    ) -> Self {
        let report = Self::existing(settings, location, repository.description());
        Self { made: true, capabilities: Some(capabilities), files, ..report }
    }

    /// A repository that was there.
    pub fn existing(settings: &Settings, location: &Location, description: &Description) -> Self {
        let machine = ["key_file", "key", "writer_file", "writer"];
        Self {
            made: false,
            location: location.to_string(),
            id: description.id().map(|id| id.to_string()).unwrap_or_default(),
            created: description.created,
            capabilities: None,
            create_only: description.create_only,
            files: KeyFiles::default(),
            passphrase_only: !machine.iter().any(|name| settings.values().contains_key(name)),
            secrets_in_variables: settings.secrets_in_variables(),
            config: None,
            command: String::new(),
            server: None,
            error: None,
            further: Vec::new(),
        }
    }

    /// A repository that could not be made.
    pub fn failed(settings: &Settings, error: String) -> Self {
        Self {
            made: false,
            location: settings.location().map(|location| location.to_string()).unwrap_or_default(),
            id: String::new(),
            created: jiff::Timestamp::UNIX_EPOCH,
            capabilities: None,
            create_only: false,
            files: KeyFiles::default(),
            passphrase_only: false,
            secrets_in_variables: Vec::new(),
            config: None,
            command: String::new(),
            server: None,
            error: Some(error),
            further: Vec::new(),
        }
    }

    /// Works out the `archive_command`.
    pub fn find_command(&mut self, settings: &Settings, location: &Location) -> Outcome {
        let program =
            std::env::current_exe().map_err(|error| Failure::caused("find this program", &error))?;
        let options = match &self.config {
            Some(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                vec!["--config".to_owned(), path.to_string_lossy().into_owned()]
            }
            None => settings.options_for_commands(),
        };
        debug_assert!(!location.to_string().is_empty());
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.command = settings_check::archive_command(&program, &options);
        Ok(())
    }

    /// Looks at the server; that it cannot be reached is no failure of `init`.
    pub async fn check_server(&mut self, settings: &Settings) {
        let (command, mode) = (self.command.clone(), settings.mode());
        let asked = match opening::connect(settings).await {
            Err(failure) => Err(failure),
            Ok(connection) => {
                let look =
                    move || ServerFacts::read(&connection).map(|facts| Checked::new(facts, mode, &command));
                tokio::task::spawn_blocking(look)
                    .await
                    .map_err(|error| Failure::caused("look at the server", &error))
                    .and_then(|read| read.map_err(|error| Failure::caused("look at the server", &error)))
            }
        };
        self.server = Some(match asked {
            Ok(checked) => Server::Checked(Box::new(checked)),
            Err(failure) => Server::Unreachable(failure.because.first().cloned().unwrap_or(failure.what)),
        });
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let capabilities = self.capabilities.map(|can| {
            json!({"create_only": can.create_only, "read_back": can.read_back, "list": can.list, "delete": can.delete})
        });
        let server = match &self.server {
            None => Value::Null,
            Some(Server::Unreachable(why)) => json!({"reachable": false, "why": why}),
            Some(Server::Checked(checked)) => checked.to_json(),
        };
        if let Some(error) = &self.error {
            return json!({"made": false, "location": self.location, "error": error});
        }
        let further = self.further.iter().map(|(name, report)| {
            let mut value = report.to_json();
            value["name"] = json!(name);
            // These are the first one's.
            if let Some(fields) = value.as_object_mut() {
                fields.retain(|name, _| !OF_THE_FIRST.contains(&&**name));
            }
            value
        });
        json!({
            "made": self.made, "location": self.location, "repository_id": self.id, "created": self.created,
            "create_only": self.create_only, "capabilities": capabilities,
            "key_file": self.files.key.as_deref().map(absolute),
            "recovery_key_file": self.files.recovery.as_deref().map(absolute),
            "config_file": self.config.as_deref().map(absolute), "archive_command": self.command, "server": server,
            "further": further.collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = facts(&self.lines());
        for (name, report) in &self.further {
            let mut lines = vec![("Called", name.clone())];
            lines.extend(report.lines());
            text.push_str(&format!("\n{}", facts(&lines)));
        }
        self.push_advice(&mut text);
        self.push_server(&mut text);
        text
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        if let Some(error) = &self.error {
            return vec![("Repository", format!("{} (not made: {error})", self.location))];
        }
        let made = if self.made { "made now" } else { "it was there already; nothing was changed" };
        let mut lines = vec![("Repository", format!("{} ({made})", self.location))];
        lines.push(("Id", format!("{}, of {}", self.id, moment(self.created))));
        if let Some(can) = &self.capabilities {
            let short = shortcomings(can);
            let fine = "never overwrites, reads back what was written, lists, deletes";
            lines.push(("Storage", if short.is_empty() { fine.to_owned() } else { short.join("; ") }));
        }
        for (name, file) in [("Key", &self.files.key), ("Recovery key", &self.files.recovery)] {
            lines.extend(file.as_ref().map(|file| (name, absolute(file))));
        }
        lines.extend(self.config.as_ref().map(|file| ("Settings", absolute(file))));
        lines
    }

    fn push_advice(&self, text: &mut String) {
        let all = || std::iter::once(self).chain(self.further.iter().map(|(_, report)| report));
        if all().any(|report| report.files.recovery.is_some()) {
            let advice = "put the recovery key where neither this machine nor the repository can take it with them; \
                then remove the file";
            push_wrapped(text, "notice: ", advice, width());
            push_wrapped(text, "notice: ", ALL_LOST, width());
        }
        if all().any(|report| report.passphrase_only) {
            let advice = "archive_command needs a key file or a writer credential, not a passphrase: \
                `pgkeep key writer FILE`, then --writer-file FILE";
            push_wrapped(text, "notice: ", advice, width());
        }
        if !self.secrets_in_variables.is_empty() {
            let advice =
                format!("the server's environment must have {} too", self.secrets_in_variables.join(", "));
            push_wrapped(text, "notice: ", &advice, width());
        }
        if rustix::process::geteuid().is_root() {
            let advice =
                "the server's user must be able to read the key and write to the repository; you are root";
            push_wrapped(text, "notice: ", advice, width());
        }
    }

    fn push_server(&self, text: &mut String) {
        match &self.server {
            None => {}
            Some(Server::Unreachable(why)) => {
                text.push('\n');
                push_wrapped(text, "Server  ", &format!("could not be looked at: {why}"), width());
                text.push_str("\nFor postgresql.conf, then restart the server:\n\n");
                let lines = ["wal_level = replica", "archive_mode = on", "archive_timeout = 60"];
                for line in lines {
                    text.push_str(&format!("{line}\n"));
                }
                text.push_str(&format!("archive_command = {}\n", pg::conf::quote(&self.command)));
            }
            Some(Server::Checked(checked)) => checked.push_text(text),
        }
    }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
