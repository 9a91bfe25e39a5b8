//! The collector: puts what the workers did into path order, and writes the file list and the partial manifests.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use repository::PackId;
use repository::content::{Content, Entry, EntryKind, Extent, LEAF_SPAN};
use repository::file_list::{FileList, FileListWriter};
use repository::manifest::{MAX_FINDINGS, Manifest, PackRef, PageFinding, PageRef, TablespaceRecord, Totals};
use tokio::runtime::Handle;

use super::error::{BackupError, display_path};
use super::live::{count, store_content};
use super::upload::Uploader;
use super::worker::SpanDone;
use super::{Context, MAX_SPAN_FINDINGS};

/// A partial manifest is written when so much was stored, or so much time has passed, since the last one.
const PARTIAL_BYTES: u64 = 512 << 20;
pub(crate) const PARTIAL_TIME: Duration = Duration::from_secs(60);

/// Findings that are kept until the backup's end tells which of them matter; more are counted.
const MAX_KEPT_FINDINGS: usize = 16_384;

/// One numbered piece of work after it was done.
pub(crate) enum Outcome {
    /// Directories, links and files that are what they were.
    Ready(Vec<Entry>),
    /// Spans that were read.
    Read(Vec<SpanDone>),
}

/// What the collector leaves for the manifest.
pub(crate) struct Collected {
    pub(crate) list: FileList,
    pub(crate) live: HashMap<PackId, u64>,
    pub(crate) totals: Totals,
    pub(crate) findings: Vec<PageFinding>,
    pub(crate) findings_left_out: u64,
    pub(crate) vanished: Vec<String>,
    /// The tablespaces whose links are in the list.
    pub(crate) tablespaces: Vec<TablespaceRecord>,
}

pub(crate) struct Collector<'c> {
    context: &'c Context,
    uploader: Uploader,
    handle: Handle,
    list: FileListWriter,
    /// The partial manifests' shape: everything but pages and packs.
    partial: Manifest,
    waiting: BTreeMap<u64, Outcome>,
    next: u64,
    file: Option<OpenFileEntry>,
    live: HashMap<PackId, u64>,
    totals: Totals,
    findings: Vec<PageFinding>,
    findings_left_out: u64,
    vanished: Vec<String>,
    tablespaces: Vec<TablespaceRecord>,
    fresh: Vec<Entry>,
    fresh_spans: HashMap<Vec<u8>, Vec<Vec<Extent>>>,
    partials: u32,
    partial_at: (Instant, u64),
}

/// A file some of whose spans were read.
struct OpenFileEntry {
    spans: Vec<Vec<Extent>>,
    size: u64,
    crc32c: u32,
    /// Some of it was not read.
    partial: bool,
    ended: bool,
    vanished: bool,
    new: bool,
    settled: bool,
}

impl<'c> Collector<'c> {
    pub(crate) fn new(
        context: &'c Context,
        uploader: Uploader,
        handle: Handle,
        known: &[PageRef],
        partial: Manifest,
    ) -> Self {
        Self {
            list: list_writer(context, known),
            context,
            uploader,
            handle,
            partial,
            waiting: BTreeMap::new(),
            next: 0,
            file: None,
            live: HashMap::new(),
            totals: Totals::default(),
            findings: Vec::new(),
            findings_left_out: 0,
            vanished: Vec::new(),
            tablespaces: Vec::new(),
            fresh: Vec::new(),
            fresh_spans: HashMap::new(),
            partials: context.first_partial,
            partial_at: (Instant::now(), 0),
        }
    }

    /// Takes an outcome; whatever is next in order is written.
    pub(crate) fn take(&mut self, number: u64, outcome: Outcome) -> Result<(), BackupError> {
        self.waiting.insert(number, outcome);
        while let Some(outcome) = self.waiting.remove(&self.next) {
            self.next += 1;
            match outcome {
                Outcome::Ready(entries) => entries.into_iter().try_for_each(|entry| self.unchanged(entry))?,
                Outcome::Read(spans) => spans.into_iter().try_for_each(|span| self.span(span))?,
            }
        }
        self.list.take_finished().into_iter().for_each(|pack| self.uploader.submit(pack));
        self.maybe_partial()
    }

