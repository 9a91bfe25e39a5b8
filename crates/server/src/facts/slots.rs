//! Physical replication slots.

use pg::Lsn;

use crate::connection::{Connection, ServerError};

/// A physical replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether somebody streams from it now.
    pub active: bool,
    /// Whether the server still has what the slot asks for: `reserved`, `extended`, `unreserved` or `lost`; `None` for a
    /// slot that asks for nothing yet.
    pub wal_status: Option<String>,
    /// The oldest WAL that the slot asks for.
    pub restart_lsn: Option<Lsn>,
    /// How much WAL there is from there to the end.
    pub retained_bytes: Option<u64>,
}

pub(super) fn read(connection: &Connection) -> Result<Vec<Slot>, ServerError> {
    let sql = "SELECT s.slot_name, s.active, s.wal_status, s.restart_lsn,
                      pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
                          THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END,
                          s.restart_lsn)::pg_catalog.int8
               FROM pg_catalog.pg_replication_slots s WHERE s.slot_type = 'physical' ORDER BY s.slot_name";
    let rows = connection.query(sql, &[])?;
    rows.iter()
        .map(|row| {
            Ok(Slot {
                name: row.required(0)?.to_owned(),
                active: row.boolean(1)?,
                wal_status: row.text(2)?.map(str::to_owned),
                restart_lsn: row.text(3)?.map(|_| row.parse(3)).transpose()?,
                retained_bytes: row
                    .text(4)?
                    .map(|_| row.parse::<i64>(4))
                    .transpose()?
                    .map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            })
        })
        .collect()
}
