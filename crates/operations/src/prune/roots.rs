//! What names packs: every backup, every attempt at one, and what is known of operations at work.
//!
//! A listing may lack what is there. So each backup is known in two ways at least: a listing of manifests shows it, its
//! claim announced it and stays as long as it does, its successor names it as its previous one, a pin keeps it, or an earlier
//! run of prune saw it. One that any of these tells of is asked for by its name, and only a proven absence lets it go.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use repository::claim::Claim;
use repository::mark::Mark;
use repository::named::Named;
use repository::{ClusterName, PackId, Repository, RepositoryError, layout};
use storage::{ObjectName, StorageError};

use super::PruneError;
use super::live::{LiveSet, key, kib};

/// An attempt at a backup, of which so long nothing came, is no longer taken up.
const PARTIAL_TIME: jiff::SignedDuration = jiff::SignedDuration::from_hours(14 * 24);

/// A partial manifest that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partial {
    pub(crate) name: ObjectName,
    /// Nobody will take it up any more.
    pub(crate) is_over: bool,
}

/// What names packs, and the packs named.
pub(crate) struct Roots {
    /// Every backup that exists, by cluster.
    pub(crate) backups: BTreeMap<ClusterName, BTreeSet<String>>,
    pub(crate) partials: Vec<Partial>,
    /// Claims of operations that may be at work.
    pub(crate) at_work: Vec<Claim>,
    /// Claims that tell nothing any more.
    pub(crate) ended_claims: Vec<ObjectName>,
    /// Packs whose named pages were moved.
    pub(crate) moved: Vec<PackId>,
    pub(crate) live: LiveSet,
}

impl Roots {
    /// Looks at everything that names packs. What is damaged may name any pack: then there is nothing to prune.
    pub(crate) async fn read(
        repository: &Repository,
        marks: &[Mark],
        now: Option<Timestamp>,
    ) -> Result<Self, PruneError> {
        let mut roots = Self {
            backups: BTreeMap::new(),
            partials: Vec::new(),
            at_work: Vec::new(),
            ended_claims: Vec::new(),
            moved: Vec::new(),
            live: LiveSet::default(),
        };
        let seen = marks.iter().flat_map(|mark| &mark.note.backups).filter_map(|backup| {
            let (cluster, id) = backup.split_once('/')?;
            Some((ClusterName::new(cluster).ok()?, id.to_owned())).filter(|_| layout::is_backup_id(id))
        });
        let mut told: BTreeMap<ClusterName, BTreeSet<String>> = BTreeMap::new();
        for (cluster, id) in seen {
            told.entry(cluster).or_default().insert(id);
        }
        for cluster in crate::catalogue::cluster_names(repository).await? {
            told.entry(cluster).or_default();
        }
        for (cluster, told) in told {
            roots.cluster(repository, &cluster, told, now).await?;
        }
        Ok(roots)
    }

    /// Adds the packs that named pages were moved to.
    pub(crate) async fn add_moved(mut self, repository: &Repository) -> Result<Self, PruneError> {
        self.moved = repository.moved_ids().await?;
        let mut open = self.moved.clone();
        loop {
            let (named, unnamed): (Vec<_>, Vec<_>) = open.into_iter().partition(|id| self.live.contains(*id));
            for id in &named {
                if let Some(moved) = repository.moved(*id).await? {
                    let bytes = moved.bytes_by_pack().into_iter();
                    self.live.add(&mut bytes.map(|(pack, bytes)| (key(pack), kib(bytes))).collect());
                }
            }
            // What was moved once may have been moved again.
            if named.is_empty() || unnamed.is_empty() {
                return Ok(self);
            }
            open = unnamed;
        }
    }

