//! The last judgement: the sun is out, and what the model says must hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use operations::monitor::Silent;
use operations::prune::{self, PruneReport, PruneRequest};
use repository::content::Extent;
use repository::manifest::Manifest;
use repository::{ClusterName, PackId, Repository, layout};
use tokio::time::sleep;

use crate::backup::{entries_of, extents};
use crate::care::allow_pruning;
use crate::host::{DAY, segment_name};
use crate::link::Link;
use crate::model::Model;
use crate::reader::Reader;
use crate::world::World;

/// Writes down what is broken.
pub async fn everything(world: &World) {
    let pruned = prune_to_the_end(world).await;
    let mut model = std::mem::take(&mut *world.model.lock().unwrap());
    let repository = world.repository(world.store.memory.clone(), None, true);
    let broken = Judge { world, repository: &repository, model: &model }.look().await;
    model.broken.extend(pruned.err().into_iter().chain(broken));
    let unplanned = world.store.unplanned.lock().unwrap();
    model.broken.extend(unplanned.iter().map(|name| format!("{name} was deleted, and no plan lists it")));
    *world.model.lock().unwrap() = model;
}

/// Prunes when every claim and attempt of the dead is over: what is marked goes at the next time, and then nothing is left.
async fn prune_to_the_end(world: &World) -> Result<(), String> {
    sleep(15 * DAY).await;
    let link = Arc::new(Link::calm(world.store.clone()));
    let repository = Arc::new(world.repository(link, None, true));
    let request = PruneRequest::default();
    for run in 0.. {
        let plan = prune::plan(&repository, &request).await.map_err(|error| format!("prune: {error}"))?;
        if plan.is_empty() {
            break;
        }
        if run == 6 {
            let plan = serde_json::to_string(&plan).unwrap();
            return Err(format!("prune has always something to do: {plan}"));
        }
        allow_pruning(world, &plan);
        let done = prune::execute(&repository, &plan, &request, "the last", &Silent).await;
        // A pack of which a page is named that was not moved is looked at each time, and stays.
        if done.map_err(|error| format!("prune: {error}"))? == PruneReport::default() {
            break;
        }
        sleep(3 * DAY).await;
    }
    Ok(())
}

struct Judge<'j> {
    world: &'j World,
    repository: &'j Repository,
    model: &'j Model,
}

