//! Data on its way into a table.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};

use pq_sys::{ExecStatusType, PGresult};

use super::{Answer, Session, odd};
use crate::connection::error::ServerError;

impl Session {
    pub(in crate::connection) fn begin_copy_in(&mut self, sql: &CStr) -> Result<(), ServerError> {
        // SAFETY: a live connection and a string that outlives the call.
        let result = unsafe { pq_sys::PQexec(self.conn.as_ptr(), sql.as_ptr()) };
        let Some(result) = NonNull::new(result) else { return Err(self.lost()) };
        let answer = Answer { result };
        if answer.status() == ExecStatusType::PGRES_COPY_IN {
            return Ok(());
        }
        let raw = answer.into_raw();
        self.judge(raw).and_then(|_| Err(odd("no COPY where data was to be sent")))
    }

    /// Sends data; waits while the server takes none.
    pub(in crate::connection) fn put_copy_data(&mut self, data: &[u8]) -> Result<(), ServerError> {
        let length = c_int::try_from(data.len()).map_err(|_| odd("a message of more than 2 GiB"))?;
        // SAFETY: a live connection; libpq copies `length` bytes before it returns.
        match unsafe { pq_sys::PQputCopyData(self.conn.as_ptr(), data.as_ptr().cast::<c_char>(), length) } {
            1 => Ok(()),
            // The server gave the COPY up: its reason is the result.
            _ => Err(self.copy_result().err().unwrap_or_else(|| self.lost())),
        }
    }

    /// Ends the data, with a reason to make the server forget it all; returns how many rows the server took.
    pub(in crate::connection) fn end_copy_in(
        &mut self,
        give_up: Option<&CString>,
    ) -> Result<u64, ServerError> {
        let reason = give_up.map_or(ptr::null(), |reason| reason.as_ptr());
        // SAFETY: a live connection; null or a string that outlives the call.
        if unsafe { pq_sys::PQputCopyEnd(self.conn.as_ptr(), reason) } != 1 {
            return Err(self.copy_result().err().unwrap_or_else(|| self.lost()));
        }
        self.copy_result()
    }

    /// Takes all results; the first error, else the rows of the last.
    fn copy_result(&mut self) -> Result<u64, ServerError> {
        let mut outcome = Ok(0);
        loop {
            // SAFETY: a live connection; the result is owned by us and handed to `judge`.
            let result: *mut PGresult = unsafe { pq_sys::PQgetResult(self.conn.as_ptr()) };
            if result.is_null() {
                return outcome;
            }
            let judged = self.judge(result).map(|answer| answer.affected());
            if outcome.is_ok() {
                outcome = judged;
            }
            if !self.is_ok() {
                return outcome.and_then(|_| Err(self.lost()));
            }
        }
    }
}