    async fn cluster(
        &mut self,
        repository: &Repository,
        cluster: &ClusterName,
        mut told: BTreeSet<String>,
        now: Option<Timestamp>,
    ) -> Result<(), PruneError> {
        // Claims before manifests: a backup that ends in between is seen by its manifest.
        let claims = repository.claims(cluster).await?;
        let listed: BTreeSet<String> = repository.backup_ids(cluster).await?.into_iter().collect();
        told.extend(claims.iter().map(|claim| claim.backup.clone()));
        told.extend(repository.pins(cluster).await?.into_iter().map(|pin| pin.backup));
        let mut open: Vec<String> = listed.union(&told).cloned().collect();
        let mut backups = BTreeSet::new();
        let mut asked = BTreeSet::new();
        while let Some(id) = open.pop() {
            if id.is_empty() || !asked.insert(id.clone()) {
                continue;
            }
            if let Some(previous) = self.backup(repository, cluster, &id).await? {
                if !listed.contains(&id) {
                    tracing::warn!(backup = %id, "a backup is there that the storage's listing lacks");
                }
                backups.insert(id);
                open.push(previous);
            }
        }
        let newest = backups.last().cloned();
        for claim in claims.into_iter().filter(|claim| !backups.contains(&claim.backup)) {
            if claim.may_be_alive(now) && !repository.is_expired(cluster, &claim).await? {
                self.at_work.push(claim);
            } else {
                self.ended_claims.push(layout::claim(cluster, &claim.backup));
            }
        }
        self.partials(repository, cluster, newest.as_deref(), now).await?;
        self.backups.insert(cluster.clone(), backups);
        Ok(())
    }

    /// Adds what a backup names; returns the backup before it, or `None` if it is proven that there is none of this id.
    async fn backup(
        &mut self,
        repository: &Repository,
        cluster: &ClusterName,
        id: &str,
    ) -> Result<Option<String>, PruneError> {
        let (mut packs, mut previous) = (Packs::default(), String::new());
        let read = repository.for_each_named(cluster, id, |named| match named {
            Named::Previous(id) => previous = id,
            Named::Pack(pack) => packs.push(&pack),
            Named::Page(_) => {}
        });
        match read.await {
            Err(RepositoryError::Storage(StorageError::NotFound { .. })) => return Ok(None),
            Err(source) if source.is_damage() => {
                return Err(PruneError::Unreadable {
                    what: format!("backup {id} of cluster {cluster}"),
                    source,
                });
            }
            other => other?,
        }
        self.live.add(&mut packs.finish()?);
        Ok(Some(previous))
    }

    async fn partials(
        &mut self,
        repository: &Repository,
        cluster: &ClusterName,
        newest: Option<&str>,
        now: Option<Timestamp>,
    ) -> Result<(), PruneError> {
        let prefix = layout::partials(cluster);
        for entry in repository.storage().list(&prefix).await.map_err(RepositoryError::from)? {
            let id = entry.name.as_str()[prefix.len()..].split('/').next().unwrap_or_default();
            let is_old =
                entry.modified.zip(now).is_some_and(|(made, now)| now.duration_since(made) > PARTIAL_TIME);
            let is_over = newest.is_some_and(|newest| id <= newest) || is_old;
            let mut packs = Packs::default();
            let read = repository.for_each_named_by_partial(&entry.name, |named| {
                if let Named::Pack(pack) = named {
                    packs.push(&pack);
                }
            });
            match read.await {
                Ok(()) => self.live.add(&mut packs.finish()?),
                Err(RepositoryError::Storage(StorageError::NotFound { .. })) => {}
                // The next backup passes it over as well, so nothing will ever be named because of it.
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "a partial manifest is passed over")
                }
                Err(error) => return Err(error.into()),
            }
            self.partials.push(Partial { name: entry.name, is_over });
        }
        Ok(())
    }

    /// Every backup as `cluster/id`.
    pub(crate) fn names(&self) -> Vec<String> {
        let names = |(cluster, ids): (&ClusterName, &BTreeSet<String>)| {
            ids.iter().map(|id| format!("{cluster}/{id}")).collect::<Vec<_>>()
        };
        self.backups.iter().flat_map(names).collect()
    }
}

/// The packs of one manifest.
#[derive(Default)]
struct Packs {
    packs: Vec<(u64, u32)>,
    unreadable: Option<repository::content::ContentError>,
}

impl Packs {
    fn push(&mut self, pack: &repository::manifest::PackRef) {
        match pack.id() {
            Ok(id) => self.packs.push((key(id), kib(pack.live))),
            Err(error) => self.unreadable = Some(error),
        }
    }

    fn finish(self) -> Result<Vec<(u64, u32)>, RepositoryError> {
        let place = "manifest".to_owned();
        self.unreadable.map_or(Ok(self.packs), |source| Err(RepositoryError::Content { place, source }))
    }
}
