//! What was announced, on its way: one long `COPY` per batch, a row per piece, taken in order.
//!
//! At any time one row is in memory; what the server has sent ahead waits in the sockets' buffers.

use std::sync::Arc;

use crate::connection::{BinaryCopy, Connection, CopyMessage, ServerError};
use crate::files::{FilesError, Range};

use super::session::{Retry, Sessions, push_literal, sql_error};

/// The longest row: short enough that server and client pass it on while it is in the processor's caches, long enough that
/// the server does not spend its time on opening files. Of 16 KiB to 1 MiB, 64 to 256 KiB were within a few percent of the
/// best, 128 KiB first; 16 KiB took twice as long (`docs/decisions/0006-files-over-sql-in-rows-of-128-kib.md`).
const ROW: u64 = 128 << 10;

/// A piece of a file that was announced.
#[derive(Debug)]
struct Piece {
    /// Which of the batch's paths.
    path: usize,
    /// Moves on as bytes are taken, so that a lost session goes on from there.
    offset: u64,
    length: u64,
}

/// One session's stream of pieces.
#[derive(Debug)]
pub(super) struct RangeStream {
    sessions: Arc<Sessions>,
    connection: Option<Connection>,
    copy: Option<BinaryCopy<CopyMessage>>,
    paths: Vec<Vec<u8>>,
    pieces: Vec<Piece>,
    /// The piece that is next to be taken, or being taken.
    next: usize,
    /// How much of that piece's row is still to come; `None` before its row has begun.
    left: Option<usize>,
}

impl RangeStream {
    pub(super) fn new(sessions: Arc<Sessions>) -> Self {
        Self {
            sessions,
            connection: None,
            copy: None,
            paths: Vec::new(),
            pieces: Vec::new(),
            next: 0,
            left: None,
        }
    }

    /// Asks for a new batch; what is left of the last one is passed over.
    pub(super) fn announce(&mut self, ranges: &[Range<'_>]) -> Result<(), FilesError> {
        self.end_batch();
        self.paths.clear();
        self.pieces.clear();
        self.next = 0;
        for range in ranges.iter().filter(|range| range.length > 0) {
            if self.paths.last().is_none_or(|last| last != range.path) {
                self.paths.push(range.path.to_owned());
            }
            let (path, end) = (self.paths.len() - 1, range.offset + range.length);
            let mut offset = range.offset;
            while offset < end {
                let length = ROW.min(end - offset);
                self.pieces.push(Piece { path, offset, length });
                offset += length;
            }
        }
        // Sent now and not at the first read: the server reads while we look at what earlier backups have of it.
        if !self.pieces.is_empty() {
            let mut retry = Retry::default();
            while let Err(source) = self.begin() {
                self.forget_session();
                retry.after(source)?;
            }
        }
        Ok(())
    }

    /// Fills `buffer` with what was announced; less only at the end of the file. `None` if this is not to come.
    pub(super) fn read(
        &mut self,
        path: &[u8],
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, FilesError> {
        let wanted = |piece: &Piece| piece.offset == offset && self.paths[piece.path] == path;
        let Some(ahead) = self.pieces[self.next..].iter().position(wanted) else { return Ok(None) };
        let (target, mut filled, mut retry) = (self.next + ahead, 0, Retry::default());
        loop {
            let before = (self.next, filled);
            match self.fill(target, offset, buffer, &mut filled) {
                Ok(Some(())) => return Ok(Some(filled)),
                Ok(None) if filled > 0 => return Ok(Some(filled)),
                Ok(None) => return Err(FilesError::Vanished { path: path.to_owned() }),
                Err(error) => {
                    if before != (self.next, filled) {
                        retry.reset();
                    }
                    self.forget_session();
                    retry.after(error)?;
                }
            }
        }
    }

    /// Goes on filling from piece `target`, or the piece after it that was reached, as far as pieces follow on each other;
    /// `None` where the file is gone.
    fn fill(
        &mut self,
        target: usize,
        offset: u64,
        buffer: &mut [u8],
        filled: &mut usize,
    ) -> Result<Option<()>, FilesError> {
        while self.next < target {
            self.pass_over()?;
        }
        let path = self.pieces[target].path;
        while *filled < buffer.len() {
            let at = self.next;
            let follows = |piece: &&Piece| piece.path == path && piece.offset == offset + *filled as u64;
            let Some(piece) = self.pieces.get(at).filter(follows) else { break };
            let wanted = piece.length;
            let Some(left) = self.row()? else {
                self.end_piece();
                return Ok(None);
            };
            let length = left.min(buffer.len() - *filled);
            self.pull(|copy, connection| copy.take(connection, &mut buffer[*filled..*filled + length]))?;
            *filled += length;
            self.pieces[at].offset += length as u64;
            self.pieces[at].length -= length as u64;
            self.left = Some(left - length);
            if left == length {
                self.end_piece();
                if (length as u64) < wanted {
                    // The file ends here.
                    break;
                }
            }
        }
        Ok(Some(()))
    }

    /// How much is still to come of the next piece's row, which is begun if need be; `None` if the file is gone.
    fn row(&mut self) -> Result<Option<usize>, FilesError> {
        if let Some(left) = self.left {
            return Ok(Some(left));
        }
        if self.copy.is_none() {
            self.begin()?;
        }
        let (number, wanted) = (self.next, self.pieces[self.next].length);
        let length = self.pull(|copy, connection| {
            if copy.next_row(connection, 2)?.is_none() {
                return Err(odd("fewer rows than were asked for"));
            }
            let found = copy.fixed(connection)?.map(u32::from_be_bytes);
            if found != Some(number as u32) {
                return Err(odd(&format!("row {found:?} where row {number} was expected")));
            }
            match copy.field(connection)? {
                Some(length) if length as u64 > wanted => Err(odd("more of a file than was asked for")),
                length => Ok(length),
            }
        })?;
        self.left = length;
        Ok(length)
    }

    /// Takes the next piece's row without looking at it.
    fn pass_over(&mut self) -> Result<(), FilesError> {
        if let Some(left) = self.row()? {
            self.pull(|copy, connection| copy.skip(connection, left))?;
        }
        self.end_piece();
        Ok(())
    }

    fn end_piece(&mut self) {
        self.left = None;
        self.next += 1;
    }

    /// Sends the statement for all pieces that are not taken yet.
    fn begin(&mut self) -> Result<(), FilesError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.sessions.open()?,
        };
        let path = &self.paths[self.pieces[self.next].path];
        let copy = self.sessions.begin(&connection, &self.statement());
        self.copy = Some(copy.map_err(|source| sql_error("read", path, source))?);
        self.connection = Some(connection);
        Ok(())
    }

