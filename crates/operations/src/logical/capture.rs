//! One database: its moment, its definitions, its rows.

mod dump;
mod tasks;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use repository::logical::{self, DatabaseRecord, OtherRecord, TableRecord};
use server::connection::{Connection, ConnectionSettings, ServerError};
use server::programs::Program;
use server::snapshot::Snapshot;
use server::tables::{self, Contents, DatabaseFacts, Table, literal, qualified, quoted};

use super::LogicalRequest;
use super::content::{Shared, Sink};
use super::error::LogicalError;
use super::rows::{RowSum, bare_condition, each_row};
use crate::failpoint;
use crate::monitor::{Event, Monitor};
use dump::Dump;
use tasks::{Task, Tasks};

/// New moments that are taken when tables change between a snapshot and its locks.
const SNAPSHOT_TRIES: u32 = 5;
/// A range is read again on a new session when its own was lost, so often.
const RANGE_TRIES: u32 = 4;

/// What a database gave.
pub(crate) struct Captured {
    pub(crate) record: DatabaseRecord,
    pub(crate) warnings: Vec<String>,
}

/// Stores one database.
pub(crate) fn database(
    settings: &ConnectionSettings,
    dump: &Program,
    request: &LogicalRequest,
    shared: &Shared<'_>,
    monitor: &dyn Monitor,
) -> Result<Captured, LogicalError> {
    let mut snapshot = Snapshot::take(Connection::connect(settings)?)?;
    snapshot.limit_lock_waits(request.lock_timeout)?;
    let (contents, left_out) = hold(&mut snapshot, request)?;
    let facts = DatabaseFacts::read(snapshot.connection())?;
    let taken = snapshot.connection().query_one(
        "SELECT (extract(epoch FROM pg_catalog.transaction_timestamp()) * 1000000)::bigint",
        &[],
    )?;
    let taken_us = taken.first()?.parse(0)?;
    let losses: Vec<String> = contents
        .uncovered
        .iter()
        .filter(|one| one.why.is_loss())
        .map(|one| format!("{}.{}: {}", one.relation.schema, one.relation.name, one.why.text()))
        .collect();
    if !losses.is_empty() {
        return Err(LogicalError::Incomplete { what: losses });
    }
    failpoint::reach("logical.snapshot");
    let bytes = contents.tables.iter().map(|table| table.bytes).sum();
    monitor.event(Event::Phase("copy rows"));
    monitor.event(Event::Total { bytes, files: contents.tables.len() as u64 });

    let dump = Dump::start(dump, &snapshot, &request.selection.dump_arguments())?;
    let sums = Reading { snapshot: &snapshot, contents: &contents, shared, monitor, database: &facts.name }
        .run(request.workers, dump)?;
    // The locks were its: had it ended before, a table could have been emptied while others were read.
    snapshot.connection().query_one("SELECT pg_catalog.pg_backend_pid()", &[])?;
    let records: Vec<TableRecord> =
        contents.tables.iter().zip(&sums).map(|(table, sum)| record(table, sum)).collect();
    store_lists(shared, &facts.name, &records, &contents)?;
    let uncovered = contents.uncovered.iter();
    let uncovered =
        uncovered.map(|one| format!("{}.{}: {}", one.relation.schema, one.relation.name, one.why.text()));
    let record = DatabaseRecord {
        name: facts.name,
        owner: facts.owner,
        encoding: facts.encoding,
        collate: facts.collate,
        ctype: facts.ctype,
        provider: facts.provider,
        locale: facts.locale,
        tables: records.len() as u64,
        rows: records.iter().map(|table| table.rows).sum(),
        bytes: records.iter().map(|table| table.bytes).sum(),
        large_objects: contents.large_objects,
        uncovered: uncovered.chain(left_out).collect(),
        taken_us,
    };
    let warnings = if record.tables == 0 {
        vec![format!("database {} has no tables with rows to store", record.name)]
    } else {
        Vec::new()
    };
    Ok(Captured { record, warnings })
}

