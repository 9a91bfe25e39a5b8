//! A backup of a few small files through the repository's own writers, in the order in which `operations::backup` does it.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use repository::backups::Predecessor;
use repository::chunk::Codec;
use repository::content::{Content, Entry, EntryKind, Extent};
use repository::file_list::FileListWriter;
use repository::manifest::{BackupKind, Manifest, PackRef, ServerRecord, Span};
use repository::pack::{PackMemory, PackWriter};
use repository::{ClusterName, PackId, Repository, RepositoryError};

use tokio::time::sleep;

use crate::host::segment_name;
use crate::model::Files;

/// What a backup is to do.
pub struct Request {
    pub cluster: ClusterName,
    pub id: String,
    pub files: Files,
    pub full: bool,
    /// After so many files it says what it has so far.
    pub partial_after: Option<usize>,
    /// How long it stands still when it has read what was before it, and again when its own files are stored.
    pub pauses: [Duration; 2],
}

/// A backup that may begin: what is before it was read, and it has its claim.
pub struct Begun<'r> {
    repository: &'r Repository,
    request: &'r Request,
    predecessor: Option<Predecessor>,
    earlier: Vec<Manifest>,
}

/// What came of it.
pub enum Taken {
    /// It is there; whether it took anything from earlier ones, and how many partial manifests it wrote.
    There { taken: bool, partials: u64 },
    /// It took so long that prune no longer knew of it.
    Overtaken,
    /// WAL that it needs is gone, which it noticed.
    LacksWal,
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

/// An id that is later than all that are there and all that are claimed, as `operations::backup::plan` chooses it.
pub async fn free_id(
    repository: &Repository,
    cluster: &ClusterName,
    mut now: Timestamp,
    kind: &str,
) -> Result<String, RepositoryError> {
    let there = repository.backup_ids(cluster).await?.into_iter();
    let claimed = repository.claims(cluster).await?.into_iter().map(|claim| claim.backup);
    let last = there.chain(claimed).max().unwrap_or_default();
    loop {
        let id = format!("{}-{kind}", now.strftime("%Y%m%dT%H%M%SZ"));
        if id[..16] > *last.get(..16).unwrap_or_default() {
            return Ok(id);
        }
        let last = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &last[..16]).unwrap();
        now = last.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp() + Duration::from_secs(1);
    }
}

/// Reads what is before a backup, and claims it.
pub async fn begin<'r>(
    repository: &'r Repository,
    request: &'r Request,
) -> Result<Begun<'r>, RepositoryError> {
    let predecessor = repository.predecessor(&request.cluster).await?;
    let mut earlier: Vec<Manifest> = Vec::new();
    if !request.full {
        earlier.extend(predecessor.iter().map(|found| found.manifest.clone()));
        let after = predecessor.as_ref().map(|found| found.manifest.id.as_str());
        earlier.extend(repository.partials(&request.cluster, after).await?.into_iter().flatten());
    }
    repository.claim(&request.cluster, &request.id, "a host").await?;
    Ok(Begun { repository, request, predecessor, earlier })
}

impl Begun<'_> {
    /// Stores the files and publishes the backup.
    pub async fn take(self, span: Span) -> Result<Taken, RepositoryError> {
        let Self { repository, request, predecessor, earlier } = self;
        let (earlier, mut known) = readable(repository, earlier).await?;
        let mut manifest = empty(request, span, !earlier.is_empty());
        sleep(request.pauses[0]).await;
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
        sleep(request.pauses[1]).await;
        let wal = segment_name((manifest.span().start_lsn >> 24) as u32);
        if !repository.has_wal(&request.cluster, &wal).await? {
            repository.withdraw_claim(&request.cluster, &request.id).await;
            return Ok(Taken::LacksWal);
        }
        match repository.publish_claimed(&request.cluster, manifest, predecessor.as_ref()).await {
            Ok(_) => Ok(Taken::There { taken, partials }),
            Err(RepositoryError::Overtaken) => Ok(Taken::Overtaken),
            Err(error) => Err(error),
        }
    }
}

/// Those of the earlier backups that can be read, and what is in them by path and version.
async fn readable(
    repository: &Repository,
    earlier: Vec<Manifest>,
) -> Result<(Vec<Manifest>, HashMap<(Vec<u8>, u64), Entry>), RepositoryError> {
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
    Ok((readable, known))
}

pub async fn entries_of(repository: &Repository, manifest: &Manifest) -> Result<Vec<Entry>, RepositoryError> {
    let (mut entries, mut stream) = (Vec::new(), repository.entries(manifest));
    while let Some(entry) = stream.next().await? {
        entries.push(entry);
    }
    Ok(entries)
}

pub fn extents(entry: &Entry) -> &[Extent] {
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

fn empty(request: &Request, span: Span, incremental: bool) -> Manifest {
    Manifest {
        id: request.id.clone(),
        kind: if incremental { BackupKind::Incremental } else { BackupKind::Full } as i32,
        cluster: request.cluster.to_string(),
        server: Some(ServerRecord {
            system_identifier: 7,
            wal_segment_size: 16 << 20,
            ..ServerRecord::default()
        }),
        span: Some(span),
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
