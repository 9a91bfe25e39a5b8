//! Restoring into a new database beside the target, and exchanging the names when it is whole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use server::connection::{Connection, ConnectionSettings, ServerError};
use server::tables::{literal, quoted};

use super::{RestoreReport, Restoring};
use crate::failpoint;
use crate::logical::LogicalError;
use crate::monitor::Event;

/// Bytes of a name: `NAMEDATALEN`, less the zero at its end.
const NAME_BYTES: usize = 63;
/// The renaming waits some five seconds for sessions to go; it is tried so often, with such a pause.
const RENAME_TRIES: u32 = 5;
const RENAME_PAUSE: Duration = Duration::from_millis(200);
const ENDING_PAUSE: Duration = Duration::from_millis(50);
/// Settings whose value is a list that the catalogue keeps quoted. Source: `variable_is_guc_list_quote`, `dumputils.c`.
const QUOTED_LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

impl Restoring<'_> {
    pub(super) fn swap(&self) -> Result<RestoreReport, LogicalError> {
        let target = &self.plan.target;
        let stamp = Timestamp::now().strftime("%Y%m%d%H%M%S%3f").to_string();
        let (fresh, old) = (beside(&target.database, "new", &stamp), beside(&target.database, "old", &stamp));
        let maintenance = self.maintenance()?;
        self.monitor.event(Event::Phase("make a new database"));
        self.create(&maintenance, &fresh)?;
        failpoint::reach("logical.swap-created");
        let settings = self.plan.request.target.clone().database(&fresh);
        let restored = self.whole(&settings).and_then(|report| {
            // What belongs to the database and not to what is in it stays as it is.
            self.keep_settings(&maintenance, &fresh)?;
            Ok(report)
        });
        let mut report = match restored {
            Ok(report) => report,
            Err(error) => {
                let dropped = drop_database(&maintenance, &fresh);
                if let Err(left) = dropped {
                    tracing::warn!(database = %fresh, error = %left, "the new database stays; drop it");
                }
                return Err(error);
            }
        };
        failpoint::reach("logical.swap-restored");
        self.monitor.event(Event::Phase("exchange the names"));
        exchange(&maintenance, &self.maintenance()?, &target.database, &fresh, &old)?;
        failpoint::reach("logical.swapped");
        report.database = target.database.clone();
        report.kept_as = Some(old.clone());
        if self.plan.request.drop_old {
            match drop_database(&maintenance, &old) {
                Ok(()) => report.kept_as = None,
                Err(error) => report.warnings.push(format!("database {old} could not be dropped: {error}")),
            }
        }
        Ok(report)
    }

    /// A session with the same server in a database that is none of those two.
    fn maintenance(&self) -> Result<Connection, LogicalError> {
        let settings = |name: &str| -> ConnectionSettings { self.plan.request.target.clone().database(name) };
        let mut last = None;
        for name in ["postgres", "template1"].into_iter().filter(|name| *name != self.plan.target.database) {
            match Connection::connect(&settings(name)) {
                Ok(connection) => {
                    connection.remove_timeouts()?;
                    return Ok(connection);
                }
                Err(error) => last = last.or(Some(error)),
            }
        }
        Err(last.expect("one of two names is another").into())
    }

    /// Makes the database as the one was that was backed up.
    fn create(&self, maintenance: &Connection, name: &str) -> Result<(), LogicalError> {
        let database = &self.plan.database;
        let mut sql = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            quoted(name),
            literal(&database.encoding),
            literal(&database.collate),
            literal(&database.ctype)
        );
        let locale = literal(&database.locale);
        match database.provider.as_str() {
            "i" => sql.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {locale}")),
            "b" => sql.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}")),
            _ => {}
        }
        let place = maintenance.query_one(
            "SELECT s.spcname, d.datconnlimit FROM pg_catalog.pg_database d \
             JOIN pg_catalog.pg_tablespace s ON s.oid = d.dattablespace WHERE d.datname = $1",
            &[&self.plan.target.database],
        )?;
        let (tablespace, limit) = (place.first()?.required(0)?, place.first()?.required(1)?);
        sql.push_str(&format!(" CONNECTION LIMIT {limit}"));
        // To say the default aloud takes a right that not saying it does not.
        if tablespace != "pg_default" {
            sql.push_str(&format!(" TABLESPACE {}", quoted(tablespace)));
        }
        maintenance.execute(&sql, &[]).map_err(LogicalError::relation("create database", name))?;
        let owner = maintenance.query_one(
            "SELECT pg_catalog.pg_get_userbyid(datdba) FROM pg_catalog.pg_database WHERE datname = $1",
            &[&self.plan.target.database],
        )?;
        let owner = owner.first()?.required(0)?.to_owned();
        if owner != maintenance.user() {
            let sql = format!("ALTER DATABASE {} OWNER TO {}", quoted(name), quoted(&owner));
            if let Err(error) = maintenance.execute(&sql, &[]) {
                tracing::warn!(database = name, owner, %error, "the new database keeps the role that made it as owner");
            }
        }
        Ok(())
    }

    /// Gives the new database the settings and rights of the old one.
    fn keep_settings(&self, maintenance: &Connection, fresh: &str) -> Result<(), LogicalError> {
        let name = quoted(fresh);
        let old = self.plan.target.database.as_str();
        let settings = maintenance.query(
            "SELECT unnest(s.setconfig), r.rolname FROM pg_catalog.pg_db_role_setting s \
             JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase \
             LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole WHERE d.datname = $1",
            &[old],
        )?;
        for row in settings.iter() {
            let Some((setting, value)) = row.required(0)?.split_once('=') else { continue };
            let value = if QUOTED_LISTS.contains(&setting) { value.to_owned() } else { literal(value) };
            let of = match row.text(1)? {
                Some(role) => format!("ROLE {} IN DATABASE {name}", quoted(role)),
                None => format!("DATABASE {name}"),
            };
            self.try_setting(maintenance, &format!("ALTER {of} SET {} TO {value}", quoted(setting)));
        }
        let rights = maintenance.query(
            "SELECT a.privilege_type, CASE WHEN a.grantee = 0 THEN 'PUBLIC' \
               ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END, a.is_grantable \
             FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a \
             WHERE d.datname = $1 AND a.grantee <> d.datdba",
            &[old],
        )?;
        let has_acl = maintenance
            .query_one("SELECT datacl IS NOT NULL FROM pg_catalog.pg_database WHERE datname = $1", &[old])?;
        if has_acl.first()?.boolean(0)? {
            self.try_setting(maintenance, &format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"));
        }
        let comment = maintenance.query_one(
            "SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database WHERE datname = $1",
            &[old],
        )?;
        if let Some(comment) = comment.first()?.text(0)? {
            self.try_setting(maintenance, &format!("COMMENT ON DATABASE {name} IS {}", literal(comment)));
        }
        for row in rights.iter() {
            let option = if row.boolean(2)? { " WITH GRANT OPTION" } else { "" };
            let (right, to) = (row.required(0)?, row.required(1)?);
            self.try_setting(maintenance, &format!("GRANT {right} ON DATABASE {name} TO {to}{option}"));
        }
        Ok(())
    }

    fn try_setting(&self, maintenance: &Connection, sql: &str) {
        if let Err(error) = maintenance.execute(sql, &[]) {
            tracing::warn!(sql, %error, "a setting of the old database is not in the new one");
        }
    }
}

