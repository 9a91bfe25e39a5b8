//! The only room that touches libpq's pointers. Everything it hands out is an owned Rust value or borrows from one.
#![allow(unsafe_code)]

mod answer;
mod conninfo;
mod copy_both;
mod copy_in;
mod refusal;

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use pq_sys::{ConnStatusType, ExecStatusType, PGconn, PGresult};

pub(super) use answer::Answer;
pub use answer::CopyMessage;
pub(super) use conninfo::{environment_names, parse_conninfo};

use super::Notice;
use super::error::ServerError;
use super::settings::Keyword;
use answer::{copy_text, field};
pub(super) use copy_both::CopyStep;
pub(super) use refusal::refusal;

/// How many notices a session keeps until they are taken: enough to explain an error, too few to matter in memory.
const NOTICES_KEPT: usize = 100;

type Notices = Mutex<VecDeque<Notice>>;

/// Why no session came about, in libpq's words (not yet cleared of passwords).
pub(super) struct ConnectFailure {
    pub(super) message: String,
    pub(super) password_needed: bool,
}

/// An open `PGconn`. Every use takes `&mut self`, which is the exclusion that libpq asks of its callers.
#[derive(Debug)]
pub(super) struct Session {
    conn: NonNull<PGconn>,
    /// Shared with the notice receiver that libpq calls; declared after `conn` and freed after `PQfinish`.
    notices: Arc<Notices>,
}

// SAFETY: a PGconn has no tie to the thread that made it; libpq only forbids two threads in it at once, and every
// method that enters libpq takes `&mut self`.
unsafe impl Send for Session {}

impl Session {
    pub(super) fn connect(keywords: &[Keyword]) -> Result<Self, ConnectFailure> {
        let mut names: Vec<*const c_char> = keywords.iter().map(|(name, _)| name.as_ptr()).collect();
        let mut values: Vec<*const c_char> = keywords.iter().map(|(_, value)| value.as_ptr()).collect();
        names.push(ptr::null());
        values.push(ptr::null());
        // SAFETY: two arrays of equal length, ended by null, of strings that outlive the call; libpq copies them.
        let conn = unsafe { pq_sys::PQconnectdbParams(names.as_ptr(), values.as_ptr(), 0) };
        let conn = NonNull::new(conn)
            .ok_or_else(|| ConnectFailure { message: "out of memory".to_owned(), password_needed: false })?;
        let session = Self { conn, notices: Arc::default() };
        if !session.is_ok() {
            // SAFETY: `conn` is live until `session` is dropped.
            let password_needed = unsafe { pq_sys::PQconnectionNeedsPassword(conn.as_ptr()) } != 0;
            return Err(ConnectFailure { message: session.error_message(), password_needed });
        }
        let sink = Arc::as_ptr(&session.notices).cast_mut().cast::<c_void>();
        // SAFETY: `sink` stays valid as long as `session.notices`, which outlives the PGconn (see Drop).
        unsafe { pq_sys::PQsetNoticeReceiver(conn.as_ptr(), Some(receive_notice), sink) };
        Ok(session)
    }

    pub(super) fn query(&mut self, sql: &CStr, params: &[CString]) -> Result<Answer, ServerError> {
        let values: Vec<*const c_char> = params.iter().map(|param| param.as_ptr()).collect();
        let count = c_int::try_from(values.len()).map_err(|_| odd("too many parameters"))?;
        // SAFETY: `values` holds `count` strings that outlive the call; null types and lengths mean "text".
        let result = unsafe {
            pq_sys::PQexecParams(
                self.conn.as_ptr(),
                sql.as_ptr(),
                count,
                ptr::null(),
                values.as_ptr(),
                ptr::null(),
                ptr::null(),
                0,
            )
        };
        self.judge(result)
    }

    pub(super) fn script(&mut self, sql: &CStr) -> Result<(), ServerError> {
        // SAFETY: a live connection and a string that outlives the call.
        let result = unsafe { pq_sys::PQexec(self.conn.as_ptr(), sql.as_ptr()) };
        self.judge(result).map(drop)
    }

