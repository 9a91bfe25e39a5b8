//! The sessions by which files are listed and read.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::connection::{BinaryCopy, Connection, ConnectionSettings, CopyMessage, ServerError};
use crate::files::FilesError;

/// How often a lost session is opened again before that counts as a failure, and the first pause before it, which doubles.
/// In all about three seconds: a session may be ended by hand or by an idle network, but a server that restarts has
/// abandoned the backup anyway.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Of a session that only reads files. The names are bytes and must not be converted; no search path may lead to somebody
/// else's functions; rows must come in the order they are asked for, which parallel plans do not promise.
const SETTINGS: [(&str, &str); 4] = [
    ("client_encoding", "SQL_ASCII"),
    ("search_path", ""),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
];

/// Opens sessions to one server, and has one at hand for short questions.
#[derive(Debug)]
pub(super) struct Sessions {
    settings: ConnectionSettings,
    /// When the server was started, in microseconds since 1970: what tells it from any other.
    started_us: i64,
    side: Mutex<Option<Connection>>,
    statements: AtomicU64,
}

impl Sessions {
    /// Sessions with the server of this one.
    pub(super) fn beside(session: &Connection) -> Result<Self, FilesError> {
        let settings = session.settings_beside().application_name("pgkeep files");
        let started_us = started_us(session).map_err(|source| FilesError::Session { source })?;
        Ok(Self { settings, started_us, side: Mutex::new(None), statements: AtomicU64::new(0) })
    }

    /// A new session.
    pub(super) fn open(&self) -> Result<Connection, FilesError> {
        let opened = Connection::connect(&self.settings).and_then(|connection| {
            connection.remove_timeouts()?;
            for (name, value) in SETTINGS {
                connection.execute("SELECT pg_catalog.set_config($1, $2, false)", &[name, value])?;
            }
            Ok((started_us(&connection)?, connection))
        });
        match opened {
            Ok((started_us, connection)) if started_us == self.started_us => Ok(connection),
            Ok(_) => Err(FilesError::OtherServer),
            Err(source) => Err(FilesError::Session { source }),
        }
    }

    /// Begins a COPY in binary format.
    pub(super) fn begin(
        &self,
        connection: &Connection,
        sql: &[u8],
    ) -> Result<BinaryCopy<CopyMessage>, ServerError> {
        self.statements.fetch_add(1, Ordering::Relaxed);
        connection.begin_copy_out(sql)?;
        Ok(BinaryCopy::new())
    }

    /// Asks something short by a COPY, of which `take` reads the rows to their end. Both may be done again on a new session.
    pub(super) fn ask<T>(
        &self,
        what: &'static str,
        path: &[u8],
        sql: &[u8],
        mut take: impl FnMut(&mut BinaryCopy<CopyMessage>, &Connection) -> Result<T, ServerError>,
    ) -> Result<T, FilesError> {
        let mut side = self.side.lock().unwrap_or_else(PoisonError::into_inner);
        let mut retry = Retry::default();
        loop {
            let connection = match side.take() {
                Some(connection) => Ok(connection),
                None => self.open(),
            };
            let failed = match connection {
                Ok(connection) => {
                    match self.begin(&connection, sql).and_then(|mut copy| take(&mut copy, &connection)) {
                        Ok(answer) => {
                            *side = Some(connection);
                            return Ok(answer);
                        }
                        Err(source) => {
                            // A refused statement leaves the session as it was.
                            if connection.is_alive() && !source.is_transient() {
                                *side = Some(connection);
                            }
                            sql_error(what, path, source)
                        }
                    }
                }
                Err(error) => error,
            };
            retry.after(failed)?;
        }
    }

