//! From what was said to the settings of each repository.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use repository::ClusterName;

use super::layers::{self, Flag, Origin, SettingsError, Values};
use super::repositories::{self, Entry, is_of_a_repository};
use super::{Settings, duration};
use crate::arguments::Shared;
use crate::failure::{Class, Failure, Outcome};

/// Where the file is looked for when nobody says.
const USUAL_FILES: [&str; 2] = ["pgkeep.toml", "/etc/pgkeep/pgkeep.toml"];

/// How long storing a segment in a further repository may hold up PostgreSQL, unless its table says otherwise.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(10);

/// Which of several repositories one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// The one that counts, or the only one.
    First,
    /// A further one without which nothing counts as stored.
    Required,
    /// A further one that gets what it can be given in time.
    Further,
}

impl Settings {
    /// Reads the file, the environment and the options.
    pub fn read(shared: &Shared) -> Outcome<Self> {
        let file = find_file(shared.config.as_deref())?;
        let text = file.as_deref().map(read).transpose()?;
        let layer = file.as_deref().zip(text.as_deref());
        let flags = shared.flags();
        let entries = layer.map(|(path, text)| repositories::entries(path, text)).transpose();
        let entries = entries.map_err(wrong_setting)?.unwrap_or_default();
        let gather = |flags: &[Flag], table: Option<&Entry>| {
            layers::gather(layer, &variable, flags, table).map_err(wrong_setting)
        };
        let common = gather(&flags, None)?;
        let Some((number, chosen)) = chosen(&entries, &common) else {
            return Self::of(common, file.as_deref(), None, Rank::First);
        };
        // The options that say what differs from one repository to the next are about the first, or the one they choose.
        let flags: Vec<Flag> = flags.into_iter().filter(|flag| flag.name != "repository").collect();
        let common: Vec<Flag> =
            flags.iter().filter(|flag| !is_of_a_repository(&flag.name)).cloned().collect();
        let mut others = Vec::new();
        for (_, entry) in entries.iter().enumerate().filter(|(other, _)| *other != number) {
            let rank = if entry.required { Rank::Required } else { Rank::Further };
            let mut other = Self::of(gather(&common, Some(entry))?, file.as_deref(), Some(entry), rank)?;
            other.chosen = true;
            others.push(other);
        }
        let entry = &entries[number];
        let first = Self::of(gather(&flags, Some(entry))?, file.as_deref(), Some(entry), Rank::First)?;
        Ok(Self { chosen, others, ..first })
    }

    fn of(mut values: Values, file: Option<&Path>, entry: Option<&Entry>, rank: Rank) -> Outcome<Self> {
        let cluster = ClusterName::new(&values["cluster"].text)
            .map_err(|error| Failure::caused("read the settings", &error).class(Class::WrongRequest))?;
        let patient = rank != Rank::Further || entry.is_some_and(|entry| entry.says("push_timeout"));
        if !patient && let Some(found) = values.get_mut("push_timeout") {
            let said = duration(&found.text).unwrap_or(FURTHER_TIMEOUT);
            found.text = format!("{}s", said.min(FURTHER_TIMEOUT).as_secs());
        }
        let name = entry.map_or(repositories::FIRST, |entry| &entry.name).to_owned();
        let file = file.map(Path::to_owned);
        Ok(Self { values, file, cluster, name, rank, chosen: false, others: Vec::new() })
    }

    /// The repositories beside the first; none where one was chosen by its name.
    pub fn further(&self) -> &[Settings] {
        if self.chosen { &[] } else { &self.others }
    }

    /// Whether no other repository gets the same.
    pub fn is_alone(&self) -> bool {
        self.rank == Rank::First && self.further().is_empty()
    }

    /// The first repository and the further ones.
    pub fn repositories(&self) -> impl Iterator<Item = &Settings> {
        std::iter::once(self).chain(self.further())
    }

    /// The other configured repository of this name.
    pub fn other(&self, name: &str) -> Option<&Settings> {
        self.others.iter().find(|other| other.name == name)
    }
}

/// The number of the table that is meant, and whether it was chosen by its name; `None` where no table counts, because a
/// variable or an option gives a location.
fn chosen(entries: &[Entry], common: &Values) -> Option<(usize, bool)> {
    let said = common.get("repository");
    let said = said.filter(|found| matches!(found.origin, Origin::Variable(_) | Origin::Flag(_)));
    match said {
        Some(found) => entries.iter().position(|entry| entry.name == found.text).map(|number| (number, true)),
        None => (!entries.is_empty()).then_some((0, false)),
    }
}

fn variable(name: &'static str) -> Result<Option<String>, SettingsError> {
    match env::var(name) {
        Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(SettingsError::NotText { name }),
    }
}

fn find_file(said: Option<&Path>) -> Outcome<Option<PathBuf>> {
    let said = said
        .map(Path::to_owned)
        .or_else(|| env::var_os("PGKEEP_CONFIG").filter(|p| !p.is_empty()).map(Into::into));
    match said {
        Some(path) if path.exists() => Ok(Some(path)),
        Some(path) => {
            let what = format!("read the configuration file {}", path.display());
            Err(Failure::new(Class::NotFound, what).because("it does not exist"))
        }
        None => Ok(USUAL_FILES.iter().map(PathBuf::from).find(|path| path.is_file())),
    }
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(|error: io::Error| {
        Failure::caused(format!("read the configuration file {}", path.display()), &error)
            .class(Class::WrongRequest)
    })
}

fn wrong_setting(error: SettingsError) -> Failure {
    let hint = match error {
        SettingsError::SecretInFlag { .. } => {
            "put it into the configuration file, a variable, or a file of its own"
        }
        _ => "`pgkeep config --all` lists every setting",
    };
    Failure::wrong("read the settings").because(error.to_string()).hint(hint)
}
