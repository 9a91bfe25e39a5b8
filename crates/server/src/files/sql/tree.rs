//! The directories of a cluster, listed over SQL: one statement for each.

use std::borrow::Cow;

use crate::connection::{BinaryCopy, Connection, CopyMessage, ServerError};
use crate::files::walk::{Look, Place};
use crate::files::{FileMetadata, FilesError, Warning};

use super::SqlFiles;
use super::session::{Sessions, push_literal};

/// What `pg_stat_file` says, which follows links.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    size: u64,
    is_directory: bool,
    mtime_us: i64,
    ctime_us: i64,
}

impl Stat {
    pub(super) fn metadata(self, mode: u32, inode: u64) -> FileMetadata {
        FileMetadata {
            size: self.size,
            mode,
            uid: 0,
            gid: 0,
            mtime_ns: self.mtime_us.saturating_mul(1000),
            ctime_ns: self.ctime_us.saturating_mul(1000),
            inode,
            device: 0,
        }
    }
}

const STAT_COLUMNS: &str = "s.size, s.isdir,
    (EXTRACT(epoch FROM s.modification) * 1000000)::pg_catalog.int8,
    (EXTRACT(epoch FROM s.change) * 1000000)::pg_catalog.int8";

/// Names, and what is known of each; of one that could not be looked at, why.
type Entries = Vec<(Vec<u8>, Result<Stat, String>)>;

/// A directory that has been listed.
pub(in crate::files) struct Listed {
    /// In byte order.
    names: Vec<Vec<u8>>,
    /// In the same order.
    stats: Vec<Result<Stat, String>>,
}

impl Place for SqlFiles {
    type Directory = Listed;

    fn may_follow_links(&self) -> bool {
        true
    }

    fn version_directory(&self) -> &str {
        &self.version_directory
    }

    fn root(&self) -> Result<Listed, FilesError> {
        self.list(b"")
    }

    fn open(&self, _: &Listed, _: &[u8], path: &[u8]) -> Result<Option<Listed>, FilesError> {
        self.list(path).map(Some)
    }

    fn open_tablespace(&self, path: &[u8]) -> Result<Option<Listed>, FilesError> {
        match self.stat(path)? {
            Some((_, true)) => self.list(path).map(Some),
            _ => Ok(None),
        }
    }

    fn names<'d>(&self, directory: &'d Listed, _: &[u8]) -> Result<Option<Cow<'d, [Vec<u8>]>>, FilesError> {
        Ok(Some(Cow::Borrowed(&directory.names)))
    }

    fn look(&self, directory: &Listed, name: &[u8], path: &[u8]) -> Result<Option<Look>, FilesError> {
        let Ok(at) = directory.names.binary_search_by(|other| other.as_slice().cmp(name)) else {
            return Ok(None);
        };
        if let Some(oid) = tablespace_oid(path) {
            return self.look_at_tablespace(oid, path);
        }
        if !self.can_say(path)? {
            let (path, encoding) = (path.to_owned(), self.encoding.clone());
            return Ok(Some(Look::Refused(Warning::UnspeakableName { path, encoding })));
        }
        let stat = match &directory.stats[at] {
            Ok(stat) => stat,
            Err(why) => {
                let (path, why) = (path.to_owned(), why.clone());
                return Ok(Some(Look::Refused(Warning::Unreadable { path, why })));
            }
        };
        if is_socket(name, stat) {
            return Ok(Some(Look::Special));
        }
        let metadata = self.metadata_of(stat);
        Ok(Some(if stat.is_directory { Look::Directory(metadata) } else { Look::File(metadata) }))
    }

    fn directory_at(&self, path: &[u8]) -> Result<Option<FileMetadata>, FilesError> {
        Ok(self.stat(path)?.filter(|(_, is_directory)| *is_directory).map(|(metadata, _)| metadata))
    }
}

