//! What libpq hands out, owned: results, messages of a COPY, texts.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::NonNull;
use std::slice;

use pq_sys::{ExecStatusType, PGresult};

use crate::connection::error::{ServerError, SqlState};

/// An owned result. It never changes once libpq has given it out.
#[derive(Debug)]
pub(in crate::connection) struct Answer {
    pub(super) result: NonNull<PGresult>,
}

// SAFETY: a PGresult is independent of its connection and of threads, and nothing here changes it after creation.
unsafe impl Send for Answer {}
// SAFETY: as above; all methods only read.
unsafe impl Sync for Answer {}

impl Answer {
    pub(in crate::connection) fn rows(&self) -> usize {
        // SAFETY: a live result.
        usize::try_from(unsafe { pq_sys::PQntuples(self.result.as_ptr()) }).unwrap_or(0)
    }

    pub(in crate::connection) fn columns(&self) -> usize {
        // SAFETY: a live result.
        usize::try_from(unsafe { pq_sys::PQnfields(self.result.as_ptr()) }).unwrap_or(0)
    }

    pub(in crate::connection) fn column_name(&self, column: usize) -> String {
        let Ok(column) = c_int::try_from(column) else { return String::new() };
        // SAFETY: a live result; out of range gives null, which `copy_text` takes for empty.
        unsafe { copy_text(pq_sys::PQfname(self.result.as_ptr(), column)) }
    }

    pub(in crate::connection) fn affected(&self) -> u64 {
        // SAFETY: a live result; the text lives as long as it and is copied.
        unsafe { copy_text(pq_sys::PQcmdTuples(self.result.as_ptr())) }.parse().unwrap_or(0)
    }

    pub(in crate::connection) fn value(&self, row: usize, column: usize) -> Option<&[u8]> {
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

    pub(super) fn status(&self) -> ExecStatusType {
        // SAFETY: a live result.
        unsafe { pq_sys::PQresultStatus(self.result.as_ptr()) }
    }

    /// The server's error in this result; `None` when it holds none (an error that libpq found by itself).
    pub(super) fn error(&self) -> Option<ServerError> {
        // SAFETY: a live result for all four; the texts are copied.
        let field = |code| unsafe { field(self.result.as_ptr(), code) };
        Some(ServerError::Query {
            sqlstate: SqlState::new(&field(pq_sys::PG_DIAG_SQLSTATE)?)?,
            message: field(pq_sys::PG_DIAG_MESSAGE_PRIMARY)?,
            detail: field(pq_sys::PG_DIAG_MESSAGE_DETAIL),
            hint: field(pq_sys::PG_DIAG_MESSAGE_HINT),
        })
    }

    pub(super) fn into_raw(self) -> *mut PGresult {
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
#[derive(Debug)]
pub struct CopyMessage {
    pub(super) buffer: NonNull<c_char>,
    pub(super) length: usize,
}

// SAFETY: the buffer is ours alone, tied to no connection and no thread, and only read.
unsafe impl Send for CopyMessage {}
// SAFETY: as above.
unsafe impl Sync for CopyMessage {}

impl AsRef<[u8]> for CopyMessage {
    fn as_ref(&self) -> &[u8] {
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

/// A field of an error or notice.
///
/// # Safety
/// `result` must be live.
pub(super) unsafe fn field(result: *const PGresult, code: u8) -> Option<String> {
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
pub(super) unsafe fn copy_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and ends in zero by contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
