//! Reading a file of a logical backup back, in order.

use std::sync::Arc;

use repository::Repository;
use repository::content::{Entry, Extent};
use repository::logical::TableRecord;
use repository::pages::pieces;
use serde::de::DeserializeOwned;

use super::error::LogicalError;
use crate::copy::reader::Reader;

/// Pieces that the reader is told of ahead.
const AHEAD: usize = 512;

/// Reads files, each from its beginning to its end.
pub struct FileReader {
    repository: Arc<Repository>,
    reader: Reader,
}

impl FileReader {
    /// Reads from this repository.
    pub fn new(repository: &Arc<Repository>) -> Self {
        Self { repository: repository.clone(), reader: Reader::new(repository.clone()) }
    }

    /// Hands the file's bytes to `visit`, in order, in pieces of at most a chunk. Every chunk is checked before.
    pub async fn read<E: From<LogicalError>>(
        &mut self,
        entry: &Entry,
        mut visit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut index = 0;
        loop {
            let failed = |error| E::from(LogicalError::Repository(error));
            let extents = self.repository.span_extents(entry, index).await.map_err(failed)?;
            if extents.is_empty() {
                return Ok(());
            }
            let mut parts: Vec<Extent> = Vec::with_capacity(extents.len());
            for extent in extents {
                let table = self.repository.table(extent.pack, None).await.map_err(failed)?;
                parts.extend(pieces(&table, extent).map_err(failed)?);
            }
            for at in 0..parts.len() {
                let ahead = &parts[at..parts.len().min(at + AHEAD)];
                let bytes = self.reader.read(parts[at], ahead).await.map_err(failed)?;
                visit(&bytes)?;
            }
            index += 1;
        }
    }

    /// The whole of a small file.
    pub async fn read_all(&mut self, entry: &Entry) -> Result<Vec<u8>, LogicalError> {
        let mut all = Vec::new();
        self.read(entry, |bytes| {
            all.extend_from_slice(bytes);
            Ok::<_, LogicalError>(())
        })
        .await?;
        Ok(all)
    }
}

/// The tables in a table list.
pub(crate) fn table_records(list: &[u8]) -> Result<Vec<TableRecord>, LogicalError> {
    records(list, "table list")
}

/// The records on the lines of a list.
pub(crate) fn records<T: DeserializeOwned>(list: &[u8], what: &'static str) -> Result<Vec<T>, LogicalError> {
    let lines = list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let record = |line| {
        serde_json::from_slice(line)
            .map_err(|error| LogicalError::NotWhole { what: format!("its {what} is unreadable: {error}") })
    };
    lines.map(record).collect()
}
