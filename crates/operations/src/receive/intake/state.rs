//! What is open, and what is to be done next; plain values under the intake's lock.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pg::wal::SegmentName;
use pg::{Lsn, TimelineId};
use repository::archive::{Part, cover};
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
        if let Some(first) = self.open.front_mut().filter(|first| first.is_full()) {
            if first.is_stored || first.whole_under_way {
                return Err(None);
            }
            first.whole_under_way = true;
            return Ok(Work::Whole(first.ticket, first.name, first.whole(stored)));
        }
        let is_free = |first: &&mut OpenSegment| !first.part_under_way && first.has_header();
        let Some(first) = self.open.front_mut().filter(is_free) else { return Err(None) };
        if first.claimed > first.shipped {
            if first.filled < first.claimed {
                return Err(None);
            }
            first.part_under_way = true;
            first.cut_at = None;
            let parts = cover(&first.parts);
            let parts = parts.into_iter().map(|part| (part, first.part(part, stored))).collect();
            return Ok(Work::Compare(first.ticket, parts));
        }
        let Some(since) = first.waiting_since.filter(|_| first.filled > first.shipped) else {
            return Err(None);
        };
        let due = since + max_lag;
        if now < due && !first.closed {
            return Err(Some(due));
        }
        first.part_under_way = true;
        first.cut_at = Some(now);
        let part = first.next_part();
        Ok(Work::Part(first.ticket, part, first.part(part, stored)))
    }
}
