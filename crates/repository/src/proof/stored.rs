//! The stored form of a proof.

use pg::TimelineId;
use prost::Message;

use super::{Damage, Look};
use crate::layout::PackId;

#[derive(Clone, PartialEq, Message)]
struct StoredProof {
    #[prost(message, repeated, tag = "1")]
    looks: Vec<StoredLook>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredLook {
    #[prost(sint64, tag = "1")]
    at_us: i64,
    #[prost(sint64, tag = "2")]
    host_us: i64,
    #[prost(string, tag = "3")]
    host: String,
    /// 16 bytes each.
    #[prost(bytes = "vec", tag = "4")]
    packs: Vec<u8>,
    #[prost(message, repeated, tag = "5")]
    wal: Vec<StoredRun>,
    #[prost(string, repeated, tag = "6")]
    whole: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    damaged: Vec<StoredDamage>,
}

/// Segments that follow each other.
#[derive(Clone, PartialEq, Message)]
struct StoredRun {
    #[prost(uint32, tag = "1")]
    timeline: u32,
    #[prost(uint64, tag = "2")]
    first: u64,
    #[prost(uint64, tag = "3")]
    count: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredDamage {
    #[prost(string, tag = "1")]
    object: String,
    #[prost(string, tag = "2")]
    what: String,
    #[prost(string, repeated, tag = "3")]
    backups: Vec<String>,
}

/// A run that claims more segments than this is none of ours: they would fill the memory of whoever reads it.
const RUN_MAX: u64 = 1 << 24;

pub(super) fn encode(looks: &[Look]) -> Vec<u8> {
    let looks = looks.iter().map(|look| StoredLook {
        at_us: look.at_us,
        host_us: look.host_us,
        host: look.host.clone(),
        packs: look.packs.iter().flat_map(|id| id.0).collect(),
        wal: runs(&look.wal),
        whole: look.whole.clone(),
        damaged: look.damaged.iter().map(|(object, damage)| store_damage(object, damage)).collect(),
    });
    StoredProof { looks: looks.collect() }.encode_to_vec()
}

fn store_damage(object: &str, damage: &Damage) -> StoredDamage {
    StoredDamage { object: object.to_owned(), what: damage.what.clone(), backups: damage.backups.clone() }
}

fn runs(wal: &[(TimelineId, u64)]) -> Vec<StoredRun> {
    let mut sorted = wal.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<StoredRun> = Vec::new();
    for (timeline, number) in sorted {
        match runs.last_mut() {
            Some(run) if run.timeline == timeline.get() && run.first + run.count == number => run.count += 1,
            _ => runs.push(StoredRun { timeline: timeline.get(), first: number, count: 1 }),
        }
    }
    runs
}

/// Reads what [`encode`] writes; `None` for anything else.
pub(super) fn decode(content: &[u8]) -> Option<Vec<Look>> {
    let proof = StoredProof::decode(content).ok()?;
    proof.looks.into_iter().map(read_look).collect()
}

fn read_look(stored: StoredLook) -> Option<Look> {
    let (packs, rest) = stored.packs.as_chunks::<16>();
    if !rest.is_empty() {
        return None;
    }
    let mut wal = Vec::new();
    for run in stored.wal {
        let timeline = TimelineId::new(run.timeline)?;
        if run.count > RUN_MAX || wal.len() as u64 > RUN_MAX {
            return None;
        }
        wal.extend((run.first..run.first.checked_add(run.count)?).map(|number| (timeline, number)));
    }
    let damage =
        |damage: StoredDamage| (damage.object, Damage { what: damage.what, backups: damage.backups });
    Some(Look {
        at_us: stored.at_us,
        host_us: stored.host_us,
        host: stored.host,
        packs: packs.iter().copied().map(PackId).collect(),
        wal,
        whole: stored.whole,
        damaged: stored.damaged.into_iter().map(damage).collect(),
    })
}
