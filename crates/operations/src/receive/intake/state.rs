//! What is open, and what is to be done next; plain values under the intake's lock.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pg::wal::SegmentName;
use pg::{Lsn, TimelineId};
use repository::archive::Part;
use server::connection::Waker;
use tokio::time::Instant;

use super::super::segment::{OpenSegment, Stretch, Ticket};

/// A piece of work for whoever stores.
pub(in crate::receive) enum Work {
    /// Store the whole segment.
    Whole(Ticket, SegmentName, Arc<Stretch>),
    /// Store a part.
    Part(Ticket, Part, Arc<Stretch>),
    /// See whether parts that an earlier run left hold what came.
    Compare(Ticket, Vec<(Part, Arc<Stretch>)>),
    /// Remove parts of which more is stored elsewhere.
    Remove(Vec<Part>),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) open: VecDeque<OpenSegment>,
    /// How many segments were opened.
    pub(super) opened: u64,
    /// Where the next byte is expected when nothing is open.
    pub(super) next: Option<(TimelineId, Lsn)>,
    /// Up to where everything is in the repository, on the timeline of the first open segment, or of the last one stored.
    pub(super) durable: Option<(TimelineId, Lsn)>,
    /// Parts that nobody needs any more.
    pub(super) superseded: Vec<Part>,
    /// Such parts are being removed.
    pub(super) removing: usize,
    /// A file that can be used again.
    pub(super) spare: Option<File>,
    pub(super) waker: Option<Arc<Waker>>,
    pub(super) failed: bool,
}

impl State {
    pub(super) fn position(&self) -> Option<(TimelineId, Lsn)> {
        match self.open.back() {
            Some(last) => Some((last.name.timeline, Lsn::new(last.end())?)),
            None => self.next,
        }
    }

    pub(super) fn close_last(&mut self) {
        if let Some(last) = self.open.back_mut() {
            last.closed = true;
        }
        // What it has may be stored already.
        self.settle();
    }

    pub(super) fn is_drained(&self) -> bool {
        self.open.iter().all(|segment| segment.is_done() || segment.filled == 0)
            && self.superseded.is_empty()
            && self.removing == 0
    }

    /// Lets go of what is stored, in order.
    pub(super) fn settle(&mut self) {
        while let Some(first) = self.open.front() {
            let durable = first.durable().map(|lsn| (first.name.timeline, lsn));
            if !first.is_done() {
                self.durable = durable;
                return;
            }
            self.next = Lsn::new(first.end()).map(|end| (first.name.timeline, end));
            self.durable = durable;
            let first = self.open.pop_front().expect("it was just looked at");
            if first.is_stored {
                self.superseded.extend(&first.parts);
            }
            self.spare = first.into_file().or(self.spare.take());
        }
    }

    pub(super) fn next_work(
        &mut self,
        now: Instant,
        max_lag: Duration,
        stored: Timestamp,
    ) -> Result<Work, Option<Instant>> {
        if !self.superseded.is_empty() {
            self.removing += 1;
            return Ok(Work::Remove(std::mem::take(&mut self.superseded)));
        }
        // Only of the first: the repository has no hole that a restart would have to find, what is said to be durable has none
        // before it, and a segment is stored only when the server was told of everything before it.
        let Some(first) = self.open.front_mut().filter(|first| first.has_header()) else { return Err(None) };
        let compared = if first.part_under_way { Vec::new() } else { first.to_compare() };
        if !compared.is_empty() {
            first.part_under_way = true;
            first.cut_at = None;
            let parts = compared.into_iter().map(|part| (part, first.part(part, stored))).collect();
            return Ok(Work::Compare(first.ticket, parts));
        }
        if first.is_full() {
            // Parts that hold something else are a conflict, which is told before anything takes their place.
            if first.is_stored || first.whole_under_way || !first.unseen.is_empty() {
                return Err(None);
            }
            first.whole_under_way = true;
            return Ok(Work::Whole(first.ticket, first.name, first.whole(stored)));
        }
        if first.part_under_way || first.claimed > first.shipped {
            return Err(None);
        }
        let Some(since) = first.waiting_since.filter(|_| first.filled > first.shipped) else {
            return Err(None);
        };
        if !first.closed
            && let Some(due) = not_due(first, since, now, max_lag)
        {
            return Err(Some(due));
        }
        first.part_under_way = true;
        first.cut_at = Some(now);
        let part = first.next_part();
        Ok(Work::Part(first.ticket, part, first.part(part, stored)))
    }
}

/// When a part is due of a segment whose first byte that is in none came at `since`; `None` if that is now. Of a segment that is
/// about to be stored whole none is stored any more, unless that takes half as long again.
fn not_due(first: &OpenSegment, since: Instant, now: Instant, max_lag: Duration) -> Option<Instant> {
    let (due, latest) = (since + max_lag, since + max_lag + max_lag / 2);
    if now < due {
        return Some(due);
    }
    let waits = now < latest && first.full_at(since, now).is_some_and(|full| full <= latest);
    waits.then_some(latest)
}