    /// At most `length` bytes of a file; fewer only at its end.
    pub(super) fn read(&self, path: &[u8], offset: u64, length: usize) -> Result<Vec<u8>, FilesError> {
        let mut sql = b"COPY (SELECT pg_catalog.pg_read_binary_file(".to_vec();
        push_literal(&mut sql, path);
        sql.extend(format!(", {offset}, {length}, true)) TO STDOUT (FORMAT binary)").into_bytes());
        let bytes = self.ask("read", path, &sql, |copy, connection| {
            copy.next_row(connection, 1)?;
            let bytes = copy.bytes(connection)?;
            copy.next_row(connection, 1)?;
            Ok(bytes)
        })?;
        bytes
            .map(|mut bytes| {
                bytes.truncate(length);
                bytes
            })
            .ok_or_else(|| FilesError::Vanished { path: path.to_owned() })
    }

    /// The server's clock, nanoseconds since 1970.
    pub(super) fn clock_ns(&self) -> Result<i64, FilesError> {
        let sql =
            "COPY (SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8)
                   TO STDOUT (FORMAT binary)";
        self.ask("ask the clock of the server for", b".", sql.as_bytes(), |copy, connection| {
            copy.next_row(connection, 1)?;
            let microseconds = copy.fixed(connection)?.map_or(0, i64::from_be_bytes);
            copy.next_row(connection, 1)?;
            Ok(microseconds.saturating_mul(1000))
        })
    }

    /// The data directory, empty if our role may not see it; its mode; the database's encoding.
    pub(super) fn server_settings(&self) -> Result<(PathBuf, u32, String), FilesError> {
        let sql = "COPY (SELECT (SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name = 'data_directory'),
                                pg_catalog.current_setting('data_directory_mode'), pg_catalog.getdatabaseencoding()::pg_catalog.text)
                   TO STDOUT (FORMAT binary)";
        let [directory, mode, encoding] = self.ask("look at", b".", sql.as_bytes(), |copy, connection| {
            copy.next_row(connection, 3)?;
            let mut fields = [const { Vec::new() }; 3];
            for field in &mut fields {
                *field = copy.bytes(connection)?.unwrap_or_default();
            }
            copy.next_row(connection, 3)?;
            Ok(fields)
        })?;
        let mode = std::str::from_utf8(&mode).ok().and_then(|text| u32::from_str_radix(text, 8).ok());
        let encoding = String::from_utf8_lossy(&encoding).into_owned();
        Ok((PathBuf::from(OsString::from_vec(directory)), mode.unwrap_or(0o700), encoding))
    }

    /// How many statements were sent so far.
    pub(super) fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }
}

fn started_us(connection: &Connection) -> Result<i64, ServerError> {
    let sql = "SELECT (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.int8";
    connection.query_one(sql, &[])?.first()?.parse(0)
}

/// Counts tries, and pauses between them.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failed: u32,
}

impl Retry {
    /// Waits after a failure that may pass; gives back one that will not, or that came too often.
    pub(super) fn after(&mut self, error: FilesError) -> Result<(), FilesError> {
        // A file that is not there (58P01) does not come back.
        let passes = matches!(&error, FilesError::Sql { source, .. } | FilesError::Session { source }
            if source.is_transient() && !source.has_sqlstate("58P01"));
        if !passes || self.failed >= TRIES {
            return Err(error);
        }
        thread::sleep(FIRST_PAUSE * 2_u32.pow(self.failed));
        self.failed += 1;
        Ok(())
    }

    /// Something came through, so that later failures are new ones.
    pub(super) fn reset(&mut self) {
        self.failed = 0;
    }
}

pub(super) fn sql_error(what: &'static str, path: &[u8], source: ServerError) -> FilesError {
    FilesError::Sql { what, path: path.to_owned(), source }
}

/// Adds a string constant. The form with an E means the same whatever `standard_conforming_strings` is.
pub(super) fn push_literal(sql: &mut Vec<u8>, text: &[u8]) {
    sql.extend(b"E'");
    for &byte in text {
        if matches!(byte, b'\'' | b'\\') {
            sql.push(byte);
        }
        sql.push(byte);
    }
    sql.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_are_doubled() {
        let mut sql = Vec::new();
        push_literal(&mut sql, b"a'b\\c\xff");
        assert_eq!(sql, b"E'a''b\\\\c\xff'");
    }
}
