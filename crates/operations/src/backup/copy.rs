//! Copying the files: a planner lists and compares, workers read, the collector writes the file list.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use repository::content::EntryKind;
use repository::manifest::{Manifest, PageFinding, PageRef};
use repository::pack::PackMemory;
use server::files::{Batch, FileKind, FileSource, FoundFile};
use tokio::runtime::Handle;

use super::Context;
use super::collect::{Collected, Collector, Outcome, plain_entry};
use super::earlier::{Earlier, EarlierPacks, EarlierStreams, Verdict};
use super::error::BackupError;
use super::upload::Uploader;
use super::worker::{FileJob, SpanDone, SpanJob, Worker};
use crate::monitor::{Event, Monitor};

/// Memory for packs, for each worker: one pack being filled, which takes up to 22 MiB, and a third of one on its way.
const PACK_MEMORY: usize = 28 << 20;
/// Entries that need no reading are handed to the collector in groups.
const READY_GROUP: usize = 256;
/// Pieces that may be planned past the one that the file list waits for: what is done out of order stays in memory.
const MAX_AHEAD: u64 = 64;

/// So many bytes that are taken over unread count as one that is read.
const UNREAD_SHARE: u64 = 4;

/// As many spans as the source wants to know of at once, so that small files do not cost a hand-over each.
struct Work {
    number: u64,
    spans: Vec<SpanJob>,
}

/// Everything that the copying leaves.
pub(crate) struct Copied {
    pub(crate) collected: Collected,
    pub(crate) warnings: Vec<String>,
}

/// Copies every file of the source. Runs on the calling thread and on as many as the context has workers.
#[allow(clippy::too_many_arguments, reason = "the parts of one backup, each of another kind")]
pub(crate) fn copy_files(
    context: &Context,
    source: &dyn FileSource,
    earlier: &[Earlier],
    packs: &EarlierPacks,
    known: &[PageRef],
    partial: Manifest,
    uploader: &Uploader,
    handle: &Handle,
    monitor: &dyn Monitor,
) -> Result<Copied, BackupError> {
    let (work_in, work_out) = bounded::<Work>(context.workers * 2);
    let (done_in, done_out) = bounded::<(u64, Outcome)>(256);
    let written = AtomicU64::new(0);
    let memory = PackMemory::bounded(context.workers * PACK_MEMORY);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..context.workers)
            .map(|_| {
                let (work, done) = (work_out.clone(), done_in.clone());
                let worker =
                    Worker::new(context, source.reader(), uploader.clone(), memory.clone(), handle.clone());
                scope.spawn(move || run_worker(worker, &work, &done, uploader, &context.stop, monitor))
            })
            .collect();
        let planner = {
            let (handle, written) = (handle.clone(), &written);
            scope.spawn(move || {
                let streams = EarlierStreams::open(&context.repository, earlier, packs, handle)?;
                let mut planner = Planner {
                    context,
                    streams,
                    work: work_in,
                    done: done_in,
                    number: 0,
                    written,
                    batch: source.batch(),
                    spans: Vec::new(),
                    ready: Vec::new(),
                    bytes: 0,
                    ranges: 0,
                };
                let result = planner.run(source);
                if result.is_err() {
                    context.stop.store(true, Ordering::Release);
                }
                result
            })
        };
        drop(work_out);
        let mut collector = Collector::new(context, uploader.clone(), handle.clone(), known, partial);
        let taken = take_all(&mut collector, &done_out, &written, &context.stop);
        let planned = planner.join().expect("the planner does not panic");
        for worker in workers {
            worker.join().expect("a worker does not panic")?;
        }
        let (warnings, inherited) = planned?;
        taken?;
        uploader.wait()?;
        // Whoever had it stopped from outside knows why; what there is of the file list is not whole.
        if context.stop.load(Ordering::Acquire) {
            return Err(BackupError::Stopped);
        }
        let mut collected = collector.finish()?;
        collected.findings.extend(inherited);
        Ok(Copied { collected, warnings })
    })
}

/// Gives the collector what was done until nothing more comes; after a failure the rest is dropped, so that nobody waits.
fn take_all(
    collector: &mut Collector<'_>,
    done: &Receiver<(u64, Outcome)>,
    written: &AtomicU64,
    stop: &AtomicBool,
) -> Result<(), BackupError> {
    let mut taken = Ok(());
    for (number, outcome) in done {
        if taken.is_ok() {
            taken = collector.take(number, outcome).inspect_err(|_| stop.store(true, Ordering::Release));
        }
        written.store(collector.next(), Ordering::Release);
    }
    taken
}

