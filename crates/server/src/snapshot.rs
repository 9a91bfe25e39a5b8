//! One moment of a database, held open: every session that joins it sees the same rows.
//!
//! The moment lives as long as the session that exported it, in an open transaction. `SET TRANSACTION SNAPSHOT`, PostgreSQL's
//! documentation; pg_dump's `-j` works the same way.

use std::time::Duration;

use crate::connection::{Connection, ConnectionSettings, ServerError};

/// Of a session whose rows are stored: text that means the same whoever reads it back, by nobody's search path, of all rows or
/// with an error. As pg_dump sets them, `setup_connection`, `pg_dump.c`.
const SETTINGS: [(&str, &str); 7] = [
    ("search_path", ""),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("synchronize_seqscans", "off"),
    ("row_security", "off"),
    ("bytea_output", "hex"),
];

/// A moment of one database.
#[derive(Debug)]
pub struct Snapshot {
    connection: Connection,
    settings: ConnectionSettings,
    id: String,
    encoding: String,
}

impl Snapshot {
    /// Takes the moment with this session, which belongs to it from here on.
    pub fn take(connection: Connection) -> Result<Self, ServerError> {
        let settings = connection.settings_beside();
        let encoding = connection.parameter("server_encoding").unwrap_or_else(|| "UTF8".to_owned());
        let mut snapshot = Self { connection, settings, id: String::new(), encoding };
        snapshot.prepare(&snapshot.connection)?;
        snapshot.begin()?;
        Ok(snapshot)
    }

    /// Lets this moment go and takes a new one.
    pub fn retake(&mut self) -> Result<(), ServerError> {
        self.connection.run_script("ROLLBACK")?;
        self.begin()
    }

    fn begin(&mut self) -> Result<(), ServerError> {
        self.connection.run_script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let rows = self.connection.query_one("SELECT pg_catalog.pg_export_snapshot()", &[])?;
        self.id = rows.first()?.required(0)?.to_owned();
        Ok(())
    }

    /// Opens another session that sees this moment.
    pub fn join(&self) -> Result<Connection, ServerError> {
        let connection = Connection::connect(&self.settings.clone().application_name("pgkeep rows"))?;
        self.prepare(&connection)?;
        // The id is of the server's making: digits, letters and dashes.
        connection.run_script(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
            self.id.replace('\'', "")
        ))?;
        Ok(connection)
    }

    fn prepare(&self, connection: &Connection) -> Result<(), ServerError> {
        connection.remove_timeouts()?;
        for (name, value) in SETTINGS {
            connection.execute("SELECT pg_catalog.set_config($1, $2, false)", &[name, value])?;
        }
        Ok(())
    }

    /// Waits at most so long for each lock.
    pub fn limit_lock_waits(&self, limit: Duration) -> Result<(), ServerError> {
        let limit = limit.as_millis().to_string();
        self.connection
            .execute("SELECT pg_catalog.set_config('lock_timeout', $1, false)", &[&limit])
            .map(drop)
    }

    /// The session that holds the moment.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The settings that lead to the same server and database.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// The moment's name, for `pg_dump --snapshot`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The encoding of the database, in which rows are stored: `COPY` is told so. Names and statements stay in UTF-8.
    pub fn encoding(&self) -> &str {
        &self.encoding
    }
}
