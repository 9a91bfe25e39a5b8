//! Reading a backup back, as a restore does.

use std::collections::HashMap;

use repository::chunk::Codec;
use repository::content::Extent;
use repository::manifest::Manifest;
use repository::pack::OpenPack;
use repository::{PackId, Repository, RepositoryError};

use crate::backup::{entries_of, extents};
use crate::model::Files;

/// Reads files back, and opens each pack once.
pub struct Reader<'r> {
    repository: &'r Repository,
    codec: Codec,
    packs: HashMap<PackId, OpenPack>,
}

impl<'r> Reader<'r> {
    pub fn new(repository: &'r Repository) -> Self {
        Self { repository, codec: Codec::new(1), packs: HashMap::new() }
    }

    /// The files of a backup.
    pub async fn files(&mut self, manifest: &Manifest) -> Result<Files, RepositoryError> {
        let mut files = Files::new();
        for entry in entries_of(self.repository, manifest).await? {
            let mut content = Vec::new();
            for extent in extents(&entry) {
                self.read(*extent, &mut content).await?;
            }
            files.insert(String::from_utf8(entry.path).unwrap(), (entry.inode, content));
        }
        Ok(files)
    }

    /// Appends what an extent holds, wherever prune moved it.
    async fn read(&mut self, extent: Extent, content: &mut Vec<u8>) -> Result<(), RepositoryError> {
        let mut open = vec![extent];
        while let Some(at) = open.pop() {
            match self.chunk(&at).await {
                Ok(plain) => {
                    content.extend_from_slice(&plain[at.offset as usize..][..at.length as usize]);
                }
                Err(error) => {
                    // Also one that went while it was open.
                    self.packs.remove(&at.pack);
                    let moved = self.repository.moved_or(at.pack, error).await?;
                    open.extend(moved.forward(at)?.into_iter().rev());
                }
            }
        }
        Ok(())
    }

    async fn chunk(&mut self, at: &Extent) -> Result<Vec<u8>, RepositoryError> {
        if !self.packs.contains_key(&at.pack) {
            self.packs.insert(at.pack, self.repository.open_pack(at.pack, None).await?);
        }
        let pack = &self.packs[&at.pack];
        let info = &pack.table.chunks[at.chunk as usize];
        let range = info.offset..info.offset + u64::from(info.stored_len);
        let name = repository::layout::pack(at.pack);
        let mut sealed = self.repository.storage().read(&name, range).await?.to_vec();
        let mut plain = vec![0; info.plain_len as usize];
        pack.chunk(at.chunk, &mut sealed, &mut self.codec, Some(self.repository.digester()), &mut plain)?;
        Ok(plain)
    }
}
