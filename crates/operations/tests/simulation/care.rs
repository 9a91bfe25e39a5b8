//! Expire and prune as hosts run them: the plan first, which says what may go, and after a while what it lists.

use std::sync::Arc;
use std::time::Duration;

use operations::expire::{self, ExpireError, ExpireRequest};
use operations::monitor::Silent;
use operations::prune::{self, PruneError, PruneRequest};
use operations::reachable::ReachableError;
use operations::retention::{Keep, Policy};
use pg::wal::FileName;
use rand::Rng as _;
use repository::archive::ArchiveError;
use repository::{ClusterName, Repository, layout};
use storage::ObjectName;
use tokio::time::sleep;

use crate::host::{Ended, Host};
use crate::world::World;

impl Host {
    pub async fn expire(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        let keep = Keep::Backups(world.keep);
        let request = ExpireRequest {
            cluster: self.cluster.clone(),
            policy: Policy { keep, daily: 0, weekly: 0, monthly: 0, yearly: 0, at_least: 1 },
            host_clock: self.now(world),
            damaged: expire::Damaged::new(),
            holder: format!("host {}", self.number),
            patience: Duration::from_secs(self.random.random_range(0..1_500)),
        };
        let plan = match expire::plan(repository, &request).await {
            Ok(plan) => plan,
            Err(error) => return self.not_expired(world, error),
        };
        world.tell(self.number, || {
            let lines = plan.backups.iter().map(|line| format!("{} keep {}", line.id, line.keep));
            let wal: Vec<_> = plan.wal.iter().map(|line| &line.name).collect();
            format!("{} expires: {:?}, WAL {wal:?}", self.cluster, lines.collect::<Vec<_>>())
        });
        allow_expiring(world, &self.cluster, &plan);
        sleep(Duration::from_millis(self.random.random_range(0..600_000))).await;
        match expire::execute(repository, &plan, &request).await {
            Err(error) => self.not_expired(world, error),
            Ok(report) => {
                world.tell(self.number, || format!("expired: {report:?}"));
                let mut model = world.model.lock().unwrap();
                model.counts.expired += report.backups_expired.len() as u64;
                model.counts.expired_wal += report.wal_objects as u64;
                Ok(())
            }
        }
    }

    fn not_expired(&self, world: &World, error: ExpireError) -> Ended {
        match error {
            ExpireError::Repository(error) | ExpireError::Reachable(ReachableError::Repository(error)) => {
                return Err(error);
            }
            ExpireError::Reachable(ReachableError::Archive {
                source: ArchiveError::Repository(error),
                ..
            }) => return Err(error),
            ExpireError::Lease(error) => return self.without_lease(world, error),
            ExpireError::Listing { .. } => world.model.lock().unwrap().counts.failures += 1,
            ExpireError::Changed { .. } => world.model.lock().unwrap().counts.changed += 1,
            other => world.model.lock().unwrap().broken.push(format!("host {}: {other}", self.number)),
        }
        Ok(())
    }

    pub async fn prune(&mut self, world: &World, repository: &Arc<Repository>) -> Ended {
        let request = PruneRequest::default();
        let plan = match prune::plan(repository, &request).await {
            Ok(plan) => plan,
            Err(error) => return self.not_pruned(world, error),
        };
        world.tell(self.number, || format!("prunes: {}", serde_json::to_string(&plan).unwrap()));
        allow_pruning(world, &plan);
        let held = plan.at_work.is_some() && !plan.waiting.is_empty();
        world.model.lock().unwrap().counts.waited += u64::from(held);
        let longest = if self.random.random_bool(0.8) { 600_000 } else { 12 * 3_600_000 };
        sleep(Duration::from_millis(self.random.random_range(0..longest))).await;
        let holder = format!("host {}", self.number);
        match prune::execute(repository, &plan, &request, &holder, &Silent).await {
            Err(error) => self.not_pruned(world, error),
            Ok(report) => {
                world.tell(self.number, || format!("pruned: {report:?}"));
                let mut model = world.model.lock().unwrap();
                model.counts.marked += report.marked_packs;
                model.counts.moved += report.moved_packs;
                model.counts.pruned += report.deleted_packs;
                Ok(())
            }
        }
    }

    fn not_pruned(&self, world: &World, error: PruneError) -> Ended {
        match error {
            PruneError::Lease(error) => self.without_lease(world, error),
            PruneError::Listing { .. } => {
                world.model.lock().unwrap().counts.failures += 1;
                Ok(())
            }
            PruneError::Repository(error) | PruneError::Unreadable { source: error, .. } => Err(error),
            PruneError::Codec(error) => {
                world.model.lock().unwrap().broken.push(format!("host {}: {error}", self.number));
                Ok(())
            }
        }
    }
}

/// What a plan of expire lists may go from now on, and nothing else.
fn allow_expiring(world: &World, cluster: &ClusterName, plan: &expire::Plan) {
    let mut model = world.model.lock().unwrap();
    for line in plan.expired() {
        model.expired.insert((cluster.clone(), line.id.clone()));
        world.store.allow([layout::manifest(cluster, &line.id)]);
    }
    for line in &plan.wal {
        let FileName::Segment(segment) = line.name.parse().unwrap() else { panic!("{line:?}") };
        model.expired_wal.insert((cluster.clone(), segment.segment));
        world.store.allow([layout::wal_file(cluster, &FileName::Segment(segment))]);
    }
    let notes = plan.notes.iter();
    world.store.allow(notes.flat_map(|id| [layout::claim(cluster, id), layout::expired_note(cluster, id)]));
}

/// The same of a plan of prune.
pub fn allow_pruning(world: &World, plan: &prune::Plan) {
    let packs = plan.delete_dead.iter().chain(&plan.delete_moved).map(|pack| layout::pack(pack.id));
    let records = plan.delete_dead.iter().map(|pack| layout::moved(pack.id));
    let names: Vec<ObjectName> = packs.chain(records).chain(plan.ended.iter().cloned()).collect();
    world.store.allow(names);
}
