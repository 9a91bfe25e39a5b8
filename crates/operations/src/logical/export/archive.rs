//! `pg_dump`'s custom format: its head and its table of contents, read and written.
//!
//! Numbers are a sign and four bytes, the lowest first; texts are their length and their bytes, of which -1 is "none". What stands in
//! an entry follows `WriteHead` and `WriteToc`, `pg_backup_archiver.c`; where its data is, `_WriteExtraToc`, `pg_backup_custom.c`.
//! Versions that PostgreSQL 12 to 18 write are known; what else there may be is refused.

use std::io::{Read, Write};

use super::definitions_error;
use crate::logical::LogicalError;

const MAGIC: &[u8; 5] = b"PGDMP";
/// Sizes of a number and of an offset in bytes, and the custom format's own number.
const SIZES_AND_FORMAT: [u8; 3] = [4, 8, 1];
/// Minors of version 1 that are known: PostgreSQL 12, 16 and 17 began them.
const OLDEST: u8 = 14;
const ALGORITHM_SINCE: u8 = 15;
const RELKIND_SINCE: u8 = 16;
/// Longer texts and lists are nobody's: a definition fits in one message of the server's.
const TEXT_MAX: i64 = 1 << 30;

/// A text as it stands there: in the database's encoding, or none.
pub(super) type Text = Option<Vec<u8>>;

/// Parts of a dump, as an entry names its own.
pub(super) const SECTION_DATA: i64 = 3;
/// See [`SECTION_DATA`].
pub(super) const SECTION_POST_DATA: i64 = 4;

/// Where an entry's data stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has data, and whoever wrote the list did not know where.
    Unknown,
    /// From this byte on.
    At(u64),
    /// It has none.
    None,
}

/// An entry of the table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: i64,
    /// Whether it has data.
    pub(super) has_data: bool,
    pub(super) table_oid: Text,
    pub(super) oid: Text,
    pub(super) tag: Text,
    /// What it is: `TABLE`, `INDEX`…
    pub(super) kind: Text,
    pub(super) section: i64,
    pub(super) definition: Text,
    pub(super) drop: Text,
    pub(super) copy: Text,
    pub(super) schema: Text,
    pub(super) tablespace: Text,
    pub(super) access_method: Text,
    pub(super) relkind: i64,
    pub(super) owner: Text,
    pub(super) with_oids: Text,
    /// Ids of the entries that it needs.
    pub(super) needs: Vec<i64>,
    pub(super) place: Place,
}

impl Entry {
    /// Whether it is of this kind.
    pub(super) fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind.as_bytes())
    }

    /// Whether it has this schema and this name.
    pub(super) fn is_named(&self, schema: &str, name: &str) -> bool {
        self.schema.as_deref() == Some(schema.as_bytes()) && self.tag.as_deref() == Some(name.as_bytes())
    }
}

/// The head of an archive and its table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Archive {
    /// Minor and revision of the version, whose major is 1.
    version: [u8; 2],
    /// Second, minute, hour, day, month, year, and whether it was summer time.
    made: [i64; 7],
    database: Text,
    server: Text,
    dumped_by: Text,
    pub(super) entries: Vec<Entry>,
}

/// Reads numbers and texts, and counts bytes.
pub(super) struct Numbers<R> {
    from: R,
    /// Bytes read so far.
    pub(super) position: u64,
}

impl<R: Read> Numbers<R> {
    /// Reads from here, which is at this position.
    pub(super) fn new(from: R, position: u64) -> Self {
        Self { from, position }
    }

    /// What it reads from.
    pub(super) fn source(&mut self) -> &mut R {
        &mut self.from
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], LogicalError> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|error| self.ended(error))?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn ended(&self, error: std::io::Error) -> LogicalError {
        definitions_error(format!("they end, or cannot be read, at byte {}: {error}", self.position))
    }

    /// A byte.
    pub(super) fn byte(&mut self) -> Result<u8, LogicalError> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    /// A number.
    pub(super) fn number(&mut self) -> Result<i64, LogicalError> {
        let [sign, number @ ..] = self.bytes::<5>()?;
        let number = i64::from(u32::from_le_bytes(number));
        match sign {
            0 => Ok(number),
            1 => Ok(-number),
            _ => Err(definitions_error(format!("byte {} is no sign of a number", self.position - 5))),
        }
    }

    fn text(&mut self) -> Result<Text, LogicalError> {
        let length = self.number()?;
        if length < 0 {
            return Ok(None);
        }
        if length > TEXT_MAX {
            let at = self.position - 5;
            return Err(definitions_error(format!("at byte {at} a text has {length} bytes")));
        }
        let mut text = Vec::new();
        // What a damaged length says is not asked for before it is there.
        let read = (&mut self.from).take(length as u64).read_to_end(&mut text);
        read.map_err(|error| self.ended(error))?;
        self.position += text.len() as u64;
        if text.len() as i64 == length {
            return Ok(Some(text));
        }
        Err(definitions_error(format!("they end at byte {}, in a text", self.position)))
    }
}

