//! From file, environment and command line to one value for each setting, with where it came from.
//!
//! Later layers win: defaults, variables that are there for other programs too (`DATABASE_URL`, `AWS_*`), the file, our
//! own variables (`PGKEEP_*`), the command line. A host's `BUCKET_NAME` is thus no more than a default.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::keys::{Form, KEYS, Key, Shown, find, nearest};
use super::repositories::Entry;

/// Where a value came from, weakest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A variable that other programs use too.
    Ambient(&'static str),
    /// The configuration file.
    File(PathBuf),
    /// Our own variable.
    Variable(&'static str),
    /// An option.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => out.write_str("default"),
            Origin::Ambient(name) | Origin::Variable(name) => out.write_str(name),
            Origin::File(path) => write!(out, "{}", path.display()),
            Origin::Flag(flag) => out.write_str(flag),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, PartialEq, Eq)]
pub struct Found {
    /// As text.
    pub text: String,
    /// Where from.
    pub origin: Origin,
}

/// The settings that have a value.
pub type Values = BTreeMap<&'static str, Found>;

/// A setting given on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The setting's name.
    pub name: String,
    /// What the user typed it as.
    pub option: String,
    /// The value.
    pub value: String,
}

/// What is wrong with a setting. The value itself is never repeated when it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The file is not TOML.
    #[error("{} cannot be read: {problem}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What and where.
        problem: String,
    },
    /// No setting has this name.
    #[error("{place}: there is no setting `{name}`{}", .meant.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default())]
    Unknown {
        /// Where it stands.
        place: Origin,
        /// The name.
        name: String,
        /// What was probably meant.
        meant: Option<&'static str>,
    },
    /// `[[repository]]` tables that cannot be used.
    #[error("{}: {problem}", .path.display())]
    Repositories {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A value of another form.
    #[error("setting `{name}` (from {place}) must be {expected}")]
    Form {
        /// Where it stands.
        place: Origin,
        /// The name.
        name: &'static str,
        /// What it should be.
        expected: String,
    },
    /// A secret on the command line.
    #[error("setting `{name}` is a secret, and others can see the command line")]
    SecretInFlag {
        /// The name.
        name: &'static str,
    },
    /// A variable that is not UTF-8.
    #[error("variable {name} is not UTF-8")]
    NotText {
        /// The variable.
        name: &'static str,
    },
}

/// Lays the layers over each other. `variable` looks a variable up; an empty one counts as not set. The table of a
/// repository lies under the flags only: it says more than what is common to all.
pub fn gather(
    file: Option<(&Path, &str)>,
    variable: &dyn Fn(&'static str) -> Result<Option<String>, SettingsError>,
    flags: &[Flag],
    table: Option<&Entry>,
) -> Result<Values, SettingsError> {
    let mut values = Values::new();
    for key in KEYS {
        if !key.default.is_empty() {
            set(&mut values, key, key.default.to_owned(), Origin::Default)?;
        }
        for &name in key.ambient {
            if let Some(text) = variable(name)? {
                set(&mut values, key, ambient_value(name, text), Origin::Ambient(name))?;
                break;
            }
        }
    }
    if let Some((path, text)) = file {
        for (key, value) in read_file(path, text)? {
            set(&mut values, key, value, Origin::File(path.to_owned()))?;
        }
    }
    for key in KEYS {
        if let Some(text) = variable(key.variable)? {
            set(&mut values, key, text, Origin::Variable(key.variable))?;
        }
    }
    if let Some(table) = table {
        table.lay_over(&mut values);
    }
    for Flag { name, option, value } in flags {
        let key = find(name).ok_or_else(|| unknown(Origin::Flag(option.clone()), name))?;
        if key.shown == Shown::Never {
            return Err(SettingsError::SecretInFlag { name: key.name });
        }
        set(&mut values, key, value.clone(), Origin::Flag(option.clone()))?;
    }
    drop_foreign_credentials(&mut values);
    Ok(values)
}

fn set(values: &mut Values, key: &'static Key, text: String, origin: Origin) -> Result<(), SettingsError> {
    if !key.form.accepts(&text) {
        return Err(SettingsError::Form { place: origin, name: key.name, expected: key.form.expected() });
    }
    values.insert(key.name, Found { text, origin });
    Ok(())
}

/// Platforms name the bucket, not the place in it; it may be the application's own, so we keep to a folder.
fn ambient_value(variable: &str, text: String) -> String {
    match variable {
        "BUCKET_NAME" | "AWS_S3_BUCKET" if !text.contains("://") => format!("s3://{text}/pgkeep"),
        _ => text,
    }
}

/// A key id that was said for pgkeep must not meet the secret or token that the environment holds for another program.
fn drop_foreign_credentials(values: &mut Values) {
    let ambient =
        |found: Option<&Found>| found.is_some_and(|found| matches!(found.origin, Origin::Ambient(_)));
    if values.contains_key("s3.access_key_id") && !ambient(values.get("s3.access_key_id")) {
        for name in ["s3.secret_access_key", "s3.session_token"] {
            if ambient(values.get(name)) {
                values.remove(name);
            }
        }
    }
}

fn unknown(place: Origin, name: &str) -> SettingsError {
    let meant = nearest(name, KEYS.iter().map(|key| key.name));
    SettingsError::Unknown { place, name: name.to_owned(), meant }
}

/// The file as TOML.
pub(super) fn parse(path: &Path, text: &str) -> Result<toml::Table, SettingsError> {
    text.parse().map_err(|error: toml::de::Error| {
        // Only the place and the problem: the line itself, which the error would quote, may hold a secret.
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        let problem = format!("line {line}: {}", error.message());
        SettingsError::File { path: path.to_owned(), problem }
    })
}

fn read_file(path: &Path, text: &str) -> Result<Vec<(&'static Key, String)>, SettingsError> {
    let mut table = parse(path, text)?;
    if matches!(table.get("repository"), Some(toml::Value::Array(_))) {
        // Several repositories are read for themselves.
        table.remove("repository");
    }
    let mut found = Vec::new();
    for (name, value) in flatten(table) {
        let key = find(&name).ok_or_else(|| unknown(Origin::File(path.to_owned()), &name))?;
        found.push((key, value_text(key, value, path)?));
    }
    Ok(found)
}

/// A value of a file as text that has the setting's form.
pub(super) fn value_text(
    key: &'static Key,
    value: toml::Value,
    path: &Path,
) -> Result<String, SettingsError> {
    let text = match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        _ => None,
    };
    let text = text.map(|text| from_file(key.form, text, path)).filter(|text| key.form.accepts(text));
    text.ok_or_else(|| SettingsError::Form {
        place: Origin::File(path.to_owned()),
        name: key.name,
        expected: key.form.expected(),
    })
}

