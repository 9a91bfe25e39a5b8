//! The end of a stream: the beginning of a segment that its server has not finished, put together from its parts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use pg::TimelineId;
use pg::timeline::TimelineHistory;
use pg::wal::{FileName, LONG_HEADER_SIZE, LongHeader, SegmentName, SegmentSize};
use repository::archive::{ArchiveError, Part, WalSink, cover};

use super::Context;
use super::content::Incoming;
use super::get::{GetError, check, identity_for};

/// What there is of a segment that is not stored whole.
pub enum Beginning {
    /// So many bytes of it; the content is filled up with zeros, which end replay.
    Is(Incoming, u32),
    /// Nothing.
    None,
    /// By now it is another: look again.
    Changed,
}

/// Puts the beginning of a segment together.
pub async fn fetch_beginning(
    context: &Context,
    segment: &SegmentName,
    incoming: Incoming,
) -> Result<Beginning, GetError> {
    let name = FileName::Segment(*segment);
    let failed = |source| GetError::Archive { name, source };
    let (repository, cluster) = (&context.repository, &context.cluster);
    let parts = repository.parts_of(cluster, segment).await.map_err(|error| failed(error.into()))?;
    let parts = cover(&parts);
    let Some(bytes) = parts.last().map(|part| part.to).filter(|bytes| *bytes as usize >= LONG_HEADER_SIZE)
    else {
        // Parts go after their segment is stored: only if it is still not there, there never were any.
        let is_whole = repository.has_wal(cluster, &name).await.map_err(|error| failed(error.into()))?;
        return Ok(if is_whole { Beginning::Changed } else { Beginning::None });
    };
    let identity = identity_for(context, &name).await?;
    if !reaches_own_timeline(context, segment, bytes, identity.segment_size).await? {
        return Ok(Beginning::None);
    }
    let mut sink = Joined { incoming, at: 0, skip: 0 };
    for part in &parts {
        sink.begin(part);
        match repository.fetch_wal_into(cluster, part, context.limits.workers, sink).await {
            Ok(fetched) => sink = fetched.sink,
            Err(ArchiveError::Absent { .. }) => return Ok(Beginning::Changed),
            Err(source) => return Err(failed(source)),
        }
    }
    let mut incoming = sink.incoming;
    fill(&mut incoming, identity.segment_size.into())
        .map_err(|source| failed(ArchiveError::Content { name: (&name).into(), source }))?;
    check(&identity, segment, &incoming)?;
    tracing::info!(%segment, bytes, "the segment is not finished; its beginning was brought");
    Ok(Beginning::Is(incoming, bytes))
}

/// Whether a beginning goes past the place where its timeline left the one before. One that does not holds nothing that the
/// segment of the older timeline lacks, and PostgreSQL, which asks for the newer first, would end replay in it.
async fn reaches_own_timeline(
    context: &Context,
    segment: &SegmentName,
    bytes: u32,
    segment_size: u32,
) -> Result<bool, GetError> {
    if segment.timeline == TimelineId::FIRST {
        return Ok(true);
    }
    let name = FileName::History(segment.timeline);
    let content = match context.repository.fetch_wal(&context.cluster, &name).await {
        Ok((_, content)) => content,
        // Whoever stored the part stored it before; without it PostgreSQL takes the timeline for its own beginning.
        Err(ArchiveError::Absent { .. }) => return Ok(true),
        Err(source) => return Err(GetError::Archive { name, source }),
    };
    let history = TimelineHistory::parse(segment.timeline, &content);
    let begins = history.ok().and_then(|history| history.entries.last()?.switch_lsn);
    let Ok(size) = SegmentSize::new(segment_size) else { return Ok(true) };
    Ok(begins.is_none_or(|begins| segment.start(size) + u64::from(bytes) > begins.get()))
}

/// Whether the server that asks is a standby. It goes on to its primary when the archive has no more; and it may have flushed
/// more than the archive holds, which the beginning of a segment would replace. With `archive_mode = always` it would even
/// archive it. Source: `KeepFileRestoredFromArchive`, `access/transam/xlogarchive.c`.
pub fn is_standby(wal_directory: &Path) -> bool {
    wal_directory.parent().is_some_and(|data| data.join("standby.signal").exists())
}

/// Whether the segment itself lies where it is wanted, and has bytes behind the first `bytes`.
pub fn has_more(wal_directory: &Path, segment: &SegmentName, bytes: u32) -> bool {
    let Ok(file) = File::open(wal_directory.join(segment.to_string())) else { return false };
    let mut head = [0; LONG_HEADER_SIZE];
    if file.read_exact_at(&mut head, 0).is_err() {
        return false;
    }
    // A segment that was made ahead, or is to be used again, has none or another's header.
    let is_it = LongHeader::parse(&head).is_ok_and(|header| {
        header.timeline <= segment.timeline && header.page_address == segment.start(header.segment_size)
    });
    if !is_it {
        return false;
    }
    let (mut at, mut buffer) = (u64::from(bytes), vec![0; 1 << 16]);
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) | Err(_) => return false,
            Ok(read) if buffer[..read].iter().any(|byte| *byte != 0) => return true,
            Ok(read) => at += read as u64,
        }
    }
}

/// Parts, one after the other; what two of them hold is taken once.
struct Joined {
    incoming: Incoming,
    at: u32,
    skip: usize,
}

impl Joined {
    fn begin(&mut self, part: &Part) {
        self.skip = (self.at - part.from) as usize;
        self.at = part.to;
    }
}

impl WalSink for Joined {
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        let skipped = self.skip.min(piece.len());
        self.skip -= skipped;
        if skipped == piece.len() { Ok(()) } else { self.incoming.take(&piece[skipped..]) }
    }
}

fn fill(incoming: &mut Incoming, length: u64) -> io::Result<()> {
    let zeros = [0; 1 << 16];
    while incoming.length < length {
        let rest = (length - incoming.length).min(zeros.len() as u64) as usize;
        incoming.take(&zeros[..rest])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
