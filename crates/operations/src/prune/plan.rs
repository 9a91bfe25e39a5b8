//! What to prune: everything that would be done, with the reason of each.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use repository::mark::Mark;
use repository::{PackId, Repository, RepositoryError, layout};
use serde::Serialize;
use storage::ObjectName;

use super::live::key;
use super::marked::{Marked, MarkedPacks, is_void};
use super::roots::Roots;
use super::usage::{Usage, Wanted};
use super::{PruneError, PruneRequest};

/// Packs whose tables are looked into in one run, those first of which the least is named.
const TABLES: usize = 4096;
/// A pack of which a backup names so many bytes for each stored one is not looked into: it compresses well, and little
/// would be gained.
const WELL_USED: u64 = 2;

/// One pack, as people and programs see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedPack {
    /// Its id.
    #[serde(serialize_with = "text")]
    pub id: PackId,
    /// Its stored bytes.
    pub bytes: u64,
}

/// A pack whose named pages are to be moved.
#[derive(Clone, Serialize)]
pub struct RepackedPack {
    /// Its id.
    #[serde(serialize_with = "text")]
    pub id: PackId,
    /// Its stored bytes.
    pub bytes: u64,
    /// Bytes of these that are named, about.
    pub named_bytes: u64,
    #[serde(skip)]
    pub(super) usage: Usage,
}

/// What a run of prune would do.
#[derive(Clone, Default, Serialize)]
pub struct Plan {
    /// Packs that there are.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that nobody names, to be marked now.
    pub mark_dead: Vec<PlannedPack>,
    /// Packs whose named pages stand elsewhere, to be marked now.
    pub mark_moved: Vec<PlannedPack>,
    /// Packs whose named pages are to be moved now.
    pub repack: Vec<RepackedPack>,
    /// Packs that were marked long enough ago and that still nobody names.
    pub delete_dead: Vec<PlannedPack>,
    /// The same of packs whose named pages stand elsewhere.
    pub delete_moved: Vec<PlannedPack>,
    /// Packs that are marked and must wait.
    pub waiting: Vec<PlannedPack>,
    /// Packs that could go, and are locked.
    pub locked: Vec<PlannedPack>,
    /// When the first of these locks ends.
    pub locked_until: Option<Timestamp>,
    /// Packs that nobody names and an operation at work may have stored.
    pub maybe_new: Vec<PlannedPack>,
    /// When the first of those that wait may go, if nothing but time keeps them.
    pub next: Option<Timestamp>,
    /// The oldest operation at work.
    pub at_work: Option<String>,
    /// Objects that tell nothing any more: records of attempts at backups, claims, marks.
    #[serde(serialize_with = "texts")]
    pub ended: Vec<ObjectName>,
    /// What could not be looked into, for people.
    pub warnings: Vec<String>,
    #[serde(skip)]
    pub(super) backups: Vec<String>,
    /// Packs that had been moved before.
    #[serde(skip)]
    pub(super) moved: Vec<PackId>,
    /// By the storage's clock.
    #[serde(skip)]
    pub(super) made: Option<Timestamp>,
    #[serde(skip)]
    pub(super) marks: Vec<Mark>,
}

fn text<S: serde::Serializer>(id: &PackId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn texts<S: serde::Serializer>(names: &[ObjectName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(ToString::to_string))
}

impl Plan {
    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let packs = [&self.mark_dead, &self.mark_moved, &self.delete_dead, &self.delete_moved];
        packs.iter().all(|packs| packs.is_empty()) && self.repack.is_empty() && self.ended.is_empty()
    }
}

/// Finds out what to prune. Changes nothing.
pub async fn plan(repository: &Arc<Repository>, request: &PruneRequest) -> Result<Plan, PruneError> {
    let now = repository.storage_clock().await?;
    let marks = repository.marks().await?;
    let roots = Roots::read(repository, &marks, now).await?.add_moved(repository).await?;
    let mut look = Look::new(&roots, &marks, request, now);
    look.packs(repository).await?;
    look.choose(repository, request).await?;
    look.locks(repository, now.unwrap_or_else(Timestamp::now)).await?;
    Ok(look.finish(&roots, marks))
}

