//! Where a repository is, as an operator writes it.

use crate::name::checked_prefix;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the objects are. Text forms: `/path`, `./path`, `file:///path`, `s3://bucket/prefix`,
/// `gs://bucket/prefix`, `az://container/prefix`. Never holds credentials, so it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory, absolute.
    Directory(PathBuf),
    /// A bucket of Amazon S3, or of anything that speaks its protocol (the endpoint is a setting).
    S3(Bucket),
    /// A bucket of Google Cloud Storage.
    Gcs(Bucket),
    /// A container of Azure Blob Storage (the account is a setting).
    Azure(Bucket),
}

/// A bucket or container, and where in it everything lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its name: lower-case letters, digits, `.`, `-` and `_`.
    pub name: String,
    /// What every key begins with, without slashes at the ends; empty for the whole bucket.
    pub prefix: String,
}

/// Why a text is not a [`Location`]. The text itself is not repeated: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Nothing was given.
    #[error("the repository's location is empty")]
    Empty,
    /// A bare word, which could be a directory or a misspelt address.
    #[error(
        "a location is /path, ./path, file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
    )]
    Form,
    /// The part before `://` is not known.
    #[error("the scheme {0:?} is not known; use file, s3, gs or az")]
    Scheme(String),
    /// A user, a password or a query in the address.
    #[error("a location holds no user, password or query; credentials are settings of their own")]
    Credentials,
    /// The bucket's name is missing or has characters that no provider allows.
    #[error("the bucket's name is missing or malformed")]
    BucketName,
    /// The prefix has a part that is empty, begins with a dot, or has other characters.
    #[error("the prefix in the bucket: {0}")]
    Prefix(#[source] crate::NameError),
    /// The current directory, to which the path is relative, cannot be found.
    #[error("a relative path without a current directory")]
    CurrentDirectory,
}

impl Location {
    /// Reads the text form. A relative path is made absolute here and now, because PostgreSQL runs its
    /// commands from the data directory.
    pub fn parse(text: &str) -> Result<Location, LocationError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(LocationError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return directory(text);
        };
        match scheme {
            "file" if rest.starts_with('/') => directory(rest),
            "file" => Err(LocationError::Form),
            "s3" => Ok(Location::S3(Bucket::parse(rest)?)),
            "gs" => Ok(Location::Gcs(Bucket::parse(rest)?)),
            "az" => Ok(Location::Azure(Bucket::parse(rest)?)),
            _ if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Err(LocationError::Scheme(scheme.to_owned()))
            }
            _ => Err(LocationError::Form),
        }
    }
}

impl Bucket {
    fn parse(text: &str) -> Result<Bucket, LocationError> {
        if text.contains(['@', '?', '#', ':']) {
            return Err(LocationError::Credentials);
        }
        let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if !(3..=222).contains(&name.len()) || !name.bytes().all(legal) || name.contains("..") {
            return Err(LocationError::BucketName);
        }
        let prefix = checked_prefix(prefix).map_err(LocationError::Prefix)?;
        Ok(Bucket { name: name.to_owned(), prefix: prefix.to_owned() })
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Location, LocationError> {
        Location::parse(text)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket) = match self {
            Location::Directory(path) => return write!(f, "{}", path.display()),
            Location::S3(bucket) => ("s3", bucket),
            Location::Gcs(bucket) => ("gs", bucket),
            Location::Azure(bucket) => ("az", bucket),
        };
        write!(f, "{scheme}://{}", bucket.name)?;
        if bucket.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", bucket.prefix) }
    }
}

fn directory(text: &str) -> Result<Location, LocationError> {
    let is_path = text.starts_with('/') || text.starts_with("./") || text.starts_with("../") || text == ".";
    if !is_path || text.contains('\0') {
        return Err(LocationError::Form);
    }
    let path = std::path::absolute(Path::new(text)).map_err(|_| LocationError::CurrentDirectory)?;
    // Drops slashes at the end and doubled ones, so that one directory has one text.
    Ok(Location::Directory(path.components().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_form_is_read_and_shown() {
        let shown = |text: &str| Location::parse(text).unwrap().to_string();
        assert_eq!(shown("/var/backups//pg/"), "/var/backups/pg");
        assert_eq!(shown("file:///var/backups"), "/var/backups");
        assert_eq!(shown("s3://bucket"), "s3://bucket");
        assert_eq!(shown(" s3://bucket/a/b/ "), "s3://bucket/a/b");
        assert_eq!(shown("gs://my_bucket.example/x"), "gs://my_bucket.example/x");
        assert_eq!(shown("az://container/x"), "az://container/x");
        let Location::Directory(path) = Location::parse("./here").unwrap() else { panic!("a directory") };
        assert!(path.is_absolute() && path.ends_with("here"));
    }

    #[test]
    fn credentials_and_bare_words_are_refused_without_being_repeated() {
        for text in
            ["s3://key:hunter2@bucket/x", "s3://bucket/x?secret=hunter2", "hunter2", "hunter2://x@y:z"]
        {
            let error = Location::parse(text).unwrap_err();
            assert!(text.starts_with("hunter2:") || !error.to_string().contains("hunter2"), "{error}");
        }
        for text in [
            "",
            "backups",
            "http://bucket/x",
            "s3://",
            "s3:///x",
            "s3://Bucket",
            "s3://b..c/x",
            "s3://abc/../x",
        ] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(text in "\\PC{0,60}|(s3|gs|az|file)://[a-z0-9./-]{0,40}|[./][a-z/.]{0,30}") {
            if let Ok(location) = Location::parse(&text) {
                prop_assert_eq!(Location::parse(&location.to_string()), Ok(location));
            }
        }
    }
}
