//! Named packs that a listing shows neither stored nor moved: either they are lost, or the listing lacks what is there.
//!
//! A pack that lacks in a listing of packs is only left alone. But where pages went is known from the listing of `moved/`: of a
//! record that it lacks, the new packs would look as if nobody named them.

use std::collections::HashSet;

use repository::named::Named;
use repository::{PackId, Repository, RepositoryError, layout};
use storage::StorageError;

use super::PruneError;
use super::live::key;
use super::roots::Roots;

impl Roots {
    /// Asks for packs by their names, of which these are the keys. Fails if one of them was moved.
    pub(crate) async fn check_moves(
        &self,
        repository: &Repository,
        unlisted: &HashSet<u64>,
    ) -> Result<(), PruneError> {
        if unlisted.is_empty() {
            return Ok(());
        }
        for id in self.ids_of(repository, unlisted).await? {
            let is_there = repository.stored_size(&layout::pack(id)).await?.is_some();
            if !is_there && repository.moved(id).await?.is_some() {
                return Err(PruneError::Listing { what: format!("the record of where pack {id} was moved") });
            }
        }
        Ok(())
    }

    /// The ids with these keys, by another look at whatever names packs.
    async fn ids_of(
        &self,
        repository: &Repository,
        keys: &HashSet<u64>,
    ) -> Result<HashSet<PackId>, RepositoryError> {
        let mut ids = HashSet::new();
        let mut collect = |named| {
            if let Named::Pack(pack) = named {
                ids.extend(pack.id().ok().filter(|id| keys.contains(&key(*id))));
            }
        };
        for (cluster, backups) in &self.backups {
            for id in backups {
                match repository.for_each_named(cluster, id, &mut collect).await {
                    Err(RepositoryError::Storage(StorageError::NotFound { .. })) => {}
                    other => other?,
                }
            }
        }
        for partial in &self.partials {
            match repository.for_each_named_by_partial(&partial.name, &mut collect).await {
                Err(error) if error.is_damage() => {}
                other => other?,
            }
        }
        for id in self.moved.iter().filter(|id| self.live.contains(**id)) {
            if let Some(moved) = repository.moved(*id).await? {
                ids.extend(moved.packs().into_iter().filter(|to| keys.contains(&key(*to))));
            }
        }
        Ok(ids)
    }
}
