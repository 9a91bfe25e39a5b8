//! A span of which some pages are the parent's, unread.

use std::ops::Range;
use std::sync::Arc;

use repository::chunk::{MAX_CHUNK, PAGE, short};
use repository::content::{Extent, ExtentBuilder};
use repository::pages::{PageAt, leaf_span};

use super::{BackupError, FileJob, SpanDone, Worker, display_path};
use crate::backup::changes::{PageWay, SpanPlan, Summary};

/// What does not change while a span is read.
struct Part<'p> {
    job: &'p FileJob,
    /// Where the span begins in its file.
    start: u64,
    summary: &'p Summary,
    /// The span's pages in earlier backups, the parent's last.
    earlier: &'p [Vec<PageAt>],
}

impl Part<'_> {
    fn parent(&self) -> &[PageAt] {
        self.earlier.last().map_or(&[], Vec::as_slice)
    }

    /// Names pages of the parent again.
    fn take(&self, pages: Range<usize>, builder: &mut ExtentBuilder) {
        for page in &self.parent()[pages] {
            builder.push(Extent { length: PAGE as u64, ..page.extent }, page.chunk_len);
        }
    }
}

impl Worker<'_> {
    /// Reads what is to be read of a span, and takes the rest over. False if the parent's pages cannot be known: then the whole
    /// span is to be read.
    pub(super) fn partly(
        &mut self,
        job: &Arc<FileJob>,
        index: u32,
        plan: &SpanPlan,
        done: &mut SpanDone,
    ) -> Result<bool, BackupError> {
        let Some((parent, summary)) = job.parent().zip(self.context.summary.as_ref()) else {
            return Ok(false);
        };
        let (start, end) = job.span(index);
        let is_untouched = plan.reads().next().is_none() && leaf_span(parent.size, index) == end - start;
        let known = if is_untouched {
            self.handle
                .block_on(self.context.repository.span_extents(parent, index))
                .map(|extents| (extents, Vec::new()))
        } else {
            self.expand(parent, index).map(|pages| (Vec::new(), pages))
        };
        let (extents, pages) = match known {
            Ok(known) => known,
            Err(error) => {
                let path = display_path(&parent.path);
                tracing::warn!(%path, %error, "the last backup of this file cannot be read; it is read whole");
                return Ok(false);
            }
        };
        // Whoever changed the file before it was listed is in the WAL, and not in what is taken over: the next backup
        // must not trust the time that it was listed with. Nor is the sum of all bytes known.
        done.settled = false;
        done.partial = true;
        if is_untouched {
            (done.extents, done.length) = (extents, end - start);
            return Ok(true);
        }
        // The parent's come last, as its entry does.
        let attempts = &job.candidates[..job.parent.unwrap_or_default()];
        let mut earlier = self.earlier_pages(attempts, index);
        earlier.push(pages);
        let part = Part { job, start, summary, earlier: &earlier };
        let mut builder = ExtentBuilder::default();
        for run in plan.runs() {
            let whole = if plan.pages()[run.start] == PageWay::Take {
                part.take(run.clone(), &mut builder);
                done.length += (run.len() * PAGE) as u64;
                true
            } else {
                self.read_run(&part, run.start, &plan.pages()[run], &mut builder, done)?
            };
            if !whole {
                break;
            }
        }
        if done.vanished {
            done.length = 0;
        } else {
            done.extents = builder.finish();
        }
        Ok(true)
    }

    /// Reads a run of pages. False if the file ends before the run does.
    fn read_run(
        &mut self,
        part: &Part<'_>,
        first: usize,
        ways: &[PageWay],
        builder: &mut ExtentBuilder,
        done: &mut SpanDone,
    ) -> Result<bool, BackupError> {
        let path = &part.job.found.path;
        let Some(file) = self.open_file(path)? else {
            done.vanished = true;
            return Ok(false);
        };
        let first_block = self.first_block(path);
        let mut page = first;
        for ways in ways.chunks(MAX_CHUNK / PAGE) {
            let (at, wanted) = (part.start + (page * PAGE) as u64, ways.len() * PAGE);
            let Some(len) = self.region.read(&*file, path, at, wanted, first_block, done)? else {
                done.vanished = true;
                return Ok(false);
            };
            self.check_sample(part, page, &ways[..len / PAGE])?;
            done.new_bytes += self.store_region(len, page, part.earlier, builder)?;
            done.length += len as u64;
            page += ways.len();
            if len < wanted {
                return Ok(false);
            }
        }
        self.open = Some((path.clone(), file));
        Ok(true)
    }

    /// Fails if a page in the region that was to be the parent's is another one, by a change that the summaries had to name.
    fn check_sample(&self, part: &Part<'_>, first: usize, ways: &[PageWay]) -> Result<(), BackupError> {
        for (number, _) in ways.iter().enumerate().filter(|(_, way)| **way == PageWay::Sample) {
            let page = &self.region.bytes[number * PAGE..][..PAGE];
            let is_parents = part.parent()[first + number].digest == short(&self.region.digests[number]);
            if !is_parents && part.summary.missed(page) {
                let block = part.start / PAGE as u64 + (first + number) as u64;
                return Err(BackupError::SummaryMissed { path: display_path(&part.job.found.path), block });
            }
        }
        Ok(())
    }
}
