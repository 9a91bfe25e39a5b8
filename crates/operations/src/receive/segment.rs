//! A segment that is being received: its bytes in a file of no name, and how much of it the repository has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use pg::Lsn;
use pg::wal::records::CommitWalk;
use pg::wal::{FileName, LONG_HEADER_SIZE, SegmentName, SegmentSize};
use repository::archive::{Part, WalContent, WalInfo, WalName, cover, covered};
use tokio::time::Instant;

use super::intake::Compared;
use super::level;

/// A file for the bytes of one segment, which ends with this process: whatever is in it can be streamed again.
pub(super) fn spool_file(folder: &Path) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    tempfile::tempfile_in(folder)
}

/// Tells open segments apart: the same one may be begun again while the first attempt at it is still being stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket(pub(super) u64);

/// A segment that is not stored whole yet.
pub(super) struct OpenSegment {
    pub(super) ticket: Ticket,
    pub(super) name: SegmentName,
    size: SegmentSize,
    file: Arc<File>,
    /// Bytes that came, from the first one on.
    pub(super) filled: u32,
    walk: CommitWalk,
    /// Nothing more of it will come: its timeline ended in it, or receiving ends.
    pub(super) closed: bool,
    /// Parts of it that are stored.
    pub(super) parts: Vec<Part>,
    /// Those of an earlier run that were not seen yet to hold what came.
    pub(super) unseen: Vec<Part>,
    /// Parts of an earlier run that are damaged. They stay as they are, so their names are taken.
    pub(super) damaged: Vec<Part>,
    /// Bytes that the repository has, from the first one on, seen to be those that came.
    pub(super) shipped: u32,
    /// Bytes that parts of an earlier run claim to have; they are looked at once so much came.
    pub(super) claimed: u32,
    /// When the first byte that is not shipped came.
    pub(super) waiting_since: Option<Instant>,
    /// A part is on its way, or parts are being looked at.
    pub(super) part_under_way: bool,
    /// When the last part was cut: what is in none came later.
    pub(super) cut_at: Option<Instant>,
    /// The whole is on its way.
    pub(super) whole_under_way: bool,
    /// The whole is stored.
    pub(super) is_stored: bool,
}

impl OpenSegment {
    pub(super) fn new(
        ticket: Ticket,
        name: SegmentName,
        size: SegmentSize,
        file: File,
        parts: Vec<Part>,
    ) -> Self {
        Self {
            ticket,
            name,
            size,
            file: Arc::new(file),
            filled: 0,
            walk: CommitWalk::new(&name, size),
            closed: false,
            claimed: covered(&parts),
            unseen: parts.clone(),
            damaged: Vec::new(),
            parts,
            shipped: 0,
            waiting_since: None,
            part_under_way: false,
            cut_at: None,
            whole_under_way: false,
            is_stored: false,
        }
    }

    /// Takes bytes that follow those that came, as many as fit; returns how many.
    pub(super) fn take(&mut self, bytes: &[u8], now: Instant) -> io::Result<usize> {
        let taken = bytes.len().min((self.size.bytes() - self.filled) as usize);
        self.file.write_all_at(&bytes[..taken], self.filled.into())?;
        self.walk.see(&bytes[..taken]);
        self.filled += taken as u32;
        self.waiting_since.get_or_insert(now);
        Ok(taken)
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == self.size.bytes()
    }

    /// The position after the last byte that came.
    pub(super) fn end(&self) -> u64 {
        self.name.start(self.size) + u64::from(self.filled)
    }

    /// Its file, if nobody reads it any more.
    pub(super) fn into_file(self) -> Option<File> {
        Arc::into_inner(self.file)
    }

    /// The position up to which the repository has it.
    pub(super) fn durable(&self) -> Option<Lsn> {
        let bytes = if self.is_stored { self.size.bytes() } else { self.shipped };
        Lsn::new(self.name.start(self.size) + u64::from(bytes))
    }

    /// Notes that the repository has so much from the first byte on.
    pub(super) fn have_shipped(&mut self, bytes: u32) {
        (self.shipped, self.claimed) = (bytes, 0);
        self.waiting_since = self.cut_at.or(self.waiting_since).filter(|_| self.filled > bytes);
    }

    /// True when nothing is left to do for it. A beginning too short for a header holds no WAL.
    pub(super) fn is_done(&self) -> bool {
        let settled = !self.part_under_way && !self.whole_under_way;
        // Parts of an earlier run that hold more than came again stay as they are: they may be all that is left of it.
        let is_claimed = self.claimed > self.shipped && self.claimed > self.filled;
        let left = self.closed
            && !self.is_full()
            && (self.shipped == self.filled || !self.has_header() || is_claimed);
        settled && (self.is_stored || left)
    }

    /// Whether enough came to tell what it is.
    pub(super) fn has_header(&self) -> bool {
        self.filled as usize >= LONG_HEADER_SIZE
    }