impl Archive {
    /// Reads the head and the table of contents; refuses what is not known.
    pub(super) fn read<R: Read>(from: &mut Numbers<R>) -> Result<Self, LogicalError> {
        if from.bytes::<5>()? != *MAGIC {
            return Err(definitions_error("they are not in pg_dump's custom format"));
        }
        let [major, minor, revision] = from.bytes::<3>()?;
        if major != 1 || !(OLDEST..=RELKIND_SINCE).contains(&minor) {
            let known = format!("1.{OLDEST} to 1.{RELKIND_SINCE}");
            return Err(definitions_error(format!(
                "they have version {major}.{minor} of pg_dump's format, and this program knows {known}"
            )));
        }
        if from.bytes::<3>()? != SIZES_AND_FORMAT {
            return Err(definitions_error("they have sizes that PostgreSQL has on no usual machine"));
        }
        let compression = if minor >= ALGORITHM_SINCE { i64::from(from.byte()?) } else { from.number()? };
        if compression != 0 {
            return Err(definitions_error("they are compressed by pg_dump"));
        }
        let mut made = [0; 7];
        for part in &mut made {
            *part = from.number()?;
        }
        let (database, server, dumped_by) = (from.text()?, from.text()?, from.text()?);
        let count = from.number()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(Entry::read(from, minor)?);
        }
        Ok(Self { version: [minor, revision], made, database, server, dumped_by, entries })
    }

    /// The head and the table of contents, as bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let [minor, revision] = self.version;
        out.extend([1, minor, revision]);
        out.extend(SIZES_AND_FORMAT);
        if minor >= ALGORITHM_SINCE {
            out.push(0)
        } else {
            put_number(&mut out, 0)
        }
        self.made.iter().for_each(|part| put_number(&mut out, *part));
        [&self.database, &self.server, &self.dumped_by].into_iter().for_each(|text| put_text(&mut out, text));
        put_number(&mut out, self.entries.len() as i64);
        self.entries.iter().for_each(|entry| entry.put(&mut out, minor));
        out
    }
}

impl Entry {
    fn read<R: Read>(from: &mut Numbers<R>, minor: u8) -> Result<Self, LogicalError> {
        let (id, has_data) = (from.number()?, from.number()? != 0);
        if id <= 0 {
            return Err(definitions_error(format!("an entry has the number {id}")));
        }
        let (table_oid, oid, tag, kind) = (from.text()?, from.text()?, from.text()?, from.text()?);
        let section = from.number()?;
        let (definition, drop, copy) = (from.text()?, from.text()?, from.text()?);
        let (schema, tablespace, access_method) = (from.text()?, from.text()?, from.text()?);
        let relkind = if minor >= RELKIND_SINCE { from.number()? } else { 0 };
        let (owner, with_oids) = (from.text()?, from.text()?);
        let mut needs = Vec::new();
        while let Some(text) = from.text()? {
            let need = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
            needs.push(need.ok_or_else(|| definitions_error(format!("entry {id} needs something odd")))?);
        }
        let (state, at) = (from.byte()?, u64::from_le_bytes(from.bytes()?));
        let place = match state {
            1 => Place::Unknown,
            2 => Place::At(at),
            3 => Place::None,
            _ => return Err(definitions_error(format!("entry {id} has its data in no known way"))),
        };
        Ok(Self {
            id,
            has_data,
            table_oid,
            oid,
            tag,
            kind,
            section,
            definition,
            drop,
            copy,
            schema,
            tablespace,
            access_method,
            relkind,
            owner,
            with_oids,
            needs,
            place,
        })
    }

    fn put(&self, out: &mut Vec<u8>, minor: u8) {
        put_number(out, self.id);
        put_number(out, i64::from(self.has_data));
        [&self.table_oid, &self.oid, &self.tag, &self.kind].into_iter().for_each(|text| put_text(out, text));
        put_number(out, self.section);
        let texts =
            [&self.definition, &self.drop, &self.copy, &self.schema, &self.tablespace, &self.access_method];
        texts.into_iter().for_each(|text| put_text(out, text));
        if minor >= RELKIND_SINCE {
            put_number(out, self.relkind);
        }
        [&self.owner, &self.with_oids].into_iter().for_each(|text| put_text(out, text));
        self.needs.iter().for_each(|need| put_text(out, &Some(need.to_string().into_bytes())));
        put_text(out, &None);
        let (state, at) = match self.place {
            Place::Unknown => (1, 0),
            Place::At(at) => (2, at),
            Place::None => (3, 0),
        };
        out.push(state);
        out.extend(at.to_le_bytes());
    }
}

/// A number as it stands there.
pub(super) fn number_bytes(number: i64) -> [u8; 5] {
    let [a, b, c, d] = (number.unsigned_abs() as u32).to_le_bytes();
    [u8::from(number < 0), a, b, c, d]
}

fn put_number(out: &mut Vec<u8>, number: i64) {
    out.extend(number_bytes(number));
}

fn put_text(out: &mut Vec<u8>, text: &Text) {
    put_number(out, text.as_ref().map_or(-1, |text| text.len() as i64));
    out.extend(text.iter().flatten());
}

/// Writes a number.
pub(super) fn write_number(out: &mut dyn Write, number: i64) -> std::io::Result<()> {
    out.write_all(&number_bytes(number))
}

#[cfg(test)]
mod tests;
