//! What must hold, kept beside the repository in the simplest form.

use std::collections::BTreeMap;

use repository::ClusterName;

/// Files of a database: by path, the version of its content and the content.
pub type Files = BTreeMap<String, (u64, Vec<u8>)>;

/// What was said to be stored, and what was tried.
#[derive(Debug, Default)]
pub struct Model {
    /// Every backup that was begun; if its manifest is there, this is what it must hold.
    pub begun: BTreeMap<(ClusterName, String), Files>,
    /// Those that were said to be there.
    pub acknowledged: Vec<(ClusterName, String)>,
    /// WAL that was said to be there, by the number of its segment.
    pub wal: BTreeMap<(ClusterName, u32), Vec<u8>>,
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
    pub wal: u64,
    pub conflicts: u64,
    pub verified: u64,
    pub leases: u64,
    pub refused_leases: u64,
    pub lost_leases: u64,
    pub crashes: u64,
    pub failures: u64,
    /// Virtual minutes.
    pub minutes: u64,
}

impl Counts {
    fn fields(&mut self) -> [&mut u64; 12] {
        [
            &mut self.backups,
            &mut self.incrementals,
            &mut self.partials,
            &mut self.wal,
            &mut self.conflicts,
            &mut self.verified,
            &mut self.leases,
            &mut self.refused_leases,
            &mut self.lost_leases,
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
    pub fn acknowledge_wal(&mut self, cluster: &ClusterName, segment: u32, content: Vec<u8>) {
        self.counts.wal += 1;
        let before = self.wal.insert((cluster.clone(), segment), content.clone());
        if before.is_some_and(|before| before != content) {
            self.broken.push(format!("segment {segment} of {cluster} was acknowledged with two contents"));
        }
    }
}
