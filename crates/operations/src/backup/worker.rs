//! A worker: reads a region, checks its pages, compares them with the parent's, gathers what changed into chunks.
//!
//! One worker does everything to its region before it takes the next, with buffers and contexts of its own.

mod partly;

use std::sync::Arc;

use pg::datadir::{self, RelationFile};
use repository::RepositoryError;
use repository::chunk::{Codec, MAX_CHUNK, PAGE, short};
use repository::content::{Entry, Extent, ExtentBuilder, LEAF_SPAN};
use repository::manifest::PageFinding;
use repository::pack::{PackMemory, PackWriter};
use repository::pages::PageAt;
use server::files::{FoundFile, OpenFile, Range, Reader};
use tokio::runtime::Handle;

use super::changes::SpanPlan;
use super::error::{BackupError, display_path};
use super::region::Region;
use super::upload::Uploader;
use super::{Context, settled};

/// One file to be read.
pub(crate) struct FileJob {
    pub(crate) found: FoundFile,
    /// What earlier backups stored of this file, the likeliest first.
    pub(crate) candidates: Vec<Entry>,
    /// Which of these is the parent's, if pages of it may be taken over unread.
    pub(crate) parent: Option<usize>,
}

/// A span that is to be read, whole or as planned.
pub(crate) struct SpanJob {
    pub(crate) file: Arc<FileJob>,
    pub(crate) index: u32,
    pub(crate) plan: Option<SpanPlan>,
}

impl SpanJob {
    /// The pieces of the file that will be read, in order.
    pub(crate) fn ranges(&self) -> Vec<Range<'_>> {
        let (path, (start, end)) = (&self.file.found.path[..], self.file.span(self.index));
        let Some(plan) = &self.plan else {
            return vec![Range { path, offset: start, length: end - start }];
        };
        let range = |run: std::ops::Range<usize>| Range {
            path,
            offset: start + (run.start * PAGE) as u64,
            length: (run.len() * PAGE) as u64,
        };
        plan.reads().map(range).collect()
    }
}

impl FileJob {
    /// The parent's entry, if pages of it may be taken over unread.
    pub(crate) fn parent(&self) -> Option<&Entry> {
        self.candidates.get(self.parent?)
    }

    pub(crate) fn spans(&self) -> u32 {
        self.found.size.div_ceil(LEAF_SPAN).max(1) as u32
    }

    /// Where a span begins and ends, by the size with which the file was listed.
    pub(crate) fn span(&self, index: u32) -> (u64, u64) {
        let start = u64::from(index) * LEAF_SPAN;
        (start, (start + LEAF_SPAN).min(self.found.size))
    }
}

/// One span of a file after it was read.
pub(crate) struct SpanDone {
    pub(crate) job: Arc<FileJob>,
    pub(crate) index: u32,
    pub(crate) extents: Vec<Extent>,
    /// Bytes of the file; fewer than the span has when the file was truncated meanwhile.
    pub(crate) length: u64,
    /// Of which so many were read.
    pub(crate) bytes_read: u64,
    /// The others were taken over unread, so that the sum is none.
    pub(crate) partial: bool,
    pub(crate) crc32c: u32,
    pub(crate) new_bytes: u64,
    pub(crate) pages_verified: u64,
    pub(crate) findings: Vec<PageFinding>,
    /// Whoever changes the file from now on gives it another change time than it was listed with.
    pub(crate) settled: bool,
    /// Findings past the limit of those that are listed.
    pub(crate) findings_left_out: u64,
    /// The file was not there any more.
    pub(crate) vanished: bool,
}

impl SpanDone {
    /// Of which nothing is done yet.
    pub(crate) fn new(job: &Arc<FileJob>, index: u32) -> Self {
        Self {
            job: job.clone(),
            index,
            extents: Vec::new(),
            length: 0,
            bytes_read: 0,
            partial: false,
            crc32c: 0,
            new_bytes: 0,
            pages_verified: 0,
            findings: Vec::new(),
            settled: true,
            findings_left_out: 0,
            vanished: false,
        }
    }
}

