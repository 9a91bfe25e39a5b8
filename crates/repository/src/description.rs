//! The `repository` object: what this repository is, and what its storage can do. Written once, by `init`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::secrets::{Purpose, RepositoryId, WriterCredential};

/// The stored form's version that this program writes and reads.
pub const FORMAT: u32 = 1;

/// What is known of a repository before any key is at hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Version of the stored format.
    pub format: u32,
    id: String,
    public_key: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Whether the storage refuses to create an object twice, as `init` found it.
    pub create_only: bool,
    mac: String,
}

/// Why the description was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// Not a description.
    #[error("the object `repository` cannot be read: {what}")]
    Form {
        /// What was wrong.
        what: String,
    },
    /// Written by a later pgkeep.
    #[error("the repository has format {found}; this program reads format {FORMAT}")]
    Format {
        /// The version found.
        found: u32,
    },
    /// The keys at hand are another repository's, or the object was changed.
    #[error("the object `repository` was changed, or these keys belong to another repository")]
    NotAuthentic,
}

impl Description {
    /// Describes a new repository.
    pub fn new(writer: &WriterCredential, created: jiff::Timestamp, create_only: bool) -> Self {
        let mut description = Self {
            format: FORMAT,
            id: writer.repository.to_string(),
            public_key: BASE64.encode(writer.public_key),
            created,
            create_only,
            mac: String::new(),
        };
        description.mac = description.compute_mac(writer);
        description
    }

    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain fields");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the stored bytes; nothing in them is authentic before [`Description::check`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DescriptionError> {
        let form = |what: String| DescriptionError::Form { what };
        let description: Self = serde_json::from_slice(bytes).map_err(|error| form(error.to_string()))?;
        if description.format != FORMAT {
            return Err(DescriptionError::Format { found: description.format });
        }
        description.id().map(|_| description.clone()).ok_or_else(|| form("its id".into()))
    }

    /// The repository's id.
    pub fn id(&self) -> Option<RepositoryId> {
        RepositoryId::parse(&self.id)
    }

    /// Checks that the holder of the writer secret wrote this.
    pub fn check(&self, writer: &WriterCredential) -> Result<(), DescriptionError> {
        let expected = self.compute_mac(writer);
        let same_keys =
            self.id() == Some(writer.repository) && self.public_key == BASE64.encode(writer.public_key);
        // The MAC is public data: comparing it in constant time would protect nothing.
        if same_keys && self.mac == expected { Ok(()) } else { Err(DescriptionError::NotAuthentic) }
    }

    fn compute_mac(&self, writer: &WriterCredential) -> String {
        let text =
            format!("{}|{}|{}|{}|{}", self.format, self.id, self.public_key, self.created, self.create_only);
        let mut hasher = blake3::Hasher::new_keyed(&writer.derive(Purpose::HeaderMac));
        hasher.update(b"description|").update(text.as_bytes());
        BASE64.encode(hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Keyring;

    #[test]
    fn a_changed_description_is_noticed() {
        let writer = Keyring::for_test_vectors(1).writer;
        let description = Description::new(&writer, "2026-11-22T00:00:00Z".parse().unwrap(), true);
        let bytes = description.encode();
        assert_eq!(Description::decode(&bytes).unwrap().check(&writer), Ok(()));
        let text = String::from_utf8(bytes).unwrap().replace("true", "false");
        let changed = Description::decode(text.as_bytes()).unwrap();
        assert_eq!(changed.check(&writer), Err(DescriptionError::NotAuthentic));
        let later = text.replace("\"format\": 1", "\"format\": 2");
        assert_eq!(Description::decode(later.as_bytes()), Err(DescriptionError::Format { found: 2 }));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = Description::decode(text.as_bytes());
        }
    }
}
