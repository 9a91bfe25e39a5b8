//! The walk through the file lists: which bytes of which packs are what, and whether the lists themselves are whole.

use std::collections::{BTreeMap, HashMap, HashSet};

use pg::datadir::{RelationFile, first_block, has_page_checksums};
use repository::chunk::PAGE;
use repository::content::{Content, Entry, EntryKind, Extent, LEAF_SPAN};
use repository::manifest::{Manifest, PageRef};
use repository::moved::Places;
use repository::proof::Damage;
use repository::seal::SealError;
use repository::{PackId, Repository, RepositoryError, layout};
use storage::{ObjectName, StorageError};

use super::subjects::{Subject, Subjects};
use super::{Run, VerifyError};
use crate::backup::display_path;
use crate::findings::{Finding, is_damage};

/// Bytes of a pack, and what they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece {
    pub(super) chunk: u32,
    pub(super) offset: u32,
    pub(super) length: u64,
    /// The number of the first page as checksums count it, where pages have checksums.
    pub(super) block: Option<u32>,
}

/// What is in each pack of a batch.
pub(super) type Pieces = HashMap<PackId, Vec<Piece>>;

/// Walks through the lists of all backups, each page once, and gathers what is in the packs of `batch`. Damage of the lists
/// themselves is told when `tell` is set.
pub(super) async fn pieces(
    run: &mut Run<'_>,
    subjects: &Subjects,
    batch: &[PackId],
    tell: bool,
) -> Result<Pieces, VerifyError> {
    let mut pieces: Pieces = batch.iter().map(|id| (*id, Vec::new())).collect();
    let mut seen = HashSet::new();
    let mut bad: BTreeMap<String, Broken> = BTreeMap::new();
    for subject in &subjects.backups {
        run.check_stop()?;
        let manifest = match run.repository.manifest(&run.request.cluster, &subject.id).await {
            Ok(manifest) => manifest,
            // Expired since; a damaged one was told of.
            Err(error) if is_damage(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        for page in &manifest.pages {
            run.check_stop()?;
            if is_sound(&bad, page) && !seen.insert((subject.checksums, place_of(page))) {
                continue;
            }
            // Read twice before it is called damaged.
            let mut walked = one_page(&run.repository, &subjects.places, page, subject, &mut pieces).await;
            if walked.as_ref().is_err_and(|broken| is_damage(&broken.source)) {
                walked = one_page(&run.repository, &subjects.places, page, subject, &mut pieces).await;
            }
            match walked {
                Ok(()) => {}
                Err(broken) if is_damage(&broken.source) => note(&mut bad, subject, page, broken),
                Err(broken) => return Err(broken.source.into()),
            }
        }
    }
    for list in pieces.values_mut() {
        list.sort_unstable();
        list.dedup();
    }
    if tell {
        tell_broken(run, bad);
    }
    Ok(pieces)
}

type PagePlace = Option<(PackId, u32, u32)>;

fn place_of(page: &PageRef) -> PagePlace {
    page.extent().ok().map(|at| (at.pack, at.chunk, at.offset))
}

/// A list, or a part of one, that cannot be read.
#[derive(Debug)]
pub(super) struct BrokenList {
    /// Where the files begin that it is about.
    path: Vec<u8>,
    source: RepositoryError,
}

struct Broken {
    what: String,
    backups: Vec<String>,
    places: HashSet<PagePlace>,
    paths: Vec<String>,
}

/// A page that is broken is walked for each backup, so that all of them are named.
fn is_sound(bad: &BTreeMap<String, Broken>, page: &PageRef) -> bool {
    !bad.values().any(|broken| broken.places.contains(&place_of(page)))
}

fn note(bad: &mut BTreeMap<String, Broken>, subject: &Subject, page: &PageRef, broken: BrokenList) {
    let named = object_of(&broken.source).or_else(|| place_of(page).map(|(pack, ..)| layout::pack(pack)));
    let object = named.map_or_else(|| layout::PACKS.to_owned(), |name| name.to_string());
    let known = bad.entry(object).or_insert_with(|| Broken {
        what: broken.source.to_string(),
        backups: Vec::new(),
        places: HashSet::new(),
        paths: Vec::new(),
    });
    known.places.insert(place_of(page));
    let path = display_path(&broken.path);
    if !known.paths.contains(&path) {
        known.paths.push(path);
    }
    if !known.backups.contains(&subject.id) {
        known.backups.push(subject.id.clone());
    }
}

/// The object that an error is about.
fn object_of(error: &RepositoryError) -> Option<ObjectName> {
    match error {
        RepositoryError::Missing { pack, .. } => Some(layout::pack(*pack)),
        RepositoryError::Seal(
            SealError::Form { name }
            | SealError::WrongKind { name }
            | SealError::NotAuthentic { name, .. }
            | SealError::Length { name }
            | SealError::Content { name, .. },
        )
        | RepositoryError::Storage(
            StorageError::NotFound { name }
            | StorageError::Truncated { name, .. }
            | StorageError::TooLarge { name, .. },
        ) => Some(name.clone()),
        _ => None,
    }
}

fn tell_broken(run: &mut Run<'_>, bad: BTreeMap<String, Broken>) {
    for (object, mut broken) in bad {
        broken.backups.sort();
        let what = format!("the file list cannot be read from {}: {}", broken.paths[0], broken.what);
        let lost = format!("files from there on are lost to {}", crate::findings::in_words(&broken.backups));
        let damage = Damage { what: what.clone(), backups: broken.backups.clone() };
        run.report.findings.push(Finding::damage(what, lost).of(&object).hurting(broken.backups));
        run.look.damaged.push((object, damage));
    }
}

/// Takes up what one page of a list says.
async fn one_page(
    repository: &Repository,
    places: &Places,
    page: &PageRef,
    subject: &Subject,
    pieces: &mut Pieces,
) -> Result<(), BrokenList> {
    let broken = |path: &[u8]| {
        let path = path.to_vec();
        move |source| BrokenList { path, source }
    };
    for entry in repository.list_page(page).await.map_err(broken(&page.first_path))? {
        if entry.kind != EntryKind::File {
            continue;
        }
        let first = subject.checksums.and_then(|per_file| block_of(&entry, per_file));
        let spans = entry.size.div_ceil(LEAF_SPAN) as u32;
        for index in 0..spans {
            let extents = repository.span_extents(&entry, index).await.map_err(broken(&entry.path))?;
            let mut at = u64::from(index) * LEAF_SPAN;
            for extent in extents {
                if let Some(why) = misplaced(&extent, at, entry.size, subject.is_logical) {
                    return Err(broken(&entry.path)(RepositoryError::Missing {
                        pack: extent.pack,
                        what: why.to_owned(),
                    }));
                }
                for Extent { pack, chunk, offset, length } in
                    places.of(extent).map_err(broken(&entry.path))?
                {
                    if let Some(list) = pieces.get_mut(&pack) {
                        let block = first.map(|first| first.wrapping_add((at / PAGE as u64) as u32));
                        list.push(Piece { chunk, offset, length, block });
                    }
                    at += length;
                }
            }
        }
    }
    Ok(())
}

/// Each file begins on a page, and so does each of its extents; of a logical backup's file they stand anywhere.
fn misplaced(extent: &Extent, at: u64, size: u64, is_logical: bool) -> Option<&'static str> {
    let ends_inside = at + extent.length < size;
    let aligned = at.is_multiple_of(PAGE as u64) && u64::from(extent.offset).is_multiple_of(PAGE as u64);
    let whole = !ends_inside || extent.length.is_multiple_of(PAGE as u64);
    (!is_logical && (!aligned || !whole)).then_some("page where the list says that one begins")
}

fn block_of(entry: &Entry, per_file: u32) -> Option<u32> {
    if !has_page_checksums(&entry.path) {
        return None;
    }
    first_block(RelationFile::parse(&entry.path)?.segment, per_file)
}

/// A file of a backup with the extents of one span.
pub(super) struct SpanOf {
    pub(super) path: Vec<u8>,
    /// Where the span begins.
    pub(super) from: u64,
    pub(super) first_block: Option<u32>,
    pub(super) extents: Vec<Extent>,
}

/// All spans of a backup that have anything to do with `packs`; lists that cannot be read were told of.
pub(super) async fn spans(
    repository: &Repository,
    manifest: &Manifest,
    subject: &Subject,
    places: &Places,
    packs: &HashSet<PackId>,
) -> Result<Vec<SpanOf>, RepositoryError> {
    let mut found = Vec::new();
    for page in &manifest.pages {
        let entries = match repository.list_page(page).await {
            Err(error) if is_damage(&error) => continue,
            other => other?,
        };
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::File) {
            let first_block = subject.checksums.and_then(|per_file| block_of(entry, per_file));
            let leaves = if let Content::Leaves(leaves) = &entry.content { leaves.len() as u32 } else { 1 };
            for index in 0..leaves {
                let placed = repository.span_extents(entry, index).await.and_then(|extents| {
                    let placed: Result<Vec<_>, _> =
                        extents.into_iter().map(|extent| places.of(extent)).collect();
                    Ok(placed?.concat())
                });
                let extents = match placed {
                    Err(error) if is_damage(&error) => continue,
                    other => other?,
                };
                if extents.iter().any(|extent| packs.contains(&extent.pack)) {
                    let (path, from) = (entry.path.clone(), u64::from(index) * LEAF_SPAN);
                    found.push(SpanOf { path, from, first_block, extents });
                }
            }
        }
    }
    Ok(found)
}
