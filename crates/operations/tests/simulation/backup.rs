//! A backup of a few small files through the repository's own writers, in the order in which `operations::backup` does it.

use std::collections::HashMap;

use repository::chunk::Codec;
use repository::content::{Content, Entry, EntryKind, Extent};
use repository::file_list::FileListWriter;
use repository::manifest::{BackupKind, Manifest, PackRef, ServerRecord, Span};
use repository::pack::{OpenPack, PackMemory, PackWriter};
use repository::{ClusterName, PackId, Repository, RepositoryError};

use crate::model::Files;

/// What a backup is to do.
pub struct Request {
    pub cluster: ClusterName,
    pub id: String,
    pub files: Files,
    pub full: bool,
    /// After so many files it says what it has so far.
    pub partial_after: Option<usize>,
    pub span: Span,
}

/// Packs that the manifest will name.
#[derive(Default)]
struct Packs(HashMap<PackId, PackRef>);

impl Packs {
    fn name(&mut self, extents: &[Extent], earlier: &[Manifest]) {
        for extent in extents {
            let pack = self.0.entry(extent.pack).or_insert_with(|| {
                let mut all = earlier.iter().flat_map(|manifest| &manifest.packs);
                let known = all.find(|pack| pack.id().ok() == Some(extent.pack));
                let mut pack = known.expect("an earlier manifest names it").clone();
                pack.live = 0;
                pack
            });
            pack.live += extent.length;
        }
    }

    /// Stores what was filled.
    async fn store(&mut self, repository: &Repository, new: &mut NewPack) -> Result<(), RepositoryError> {
        let NewPack { pack: Some((pack, _)), bytes } = std::mem::take(new) else { return Ok(()) };
        let pack = pack.finish();
        let mut named = PackRef::new(pack.id, pack.len, pack.tail_len);
        named.live = bytes;
        self.0.insert(pack.id, named);
        repository.store_pack(pack).await
    }

    fn sorted(&self) -> Vec<PackRef> {
        let mut packs: Vec<_> = self.0.values().cloned().collect();
        packs.sort_by_key(|pack| pack.id().unwrap());
        packs
    }
}

/// Takes the backup; whether it took anything from earlier ones, and how many partial manifests it wrote.
pub async fn take(repository: &Repository, request: &Request) -> Result<(bool, u64), RepositoryError> {
    let predecessor = repository.predecessor(&request.cluster).await?;
    let mut earlier: Vec<Manifest> = Vec::new();
    if !request.full {
        earlier.extend(predecessor.iter().map(|found| found.manifest.clone()));
        let after = predecessor.as_ref().map(|found| found.manifest.id.as_str());
        earlier.extend(repository.partials(&request.cluster, after).await?.into_iter().flatten());
    }
    let (mut known, mut readable) = (HashMap::new(), Vec::new());
    for manifest in earlier {
        match entries_of(repository, &manifest).await {
            Ok(entries) => {
                known.extend(entries.into_iter().map(|entry| ((entry.path.clone(), entry.inode), entry)));
                readable.push(manifest);
            }
            // Without it everything is stored anew.
            Err(error) if error.is_unreadable() && !repository.access().can_read() => {}
            Err(error) => return Err(error),
        }
    }
    let earlier = readable;
    let mut manifest = begin(request, !earlier.is_empty());
    let (mut entries, mut packs, mut new, mut taken, mut partials) =
        (Vec::new(), Packs::default(), NewPack::default(), false, 0);
    for (number, (path, (version, content))) in request.files.iter().enumerate() {
        let entry = match known.remove(&(path.as_bytes().to_vec(), *version)) {
            Some(entry) => {
                taken = true;
                packs.name(extents(&entry), &earlier);
                entry
            }
            None => entry(path, *version, content.len(), new.add(repository, content)),
        };
        entries.push(entry);
        if request.partial_after == Some(number + 1) {
            packs.store(repository, &mut new).await?;
            let mut packs = Packs(packs.0.clone());
            let mut partial = manifest.clone();
            list(repository, &mut partial, &entries, &mut packs, &[]).await?;
            repository.publish_partial(&request.cluster, &partial, 1).await?;
            partials += 1;
        }
    }
    packs.store(repository, &mut new).await?;
    list(repository, &mut manifest, &entries, &mut packs, &earlier).await?;
    repository.publish(&request.cluster, manifest, predecessor.as_ref()).await?;
    Ok((taken, partials))
}

async fn entries_of(repository: &Repository, manifest: &Manifest) -> Result<Vec<Entry>, RepositoryError> {
    let (mut entries, mut stream) = (Vec::new(), repository.entries(manifest));
    while let Some(entry) = stream.next().await? {
        entries.push(entry);
    }
    Ok(entries)
}

fn extents(entry: &Entry) -> &[Extent] {
    let Content::Inline(extents) = &entry.content else { unreachable!("small files") };
    extents
}

/// A pack being filled, with a chunk for each file.
#[derive(Default)]
struct NewPack {
    pack: Option<(PackWriter, Codec)>,
    bytes: u64,
}

impl NewPack {
    fn add(&mut self, repository: &Repository, content: &[u8]) -> Extent {
        let begin =
            || (PackWriter::new(repository.access().writer(), &PackMemory::unbounded()), Codec::new(1));
        let (pack, codec) = self.pack.get_or_insert_with(begin);
        let mut digests = Vec::new();
        repository.digester().pages(content, &mut digests);
        let chunk = pack.add_pages(codec, repository.digester(), content, &digests).unwrap();
        self.bytes += content.len() as u64;
        Extent { pack: pack.id(), chunk, offset: 0, length: content.len() as u64 }
    }
}

fn begin(request: &Request, incremental: bool) -> Manifest {
    Manifest {
        id: request.id.clone(),
        kind: if incremental { BackupKind::Incremental } else { BackupKind::Full } as i32,
        cluster: request.cluster.to_string(),
        server: Some(ServerRecord {
            system_identifier: 7,
            wal_segment_size: 16 << 20,
            ..ServerRecord::default()
        }),
        span: Some(request.span.clone()),
        ..Manifest::default()
    }
}

fn entry(path: &str, version: u64, size: usize, extent: Extent) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind: EntryKind::File,
        mode: 0o600,
        size: size as u64,
        mtime_ns: 1,
        ctime_ns: 1,
        inode: version,
        crc32c: 0,
        content: Content::Inline(vec![extent]),
        target: Vec::new(),
    }
}

/// Stores the list of files, and completes the manifest by it.
async fn list(
    repository: &Repository,
    manifest: &mut Manifest,
    entries: &[Entry],
    packs: &mut Packs,
    earlier: &[Manifest],
) -> Result<(), RepositoryError> {
    let known: Vec<_> = earlier.iter().flat_map(|manifest| manifest.pages.clone()).collect();
    let mut writer = FileListWriter::new(repository.access().writer(), repository.local(), 1, &known);
    entries.iter().for_each(|entry| writer.add_entry(entry.clone()).unwrap());
    let made = writer.finish().unwrap();
    for pack in made.packs {
        packs.0.insert(pack.id, PackRef::new(pack.id, pack.len, pack.tail_len));
        repository.store_pack(pack).await?;
    }
    for page in &made.pages {
        packs.name(&[page.extent().unwrap()], earlier);
    }
    (manifest.pages, manifest.packs) = (made.pages, packs.sorted());
    Ok(())
}

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
                let plain = self.chunk(extent).await?;
                content.extend_from_slice(&plain[extent.offset as usize..][..extent.length as usize]);
            }
            files.insert(String::from_utf8(entry.path).unwrap(), (entry.inode, content));
        }
        Ok(files)
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
