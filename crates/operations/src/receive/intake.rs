//! What came and is not stored yet: the one place where the thread that receives and the task that stores meet.
//!
//! Segments stand in order. All but the last are complete, or were left where their timeline ended. Everything before the
//! first one is in the repository; of the first one, as much as its parts have.

mod state;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use pg::wal::{SegmentName, SegmentSize};
use pg::{Lsn, TimelineId};
use repository::archive::Part;
use server::connection::Waker;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::segment::{OpenSegment, Ticket, spool_file};
use crate::failpoint;
use state::State;
pub(super) use state::Work;

/// Complete segments that may wait to be stored; two at least, whatever their size.
const WAITING_BYTES: u64 = 64 << 20;

/// What the parts of an earlier run hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Compared {
    /// What came.
    Same,
    /// Nothing: somebody removed them.
    Gone,
    /// It could not be seen.
    Again,
}

/// See the module.
pub(super) struct Intake {
    size: SegmentSize,
    folder: PathBuf,
    state: Mutex<State>,
    /// Tells whoever stores that there may be work.
    pub(super) news: Notify,
    room: Condvar,
}

impl Intake {
    pub(super) fn new(size: SegmentSize, folder: PathBuf) -> Self {
        Self { size, folder, state: Mutex::default(), news: Notify::new(), room: Condvar::new() }
    }

    /// Bytes of a segment.
    pub(super) fn size(&self) -> SegmentSize {
        self.size
    }

    /// Whom to wake when more has become durable.
    pub(super) fn wake(&self, waker: Option<Arc<Waker>>) {
        self.lock().waker = waker;
    }

    /// Begins at the start of a segment, of which an earlier run left `parts`. What is open stays so until it is stored.
    pub(super) fn begin(&self, segment: SegmentName, parts: Vec<Part>) -> io::Result<()> {
        let mut state = self.lock();
        state.close_last();
        let opened = self.open(&mut state, segment, parts)?;
        state.open.push_back(opened);
        state.settle();
        self.news.notify_one();
        Ok(())
    }

    fn open(&self, state: &mut State, name: SegmentName, parts: Vec<Part>) -> io::Result<OpenSegment> {
        let file = match state.spare.take() {
            Some(file) => file,
            None => spool_file(&self.folder)?,
        };
        state.opened += 1;
        Ok(OpenSegment::new(Ticket(state.opened), name, self.size, file, parts))
    }

    /// Takes bytes that begin at `position()`.
    pub(super) fn take(&self, mut bytes: &[u8], now: Instant) -> io::Result<()> {
        let mut state = self.lock();
        while !bytes.is_empty() {
            if state.open.back().is_none_or(|last| last.is_full() || last.closed) {
                let (timeline, at) = state.position().expect("bytes come after `begin`");
                debug_assert_eq!(self.size.offset_of(at.get()), 0, "a closed segment was begun again");
                let name = SegmentName::containing(timeline, at, self.size);
                let opened = self.open(&mut state, name, Vec::new())?;
                state.open.push_back(opened);
            }
            let last = state.open.back_mut().expect("one was just opened");
            let (was_waiting, claimed) = (last.waiting_since.is_some(), last.filled < last.claimed);
            let taken = last.take(bytes, now)?;
            bytes = &bytes[taken..];
            if last.is_full() {
                failpoint::reach("receive.segment-full");
            }
            // The first byte that no part has makes one due a while later; more of them change nothing.
            if last.is_full() || !was_waiting || claimed {
                self.news.notify_one();
            }
        }
        Ok(())
    }

    /// Where the next byte is expected; `None` before `begin`.
    pub(super) fn position(&self) -> Option<(TimelineId, Lsn)> {
        self.lock().position()
    }

    /// Whether bytes may follow at `position()`: a segment that was closed has to be begun again.
    pub(super) fn can_go_on(&self) -> bool {
        let state = self.lock();
        match state.open.back() {
            Some(last) => !last.closed || last.is_full(),
            None => state.next.is_some_and(|(_, at)| self.size.offset_of(at.get()) == 0),
        }
    }

