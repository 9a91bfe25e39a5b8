//! The end of a stream: the beginning of a segment that its server has not finished, put together from its parts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use pg::TimelineId;
use pg::timeline::TimelineHistory;
use pg::wal::{FileName, LONG_HEADER_SIZE, LongHeader, SegmentName, SegmentSize};
use repository::archive::{ArchiveError, Part, WalSink, cover, covered, holes};

use super::Context;
use super::content::Incoming;
use super::get::{GetError, check, identity_for};

/// The last bytes of a beginning that was filled up, by which `wal push` knows it: a server with `archive_mode = always` archives
/// what it was given, under the name of the segment, which its own server may still finish. Replay never gets there, because
/// it ends in the zeros before.
const MARK: &[u8; 16] = b"pgkeep-beginning";
/// Zeros that stand before the mark at least: more than the header of a record, so that none is read out of it.
const ZEROS: u64 = 64;

/// What there is of a segment that is not stored whole.
pub enum Beginning {
    /// So many bytes of it; the content is filled up with zeros, which end replay.
    Is(Incoming, u32),
    /// So many bytes of it, and after a hole from the first to the second offset more.
    Holed(u32, u32),
    /// Nothing.
    None,
    /// By now it is another: look again.
    Changed,
}

/// Puts the beginning of a segment together, in a file at `path`.
pub async fn fetch_beginning(
    context: &Context,
    segment: &SegmentName,
    path: &Path,
) -> Result<Beginning, GetError> {
    let name = FileName::Segment(*segment);
    let failed = |source| GetError::Archive { name, source };
    let (repository, cluster) = (&context.repository, &context.cluster);
    let parts = repository.parts_of(cluster, segment).await.map_err(|error| failed(error.into()))?;
    let bytes = covered(&parts);
    let hole = holes(&parts).first().copied().filter(|_| context.up_to_gap != Some(*segment));
    if hole.is_some() || (bytes as usize) < LONG_HEADER_SIZE {
        // Parts go after their segment is stored: only if it is still not there, they are all there is.
        let is_whole = repository.has_wal(cluster, &name).await.map_err(|error| failed(error.into()))?;
        return Ok(match hole {
            _ if is_whole => Beginning::Changed,
            Some((from, to)) => Beginning::Holed(from, to),
            None => Beginning::None,
        });
    }
    let identity = identity_for(context, &name).await?;
    if !reaches_own_timeline(context, segment, bytes, identity.segment_size).await? {
        return Ok(Beginning::None);
    }
    let mut incoming = match join(context, parts, path).await {
        Ok(incoming) => incoming,
        Err(ArchiveError::Absent { .. }) => return Ok(Beginning::Changed),
        Err(source) => return Err(failed(source)),
    };
    fill(&mut incoming, identity.segment_size.into())
        .map_err(|source| failed(ArchiveError::Content { name: (&name).into(), source }))?;
    check(&identity, segment, &incoming)?;
    tracing::info!(%segment, bytes, "the segment is not finished; its beginning was brought");
    Ok(Beginning::Is(incoming, bytes))
}

/// Writes what `parts` hold from the first byte on. One that is damaged is done without if the others reach as far.
async fn join(context: &Context, mut parts: Vec<Part>, path: &Path) -> Result<Incoming, ArchiveError> {
    let (repository, cluster) = (&context.repository, &context.cluster);
    let bytes = covered(&parts);
    'anew: loop {
        let mut sink = Joined { incoming: Incoming::new(path.to_owned()), at: 0, skip: 0 };
        for part in cover(&parts) {
            sink.begin(&part);
            match repository.fetch_wal_into(cluster, &part, context.limits.workers, sink).await {
                Ok(fetched) => sink = fetched.sink,
                Err(ArchiveError::Repository(error)) if error.is_damage() => {
                    parts.retain(|other| *other != part);
                    if covered(&parts) < bytes {
                        return Err(error.into());
                    }
                    tracing::warn!(%part, %error, "others hold what the part has");
                    continue 'anew;
                }
                Err(error) => return Err(error),
            }
        }
        return Ok(sink.incoming);
    }
}

/// Whether a file is a beginning that was filled up, and not a segment.
pub fn is_marked(file: &File, length: u64) -> io::Result<bool> {
    let mut end = [0; MARK.len()];
    let Some(at) = length.checked_sub(MARK.len() as u64) else { return Ok(false) };
    file.read_exact_at(&mut end, at)?;
    Ok(end == *MARK)
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
    let Ok(length) = file.metadata().map(|metadata| metadata.len()) else { return false };
    let end = if is_marked(&file, length).unwrap_or(false) { length - MARK.len() as u64 } else { length };
    let (mut at, mut buffer) = (u64::from(bytes), vec![0; 1 << 16]);
    loop {
        let wanted = end.saturating_sub(at).min(buffer.len() as u64) as usize;
        match file.read_at(&mut buffer[..wanted], at) {
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
    let mark: &[u8] = if length - incoming.length >= ZEROS + MARK.len() as u64 { MARK } else { &[] };
    let end = length - mark.len() as u64;
    while incoming.length < end {
        let rest = (end - incoming.length).min(zeros.len() as u64) as usize;
        incoming.take(&zeros[..rest])?;
    }
    incoming.take(mark)
}

#[cfg(test)]
mod tests;
