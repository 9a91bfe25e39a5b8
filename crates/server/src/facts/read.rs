//! The statements behind the facts. Every name is qualified: a role's search path may hold somebody else's functions.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use pg::control::WalLevel;
use pg::version::BackupFunctions;
use pg::wal::{SegmentName, SegmentSize};
use pg::{Lsn, Major, TimelineId};

use super::{ArchiveMode, ServerFacts, Tablespace, slots};
use crate::connection::{Connection, ServerError};
use crate::grants::{FILE_FUNCTIONS, SWITCH_FUNCTION};
use crate::pooler::Pooler;

const SETTINGS: [&str; 15] = [
    "server_version",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "wal_level",
    "archive_mode",
    "archive_command",
    "archive_library",
    "archive_timeout",
    "data_checksums",
    "wal_segment_size",
    "block_size",
    "segment_size",
    "full_page_writes",
];

const WHO_AND_WHERE: &str = "
    SELECT CURRENT_USER, r.rolsuper, r.rolreplication, pg_catalog.pg_is_in_recovery(),
           (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8,
           pg_catalog.current_database(), pg_catalog.getdatabaseencoding(), pg_catalog.inet_server_addr() IS NULL,
           pg_catalog.pg_backend_pid(), pg_catalog.pg_has_role(CURRENT_USER, 'pg_read_server_files', 'USAGE'),
           (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.int8
    FROM pg_catalog.pg_roles r WHERE r.rolname = CURRENT_USER";

pub(super) fn in_transaction(connection: &Connection) -> Result<ServerFacts, ServerError> {
    // For this transaction only. With SQL_ASCII the server sends the bytes it has: a path is bytes, not text.
    for (name, value) in [("search_path", ""), ("client_encoding", "SQL_ASCII")] {
        connection.execute("SELECT pg_catalog.set_config($1, $2, true)", &[name, value])?;
    }
    let settings = Settings::read(connection)?;
    let answer = connection.query_one(WHO_AND_WHERE, &[])?;
    let who = answer.first()?;
    let in_recovery = who.boolean(3)?;
    let major = Major::from_server_version_num(connection.server_version_num());
    let (system_identifier, catalog_version) = read_control_system(connection)?;
    let (timeline, lsn) = read_position(connection, in_recovery)?;
    Ok(ServerFacts {
        version_num: connection.server_version_num(),
        version: settings.text("server_version")?,
        major,
        system_identifier,
        catalog_version,
        data_directory: settings.path("data_directory"),
        config_file: settings.path("config_file"),
        hba_file: settings.path("hba_file"),
        ident_file: settings.path("ident_file"),
        wal_level: wal_level(&settings.text("wal_level")?)?,
        archive_mode: archive_mode(&settings.text("archive_mode")?)?,
        archive_command: archive_command(&settings),
        archive_library: settings.text("archive_library").ok(),
        archive_timeout: Duration::from_secs(settings.parse("archive_timeout")?),
        data_checksums: settings.text("data_checksums")? == "on",
        wal_segment_size: SegmentSize::new(settings.parse("wal_segment_size")?)
            .map_err(|error| ServerError::UnexpectedAnswer { what: error.to_string() })?,
        block_size: settings.parse("block_size")?,
        blocks_per_segment: settings.parse("segment_size")?,
        in_recovery,
        full_page_writes: settings.text("full_page_writes")? == "on",
        role: lossy(who.bytes(0)),
        is_superuser: who.boolean(1)?,
        may_replicate: who.boolean(1)? || who.boolean(2)?,
        can_backup: can_backup(connection, major)?,
        missing_file_functions: missing_file_functions(connection)?,
        reads_server_files: who.boolean(9)?,
        may_switch_wal: may_execute(connection, &format!("pg_catalog.{SWITCH_FUNCTION}"))?,
        slots: slots::read(connection)?,
        // A pooler hands out a key of its own for cancelling, which names no process of the server.
        pooler: (who.parse::<i32>(8)? != connection.backend_pid())
            .then(|| Pooler::at(&connection.host(), &connection.port())),
        timeline,
        lsn,
        tablespaces: read_tablespaces(connection)?,
        server_time: moment(who.parse(4)?)?,
        started: moment(who.parse(10)?)?,
        database: lossy(who.bytes(5)),
        encoding: who.required(6)?.to_owned(),
        host: connection.host(),
        port: connection.port(),
        over_socket: who.boolean(7)?,
    })
}

fn moment(microseconds: i64) -> Result<Timestamp, ServerError> {
    Timestamp::from_microsecond(microseconds)
        .map_err(|error| ServerError::UnexpectedAnswer { what: format!("the server's clock: {error}") })
}

/// Server parameters by name, those that our role may see.
struct Settings(HashMap<String, Vec<u8>>);

impl Settings {
    fn read(connection: &Connection) -> Result<Self, ServerError> {
        let sql = "SELECT s.name, s.setting FROM pg_catalog.pg_settings s WHERE s.name = ANY ($1::pg_catalog.text[])";
        let rows = connection.query(sql, &[&format!("{{{}}}", SETTINGS.join(","))])?;
        let pairs = rows.iter().filter_map(|row| Some((lossy(row.bytes(0)), row.bytes(1)?.to_vec())));
        Ok(Self(pairs.collect()))
    }

    fn text(&self, name: &str) -> Result<String, ServerError> {
        let value = self.0.get(name).map(|value| lossy(Some(value)));
        value.ok_or_else(|| ServerError::UnexpectedAnswer { what: format!("no setting {name}") })
    }

    fn parse<T: FromStr>(&self, name: &str) -> Result<T, ServerError> {
        let text = self.text(name)?;
        text.parse()
            .map_err(|_| ServerError::UnexpectedAnswer { what: format!("setting {name} is {text:?}") })
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).filter(|value| !value.is_empty()).map(|value| path(value))
    }
}

/// Identifier and catalogue version, when our role may know them.
///
/// SQL has no unsigned 64-bit integers, so the identifier is shown as a signed one. Source: `pg_controldata.c` of the
/// backend (`Int64GetDatum(ControlFile->system_identifier)`).
fn read_control_system(connection: &Connection) -> Result<(Option<u64>, Option<u32>), ServerError> {
    if !may_execute(connection, "pg_catalog.pg_control_system()")? {
        return Ok((None, None));
    }
    let sql = "SELECT s.system_identifier, s.catalog_version_no FROM pg_catalog.pg_control_system() s";
    let rows = connection.query_one(sql, &[])?;
    let row = rows.first()?;
    Ok((Some(row.parse::<i64>(0)?.cast_unsigned()), Some(row.parse(1)?)))
}

/// Timeline and end of the WAL that is written, or replayed.
fn read_position(
    connection: &Connection,
    in_recovery: bool,
) -> Result<(Option<TimelineId>, Option<Lsn>), ServerError> {
    if !in_recovery {
        let sql = "SELECT l.lsn, pg_catalog.pg_walfile_name(l.lsn)
                   FROM (SELECT pg_catalog.pg_current_wal_flush_lsn() AS lsn) l";
        let rows = connection.query_one(sql, &[])?;
        let row = rows.first()?;
        // Only the timeline of the name is right on every version: at a boundary the segment differs (16 and 17).
        let segment: SegmentName = row.parse(1)?;
        return Ok((Some(segment.timeline), Some(row.parse(0)?)));
    }
    let rows = connection.query_one("SELECT pg_catalog.pg_last_wal_replay_lsn()", &[])?;
    let lsn = rows.first()?.text(0)?.map(|_| rows.first()?.parse(0)).transpose()?;
    let mut timeline = None;
    if may_execute(connection, "pg_catalog.pg_control_recovery()")?
        && may_execute(connection, "pg_catalog.pg_control_checkpoint()")?
    {
        // The minimum recovery point moves with replay; the checkpoint's timeline is a good answer before it exists.
        let sql = "SELECT r.min_recovery_end_timeline, c.timeline_id
                   FROM pg_catalog.pg_control_recovery() r, pg_catalog.pg_control_checkpoint() c";
        let rows = connection.query_one(sql, &[])?;
        let row = rows.first()?;
        timeline = TimelineId::new(row.parse(0)?).or(TimelineId::new(row.parse(1)?));
    }
    Ok((timeline, lsn))
}

fn read_tablespaces(connection: &Connection) -> Result<Vec<Tablespace>, ServerError> {
    let sql = "SELECT t.oid, t.spcname, t.location
               FROM (SELECT s.oid, s.spcname, pg_catalog.pg_tablespace_location(s.oid) AS location
                     FROM pg_catalog.pg_tablespace s) t
               WHERE t.location <> '' ORDER BY t.oid";
    let rows = connection.query(sql, &[])?;
    rows.iter()
        .map(|row| {
            let location = path(row.bytes(2).unwrap_or_default());
            Ok(Tablespace { oid: row.parse(0)?, name: lossy(row.bytes(1)), location })
        })
        .collect()
}

fn can_backup(connection: &Connection, major: Major) -> Result<bool, ServerError> {
    let functions = major.facts().map_or(BackupFunctions::Renamed, |facts| facts.backup_functions);
    Ok(may_execute(connection, &format!("pg_catalog.{}", functions.start_signature()))?
        && may_execute(connection, &format!("pg_catalog.{}", functions.stop_signature()))?)
}

fn missing_file_functions(connection: &Connection) -> Result<Vec<&'static str>, ServerError> {
    let mut missing = Vec::new();
    for function in FILE_FUNCTIONS {
        if !may_execute(connection, &format!("pg_catalog.{function}"))? {
            missing.push(function);
        }
    }
    Ok(missing)
}

