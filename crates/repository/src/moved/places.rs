//! Where the bytes of many extents are, when some of their packs were moved.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{MOVES_MAX, Moved};
use crate::content::Extent;
use crate::layout::{self, PackId};
use crate::repository::{Repository, RepositoryError};

/// The moves of all packs that are gone because they were moved. Holds some 100 KiB for each.
#[derive(Default)]
pub struct Places {
    moves: HashMap<PackId, Arc<Moved>>,
}

impl Places {
    /// Finds out which of `named` packs are gone and were moved, and where those went that their pages went to.
    pub async fn find(
        repository: &Repository,
        named: impl Fn(PackId) -> bool,
    ) -> Result<Self, RepositoryError> {
        let mut places = Self::default();
        let all = repository.moved_ids().await?;
        let mut open: Vec<PackId> = all.iter().copied().filter(|id| named(*id)).collect();
        while let Some(id) = open.pop() {
            let is_there = repository.stored_size(&layout::pack(id)).await?.is_some();
            if is_there || places.moves.contains_key(&id) {
                continue;
            }
            if let Some(moved) = repository.moved(id).await? {
                open.extend(moved.packs().into_iter().filter(|to| all.contains(to)));
                places.moves.insert(id, moved);
            }
        }
        Ok(places)
    }

    /// The packs that the pages of a pack are in now; itself if it was not moved.
    pub fn packs(&self, id: PackId) -> Vec<PackId> {
        let (mut open, mut packs, mut seen) = (vec![id], Vec::new(), HashSet::new());
        while let Some(id) = open.pop() {
            match self.moves.get(&id) {
                Some(moved) if seen.insert(id) => open.extend(moved.packs()),
                // A circle, which nobody but a forger makes.
                Some(_) => {}
                None => packs.push(id),
            }
        }
        packs.sort_unstable();
        packs.dedup();
        packs
    }

    /// Where the bytes of an extent are now, in order.
    pub fn of(&self, extent: Extent) -> Result<Vec<Extent>, RepositoryError> {
        let mut placed = vec![extent];
        for _ in 0..=MOVES_MAX {
            if placed.iter().all(|at| !self.moves.contains_key(&at.pack)) {
                return Ok(placed);
            }
            let forward = |at: &Extent| match self.moves.get(&at.pack) {
                Some(moved) => moved.forward(*at),
                None => Ok(vec![*at]),
            };
            placed = placed.iter().map(forward).collect::<Result<Vec<_>, _>>()?.concat();
        }
        Err(RepositoryError::Missing { pack: extent.pack, what: "an end of its moves".into() })
    }
}
