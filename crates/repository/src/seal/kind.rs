//! The kinds of sealed objects.

/// What a sealed object is; part of what is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Chunks and their table.
    Pack = 1,
    /// One backup's manifest.
    Manifest = 2,
    /// A WAL segment or another file of the archive.
    Wal = 3,
    /// What a cluster's stream is bound to.
    Identity = 4,
    /// What an unfinished backup has stored so far.
    PartialManifest = 5,
    /// A note of WAL that could not be had.
    Gap = 6,
    /// A note that a backup was expired, and why.
    Expired = 7,
    /// A backup that no policy may expire.
    Pin = 8,
    /// An operation that may name old packs and has not published yet.
    Claim = 9,
    /// Who does what must be alone.
    Lease = 10,
    /// Packs that nobody named when prune looked.
    Mark = 11,
    /// Where the live pages of a pack went.
    Moved = 12,
    /// What a verification or trial restore proved.
    Proof = 13,
    /// What a job did, when, and how it ended.
    Run = 14,
}