/// Whether our role may call a function; false as well where there is none of that name and arguments.
pub(crate) fn may_execute(connection: &Connection, signature: &str) -> Result<bool, ServerError> {
    let sql = "SELECT COALESCE(
                   pg_catalog.has_function_privilege(pg_catalog.to_regprocedure($1)::pg_catalog.oid, 'EXECUTE'), false)";
    connection.query_one(sql, &[signature])?.first()?.boolean(0)
}

/// The command as it was set. While archiving is off the server shows `(disabled)` in its place, which says nothing.
/// Source: `show_archive_command`, `xlog.c`.
fn archive_command(settings: &Settings) -> Option<String> {
    settings.text("archive_command").ok().filter(|command| command != "(disabled)")
}

fn wal_level(text: &str) -> Result<WalLevel, ServerError> {
    match text {
        "minimal" => Ok(WalLevel::Minimal),
        "replica" => Ok(WalLevel::Replica),
        "logical" => Ok(WalLevel::Logical),
        other => Err(ServerError::UnexpectedAnswer { what: format!("wal_level is {other:?}") }),
    }
}

fn archive_mode(text: &str) -> Result<ArchiveMode, ServerError> {
    match text {
        "off" => Ok(ArchiveMode::Off),
        "on" => Ok(ArchiveMode::On),
        "always" => Ok(ArchiveMode::Always),
        other => Err(ServerError::UnexpectedAnswer { what: format!("archive_mode is {other:?}") }),
    }
}

fn lossy(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}
