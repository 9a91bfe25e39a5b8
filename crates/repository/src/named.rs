//! What a manifest names, read without holding the manifest: what prune asks of every backup there is.

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use storage::{ObjectName, StorageError};

use crate::backups::MANIFEST_LIMIT;
use crate::content::ContentError;
use crate::layout::{self, ClusterName, is_backup_id};
use crate::manifest::{PackRef, PageRef};
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Header, Kind, MAX_FRAME, MAX_HEADER_LEN, Opener, SealError, TAG_LEN};

/// Bytes asked for at a time.
const WINDOW: u64 = 2 << 20;
const PREVIOUS_TAG: u32 = 5;
const PAGE_TAG: u32 = 12;
const PACK_TAG: u32 = 13;

/// One thing that a manifest names.
#[derive(Clone, Debug, PartialEq)]
pub enum Named {
    /// The backup before it.
    Previous(String),
    /// A list page.
    Page(PageRef),
    /// A pack.
    Pack(PackRef),
}

impl Repository {
    /// Calls `each` with everything that the manifest `id` names; memory does not grow with its size.
    pub async fn for_each_named(
        &self,
        cluster: &ClusterName,
        id: &str,
        each: impl FnMut(Named),
    ) -> Result<(), RepositoryError> {
        self.read_named(Kind::Manifest, &layout::manifest(cluster, id), each).await
    }

    /// The same of the partial manifest that is this object.
    pub async fn for_each_named_by_partial(
        &self,
        name: &ObjectName,
        each: impl FnMut(Named),
    ) -> Result<(), RepositoryError> {
        self.read_named(Kind::PartialManifest, name, each).await
    }

    async fn read_named(
        &self,
        kind: Kind,
        name: &ObjectName,
        each: impl FnMut(Named),
    ) -> Result<(), RepositoryError> {
        let size = self.storage().size(name).await?;
        if size > MANIFEST_LIMIT {
            let limit = MANIFEST_LIMIT;
            return Err(StorageError::TooLarge { name: name.clone(), size, limit }.into());
        }
        let head = self.storage().read(name, 0..size.min(MAX_HEADER_LEN as u64)).await?;
        let header = Header::parse(self.access().writer(), kind, name, &head)?;
        let opener = Opener::new(self.access(), kind, name, &header)?;
        let mut fields = Fields { rest: Vec::new(), each };
        let (mut at, mut window, mut number) = (header.len as u64, Vec::new(), 0);
        loop {
            // A window always holds a whole frame, or all that there is.
            let more = (size - at).min(WINDOW);
            window.extend_from_slice(&self.storage().read(name, at..at + more).await?);
            at += more;
            let mut used = 0;
            while let Some((frame, end)) = frame_at(&mut window, used) {
                let last = at == size && end == window.len();
                let range = frame..end;
                let plain = opener.open_in_place(number, &mut window[range], last)?;
                let unreadable = |source| RepositoryError::Content { place: name.to_string(), source };
                fields.push(plain).map_err(unreadable)?;
                (used, number) = (end, number + 1);
            }
            window.drain(..used);
            if at == size {
                // The last frame was marked as such, or there was none.
                let ended = window.is_empty() && number > 0 && fields.rest.is_empty();
                return if ended { Ok(()) } else { Err(SealError::Length { name: name.clone() }.into()) };
            }
            if window.len() > MAX_FRAME + TAG_LEN + 4 {
                return Err(SealError::Length { name: name.clone() }.into());
            }
        }
    }
}

/// Where the frame behind `from` begins and ends, if all of it is there.
fn frame_at(window: &mut [u8], from: usize) -> Option<(usize, usize)> {
    let (len, _) = window.get(from..)?.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    let frame = from + 4;
    let fits = (TAG_LEN..=MAX_FRAME + TAG_LEN).contains(&len) && frame + len <= window.len();
    fits.then_some((frame, frame + len))
}

/// The fields of a message that comes in pieces.
struct Fields<F> {
    rest: Vec<u8>,
    each: F,
}

impl<F: FnMut(Named)> Fields<F> {
    fn push(&mut self, piece: &[u8]) -> Result<(), ContentError> {
        self.rest.extend_from_slice(piece);
        let bytes = std::mem::take(&mut self.rest);
        let mut left = &bytes[..];
        while let Some(len) = field_len(left)? {
            let (field, behind) = left.split_at(len);
            self.field(field)?;
            left = behind;
        }
        self.rest = left.to_vec();
        Ok(())
    }

    fn field(&mut self, mut field: &[u8]) -> Result<(), ContentError> {
        let bad = |_| ContentError { what: "manifest" };
        let (tag, wire_type) = decode_key(&mut field).map_err(bad)?;
        if wire_type != WireType::LengthDelimited {
            return Ok(());
        }
        decode_varint(&mut field).map_err(bad)?;
        match tag {
            PREVIOUS_TAG => {
                let id = std::str::from_utf8(field).ok().filter(|id| id.is_empty() || is_backup_id(id));
                (self.each)(Named::Previous(id.ok_or(ContentError { what: "id" })?.to_owned()));
            }
            PAGE_TAG => (self.each)(Named::Page(PageRef::decode(field).map_err(bad)?)),
            PACK_TAG => (self.each)(Named::Pack(PackRef::decode(field).map_err(bad)?)),
            _ => {}
        }
        Ok(())
    }
}

