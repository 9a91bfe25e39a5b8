//! What is in the database that will be restored into.

use server::connection::Connection;
use server::tables::DatabaseFacts;

use super::How;
use crate::logical::LogicalError;

/// The target as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetFacts {
    /// The host name, address or socket directory.
    pub host: String,
    /// The port.
    pub port: String,
    /// The database.
    pub database: String,
    /// The role that restores.
    pub role: String,
    /// The server's major.
    pub major: pg::Major,
    /// The database's encoding.
    pub encoding: String,
    /// Tables, views and sequences in it, or in the chosen schemas, that belong to no extension.
    pub relations: u64,
    /// Rows in its tables, as its statistics estimate them.
    pub rows: u64,
    /// Its bytes.
    pub bytes: u64,
}

const RELATIONS: &str = "
SELECT count(*), coalesce(sum(greatest(c.reltuples, 0)) FILTER (WHERE c.relkind = 'r'), 0)::bigint,
  pg_catalog.pg_database_size(pg_catalog.current_database())
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND ($1 = '' OR n.nspname = ANY (pg_catalog.string_to_array($1, pg_catalog.chr(1))))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

impl TargetFacts {
    /// Looks, and refuses a server that cannot be written to.
    pub(super) fn read(connection: &Connection, how: How, schemas: &[String]) -> Result<Self, LogicalError> {
        let standby = connection.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])?;
        if standby.first()?.boolean(0)? {
            return Err(LogicalError::Choice {
                what: "the target is a standby, which only reads".to_owned(),
            });
        }
        let rows = connection.query_one(RELATIONS, &[&schemas.join("\u{1}")])?;
        let row = rows.first()?;
        let facts = DatabaseFacts::read(connection)?;
        if how == How::Swap {
            let may = connection.query_one(
                "SELECT rolcreatedb OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user",
                &[],
            )?;
            if !may.first()?.boolean(0)? {
                let what = format!("role {} may not create databases, which --swap needs", connection.user());
                return Err(LogicalError::Choice { what });
            }
        }
        Ok(Self {
            host: connection.host(),
            port: connection.port(),
            database: connection.database(),
            role: connection.user(),
            major: pg::Major::from_server_version_num(connection.server_version_num()),
            encoding: facts.encoding,
            relations: row.parse(0)?,
            rows: row.parse(1)?,
            bytes: row.parse(2)?,
        })
    }
}
