//! What must hold, kept beside the repository in the simplest form.

use std::collections::{BTreeMap, BTreeSet};

use repository::ClusterName;

/// Files of a database: by path, the version of its content and the content.
pub type Files = BTreeMap<String, (u64, Vec<u8>)>;

/// A server's files as they are, and how often one was changed.
#[derive(Debug, Default)]
pub struct Database {
    pub files: Files,
    pub versions: u64,
}

/// What was said to be stored, and what was tried.
#[derive(Debug, Default)]
pub struct Model {
    /// The servers that the clusters are of.
    pub databases: BTreeMap<ClusterName, Database>,
    /// Every backup that was begun; if its manifest is there, this is what it must hold.
    pub begun: BTreeMap<(ClusterName, String), Files>,
    /// Those that were said to be there.
    pub acknowledged: Vec<(ClusterName, String)>,
    /// The segment that each of them begins and ends in.
    pub place: BTreeMap<(ClusterName, String), u32>,
    /// WAL that was said to be there, by the number of its segment.
    pub wal: BTreeMap<(ClusterName, u32), Vec<u8>>,
    /// How far each cluster's WAL has come.
    pub end: BTreeMap<ClusterName, u32>,
    /// Backups that a plan of expire listed, and WAL.
    pub expired: BTreeSet<(ClusterName, String)>,
    pub expired_wal: BTreeSet<(ClusterName, u32)>,
    /// Who does what must be alone.
    pub alone: Option<usize>,
    pub broken: Vec<String>,
    pub counts: Counts,
}

/// What happened, to see that a campaign meets what it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub backups: u64,
    pub incrementals: u64,
    pub partials: u64,
    /// Backups that took longer than their claims hold.
    pub overtaken: u64,
    pub wal: u64,
    pub conflicts: u64,
    pub verified: u64,
    pub leases: u64,
    pub refused_leases: u64,
    pub lost_leases: u64,
    /// Backups that expire removed, and WAL.
    pub expired: u64,
    pub expired_wal: u64,
    /// Plans of expire that no longer held when they were to be done.
    pub changed: u64,
    /// Packs that prune marked, moved and deleted.
    pub marked: u64,
    pub moved: u64,
    pub pruned: u64,
    /// Plans of prune that had to wait for a backup at work, or dead.
    pub waited: u64,
    pub crashes: u64,
    pub failures: u64,
    /// Virtual minutes.
    pub minutes: u64,
}

impl Counts {
    fn fields(&mut self) -> [&mut u64; 20] {
        [
            &mut self.backups,
            &mut self.incrementals,
            &mut self.partials,
            &mut self.overtaken,
            &mut self.wal,
            &mut self.conflicts,
            &mut self.verified,
            &mut self.leases,
            &mut self.refused_leases,
            &mut self.lost_leases,
            &mut self.expired,
            &mut self.expired_wal,
            &mut self.changed,
            &mut self.marked,
            &mut self.moved,
            &mut self.pruned,
            &mut self.waited,
            &mut self.crashes,
            &mut self.failures,
            &mut self.minutes,
        ]
    }

    pub fn add(&mut self, other: &Counts) {
        let mut other = other.clone();
        for (sum, more) in self.fields().into_iter().zip(other.fields()) {
            *sum += *more;
        }
    }

    /// Fails unless everything that can happen did.
    pub fn assert_varied(&self) {
        let mut all = self.clone();
        assert!(all.fields().into_iter().all(|count| *count > 0), "something never happens: {self:?}");
    }
}

impl Model {
    /// A segment that nobody pushed yet.
    pub fn next_segment(&mut self, cluster: &ClusterName) -> u32 {
        let end = self.end.entry(cluster.clone()).or_default();
        *end += 1;
        *end
    }

    pub fn acknowledge_wal(&mut self, cluster: &ClusterName, segment: u32, content: Vec<u8>) {
        self.counts.wal += 1;
        let key = (cluster.clone(), segment);
        // What was expired may come again, and be another's.
        let was_expired = self.expired_wal.contains(&key);
        let before = self.wal.insert(key, content.clone());
        if !was_expired && before.is_some_and(|before| before != content) {
            self.broken.push(format!("segment {segment} of {cluster} was acknowledged with two contents"));
        }
    }
}
