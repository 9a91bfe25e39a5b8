//! Proofs: what a verification found whole or damaged, and when.
//!
//! Each verification writes one object. What is known of a pack or segment is what was seen last, by the time of each look, so
//! proofs say the same in whatever order they are read, and one may take the place of many. `docs/format.md` §9.

use std::collections::{BTreeMap, HashMap};

use pg::TimelineId;
use pg::wal::{SegmentName, SegmentSize};
use storage::{ObjectName, StorageError};

use crate::layout::{self, ClusterName, PackId};
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Kind, open_stream, seal_stream};
use crate::secrets::random_bytes;

mod stored;

/// No proof is larger: a million packs take 16 MiB.
const PROOF_LIMIT: u64 = 64 << 20;
/// So many proofs are merged into one.
const MERGE_FROM: usize = 8;

/// An object that was found damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What was wrong.
    pub what: String,
    /// The backups that need it.
    pub backups: Vec<String>,
}

/// What one run of a verification saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// When it began, microseconds since 1970: by the storage's clock where it has one, else by the host's.
    pub at_us: i64,
    /// The same by the host's clock.
    pub host_us: i64,
    /// Who looked.
    pub host: String,
    /// Packs that are whole.
    pub packs: Vec<PackId>,
    /// Segments of WAL that are whole: timeline, and number in the log by the stream's segment size.
    pub wal: Vec<(TimelineId, u64)>,
    /// Other objects that were known as damaged and are whole again.
    pub whole: Vec<String>,
    /// Objects that are damaged, by name.
    pub damaged: Vec<(String, Damage)>,
}

/// All that is known of what was proved.
#[derive(Clone, Debug, Default)]
pub struct Proofs {
    /// When was looked, and who did by which clock.
    lookers: BTreeMap<i64, (i64, String)>,
    packs: HashMap<PackId, i64>,
    wal: BTreeMap<(TimelineId, u64), i64>,
    whole: BTreeMap<String, i64>,
    damaged: BTreeMap<String, (i64, Damage)>,
    /// The objects that this was read from.
    objects: Vec<ObjectName>,
    /// Proofs that cannot be read, and why.
    pub unreadable: Vec<(ObjectName, String)>,
}

impl Proofs {
    /// When the pack was last proved whole, microseconds since 1970; `None` for one that was found damaged since.
    pub fn pack(&self, id: PackId) -> Option<i64> {
        let at = *self.packs.get(&id)?;
        self.standing(layout::pack(id).as_str()).is_none().then_some(at)
    }

    /// The same of a segment, by its number in the log.
    pub fn segment(&self, timeline: TimelineId, number: u64) -> Option<i64> {
        self.wal.get(&(timeline, number)).copied()
    }

    /// Every object that was found damaged and not found whole since, by name, with the time of the look.
    pub fn damaged(&self) -> impl Iterator<Item = (&str, i64, &Damage)> {
        self.damaged.keys().filter_map(|object| {
            let (at, damage) = self.standing(object)?;
            Some((object.as_str(), *at, damage))
        })
    }

    /// The packs among them.
    pub fn damaged_packs(&self) -> impl Iterator<Item = (PackId, &Damage)> {
        self.damaged().filter_map(|(object, _, damage)| Some((layout::parse_pack(object)?, damage)))
    }

    /// How many proofs this was read from.
    pub fn count(&self) -> usize {
        self.objects.len()
    }

    /// Whether it is time to make one of them ([`Repository::merge_proofs`]).
    pub fn are_many(&self) -> bool {
        self.objects.len() >= MERGE_FROM
    }

    fn standing(&self, object: &str) -> Option<&(i64, Damage)> {
        let found = self.damaged.get(object)?;
        let pack = layout::parse_pack(object).and_then(|id| self.packs.get(&id).copied());
        let cleared = pack.max(self.whole.get(object).copied());
        cleared.is_none_or(|at| at <= found.0).then_some(found)
    }

    /// Adds what was seen; what is newer stands.
    pub fn add(&mut self, look: &Look) {
        let at = look.at_us;
        self.lookers.insert(at, (look.host_us, look.host.clone()));
        let later = |known: &mut i64| *known = (*known).max(at);
        look.packs.iter().for_each(|id| later(self.packs.entry(*id).or_insert(at)));
        look.wal.iter().for_each(|place| later(self.wal.entry(*place).or_insert(at)));
        look.whole.iter().for_each(|object| later(self.whole.entry(object.clone()).or_insert(at)));
        for (object, damage) in &look.damaged {
            let known = self.damaged.entry(object.clone()).or_insert((at, damage.clone()));
            if known.0 <= at {
                *known = (at, damage.clone());
            }
        }
    }