    /// How many pieces are in the list.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    fn unchanged(&mut self, entry: Entry) -> Result<(), BackupError> {
        if entry.kind == EntryKind::File {
            self.totals.files += 1;
            self.totals.bytes += entry.size;
            match &entry.content {
                Content::Inline(extents) => count(&mut self.live, extents),
                Content::Leaves(leaves) => {
                    count(&mut self.live, leaves);
                    for index in 0..leaves.len() as u32 {
                        let extents =
                            self.handle.block_on(self.context.repository.span_extents(&entry, index))?;
                        count(&mut self.live, &extents);
                    }
                }
            }
        }
        if let Some(oid) = entry.tablespace_oid() {
            self.tablespaces.push(TablespaceRecord { oid, location: entry.target.clone() });
        }
        Ok(self.list.add_entry(entry)?)
    }

    fn span(&mut self, done: SpanDone) -> Result<(), BackupError> {
        let file = self.file.get_or_insert_with(|| OpenFileEntry {
            spans: Vec::new(),
            size: 0,
            crc32c: 0,
            partial: false,
            ended: false,
            vanished: false,
            new: false,
            settled: true,
        });
        self.totals.bytes_read += done.bytes_read;
        self.totals.bytes_new += done.new_bytes;
        self.totals.pages_verified += done.pages_verified;
        let kept = done.findings.len().min(MAX_KEPT_FINDINGS - self.findings.len());
        self.findings_left_out += done.findings_left_out + (done.findings.len() - kept) as u64;
        self.findings.extend(done.findings.into_iter().take(kept));
        // A file that was truncated or removed while it was read ends at its first short span, whatever came after: the
        // WAL has both that and what was written later.
        if done.vanished && !file.ended {
            file.vanished = done.index == 0;
            file.ended = true;
        }
        if !file.ended {
            // Combining takes longer than a small file's own sum; most files have one span only.
            file.crc32c = match file.size {
                0 => done.crc32c,
                _ => crc32c::crc32c_combine(file.crc32c, done.crc32c, done.length as usize),
            };
            file.size += done.length;
            file.new |= done.new_bytes > 0;
            file.settled &= done.settled;
            file.partial |= done.partial;
            count(&mut self.live, &done.extents);
            file.spans.push(done.extents);
            file.ended = done.length < LEAF_SPAN;
        }
        if done.index + 1 < done.job.spans() {
            return Ok(());
        }
        let file = self.file.take().expect("it was just there");
        if file.vanished { self.gone(&done.job.found.path) } else { self.read_file(&done.job.found, file) }
    }

    /// A file that went away between listing and reading: normal for what the server drops, fatal for what it never does.
    fn gone(&mut self, path: &[u8]) -> Result<(), BackupError> {
        if path == b"PG_VERSION" || path == b"global/pg_filenode.map" {
            return Err(BackupError::Vanished { path: display_path(path) });
        }
        if pg::datadir::RelationFile::parse(path).is_none() && self.vanished.len() < MAX_SPAN_FINDINGS {
            self.vanished.push(display_path(path));
        }
        Ok(())
    }

    fn read_file(
        &mut self,
        found: &server::files::FoundFile,
        file: OpenFileEntry,
    ) -> Result<(), BackupError> {
        self.totals.files += 1;
        self.totals.bytes += file.size;
        let mut entry = Entry {
            path: found.path.clone(),
            kind: EntryKind::File,
            mode: found.mode,
            size: file.size,
            mtime_ns: found.mtime_ns,
            // Zero never equals the time of a file: this one will be read again.
            ctime_ns: if file.settled { found.ctime_ns } else { 0 },
            inode: found.inode,
            crc32c: if file.partial { 0 } else { file.crc32c },
            content: Content::Inline(Vec::new()),
            target: Vec::new(),
        };
        if file.new {
            self.fresh_spans.insert(entry.path.clone(), file.spans.clone());
            self.fresh.push(entry.clone());
        }
        entry.content = store_content(&mut self.list, file.size, file.spans, &mut self.live)?;
        Ok(self.list.add_entry(entry)?)
    }

    /// Writes a partial manifest of the files stored since the last one, as far as their packs are durable.
    fn maybe_partial(&mut self) -> Result<(), BackupError> {
        let (since, stored) = self.partial_at;
        let due = self.uploader.stored_bytes() >= stored + PARTIAL_BYTES
            || since.elapsed() >= self.context.partial_time;
        if !due || self.fresh.is_empty() {
            return Ok(());
        }
        self.partial_at = (Instant::now(), self.uploader.stored_bytes());
        let is_durable = |entry: &Entry| {
            let mut packs = self.fresh_spans[&entry.path].iter().flatten().map(|extent| extent.pack);
            packs.all(|pack| {
                self.context.references.contains_key(&pack) || self.uploader.reference(pack).is_some()
            })
        };
        let count_ready = self.fresh.iter().take_while(|entry| is_durable(entry)).count();
        let entries: Vec<Entry> = self.fresh.drain(..count_ready).collect();
        if entries.is_empty() {
            return Ok(());
        }
        self.write_partial(entries)
    }

    fn write_partial(&mut self, entries: Vec<Entry>) -> Result<(), BackupError> {
        let mut live = HashMap::new();
        let mut list = list_writer(self.context, &[]);
        for mut entry in entries {
            let spans = self.fresh_spans.remove(&entry.path).unwrap_or_default();
            spans.iter().for_each(|extents| count(&mut live, extents));
            entry.content = store_content(&mut list, entry.size, spans, &mut live)?;
            list.add_entry(entry)?;
        }
        let list = list.finish()?;
        for pack in &list.packs {
            live.entry(pack.id).or_default();
        }
        let mut manifest = self.partial.clone();
        let own: HashMap<PackId, PackRef> =
            list.packs.iter().map(|pack| (pack.id, PackRef::new(pack.id, pack.len, pack.tail_len))).collect();
        crate::failpoint::reach("backup.partial");
        for pack in list.packs {
            self.handle.block_on(self.context.repository.store_pack(pack))?;
        }
        manifest.pages = list.pages;
        manifest.findings = self.findings.iter().take(MAX_FINDINGS).cloned().collect();
        let reference = |id: &PackId| {
            own.get(id)
                .cloned()
                .or_else(|| self.uploader.reference(*id))
                .or_else(|| self.context.references.get(id).cloned())
        };
        manifest.packs = live.keys().filter_map(reference).collect();
        self.partials += 1;
        Ok(self.handle.block_on(self.context.repository.publish_partial(
            &self.context.cluster,
            &manifest,
            self.partials,
        ))?)
    }

    /// Ends the file list.
    pub(crate) fn finish(mut self) -> Result<Collected, BackupError> {
        assert!(self.waiting.is_empty(), "every piece of work has an outcome before the collector ends");
        let list = self.list.finish()?;
        let pages_live: Vec<Extent> = list.pages.iter().filter_map(|page| page.extent().ok()).collect();
        count(&mut self.live, &pages_live);
        Ok(Collected {
            list,
            live: self.live,
            totals: self.totals,
            findings: self.findings,
            findings_left_out: self.findings_left_out,
            vanished: self.vanished,
            tablespaces: self.tablespaces,
        })
    }
}

fn list_writer(context: &Context, known: &[PageRef]) -> FileListWriter {
    let repository = &context.repository;
    FileListWriter::new(repository.access().writer(), repository.local(), context.level, known)
}

/// An entry for a directory or a tablespace link.
pub(crate) fn plain_entry(found: &server::files::FoundFile, kind: EntryKind, target: Vec<u8>) -> Entry {
    Entry {
        path: found.path.clone(),
        kind,
        mode: found.mode,
        size: 0,
        mtime_ns: 0,
        ctime_ns: 0,
        inode: 0,
        crc32c: 0,
        content: Content::Inline(Vec::new()),
        target,
    }
}