    /// Parts of an earlier run that are to be compared now: those that make the beginning, once so much came, and all others
    /// before the whole is stored, which takes their place.
    pub(super) fn to_compare(&self) -> Vec<Part> {
        match self.filled {
            _ if self.is_full() => self.unseen.clone(),
            filled if self.claimed > self.shipped && filled >= self.claimed => cover(&self.parts),
            _ => Vec::new(),
        }
    }

    /// Takes in what was seen of parts of an earlier run.
    pub(super) fn have_compared(&mut self, found: &Compared) {
        self.unseen.retain(|part| !found.same.contains(part));
        for list in [&mut self.unseen, &mut self.parts] {
            list.retain(|part| !found.gone.contains(part) && !found.damaged.contains(part));
        }
        self.damaged.extend(&found.damaged);
        let cover = cover(&self.parts);
        let reached = cover.last().map_or(0, |part| part.to);
        if cover.iter().any(|part| self.unseen.contains(part)) {
            self.claimed = reached;
        } else {
            self.have_shipped(reached);
        }
    }

    /// The part to store next: what came since the last one, and what is in smaller ones before it when they are many.
    pub(super) fn next_part(&self) -> Part {
        let is_sure = |part: &&Part| part.to <= self.shipped && !self.unseen.contains(part);
        let stored: Vec<Part> = self.parts.iter().filter(is_sure).copied().collect();
        let from = level::begin(&cover(&stored), self.shipped, self.filled, self.size.bytes());
        let mut part = Part { segment: self.name, from, to: self.filled };
        while self.damaged.contains(&part) {
            // What a shorter one leaves out comes with the next.
            if part.from > 0 { part.from = 0 } else { part.to -= 1 }
        }
        part
    }

    /// Notes that a part is stored; returns those whose place it takes. One that reaches further is not replaced, whoever
    /// stored it, nor one that was not compared.
    pub(super) fn have_part(&mut self, part: Part) -> Vec<Part> {
        let is_within = |old: &Part| part.from <= old.from && old.to <= part.to && *old != part;
        let (replaced, mut kept): (Vec<Part>, Vec<Part>) = std::mem::take(&mut self.parts)
            .into_iter()
            .partition(|old| is_within(old) && !self.unseen.contains(old));
        kept.retain(|old| *old != part);
        kept.push(part);
        self.parts = kept;
        self.have_shipped(part.to);
        replaced
    }

    /// When it will be full, if WAL keeps coming as it did since `since`; `None` if none came.
    pub(super) fn full_at(&self, since: Instant, now: Instant) -> Option<Instant> {
        let came = self.filled.checked_sub(self.shipped).filter(|came| *came > 0)?;
        let left = f64::from(self.size.bytes() - self.filled) / f64::from(came);
        now.checked_add(now.saturating_duration_since(since).mul_f64(left))
    }

    /// The whole, to be stored.
    pub(super) fn whole(&self, stored: Timestamp) -> Arc<Stretch> {
        let name = WalName::File(FileName::Segment(self.name));
        self.stretch(name, 0, self.size.bytes(), stored)
    }

    /// A part, to be stored or compared.
    pub(super) fn part(&self, part: Part, stored: Timestamp) -> Arc<Stretch> {
        self.stretch(WalName::Part(part), part.from, part.to, stored)
    }

    /// The times of commits are those of everything that came of the segment, not of the stretch alone: a reader wants to
    /// know how far in time the WAL goes with it.
    fn stretch(&self, name: WalName, from: u32, to: u32, stored: Timestamp) -> Arc<Stretch> {
        let length = u64::from(to - from);
        let info = WalInfo::new(name, length, stored).with_commits(self.walk.clone().finish());
        Arc::new(Stretch { file: self.file.clone(), name, from: from.into(), length, info })
    }
}

/// Bytes of a segment that came.
pub(super) struct Stretch {
    file: Arc<File>,
    name: WalName,
    from: u64,
    length: u64,
    info: WalInfo,
}

impl Stretch {
    /// Its name in the archive.
    pub(super) fn name(&self) -> WalName {
        self.name
    }

    /// The first bytes of the segment, which are its header.
    pub(super) fn head(&self) -> io::Result<[u8; LONG_HEADER_SIZE]> {
        let mut head = [0; LONG_HEADER_SIZE];
        self.file.read_exact_at(&mut head, 0)?;
        Ok(head)
    }

    /// The digest of the bytes, as the repository has it of an object.
    pub(super) fn digest(&self, mut hasher: blake3::Hasher) -> io::Result<[u8; 32]> {
        let mut buffer = vec![0; 1 << 16];
        let mut at = 0;
        while at < self.length {
            let piece = (self.length - at).min(buffer.len() as u64) as usize;
            self.read_at(&mut buffer[..piece], at)?;
            hasher.update(&buffer[..piece]);
            at += piece as u64;
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

impl WalContent for Stretch {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, self.from + offset)
    }

    fn see(&self, _: &[u8]) {}

    fn info(&self) -> io::Result<WalInfo> {
        Ok(self.info.clone())
    }
}