    pub(super) fn copy_out<E: From<ServerError>>(
        &mut self,
        sql: &CStr,
        visit: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.begin_copy_out(sql)?;
        let mut refused = None;
        while let Some(message) = self.next_copy_message() {
            if refused.is_some() {
                continue;
            }
            if let Err(error) = visit(message.as_ref()) {
                self.cancel();
                refused = Some(error);
            }
        }
        let ended = self.finish_copy();
        match refused {
            Some(error) => Err(error),
            None => ended.map_err(E::from),
        }
    }

    pub(super) fn begin_copy_out(&mut self, sql: &CStr) -> Result<(), ServerError> {
        // SAFETY: a live connection and a string that outlives the call.
        let result = unsafe { pq_sys::PQexec(self.conn.as_ptr(), sql.as_ptr()) };
        self.expect_copy_out(result)
    }

    pub(super) fn pull_copy_message(&mut self) -> Result<Option<CopyMessage>, ServerError> {
        match self.next_copy_message() {
            Some(message) => Ok(Some(message)),
            None => self.finish_copy().map(|()| None),
        }
    }

    pub(super) fn backend_pid(&self) -> i32 {
        // SAFETY: a live connection; the call only reads it.
        unsafe { pq_sys::PQbackendPID(self.conn.as_ptr()) }
    }

    pub(super) fn server_version(&self) -> u32 {
        // SAFETY: a live connection; the call only reads it.
        let version = unsafe { pq_sys::PQserverVersion(self.conn.as_ptr()) };
        u32::try_from(version).unwrap_or(0)
    }

    pub(super) fn is_alive(&mut self) -> bool {
        // A session that the server ended has its last words waiting first and the end of the stream behind them.
        self.is_ok() && self.consume_input() && self.consume_input() && self.is_ok()
    }

    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    pub(super) fn parameter(&mut self, name: &CStr) -> Option<String> {
        // SAFETY: a live connection; the text is copied before libpq can replace it.
        let value = unsafe { pq_sys::PQparameterStatus(self.conn.as_ptr(), name.as_ptr()) };
        // SAFETY: null or a string that ends in zero.
        (!value.is_null()).then(|| unsafe { copy_text(value) })
    }

    pub(super) fn host(&mut self) -> String {
        // SAFETY: a live connection; the text is copied.
        unsafe { copy_text(pq_sys::PQhost(self.conn.as_ptr())) }
    }

    pub(super) fn host_address(&mut self) -> String {
        // SAFETY: as for `host`; empty for a socket.
        unsafe { copy_text(pq_sys::PQhostaddr(self.conn.as_ptr())) }
    }

    pub(super) fn port(&mut self) -> String {
        // SAFETY: as for `host`.
        unsafe { copy_text(pq_sys::PQport(self.conn.as_ptr())) }
    }

    pub(super) fn database(&mut self) -> String {
        // SAFETY: as for `host`.
        unsafe { copy_text(pq_sys::PQdb(self.conn.as_ptr())) }
    }

    pub(super) fn user(&mut self) -> String {
        // SAFETY: as for `host`.
        unsafe { copy_text(pq_sys::PQuser(self.conn.as_ptr())) }
    }

    fn consume_input(&mut self) -> bool {
        // SAFETY: a live connection. Neither call blocks; the first gives 0 when the stream has ended or broken.
        unsafe {
            let open = pq_sys::PQconsumeInput(self.conn.as_ptr()) == 1;
            pq_sys::PQisBusy(self.conn.as_ptr());
            open
        }
    }

    fn is_ok(&self) -> bool {
        // SAFETY: a live connection; the call only reads it.
        unsafe { pq_sys::PQstatus(self.conn.as_ptr()) == ConnStatusType::CONNECTION_OK }
    }

    fn error_message(&self) -> String {
        // SAFETY: a live connection; the text is copied.
        unsafe { copy_text(pq_sys::PQerrorMessage(self.conn.as_ptr())) }.trim().to_owned()
    }

