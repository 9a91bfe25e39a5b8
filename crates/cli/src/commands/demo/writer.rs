//! The rows of the demo: written, remembered, destroyed, counted again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use server::connection::{Connection, ServerError};
use server::throwaway::Throwaway;

use super::stage::failed;
use crate::failure::{Class, Failure, Outcome};

/// Rows of one transaction.
const BATCH: u64 = 20;
/// The server is to be busy, not saturated: it shares its machine with the backup.
const PAUSE: Duration = Duration::from_millis(5);
/// How long to wait for the last WAL to be archived.
const ARCHIVED_WITHIN: Duration = Duration::from_secs(30);
/// How long to wait for the restored server to reach its target.
const REPLAYED_WITHIN: Duration = Duration::from_secs(60);

/// What was committed before the disaster.
pub struct Ledger {
    /// How many rows.
    pub rows: u64,
    /// The sum of their amounts.
    pub sum: i64,
    /// The server's clock after the last commit and before the disaster.
    moment: Timestamp,
}

impl Ledger {
    /// The moment for people.
    pub fn shown(&self) -> String {
        crate::output::exact_moment(self.moment)
    }

    /// The moment as a recovery target.
    pub fn target(&self) -> String {
        self.shown()
    }
}

/// What a server has.
pub struct Count {
    /// How many rows.
    pub rows: u64,
    /// The sum of their amounts.
    pub sum: i64,
}

/// Makes the table and its first rows.
pub fn prepare(server: &Throwaway, rows: u64) -> Outcome {
    let sql = format!(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, amount bigint NOT NULL, note text, made timestamptz DEFAULT now());
         INSERT INTO accounts SELECT i, i % 1000, md5(i::text) FROM generate_series(1, {rows}) i;
         CREATE INDEX ON accounts (amount)"
    );
    connect(server)?.run_script(&sql).map_err(failed("make a table"))
}

/// Writes rows until it is stopped.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), ServerError>>,
    asking: Connection,
}

impl Writer {
    /// Begins to write.
    pub fn start(server: &Throwaway) -> Outcome<Self> {
        let (writing, asking) = (connect(server)?, connect(server)?);
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let sql = format!(
            "INSERT INTO accounts SELECT m + i, (m + i) % 1000, md5(random()::text) \
             FROM generate_series(1, {BATCH}) i, (SELECT max(id) AS m FROM accounts) newest"
        );
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                writing.execute(&sql, &[])?;
                std::thread::sleep(PAUSE);
            }
            Ok(())
        });
        Ok(Self { stop, thread, asking })
    }

    /// Stops, and remembers what is there and when that was.
    pub fn stop(self) -> Outcome<Ledger> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.join() {
            Ok(wrote) => wrote.map_err(failed("write rows"))?,
            Err(_) => {
                return Err(Failure::new(Class::Bug, "write rows in the demo").because("the writer panicked"));
            }
        }
        let count = ask(&self.asking)?;
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let rows = self.asking.query_one(sql, &[]).map_err(failed("ask for the time"))?;
        let micros: i64 = rows.first().and_then(|row| row.parse(0)).map_err(failed("read the time"))?;
        let moment = Timestamp::from_microsecond(micros).map_err(failed("read the time"))?;
        // The disaster must come after the moment, whatever the clock's grain.
        std::thread::sleep(Duration::from_millis(20));
        Ok(Ledger { rows: count.rows, sum: count.sum, moment })
    }
}

/// Loses everything, for good: the loss itself reaches the archive.
pub fn destroy(server: &Throwaway) -> Outcome {
    let connection = connect(server)?;
    for sql in ["DELETE FROM accounts", "DROP TABLE accounts"] {
        connection.execute(sql, &[]).map_err(failed("lose the table"))?;
    }
    wait_for_archive(&connection)
}

/// A restore knows that its moment is past only when a later commit is in the archive.
fn wait_for_archive(connection: &Connection) -> Outcome {
    let switch = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_switch_wal())";
    let rows = connection.query_one(switch, &[]).map_err(failed("switch WAL"))?;
    let wanted = rows.first().and_then(|row| row.required(0)).map_err(failed("switch WAL"))?.to_owned();
    let until = Instant::now() + ARCHIVED_WITHIN;
    loop {
        let asked = "SELECT coalesce(last_archived_wal, '') >= $1 FROM pg_catalog.pg_stat_archiver";
        let rows = connection.query_one(asked, &[&wanted]).map_err(failed("look at the archiver"))?;
        if rows.first().and_then(|row| row.boolean(0)).map_err(failed("look at the archiver"))? {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(Failure::new(Class::TryAgain, "wait for the archive in the demo")
                .because(format!("{wanted} was not archived within {} s", ARCHIVED_WITHIN.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Counts what a restored server has, once it has replayed all: before, it answers already, from a moment on the way.
pub fn count(server: &Throwaway) -> Outcome<Count> {
    let connection = connect(server)?;
    let until = Instant::now() + REPLAYED_WITHIN;
    loop {
        let rows = connection.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]);
        let rows = rows.map_err(failed("look at the replay"))?;
        if !rows.first().and_then(|row| row.boolean(0)).map_err(failed("look at the replay"))? {
            return ask(&connection);
        }
        if Instant::now() > until {
            return Err(Failure::new(Class::TryAgain, "wait for the replay in the demo")
                .because(format!("it took longer than {} s", REPLAYED_WITHIN.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ask(connection: &Connection) -> Outcome<Count> {
    let rows = connection.query_one("SELECT count(*), coalesce(sum(amount), 0) FROM accounts", &[]);
    let rows = rows.map_err(failed("count the rows"))?;
    let row = rows.first().map_err(failed("count the rows"))?;
    let (rows, sum) = (row.parse(0), row.parse(1));
    Ok(Count { rows: rows.map_err(failed("count the rows"))?, sum: sum.map_err(failed("add the amounts"))? })
}

fn connect(server: &Throwaway) -> Outcome<Connection> {
    server.connect().map_err(failed("connect to the server"))
}
