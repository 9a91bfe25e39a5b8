//! Each pack that is named: whether it is there, in the size that its manifest says.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use repository::backups::Listed;
use repository::moved::StoredPack;
use repository::{PackId, Repository, RepositoryError, layout};

use super::manifests::PackUse;
use super::{CheckError, CheckReport};
use crate::findings::{Finding, in_words};

/// Small requests under way at once.
const AT_ONCE: usize = 8;

/// Asks for the packs by the first byte of their ids, so that no more than a 256th of the listing is in memory.
pub(super) async fn check(
    repository: &Repository,
    mut uses: Vec<PackUse>,
    listed: &[Listed],
    report: &mut CheckReport,
) -> Result<(), CheckError> {
    uses.sort_unstable();
    let groups: Vec<&[PackUse]> = uses.chunk_by(|a, b| a.id.0[0] == b.id.0[0]).collect();
    let look = |group| doubtful(repository, group);
    let mut coming = stream::iter(groups.into_iter().map(look)).buffered(AT_ONCE);
    let mut doubtful = Vec::new();
    while let Some(found) = coming.next().await {
        let (count, found) = found?;
        report.packs += count;
        doubtful.extend(found);
    }
    let judge = |group| judged(repository, group, listed);
    let found: Vec<Option<Finding>> =
        stream::iter(doubtful.into_iter().map(judge)).buffered(AT_ONCE).try_collect().await?;
    report.findings.extend(found.into_iter().flatten());
    Ok(())
}

/// How many different packs a group has, and the uses of those that the listing does not show as they should be.
async fn doubtful<'u>(
    repository: &Repository,
    group: &'u [PackUse],
) -> Result<(usize, Vec<&'u [PackUse]>), RepositoryError> {
    let entries = repository.storage().list(&layout::packs_of(group[0].id.0[0])).await?;
    let id = |entry: &storage::Entry| layout::parse_pack(entry.name.as_str());
    let sizes: HashMap<PackId, u64> =
        entries.iter().filter_map(|entry| Some((id(entry)?, entry.size))).collect();
    let packs: Vec<&[PackUse]> = group.chunk_by(|a, b| a.id == b.id).collect();
    let is_right = |uses: &&[PackUse]| uses.iter().all(|one| sizes.get(&one.id) == Some(&one.size));
    Ok((packs.len(), packs.into_iter().filter(|uses| !is_right(uses)).collect()))
}

/// What the storage itself says of a pack; a listing alone proves nothing.
async fn judged(
    repository: &Repository,
    uses: &[PackUse],
    listed: &[Listed],
) -> Result<Option<Finding>, RepositoryError> {
    let (id, size) = (uses[0].id, uses[0].size);
    let (of, what) = match repository.stored_pack(id).await? {
        StoredPack::As(found) if found == size => return Ok(None),
        StoredPack::Moved => return Ok(None),
        StoredPack::As(found) => (id, format!("the pack has {found} bytes instead of {size}")),
        StoredPack::No(lost) if lost != id => {
            (lost, format!("the pack is missing, and pages of pack {id} were moved to it"))
        }
        StoredPack::No(_) => (id, "the pack is missing".to_owned()),
    };
    let names: BTreeSet<String> =
        uses.iter().filter_map(|one| Some(listed.get(one.backup as usize)?.id.clone())).collect();
    let names: Vec<String> = names.into_iter().collect();
    let lost =
        format!("files in it cannot be restored from {}; `pgkeep verify` names them", in_words(&names));
    Ok(Some(Finding::damage(what, lost).of(layout::pack(of)).hurting(names)))
}
