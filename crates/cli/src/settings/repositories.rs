//! Several repositories: `[[repository]]` tables, each with a name, a place, and keys and storage settings of its own.
//!
//! A table lies over the common settings. What it says of a group (its keys, where S3 is, S3's credentials, and so on)
//! stands for the whole group: credentials of one place never go to another.

use std::path::Path;

use storage::Location;

use super::keys::{Form, KEYS, Key, find};
use super::layers::{self, Found, Origin, SettingsError, Values};

/// What the first repository is called that has no name.
pub const FIRST: &str = "main";
/// No name is longer.
const NAME_MAX: usize = 32;

/// Settings that belong together.
const GROUPS: [&[&str]; 7] = [
    &["key_file", "key", "passphrase_file", "passphrase_command", "passphrase", "writer_file", "writer"],
    &["s3.endpoint", "s3.region", "s3.addressing", "s3.allow_http"],
    &["s3.access_key_id", "s3.secret_access_key", "s3.session_token"],
    &[
        "gcs.endpoint",
        "gcs.service_account_file",
        "gcs.service_account_key",
        "gcs.application_credentials",
        "gcs.anonymous",
    ],
    &[
        "azure.account",
        "azure.endpoint",
        "azure.access_key",
        "azure.sas_token",
        "azure.client_id",
        "azure.client_secret",
        "azure.tenant_id",
        "azure.federated_token_file",
    ],
    &["push_timeout"],
    &["lock", "lock_mode"],
];

/// One `[[repository]]` table.
#[derive(Clone)]
pub struct Entry {
    /// What it is called.
    pub name: String,
    /// Whether WAL counts as stored only when it is stored here too.
    pub required: bool,
    /// The place, and what else it says of itself.
    values: Vec<(&'static Key, String)>,
    origin: Origin,
}

/// Whether a setting may differ from one repository to the next.
pub fn is_of_a_repository(name: &str) -> bool {
    name == "repository" || GROUPS.iter().any(|group| group.contains(&name))
}

impl Entry {
    /// Lays the table over common settings.
    pub fn lay_over(&self, values: &mut Values) {
        for group in GROUPS.iter().filter(|group| group.iter().any(|name| self.says(name))) {
            for key in KEYS.iter().filter(|key| group.contains(&key.name)) {
                values.remove(key.name);
                if !key.default.is_empty() {
                    let text = key.default.to_owned();
                    values.insert(key.name, Found { text, origin: Origin::Default });
                }
            }
        }
        for (key, text) in &self.values {
            values.insert(key.name, Found { text: text.clone(), origin: self.origin.clone() });
        }
    }

    /// Whether it says something of this setting.
    pub fn says(&self, name: &str) -> bool {
        self.values.iter().any(|(key, _)| key.name == name)
    }

