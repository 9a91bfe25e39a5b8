//! WAL: every file opened, digested, and its header compared with its name and stream.

use std::io;

use futures_util::{StreamExt as _, stream};
use pg::recovery::TargetTimeline;
use pg::wal::{FileName, SegmentName, SegmentSize, StreamIdentity, check_segment};
use pg::{Lsn, TimelineId};
use repository::archive::{ArchiveError, FetchedWal, WalName, WalSink, cover};
use repository::proof::{Damage, place};
use repository::{ClusterName, Repository, RepositoryError, layout};

use super::subjects::Subjects;
use super::{Run, VerifyError};
use crate::archive::content::HEAD;
use crate::findings::{Finding, in_words, is_damage};
use crate::monitor::Event;
use crate::reachable::ArchiveState;

/// Takes a file's content, of which only the beginning and the length matter once it was digested.
#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    length: u64,
}

impl WalSink for Head {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        let wanted = HEAD.saturating_sub(self.bytes.len()).min(piece.len());
        self.bytes.extend_from_slice(&piece[..wanted]);
        self.length += piece.len() as u64;
        Ok(())
    }
}

/// What came of one file.
enum Seen {
    Whole,
    Damaged(String),
    /// Removed since it was listed.
    Gone,
}

/// Verifies the chosen segments, and all files that are no whole segments: they are few and small.
pub(super) async fn verify(
    run: &mut Run<'_>,
    subjects: &Subjects,
    state: &ArchiveState,
    segments: &[(SegmentName, u64)],
) -> Result<(), VerifyError> {
    run.monitor.event(Event::Phase("verify WAL"));
    run.monitor.event(Event::Total { bytes: segments.iter().map(|one| one.1).sum(), files: 0 });
    let files = segments.iter().map(|(segment, size)| (WalName::File(FileName::Segment(*segment)), *size));
    let files: Vec<(WalName, u64)> = files.chain(small_files(state)).collect();
    let (repository, cluster) = (run.repository.clone(), run.request.cluster.clone());
    let look = |(name, size): (WalName, u64)| {
        let (repository, cluster) = (&repository, &cluster);
        async move { (name, size, look_twice(repository, cluster, state, name).await) }
    };
    // Each takes a thread while it is opened.
    let at_once = run.request.workers.max(1) * 2;
    let mut coming = stream::iter(files.into_iter().map(look)).buffered(at_once);
    let mut gone = Vec::new();
    while let Some((name, size, seen)) = coming.next().await {
        run.check_stop()?;
        let object = layout::wal_file(&cluster, name).to_string();
        match seen? {
            Seen::Gone => {
                gone.push(name);
                continue;
            }
            Seen::Whole => {
                if run.proofs.damaged().any(|(damaged, _, _)| damaged == object) {
                    run.look.whole.push(object);
                }
                if let (WalName::File(FileName::Segment(segment)), Some(size)) = (name, state.segment_size())
                {
                    run.look.wal.push(place(&segment, size));
                    run.report.segments_proved += 1;
                }
            }
            Seen::Damaged(why) => note(run, hurt(subjects, state, name, why), object),
        }
        run.report.bytes_read += size;
        run.monitor.event(Event::Advanced { bytes: size });
    }
    let Some(size) = state.segment_size().filter(|_| !gone.is_empty()) else { return Ok(()) };
    // An expire that ran meanwhile has said so before.
    let expired = repository.expired(&cluster).await?.wal_before.map_or(0, Lsn::get);
    for name in gone {
        // Only segments stay until they expire: a part goes when there is more.
        if matches!(name, WalName::File(FileName::Segment(segment)) if segment.end(size) > expired) {
            let why = "it was listed, and is not there".to_owned();
            note(run, hurt(subjects, state, name, why), layout::wal_file(&cluster, name).to_string());
        }
    }
    Ok(())
}

/// Notes damage of one object.
fn note(run: &mut Run<'_>, finding: Finding, object: String) {
    let damage = Damage { what: finding.what.clone(), backups: Vec::new() };
    run.look.damaged.push((object.clone(), damage));
    run.report.findings.push(finding.of(object));
}

/// Everything but whole segments, with sizes that do not count.
fn small_files(state: &ArchiveState) -> impl Iterator<Item = (WalName, u64)> + '_ {
    let inventory = &state.inventory;
    let histories = inventory.histories.iter().map(|timeline| WalName::File(FileName::History(*timeline)));
    let others = inventory.others.iter().map(|file| WalName::File(*file));
    let parts = inventory.unfinished().into_values().flat_map(|parts| cover(&parts)).map(WalName::Part);
    histories.chain(others).chain(parts).map(|name| (name, 0))
}

