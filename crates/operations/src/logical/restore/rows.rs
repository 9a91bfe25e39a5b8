//! Rows on their way back: read, opened and checked here, taken by several sessions of the target, and counted.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use repository::logical::{self, TableRecord};
use server::connection::{Connection, ConnectionSettings};
use server::tables::{literal, qualified, quoted};
use tokio::runtime::Handle;

use super::{RestorePlan, RestoreReport};
use crate::logical::LogicalError;
use crate::logical::reader::FileReader;
use crate::logical::rows::{RowSum, Tally, bare_condition, compare, row_key};
use crate::monitor::{Event, Monitor};

/// Bytes that are sent at once.
const SEND: usize = 128 << 10;

/// A session's settings while rows come in: as they were when the rows were written.
fn prepare(plan: &RestorePlan, connection: &Connection) -> Result<(), LogicalError> {
    connection.remove_timeouts()?;
    let settings = [
        ("search_path", ""),
        ("datestyle", "ISO"),
        ("intervalstyle", "postgres"),
        ("row_security", "off"),
        ("synchronous_commit", "off"),
    ];
    for (name, value) in settings {
        connection.execute("SELECT pg_catalog.set_config($1, $2, false)", &[name, value])?;
    }
    if let Some(role) = &plan.request.role {
        connection.run_script(&format!("SET ROLE {}", quoted(role)))?;
    }
    if plan.request.rows_only {
        // Triggers and foreign keys are there already, and not for rows that passed them before. Not every role may; and a
        // statement that fails would end the transaction.
        if may_skip_triggers(connection)? {
            connection.run_script("SET session_replication_role = replica")?;
        } else {
            tracing::warn!("triggers and foreign keys are checked for each row");
        }
    }
    Ok(())
}

fn may_skip_triggers(connection: &Connection) -> Result<bool, LogicalError> {
    // Before 15 nothing but being a superuser gave it.
    let granted = match connection.server_version_num() {
        150_000.. => "pg_catalog.has_parameter_privilege('session_replication_role', 'SET')",
        _ => "false",
    };
    let sql = format!("SELECT rolsuper OR {granted} FROM pg_catalog.pg_roles WHERE rolname = current_user");
    Ok(connection.query_one(&sql, &[])?.first()?.boolean(0)?)
}

/// Tables that are looked at by one statement.
const LOOKED_AT_ONCE: usize = 200;

/// Refuses to add rows to those that are there: the same ones would be there twice.
pub(super) fn refuse_filled(plan: &RestorePlan, connection: &Connection) -> Result<(), LogicalError> {
    let mut filled = Vec::new();
    for batch in plan.tables.chunks(LOOKED_AT_ONCE) {
        let named: Vec<String> = batch.iter().map(|table| qualified(&table.schema, &table.name)).collect();
        let one = |name: &String| format!("SELECT {} WHERE EXISTS (SELECT FROM ONLY {name})", literal(name));
        let all: Vec<String> = named.iter().map(one).collect();
        let failed = LogicalError::relation("look at tables of", plan.target.database.clone());
        for row in connection.query(&all.join(" UNION ALL "), &[]).map_err(failed)?.iter() {
            filled.push(row.required(0)?.to_owned());
        }
    }
    if filled.is_empty() {
        return Ok(());
    }
    Err(LogicalError::Filled { what: filled })
}

/// Copies every table's rows, several files at once.
pub(super) fn copy_all(
    plan: &RestorePlan,
    target: &ConnectionSettings,
    monitor: &dyn Monitor,
    report: &mut RestoreReport,
) -> Result<(), LogicalError> {
    monitor.event(Event::Total { bytes: plan.bytes(), files: plan.tables.len() as u64 });
    let mut order: Vec<usize> = (0..plan.tables.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(plan.tables[*at].bytes));
    let files = order.iter().flat_map(|at| (0..plan.tables[*at].files).map(|file| (*at, file)));
    let queue: Mutex<VecDeque<(usize, u32)>> = Mutex::new(files.collect());
    let sums = Mutex::new(vec![RowSum::default(); plan.tables.len()]);
    let (stop, handle) = (AtomicBool::new(false), Handle::current());
    let work = || -> Result<(), LogicalError> {
        let connection = Connection::connect(target)?;
        prepare(plan, &connection)?;
        let mut reader = FileReader::new(&plan.repository);
        loop {
            if stop.load(Ordering::Acquire) {
                return Err(LogicalError::Stopped);
            }
            let Some((table, file)) = queue.lock().expect("no holder panics").pop_front() else {
                return Ok(());
            };
            let name = qualified(&plan.tables[table].schema, &plan.tables[table].name);
            let sum = copy_file(
                plan,
                &plan.tables[table],
                file,
                &name,
                (&connection, &mut reader, &handle),
                monitor,
            )?;
            sums.lock().expect("no holder panics")[table].join(&sum);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.request.workers.max(1))
            .map(|_| scope.spawn(|| work().inspect_err(|_| stop.store(true, Ordering::Release))))
            .collect();
        let mut errors: Vec<LogicalError> = threads
            .into_iter()
            .filter_map(|thread| thread.join().expect("a writer does not panic").err())
            .collect();
        errors.sort_by_key(|error| matches!(error, LogicalError::Stopped));
        errors.into_iter().next().map_or(Ok(()), Err)
    })?;
    let sums = sums.into_inner().expect("no holder panics");
    plan.tables.iter().zip(&sums).try_for_each(|(table, sum)| account(table, sum, report))
}