    fn place(&self) -> &str {
        self.values.iter().find(|(key, _)| key.name == "repository").map_or("", |(_, text)| text)
    }
}

/// The tables of a configuration file, in order; none where `repository` is a location.
pub fn entries(path: &Path, text: &str) -> Result<Vec<Entry>, SettingsError> {
    let mut table = layers::parse(path, text)?;
    let Some(toml::Value::Array(tables)) = table.remove("repository") else { return Ok(Vec::new()) };
    let mut entries: Vec<Entry> = Vec::new();
    for table in tables {
        let entry = entry(path, table, entries.is_empty())?;
        let wrong = |problem: String| Err(wrong(path, problem));
        if entries.iter().any(|other| other.name == entry.name) {
            return wrong(format!("two repositories are called {}", entry.name));
        }
        let place = |entry: &Entry| Location::parse(entry.place()).map(|place| place.to_string()).ok();
        if let Some(other) =
            entries.iter().find(|other| place(other).is_some() && place(other) == place(&entry))
        {
            return wrong(format!("repositories {} and {} have the same url", other.name, entry.name));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(path: &Path, table: toml::Value, is_first: bool) -> Result<Entry, SettingsError> {
    let toml::Value::Table(mut table) = table else {
        return Err(wrong(path, "several repositories are written as [[repository]] tables".to_owned()));
    };
    let name = match table.remove("name") {
        Some(toml::Value::String(name)) if is_name(&name) => name,
        Some(_) => {
            let what =
                "the name of a repository must be 1 to 32 of a-z, 0-9, - and _, a letter or digit first";
            return Err(wrong(path, what.to_owned()));
        }
        None if is_first => FIRST.to_owned(),
        None => return Err(wrong(path, "each [[repository]] but the first must have a name".to_owned())),
    };
    let required = match table.remove("required") {
        None => false,
        Some(toml::Value::Boolean(required)) => required,
        Some(_) => return Err(wrong(path, format!("`required` of repository {name} must be true or false"))),
    };
    let Some(toml::Value::String(place)) = table.remove("url") else {
        return Err(wrong(path, format!("repository {name} has no url; a folder is one, too")));
    };
    let place_key = find("repository").expect("it is a setting");
    let mut values = vec![(place_key, layers::from_file(Form::Location, place, path))];
    for (setting, value) in layers::flatten(table) {
        let key = find(&setting).filter(|key| key.name != "repository" && is_of_a_repository(key.name));
        let Some(key) = key else {
            let what = format!("a repository has no setting `{setting}` of its own (in {name})");
            return Err(wrong(path, what));
        };
        values.push((key, layers::value_text(key, value, path)?));
    }
    Ok(Entry { name, required, values, origin: Origin::File(path.to_owned()) })
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=NAME_MAX).contains(&name.len())
        && fits(name.as_bytes()[0])
        && name.bytes().all(|byte| fits(byte) || matches!(byte, b'-' | b'_'))
}

fn wrong(path: &Path, problem: String) -> SettingsError {
    SettingsError::Repositories { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/etc/pgkeep/pgkeep.toml";

    fn read(text: &str) -> Result<Vec<Entry>, String> {
        entries(Path::new(FILE), text).map_err(|error| error.to_string())
    }

    #[test]
    fn tables_have_names_places_and_settings_of_their_own() {
        let text = "[[repository]]\nurl = './here'\n[[repository]]\nname = 'away'\nurl = 's3://b/p'\n\
                    required = true\nkey_file = 'key-away'\ns3.region = 'auto'\n";
        let found = read(text).unwrap();
        let shown: Vec<_> = found.iter().map(|one| (&*one.name, one.required, one.place())).collect();
        assert_eq!(shown, [("main", false, "/etc/pgkeep/./here"), ("away", true, "s3://b/p")]);
        let said: Vec<_> = found[1].values.iter().map(|(key, text)| (key.name, &**text)).collect();
        assert_eq!(said[1..], [("key_file", "/etc/pgkeep/key-away"), ("s3.region", "auto")]);
        assert!(read("repository = '/one'").unwrap().is_empty());
    }

    #[test]
    fn what_a_table_says_of_a_group_is_all_that_counts_of_it() {
        let found =
            read("[[repository]]\nurl = '/r'\ns3.access_key_id = 'own'\npassphrase_file = 'p'").unwrap();
        let mut values = Values::new();
        for name in ["s3.access_key_id", "s3.secret_access_key", "s3.addressing", "key_file", "workers"] {
            let key = find(name).unwrap();
            values.insert(key.name, Found { text: "common".into(), origin: Origin::Default });
        }
        found[0].lay_over(&mut values);
        let text = |name: &str| values.get(name).map(|found| found.text.as_str());
        assert_eq!(text("s3.access_key_id"), Some("own"));
        assert_eq!((text("s3.secret_access_key"), text("key_file")), (None, None));
        assert_eq!((text("s3.addressing"), text("workers")), (Some("common"), Some("common")));
    }

    #[test]
    fn mistakes_in_tables_are_named() {
        let shown = |text: &str| read(text).err().unwrap();
        let two = |second: &str| shown(&format!("[[repository]]\nurl = '/a'\n[[repository]]\n{second}"));
        insta::assert_snapshot!(two("url = '/b'"), @"/etc/pgkeep/pgkeep.toml: each [[repository]] but the first must have a name");
        insta::assert_snapshot!(two("name = 'main'\nurl = '/b'"), @"/etc/pgkeep/pgkeep.toml: two repositories are called main");
        insta::assert_snapshot!(two("name = 'b'\nurl = '/a/'"), @"/etc/pgkeep/pgkeep.toml: repositories main and b have the same url");
        insta::assert_snapshot!(two("name = 'b'"), @"/etc/pgkeep/pgkeep.toml: repository b has no url; a folder is one, too");
        insta::assert_snapshot!(two("name = 'b'\nurl = '/b'\nworkers = 3"), @"/etc/pgkeep/pgkeep.toml: a repository has no setting `workers` of its own (in b)");
        insta::assert_snapshot!(two("name = 'B!'\nurl = '/b'"), @"/etc/pgkeep/pgkeep.toml: the name of a repository must be 1 to 32 of a-z, 0-9, - and _, a letter or digit first");
        insta::assert_snapshot!(shown("repository = ['/a', '/b']"), @"/etc/pgkeep/pgkeep.toml: several repositories are written as [[repository]] tables");
    }

    #[test]
    fn groups_hold_settings_that_there_are() {
        for name in GROUPS.concat() {
            assert!(find(name).is_some(), "{name}");
        }
    }
}