pub(crate) struct Worker<'c> {
    context: &'c Context,
    reader: Box<dyn Reader + 'c>,
    uploader: Uploader,
    handle: Handle,
    codec: Codec,
    region: Region<'c>,
    memory: PackMemory,
    pack: Option<PackWriter>,
    /// New pages, up to `chunk_len`, and their digests.
    chunk: Vec<u8>,
    chunk_len: usize,
    digests: Vec<[u8; 32]>,
    open: Option<(Vec<u8>, Box<dyn OpenFile>)>,
}

impl<'c> Worker<'c> {
    pub(crate) fn new(
        context: &'c Context,
        reader: Box<dyn Reader + 'c>,
        uploader: Uploader,
        memory: PackMemory,
        handle: Handle,
    ) -> Self {
        Self {
            context,
            reader,
            uploader,
            handle,
            codec: Codec::new(context.level),
            region: Region::new(context),
            memory,
            pack: None,
            chunk: vec![0; MAX_CHUNK],
            chunk_len: 0,
            digests: Vec::with_capacity(MAX_CHUNK / PAGE),
            open: None,
        }
    }

    /// Says which spans will be read next, in this order.
    pub(crate) fn announce(&mut self, spans: &[SpanJob]) -> Result<(), BackupError> {
        let ranges: Vec<Range<'_>> = spans.iter().flat_map(SpanJob::ranges).collect();
        Ok(self.reader.announce(&ranges)?)
    }

    /// Reads one span of a file.
    pub(crate) fn span(&mut self, span: &SpanJob) -> Result<SpanDone, BackupError> {
        let SpanJob { file: job, index, plan } = span;
        let mut done = SpanDone::new(job, *index);
        if let Some(plan) = plan
            && self.partly(job, *index, plan, &mut done)?
        {
            return Ok(done);
        }
        self.wholly(job, *index, &mut done)?;
        Ok(done)
    }

    fn wholly(&mut self, job: &Arc<FileJob>, index: u32, done: &mut SpanDone) -> Result<(), BackupError> {
        let path = &job.found.path;
        let Some(file) = self.open_file(path)? else {
            done.vanished = true;
            return Ok(());
        };
        done.settled = settled::wait(&*file, job.found.ctime_ns, self.context.started_ns);
        let (start, end) = job.span(index);
        let earlier = self.earlier_pages(&job.candidates, index);
        let first_block = self.first_block(path);
        if end - start == LEAF_SPAN && earlier.is_empty() {
            // What follows is whole chunks, which need no copying when they begin at one.
            self.end_chunk()?;
        }
        let mut builder = ExtentBuilder::default();
        let mut at = start;
        while at < end {
            let wanted = (end - at).min(MAX_CHUNK as u64) as usize;
            let Some(len) = self.region.read(&*file, path, at, wanted, first_block, done)? else {
                // Where nothing is held open, a file may go away at any read: what there was ends here.
                done.vanished = at == start;
                break;
            };
            done.new_bytes += self.store_region(len, (at - start) as usize / PAGE, &earlier, &mut builder)?;
            done.length += len as u64;
            at += len as u64;
            if len < wanted {
                break;
            }
        }
        done.extents = builder.finish();
        self.open = (u64::from(index) + 1 < u64::from(job.spans())).then(|| (path.clone(), file));
        Ok(())
    }