/// The leaves of one level of tables, `s3.region`.
pub(super) fn flatten(table: toml::Table) -> Vec<(String, toml::Value)> {
    let mut leaves = Vec::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) => {
                leaves.extend(inner.into_iter().map(|(leaf, value)| (format!("{name}.{leaf}"), value)));
            }
            other => leaves.push((name, other)),
        }
    }
    leaves
}

/// A relative path in a file is relative to that file, wherever pgkeep is called from: PostgreSQL calls it in its data
/// directory.
pub(super) fn from_file(form: Form, text: String, file: &Path) -> String {
    let relative = match form {
        Form::Path => !text.starts_with('/'),
        Form::Location => text.starts_with("./") || text.starts_with("../") || text == ".",
        _ => false,
    };
    match file.parent() {
        Some(folder) if relative => {
            let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
            folder.join(&text).to_string_lossy().into_owned()
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(
        file: &str,
        variables: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Values, SettingsError> {
        let variable = |name: &'static str| {
            let found = variables.iter().find(|(known, value)| *known == name && !value.is_empty());
            Ok(found.map(|(_, value)| (*value).to_owned()))
        };
        let flags: Vec<Flag> = flags
            .iter()
            .map(|(name, value)| Flag {
                name: (*name).into(),
                option: format!("--{name}"),
                value: (*value).into(),
            })
            .collect();
        gather(Some((Path::new("/etc/pgkeep/pgkeep.toml"), file)), &variable, &flags, None)
    }

    fn text_of<'a>(values: &'a Values, name: &str) -> (&'a str, String) {
        (&values[name].text, values[name].origin.to_string())
    }

    #[test]
    fn each_layer_wins_over_the_one_before() {
        let ambient = ("BUCKET_NAME", "app");
        let own = ("PGKEEP_REPOSITORY", "/own");
        let at = |found: &Result<Values, _>| found.as_ref().map(|v| v["repository"].text.clone()).unwrap();
        assert_eq!(at(&values("", &[ambient], &[])), "s3://app/pgkeep");
        assert_eq!(at(&values("repository = '/file'", &[ambient], &[])), "/file");
        assert_eq!(at(&values("repository = '/file'", &[ambient, own], &[])), "/own");
        let all = values("repository = '/file'", &[ambient, own], &[("repository", "/flag")]).unwrap();
        assert_eq!(text_of(&all, "repository"), ("/flag", "--repository".to_owned()));
        assert_eq!(text_of(&all, "cluster"), ("main", "default".to_owned()));
    }

    #[test]
    fn relative_paths_in_a_file_belong_to_the_file() {
        let found =
            values("key_file = 'key'\nrepository = './backups'\n[s3]\nregion = 'auto'", &[], &[]).unwrap();
        assert_eq!(found["key_file"].text, "/etc/pgkeep/key");
        assert_eq!(found["repository"].text, "/etc/pgkeep/./backups");
        assert_eq!(text_of(&found, "s3.region"), ("auto", "/etc/pgkeep/pgkeep.toml".to_owned()));
    }

    #[test]
    fn mistakes_are_named_with_their_place_and_no_secret() {
        let shown = |file: &str| values(file, &[], &[]).err().unwrap().to_string();
        insta::assert_snapshot!(shown("[s3]\nregoin = 'x'"), @"/etc/pgkeep/pgkeep.toml: there is no setting `s3.regoin`; did you mean `s3.region`?");
        insta::assert_snapshot!(shown("workers = 0"), @"setting `workers` (from /etc/pgkeep/pgkeep.toml) must be a whole number from 1 to 256");
        insta::assert_snapshot!(shown("wal_timeout = [1]"), @"setting `wal_timeout` (from /etc/pgkeep/pgkeep.toml) must be a span of time such as 90s or 10m");
        assert!(!shown("a = 1\npassphrase = 'hunter2").contains("hunter2"));
        let error = values("", &[], &[("passphrase", "hunter2")]).err().unwrap();
        assert_eq!(error, SettingsError::SecretInFlag { name: "passphrase" });
    }

    #[test]
    fn credentials_of_two_origins_do_not_meet() {
        let ambient =
            [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_SESSION_TOKEN", "t")];
        assert!(values("", &ambient, &[]).unwrap().contains_key("s3.session_token"));
        let own = values("[s3]\naccess_key_id = 'b'\nsecret_access_key = 'c'", &ambient, &[]).unwrap();
        assert_eq!(own["s3.secret_access_key"].text, "c");
        assert!(!own.contains_key("s3.session_token"));
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read_or_refused(text in ".{0,120}|([a-z_.]{1,12} = ('[a-z]{0,8}'|[0-9]{1,6})\n){0,5}") {
            let _ = values(&text, &[], &[]);
        }
    }
}
