//! The slot in whose name the server keeps WAL for us: made with the WAL reserved, watched, and dropped before it fills the
//! server's disk.

use pg::Lsn;
use server::connection::{Connection, ServerError};
use server::settings_check::OUR_SLOTS;

/// A physical slot as the server shows it. Source: `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The oldest WAL that is kept for it; `None` when it was never used, or lost what it kept.
    pub(super) restart: Option<Lsn>,
    /// Whether a connection uses it.
    pub(super) active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(super) wal_status: Option<String>,
    /// Bytes of WAL from there to the end.
    pub(super) retained: u64,
    /// What the server's `max_slot_wal_keep_size` leaves until it gives the slot up; `None` for no limit.
    pub(super) safe: Option<i64>,
}

impl Slot {
    /// The slot of this name; `None` if there is none.
    pub(super) fn read(connection: &Connection, name: &str) -> Result<Option<Self>, ServerError> {
        let end = "CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn()
                   ELSE pg_catalog.pg_current_wal_lsn() END";
        let sql = format!(
            "SELECT s.restart_lsn, s.active, s.wal_status, s.slot_type, s.safe_wal_size,
                    GREATEST(COALESCE(pg_catalog.pg_wal_lsn_diff({end}, s.restart_lsn), 0), 0)::pg_catalog.int8
             FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1"
        );
        let rows = connection.query(&sql, &[name])?;
        let Some(row) = rows.row(0) else { return Ok(None) };
        if row.required(3)? != "physical" {
            let what = format!("slot {name} is a {} slot", row.required(3)?);
            return Err(ServerError::UnexpectedAnswer { what });
        }
        Ok(Some(Self {
            restart: row.text(0)?.map(|_| row.parse(0)).transpose()?,
            active: row.boolean(1)?,
            wal_status: row.text(2)?.map(str::to_owned),
            safe: row.text(4)?.map(|_| row.parse(4)).transpose()?,
            retained: row.parse(5)?,
        }))
    }

    /// Whether the server no longer keeps what it kept for it.
    pub(super) fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.restart.is_none()
    }
}

/// Makes the slot, with the WAL from the last checkpoint on reserved.
pub(super) fn create(connection: &Connection, name: &str) -> Result<(), ServerError> {
    connection.query("SELECT pg_catalog.pg_create_physical_replication_slot($1, true)", &[name]).map(drop)
}

/// Removes the slot; the server may let go of its WAL then.
pub(super) fn drop_slot(connection: &Connection, name: &str) -> Result<(), ServerError> {
    connection.query("SELECT pg_catalog.pg_drop_replication_slot($1)", &[name]).map(drop)
}

/// Whether PostgreSQL takes a text for the name of a slot. Source: `ReplicationSlotValidateName`, `slot.c`.
pub fn is_slot_name(text: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
}

/// The name of the slot that is used for a cluster when none is said: `pgkeep_` and the cluster's name.
pub fn default_slot_name(cluster: &repository::ClusterName) -> String {
    let mut name = format!("{OUR_SLOTS}{}", cluster.as_str().replace('-', "_"));
    name.truncate(63);
    name
}
