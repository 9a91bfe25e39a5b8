//! Notes: small facts about the repository that stand, authenticated and not secret, in an object's header alone.
//!
//! Whoever holds a writer credential can write and read them.

use bytes::Bytes;
use prost::Message;
use storage::ObjectName;

use crate::repository::{Repository, RepositoryError};
use crate::seal::{Header, Kind, MAX_HEADER_LEN, SealError, Sealer};

impl Repository {
    /// Writes a note; fails with `NameTaken` if there is one of that name.
    pub(crate) async fn write_note(
        &self,
        kind: Kind,
        name: &ObjectName,
        note: &impl Message,
    ) -> Result<(), RepositoryError> {
        let sealer = Sealer::new(self.access().writer(), kind, name, &note.encode_to_vec());
        Ok(self.storage().create(name, &[Bytes::copy_from_slice(sealer.header())]).await?)
    }

    /// Reads a note; an absent one is `NotFound`, a damaged one a `SealError`.
    pub(crate) async fn read_note<N: Message + Default>(
        &self,
        kind: Kind,
        name: &ObjectName,
    ) -> Result<N, RepositoryError> {
        let object = self.storage().read_all(name, MAX_HEADER_LEN as u64).await?;
        let header = Header::parse(self.access().writer(), kind, name, &object)?;
        if header.len != object.len() {
            return Err(SealError::Length { name: name.clone() }.into());
        }
        let bad = |_| SealError::Content { name: name.clone(), what: "note" };
        Ok(N::decode(&header.public[..]).map_err(bad)?)
    }
}

/// The longest beginning of `text` that has at most `bytes` bytes: no header has room for more.
pub(crate) fn shortened(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
