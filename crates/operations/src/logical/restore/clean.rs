//! Restoring over what is there: dropped and made anew in one transaction, so that a failure leaves what was there.

use server::connection::Connection;

use super::definitions::{Section, unlinks};
use super::{RestoreReport, Restoring, rows};
use crate::logical::LogicalError;
use crate::monitor::Event;

impl Restoring<'_> {
    /// Everything in one transaction, what is there dropped before.
    pub(super) fn clean(&self) -> Result<RestoreReport, LogicalError> {
        let connection = Connection::connect(&self.plan.request.target)?;
        connection.remove_timeouts()?;
        let mut report = RestoreReport::default();
        let outcome = self.clean_within(&connection, &mut report);
        if outcome.is_err() {
            // The transaction goes with the session anyway.
            let _ = connection.run_script("ROLLBACK");
        }
        outcome.map(|()| report)
    }

    fn clean_within(&self, connection: &Connection, report: &mut RestoreReport) -> Result<(), LogicalError> {
        let request = &self.plan.request;
        connection.run_script("BEGIN")?;
        if !request.rows_only {
            self.monitor.event(Event::Phase("drop what is there"));
            self.drop_all(connection)?;
            self.monitor.event(Event::Phase("make tables"));
            self.schemas(connection)?;
            let script = self.definitions.script(Section::PreData)?;
            for unlink in unlinks(&script) {
                self.run_script(connection, &unlink, "drop large objects of")?;
            }
            self.run_script(connection, &script, "make tables in")?;
        }
        if !request.definitions_only {
            self.monitor.event(Event::Phase("copy rows"));
            if request.rows_only {
                rows::empty(self.plan, connection)?;
            }
            rows::copy_within(self.plan, connection, self.monitor, report)?;
            if self.plan.database.large_objects > 0 && request.schemas.is_empty() && !request.rows_only {
                self.monitor.event(Event::Phase("large objects"));
                self.definitions.large_objects(&mut |statement| {
                    self.run_script(connection, statement, "make large objects")
                })?;
            }
        }
        self.sequences(connection)?;
        if !request.rows_only {
            self.monitor.event(Event::Phase("make indexes and constraints"));
            let script = self.definitions.script(Section::PostData)?;
            self.run_script(connection, &script, "make indexes and constraints")?;
        }
        self.views(connection, report)?;
        report.database = connection.database();
        connection.run_script("COMMIT")?;
        Ok(())
    }

    /// Drops what the backup has a definition of. What cannot go before something else, as a partition's key before that of the
    /// whole table, goes in a later round, if it has not gone with that.
    fn drop_all(&self, connection: &Connection) -> Result<(), LogicalError> {
        let mut waiting = self.definitions.drops()?;
        while !waiting.is_empty() {
            let (before, mut last, mut left) = (waiting.len(), None, Vec::new());
            for statement in waiting {
                connection.run_script("SAVEPOINT pgkeep")?;
                match connection.run_script(&statement) {
                    Ok(()) => connection.run_script("RELEASE SAVEPOINT pgkeep")?,
                    Err(error) => {
                        connection.run_script("ROLLBACK TO SAVEPOINT pgkeep; RELEASE SAVEPOINT pgkeep")?;
                        last = last.or(Some(error));
                        left.push(statement);
                    }
                }
            }
            if let Some(source) = last.filter(|_| left.len() == before) {
                let relation = self.plan.target.database.clone();
                return Err(LogicalError::Relation {
                    action: "drop what is there in database",
                    relation,
                    source,
                });
            }
            waiting = left;
        }
        Ok(())
    }
}
