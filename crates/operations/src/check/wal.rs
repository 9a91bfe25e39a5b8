//! The WAL behind each backup: whether it goes on from the backup's start to the end of what is stored.

use std::collections::BTreeMap;

use pg::recovery::TargetTimeline;
use pg::wal::{FileName, SegmentName};
use pg::{Lsn, TimelineId};
use repository::backups::Listed;
use repository::expired::Expired;
use repository::manifest::Manifest;
use repository::{ClusterName, Repository, layout};

use super::CheckReport;
use crate::findings::{Finding, in_words, is_damage};
use crate::reachable::{ArchiveState, BackupPlace, Hole, Reach, ReachableError, continuous_until};

/// The backups that a hole in the WAL hurts.
#[derive(Default)]
struct Hurt {
    /// They need what is missing.
    lost: Vec<String>,
    /// They can be brought to its beginning.
    short: Vec<String>,
    /// Further holes lie before it.
    later: Vec<String>,
}

/// A hole, so that backups that share it are told together.
type Holes = BTreeMap<(TimelineId, Lsn, Lsn), Hurt>;

/// What the archive holds; a damaged note of what it is bound to is a finding, and then counts as none.
pub(crate) async fn state(
    repository: &Repository,
    cluster: &ClusterName,
    findings: &mut Vec<Finding>,
) -> Result<ArchiveState, ReachableError> {
    let identity = match repository.identity(cluster).await {
        Err(error) if is_damage(&error) => {
            let lost =
                "no WAL is taken before it is whole again, and `pgkeep verify` cannot compare WAL with it";
            findings.push(Finding::damage(error.to_string(), lost).of(layout::identity(cluster)));
            None
        }
        other => other?,
    };
    ArchiveState::read_bound(repository, cluster, identity).await
}

pub(super) fn check(
    state: &ArchiveState,
    cluster: &ClusterName,
    listed: &[Listed],
    expired: &Expired,
    report: &mut CheckReport,
) {
    report.segments = state.inventory.segments.values().map(|timeline| timeline.len() as u64).sum();
    let (mut holes, mut newest_start) = (Holes::new(), 0);
    let physical = listed.iter().filter_map(|backup| backup.manifest.as_ref().ok());
    for manifest in physical.filter(|manifest| !manifest.is_logical()) {
        newest_start = newest_start.max(manifest.span().start_lsn);
        match reach(state, manifest) {
            Ok((reach, stop)) => {
                report.findings.extend(collect(&mut holes, manifest, &reach, stop, expired));
            }
            Err(why) => {
                let lost = format!("backup {} cannot be restored", manifest.id);
                let finding = Finding::damage(why, lost).hurting(vec![manifest.id.clone()]);
                report.findings.push(finding.of(layout::manifest(cluster, &manifest.id)));
            }
        }
    }
    report.findings.extend(holes.iter().map(|(hole, hurt)| hole_finding(state, cluster, *hole, hurt)));
    gaps(state, &holes, newest_start, report);
    for (timeline, why) in &state.damaged_histories {
        let what = format!("the history of timeline {timeline} cannot be used: {why}");
        let finding = Finding::damage(what, format!("nothing can be restored along timeline {timeline}"));
        report.findings.push(finding.of(layout::wal_file(cluster, &FileName::History(*timeline))));
    }
    let told = layout::identity(cluster).to_string();
    let is_told = report.findings.iter().any(|finding| finding.object.as_ref() == Some(&told));
    if state.identity.is_none() && report.segments > 0 && !is_told {
        let what = "what the cluster's WAL is bound to is missing";
        let finding = Finding::warning(what, "another cluster could store its WAL among this one's");
        report.findings.push(finding.of(layout::identity(cluster)));
    }
}

/// How far the WAL of a backup goes, and where the backup is consistent.
fn reach(state: &ArchiveState, manifest: &Manifest) -> Result<(Reach, Lsn), String> {
    let unusable = |what: &str| format!("the manifest has no usable {what}");
    let BackupPlace { timeline, start, stop, size } = BackupPlace::of(manifest).map_err(unusable)?;
    let path = state.path(TargetTimeline::Latest, timeline, stop).map_err(|error| error.to_string())?;
    Ok((continuous_until(&state.inventory, &path, start, size), stop))
}

/// Adds the backup's holes to those of the others; a finding if its WAL ends too early without a hole.
fn collect(
    holes: &mut Holes,
    manifest: &Manifest,
    reach: &Reach,
    stop: Lsn,
    expired: &Expired,
) -> Option<Finding> {
    let is_lost = reach.end < stop;
    // What a backup itself needs is never missing on purpose.
    let missed = reach.holes.iter().filter(|hole| is_lost || !expired.has_wal_up_to(hole.to));
    for (number, Hole { timeline, from, to }) in missed.enumerate() {
        let hurt = holes.entry((*timeline, *from, *to)).or_default();
        let group = match number {
            0 if is_lost => &mut hurt.lost,
            0 => &mut hurt.short,
            _ => &mut hurt.later,
        };
        group.push(manifest.id.clone());
    }
    (is_lost && reach.holes.is_empty()).then(|| {
        let what =
            format!("the stored WAL ends at {}, and backup {} needs it up to {stop}", reach.end, manifest.id);
        Finding::damage(what, format!("backup {} cannot be restored", manifest.id))
            .hurting(vec![manifest.id.clone()])
    })
}

fn hole_finding(
    state: &ArchiveState,
    cluster: &ClusterName,
    (timeline, from, to): (TimelineId, Lsn, Lsn),
    hurt: &Hurt,
) -> Finding {
    let mut what = Hole { timeline, from, to }.to_string();
    if let Some((_, note)) = state.gaps.iter().find(|(gap, _)| gap.from < to && from < gap.to) {
        what.push_str(&format!("; the server no longer had it: {}", note.why));
    }
    let mut parts = Vec::new();
    if !hurt.lost.is_empty() {
        parts.push(format!("{} cannot be restored", in_words(&hurt.lost)));
    }
    if !hurt.short.is_empty() {
        parts.push(format!("{} can be restored up to LSN {from}", in_words(&hurt.short)));
    }
    if parts.is_empty() {
        parts.push(format!("nothing reaches past LSN {from} from a backup before it"));
    }
    let finding = Finding::damage(what, parts.join("; "));
    let backups = [&hurt.lost[..], &hurt.short, &hurt.later].concat();
    let finding = finding.hurting(backups);
    match state.segment_size() {
        Some(size) => {
            let segment = SegmentName::containing(timeline, from, size);
            finding.of(layout::wal_file(cluster, &FileName::Segment(segment)))
        }
        None => finding,
    }
}

/// Gaps that no backup's WAL runs into: the newest backup begins behind them, or there is none.
fn gaps(state: &ArchiveState, holes: &Holes, newest_start: u64, report: &mut CheckReport) {
    for (gap, note) in state.open_gaps() {
        if holes.keys().any(|(_, from, to)| gap.from < *to && *from < gap.to) {
            continue;
        }
        let what = format!("the server no longer had the WAL {gap}: {}", note.why);
        report.findings.push(if newest_start >= gap.to.get() {
            Finding::warning(what, "nothing between the backups before and after it can be restored")
        } else {
            Finding::damage(what, "nothing after it can be restored before the next backup: take one now")
        });
    }
}