impl Judge<'_> {
    async fn look(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (mut named, mut claimed, mut places) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for cluster in &self.world.clusters {
            let manifests = self.backups(cluster, &mut broken).await;
            self.chain(cluster, &mut broken).await;
            self.wal(cluster, &manifests, &mut broken).await;
            for manifest in &manifests {
                places.extend(places_of(self.repository, manifest).await);
            }
            named.extend(manifests.iter().flat_map(|one| one.packs.iter().map(|pack| pack.id().unwrap())));
            claimed.extend(manifests.iter().map(|manifest| layout::claim(cluster, &manifest.id)));
        }
        let needed = self.needed(places).await;
        self.remains(named, &needed, &claimed, &mut broken).await;
        broken
    }

    /// Every backup that was acknowledged and not expired is there, and each that is there is what was given.
    async fn backups(&self, cluster: &ClusterName, broken: &mut Vec<String>) -> Vec<Manifest> {
        let (mut reader, mut manifests) = (Reader::new(self.repository), Vec::new());
        let ids = self.repository.backup_ids(cluster).await.unwrap();
        let acknowledged = self.model.acknowledged.iter().filter(|(owner, _)| owner == cluster);
        for key in acknowledged.clone() {
            if !ids.contains(&key.1) && !self.model.expired.contains(key) {
                broken.push(format!("backup {} was acknowledged, and is gone without being expired", key.1));
            }
        }
        for id in ids {
            let manifest = match self.repository.manifest(cluster, &id).await {
                Ok(manifest) => manifest,
                Err(error) => {
                    broken.push(format!("manifest {id}: {error}"));
                    continue;
                }
            };
            match reader.files(&manifest).await {
                Ok(files) if files == self.model.begun[&(cluster.clone(), id.clone())] => {}
                Ok(_) => broken.push(format!("backup {id} has other files than were backed up")),
                Err(error) => broken.push(format!("backup {id}: {error}")),
            }
            manifests.push(manifest);
        }
        let kept = acknowledged.count().min(self.world.keep as usize);
        if manifests.len() < kept {
            broken.push(format!("{cluster} has {} backups, and {kept} were to be kept", manifests.len()));
        }
        manifests
    }

    /// Nobody may take for stolen what was expired.
    async fn chain(&self, cluster: &ClusterName, broken: &mut Vec<String>) {
        let listed = self.repository.backups(cluster).await.unwrap();
        let expired = self.repository.expired(cluster).await.unwrap();
        let findings = self.repository.check_chain(cluster, &listed, &expired);
        // A name that the storage does not keep may be written twice.
        let is_ours = |text: &String| self.world.create_only() || !text.contains("is not the one");
        broken.extend(findings.iter().map(ToString::to_string).filter(is_ours));
    }

    /// Acknowledged WAL from the window's first backup on is there, and other WAL unless a plan listed it.
    async fn wal(&self, cluster: &ClusterName, manifests: &[Manifest], broken: &mut Vec<String>) {
        // One that is noted as expired, and whose expiry was broken off, is none of the window's.
        let expired = self.repository.expired(cluster).await.unwrap().backups;
        let manifests = manifests.iter().filter(|manifest| !expired.contains(&manifest.id));
        let place = |manifest: &Manifest| self.model.place[&(cluster.clone(), manifest.id.clone())];
        let mut in_order: Vec<&Manifest> = manifests.collect();
        in_order.sort_by_key(|manifest| (manifest.sequence, &manifest.id));
        let window = in_order.iter().rev().take(self.world.keep as usize);
        let horizon = window.map(|manifest| place(manifest)).min().unwrap_or(0);
        for ((_, segment), content) in self.model.wal.iter().filter(|((owner, _), _)| owner == cluster) {
            let was_expired = self.model.expired_wal.contains(&(cluster.clone(), *segment));
            let needed = *segment >= horizon;
            match self.repository.fetch_wal(cluster, &segment_name(*segment)).await {
                Ok((_, found)) if found == *content => {}
                Ok(_) if was_expired && !needed => {}
                Ok(_) => broken.push(format!("segment {segment} of {cluster} has other bytes")),
                Err(_) if was_expired && !needed => {}
                Err(error) => broken.push(format!("segment {segment} of {cluster}: {error}")),
            }
        }
    }

    /// Packs that were moved without a page that is named: it was dead then, and a backup at work named it again.
    async fn needed(&self, places: Vec<Extent>) -> BTreeSet<PackId> {
        let (mut needed, mut open) = (BTreeSet::new(), places);
        while let Some(place) = open.pop() {
            let Some(moved) = self.repository.moved(place.pack).await.unwrap() else { continue };
            match moved.forward(place) {
                Ok(forwarded) => open.extend(forwarded),
                Err(_) => drop(needed.insert(place.pack)),
            }
        }
        needed
    }

    /// Nothing is left that nobody names: no pack, no record of a move, no mark, no attempt, no claim but of a backup that is there.
    async fn remains(
        &self,
        mut named: BTreeSet<PackId>,
        needed: &BTreeSet<PackId>,
        claimed: &BTreeSet<storage::ObjectName>,
        broken: &mut Vec<String>,
    ) {
        let moved: BTreeSet<PackId> = self.repository.moved_ids().await.unwrap().into_iter().collect();
        let mut open: Vec<PackId> = named.iter().copied().collect();
        while let Some(id) = open.pop() {
            let moved = if moved.contains(&id) { self.repository.moved(id).await.unwrap() } else { None };
            let targets = moved.iter().flat_map(|moved| moved.packs());
            open.extend(targets.filter(|target| named.insert(*target)));
        }
        for id in moved.difference(&named) {
            broken.push(format!("moved pack {id} is named by nobody"));
        }
        for name in self.world.store.memory.names() {
            let claims = self.world.clusters.iter().map(layout::claims);
            let partials = self.world.clusters.iter().map(layout::partials);
            let below = |prefix: &str| name.as_str().starts_with(prefix);
            let pack = layout::parse_pack(name.as_str());
            let is_idle = |id| !named.contains(&id) || moved.contains(&id) && !needed.contains(&id);
            let is_left = pack.is_some_and(is_idle)
                || below(layout::MARKS) && needed.is_empty()
                || partials.into_iter().any(|prefix| below(&prefix))
                || claims.into_iter().any(|prefix| below(&prefix)) && !claimed.contains(&name);
            if is_left {
                broken.push(format!("{name} is left over"));
            }
        }
    }
}

/// Everything that a manifest and its list name.
async fn places_of(repository: &Repository, manifest: &Manifest) -> Vec<Extent> {
    let mut places: Vec<Extent> = manifest.pages.iter().map(|page| page.extent().unwrap()).collect();
    for entry in entries_of(repository, manifest).await.unwrap_or_default() {
        places.extend(extents(&entry));
    }
    places
}
