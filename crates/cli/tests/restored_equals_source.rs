//! EQ, with A10, B01, B05 and R11: a cluster under load is backed up while it changes, and what is restored from that is
//! equal to it, on every major that there is.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::time::Duration;

use scene::{Reading, Scene, judges, ledger, number, sql, text};
use server::throwaway::{StopMode, Throwaway};

/// How long clients write before, between and after the backups.
const WRITING: Duration = Duration::from_millis(700);

#[test]
fn eq_a10_b01_b05_r11_on_15_with_segments_of_16_mib() {
    restored_equals_source(15, 16, true, Reading::Locally);
}

#[test]
fn eq_a10_b01_b05_r11_on_16_with_segments_of_1_mib() {
    restored_equals_source(16, 1, false, Reading::Locally);
}

#[test]
fn eq_a10_b01_b05_r11_on_17_with_segments_of_64_mib() {
    restored_equals_source(17, 64, true, Reading::Locally);
}

#[test]
fn eq_a10_b01_b05_r11_on_18_with_segments_of_16_mib() {
    restored_equals_source(18, 16, false, Reading::Locally);
}

#[test]
fn eq_a10_b01_b05_r11_on_15_over_sql_with_the_least_rights() {
    restored_equals_source(15, 16, true, Reading::OverSql);
}

#[test]
fn eq_a10_b01_b05_r11_on_16_over_sql_with_the_least_rights() {
    restored_equals_source(16, 1, false, Reading::OverSql);
}

#[test]
fn eq_a10_b01_b05_r11_on_17_over_sql_with_the_least_rights() {
    restored_equals_source(17, 64, true, Reading::OverSql);
}

#[test]
fn eq_a10_b01_b05_r11_on_18_over_sql_with_the_least_rights() {
    restored_equals_source(18, 16, false, Reading::OverSql);
}

fn restored_equals_source(major: u16, segment_size_mib: u32, has_amcheck: bool, reading: Reading) {
    let Some(mut scene) = Scene::of(major) else { return };
    scene.reading = reading;
    scene.init();
    let server = scene.start_server(|builder| {
        // A tablespace in place is recovered only where it may be made.
        let builder = builder.setting("allow_in_place_tablespaces", "on");
        builder.wal_segment_size_mib(segment_size_mib).setting("max_prepared_transactions", "5")
    });
    ledger::make(&server);
    furnish(&scene, &server);

    let load = ledger::Load::start(&server, 2);
    std::thread::sleep(WRITING);
    let full = scene.backup(&server, &["--full"]);
    std::thread::sleep(WRITING);
    let incremental = scene.backup(&server, &[]);
    std::thread::sleep(WRITING);
    let (acknowledged, rounds) = load.stop();
    assert!(acknowledged.len() > 100 && rounds > 10, "{} rows, {rounds} rounds: no load", acknowledged.len());
    assert_eq!((full["kind"].as_str(), incremental["kind"].as_str()), (Some("full"), Some("incremental")));
    assert_eq!(incremental["damaged_pages"], 0);

    scene::flush_wal(&server);
    let source = judges::dump(&scene, &server);
    let into =
        scene.restore("restored", &["--to", "latest", "--tablespaces-under", &scene.text_path("moved")]);
    judges::verify_backup(&scene, &into);
    let mut restored = scene.start_restored(&into);
    assert_eq!(ledger::ids(&restored), acknowledged, "the ledger is complete, and holds nothing else");
    judges::assert_same_dump(&source, &judges::dump(&scene, &restored));
    assert_furniture(&server, &restored);
    assert_eq!(judges::check_relations(&scene, &restored), has_amcheck, "amcheck of PostgreSQL {major}");
    restored.stop(StopMode::Fast).unwrap();
    judges::check_checksums(&scene, &into);
}

/// One of everything that a restore could lose.
fn furnish(scene: &Scene, server: &Throwaway) {
    let space = scene.make_folder("space");
    sql(server, &format!("create tablespace side location '{space}'"));
    // In a directory of the cluster itself, which only tests and replication make.
    let in_place = server.connect().unwrap();
    in_place.execute("set allow_in_place_tablespaces = on", &[]).unwrap();
    in_place.execute("create tablespace in_place location ''", &[]).unwrap();
    in_place
        .run_script("create table within tablespace in_place as select generate_series(1, 1000) g")
        .unwrap();
    sql(
        server,
        "create role keeper login password 'not a secret';
         create table aside (id int primary key, x text) tablespace side;
         insert into aside select g, md5(g::text) from generate_series(1, 2000) g;
         create index aside_x on aside (x) tablespace side;
         create unlogged table unlogged_rows as select g from generate_series(1, 5000) g;
         create unlogged table unlogged_aside (id int primary key) tablespace side;
         insert into unlogged_aside select generate_series(1, 5000);
         create sequence counter; select nextval('counter') from generate_series(1, 100);
         create table broad (id int primary key, x text);
         insert into broad select g, repeat(md5(g::text), 200) from generate_series(1, 400) g;
         alter table broad alter x set storage external;
         update broad set x = x || 'outside the table' where id % 3 = 0;
         create materialized view summed as select count(*), sum(length(x)) from broad;",
    );
    sql(server, "select lo_from_bytea(4711, convert_to(repeat('large object ', 20000), 'UTF8'))");
    sql(server, "create database other template template0");
    server.connect_to("other").unwrap().run_script("create table t as select 1 as one").unwrap();
    sql(server, "begin; insert into aside values (1000001, 'prepared'); prepare transaction 'pending'");
}

fn assert_furniture(source: &Throwaway, restored: &Throwaway) {
    assert_eq!(number(restored, "select count(*) from unlogged_rows"), 0, "unlogged tables come back empty");
    assert_eq!(number(restored, "select count(*) from unlogged_aside"), 0);
    let object = "select md5(lo_get(4711))";
    assert_eq!(text(restored, object), text(source, object));
    // The log runs up to 32 values ahead of a sequence; a recovered one may skip them, never give one twice.
    let counter = "select last_value from counter";
    assert!((number(source, counter)..=number(source, counter) + 32).contains(&number(restored, counter)));
    assert_eq!(text(restored, "select gid from pg_prepared_xacts"), "pending");
    assert_eq!(number(restored, "select count(*) from aside where id = 1000001"), 0);
    sql(restored, "commit prepared 'pending'");
    assert_eq!(number(restored, "select count(*) from aside where id = 1000001"), 1);
    let moved =
        text(restored, "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'side'");
    assert!(moved.contains("/moved/"), "{moved}");
}
