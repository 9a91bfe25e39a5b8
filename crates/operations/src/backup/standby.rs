//! What a backup from a standby needs of the primary: the end of the segment that the backup ends in.

use server::connection::{Connection, ConnectionSettings, ServerError};

use super::BackupError;
use crate::monitor::{Event, Monitor};

/// Asks the primary to end the segment it is writing, which an idle one may not do for hours. That it cannot be asked is no
/// failure: the WAL may come all the same, and is waited for.
pub(crate) async fn end_segment(
    primary: Option<&ConnectionSettings>,
    system_identifier: u64,
    monitor: &dyn Monitor,
) {
    let Some(settings) = primary.cloned() else { return };
    let asked = tokio::task::spawn_blocking(move || switch(&settings, system_identifier)).await;
    let why = match asked {
        Ok(Ok(None)) => return,
        Ok(Ok(Some(why))) => why.to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let text = format!("the primary could not be asked to end its WAL segment, which is waited for: {why}");
    monitor.event(Event::Warning(text));
}

/// Switches, or says why this is not the server to be asked.
fn switch(
    settings: &ConnectionSettings,
    system_identifier: u64,
) -> Result<Option<&'static str>, ServerError> {
    let connection = Connection::connect(settings)?;
    let sql =
        "SELECT pg_catalog.pg_is_in_recovery(), s.system_identifier FROM pg_catalog.pg_control_system() s";
    let rows = connection.query_one(sql, &[])?;
    let row = rows.first()?;
    if row.boolean(0)? {
        return Ok(Some("primary_url leads to a standby"));
    }
    if row.parse::<i64>(1)?.cast_unsigned() != system_identifier {
        return Ok(Some("primary_url leads to another cluster"));
    }
    connection.query_one("SELECT pg_catalog.pg_switch_wal()", &[])?;
    Ok(None)
}

/// Says of WAL that did not come that it should have come from the primary.
pub(crate) fn explain(error: BackupError) -> BackupError {
    match error {
        BackupError::WalMissing { missing, waited } => BackupError::StandbyWalMissing { missing, waited },
        other => other,
    }
}