/// Reads what is there and locks it, anew with a new moment if somebody changed it between.
fn hold(snapshot: &mut Snapshot, request: &LogicalRequest) -> Result<(Contents, Vec<String>), LogicalError> {
    for tried in 0..SNAPSHOT_TRIES {
        if tried > 0 {
            snapshot.retake()?;
        }
        let locked = |error: ServerError| match error {
            // 55P03: the wait was longer than `lock_timeout`.
            error if error.has_sqlstate("55P03") => LogicalError::Locked { waited: request.lock_timeout },
            error => error.into(),
        };
        let mut contents = Contents::read(snapshot.connection()).map_err(locked)?;
        let left_out = request.selection.apply(&mut contents);
        if tables::lock(snapshot.connection(), &contents.tables).map_err(locked)? {
            return Ok((contents, left_out));
        }
    }
    Err(LogicalError::Restless { tries: SNAPSHOT_TRIES })
}

fn record(table: &Table, (sum, files): &(RowSum, u32)) -> TableRecord {
    TableRecord {
        oid: table.oid,
        schema: table.schema.clone(),
        name: table.name.clone(),
        columns: table.columns.clone(),
        condition: table.condition.clone(),
        of_extension: table.of_extension,
        rows: sum.rows,
        bytes: sum.bytes,
        files: *files,
        digest: sum.digest(),
    }
}

fn store_lists(
    shared: &Shared<'_>,
    database: &str,
    records: &[TableRecord],
    contents: &Contents,
) -> Result<(), LogicalError> {
    let lines = |records: &mut dyn Iterator<Item = String>| -> Vec<u8> {
        records.flat_map(|line| (line + "\n").into_bytes()).collect()
    };
    let json = |record: &TableRecord| serde_json::to_string(record).expect("a record is JSON");
    let sequences = contents.sequences.iter().map(|sequence| OtherRecord::Sequence {
        schema: sequence.schema.clone(),
        name: sequence.name.clone(),
        last_value: sequence.last_value,
        is_called: sequence.is_called,
    });
    let views = contents
        .views
        .iter()
        .map(|view| OtherRecord::MaterializedView { schema: view.schema.clone(), name: view.name.clone() });
    let mut others =
        sequences.chain(views).map(|other| serde_json::to_string(&other).expect("a record is JSON"));
    let mut sink = Sink::new(shared);
    sink.put(logical::tables(database), &lines(&mut records.iter().map(json)))?;
    sink.put(logical::others(database), &lines(&mut others))?;
    sink.finish()
}

/// What the threads that read one database share.
struct Reading<'r> {
    snapshot: &'r Snapshot,
    contents: &'r Contents,
    shared: &'r Shared<'r>,
    monitor: &'r dyn Monitor,
    database: &'r str,
}

