//! Which ranges of a pack are read by one request, and reading them.

use std::ops::Range;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use repository::RepositoryError;
use repository::pack::OpenPack;
use storage::{ObjectName, Storage};
use tokio::sync::mpsc;

use super::Piece;

/// Bytes that nobody needs are read over rather than making a second request.
const GAP_BYTES: u64 = 512 << 10;

/// A sealed chunk, or why it could not be read.
pub(crate) type Frame = Result<Vec<u8>, RepositoryError>;

/// One range request, and the pieces that it serves.
pub(super) struct Run {
    /// Where its chunks are in the pack, in order, with gaps that are read over.
    pub(super) ranges: Vec<Range<u64>>,
    pub(super) pieces: Range<usize>,
}

pub(super) fn plan_runs(pack: &OpenPack, wanted: &[Piece]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut number = 0;
    for group in wanted.chunk_by(|a, b| a.extent.chunk == b.extent.chunk) {
        let info = &pack.table.chunks[group[0].extent.chunk as usize];
        let range = info.offset..info.offset + u64::from(info.stored_len);
        let pieces = number..number + group.len();
        number = pieces.end;
        match runs.last_mut() {
            Some(run) if run.ranges.last().is_some_and(|last| range.start <= last.end + GAP_BYTES) => {
                run.ranges.push(range);
                run.pieces.end = pieces.end;
            }
            _ => runs.push(Run { ranges: vec![range], pieces }),
        }
    }
    runs
}

/// Reads all the chunks of a run with one request, as fast as they are taken. Ends early when nobody takes them any more.
pub(crate) async fn read_run(
    storage: &dyn Storage,
    name: &ObjectName,
    ranges: Vec<Range<u64>>,
    frames: mpsc::Sender<Frame>,
) {
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return };
    let mut at = first.start;
    let mut pieces = storage.read_stream(name, first.start..last.end);
    let mut piece = Bytes::new();
    for range in ranges {
        let mut frame = Vec::with_capacity((range.end - range.start) as usize);
        while at < range.end {
            if piece.is_empty() {
                piece = match pieces.next().await {
                    Some(Ok(piece)) => piece,
                    Some(Err(error)) => return drop(frames.send(Err(error.into())).await),
                    None => return,
                };
            }
            let gap = range.start.saturating_sub(at).min(piece.len() as u64);
            let rest = (range.end - at - gap).min(piece.len() as u64 - gap);
            piece.advance(gap as usize);
            frame.extend_from_slice(&piece.split_to(rest as usize));
            at += gap + rest;
        }
        if frames.send(Ok(frame)).await.is_err() {
            return;
        }
    }
}
