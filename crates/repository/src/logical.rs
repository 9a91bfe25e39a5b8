//! What a logical backup says of itself: the databases in it, and where in its tree their content stands.
//!
//! The tree is a file list like any other (`content`), so whatever verifies, copies or prunes knows nothing of this. `docs/format.md` §10.

use prost::Message;
use serde::{Deserialize, Serialize};

/// What of the server's globals is in a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Globals {
    /// Nothing: the role may not read them, or they were not wanted.
    Left = 0,
    /// Roles and their rights, without passwords.
    WithoutPasswords = 1,
    /// All that `pg_dumpall --globals-only` gives.
    Whole = 2,
}

/// The part of a manifest that only logical backups have.
#[derive(Clone, PartialEq, Message)]
pub struct LogicalRecord {
    /// The databases, by name.
    #[prost(message, repeated, tag = "1")]
    pub databases: Vec<DatabaseRecord>,
    /// What wrote the definitions: `pg_dump (PostgreSQL) 17.10`.
    #[prost(string, tag = "2")]
    pub dumped_by: String,
    /// The server's globals.
    #[prost(enumeration = "Globals", tag = "3")]
    pub globals: i32,
    /// The key of the rows' digests: 32 bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub row_key: Vec<u8>,
}

/// One database of a logical backup.
#[derive(Clone, PartialEq, Message)]
pub struct DatabaseRecord {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its owner.
    #[prost(string, tag = "2")]
    pub owner: String,
    /// Its encoding, in which rows are stored: `UTF8`. Definitions are in UTF-8 but for `SQL_ASCII`.
    #[prost(string, tag = "3")]
    pub encoding: String,
    /// `lc_collate`.
    #[prost(string, tag = "4")]
    pub collate: String,
    /// `lc_ctype`.
    #[prost(string, tag = "5")]
    pub ctype: String,
    /// `c`, `i` or `b`: libc, ICU, builtin.
    #[prost(string, tag = "6")]
    pub provider: String,
    /// Its ICU or builtin locale.
    #[prost(string, tag = "7")]
    pub locale: String,
    /// Tables whose rows are stored.
    #[prost(uint64, tag = "8")]
    pub tables: u64,
    /// Their rows.
    #[prost(uint64, tag = "9")]
    pub rows: u64,
    /// Bytes of rows, as `COPY` writes them.
    #[prost(uint64, tag = "10")]
    pub bytes: u64,
    /// Large objects.
    #[prost(uint64, tag = "11")]
    pub large_objects: u64,
    /// What of it is not in the backup, and why, for people.
    #[prost(string, repeated, tag = "12")]
    pub uncovered: Vec<String>,
    /// When its moment was taken: server's clock, microseconds since 1970.
    #[prost(sint64, tag = "13")]
    pub taken_us: i64,
}

/// One line of a database's table list: a table whose rows are stored. JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    /// Its number in the server that was backed up.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The columns whose values are stored, in order; empty if the table has none.
    pub columns: Vec<String>,
    /// Which rows are stored, in SQL; empty for all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub condition: String,
    /// Whether it is an extension's: then its definition is that of the extension.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_extension: bool,
    /// How many rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// In how many files they are.
    pub files: u32,
    /// The sum of the rows' digests, whatever their order: 32 hexadecimal digits.
    pub digest: String,
}

/// One line of a database's list of other content: a sequence's state, or a view that has rows. JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OtherRecord {
    /// A sequence.
    Sequence {
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
        /// The value last given out, or the first to be.
        last_value: i64,
        /// Whether it was given out.
        is_called: bool,
    },
    /// A materialized view that is to be made anew.
    MaterializedView {
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
}

/// Path of the globals.
pub const GLOBALS: &str = "globals.sql";

/// Path of a database's definitions: what `pg_dump` wrote in its custom format, without rows.
pub fn definitions(database: &str) -> String {
    format!("databases/{}/definitions", escaped(database))
}

/// Path of a database's table list: a [`TableRecord`] on each line.
pub fn tables(database: &str) -> String {
    format!("databases/{}/tables", escaped(database))
}

/// Path of what else a database has: an [`OtherRecord`] on each line.
pub fn others(database: &str) -> String {
    format!("databases/{}/others", escaped(database))
}

/// Path of one of the files that hold a table's rows.
pub fn rows(database: &str, schema: &str, table: &str, file: u32) -> String {
    format!("databases/{}/rows/{}/{}/{file:06}", escaped(database), escaped(schema), escaped(table))
}

/// A name as part of a path: no slash, no control character, never `.` or `..`. A percent sign and two hexadecimal digits
/// stand for each byte that cannot be there.
fn escaped(name: &str) -> String {
    let mut part = String::with_capacity(name.len());
    for c in name.chars() {
        let is_special = c.is_ascii_control() || c == '%' || c == '/' || (c == '.' && part.is_empty());
        if is_special { part.push_str(&format!("%{:02X}", u32::from(c))) } else { part.push(c) }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::is_safe_path;

    #[test]
    fn every_name_has_a_path_of_its_own_that_stays_in_its_place() {
        let names = ["..", ".", "a/b", "a%2Fb", "a\nb", "größe", ".hidden", "a.b", "%", "\u{7f}"];
        let paths: Vec<String> = names.iter().map(|name| rows("d", name, "t", 7)).collect();
        for (at, path) in paths.iter().enumerate() {
            assert!(is_safe_path(path.as_bytes()), "{path}");
            assert_eq!(path.split('/').count(), 6, "{path}");
            assert_eq!(paths.iter().position(|other| other == path), Some(at), "{path}");
        }
        assert_eq!(paths[2], "databases/d/rows/a%2Fb/t/000007");
        assert_eq!(paths[5], "databases/d/rows/größe/t/000007");
    }
}
