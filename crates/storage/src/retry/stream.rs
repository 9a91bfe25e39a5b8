//! Going on with a stream where it broke.

use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, try_unfold};

use super::{GaveUp, Retry, Trying, UNSTATED_BYTES_MAX};
use crate::error::{Action, Call};
use crate::{ObjectName, Storage, StorageError};

/// A range on its way.
struct Reading<'a, S> {
    retry: &'a Retry<S>,
    name: &'a ObjectName,
    /// What has not come yet.
    rest: Range<u64>,
    pieces: Option<BoxStream<'a, Result<Bytes, StorageError>>>,
    /// Failures since the last piece: whoever moves bytes is not stuck, however long the whole takes.
    trying: Trying<'a>,
}

impl<S: Storage> Retry<S> {
    pub(super) fn stream<'a>(
        &'a self,
        name: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxStream<'a, Result<Bytes, StorageError>> {
        let reading = Reading { retry: self, name, rest: range, pieces: None, trying: self.piece(name) };
        try_unfold(
            reading,
            |mut reading| async move { Ok(reading.next().await?.map(|piece| (piece, reading))) },
        )
        .boxed()
    }

    fn piece(&self, name: &ObjectName) -> Trying<'_> {
        Trying::new(&self.policy, Action::new(Call::Read, name.as_str()), UNSTATED_BYTES_MAX)
    }
}

impl<S: Storage> Reading<'_, S> {
    async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        let (retry, name) = (self.retry, self.name);
        let limit = retry.policy.attempt;
        if self.trying.failures == 0 {
            // The time that the reader took for the last piece is not the storage's.
            self.trying = retry.piece(name);
        }
        while !self.rest.is_empty() {
            let rest = self.rest.clone();
            let pieces = self.pieces.get_or_insert_with(|| retry.inner.read_stream(name, rest));
            let failure = match tokio::time::timeout(limit, pieces.next()).await {
                Ok(Some(Ok(piece))) => {
                    self.rest.start += piece.len() as u64;
                    self.trying = retry.piece(name);
                    return Ok(Some(piece));
                }
                Ok(Some(Err(StorageError::Transient { source, .. }))) => source,
                Ok(Some(Err(error))) => return Err(error),
                Ok(None) => "the answer ended early".into(),
                Err(_) => GaveUp::NoAnswer(limit).into(),
            };
            self.pieces = None;
            self.trying.pause_after(failure).await?;
        }
        Ok(None)
    }
}
