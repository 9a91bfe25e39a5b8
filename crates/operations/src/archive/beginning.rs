//! The end of a stream: the beginning of a segment that its server has not finished, put together from its parts.

use std::io;

use pg::wal::{FileName, LONG_HEADER_SIZE, SegmentName};
use repository::archive::{ArchiveError, Part, WalSink, cover};
use storage::StorageError;

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
        return match repository.storage().size(&repository::layout::wal_file(cluster, &name)).await {
            Ok(_) => Ok(Beginning::Changed),
            Err(StorageError::NotFound { .. }) => Ok(Beginning::None),
            Err(error) => Err(failed(error.into())),
        };
    };
    let identity = identity_for(context, &name).await?;
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