    /// Takes ownership of a result and turns it into an answer or the right kind of error.
    fn judge(&self, result: *mut PGresult) -> Result<Answer, ServerError> {
        let Some(result) = NonNull::new(result) else {
            return Err(ServerError::ConnectionLost { message: self.error_message() });
        };
        let answer = Answer { result };
        match answer.status() {
            ExecStatusType::PGRES_TUPLES_OK
            | ExecStatusType::PGRES_COMMAND_OK
            | ExecStatusType::PGRES_EMPTY_QUERY => Ok(answer),
            ExecStatusType::PGRES_COPY_OUT
            | ExecStatusType::PGRES_COPY_IN
            | ExecStatusType::PGRES_COPY_BOTH => Err(odd("COPY where rows were expected")),
            _ if !self.is_ok() => Err(ServerError::ConnectionLost { message: self.error_message() }),
            _ => Err(answer.error().unwrap_or_else(|| odd(&self.error_message()))),
        }
    }

    fn expect_copy_out(&self, result: *mut PGresult) -> Result<(), ServerError> {
        if let Some(result) = NonNull::new(result) {
            let answer = Answer { result };
            if answer.status() == ExecStatusType::PGRES_COPY_OUT {
                return Ok(());
            }
            let raw = answer.into_raw();
            return self.judge(raw).and_then(|_| Err(odd("no COPY data where it was expected")));
        }
        Err(ServerError::ConnectionLost { message: self.error_message() })
    }

    /// The next message of a COPY; `None` at its end, of which [`Self::finish_copy`] tells whether it was a good one.
    fn next_copy_message(&mut self) -> Option<CopyMessage> {
        let mut buffer: *mut c_char = ptr::null_mut();
        // SAFETY: a live connection and a place for one pointer; 0 means "wait".
        let length = unsafe { pq_sys::PQgetCopyData(self.conn.as_ptr(), &mut buffer, 0) };
        let buffer = NonNull::new(buffer)?;
        Some(CopyMessage { buffer, length: usize::try_from(length).unwrap_or(0) })
    }

    fn finish_copy(&mut self) -> Result<(), ServerError> {
        let mut outcome = Ok(());
        loop {
            // SAFETY: a live connection; the result is owned by us and handed to `judge`.
            let result = unsafe { pq_sys::PQgetResult(self.conn.as_ptr()) };
            if result.is_null() {
                break;
            }
            let judged = self.judge(result).map(drop);
            if outcome.is_ok() {
                outcome = judged;
            }
            if !self.is_ok() {
                break;
            }
        }
        if outcome.is_ok() && !self.is_ok() {
            outcome = Err(ServerError::ConnectionLost { message: self.error_message() });
        }
        outcome
    }

    /// Asks the server to stop the running statement. Best effort: the caller drains what still comes either way.
    fn cancel(&mut self) {
        // SAFETY: a live connection; the cancel object is ours and finished here, null is accepted by both calls.
        unsafe {
            let request = pq_sys::PQcancelCreate(self.conn.as_ptr());
            if !request.is_null() {
                pq_sys::PQcancelBlocking(request);
                pq_sys::PQcancelFinish(request);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: the pointer is live and used no more. `notices` is a field, so it is freed after this.
        unsafe { pq_sys::PQfinish(self.conn.as_ptr()) };
    }
}

/// Called by libpq, inside one of the calls above, for every notice.
extern "C" fn receive_notice(sink: *mut c_void, result: *const PGresult) {
    // SAFETY: `sink` is what `connect` registered, which lives as long as the connection; `result` is live for the call.
    let (sink, severity, message) = unsafe {
        (
            &*sink.cast_const().cast::<Notices>(),
            field(result, pq_sys::PG_DIAG_SEVERITY_NONLOCALIZED),
            field(result, pq_sys::PG_DIAG_MESSAGE_PRIMARY),
        )
    };
    let mut notices = sink.lock().unwrap_or_else(PoisonError::into_inner);
    if notices.len() >= NOTICES_KEPT {
        notices.pop_front();
    }
    notices
        .push_back(Notice { severity: severity.unwrap_or_default(), message: message.unwrap_or_default() });
}

fn odd(what: &str) -> ServerError {
    ServerError::UnexpectedAnswer { what: what.to_owned() }
}