struct Look<'l> {
    roots: &'l Roots,
    marked: MarkedPacks,
    moved: HashSet<PackId>,
    /// Packs younger than this may be of an operation at work.
    at_work_since: Option<Timestamp>,
    candidates: BinaryHeap<(u64, PackId, u64)>,
    plan: Plan,
}

impl<'l> Look<'l> {
    fn new(roots: &'l Roots, marks: &[Mark], request: &PruneRequest, now: Option<Timestamp>) -> Self {
        let grace = request.grace();
        let oldest = roots.at_work.iter().min_by_key(|claim| claim.made);
        let next = marks.iter().filter_map(|mark| mark.made?.checked_add(grace).ok());
        let next = next.filter(|ripe| now.is_some_and(|now| *ripe > now)).min();
        Self {
            roots,
            marked: MarkedPacks::of(marks, roots, grace, now),
            moved: roots.moved.iter().copied().collect(),
            at_work_since: oldest.and_then(|claim| claim.made),
            candidates: BinaryHeap::new(),
            plan: Plan {
                next,
                at_work: oldest.map(|claim| claim.backup.clone()),
                backups: roots.names(),
                moved: roots.moved.clone(),
                made: now,
                ..Plan::default()
            },
        }
    }

    /// Looks at every pack, a 256th of them at a time.
    async fn packs(&mut self, repository: &Repository) -> Result<(), PruneError> {
        let (mut there, mut unlisted) = (HashSet::new(), HashSet::new());
        for first in 0..=u8::MAX {
            let mut listed = HashSet::new();
            let entries = repository.storage().list(&layout::packs_of(first)).await;
            for entry in entries.map_err(RepositoryError::from)? {
                let Some(id) = layout::parse_pack(entry.name.as_str()) else { continue };
                listed.insert(key(id));
                self.plan.packs += 1;
                self.plan.bytes += entry.size;
                if self.moved.contains(&id) {
                    there.insert(id);
                }
                self.pack(PlannedPack { id, bytes: entry.size }, entry.modified);
            }
            unlisted.extend(self.roots.live.lacking(first, &listed));
        }
        for id in &self.moved {
            unlisted.remove(&key(*id));
        }
        self.roots.check_moves(repository, &unlisted).await?;
        // Of what was moved and is gone itself, the record goes when nobody names it.
        for id in self.moved.iter().filter(|id| !there.contains(id)).copied().collect::<Vec<_>>() {
            if !self.roots.live.contains(id) {
                self.pack(PlannedPack { id, bytes: 0 }, None);
            }
        }
        Ok(())
    }

    fn pack(&mut self, pack: PlannedPack, stored: Option<Timestamp>) {
        let plan = &mut self.plan;
        match (self.roots.live.named(pack.id), self.moved.contains(&pack.id)) {
            (None, _) => match self.marked.dead.get(&pack.id) {
                Some(Marked::Ripe) => plan.delete_dead.push(pack),
                Some(Marked::Waits) => plan.waiting.push(pack),
                None if stored.is_some() && self.at_work_since.is_some_and(|since| stored >= Some(since)) => {
                    plan.maybe_new.push(pack);
                }
                None => plan.mark_dead.push(pack),
            },
            (Some(_), true) => match self.marked.moved.get(&pack.id) {
                Some(Marked::Ripe) => plan.delete_moved.push(pack),
                Some(Marked::Waits) => plan.waiting.push(pack),
                None => plan.mark_moved.push(pack),
            },
            (Some(named), false) if named < pack.bytes * WELL_USED => {
                let used = named * 1000 / pack.bytes.max(1);
                self.candidates.push((used, pack.id, pack.bytes));
                if self.candidates.len() > TABLES {
                    self.candidates.pop();
                }
            }
            (Some(_), false) => {}
        }
    }