/// The length of the first field; `None` if not all of it has come.
fn field_len(bytes: &[u8]) -> Result<Option<usize>, ContentError> {
    let bad = || ContentError { what: "manifest" };
    let mut rest = bytes;
    let Ok((tag, wire_type)) = decode_key(&mut rest) else {
        // A key has five bytes at most.
        return if bytes.len() < 8 { Ok(None) } else { Err(bad()) };
    };
    match wire_type {
        WireType::LengthDelimited => {
            let Ok(len) = decode_varint(&mut rest) else {
                return if rest.len() < 10 { Ok(None) } else { Err(bad()) };
            };
            let len =
                usize::try_from(len).ok().filter(|len| *len as u64 <= MANIFEST_LIMIT).ok_or_else(bad)?;
            let all = bytes.len() - rest.len() + len;
            Ok((len <= rest.len()).then_some(all))
        }
        WireType::StartGroup | WireType::EndGroup => Err(bad()),
        _ => match skip_field(wire_type, tag, &mut rest, DecodeContext::default()) {
            Ok(()) => Ok(Some(bytes.len() - rest.len())),
            Err(_) if bytes.len() < 16 => Ok(None),
            Err(_) => Err(bad()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use storage::Memory;

    use super::*;
    use crate::description::Description;
    use crate::layout::PackId;
    use crate::manifest::{ConfigFile, Manifest};
    use crate::secrets::{Keyring, RepositoryId};

    #[tokio::test]
    async fn an_id_that_can_be_no_name_is_refused_by_whoever_reads_it() {
        let keyring = Keyring::generate(RepositoryId::random());
        let description = Description::new(&keyring.writer, "2026-11-22T00:00:00Z".parse().unwrap(), true);
        let memory = Arc::new(Memory::new());
        let repository = Repository::create(memory, keyring, &[], description, None).await.unwrap();
        let cluster = ClusterName::new("main").unwrap();
        for (number, previous_id) in ["a b", "a/b", "..", "a\0", "é\n"].into_iter().enumerate() {
            let id = format!("2026112{number}T000000Z-full");
            let manifest =
                Manifest { id: id.clone(), previous_id: previous_id.into(), ..Manifest::default() };
            repository.publish(&cluster, manifest, None).await.unwrap();
            let refused = repository.for_each_named(&cluster, &id, |_| ()).await.unwrap_err();
            assert!(refused.is_damage(), "{previous_id:?}: {refused}");
            let refused = repository.manifest(&cluster, &id).await.unwrap_err();
            assert!(refused.is_damage(), "{previous_id:?}: {refused}");
        }
    }

    #[tokio::test]
    async fn every_pack_of_a_long_manifest_is_told_and_what_is_cut_is_refused() {
        let memory = Arc::new(Memory::new());
        let keyring = Keyring::generate(RepositoryId::random());
        let description = Description::new(&keyring.writer, "2026-11-22T00:00:00Z".parse().unwrap(), true);
        let repository = Repository::create(memory.clone(), keyring, &[], description, None).await.unwrap();
        let cluster = ClusterName::new("main").unwrap();
        let packs: Vec<_> = (0..120_000u32)
            .map(|number| {
                let mut id = [0; 16];
                id[..4].copy_from_slice(&number.to_le_bytes());
                PackRef::new(PackId(id), 20 << 20, number)
            })
            .collect();
        let manifest = Manifest {
            id: "20261122T000000Z-full".into(),
            sequence: 7,
            previous_id: "20261121T000000Z-full".into(),
            packs: packs.clone(),
            config_files: vec![ConfigFile { path: "/etc/x".into(), content: vec![7; 3 << 20] }],
            ..Manifest::default()
        };
        repository.publish(&cluster, manifest.clone(), None).await.unwrap();
        let mut found = Vec::new();
        repository.for_each_named(&cluster, &manifest.id, |named| found.push(named)).await.unwrap();
        let mut named = vec![Named::Previous("20261121T000000Z-full".into())];
        named.extend(packs.into_iter().map(Named::Pack));
        assert!(found == named);

        let name = layout::manifest(&cluster, &manifest.id);
        let whole = memory.bytes(&name).unwrap();
        for keep in [whole.len() - 1, whole.len() / 2, 1 << 20, 300] {
            memory.damage(&name, Some(whole.slice(..keep)));
            let cut = repository.for_each_named(&cluster, &manifest.id, |_| ()).await.unwrap_err();
            assert!(cut.is_damage(), "{keep}: {cut}");
        }
    }
}