    /// Rows of a list of constants come in its order: the plan is a scan of that list and nothing else. Each brings its
    /// number all the same, and that is checked.
    fn statement(&self) -> Vec<u8> {
        let mut sql =
            b"COPY (SELECT r.n, pg_catalog.pg_read_binary_file(r.p, r.o, r.l, true) FROM (VALUES ".to_vec();
        for (number, piece) in self.pieces.iter().enumerate().skip(self.next) {
            let first = number == self.next;
            sql.extend_from_slice(if first { b"(" } else { b",(" });
            sql.extend_from_slice(number.to_string().as_bytes());
            sql.push(b',');
            push_literal(&mut sql, &self.paths[piece.path]);
            let types = if first { ("::pg_catalog.int8", "::pg_catalog.int8") } else { ("", "") };
            let range = format!(",{}{},{}{})", piece.offset, types.0, piece.length, types.1);
            sql.extend_from_slice(range.as_bytes());
        }
        sql.extend_from_slice(b") AS r(n, p, o, l)) TO STDOUT (FORMAT binary)");
        sql
    }

    fn pull<T>(
        &mut self,
        take: impl FnOnce(&mut BinaryCopy<CopyMessage>, &Connection) -> Result<T, ServerError>,
    ) -> Result<T, FilesError> {
        let (Some(copy), Some(connection)) = (&mut self.copy, &self.connection) else {
            return Err(sql_error("read", b".", odd("no COPY is running")));
        };
        take(copy, connection).map_err(|source| {
            let piece = self.pieces.get(self.next).map(|piece| self.paths[piece.path].as_slice());
            sql_error("read", piece.unwrap_or_default(), source)
        })
    }

    /// Takes the COPY to its end, so that the session can be asked again; or gives the session up.
    fn end_batch(&mut self) {
        let mut ended = Ok(());
        while ended.is_ok() && self.copy.is_some() && self.next < self.pieces.len() {
            ended = self.pass_over();
        }
        if self.copy.is_some() && ended.is_ok() {
            ended = self.pull(|copy, connection| match copy.next_row(connection, 2)? {
                None => Ok(()),
                Some(()) => Err(odd("more rows than were asked for")),
            });
        }
        self.copy = None;
        if ended.is_err() {
            self.forget_session();
        }
    }

    /// What is on its way comes no more; the next read asks for it anew on another session.
    fn forget_session(&mut self) {
        self.connection = None;
        self.copy = None;
        self.left = None;
    }
}

impl Drop for RangeStream {
    /// A server whose last words were not taken complains of it in its log.
    fn drop(&mut self) {
        if self.next == self.pieces.len() {
            self.end_batch();
        }
    }
}

fn odd(what: &str) -> ServerError {
    ServerError::UnexpectedAnswer { what: what.to_owned() }
}
