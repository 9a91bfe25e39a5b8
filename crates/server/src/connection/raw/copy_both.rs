//! COPY in both directions: how WAL is streamed and its receipt told.

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{self, NonNull};

use pq_sys::{ExecStatusType, PGresult};

use super::answer::CopyMessage;
use super::{Answer, Session, odd};
use crate::connection::error::ServerError;

/// What a COPY in both directions has now.
pub(in crate::connection) enum CopyStep {
    /// A message.
    Message(CopyMessage),
    /// Nothing yet.
    Wait,
    /// The server ended it; [`Session::end_copy_both`] tells how.
    Ended,
}

impl Session {
    /// Runs a statement by the simple protocol, the only one that a replication connection knows.
    pub(in crate::connection) fn simple_query(&mut self, sql: &CStr) -> Result<Answer, ServerError> {
        let result = self.exec(sql);
        self.judge(result)
    }

    /// Runs a statement that begins a COPY in both directions.
    pub(in crate::connection) fn copy_both(&mut self, sql: &CStr) -> Result<(), ServerError> {
        let result = self.exec(sql);
        match NonNull::new(result) {
            Some(result) => {
                let answer = Answer { result };
                if answer.status() == ExecStatusType::PGRES_COPY_BOTH {
                    return Ok(());
                }
                self.judge(answer.into_raw()).and_then(|_| Err(odd("no stream where one was expected")))
            }
            None => self.judge(result).map(drop),
        }
    }

    /// Takes what has come, without waiting.
    pub(in crate::connection) fn copy_step(&mut self) -> Result<CopyStep, ServerError> {
        let mut buffer: *mut c_char = ptr::null_mut();
        // SAFETY: a live connection and a place for one pointer; 1 means "do not wait".
        let length = unsafe { pq_sys::PQgetCopyData(self.conn.as_ptr(), &mut buffer, 1) };
        match (length, NonNull::new(buffer)) {
            (1.., Some(buffer)) => {
                Ok(CopyStep::Message(CopyMessage { buffer, length: usize::try_from(length).unwrap_or(0) }))
            }
            (0, _) => Ok(CopyStep::Wait),
            (-1, _) => Ok(CopyStep::Ended),
            _ => Err(self.finish_copy().err().unwrap_or_else(|| self.lost())),
        }
    }

    /// Reads what the socket has; false when the stream has ended or broken.
    pub(in crate::connection) fn read_socket(&mut self) -> bool {
        // SAFETY: a live connection; the call does not block.
        unsafe { pq_sys::PQconsumeInput(self.conn.as_ptr()) == 1 }
    }

    /// The socket, to wait for.
    pub(in crate::connection) fn socket(&self) -> Result<BorrowedFd<'_>, ServerError> {
        // SAFETY: a live connection; the descriptor stays open as long as it.
        let socket: RawFd = unsafe { pq_sys::PQsocket(self.conn.as_ptr()) };
        if socket < 0 {
            return Err(self.lost());
        }
        // SAFETY: as above, and borrowed for no longer than `self`.
        Ok(unsafe { BorrowedFd::borrow_raw(socket) })
    }

    /// Sends a message. Waits only while the socket takes nothing, which the connection's own time limits bound.
    pub(in crate::connection) fn put_copy(&mut self, message: &[u8]) -> Result<(), ServerError> {
        let length = c_int::try_from(message.len()).map_err(|_| odd("a message too long"))?;
        // SAFETY: a live connection and `length` bytes that outlive the call, which copies them.
        let sent = unsafe {
            pq_sys::PQputCopyData(self.conn.as_ptr(), message.as_ptr().cast(), length) == 1
                && pq_sys::PQflush(self.conn.as_ptr()) == 0
        };
        if sent { Ok(()) } else { Err(self.lost()) }
    }

    /// Ends our direction, drops what still comes, and returns the rows that the server sends then, if any.
    pub(in crate::connection) fn end_copy_both(&mut self) -> Result<Option<Answer>, ServerError> {
        // SAFETY: a live connection. It fails when the copy has ended in an error, which the results below tell.
        unsafe {
            pq_sys::PQputCopyEnd(self.conn.as_ptr(), ptr::null());
            pq_sys::PQflush(self.conn.as_ptr());
        }
        let mut rows = None;
        loop {
            // SAFETY: a live connection; each result is ours.
            let result: *mut PGresult = unsafe { pq_sys::PQgetResult(self.conn.as_ptr()) };
            let Some(owned) = NonNull::new(result) else {
                return if self.is_ok() { Ok(rows) } else { Err(self.lost()) };
            };
            let answer = Answer { result: owned };
            match answer.status() {
                ExecStatusType::PGRES_COPY_BOTH
                | ExecStatusType::PGRES_COPY_OUT
                | ExecStatusType::PGRES_COPY_IN => while self.next_copy_message().is_some() {},
                ExecStatusType::PGRES_TUPLES_OK => rows = Some(answer),
                _ => drop(self.judge(answer.into_raw())?),
            }
        }
    }

    fn exec(&mut self, sql: &CStr) -> *mut PGresult {
        // SAFETY: a live connection and a string that outlives the call.
        unsafe { pq_sys::PQexec(self.conn.as_ptr(), sql.as_ptr()) }
    }

    pub(super) fn lost(&self) -> ServerError {
        ServerError::ConnectionLost { message: self.error_message() }
    }
}
