//! Why a server lets nobody in, by its code. libpq keeps the code to itself, but for the text of a verbose message.

use std::ffi::c_char;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pq_sys::{PGVerbosity, PostgresPollingStatusType as Step};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Session;
use crate::connection::error::SqlState;
use crate::connection::settings::Keyword;

/// Asks for a session once more, and returns the code with which the server refuses it; `None` if it does not, or does not
/// answer within `limit`.
pub(in crate::connection) fn refusal(keywords: &[Keyword], limit: Duration) -> Option<SqlState> {
    let deadline = Instant::now() + limit;
    let mut names: Vec<*const c_char> = keywords.iter().map(|(name, _)| name.as_ptr()).collect();
    let mut values: Vec<*const c_char> = keywords.iter().map(|(_, value)| value.as_ptr()).collect();
    names.push(std::ptr::null());
    values.push(std::ptr::null());
    // SAFETY: as for `Session::connect`.
    let conn = NonNull::new(unsafe { pq_sys::PQconnectStartParams(names.as_ptr(), values.as_ptr(), 0) })?;
    let session = Session { conn, notices: Arc::default() };
    // SAFETY: a live connection.
    unsafe { pq_sys::PQsetErrorVerbosity(conn.as_ptr(), PGVerbosity::PQERRORS_VERBOSE) };
    let mut flags = PollFlags::OUT;
    loop {
        let left = deadline.checked_duration_since(Instant::now())?;
        // A failure before there is a socket is no answer of the server.
        let socket: BorrowedFd<'_> = session.socket().ok()?;
        let wait = Timespec::try_from(left).ok()?;
        match poll(&mut [PollFd::new(&socket, flags)], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
        // SAFETY: a live connection that was begun by `PQconnectStartParams`.
        flags = match unsafe { pq_sys::PQconnectPoll(conn.as_ptr()) } {
            Step::PGRES_POLLING_READING => PollFlags::IN,
            Step::PGRES_POLLING_WRITING => PollFlags::OUT,
            Step::PGRES_POLLING_FAILED => return code_in(&session.error_message()),
            _ => return None,
        };
    }
}

/// The last code in a verbose message, `FATAL:  28P01: password authentication failed`: the last host is the one whose
/// refusal ended the attempt. Source: `pqBuildErrorMessage3`, `fe-protocol3.c`.
fn code_in(message: &str) -> Option<SqlState> {
    let after = message.split(":  ").skip(1);
    let codes = after.filter_map(|rest| {
        let (code, _) = rest.split_once(": ")?;
        SqlState::new(code).filter(|_| !code.bytes().any(|byte| byte.is_ascii_lowercase()))
    });
    codes.last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_in_a_verbose_message() {
        let one = "connection to server at \"::1\", port 5432 failed: FATAL:  28P01: password authentication failed\n\
                   LOCATION:  auth_failed, auth.c:321";
        assert_eq!(code_in(one), SqlState::new("28P01"));
        let silent =
            "connection to server on socket \"/x: y\" failed: No such file or directory\n\tIs the server up?";
        assert_eq!(code_in(silent), None);
        let second = format!("{silent}\n{}", one.replace("28P01", "57P03"));
        assert_eq!(code_in(&second), SqlState::new("57P03"));
    }
}
