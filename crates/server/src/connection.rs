//! One SQL session with a PostgreSQL server, over libpq.
//!
//! libpq decides what a connection string, a service file, `.pgpass`, `sslmode` and the `PG*` environment variables
//! mean, so that pgkeep connects wherever `psql` does. All calls block; async code calls them from a blocking thread.
//! Values arrive in PostgreSQL's text form. What the server says on the side is kept as [`Notice`]s, never printed.

mod binary_copy;
mod error;
mod hosts;
mod raw;
mod replication;
mod rows;
mod settings;

use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use binary_copy::{BinaryCopy, Messages};
pub use error::{ServerError, SqlState};
pub use raw::CopyMessage;
pub use replication::{Message, Received, Replication, SystemIdentity, Waker, WalData};
pub use rows::{Row, Rows};
pub use settings::ConnectionSettings;

use raw::Session;

/// Something the server said beside its answers: a warning, a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `WARNING`, `NOTICE`, `LOG`…, never translated.
    pub severity: String,
    /// The primary message, in the server's language.
    pub message: String,
}

/// An open session. One statement runs at a time; a second caller waits for the first.
#[derive(Debug)]
pub struct Connection {
    session: Mutex<Session>,
    settings: ConnectionSettings,
    server_version_num: u32,
}

impl Connection {
    /// Opens a session, with UTF-8 as the encoding of all text. Waits at most the settings' connect timeout per host.
    pub fn connect(settings: &ConnectionSettings) -> Result<Self, ServerError> {
        let keywords = settings.resolve()?;
        let session = Session::connect(&keywords).map_err(|failure| settings.scrub_failure(failure))?;
        let server_version_num = session.server_version();
        Ok(Self { session: Mutex::new(session), settings: settings.clone(), server_version_num })
    }

    /// Runs one statement and returns its rows. `params` replace `$1`, `$2`… and travel as text.
    pub fn query(&self, sql: &str, params: &[&str]) -> Result<Rows, ServerError> {
        let sql = c_string(sql)?;
        let params = params.iter().map(|param| c_string(param)).collect::<Result<Vec<_>, _>>()?;
        self.lock().query(&sql, &params).map(Rows::new)
    }

    /// Runs a statement that must give exactly one row.
    pub fn query_one(&self, sql: &str, params: &[&str]) -> Result<Rows, ServerError> {
        let rows = self.query(sql, params)?;
        match rows.len() {
            1 => Ok(rows),
            found => {
                Err(ServerError::UnexpectedAnswer { what: format!("{found} rows instead of 1 from: {sql}") })
            }
        }
    }

    /// Runs one statement and returns the number of rows it touched (0 for statements that touch none).
    pub fn execute(&self, sql: &str, params: &[&str]) -> Result<u64, ServerError> {
        Ok(self.query(sql, params)?.affected())
    }

    /// Runs several statements separated by semicolons, in one transaction unless they say otherwise; text, or bytes in the
    /// session's encoding.
    pub fn run_script(&self, sql: &(impl AsRef<[u8]> + ?Sized)) -> Result<(), ServerError> {
        let sql = CString::new(sql.as_ref()).map_err(|_| ServerError::NulByte)?;
        self.lock().script(&sql)
    }

    /// Runs a `COPY … TO STDOUT` and hands each message to `visit`, in order, as raw bytes.
    ///
    /// In text format a message is one row with its newline; in binary format its borders mean nothing. When `visit`
    /// fails the statement is cancelled, its remaining messages are read and dropped, and the session stays usable.
    pub fn copy_out<E: From<ServerError>>(
        &self,
        sql: &str,
        visit: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = c_string(sql)?;
        self.lock().copy_out(&sql, visit)
    }

    /// Begins a `COPY … TO STDOUT`, given as bytes in the session's encoding; [`Self::next_copy_message`] must then be
    /// called to its end. Any other statement meanwhile ends the COPY, after all of its data has been received.
    pub fn begin_copy_out(&self, sql: &[u8]) -> Result<(), ServerError> {
        let sql = CString::new(sql).map_err(|_| ServerError::NulByte)?;
        self.lock().begin_copy_out(&sql)
    }

    /// Waits for the next message of a COPY; `None` after the last one of a COPY that ended well.
    pub fn next_copy_message(&self) -> Result<Option<CopyMessage>, ServerError> {
        self.lock().pull_copy_message()
    }

    /// Begins a `COPY … FROM STDIN`; [`Self::put_copy_data`] sends its data and [`Self::end_copy_in`] ends it.
    pub fn begin_copy_in(&self, sql: &str) -> Result<(), ServerError> {
        let sql = c_string(sql)?;
        self.lock().begin_copy_in(&sql)
    }

    /// Sends data of a COPY; its borders mean nothing. An error has ended the COPY.
    pub fn put_copy_data(&self, data: &[u8]) -> Result<(), ServerError> {
        self.lock().put_copy_data(data)
    }

    /// Ends a COPY and returns how many rows the server took.
    pub fn end_copy_in(&self) -> Result<u64, ServerError> {
        self.lock().end_copy_in(None)
    }

    /// Ends a COPY so that the server forgets what was sent, for `reason`; the session stays usable.
    pub fn give_up_copy_in(&self, reason: &str) {
        let Ok(reason) = c_string(reason) else { return };
        // The server answers with an error that says what it was told.
        let _ = self.lock().end_copy_in(Some(&reason));
    }

    /// The server process that libpq was told it is connected to.
    pub fn backend_pid(&self) -> i32 {
        self.lock().backend_pid()
    }

    /// The server's version as a number, `150020` for 15.20.
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// True while the server has not closed the session, as far as can be known without asking it anything.
    pub fn is_alive(&self) -> bool {
        self.lock().is_alive()
    }

    /// Asks the server for a sign of life, one round trip.
    pub fn check_alive(&self) -> Result<(), ServerError> {
        self.query_one("SELECT 1", &[]).map(drop)
    }

    /// Takes what the server said on the side since the last call; the newest 100 at most.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.lock().take_notices()
    }

    /// The value of a parameter that the server reports by itself, such as `server_encoding` or `TimeZone`.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let name = c_string(name).ok()?;
        self.lock().parameter(&name)
    }

    /// The host name, address or socket directory this session is connected to.
    pub fn host(&self) -> String {
        self.lock().host()
    }

    /// The port this session is connected to, as text.
    pub fn port(&self) -> String {
        self.lock().port()
    }

    /// The name of the database this session is in.
    pub fn database(&self) -> String {
        self.lock().database()
    }

    /// The role this session logged in as.
    pub fn user(&self) -> String {
        self.lock().user()
    }

    /// Switches off every timeout by which the server might end a long, mostly idle session.
    ///
    /// A role or database may have them set; a backup's session is idle for as long as files are read (barman#333).
    pub fn remove_timeouts(&self) -> Result<(), ServerError> {
        let mut names = vec!["statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"];
        if self.server_version_num >= 140_000 {
            names.push("idle_session_timeout");
        }
        if self.server_version_num >= 170_000 {
            names.push("transaction_timeout");
        }
        for name in names {
            self.execute("SELECT pg_catalog.set_config($1, '0', false)", &[name])?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        // A panic while the lock was held cannot leave the session half-changed: libpq keeps its own state.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn c_string(text: &str) -> Result<CString, ServerError> {
    CString::new(text).map_err(|_| ServerError::NulByte)
}

#[cfg(test)]
mod tests;