/// A name beside the database's, which fits.
fn beside(database: &str, what: &str, stamp: &str) -> String {
    let suffix = format!("_{what}_{stamp}");
    let mut end = database.len().min(NAME_BYTES - suffix.len());
    while !database.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &database[..end])
}

/// Gives the new database the old one's name, in one transaction: there is no moment without a database of that name.
///
/// Sessions are ended by a session of their own as long as the renaming waits: it locks the database against new sessions first, and
/// those that came in between have some five seconds to go. Source: `RenameDatabase`, `CountOtherDBBackends`.
fn exchange(
    maintenance: &Connection,
    ending: &Connection,
    target: &str,
    fresh: &str,
    old: &str,
) -> Result<(), LogicalError> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                // Some may belong to a role whose sessions ours must not end; then the renaming says who is left.
                let _ = ending.query(
                    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
                     WHERE datname IN ($1, $2) AND pid <> pg_catalog.pg_backend_pid()",
                    &[target, fresh],
                );
                std::thread::sleep(ENDING_PAUSE);
            }
        });
        let renamed = rename(maintenance, target, fresh, old);
        done.store(true, Ordering::Release);
        renamed
    })
}

fn rename(maintenance: &Connection, target: &str, fresh: &str, old: &str) -> Result<(), LogicalError> {
    let rename = |from: &str, to: &str| format!("ALTER DATABASE {} RENAME TO {}", quoted(from), quoted(to));
    let script = format!("BEGIN; {}; {}; COMMIT", rename(target, old), rename(fresh, target));
    for tried in 1.. {
        match maintenance.run_script(&script) {
            // 55006: somebody came back, or has not gone yet.
            Err(error) if error.has_sqlstate("55006") && tried < RENAME_TRIES => {
                maintenance.run_script("ROLLBACK")?;
                std::thread::sleep(RENAME_PAUSE);
            }
            Err(source) => {
                let relation = format!("{target} and {fresh}, which is whole");
                return Err(LogicalError::Relation {
                    action: "exchange the names of databases",
                    relation,
                    source,
                });
            }
            Ok(()) => return Ok(()),
        }
    }
    unreachable!("the last try returns")
}

fn drop_database(maintenance: &Connection, name: &str) -> Result<(), ServerError> {
    maintenance.execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name)), &[]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_beside_another_fits_whatever_its_length() {
        assert_eq!(beside("app", "old", "20261128020000"), "app_old_20261128020000");
        for length in [43, 44, 45, 62, 63] {
            let name = beside(&"ä".repeat(length / 2), "old", "20261128020000");
            assert!(name.len() <= NAME_BYTES && name.ends_with("_old_20261128020000"), "{name}");
        }
    }
}