    /// The looks that say the same as all of this.
    fn looks(&self) -> Vec<Look> {
        let mut looks: BTreeMap<i64, Look> = BTreeMap::new();
        for (at, (host_us, host)) in &self.lookers {
            let look = Look { at_us: *at, host_us: *host_us, host: host.clone(), ..Look::default() };
            looks.insert(*at, look);
        }
        self.packs.iter().for_each(|(id, at)| looks.entry(*at).or_default().packs.push(*id));
        self.wal.iter().for_each(|(place, at)| looks.entry(*at).or_default().wal.push(*place));
        self.whole.iter().for_each(|(object, at)| looks.entry(*at).or_default().whole.push(object.clone()));
        for (object, (at, damage)) in &self.damaged {
            looks.entry(*at).or_default().damaged.push((object.clone(), damage.clone()));
        }
        // A look of which everything was seen again since has nothing left to say.
        looks.retain(|_, look| {
            !look.packs.is_empty()
                || !look.wal.is_empty()
                || !look.whole.is_empty()
                || !look.damaged.is_empty()
        });
        looks.values_mut().for_each(|look| look.packs.sort_unstable());
        looks.into_values().collect()
    }
}

/// The place of a segment as proofs name it.
pub fn place(segment: &SegmentName, size: SegmentSize) -> (TimelineId, u64) {
    (segment.timeline, segment.number(size))
}

impl Repository {
    /// Everything that was proved of a cluster. A damaged proof proves nothing and is named.
    pub async fn proofs(&self, cluster: &ClusterName) -> Result<Proofs, RepositoryError> {
        let mut proofs = Proofs::default();
        for entry in self.storage().list(&layout::proofs(cluster)).await? {
            let object = match self.storage().read_all(&entry.name, PROOF_LIMIT).await {
                // Merged into another one since the listing, which is then read by whoever looks next.
                Err(StorageError::NotFound { .. }) => continue,
                Err(StorageError::TooLarge { .. }) => {
                    proofs.unreadable.push((entry.name, "it is too large".to_owned()));
                    continue;
                }
                other => other?,
            };
            let opened = open_stream(self.access(), Kind::Proof, &entry.name, &object);
            let looks = match opened {
                Ok((_, content)) => stored::decode(&content).ok_or_else(|| "unknown form".to_owned()),
                Err(error) if RepositoryError::from(error.clone()).is_damage() => Err(error.to_string()),
                Err(error) => return Err(error.into()),
            };
            match looks {
                Ok(looks) => {
                    looks.iter().for_each(|look| proofs.add(look));
                    proofs.objects.push(entry.name);
                }
                Err(why) => proofs.unreadable.push((entry.name, why)),
            }
        }
        Ok(proofs)
    }

    /// Writes down what was seen, and takes it into `proofs`.
    pub async fn record_proof(
        &self,
        cluster: &ClusterName,
        look: &Look,
        proofs: &mut Proofs,
    ) -> Result<(), RepositoryError> {
        let name = self.write_proof(cluster, look.at_us, std::slice::from_ref(look)).await?;
        proofs.add(look);
        proofs.objects.push(name);
        Ok(())
    }

    /// Writes one proof that says what all of `proofs` say, without what `keep` has no use for. The
    /// old ones, which are returned, may then be removed; whoever reads both learns nothing else.
    pub async fn merge_proofs(
        &self,
        cluster: &ClusterName,
        proofs: &mut Proofs,
        keep: impl Fn(PackId) -> bool,
    ) -> Result<Vec<ObjectName>, RepositoryError> {
        proofs.packs.retain(|id, _| keep(*id));
        proofs.damaged.retain(|object, _| layout::parse_pack(object).is_none_or(&keep));
        let newest = proofs.lookers.keys().next_back().copied().unwrap_or(0);
        let name = self.write_proof(cluster, newest, &proofs.looks()).await?;
        Ok(std::mem::replace(&mut proofs.objects, vec![name]))
    }

    /// Removes proofs that another one says again. One that stays is only read again.
    pub async fn remove_proofs(&self, superseded: &[ObjectName]) {
        for name in superseded {
            match self.storage().delete(name).await {
                Ok(()) | Err(StorageError::NotFound { .. }) => {}
                Err(error) => tracing::debug!(%error, "an old proof stays"),
            }
        }
    }

    async fn write_proof(
        &self,
        cluster: &ClusterName,
        at_us: i64,
        looks: &[Look],
    ) -> Result<ObjectName, RepositoryError> {
        let at = jiff::Timestamp::from_microsecond(at_us).unwrap_or_default();
        let unique = u32::from_le_bytes(random_bytes());
        let name = layout::proof(cluster, &format!("{}-{unique:08x}", at.strftime("%Y%m%dT%H%M%SZ")));
        let object = seal_stream(self.access().writer(), Kind::Proof, &name, &[], &stored::encode(looks));
        self.storage().create(&name, &[object]).await?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests;