impl SqlFiles {
    /// Attributes of what is at `path`, and whether it is a directory; `None` if it has vanished.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Option<(FileMetadata, bool)>, FilesError> {
        Ok(stat(&self.sessions, path)?.map(|stat| (self.metadata_of(&stat), stat.is_directory)))
    }

    /// The modes are those that the server makes its files with; SQL tells no file's own.
    fn metadata_of(&self, stat: &Stat) -> FileMetadata {
        let file_mode = self.directory_mode & 0o666;
        let mode = if stat.is_directory { self.directory_mode } else { file_mode };
        stat.metadata(mode, self.copy_id)
    }

    /// What is in a directory; nothing if it has vanished.
    fn list(&self, path: &[u8]) -> Result<Listed, FilesError> {
        let listed = self.list_at_once(path);
        let mut entries = match listed {
            Err(FilesError::Sql { source, .. }) if is_of_one_entry(&source) => self.list_one_by_one(path)?,
            listed => listed?,
        };
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        // A directory that changes while it is read may show a name twice.
        entries.dedup_by(|(a, _), (b, _)| a == b);
        let (names, stats) = entries.into_iter().unzip();
        Ok(Listed { names, stats })
    }

    fn list_at_once(&self, path: &[u8]) -> Result<Entries, FilesError> {
        let mut sql = format!("COPY (SELECT n.name, {STAT_COLUMNS} FROM ").into_bytes();
        push_listing(&mut sql, path);
        sql.extend(b" AS n(name) CROSS JOIN LATERAL pg_catalog.pg_stat_file(");
        if !path.is_empty() {
            push_literal(&mut sql, &[path, b"/"].concat());
            sql.extend(b" || ");
        }
        sql.extend(b"n.name, true) AS s WHERE s.size IS NOT NULL) TO STDOUT (FORMAT binary)");
        self.sessions.ask("list", path, &sql, |copy, connection| {
            let mut entries = Vec::new();
            while copy.next_row(connection, 5)?.is_some() {
                let name = copy.bytes(connection)?.unwrap_or_default();
                entries.extend(take_stat(copy, connection)?.map(|stat| (name, Ok(stat))));
            }
            Ok(entries)
        })
    }

    /// For a directory with an entry that the server may not look at.
    fn list_one_by_one(&self, path: &[u8]) -> Result<Entries, FilesError> {
        let mut sql = b"COPY (SELECT n.name FROM ".to_vec();
        push_listing(&mut sql, path);
        sql.extend(b" AS n(name)) TO STDOUT (FORMAT binary)");
        let names = self.sessions.ask("list", path, &sql, |copy, connection| {
            let mut names = Vec::new();
            while copy.next_row(connection, 1)?.is_some() {
                names.push(copy.bytes(connection)?.unwrap_or_default());
            }
            Ok(names)
        })?;
        let mut entries = Vec::new();
        for name in names {
            let below = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            if !self.can_say(&below)? {
                entries.push((name, Err(format!("its name is not valid in {}", self.encoding))));
                continue;
            }
            match stat(&self.sessions, &below) {
                Ok(Some(stat)) => entries.push((name, Ok(stat))),
                Ok(None) => {}
                Err(FilesError::Sql { source, .. }) if is_of_one_entry(&source) => {
                    entries.push((name, Err(source.to_string())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// The one kind of link that SQL tells: an absolute place is where it leads to, any other means a directory in place.
    fn look_at_tablespace(&self, oid: u32, path: &[u8]) -> Result<Option<Look>, FilesError> {
        let sql = format!(
            "COPY (SELECT pg_catalog.pg_tablespace_location({oid}::pg_catalog.oid)) TO STDOUT (FORMAT binary)"
        );
        let place = self.sessions.ask("read the link", path, sql.as_bytes(), |copy, connection| {
            copy.next_row(connection, 1)?;
            let place = copy.bytes(connection)?.unwrap_or_default();
            copy.next_row(connection, 1)?;
            Ok(place)
        });
        let target = match place {
            Ok(place) => place,
            Err(FilesError::Sql { source, .. }) if is_missing(&source) => return Ok(None),
            Err(error) => return Err(error),
        };
        if target.starts_with(b"/") {
            let nothing = Stat { size: 0, is_directory: false, mtime_us: 0, ctime_us: 0 };
            return Ok(Some(Look::Link { metadata: nothing.metadata(0o777, 0), target }));
        }
        Ok(self.stat(path)?.map(|(metadata, _)| Look::Directory(metadata)))
    }

    /// Whether a statement can hold this path. Names come out of the server as the bytes they are, but it takes none in
    /// that its encoding does not know.
    fn can_say(&self, path: &[u8]) -> Result<bool, FilesError> {
        if path.is_ascii() || self.encoding == "SQL_ASCII" {
            return Ok(true);
        }
        if self.encoding == "UTF8" {
            return Ok(std::str::from_utf8(path).is_ok());
        }
        let mut sql = b"COPY (SELECT ".to_vec();
        push_literal(&mut sql, path);
        sql.extend(b"::pg_catalog.text) TO STDOUT (FORMAT binary)");
        let said = self.sessions.ask("speak of", path, &sql, |copy, connection| {
            while copy.next_row(connection, 1)?.is_some() {
                copy.bytes(connection)?;
            }
            Ok(())
        });
        match said {
            Ok(()) => Ok(true),
            // 22021: not valid in the encoding.
            Err(FilesError::Sql { source, .. }) if source.has_sqlstate("22021") => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What `pg_stat_file` says of one path; `None` if it has vanished.
pub(super) fn stat(sessions: &Sessions, path: &[u8]) -> Result<Option<Stat>, FilesError> {
    let mut sql = format!("COPY (SELECT {STAT_COLUMNS} FROM pg_catalog.pg_stat_file(").into_bytes();
    push_literal(&mut sql, path);
    sql.extend(b", true) AS s) TO STDOUT (FORMAT binary)");
    sessions.ask("look at", path, &sql, |copy, connection| {
        let mut found = None;
        while copy.next_row(connection, 4)?.is_some() {
            found = take_stat(copy, connection)?;
        }
        Ok(found)
    })
}

/// Takes the columns of `STAT_COLUMNS`; `None` if they are null.
fn take_stat(
    copy: &mut BinaryCopy<CopyMessage>,
    connection: &Connection,
) -> Result<Option<Stat>, ServerError> {
    let size = copy.fixed(connection)?.map(i64::from_be_bytes);
    let is_directory = copy.fixed(connection)?.map(|[byte]: [u8; 1]| byte != 0);
    let mtime_us = copy.fixed(connection)?.map(i64::from_be_bytes);
    let ctime_us = copy.fixed(connection)?.map(i64::from_be_bytes);
    let (Some(size), Some(is_directory)) = (size, is_directory) else { return Ok(None) };
    Ok(Some(Stat {
        size: u64::try_from(size).unwrap_or(0),
        is_directory,
        mtime_us: mtime_us.unwrap_or(0),
        ctime_us: ctime_us.unwrap_or(0),
    }))
}

/// Adds the call that lists a directory, without an error where there is none.
fn push_listing(sql: &mut Vec<u8>, path: &[u8]) {
    sql.extend(b"pg_catalog.pg_ls_dir(");
    push_literal(sql, if path.is_empty() { b"." } else { path });
    sql.extend(b", true, false)");
}

/// The number in `pg_tblspc/<number>`.
fn tablespace_oid(path: &[u8]) -> Option<u32> {
    let name = std::str::from_utf8(path.strip_prefix(b"pg_tblspc/")?).ok()?;
    name.parse().ok().filter(|_| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether this is a server's socket, which SQL does not tell from an empty file.
fn is_socket(name: &[u8], stat: &Stat) -> bool {
    name.starts_with(b".s.PGSQL.") && !name.ends_with(b".lock") && !stat.is_directory && stat.size == 0
}

/// True for an error that a single entry causes: a link to where the server's user may not go (42501), or in a circle, for
/// which there is no code of its own. A disk that does not answer has one (58030).
fn is_of_one_entry(error: &ServerError) -> bool {
    error.has_sqlstate("42501") || error.has_sqlstate("XX000")
}

fn is_missing(error: &ServerError) -> bool {
    error.has_sqlstate("58P01")
}