    /// Chooses packs to be moved, those first that free the most for each byte moved.
    async fn choose(
        &mut self,
        repository: &Arc<Repository>,
        request: &PruneRequest,
    ) -> Result<(), PruneError> {
        if request.max_repack == 0 || self.candidates.is_empty() {
            return Ok(());
        }
        let mut wanted =
            Wanted { moved: self.moved.iter().map(|id| (*id, false)).collect(), ..Wanted::default() };
        let mut sizes = HashMap::new();
        for (_, id, bytes) in std::mem::take(&mut self.candidates) {
            match repository.table(id, None).await {
                // Some pages compress better than others: what their part is of the stored bytes, only the walk tells.
                Ok(table) => {
                    wanted.usage.insert(id, Usage::none_of(table));
                    sizes.insert(id, bytes);
                }
                Err(error) if error.is_damage() => {
                    self.plan.warnings.push(format!("pack {id} is left alone: {error}"))
                }
                Err(error) => return Err(error.into()),
            }
        }
        if wanted.usage.is_empty() {
            return Ok(());
        }
        let found = match wanted.walk(repository, self.roots).await {
            Ok(found) => found,
            Err(error) if error.is_damage() => {
                self.plan.warnings.push(format!("no pack is moved while a file list is damaged: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let worth = |(id, usage): (PackId, Usage)| {
            let (bytes, named_bytes) = (sizes[&id], usage.stored());
            let worth = named_bytes * 100 < bytes * u64::from(request.repack_below);
            worth.then_some(RepackedPack { id, bytes, named_bytes, usage })
        };
        let mut chosen: Vec<_> = found.usage.into_iter().filter_map(worth).collect();
        chosen.sort_by_key(|pack| (pack.named_bytes * 1000 / pack.bytes.max(1), pack.id));
        let mut moved = 0;
        chosen.retain(|pack| {
            moved += pack.named_bytes;
            moved <= request.max_repack
        });
        self.plan.repack = chosen;
        Ok(())
    }

    /// Leaves out of what could go what is locked.
    async fn locks(&mut self, repository: &Repository, now: Timestamp) -> Result<(), PruneError> {
        let plan = &mut self.plan;
        for (packs, with_record) in [(&mut plan.delete_dead, true), (&mut plan.delete_moved, false)] {
            let locks = locks(repository, packs, with_record, now).await?;
            let mut locks = locks.into_iter();
            packs.retain(|pack| {
                let Some(until) = locks.next().flatten() else { return true };
                plan.locked.push(pack.clone());
                plan.locked_until = Some(plan.locked_until.map_or(until, |first| first.min(until)));
                false
            });
        }
        Ok(())
    }

    fn finish(mut self, roots: &Roots, marks: Vec<Mark>) -> Plan {
        let over =
            roots.partials.iter().filter(|partial| partial.is_over).map(|partial| partial.name.clone());
        self.plan.ended.extend(over);
        self.plan.ended.extend(roots.ended_claims.iter().cloned());
        // A mark has told everything when what it named is gone, or named again. One of which anything was named again tells
        // nothing of what is unnamed later, whose time begins anew: the rest of it is marked anew, too.
        let plan = &self.plan;
        let lists = [&plan.delete_dead, &plan.delete_moved, &plan.waiting, &plan.locked];
        let pending: HashSet<PackId> = lists.into_iter().flatten().map(|pack| pack.id).collect();
        let is_told =
            |mark: &&Mark| mark.note.dead().chain(mark.note.moved()).all(|id| !pending.contains(&id));
        let is_over = |mark: &&Mark| is_void(mark, roots) || is_told(mark);
        self.plan.ended.extend(marks.iter().filter(is_over).map(|mark| mark.name.clone()));
        self.plan.marks = marks;
        self.plan
    }
}

/// Until when packs are locked at `now`, each `with_record` of where it was moved to: what goes together waits for each other.
pub(super) async fn locks(
    repository: &Repository,
    packs: &[PlannedPack],
    with_record: bool,
    now: Timestamp,
) -> Result<Vec<Option<Timestamp>>, RepositoryError> {
    let mut locks = repository.locks(packs.iter().map(|pack| layout::pack(pack.id)), now).await?;
    if with_record {
        let records = repository.locks(packs.iter().map(|pack| layout::moved(pack.id)), now).await?;
        locks.iter_mut().zip(records).for_each(|(lock, record)| *lock = (*lock).max(record));
    }
    Ok(locks)
}
