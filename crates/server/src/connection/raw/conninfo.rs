//! Taking connection strings apart, by libpq's own rules.

use std::ffi::{CStr, c_char};
use std::ptr;

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
