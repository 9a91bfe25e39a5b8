//! Clients that write, and remember for themselves what the server acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use server::throwaway::Throwaway;

/// Ids of one client begin at a multiple of this.
const IDS_OF_A_CLIENT: i64 = 1_000_000;
/// The server is to be busy, not saturated: backup and test share its two cores.
const PAUSE: Duration = Duration::from_millis(2);

const TABLE: &str =
    "create table ledger (id bigint primary key, xid text not null default pg_current_xact_id()::text,
    lsn pg_lsn not null default pg_current_wal_insert_lsn(), payload text not null)";

/// One row; its payload follows from its id.
const ROW: &str = "insert into ledger (id, payload)
    select id, repeat(md5(id::text), 1 + (id % 40)::int) from (select $1::bigint as id) given";

pub fn make(server: &Throwaway) {
    super::sql(server, TABLE);
}

/// Adds rows `from..=to`, each in a transaction of its own.
pub fn add(server: &Throwaway, from: i64, to: i64) {
    let connection = server.connect().unwrap();
    for id in from..=to {
        connection.execute(ROW, &[&id.to_string()]).unwrap();
    }
}

/// The ids that a server has; every payload is compared with what its id asks for.
pub fn ids(server: &Throwaway) -> BTreeSet<i64> {
    let wrong = "select count(*) from ledger where payload is distinct from repeat(md5(id::text), 1 + (id % 40)::int)";
    assert_eq!(super::number(server, wrong), 0, "rows with a wrong payload");
    let rows = server.connect().unwrap().query("select id from ledger", &[]).unwrap();
    rows.iter().map(|row| row.parse(0).unwrap()).collect()
}

/// Asserts that the ledger holds exactly rows `1..=last`: a prefix, without a gap and without more.
pub fn assert_prefix(server: &Throwaway, last: i64, what: &str) {
    let found = ids(server);
    let expected: BTreeSet<i64> = (1..=last).collect();
    let (missing, more): (Vec<_>, Vec<_>) =
        (expected.difference(&found).collect(), found.difference(&expected).collect());
    assert!(missing.is_empty() && more.is_empty(), "{what}: missing {missing:?}, more {more:?}");
}

/// Clients that add rows, and one that makes, empties and drops tables, until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<i64>>>,
    maker: JoinHandle<i64>,
}

impl Load {
    pub fn start(server: &Throwaway, clients: i64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (1..=clients).map(|client| {
            let (connection, stop) = (server.connect().unwrap(), stop.clone());
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                for id in client * IDS_OF_A_CLIENT.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    connection.execute(ROW, &[&id.to_string()]).unwrap();
                    // Only now: the commit was answered.
                    acknowledged.push(id);
                    std::thread::sleep(PAUSE);
                }
                acknowledged
            })
        });
        let writers = writers.collect();
        let (connection, told) = (server.connect().unwrap(), stop.clone());
        let maker = std::thread::spawn(move || {
            let mut number = 0;
            while !told.load(Ordering::SeqCst) {
                number += 1;
                connection.run_script(&storm(number)).unwrap();
                std::thread::sleep(PAUSE);
            }
            number
        });
        Self { stop, writers, maker }
    }

    /// Stops all; returns what was acknowledged, and how many rounds of tables were made and dropped.
    pub fn stop(self) -> (BTreeSet<i64>, i64) {
        self.stop.store(true, Ordering::SeqCst);
        let acknowledged = self.writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        (acknowledged, self.maker.join().unwrap())
    }
}

/// Files that appear, are emptied, and go while they are being read; every tenth table stays.
fn storm(number: i64) -> String {
    let mut script = format!(
        "create table storm_{number} as select g id, md5(g::text) x from generate_series(1, 300) g;
         create index on storm_{number} (x);
         truncate storm_{number};
         insert into storm_{number} select g, md5(g::text) from generate_series(1, 100) g;
         create temporary table passing as select g from generate_series(1, 500) g; drop table passing;"
    );
    if number % 10 != 0 {
        script.push_str(&format!("drop table storm_{number};"));
    }
    script
}
