//! Names of objects, and what a listing says about them.

use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes. S3 allows 1024 for prefix and name together; half is left to the prefix.
pub const NAME_BYTES_MAX: usize = 512;

/// The name of an object below the root: parts of `[A-Za-z0-9._=-]` joined by `/`.
///
/// No part is empty or begins with a dot, so a name can neither leave the root nor meet a hidden temporary
/// file, and means the same on every storage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// Why a text is not an [`ObjectName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("the object name is empty")]
    Empty,
    /// The name is longer than [`NAME_BYTES_MAX`].
    #[error("the object name has {0} bytes, more than {NAME_BYTES_MAX}")]
    TooLong(usize),
    /// A part between two slashes is empty or begins with a dot.
    #[error("object name {0:?} has a part that is empty or begins with a dot")]
    Part(String),
    /// A character is outside `[A-Za-z0-9._=/-]`.
    #[error("object name {0:?} has a character other than letters, digits and . _ = - /")]
    Character(String),
}

impl ObjectName {
    /// Checks `name` and takes it.
    pub fn new(name: impl Into<String>) -> Result<ObjectName, NameError> {
        let name = name.into();
        check(&name)?;
        Ok(ObjectName(name))
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last slash.
    pub fn last_part(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for ObjectName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<ObjectName, NameError> {
        ObjectName::new(text)
    }
}

impl TryFrom<String> for ObjectName {
    type Error = NameError;

    fn try_from(text: String) -> Result<ObjectName, NameError> {
        ObjectName::new(text)
    }
}

/// One object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The object's whole name, below the root.
    pub name: ObjectName,
    /// Its size, in bytes.
    pub size: u64,
    /// When it was created by the storage's own clock, where the storage says so.
    pub modified: Option<jiff::Timestamp>,
}

/// One level of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// Whole prefixes one level down, without a slash at the end, in order, each holding at least one object.
    pub prefixes: Vec<String>,
    /// Objects directly below the prefix, ordered by name.
    pub entries: Vec<Entry>,
}

/// The end of an object and its whole size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The whole size of the object, in bytes.
    pub size: u64,
    /// Its last bytes.
    pub bytes: bytes::Bytes,
}

/// The prefix without slashes at its end; empty for the root. Whole parts only, under the rules of names.
pub(crate) fn checked_prefix(prefix: &str) -> Result<&str, NameError> {
    let trimmed = prefix.strip_suffix('/').unwrap_or(prefix);
    if !trimmed.is_empty() {
        check(trimmed)?;
    }
    Ok(trimmed)
}

/// What follows `prefix` and a slash in `name`; all of it when the prefix is empty.
pub(crate) fn below<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() { Some(name) } else { name.strip_prefix(prefix)?.strip_prefix('/') }
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._=-/".contains(&byte)) {
        return Err(NameError::Character(name.to_owned()));
    }
    if name.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        return Err(NameError::Part(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_leave_the_root_or_hide_are_refused() {
        for bad in [
            "", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.tmp-1", ".tmp-1", "a b", "a\\b", "é", "a\0",
        ] {
            assert!(ObjectName::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(ObjectName::new("a".repeat(513)), Err(NameError::TooLong(513)));
        for good in ["repository", "packs/0a/0a3f", "clusters/main/wal/00000001.history", "a=b/c_d-e.f"] {
            assert_eq!(ObjectName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_prefix_is_whole_parts() {
        assert_eq!(checked_prefix(""), Ok(""));
        assert_eq!(checked_prefix("packs/"), Ok("packs"));
        assert!(checked_prefix("/").is_ok());
        assert!(checked_prefix("packs//").is_err());
        assert_eq!(below("packs/0a/x", "packs"), Some("0a/x"));
        assert_eq!(below("packsaw", "packs"), None);
        assert_eq!(below("packs", "packs"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_kept_as_it_is(text in "\\PC{0,40}|[a-z./=_-]{0,40}") {
            if let Ok(name) = ObjectName::new(text.clone()) {
                prop_assert_eq!(name.as_str(), text.as_str());
                prop_assert!(!text.contains("..") || text.split('/').all(|part| part != ".."));
                prop_assert_eq!(name.to_string().parse::<ObjectName>().unwrap(), name);
            }
        }
    }
}
