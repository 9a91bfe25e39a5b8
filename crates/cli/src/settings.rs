//! What pgkeep was told: settings from the file, the environment and the command line, and what follows from them.

pub mod keys;
mod layers;
mod lock;
mod masked;
pub mod repositories;
mod retention;
mod several;
mod state_dir;

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use operations::backup::ChangedBy;
use operations::probe::Mode;
use repository::ClusterName;
use secrecy::SecretString;
use server::connection::ConnectionSettings;
use storage::{Addressing, AzureSettings, GcsSettings, Location, S3Settings};

pub use keys::{Form, KEYS, Shown, duration, size, span};
pub use layers::{Flag, Origin, Values};
pub use masked::masked;
pub use several::Rank;

use state_dir::usual_state_dir;

use crate::arguments::Shared;
use crate::failure::{Failure, Outcome};

/// More workers than this only contend for the same disk.
const DEFAULT_WORKERS_MAX: usize = 16;

/// Everything that pgkeep was told.
#[derive(Clone)]
pub struct Settings {
    values: Values,
    /// The configuration file that was read.
    pub file: Option<PathBuf>,
    /// Which of a repository's clusters is meant.
    pub cluster: ClusterName,
    /// What the repository is called.
    pub name: String,
    /// Which of several repositories it is.
    pub rank: Rank,
    /// Whether it was chosen by its name: the others do not count then.
    chosen: bool,
    /// The other repositories that are configured, each with its settings.
    others: Vec<Settings>,
}

impl Settings {
    /// Each setting's value and origin.
    pub fn values(&self) -> &Values {
        &self.values
    }

    fn text(&self, name: &str) -> Option<&str> {
        debug_assert!(keys::find(name).is_some(), "no setting {name}");
        self.values.get(name).map(|found| found.text.as_str()).filter(|text| !text.is_empty())
    }

    fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_owned)
    }

    /// A secret.
    pub fn secret(&self, name: &str) -> Option<SecretString> {
        self.text(name).map(|text| SecretString::from(text.to_owned()))
    }

    /// A path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// A command line for the shell.
    pub fn command(&self, name: &str) -> Option<&str> {
        self.text(name)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).map(|text| text.parse().expect("the form was checked"))
    }

    /// A span of time.
    pub fn duration(&self, name: &str) -> Duration {
        self.text(name).and_then(duration).expect("the form was checked and there is a default")
    }

    /// A number of bytes.
    pub fn size(&self, name: &str) -> u64 {
        self.text(name).and_then(size).expect("the form was checked and there is a default")
    }

    /// The slot on the server in whose name WAL is received.
    pub fn slot(&self) -> String {
        self.owned("slot").unwrap_or_else(|| operations::receive::default_slot_name(&self.cluster))
    }

    /// How much WAL the server may keep for the slot; `None` for no limit.
    pub fn slot_limit(&self) -> Option<u64> {
        self.text("slot_limit").and_then(keys::size).filter(|limit| *limit > 0)
    }

    /// Where the repository is.
    pub fn location(&self) -> Outcome<Location> {
        let text = self.text("repository").ok_or_else(|| {
            Failure::wrong("find out where the repository is").because("no repository is configured").hint(
                "--repository /path or s3://bucket/prefix, PGKEEP_REPOSITORY, or `repository` in pgkeep.toml",
            )
        })?;
        let origin = &self.values["repository"].origin;
        Location::parse(text)
            .map_err(|error| Failure::caused(format!("read the repository's location ({origin})"), &error))
    }

    /// What the storage needs to know beyond its location.
    pub fn storage(&self) -> storage::Settings {
        storage::Settings {
            s3: self.s3(),
            gcs: GcsSettings {
                endpoint: self.owned("gcs.endpoint"),
                service_account_path: self.owned("gcs.service_account_file"),
                service_account_key: self.secret("gcs.service_account_key"),
                application_credentials: self.owned("gcs.application_credentials"),
                anonymous: self.text("gcs.anonymous") == Some("true"),
                ..GcsSettings::default()
            },
            azure: AzureSettings {
                account: self.owned("azure.account"),
                endpoint: self.owned("azure.endpoint"),
                access_key: self.secret("azure.access_key"),
                sas_token: self.secret("azure.sas_token"),
                client_id: self.owned("azure.client_id"),
                client_secret: self.secret("azure.client_secret"),
                tenant_id: self.owned("azure.tenant_id"),
                federated_token_file: self.owned("azure.federated_token_file"),
            },
            allow_http: self.text("s3.allow_http") == Some("true"),
            lock: self.lock(),
            ..storage::Settings::default()
        }
    }

    fn s3(&self) -> S3Settings {
        let platform: BTreeMap<String, String> = keys::PLATFORM
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?)))
            .collect();
        S3Settings {
            endpoint: self.owned("s3.endpoint"),
            region: self.owned("s3.region"),
            addressing: match self.text("s3.addressing") {
                Some("path") => Addressing::Path,
                Some("virtual") => Addressing::VirtualHosted,
                _ => Addressing::Auto,
            },
            access_key_id: self.owned("s3.access_key_id"),
            secret_access_key: self.secret("s3.secret_access_key"),
            session_token: self.secret("s3.session_token"),
            platform,
        }
    }

    /// Whether anybody said where the server is.
    pub fn names_a_server(&self) -> bool {
        self.text("database_url").is_some()
            || env::var_os("PGHOST").is_some()
            || env::var_os("PGSERVICE").is_some()
    }

    /// How to reach the server; what is not said comes from the `PG*` variables, as for psql.
    pub fn server(&self) -> ConnectionSettings {
        ConnectionSettings::new(self.text("database_url").unwrap_or_default())
    }

    /// How to reach the primary of a server that is a standby.
    pub fn primary(&self) -> Option<ConnectionSettings> {
        self.text("primary_url").map(ConnectionSettings::new)
    }

    /// How the files of a backup are read.
    pub fn mode(&self) -> Mode {
        self.word("mode").parse().expect("the form was checked and there is a default")
    }

    /// The words of a list that is separated by commas.
    pub fn list(&self, name: &str) -> Vec<String> {
        let words = self.word(name).split(',').map(str::trim);
        words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    /// How a backup knows what changed.
    pub fn changed_by(&self) -> ChangedBy {
        self.word("changed_by").parse().expect("the form was checked and there is a default")
    }

    /// The folder for what this host keeps for itself; `None` when no place for it is known.
    pub fn state_dir(&self) -> Option<PathBuf> {
        self.path("state_dir").or_else(usual_state_dir)
    }

    /// The folder for WAL on its way.
    pub fn spool_dir(&self) -> Option<PathBuf> {
        self.path("spool_dir").or_else(|| self.state_dir().map(|state| state.join("spool")))
    }

    /// Workers of a backup or restore.
    pub fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(2, usize::from).min(DEFAULT_WORKERS_MAX);
        self.number("workers").map_or_else(cores, |number| number as usize)
    }

    /// The level of zstd.
    pub fn compression_level(&self) -> i32 {
        self.number("compression_level").map_or(repository::chunk::DEFAULT_LEVEL, |level| level as i32)
    }

    /// A text setting that has a default.
    pub fn word(&self, name: &str) -> &str {
        self.text(name).unwrap_or_default()
    }

    /// The options by which another pgkeep, started by PostgreSQL from another folder and without our variables, finds
    /// the same repository and key. Secrets are not among them: [`Settings::secrets_in_variables`].
    pub fn options_for_commands(&self) -> Vec<String> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let text = |path: &Path| absolute(path).to_string_lossy().into_owned();
        let mut options = Vec::new();
        if let Some(file) = &self.file {
            options.extend(["--config".to_owned(), text(file)]);
        }
        if self.chosen {
            options.extend(["--repository".to_owned(), self.name.clone()]);
        }
        for key in keys::KEYS.iter().filter(|key| key.shown == keys::Shown::Yes) {
            let Some(found) = self.values.get(key.name).filter(|_| !ONLY_HERE.contains(&key.name)) else {
                continue;
            };
            if matches!(found.origin, Origin::Default | Origin::File(_)) {
                continue;
            }
            let value = match (key.form, Location::parse(&found.text)) {
                (keys::Form::Location, Ok(location)) => location.to_string(),
                (keys::Form::Path, _) => text(Path::new(&found.text)),
                _ => found.text.clone(),
            };
            options.extend(if Shared::has_option(key.name) {
                [format!("--{}", key.name.replace('_', "-")), value]
            } else {
                ["--set".to_owned(), format!("{}={value}", key.name)]
            });
        }
        options
    }

    /// The variables that hold secrets of ours: whoever calls pgkeep elsewhere must set them too.
    pub fn secrets_in_variables(&self) -> Vec<&'static str> {
        let secret = |key: &&keys::Key| key.shown == keys::Shown::Never && !ONLY_HERE.contains(&key.name);
        let variable = |key: &keys::Key| match self.values.get(key.name)?.origin {
            Origin::Ambient(name) | Origin::Variable(name) => Some(name),
            _ => None,
        };
        keys::KEYS.iter().filter(secret).filter_map(variable).collect()
    }
}

/// Settings that a command called by PostgreSQL does not need.
const ONLY_HERE: [&str; 23] = [
    "log",
    "log_format",
    "workers",
    "wal_timeout",
    "compression_level",
    "mode",
    "changed_by",
    "primary_url",
    "slot",
    "max_lag",
    "slot_limit",
    "logical.databases",
    "logical.schemas",
    "logical.exclude_schemas",
    "logical.exclude_tables",
    "logical.exclude_rows",
    "logical.lock_timeout",
    "retention.keep",
    "retention.keep_daily",
    "retention.keep_weekly",
    "retention.keep_monthly",
    "retention.keep_yearly",
    "retention.keep_at_least",
];

/// A mistyped variable would otherwise be passed over in silence; variables of the tests and of PostgreSQL's programs
/// are not settings.
pub fn warn_of_unknown_variables() {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let other = [
            "PGKEEP_CONFIG",
            "PGKEEP_TEST",
            "PGKEEP_PG_BIN",
            "PGKEEP_JSON",
            "PGKEEP_FAILPOINT",
            "PGKEEP_BELIEVE_SUMMARIES",
        ];
        let known = keys::KEYS.iter().any(|key| key.variable == name)
            || other.iter().any(|one| name.starts_with(one));
        if name.starts_with("PGKEEP_") && !known {
            let meant = keys::nearest(&name, keys::KEYS.iter().map(|key| key.variable));
            tracing::warn!(variable = %name, meant, "this variable is no setting");
        }
    }
}
