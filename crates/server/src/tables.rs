//! What of a database has content, as its catalogue says it: tables, sequences, materialized views; and what stands against
//! reading some of it.
//!
//! Catalogue queries follow pg_dump's (`getTables`, `getTableAttrs`, `getExtensionMembership`, `pg_dump.c`): system schemas are left out, so
//! are members of extensions but for the rows that an extension declares to be configuration.

mod read;

use crate::connection::{Connection, ServerError};
pub use crate::grants::quote as quoted;

/// A table whose rows are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its number.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Columns whose values are stored: all but generated ones.
    pub columns: Vec<String>,
    /// Which rows are stored, in SQL; empty for all. Only extensions' tables have a condition.
    pub condition: String,
    /// Its pages, without those of its TOAST table.
    pub pages: u64,
    /// Bytes with TOAST.
    pub bytes: u64,
    /// Whether a range of pages can be read by itself.
    pub has_ranges: bool,
    /// Whether it survives no crash.
    pub unlogged: bool,
    /// Whether an extension makes it, and declares rows of it to be configuration.
    pub of_extension: bool,
}

/// A sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The value last given out, or the first one to be.
    pub last_value: i64,
    /// Whether that was given out.
    pub is_called: bool,
}

/// A relation by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

/// Why the content of a relation cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncovered {
    /// The relation.
    pub relation: Named,
    /// Why.
    pub why: Why,
}

/// Reasons for which content is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The role has no right to.
    NoRight,
    /// Row security hides rows from the role.
    RowSecurity,
    /// The rows are on another server.
    Foreign,
    /// A standby has no unlogged tables' rows.
    UnloggedOnStandby,
}

impl Why {
    /// True if the content would be expected in a backup, and is missing.
    pub fn is_loss(self) -> bool {
        matches!(self, Self::NoRight | Self::RowSecurity)
    }

    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::NoRight => "the role may not read it",
            Self::RowSecurity => "row security hides rows of it from the role",
            Self::Foreign => "a foreign table: its rows are on another server",
            Self::UnloggedOnStandby => "unlogged: a standby has no rows of it",
        }
    }
}

/// What of a database has content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Tables, by schema and name.
    pub tables: Vec<Table>,
    /// Sequences.
    pub sequences: Vec<Sequence>,
    /// Materialized views that have rows, which are made anew.
    pub views: Vec<Named>,
    /// Relations whose content is not read.
    pub uncovered: Vec<Uncovered>,
    /// How many large objects there are.
    pub large_objects: u64,
}

/// What a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// `UTF8`.
    pub encoding: String,
    /// `lc_collate`.
    pub collate: String,
    /// `lc_ctype`.
    pub ctype: String,
    /// `c`, `i` or `b`: where its default collation comes from.
    pub provider: String,
    /// Its ICU or builtin locale; empty where there is none.
    pub locale: String,
}

/// Names of the databases that can be connected to, templates left out.
pub fn databases(connection: &Connection) -> Result<Vec<String>, ServerError> {
    let rows = connection.query(
        "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate \
         AND has_database_privilege(oid, 'CONNECT') ORDER BY datname",
        &[],
    )?;
    rows.iter().map(|row| row.required(0).map(str::to_owned)).collect()
}

impl Contents {
    /// Reads the catalogue, by the session of a [`Snapshot`](crate::snapshot::Snapshot).
    pub fn read(connection: &Connection) -> Result<Self, ServerError> {
        read::contents(connection)
    }
}

impl DatabaseFacts {
    /// Of the database that the session is in.
    pub fn read(connection: &Connection) -> Result<Self, ServerError> {
        read::database(connection)
    }
}

/// Locks the tables against whatever changes or empties them while they are read, in batches.
///
/// `Ok(false)` if one of them was changed between the session's snapshot and the lock: then the snapshot does not show what it
/// should (a table emptied by TRUNCATE is empty in every snapshot), and a new one must be taken.
pub fn lock(connection: &Connection, tables: &[Table]) -> Result<bool, ServerError> {
    for batch in tables.chunks(LOCKS_AT_ONCE) {
        let names: Vec<String> = batch.iter().map(|table| qualified(&table.schema, &table.name)).collect();
        let locked =
            connection.run_script(&format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", names.join(", ONLY ")));
        match locked {
            Err(error) if CHANGED.iter().any(|code| error.has_sqlstate(code)) => return Ok(false),
            other => other?,
        }
        // A statement goes by the columns of now, whatever the snapshot shows.
        let looks: Vec<String> = batch.iter().enumerate().map(look).collect();
        let looks = looks.join(", ");
        match connection
            .run_script(&format!("PREPARE pgkeep_look AS SELECT FROM {looks}; DEALLOCATE pgkeep_look"))
        {
            Err(error) if CHANGED.iter().any(|code| error.has_sqlstate(code)) => return Ok(false),
            other => other?,
        }
    }
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    // The catalogue's row is that of the snapshot, the function's answer that of now.
    let changed = connection.query_one(
        "SELECT count(*) FROM pg_catalog.pg_class WHERE oid = ANY ($1::pg_catalog.oid[]) AND relfilenode <> 0 \
         AND relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(oid)",
        &[&format!("{{{}}}", oids.join(","))],
    )?;
    Ok(changed.first()?.parse::<u64>(0)? == 0)
}

/// What the server says where a table is not what the snapshot shows: 42P01: it was dropped since; 3F000: its schema was; 42809:
/// something else has its name; 42703: it lacks a column.
const CHANGED: [&str; 4] = ["42P01", "3F000", "42809", "42703"];

/// A part of a statement that names the table's columns. It is prepared and never planned: planning opens every index.
fn look((number, table): (usize, &Table)) -> String {
    let columns: Vec<String> = table.columns.iter().map(|column| quoted(column)).collect();
    format!("(SELECT {} FROM ONLY {}) l{number}", columns.join(", "), qualified(&table.schema, &table.name))
}

/// One statement's worth; a server has some ten thousand locks for each statement's transaction at the least.
const LOCKS_AT_ONCE: usize = 500;

/// A name with its schema, quoted for SQL.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(name))
}

/// A text, quoted for SQL whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}