    /// Up to where everything that came of a timeline is in the repository. What is stored of another one says nothing of
    /// this: a promoted server may write anew what its predecessor had written otherwise.
    pub(super) fn durable(&self, timeline: TimelineId) -> Option<Lsn> {
        self.lock().durable.filter(|(of, _)| *of == timeline).map(|(_, lsn)| lsn)
    }

    /// Says that nothing more of the last segment comes: what it has is stored at once.
    pub(super) fn close(&self) {
        self.lock().close_last();
        self.news.notify_one();
    }

    /// Waits until another segment may come, `limit` at most; false when it may not.
    pub(super) fn wait_for_room(&self, limit: Duration) -> bool {
        let most = ((WAITING_BYTES / u64::from(self.size.bytes())) as usize).max(2);
        let state = self.lock();
        let full = |state: &mut State| state.open.len() > most && !state.failed;
        let (state, _) =
            self.room.wait_timeout_while(state, limit, full).unwrap_or_else(PoisonError::into_inner);
        state.open.len() <= most
    }

    /// Waits until everything that came is stored, `limit` at most; false when it is not.
    pub(super) fn wait_until_stored(&self, limit: Duration) -> bool {
        let state = self.lock();
        let waits = |state: &mut State| !state.is_drained() && !state.failed;
        let (state, _) =
            self.room.wait_timeout_while(state, limit, waits).unwrap_or_else(PoisonError::into_inner);
        state.is_drained()
    }

    /// How long something that is due has been waiting to be stored. What parts of an earlier run claim to have waits for the
    /// server to send it again.
    pub(super) fn overdue(&self, now: Instant) -> Duration {
        let state = self.lock();
        let first = state.open.front().filter(|first| first.claimed <= first.filled);
        let since = first.and_then(|first| first.waiting_since);
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Whether [`Self::fail`] was called.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// Storing has failed for good: nobody is to wait for it.
    pub(super) fn fail(&self) {
        self.lock().failed = true;
        self.room.notify_all();
        self.wake_receiver();
    }

    /// Work that is due, or the moment at which some will be; `None` for neither.
    pub(super) fn next_work(
        &self,
        now: Instant,
        max_lag: Duration,
        stored: Timestamp,
    ) -> Result<Work, Option<Instant>> {
        self.lock().next_work(now, max_lag, stored)
    }

    /// A whole segment is stored (`true`), or has to be tried again.
    pub(super) fn whole_done(&self, ticket: Ticket, stored: bool) {
        self.done(ticket, |segment| {
            segment.whole_under_way = false;
            segment.is_stored = stored;
        });
    }

    /// A part is stored (`true`), or has to be tried again.
    pub(super) fn part_done(&self, ticket: Ticket, part: Part, stored: bool) {
        let mut replaced = Vec::new();
        self.done(ticket, |segment| {
            segment.part_under_way = false;
            if !stored {
                return;
            }
            if part.from == 0 {
                // One that reaches further is not replaced, whoever stored it.
                let (kept, shorter) =
                    std::mem::take(&mut segment.parts).into_iter().partition(|old| old.to > part.to);
                (segment.parts, replaced) = (kept, shorter);
                replaced.retain(|old| *old != part);
            }
            segment.parts.push(part);
            segment.have_shipped(part.to);
        });
        self.lock().superseded.append(&mut replaced);
        self.news.notify_one();
    }

    /// What came of looking at the parts of an earlier run.
    pub(super) fn compared(&self, ticket: Ticket, found: Compared) {
        self.done(ticket, |segment| {
            segment.part_under_way = false;
            match found {
                Compared::Again => {}
                Compared::Same => segment.have_shipped(segment.claimed),
                Compared::Gone => {
                    segment.parts.clear();
                    segment.have_shipped(0);
                }
            }
        });
    }

    /// Parts are removed, or stay until the next start.
    pub(super) fn removed(&self) {
        self.lock().removing -= 1;
        self.room.notify_all();
    }

    fn done(&self, ticket: Ticket, change: impl FnOnce(&mut OpenSegment)) {
        let mut state = self.lock();
        if let Some(segment) = state.open.iter_mut().find(|segment| segment.ticket == ticket) {
            change(segment);
        }
        state.settle();
        drop(state);
        self.news.notify_one();
        self.room.notify_all();
        self.wake_receiver();
    }

    fn wake_receiver(&self) {
        if let Some(waker) = &self.lock().waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
