use std::time::Instant;

use super::*;
use crate::connection::Connection;
use crate::throwaway::testing::started;

/// What a server streams from `from` until it has sent the byte before `end`.
fn receive(stream: &mut Replication, mut at: u64, end: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let begun = Instant::now();
    while at < end {
        assert!(begun.elapsed() < Duration::from_secs(20), "the stream stands at {at:X}");
        if let Message::Wal(wal) = stream.next(Duration::from_millis(100)).unwrap() {
            assert_eq!(wal.start(), at);
            assert!(wal.server_end() >= Lsn::new(at) && wal.sent_at().is_some());
            bytes.extend_from_slice(wal.bytes());
            at += wal.bytes().len() as u64;
        }
    }
    bytes
}

fn position(connection: &Connection, sql: &str) -> Lsn {
    connection.query_one(sql, &[]).unwrap().first().unwrap().parse(0).unwrap()
}

#[test]
fn a_server_streams_what_its_segments_hold_and_hears_how_far_it_came() {
    let server = started();
    let connection = server.connect().unwrap();
    connection.execute("SELECT pg_create_physical_replication_slot('keep', true)", &[]).unwrap();
    let settings = ConnectionSettings::new(server.conninfo()).application_name("keep");
    let mut stream = Replication::connect(&settings).unwrap();
    let identity = stream.identify_system().unwrap();
    let sql = "SELECT system_identifier FROM pg_control_system()";
    let known: i64 = connection.query_one(sql, &[]).unwrap().first().unwrap().parse(0).unwrap();
    assert_eq!((identity.system_identifier, identity.timeline), (known.cast_unsigned(), TimelineId::FIRST));

    connection.run_script("CREATE TABLE t AS SELECT generate_series(1, 10000)").unwrap();
    let start = Lsn::new(identity.flushed.unwrap().get() >> 24 << 24).unwrap();
    stream.start("keep", identity.timeline, start).unwrap();
    let end = position(&connection, "SELECT pg_current_wal_flush_lsn()");
    let bytes = receive(&mut stream, start.get(), end.get());
    let sql = "SELECT pg_read_binary_file('pg_wal/' || pg_walfile_name($1::pg_lsn + 1), 0, $2::int8)";
    let length = bytes.len().to_string();
    let rows =
        connection.query_one(&format!("SELECT encode(({sql}), 'hex')"), &[&start.to_string(), &length]);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(rows.unwrap().first().unwrap().required(0).unwrap() == hex, "the stream is not the file");

    stream.report(Received { written: Some(end), flushed: Some(end) }, true).unwrap();
    let begun = Instant::now();
    let flushed = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'keep'";
    while position(&connection, flushed) != end {
        assert!(begun.elapsed() < Duration::from_secs(10));
        stream.next(Duration::from_millis(20)).unwrap();
    }
    let sql = "SELECT application_name, flush_lsn, replay_lsn IS NULL FROM pg_stat_replication";
    let rows = connection.query_one(sql, &[]).unwrap();
    let row = rows.first().unwrap();
    assert_eq!((row.required(0).unwrap(), row.parse::<Lsn>(1).unwrap()), ("keep", end));
    assert!(row.boolean(2).unwrap(), "nothing is said to be replayed");
    // Its end leaves the slot free at once.
    drop(stream);
    let begun = Instant::now();
    let mut again = Replication::connect(&settings).unwrap();
    again.start("keep", identity.timeline, end).unwrap();
    while !matches!(again.next(Duration::from_millis(100)).unwrap(), Message::Nothing) {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_wait_ends_at_once_when_somebody_wakes_it() {
    let server = started();
    let connection = server.connect().unwrap();
    connection.execute("SELECT pg_create_physical_replication_slot('keep', true)", &[]).unwrap();
    let mut stream = Replication::connect(&ConnectionSettings::new(server.conninfo())).unwrap();
    let identity = stream.identify_system().unwrap();
    stream.start("keep", identity.timeline, identity.flushed.unwrap()).unwrap();
    while !matches!(stream.next(Duration::from_millis(300)).unwrap(), Message::Nothing) {}
    let (begun, waker) = (Instant::now(), stream.waker());
    std::thread::scope(|scope| {
        scope.spawn(|| waker.wake());
        while !matches!(stream.next(Duration::from_secs(30)).unwrap(), Message::Nothing) {}
    });
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn wal_that_is_gone_and_positions_to_come_are_errors_of_the_server() {
    let server = started();
    let connection = server.connect().unwrap();
    connection.execute("SELECT pg_create_physical_replication_slot('keep', true)", &[]).unwrap();
    for _ in 0..3 {
        connection.run_script("SELECT pg_switch_wal(); CREATE TABLE u (); DROP TABLE u; CHECKPOINT").unwrap();
    }
    connection.run_script("SELECT pg_drop_replication_slot('keep'); CHECKPOINT").unwrap();
    connection.execute("SELECT pg_create_physical_replication_slot('keep', true)", &[]).unwrap();
    let refusal = |from: &str| {
        let mut stream = Replication::connect(&ConnectionSettings::new(server.conninfo())).unwrap();
        stream.start("keep", TimelineId::FIRST, from.parse().unwrap()).unwrap();
        (0..50).find_map(|_| stream.next(Duration::from_millis(100)).err()).expect("the server refuses it")
    };
    let gone = refusal("0/1000000");
    assert_eq!(gone.sqlstate().unwrap().as_str(), "58P01", "{gone}");
    let to_come = refusal("F/1000000");
    assert!(to_come.to_string().contains("ahead of the WAL flush position"), "{to_come}");
}
