//! WAL summaries of a live server: whether it keeps them, how far they have come, and their bytes.
//!
//! Everything is asked over SQL, also where the data directory is at hand: `pg_wal` may be a link to anywhere.

use std::io::{self, Read};

use pg::wal::summary::SummaryRange;
use pg::{Lsn, TimelineId};

use crate::connection::{BinaryCopy, Connection, ServerError};
use crate::facts::may_execute;
use crate::grants::{FILE_FUNCTIONS, SUMMARY_FUNCTIONS};

/// How much of a summary is asked for at once.
const PIECE: usize = 1 << 20;

/// Whether the server keeps summaries; false before 17, too.
pub fn are_kept(connection: &Connection) -> Result<bool, ServerError> {
    let sql = "SELECT COALESCE(pg_catalog.current_setting('summarize_wal', true), 'off') OPERATOR(pg_catalog.=) 'on'";
    connection.query_one(sql, &[])?.first()?.boolean(0)
}

/// Functions without which our role cannot read them.
pub fn missing_functions(connection: &Connection) -> Result<Vec<&'static str>, ServerError> {
    let mut missing = Vec::new();
    for function in SUMMARY_FUNCTIONS.into_iter().chain(FILE_FUNCTIONS.into_iter().skip(2)) {
        if !may_execute(connection, &format!("pg_catalog.{function}"))? {
            missing.push(function);
        }
    }
    Ok(missing)
}

/// How far the WAL is summarized: on which timeline, and up to where; `None` before the first.
pub fn reached(connection: &Connection) -> Result<Option<(TimelineId, Lsn)>, ServerError> {
    let sql = "SELECT s.summarized_tli, s.summarized_lsn FROM pg_catalog.pg_get_wal_summarizer_state() s";
    let rows = connection.query_one(sql, &[])?;
    let row = rows.first()?;
    let timeline = TimelineId::new(row.parse(0)?);
    // Zero is no LSN, and no text of one.
    let lsn = row.required(1)?.parse().ok();
    Ok(timeline.zip(lsn))
}

/// The summaries that there are, in no order.
pub fn available(connection: &Connection) -> Result<Vec<SummaryRange>, ServerError> {
    let sql = "SELECT s.tli, s.start_lsn, s.end_lsn FROM pg_catalog.pg_available_wal_summaries() s";
    let mut ranges = Vec::new();
    for row in connection.query(sql, &[])?.iter() {
        // One that begins at zero is no server's.
        let bounds = row.required(1)?.parse().ok().zip(row.required(2)?.parse().ok());
        if let Some((timeline, (start, end))) = TimelineId::new(row.parse(0)?).zip(bounds) {
            ranges.push(SummaryRange { timeline, start, end });
        }
    }
    Ok(ranges)
}

/// The bytes of a summary, a piece at a time.
#[derive(Debug)]
pub struct SummaryBytes<'c> {
    connection: &'c Connection,
    path: String,
    offset: usize,
    piece: Vec<u8>,
    taken: usize,
}

impl<'c> SummaryBytes<'c> {
    /// Of the summary of this stretch.
    pub fn new(connection: &'c Connection, range: &SummaryRange) -> Self {
        Self { connection, path: range.path(), offset: 0, piece: Vec::new(), taken: 0 }
    }

    fn next_piece(&self) -> Result<Vec<u8>, ServerError> {
        // The path is digits and letters of ours.
        let Self { path, offset, .. } = self;
        let sql = format!(
            "COPY (SELECT pg_catalog.pg_read_binary_file('{path}', {offset}, {PIECE}, false)) TO STDOUT (FORMAT binary)"
        );
        self.connection.begin_copy_out(sql.as_bytes())?;
        let mut copy = BinaryCopy::new();
        copy.next_row(self.connection, 1)?;
        let piece = copy.bytes(self.connection)?.unwrap_or_default();
        copy.next_row(self.connection, 1)?;
        Ok(piece)
    }
}

impl Read for SummaryBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() {
            // Not asked for again after its end.
            if self.offset > 0 && self.piece.len() < PIECE {
                return Ok(0);
            }
            self.piece = self.next_piece().map_err(io::Error::other)?;
            (self.taken, self.offset) = (0, self.offset + self.piece.len());
        }
        let length = buffer.len().min(self.piece.len() - self.taken);
        buffer[..length].copy_from_slice(&self.piece[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}