/// Damage that a second look does not see was on the way, not in the storage.
async fn look_twice(
    repository: &Repository,
    cluster: &ClusterName,
    state: &ArchiveState,
    name: WalName,
) -> Result<Seen, VerifyError> {
    match look(repository, cluster, state, name).await? {
        Seen::Damaged(_) => look(repository, cluster, state, name).await,
        other => Ok(other),
    }
}

async fn look(
    repository: &Repository,
    cluster: &ClusterName,
    state: &ArchiveState,
    name: WalName,
) -> Result<Seen, VerifyError> {
    match repository.fetch_wal_into(cluster, name, 1, Head::default()).await {
        Ok(fetched) => Ok(judge(state, name, &fetched).map_or(Seen::Whole, Seen::Damaged)),
        Err(ArchiveError::Absent { .. }) => Ok(Seen::Gone),
        Err(ArchiveError::Repository(error)) if is_damage(&error) => Ok(Seen::Damaged(error.to_string())),
        Err(ArchiveError::Repository(error)) => Err(error.into()),
        Err(other) => Err(RepositoryError::Content {
            place: other.to_string(),
            source: repository::content::ContentError { what: "WAL file" },
        }
        .into()),
    }
}

/// What the content says against its name; `None` for nothing.
fn judge(state: &ArchiveState, name: WalName, fetched: &FetchedWal<Head>) -> Option<String> {
    let identity = state.identity.as_ref()?;
    let size = state.segment_size()?;
    let Head { bytes, length } = &fetched.sink;
    let stream = StreamIdentity { system_identifier: identity.system_identifier, segment_size: size };
    let (segment, expected, has_header) = match name {
        WalName::File(FileName::Segment(segment)) => (segment, u64::from(size.bytes()), true),
        WalName::Part(part) => (part.segment, u64::from(part.to - part.from), part.from == 0),
        WalName::File(_) => return None,
    };
    if *length != expected {
        return Some(format!("it has {length} bytes instead of {expected}"));
    }
    let is_short = bytes.len() < pg::wal::LONG_HEADER_SIZE;
    let mismatch = (has_header && !is_short).then(|| check_segment(bytes, &segment, &stream).err()).flatten();
    mismatch.map(|error| error.to_string())
}

/// What can still be restored without a file of the WAL.
fn hurt(subjects: &Subjects, state: &ArchiveState, name: WalName, why: String) -> Finding {
    let (segment, begin) = match name {
        WalName::File(FileName::Segment(segment)) => (segment, 0),
        WalName::Part(part) => (part.segment, part.from),
        WalName::File(FileName::History(timeline)) => {
            return Finding::damage(why, format!("nothing can be restored along timeline {timeline}"));
        }
        WalName::File(_) => return Finding::warning(why, "no restore needs it"),
    };
    let Some(size) = state.segment_size() else { return Finding::damage(why, "what needs it is not known") };
    let from = segment.start(size) + u64::from(begin);
    let (mut lost, mut short, mut on) = (Vec::new(), Vec::new(), None);
    // Newest first.
    for backup in &subjects.backups {
        if backup.start_lsn >= segment.end(size) {
            on = Some(backup.id.clone());
        } else if needs(state, backup.timeline, backup.stop_lsn, segment, size) {
            if backup.stop_lsn > from { lost.push(backup.id.clone()) } else { short.push(backup.id.clone()) }
        }
    }
    let mut parts = Vec::new();
    if !lost.is_empty() {
        parts.push(format!("{} cannot be restored", in_words(&lost)));
    }
    if !short.is_empty() {
        let lsn = Lsn::new(from).map_or_else(|| "0/0".to_owned(), |lsn| lsn.to_string());
        parts.push(format!("{} can be restored up to LSN {lsn}", in_words(&short)));
    }
    parts.push(on.map_or("nothing after it can be restored: take a backup".to_owned(), |id| {
        format!("everything from backup {id} on can be restored")
    }));
    Finding::damage(why, parts.join("; ")).hurting([lost, short].concat())
}

/// Whether replay of a backup passes through the segment.
fn needs(state: &ArchiveState, timeline: u32, stop: u64, segment: SegmentName, size: SegmentSize) -> bool {
    let (Some(timeline), Some(stop)) = (TimelineId::new(timeline), Lsn::new(stop)) else { return false };
    let Ok(path) = state.path(TargetTimeline::Latest, timeline, stop) else { return false };
    let last = Lsn::new(segment.end(size) - 1);
    last.is_some_and(|last| path.timeline_at(last) == segment.timeline)
}
