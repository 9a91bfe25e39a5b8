//! What is read this time: what was proved longest ago first, and of what was never proved the newest backup's packs first.

use jiff::Timestamp;
use pg::Lsn;
use pg::wal::{SegmentName, SegmentSize};
use repository::PackId;
use repository::proof::place;

use super::subjects::Subjects;
use super::{Run, VerifyError};
use crate::reachable::ArchiveState;

/// How much one run reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Of all stored bytes of packs and WAL.
    Percent(f64),
    /// So many.
    Bytes(u64),
}

/// What is read.
#[derive(Default)]
pub(super) struct Selection {
    pub(super) packs: Vec<PackId>,
    /// With the size of their objects.
    pub(super) segments: Vec<(SegmentName, u64)>,
    bytes: u64,
}

impl Selection {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Pack(PackId),
    Segment(SegmentName),
}

/// What could be read: when it was last proved, its rank among what never was, itself, its size.
type Candidate = (Option<i64>, u64, Item, u64);

pub(super) fn select(
    run: &mut Run<'_>,
    subjects: &Subjects,
    state: &ArchiveState,
) -> Result<Selection, VerifyError> {
    run.check_stop()?;
    let mut all = candidates(run, subjects, state);
    run.report.packs = subjects.packs.len();
    run.report.segments = all.len() - subjects.packs.len();
    run.report.bytes = all.iter().map(|candidate| candidate.3).sum();
    if let Some(age) = run.request.older_than {
        let recent = run.look.at_us.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
        all.retain(|candidate| candidate.0.is_none_or(|at| at < recent));
    }
    // `None` sorts before every time.
    all.sort_unstable();
    let allowed = match run.request.budget {
        None => u64::MAX,
        Some(Budget::Bytes(bytes)) => bytes,
        Some(Budget::Percent(percent)) => (run.report.bytes as f64 * percent / 100.0).ceil() as u64,
    };
    let mut selection = Selection::default();
    for (_, _, item, size) in all {
        // The last one may go beyond: so a twentieth each time is all of it in twenty.
        if selection.bytes >= allowed {
            break;
        }
        selection.bytes += size;
        match item {
            Item::Pack(id) => selection.packs.push(id),
            Item::Segment(segment) => selection.segments.push((segment, size)),
        }
    }
    Ok(selection)
}

fn candidates(run: &Run<'_>, subjects: &Subjects, state: &ArchiveState) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = Vec::with_capacity(subjects.packs.len());
    for (id, pack) in &subjects.packs {
        // Between the newest backup's packs and those of the others comes the WAL.
        let rank = if pack.rank == 0 { 0 } else { 2 + u64::from(pack.rank) };
        all.push((run.proofs.pack(*id), rank, Item::Pack(*id), pack.size));
    }
    let Some(size) = state.segment_size() else { return all };
    for (segment, bytes) in state.inventory.segments.values().flatten() {
        if !segment.fits(size) || !is_wanted(run, subjects, *segment, size) {
            continue;
        }
        let (timeline, number) = place(segment, size);
        let damaged = run.proofs.damaged().any(|(object, _, _)| {
            object
                == repository::layout::wal_file(&run.request.cluster, &pg::wal::FileName::Segment(*segment))
                    .as_str()
        });
        let proved = run.proofs.segment(timeline, number).filter(|_| !damaged);
        all.push((proved, 1, Item::Segment(*segment), *bytes));
    }
    all
}

/// All WAL when all backups are meant, and otherwise what the chosen ones need to become consistent.
fn is_wanted(run: &Run<'_>, subjects: &Subjects, segment: SegmentName, size: SegmentSize) -> bool {
    run.request.backups.is_empty()
        || subjects.backups.iter().any(|backup| {
            let first = Lsn::new(backup.start_lsn)
                .map_or(0, |start| SegmentName::containing(segment.timeline, start, size).start(size));
            segment.timeline.get() == backup.timeline
                && (first..backup.stop_lsn).contains(&segment.start(size))
        })
}

/// Adds to the report what is still to be proved.
pub(super) fn tell_rest(run: &mut Run<'_>, subjects: &Subjects, state: &ArchiveState) {
    let mut proofs = run.proofs.clone();
    proofs.add(&run.look);
    let saved = std::mem::replace(&mut run.proofs, proofs);
    let all = candidates(run, subjects, state);
    run.proofs = saved;
    run.report.never_proved = all.iter().filter(|candidate| candidate.0.is_none()).count();
    let oldest = all.iter().map(|candidate| candidate.0).min().flatten();
    run.report.oldest_proof = oldest.and_then(|at| Timestamp::from_microsecond(at).ok());
}
