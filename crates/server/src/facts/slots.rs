//! Physical replication slots.

use pg::Lsn;

use crate::connection::{Connection, Row, ServerError};

/// A physical replication slot. Source: `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether somebody streams from it now.
    pub active: bool,
    /// Whether the server still has what the slot asks for: `reserved`, `extended`, `unreserved` or `lost`; `None` for a
    /// slot that asks for nothing yet.
    pub wal_status: Option<String>,
    /// The oldest WAL that the slot asks for; `None` when it was never used, or lost what it kept.
    pub restart_lsn: Option<Lsn>,
    /// How many bytes of WAL there are from there to the end of what was written, or received.
    pub retained_bytes: u64,
    /// What the server's `max_slot_wal_keep_size` leaves until it gives the slot up; `None` for no limit, and for a slot that
    /// is lost.
    pub safe_wal_size: Option<i64>,
}

/// A standby that is fed by an archive received nothing, or stopped receiving long ago: what it replayed counts too. GREATEST
/// passes over whichever of the two is NULL.
const COLUMNS: &str = "s.slot_name, s.active, s.wal_status, s.restart_lsn,
    GREATEST(COALESCE(pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
        THEN GREATEST(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())
        ELSE pg_catalog.pg_current_wal_lsn() END,
        s.restart_lsn), 0), 0)::pg_catalog.int8,
    s.safe_wal_size, s.slot_type FROM pg_catalog.pg_replication_slots s";

/// Every physical slot, by name.
pub(super) fn read(connection: &Connection) -> Result<Vec<Slot>, ServerError> {
    let sql = format!("SELECT {COLUMNS} WHERE s.slot_type = 'physical' ORDER BY s.slot_name");
    connection.query(&sql, &[])?.iter().map(Slot::of).collect()
}

impl Slot {
    /// The slot of this name; `None` if there is none. A logical one is an error.
    pub fn named(connection: &Connection, name: &str) -> Result<Option<Self>, ServerError> {
        let rows = connection.query(&format!("SELECT {COLUMNS} WHERE s.slot_name = $1"), &[name])?;
        let Some(row) = rows.row(0) else { return Ok(None) };
        if row.required(6)? != "physical" {
            let what = format!("slot {name} is a {} slot", row.required(6)?);
            return Err(ServerError::UnexpectedAnswer { what });
        }
        Self::of(row).map(Some)
    }

    fn of(row: Row<'_>) -> Result<Self, ServerError> {
        Ok(Self {
            name: row.required(0)?.to_owned(),
            active: row.boolean(1)?,
            wal_status: row.text(2)?.map(str::to_owned),
            restart_lsn: row.text(3)?.map(|_| row.parse(3)).transpose()?,
            retained_bytes: row.parse(4)?,
            safe_wal_size: row.text(5)?.map(|_| row.parse(5)).transpose()?,
        })
    }

    /// Whether the server no longer keeps what it kept for it.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.restart_lsn.is_none()
    }
}