fn run_worker(
    mut worker: Worker<'_>,
    work: &Receiver<Work>,
    done: &Sender<(u64, Outcome)>,
    uploader: &Uploader,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<(), BackupError> {
    let _guard = StopOnPanic(stop);
    for piece in work {
        if stop.load(Ordering::Acquire) || uploader.failed() {
            stop.store(true, Ordering::Release);
            return Ok(());
        }
        let spans = match read_spans(&mut worker, &piece, stop, monitor) {
            Ok(spans) => spans,
            // Whoever stopped it has the reason.
            Err(BackupError::Stopped) => return Ok(()),
            Err(error) => {
                stop.store(true, Ordering::Release);
                return Err(error);
            }
        };
        if done.send((piece.number, Outcome::Read(spans))).is_err() {
            return Ok(());
        }
    }
    worker.finish()
}

fn read_spans(
    worker: &mut Worker<'_>,
    piece: &Work,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Vec<SpanDone>, BackupError> {
    worker.announce(&piece.spans)?;
    let mut spans = Vec::with_capacity(piece.spans.len());
    for span in &piece.spans {
        // A piece may be long; whoever stopped the backup shall not wait for its end.
        if stop.load(Ordering::Acquire) {
            return Err(BackupError::Stopped);
        }
        let span = worker.span(span)?;
        monitor.event(Event::Advanced { bytes: span.length });
        spans.push(span);
    }
    Ok(spans)
}

/// Nobody may wait for the work of a thread that is gone.
struct StopOnPanic<'s>(&'s AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Release);
        }
    }
}

struct Planner<'p> {
    context: &'p Context,
    streams: EarlierStreams<'p>,
    work: Sender<Work>,
    done: Sender<(u64, Outcome)>,
    number: u64,
    /// How many pieces are in the file list.
    written: &'p AtomicU64,
    batch: Batch,
    spans: Vec<SpanJob>,
    bytes: u64,
    ranges: usize,
    ready: Vec<repository::content::Entry>,
}

impl Planner<'_> {
    fn run(&mut self, source: &dyn FileSource) -> Result<(Vec<String>, Vec<PageFinding>), BackupError> {
        let mut failure = None;
        let warnings = source.walk(&mut |found| match self.plan(found) {
            Ok(()) if self.context.stop.load(Ordering::Acquire) => ControlFlow::Break(()),
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        self.hand_over_spans();
        self.hand_over_ready();
        let inherited = std::mem::take(&mut self.streams.inherited);
        Ok((warnings.iter().map(ToString::to_string).collect(), inherited))
    }

    fn plan(&mut self, found: FoundFile) -> Result<(), BackupError> {
        match &found.kind {
            FileKind::Directory => self.ready(plain_entry(&found, EntryKind::Directory, Vec::new())),
            FileKind::Symlink { target } => {
                self.ready(plain_entry(&found, EntryKind::TablespaceLink, target.clone()));
            }
            FileKind::File if found.path == pg::datadir::CONTROL_FILE => {}
            FileKind::File => match self.streams.verdict(&found, &self.context.repository)? {
                Verdict::Unchanged(entry) => self.ready(entry),
                Verdict::Read(candidates, parent) => self.read(FileJob { found, candidates, parent }),
            },
        }
        Ok(())
    }

    fn ready(&mut self, entry: repository::content::Entry) {
        self.hand_over_spans();
        self.ready.push(entry);
        if self.ready.len() >= READY_GROUP {
            self.hand_over_ready();
        }
    }

    fn read(&mut self, file: FileJob) {
        self.hand_over_ready();
        let file = Arc::new(file);
        for index in 0..file.spans() {
            let summary = self.context.summary.as_ref().zip(file.parent());
            let plan = summary.and_then(|(summary, parent)| summary.plan(&file.found, parent, index));
            if let Some(plan) = &plan {
                let segment_blocks = self.context.segment_blocks;
                let is_taken = |found: &PageFinding| plan.takes(index, found.block % segment_blocks);
                self.streams.inherit(&file.found.path, is_taken);
            }
            let (start, end) = file.span(index);
            let span = SpanJob { file: file.clone(), index, plan };
            let ranges = span.ranges();
            // What is not read has its share: the outcomes of a piece wait in memory for those before.
            self.bytes +=
                ranges.iter().map(|range| range.length).sum::<u64>().max((end - start) / UNREAD_SHARE);
            self.ranges += ranges.len().max(1);
            self.spans.push(span);
            if self.bytes >= self.batch.bytes || self.ranges >= self.batch.ranges {
                self.hand_over_spans();
            }
        }
    }

    fn hand_over_spans(&mut self) {
        (self.bytes, self.ranges) = (0, 0);
        if !self.spans.is_empty() {
            let work = Work { number: self.next_number(), spans: std::mem::take(&mut self.spans) };
            // Nobody takes work any more only after a failure, which its thread reports.
            drop(self.work.send(work));
        }
    }

    fn hand_over_ready(&mut self) {
        if !self.ready.is_empty() {
            let ready = Outcome::Ready(std::mem::take(&mut self.ready));
            let number = self.next_number();
            drop(self.done.send((number, ready)));
        }
    }

    /// The number of the next piece, as soon as the file list is near enough.
    fn next_number(&mut self) -> u64 {
        let most = MAX_AHEAD.max(self.context.workers as u64 * 8);
        while self.number >= self.written.load(Ordering::Acquire) + most
            && !self.context.stop.load(Ordering::Acquire)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.number += 1;
        self.number - 1
    }
}

#[cfg(test)]
mod tests;
