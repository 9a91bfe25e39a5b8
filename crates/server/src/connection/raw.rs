//! The only place that touches libpq's pointers. Everything it hands out is an owned Rust value or borrows from one.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use pq_sys::{ConnStatusType, ExecStatusType, PGconn, PGresult};

use super::Notice;
use super::error::{ServerError, SqlState};
use super::settings::Keyword;

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
        // SAFETY: a live connection and a string that outlives the call.
        let result = unsafe { pq_sys::PQexec(self.conn.as_ptr(), sql.as_ptr()) };
        self.expect_copy_out(result)?;
        let mut refused = None;
        while let Some(message) = self.next_copy_message() {
            if refused.is_some() {
                continue;
            }
            if let Err(error) = visit(message.bytes()) {
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

/// An owned result. It never changes once libpq has given it out.
#[derive(Debug)]
pub(super) struct Answer {
    result: NonNull<PGresult>,
}

// SAFETY: a PGresult is independent of its connection and of threads, and nothing here changes it after creation.
unsafe impl Send for Answer {}
// SAFETY: as above; all methods only read.
unsafe impl Sync for Answer {}

impl Answer {
    pub(super) fn rows(&self) -> usize {
        // SAFETY: a live result.
        usize::try_from(unsafe { pq_sys::PQntuples(self.result.as_ptr()) }).unwrap_or(0)
    }

    pub(super) fn columns(&self) -> usize {
        // SAFETY: a live result.
        usize::try_from(unsafe { pq_sys::PQnfields(self.result.as_ptr()) }).unwrap_or(0)
    }

    pub(super) fn column_name(&self, column: usize) -> String {
        let Ok(column) = c_int::try_from(column) else { return String::new() };
        // SAFETY: a live result; out of range gives null, which `copy_text` takes for empty.
        unsafe { copy_text(pq_sys::PQfname(self.result.as_ptr(), column)) }
    }

    pub(super) fn affected(&self) -> u64 {
        // SAFETY: a live result; the text lives as long as it and is copied.
        unsafe { copy_text(pq_sys::PQcmdTuples(self.result.as_ptr())) }.parse().unwrap_or(0)
    }

    pub(super) fn value(&self, row: usize, column: usize) -> Option<&[u8]> {
        if row >= self.rows() || column >= self.columns() {
            return None;
        }
        let (row, column) = (c_int::try_from(row).ok()?, c_int::try_from(column).ok()?);
        // SAFETY: row and column exist; the value is `length` bytes that live as long as the result, hence as `self`.
        unsafe {
            if pq_sys::PQgetisnull(self.result.as_ptr(), row, column) != 0 {
                return None;
            }
            let length = usize::try_from(pq_sys::PQgetlength(self.result.as_ptr(), row, column)).ok()?;
            let bytes = pq_sys::PQgetvalue(self.result.as_ptr(), row, column);
            Some(slice::from_raw_parts(bytes.cast::<u8>(), length))
        }
    }

    fn status(&self) -> ExecStatusType {
        // SAFETY: a live result.
        unsafe { pq_sys::PQresultStatus(self.result.as_ptr()) }
    }

    /// The server's error in this result; `None` when it holds none (an error that libpq found by itself).
    fn error(&self) -> Option<ServerError> {
        // SAFETY: a live result for all four; the texts are copied.
        let field = |code| unsafe { field(self.result.as_ptr(), code) };
        Some(ServerError::Query {
            sqlstate: SqlState::new(&field(pq_sys::PG_DIAG_SQLSTATE)?)?,
            message: field(pq_sys::PG_DIAG_MESSAGE_PRIMARY)?,
            detail: field(pq_sys::PG_DIAG_MESSAGE_DETAIL),
            hint: field(pq_sys::PG_DIAG_MESSAGE_HINT),
        })
    }

    fn into_raw(self) -> *mut PGresult {
        let raw = self.result.as_ptr();
        std::mem::forget(self);
        raw
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: ours, and used no more.
        unsafe { pq_sys::PQclear(self.result.as_ptr()) };
    }
}

/// One message of a COPY, in a buffer of libpq's making.
struct CopyMessage {
    buffer: NonNull<c_char>,
    length: usize,
}

impl CopyMessage {
    fn bytes(&self) -> &[u8] {
        // SAFETY: PQgetCopyData gave `length` bytes at `buffer`, which is freed only by our Drop.
        unsafe { slice::from_raw_parts(self.buffer.as_ptr().cast::<u8>(), self.length) }
    }
}

impl Drop for CopyMessage {
    fn drop(&mut self) {
        // SAFETY: allocated by libpq, freed once.
        unsafe { pq_sys::PQfreemem(self.buffer.as_ptr().cast()) };
    }
}

/// Splits a connection string into its keywords and values. The error is libpq's text and may quote a password.
pub(super) fn parse_conninfo(conninfo: &CStr) -> Result<Vec<(String, String)>, String> {
    let mut message: *mut c_char = ptr::null_mut();
    // SAFETY: a string that ends in zero and a place for one pointer.
    let options = unsafe { pq_sys::PQconninfoParse(conninfo.as_ptr(), &mut message) };
    if options.is_null() {
        // SAFETY: null or a string that libpq allocated for us; copied, then freed once (null is accepted).
        return Err(unsafe {
            let text = copy_text(message);
            pq_sys::PQfreemem(message.cast());
            text
        });
    }
    let mut keywords = Vec::new();
    // SAFETY: an array that ends with a null keyword; values are null when not given. Copied, then freed once.
    unsafe {
        let mut option = options;
        while !(*option).keyword.is_null() {
            if !(*option).val.is_null() {
                keywords.push((copy_text((*option).keyword), copy_text((*option).val)));
            }
            option = option.add(1);
        }
        pq_sys::PQconninfoFree(options);
    }
    Ok(keywords)
}

/// A field of an error or notice.
///
/// # Safety
/// `result` must be live.
unsafe fn field(result: *const PGresult, code: u8) -> Option<String> {
    // SAFETY: live by contract; the text is null or ends in zero, and is copied.
    unsafe {
        let text = pq_sys::PQresultErrorField(result, c_int::from(code));
        (!text.is_null()).then(|| copy_text(text))
    }
}

/// The text at `text`, invalid UTF-8 replaced; empty for null.
///
/// # Safety
/// `text` must be null or a string that ends in zero and is live for the call.
unsafe fn copy_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and ends in zero by contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn odd(what: &str) -> ServerError {
    ServerError::UnexpectedAnswer { what: what.to_owned() }
}
