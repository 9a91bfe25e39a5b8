//! What changed since the parent, as the server's WAL summaries say; and when they are not believed.
//!
//! A block of which they say nothing is taken over from the parent unread. They are asked for after the start of the backup
//! and must tell of all WAL from the parent's start to this one's, on one timeline. Some of the blocks of which they say
//! nothing are read all the same: one that changed ends their use (`docs/decisions/0008-changed-blocks-from-wal-summaries.md`).

mod sampler;
mod span;

use std::io;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pg::control::ControlFile;
use pg::datadir::{Fork, RelationFile};
use pg::page;
use pg::wal::summary::{self, ChangedBlocks, SummaryError};
use pg::{Lsn, TimelineId};
use rand::Rng as _;
use repository::content::{Entry, LEAF_SPAN};
use repository::manifest::Manifest;
use server::backup::BackupSession;
use server::connection::{Connection, ServerError};
use server::facts::ServerFacts;
use server::files::FoundFile;
use server::grants::quote;
use server::summaries::{self, SummaryBytes};

use super::plan::Plan;
use super::{BackupError, Tuning};
use sampler::Sampler;
pub(crate) use span::{PageWay, SpanPlan};

const PAGE: u64 = page::PAGE_SIZE as u64;
/// How long the summarizer may take to come to the start of the backup: as long as the server's own incremental backup
/// waits without progress (`WaitForWalSummarization`).
const PATIENCE: Duration = Duration::from_secs(60);

/// How an incremental backup knows what changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangedBy {
    /// Every file that may have changed is read and compared.
    #[default]
    Content,
    /// Of files that may have changed, only the blocks that the server's WAL summaries name are read.
    WalSummary,
}

/// Every spelling of it.
pub const CHANGED_BY: [&str; 2] = ["content", "wal-summary"];

impl FromStr for ChangedBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "content" => Ok(Self::Content),
            "wal-summary" => Ok(Self::WalSummary),
            other => Err(format!("{other:?} is none of {}", CHANGED_BY.join(", "))),
        }
    }
}

/// Why this backup compares by content all the same.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("the last backup is of timeline {parent} and the server is on timeline {now}")]
    Timeline { parent: u32, now: TimelineId },
    #[error("the last backup is of PostgreSQL {}, whose summaries may miss changes", version(*.0))]
    ParentVersion(u32),
    #[error("the last backup ended after this one begins in the WAL")]
    Overlap,
    #[error("the server has not summarized its WAL up to {start} within {} s", PATIENCE.as_secs())]
    Behind { start: Lsn },
    #[error("no WAL summary of timeline {timeline} tells of {missing}")]
    Hole { timeline: TimelineId, missing: Lsn },
    #[error("a WAL summary cannot be used: {0}")]
    Summary(String),
}

/// What the summaries said.
#[derive(Debug)]
pub(crate) struct Summary {
    changed: ChangedBlocks,
    /// The parent's start, and this backup's.
    from: Lsn,
    to: Lsn,
    segment_blocks: u32,
    sampler: Mutex<Sampler>,
}

/// Refuses what can never work on this server, before anything begins.
pub(crate) fn check_allowed(
    by: ChangedBy,
    connection: &Connection,
    facts: &ServerFacts,
    tuning: &Tuning,
) -> Result<(), BackupError> {
    if by == ChangedBy::Content {
        return Ok(());
    }
    let refused = |what: String, hint: &str| Err(BackupError::NotReady { what, hint: hint.to_owned() });
    let major = facts.major;
    let whole_from = match major.facts().map(|known| known.summaries_whole_from) {
        Some(Some(minor)) => minor,
        Some(None) => {
            let what = format!("PostgreSQL {major} keeps no WAL summaries; 17 and later do");
            return refused(what, BY_CONTENT);
        }
        None => {
            let what = format!("nothing is known of the WAL summaries of PostgreSQL {major}");
            return refused(what, BY_CONTENT);
        }
    };
    if !tuning.believes(facts.version_num) {
        let what = format!("the WAL summaries of PostgreSQL {} may miss changes", version(facts.version_num));
        return refused(what, &format!("update to {major}.{whole_from} or later, or {BY_CONTENT}"));
    }
    if !summaries::are_kept(connection)? {
        let what = "summarize_wal is off, so the server does not note which blocks change".to_owned();
        return refused(
            what,
            "set summarize_wal = on and reload PostgreSQL; until the next backup it changes nothing",
        );
    }
    if let Some(function) = summaries::missing_functions(connection)?.first() {
        let what = format!("role {} may not call {function}", facts.role);
        return refused(what, &format!("GRANT EXECUTE ON FUNCTION {function} TO {}", quote(&facts.role)));
    }
    Ok(())
}

const BY_CONTENT: &str = "leave --changed-by at content";