    /// Opens a file, or takes the one that the last span left open; `None` if it is gone.
    fn open_file(&mut self, path: &[u8]) -> Result<Option<Box<dyn OpenFile>>, BackupError> {
        if let Some((open_path, file)) = self.open.take()
            && open_path == path
        {
            return Ok(Some(file));
        }
        match self.reader.open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.is_vanished() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The block number of a file's first page, for files whose pages carry checksums.
    fn first_block(&self, path: &[u8]) -> Option<u32> {
        if !self.context.verify_checksums || !datadir::has_page_checksums(path) {
            return None;
        }
        let relation = RelationFile::parse(path)?;
        datadir::first_block(relation.segment, self.context.segment_blocks)
    }

    /// Where earlier backups have the pages of a span: for each candidate a list, in page order.
    fn earlier_pages(&self, candidates: &[Entry], index: u32) -> Vec<Vec<PageAt>> {
        let mut lists = Vec::new();
        for entry in candidates {
            match self.expand(entry, index) {
                Ok(pages) => lists.push(pages),
                // Not needed: what cannot be compared is stored anew.
                Err(error) => {
                    let path = display_path(&entry.path);
                    tracing::warn!(%path, %error, "an earlier backup of this file cannot be compared with; it is stored anew");
                }
            }
        }
        lists
    }

    fn expand(&self, entry: &Entry, index: u32) -> Result<Vec<PageAt>, RepositoryError> {
        let repository = &self.context.repository;
        self.handle.block_on(async {
            let extents = repository.span_extents(entry, index).await?;
            repository.pages(&extents, &self.context.tail_lens).await
        })
    }

    /// Stores the pages of the region, `len` bytes without padding, that no earlier backup has, and notes where each page
    /// is. Returns the bytes stored.
    fn store_region(
        &mut self,
        len: usize,
        first_page: usize,
        earlier: &[Vec<PageAt>],
        builder: &mut ExtentBuilder,
    ) -> Result<u64, BackupError> {
        let pages = self.region.digests.len();
        if earlier.is_empty() && pages == MAX_CHUNK / PAGE && self.chunk_len == 0 {
            std::mem::swap(&mut self.region.bytes, &mut self.chunk);
            std::mem::swap(&mut self.region.digests, &mut self.digests);
            let at = Extent { length: len as u64, ..self.next_page() };
            builder.push(at, MAX_CHUNK as u32);
            self.chunk_len = MAX_CHUNK;
            self.end_chunk()?;
            return Ok(MAX_CHUNK as u64);
        }
        let mut new_bytes = 0;
        for number in 0..pages {
            let digest = self.region.digests[number];
            let length = PAGE.min(len - number * PAGE) as u64;
            let known = earlier
                .iter()
                .filter_map(|pages| pages.get(first_page + number))
                .find(|at| at.digest == short(&digest));
            match known {
                Some(at) => builder.push(Extent { length, ..at.extent }, at.chunk_len),
                None => {
                    builder.push(Extent { length, ..self.next_page() }, MAX_CHUNK as u32);
                    self.add_page(number, digest)?;
                    new_bytes += PAGE as u64;
                }
            }
        }
        Ok(new_bytes)
    }

    /// Where the next new page will be.
    fn next_page(&mut self) -> Extent {
        let writer = self.context.repository.access().writer();
        let pack = self.pack.get_or_insert_with(|| PackWriter::new(writer, &self.memory));
        Extent { pack: pack.id(), chunk: pack.len(), offset: self.chunk_len as u32, length: PAGE as u64 }
    }

    /// Adds page `number` of the region to the chunk.
    fn add_page(&mut self, number: usize, digest: [u8; 32]) -> Result<(), BackupError> {
        let page = &self.region.bytes[number * PAGE..][..PAGE];
        self.chunk[self.chunk_len..][..PAGE].copy_from_slice(page);
        self.chunk_len += PAGE;
        self.digests.push(digest);
        if self.chunk_len == MAX_CHUNK { self.end_chunk() } else { Ok(()) }
    }

    fn end_chunk(&mut self) -> Result<(), BackupError> {
        if self.chunk_len == 0 {
            return Ok(());
        }
        let mut pack = self.pack.take().expect("a chunk with pages has its pack");
        let plain = &self.chunk[..self.chunk_len];
        pack.add_pages(&mut self.codec, self.context.repository.digester(), plain, &self.digests)?;
        self.chunk_len = 0;
        self.digests.clear();
        if pack.is_full() {
            self.uploader.submit(pack.finish());
        } else {
            self.pack = Some(pack);
        }
        Ok(())
    }

    /// Ends the worker's last chunk and pack.
    pub(crate) fn finish(mut self) -> Result<(), BackupError> {
        self.end_chunk()?;
        if let Some(pack) = self.pack.take().filter(|pack| !pack.is_empty()) {
            self.uploader.submit(pack.finish());
        }
        Ok(())
    }
}