impl Reading<'_> {
    /// Reads everything; the sums of each table, and in how many files it is.
    fn run(&self, workers: usize, dump: Dump) -> Result<Vec<(RowSum, u32)>, LogicalError> {
        let tasks = Tasks::of(&self.contents.tables);
        let sums = Mutex::new(vec![(RowSum::default(), 0); self.contents.tables.len()]);
        let (stop, dump) = (AtomicBool::new(false), Mutex::new(Some(dump)));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers.max(1))
                .map(|_| {
                    scope.spawn(|| {
                        let done = self.work(&tasks, &sums, &dump, &stop);
                        if done.is_err() {
                            stop.store(true, Ordering::Release);
                        }
                        done
                    })
                })
                .collect();
            let outcomes: Vec<_> =
                threads.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect();
            // Who was stopped says less than who stopped the others.
            let is_stopped = |error: &LogicalError| matches!(error, LogicalError::Stopped);
            let mut errors: Vec<LogicalError> = outcomes.into_iter().filter_map(Result::err).collect();
            errors.sort_by_key(is_stopped);
            errors.into_iter().next().map_or(Ok(()), Err)
        })?;
        Ok(sums.into_inner().expect("no holder panics"))
    }

    fn work(
        &self,
        tasks: &Tasks,
        sums: &Mutex<Vec<(RowSum, u32)>>,
        dump: &Mutex<Option<Dump>>,
        stop: &AtomicBool,
    ) -> Result<(), LogicalError> {
        let mut sink = Sink::new(self.shared);
        let outcome = self.work_into(&mut sink, tasks, sums, dump, stop);
        // After a failure, too: what is stored is found by the next attempt.
        let stored = sink.finish();
        outcome.and(stored)
    }

    fn work_into(
        &self,
        sink: &mut Sink<'_>,
        tasks: &Tasks,
        sums: &Mutex<Vec<(RowSum, u32)>>,
        dump: &Mutex<Option<Dump>>,
        stop: &AtomicBool,
    ) -> Result<(), LogicalError> {
        let mut session = None;
        while let Some(task) = tasks.next() {
            if stop.load(Ordering::Acquire) || self.shared.uploader.failed() {
                return Err(LogicalError::Stopped);
            }
            let sum = self.range(sink, &mut session, &task, stop)?;
            let mut sums = sums.lock().expect("no holder panics");
            let (whole, files) = &mut sums[task.table];
            whole.join(&sum);
            *files = (*files).max(task.range + 1);
            drop(sums);
            failpoint::reach("logical.range");
        }
        drop(session);
        // Last: until then the program has read the catalogue beside us.
        let dump = dump.lock().expect("no holder panics").take();
        match dump {
            Some(dump) => dump.store(sink, logical::definitions(self.database)),
            None => Ok(()),
        }
    }

    /// Stores a range, on a new session if the one before was lost and the moment was not.
    fn range(
        &self,
        sink: &mut Sink<'_>,
        session: &mut Option<Connection>,
        task: &Task,
        stop: &AtomicBool,
    ) -> Result<RowSum, LogicalError> {
        for tried in 1.. {
            let outcome = self.try_range(sink, session, task, stop);
            match outcome {
                Err(error) if error.is_lost_session() && tried < RANGE_TRIES => {
                    *session = None;
                    // Without the session that holds the moment nobody sees it any more.
                    self.snapshot.connection().check_alive().map_err(|_| error)?;
                }
                other => return other,
            }
        }
        unreachable!("the last try returns")
    }

    fn try_range(
        &self,
        sink: &mut Sink<'_>,
        session: &mut Option<Connection>,
        task: &Task,
        stop: &AtomicBool,
    ) -> Result<RowSum, LogicalError> {
        let table = &self.contents.tables[task.table];
        let name = format!("{}.{}", table.schema, table.name);
        let connection = match session {
            Some(connection) => connection,
            None => session.insert(self.snapshot.join()?),
        };
        let path = logical::rows(self.database, &table.schema, &table.name, task.range);
        let mut file = sink.file(path)?;
        let copied =
            connection.copy_out(&copy_statement(table, task, self.snapshot.encoding()), &mut |bytes| {
                if stop.load(Ordering::Acquire) {
                    return Err(LogicalError::Stopped);
                }
                self.monitor.event(Event::Advanced { bytes: bytes.len() as u64 });
                each_row(bytes, &mut |row| file.row(row))
            });
        let Err(error) = copied else { return file.finish() };
        if let Err(more) = file.abandon() {
            tracing::debug!(error = %more, "what was read of a range is not noted");
        }
        match error {
            LogicalError::Server(error) => Err(LogicalError::relation("read the rows of", name)(error)),
            error => Err(error),
        }
    }
}

/// The statement that gives the rows of a task, one message for each, as bytes of the database's own encoding.
fn copy_statement(table: &Table, task: &Task, encoding: &str) -> String {
    let to = format!("TO STDOUT WITH (ENCODING {})", literal(encoding));
    let name = qualified(&table.schema, &table.name);
    let columns: Vec<String> = table.columns.iter().map(|column| quoted(column)).collect();
    let columns = columns.join(", ");
    let mut conditions = Vec::new();
    if let Some(from) = task.from_page.filter(|from| *from > 0) {
        conditions.push(format!("ctid >= '({from},0)'::pg_catalog.tid"));
    }
    if let Some(to) = task.to_page {
        conditions.push(format!("ctid < '({to},0)'::pg_catalog.tid"));
    }
    if !table.condition.is_empty() {
        conditions.push(format!("({})", bare_condition(&table.condition)));
    }
    if conditions.is_empty() {
        let list = if columns.is_empty() { String::new() } else { format!(" ({columns})") };
        return format!("COPY {name}{list} {to}");
    }
    format!("COPY (SELECT {columns} FROM ONLY {name} WHERE {}) {to}", conditions.join(" AND "))
}