/// `170010` as people say it.
fn version(version_num: u32) -> String {
    format!("{}.{}", version_num / 10_000, version_num % 10_000)
}

/// What changed since the parent of the plan, if anything is to be taken over from it unread; why that is not known, when it
/// is not, goes to `unusable`.
pub(crate) fn collect(
    by: ChangedBy,
    session: &BackupSession,
    plan: &Plan,
    control: &ControlFile,
    tuning: &Tuning,
    unusable: &mut dyn FnMut(String),
) -> Result<Option<Summary>, BackupError> {
    let Some(parent) = plan.parent().filter(|_| by == ChangedBy::WalSummary && !plan.reread) else {
        return Ok(None);
    };
    match gather(session, parent, control, tuning) {
        Ok(summary) => Ok(Some(summary)),
        Err(why) => {
            // A session that was lost has taken the backup with it.
            session.check_alive()?;
            unusable(format!("changes are found by content and not by WAL summaries: {why}"));
            Ok(None)
        }
    }
}

fn gather(
    session: &BackupSession,
    parent: &Manifest,
    control: &ControlFile,
    tuning: &Tuning,
) -> Result<Summary, Unusable> {
    let (connection, started, span) = (session.connection(), session.started(), parent.span());
    let (timeline, to) = (started.timeline, started.start_lsn);
    if span.timeline != timeline.get() {
        return Err(Unusable::Timeline { parent: span.timeline, now: timeline });
    }
    // What an earlier minor wrote stays as it is when the server is updated.
    let parent_version = parent.server().version_num;
    if !tuning.believes(parent_version) {
        return Err(Unusable::ParentVersion(parent_version));
    }
    let from = Lsn::new(span.start_lsn).filter(|from| *from <= to && span.stop_lsn <= to.get());
    let from = from.ok_or(Unusable::Overlap)?;
    wait(connection, timeline, to)?;
    let available = summaries::available(connection)?;
    let hole = |missing| Unusable::Hole { timeline, missing };
    let mut changed = ChangedBlocks::default();
    for range in summary::covers(&available, timeline, from, to).map_err(hole)? {
        let bytes = io::BufReader::new(SummaryBytes::new(connection, &range));
        summary::read(bytes, &mut changed)?;
    }
    if let Some(alter) = tuning.alter_summary {
        alter(&mut changed);
    }
    let sampler = Mutex::new(Sampler::new(rand::rng().random()));
    Ok(Summary { changed, from, to, segment_blocks: control.segment_blocks, sampler })
}

fn wait(connection: &Connection, timeline: TimelineId, start: Lsn) -> Result<(), Unusable> {
    let begun = Instant::now();
    loop {
        if summaries::reached(connection)?.is_some_and(|(on, lsn)| on == timeline && lsn >= start) {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Unusable::Behind { start });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl From<ServerError> for Unusable {
    fn from(error: ServerError) -> Self {
        Self::Summary(error.to_string())
    }
}

impl From<SummaryError> for Unusable {
    fn from(error: SummaryError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::Summary(format!("{error}{cause}"))
    }
}

impl Summary {
    /// What of a span of a file is to be read beside the parent's entry of it; `None` for all.
    ///
    /// A file of a size that no relation has is read whole, as the server's own incremental backup does
    /// (`GetFileBackupMethod`, `basebackup_incremental.c`).
    pub(crate) fn plan(&self, found: &FoundFile, parent: &Entry, index: u32) -> Option<SpanPlan> {
        let file = RelationFile::parse(&found.path).filter(|file| file.fork == Fork::Main)?;
        let blocks = found.size / PAGE;
        let is_whole = |size: u64| size.is_multiple_of(PAGE) && size / PAGE <= u64::from(self.segment_blocks);
        if !is_whole(found.size) || !is_whole(parent.size) {
            return None;
        }
        let first = u64::from(index) * (LEAF_SPAN / PAGE);
        let end = blocks.min(first + LEAF_SPAN / PAGE);
        let known = (parent.size / PAGE).min(end);
        let changes = self.changed.of(&file, self.segment_blocks);
        let read = (first..end).map(|block| block >= known || changes.contains(block as u32));
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        SpanPlan::new(read, &mut sampler)
    }

    /// Whether a page that differs from the parent's, although the summaries say nothing of it, is one that they had to name.
    ///
    /// Between the two starts it was changed by WAL that they tell of. Before, only hints differ, which are not always in
    /// the WAL and may be lost; after, the WAL of this backup has it. An empty page has no LSN, and was something before.
    pub(crate) fn missed(&self, page: &[u8]) -> bool {
        let lsn = page::lsn(page);
        (lsn > self.from.get() && lsn <= self.to.get()) || page.iter().all(|byte| *byte == 0)
    }
}