/// Copies every table's rows by one session, within its transaction.
pub(super) fn copy_within(
    plan: &RestorePlan,
    connection: &Connection,
    monitor: &dyn Monitor,
    report: &mut RestoreReport,
) -> Result<(), LogicalError> {
    monitor.event(Event::Total { bytes: plan.bytes(), files: plan.tables.len() as u64 });
    for table in &plan.tables {
        copy_table(plan, table, &qualified(&table.schema, &table.name), connection, monitor, report)?;
    }
    Ok(())
}

/// Copies one table's rows into the table of this name, and compares.
pub(super) fn copy_table(
    plan: &RestorePlan,
    table: &TableRecord,
    into: &str,
    connection: &Connection,
    monitor: &dyn Monitor,
    report: &mut RestoreReport,
) -> Result<(), LogicalError> {
    prepare(plan, connection)?;
    let (mut reader, handle) = (FileReader::new(&plan.repository), Handle::current());
    let mut whole = RowSum::default();
    for file in 0..table.files {
        whole.join(&copy_file(plan, table, file, into, (connection, &mut reader, &handle), monitor)?);
    }
    account(table, &whole, report)
}

/// Empties the tables whose rows come back, all at once for the sake of foreign keys between them.
pub(super) fn empty(plan: &RestorePlan, connection: &Connection) -> Result<(), LogicalError> {
    // Of an extension's table only some rows come back, and the others stay.
    let (whole, parts): (Vec<_>, Vec<_>) = plan.tables.iter().partition(|table| table.condition.is_empty());
    for table in parts {
        let name = qualified(&table.schema, &table.name);
        let sql = format!("DELETE FROM ONLY {name} WHERE {}", bare_condition(&table.condition));
        connection.run_script(&sql).map_err(LogicalError::relation("empty", name))?;
    }
    let names: Vec<String> = whole.iter().map(|table| qualified(&table.schema, &table.name)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let sql = format!("TRUNCATE TABLE ONLY {}", names.join(", ONLY "));
    connection.run_script(&sql).map_err(LogicalError::relation("empty", names.join(", ")))
}

fn copy_file(
    plan: &RestorePlan,
    table: &TableRecord,
    file: u32,
    into: &str,
    (connection, reader, handle): (&Connection, &mut FileReader, &Handle),
    monitor: &dyn Monitor,
) -> Result<RowSum, LogicalError> {
    let path = logical::rows(&plan.database.name, &table.schema, &table.name, file);
    let entry = handle.block_on(plan.file(&path))?;
    let columns: Vec<String> = table.columns.iter().map(|column| quoted(column)).collect();
    let list = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    let failed = |source| LogicalError::relation("bring back the rows of", into)(source);
    // Names are in UTF-8, and rows in the encoding in which they were written.
    let from = format!("FROM STDIN WITH (ENCODING {})", literal(&plan.database.encoding));
    connection.begin_copy_in(&format!("COPY {into}{list} {from}")).map_err(failed)?;
    let mut tally = Tally::new(row_key(&plan.manifest)?);
    let mut sending = Vec::with_capacity(2 * SEND);
    let read = handle.block_on(reader.read(&entry, |bytes| {
        tally.add(bytes);
        sending.extend_from_slice(bytes);
        if sending.len() >= SEND {
            connection.put_copy_data(&sending).map_err(failed)?;
            sending.clear();
        }
        monitor.event(Event::Advanced { bytes: bytes.len() as u64 });
        Ok(())
    }));
    if let Err(error) = read {
        connection.give_up_copy_in("the backup could not be read");
        return Err(error);
    }
    let sum = tally.finish(&path).inspect_err(|_| connection.give_up_copy_in("the last row is cut"))?;
    if !sending.is_empty() {
        connection.put_copy_data(&sending).map_err(failed)?;
    }
    let taken = connection.end_copy_in().map_err(failed)?;
    if taken != sum.rows {
        let what = format!("{into} took {taken} rows of {} that were sent", sum.rows);
        return Err(LogicalError::NotWhole { what });
    }
    Ok(sum)
}

/// Compares what came with what was stored, and counts it.
fn account(table: &TableRecord, sum: &RowSum, report: &mut RestoreReport) -> Result<(), LogicalError> {
    compare(table, sum)?;
    report.tables += 1;
    report.rows += sum.rows;
    report.bytes += sum.bytes;
    Ok(())
}
