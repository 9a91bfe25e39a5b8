//! The slot in whose name the server keeps WAL for us: made with the WAL reserved, and dropped before it fills the server's
//! disk.

use server::connection::{Connection, ServerError};
use server::settings_check::OUR_SLOTS;

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
