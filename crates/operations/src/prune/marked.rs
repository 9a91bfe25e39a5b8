//! Which packs were marked, and which of them may go.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use repository::PackId;
use repository::mark::Mark;

use super::roots::Roots;

/// An operation whose claim is younger than a mark by less than this may have read what was there before the mark.
const CLAIM_SLACK: SignedDuration = SignedDuration::from_hours(1);

/// Where a pack stands that was marked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Marked {
    Waits,
    Ripe,
}

/// The packs that were marked, by what for: one that was moved and is dead since needs a mark of its own, because what is at
/// work may have read where it went. One that several marks name is ripe when one of them is.
#[derive(Default)]
pub(super) struct MarkedPacks {
    pub(super) dead: HashMap<PackId, Marked>,
    pub(super) moved: HashMap<PackId, Marked>,
}

impl MarkedPacks {
    pub(super) fn of(
        marks: &[Mark],
        roots: &Roots,
        grace: SignedDuration,
        now: Option<Timestamp>,
    ) -> MarkedPacks {
        let mut marked = MarkedPacks::default();
        for mark in marks.iter().filter(|mark| !is_void(mark, roots)) {
            let state = state(mark, roots, grace, now);
            let add = |packs: &mut HashMap<PackId, Marked>, id| {
                let known = packs.entry(id).or_insert(state);
                if state == Marked::Ripe {
                    *known = state;
                }
            };
            mark.note.dead().for_each(|id| add(&mut marked.dead, id));
            mark.note.moved().for_each(|id| add(&mut marked.moved, id));
        }
        marked
    }
}

/// Whether something that was dead is named again. When that goes, what is at work may have read it, long after the mark: all
/// of it is marked anew.
pub(super) fn is_void(mark: &Mark, roots: &Roots) -> bool {
    mark.note.dead().any(|id| roots.live.contains(id))
}

/// Whether what a mark names may go, as far as time and operations at work tell.
fn state(mark: &Mark, roots: &Roots, grace: SignedDuration, now: Option<Timestamp>) -> Marked {
    let (Some(made), Some(now)) = (mark.made, now) else { return Marked::Waits };
    let old_enough = now.duration_since(made) >= grace;
    if storage::planted::has("prune.no-grace") || old_enough && storage::planted::has("prune.claims-ignored")
    {
        return Marked::Ripe;
    }
    let holds = |claimed: Option<Timestamp>| {
        claimed.is_none_or(|claimed| claimed.duration_since(made) <= CLAIM_SLACK)
    };
    // A backup that came after the mark, named again what was dead, and was expired since: whatever is at work may have read it.
    let came_and_went = |(backup, noted): &(String, Option<Timestamp>)| {
        noted.is_none_or(|noted| noted >= made) && !mark.note.backups.contains(backup)
    };
    let is_held = roots.at_work.iter().any(|claim| holds(claim.made))
        || !roots.at_work.is_empty() && roots.expired.iter().any(came_and_went);
    if old_enough && !is_held { Marked::Ripe } else { Marked::Waits }
}
