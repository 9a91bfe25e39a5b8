//! Taking connection strings apart, by libpq's own rules.

use std::ffi::{CStr, c_char};
use std::ptr;

use pq_sys::_PQconninfoOption as PQconninfoOption;

use super::Session;
use super::answer::copy_text;

/// Splits a connection string into its keywords and values. The error is libpq's text and may quote a password.
pub(in crate::connection) fn parse_conninfo(conninfo: &CStr) -> Result<Vec<(String, String)>, String> {
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
    // SAFETY: what libpq just made, given away here.
    Ok(unsafe { take(options) })
}

impl Session {
    /// Every keyword that has a value for this session, wherever that came from.
    pub(in crate::connection) fn keywords(&self) -> Vec<(String, String)> {
        // SAFETY: a live connection; what libpq makes of it is given away here.
        unsafe {
            let options = pq_sys::PQconninfo(self.conn.as_ptr());
            if options.is_null() { Vec::new() } else { take(options) }
        }
    }
}

/// For each keyword, the variable of the environment by which libpq takes it, if there is one.
pub(in crate::connection) fn environment_names() -> Vec<(String, Option<String>)> {
    let mut names = Vec::new();
    // SAFETY: an array of libpq's making that ends with a null keyword; copied, then freed once. Null is "out of memory".
    unsafe {
        let options = pq_sys::PQconndefaults();
        let mut option = options;
        while !option.is_null() && !(*option).keyword.is_null() {
            let variable = (!(*option).envvar.is_null()).then(|| copy_text((*option).envvar));
            names.push((copy_text((*option).keyword), variable));
            option = option.add(1);
        }
        pq_sys::PQconninfoFree(options);
    }
    names
}

/// Copies the keywords that have a value, and frees the array.
///
/// # Safety
/// `options` must be an array of libpq's making that ends with a null keyword; it is freed here.
unsafe fn take(options: *mut PQconninfoOption) -> Vec<(String, String)> {
    let mut keywords = Vec::new();
    // SAFETY: as the caller promises; values are null when not given.
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
    keywords
}
