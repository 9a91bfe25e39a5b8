//! Backups that read only what the server's WAL summaries name: equal to the source whatever was done to it, refused where
//! summaries may miss changes, by content where they do not tell of all WAL.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use scene::{ROLE, Reading, Scene, judges, ledger, number, sql, text};
use serde_json::Value;
use server::throwaway::{StopMode, Throwaway};

/// Has a build with debug assertions believe the summaries of every minor.
const BELIEVE: &str = "PGKEEP_BELIEVE_SUMMARIES";
const BY_SUMMARY: [&str; 2] = ["--changed-by", "wal-summary"];

#[test]
fn a_backup_by_summaries_equals_its_source_on_17() {
    equals_source(17, Reading::Locally, true);
}

#[test]
fn a_backup_by_summaries_equals_its_source_on_18() {
    equals_source(18, Reading::Locally, false);
}

#[test]
fn a_backup_by_summaries_equals_its_source_on_17_over_sql_with_the_least_rights() {
    equals_source(17, Reading::OverSql, false);
}

#[test]
fn a_backup_by_summaries_equals_its_source_on_18_over_sql_with_the_least_rights() {
    equals_source(18, Reading::OverSql, true);
}

/// What the load leaves, so that it can begin again.
const DROP_STORMS: &str = "do $$ declare name text; begin
    for name in select relname from pg_class where relname like 'storm%' and relkind = 'r' loop
        execute 'drop table ' || name;
    end loop; end $$";

fn equals_source(major: u16, reading: Reading, checksums: bool) {
    let Some(mut scene) = Scene::of(major) else { return };
    scene.reading = reading;
    scene.variables.push((BELIEVE.into(), "1".into()));
    scene.init();
    let server = scene.start_server(|builder| {
        builder.checksums(checksums).setting("summarize_wal", "on").setting("fsync", "off")
    });
    ledger::make(&server);
    furnish(&scene, &server);
    let full = take(&scene, &server, &[&BY_SUMMARY[..], &["--full"]].concat());
    assert_eq!((full["backup"]["kind"].as_str(), warnings(&full)), (Some("full"), ""));

    for round in 1..=4_u32 {
        let load = ledger::Load::start(&server, 1);
        let done = disturb(&server, round);
        // The last one by content: it must not trust the times of files that were read in part.
        let way: &[&str] = if round < 4 { &BY_SUMMARY } else { &[] };
        let taken = take(&scene, &server, way);
        let (acknowledged, _) = load.stop();
        assert_eq!(warnings(&taken), "", "round {round}");
        assert_eq!(taken["backup"]["damaged_pages"], 0);
        scene::flush_wal(&server);
        eprintln!("PostgreSQL {major}, round {round}: {done:?}");
        assert_restored(&scene, &server, round, checksums, acknowledged.len());
        sql(&server, "truncate ledger");
        sql(&server, DROP_STORMS);
    }
    assert_reads_less(&scene, &server);
}

fn take(scene: &Scene, server: &Throwaway, more: &[&str]) -> Value {
    let mode = if scene.reading == Reading::OverSql { "sql" } else { "local" };
    scene.json(&[&["backup", "--database-url", &scene.backup_url(server), "--mode", mode], more].concat())
}

fn warnings(taken: &Value) -> &str {
    taken["warnings"].as_array().unwrap().first().map_or("", |warning| warning.as_str().unwrap())
}

fn assert_restored(scene: &Scene, server: &Throwaway, round: u32, checksums: bool, rows: usize) {
    let source = judges::dump(scene, server);
    let into = format!("restored-{round}");
    let moved = scene.text_path(&format!("moved-{round}"));
    let into = scene.restore(&into, &["--to", "latest", "--tablespaces-under", &moved]);
    judges::verify_backup(scene, &into);
    let mut restored = scene.start_restored(&into);
    assert_eq!(ledger::ids(&restored).len(), rows);
    judges::assert_same_dump(&source, &judges::dump(scene, &restored));
    judges::check_relations(scene, &restored);
    restored.stop(StopMode::Fast).unwrap();
    if checksums {
        judges::check_checksums(scene, &into);
    }
    std::fs::remove_dir_all(into).unwrap();
}

/// A relation over several spans, one that comes and goes, a database that moves, and rows outside their tables.
fn furnish(scene: &Scene, server: &Throwaway) {
    sql(server, &format!("create tablespace side location '{}'", scene.make_folder("space")));
    sql(
        server,
        "create table large (id int primary key, x text) with (fillfactor = 90, autovacuum_enabled = off);
         insert into large select g, repeat(md5(g::text), 12) from generate_series(1, 110000) g;
         create table tides (id int, x text) with (autovacuum_enabled = off);
         insert into tides select g, repeat(md5(g::text), 5) from generate_series(1, 40000) g;
         create table aside (id int primary key, x text) tablespace side;
         insert into aside select g, md5(g::text) from generate_series(1, 20000) g;
         create table broad (id int primary key, x text);
         alter table broad alter x set storage external;
         insert into broad select g, repeat(md5(g::text), 200) from generate_series(1, 400) g;
         create unlogged table unlogged_rows as select g from generate_series(1, 5000) g;
         create sequence counter;",
    );
    sql(server, "create database other template template0");
    let other = server.connect_to("other").unwrap();
    other
        .run_script("create table t as select g as id, md5(g::text) as x from generate_series(1, 20000) g")
        .unwrap();
}

/// Does a few things out of many, chosen by the round; returns what.
fn disturb(server: &Throwaway, round: u32) -> Vec<usize> {
    let things = [
        "update large set x = md5(x) || substr(x, 33) where id % 5000 = 17",
        "update large set x = md5(x) || substr(x, 33) where id between 60000 and 60400",
        "insert into large select g, repeat(md5(g::text), 12)
         from generate_series((select max(id) + 1 from large), (select max(id) + 9000 from large)) g",
        "delete from large where id > (select max(id) - 12000 from large)",
        "vacuum large",
        "delete from tides where ctid > '(100,0)'",
        "vacuum (truncate) tides",
        "insert into tides select g, repeat(md5((g * 7)::text), 5) from generate_series(1, 30000) g",
        "truncate tides",
        "create index if not exists tides_x on tides (x)",
        "drop index if exists tides_x",
        "reindex table large",
        "vacuum full aside",
        "alter table aside set tablespace pg_default",
        "alter table aside set tablespace side",
        "update aside set x = md5(x) where id % 3 = 0",
        "update broad set x = x || 'more' where id % 50 = 0",
        "drop table if exists fleeting",
        "create table if not exists fleeting as select g, repeat('f', 300) from generate_series(1, 20000) g",
        "select nextval('counter') from generate_series(1, 50)",
        "vacuum (freeze) tides",
        "checkpoint",
        "cluster large using large_pkey",
        "move other",
    ];
    // Rounds 1 and 3 always have these: a relation that shrinks and grows, a database copied away and back.
    let mut chosen: Vec<usize> = if round % 2 == 1 { vec![5, 6, 7, 23] } else { vec![8, 7] };
    let mut state = u64::from(round).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for _ in 0..12 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chosen.push((state >> 33) as usize % (things.len() - 2));
    }
    for thing in &chosen {
        match things[*thing] {
            "move other" => move_database(server),
            statement => drop(server.connect().unwrap().query(statement, &[]).unwrap()),
        }
    }
    chosen
}

/// Its files come back under the names that they had, by a copy of which the WAL has no blocks.
fn move_database(server: &Throwaway) {
    let in_other = |script: &str| server.connect_to("other").unwrap().run_script(script).unwrap();
    let to = |space: &str| {
        let statement = format!("alter database other set tablespace {space}");
        scene::wait_for("the database to be left alone", || {
            server.connect().unwrap().execute(&statement, &[]).ok().map(drop)
        });
    };
    to("side");
    in_other("update t set x = md5(x) where id % 2 = 0; checkpoint");
    to("pg_default");
}

/// Of a table with few changes all over it, a backup by content reads everything, and one by summaries little.
fn assert_reads_less(scene: &Scene, server: &Throwaway) {
    let change = "update large set x = md5(x) || substr(x, 33) where id % 9000 = 11";
    let read = |way: &[&str]| {
        sql(server, change);
        let taken = take(scene, server, way);
        assert_eq!(warnings(&taken), "");
        taken["backup"]["bytes_read"].as_u64().unwrap()
    };
    let size = number(server, "select pg_relation_size('large')") as u64;
    let by_content = read(&[]);
    let by_summary = read(&BY_SUMMARY);
    assert!(size > 32 << 20 && by_content > size, "{by_content} of {size}");
    assert!(by_summary < by_content / 3, "{by_summary} instead of {by_content}");
    eprintln!("read by content {by_content}, by summaries {by_summary}");
}

#[test]
fn summaries_that_may_miss_changes_and_servers_without_any_are_refused() {
    let Some(scene) = Scene::of(17) else { return };
    scene.init();
    let server = scene.start_server(|builder| builder.setting("summarize_wal", "on"));
    let version = text(&server, "show server_version").split(' ').next().unwrap().to_owned();
    let url = server.conninfo();
    let backup = [&["backup", "--database-url", &url], &BY_SUMMARY[..]].concat();
    let refused = scene.run(&backup);
    refused.refused(2, &[&format!("PostgreSQL {version} may miss changes"), "17.13"]);
    scene.run(&["backup", "--database-url", &url, "--set", "changed_by=wal-summary"]).refused(2, &["17.13"]);
    scene.run(&["backup", "--changed-by", "guessing"]).refused(2, &["content, wal-summary"]);

    let Some(mut scene) = Scene::of(17) else { return };
    scene.variables.push((BELIEVE.into(), "1".into()));
    scene.init();
    sql(&server, "alter system set summarize_wal = off");
    sql(&server, "select pg_reload_conf()");
    scene::wait_for("the reload", || (text(&server, "show summarize_wal") == "off").then_some(()));
    scene.run(&backup).refused(2, &["summarize_wal is off", "reload"]);

    let Some(mut old) = Scene::of(15) else { return };
    old.variables.push((BELIEVE.into(), "1".into()));
    old.init();
    let server = old.start_server(|builder| builder);
    let url = server.conninfo();
    old.run(&[&["backup", "--database-url", &url], &BY_SUMMARY[..]].concat())
        .refused(2, &["PostgreSQL 15 keeps no WAL summaries"]);
}

#[test]
fn a_role_that_may_not_ask_for_summaries_is_told_which_right_it_lacks() {
    let Some(mut scene) = Scene::of(18) else { return };
    scene.variables.push((BELIEVE.into(), "1".into()));
    scene.reading = Reading::OverSql;
    scene.init();
    let server = scene.start_server(|builder| builder.setting("summarize_wal", "on"));
    let url = scene.backup_url(&server);
    for function in ["pg_available_wal_summaries()", "pg_get_wal_summarizer_state()"] {
        sql(&server, &format!("revoke execute on function {function} from public, {ROLE}"));
        scene
            .run(&[&["backup", "--mode", "sql", "--database-url", &url], &BY_SUMMARY[..]].concat())
            .refused(2, &[function, ROLE]);
        sql(&server, &format!("grant execute on function {function} to {ROLE}"));
    }
    scene.ok(&[&["backup", "--mode", "sql", "--database-url", &url], &BY_SUMMARY[..]].concat());
}

#[test]
fn a_hole_or_another_timeline_is_told_and_the_backup_goes_by_content() {
    let Some(mut scene) = Scene::of(17) else { return };
    scene.variables.push((BELIEVE.into(), "1".into()));
    scene.init();
    let mut server = scene.start_server(|builder| builder.setting("summarize_wal", "on"));
    ledger::make(&server);
    sql(&server, "create table t as select g as id, md5(g::text) as x from generate_series(1, 50000) g");
    take(&scene, &server, &[]);
    let change = |server: &Throwaway| sql(server, "update t set x = md5(x) where id % 1000 = 3");

    for _ in 0..3 {
        change(&server);
        sql(&server, "checkpoint");
    }
    let newest = "select count(*) from pg_available_wal_summaries() s, pg_control_checkpoint() c where s.end_lsn = c.redo_lsn";
    scene::wait_for("the summaries", || (number(&server, newest) == 1).then_some(()));
    server.stop(StopMode::Fast).unwrap();
    remove_last_but_one(&server);
    server.start().unwrap();
    let taken = take(&scene, &server, &BY_SUMMARY);
    assert!(warnings(&taken).contains("no WAL summary of timeline 1 tells of 0/"), "{taken}");
    assert_restored(&scene, &server, 1, true, 0);

    change(&server);
    assert_eq!(warnings(&take(&scene, &server, &BY_SUMMARY)), "");
    server.stop(StopMode::Fast).unwrap();
    std::fs::write(server.data_directory().join("standby.signal"), "").unwrap();
    server.start().unwrap();
    sql(&server, "select pg_promote()");
    change(&server);
    let taken = take(&scene, &server, &BY_SUMMARY);
    let told = "the last backup is of timeline 1 and the server is on timeline 2";
    assert!(warnings(&taken).contains(told), "{taken}");
    change(&server);
    assert_eq!(warnings(&take(&scene, &server, &BY_SUMMARY)), "");
    assert_restored(&scene, &server, 2, true, 0);
}

fn remove_last_but_one(server: &Throwaway) {
    let folder = server.data_directory().join("pg_wal/summaries");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    std::fs::remove_file(&files[files.len() - 2]).unwrap();
}

/// What a crash leaves of an extension are empty blocks of which the WAL knows nothing. The parent has old rows there, and only
/// the length to which the relation was cut tells that they are not these.
#[test]
fn old_rows_do_not_return_where_a_relation_was_cut_and_grew_without_wal() {
    let Some(mut scene) = Scene::of(17) else { return };
    scene.variables.push((BELIEVE.into(), "1".into()));
    scene.init();
    let mut server = scene.start_server(|builder| {
        let builder = builder.setting("summarize_wal", "on").setting("autovacuum", "off");
        builder
            .setting("wal_writer_delay", "10s")
            .setting("wal_buffers", "64MB")
            .setting("bgwriter_lru_maxpages", "0")
    });
    ledger::make(&server);
    sql(&server, "create table t as select g as id, repeat('x', 200) as x from generate_series(1, 20000) g");
    sql(&server, "vacuum (freeze) t");
    take(&scene, &server, &[]);
    sql(&server, "delete from t where ctid >= '(50,0)'");
    sql(&server, "vacuum t");
    sql(&server, "checkpoint");
    assert_eq!(number(&server, "select pg_relation_size('t') / 8192"), 50);
    let connection = server.connect().unwrap();
    connection.execute("begin", &[]).unwrap();
    connection
        .execute("insert into t select g, repeat('y', 200) from generate_series(1, 10000) g", &[])
        .unwrap();
    server.kill();
    server.start().unwrap();
    let (blocks, rows) =
        (number(&server, "select pg_relation_size('t') / 8192"), number(&server, "select count(*) from t"));
    assert!(blocks > 200, "{blocks}");
    let taken = take(&scene, &server, &BY_SUMMARY);
    assert_eq!(warnings(&taken), "");
    scene::flush_wal(&server);
    let into = scene.restore("restored", &["--to", "latest"]);
    judges::verify_backup(&scene, &into);
    let restored = scene.start_restored(&into);
    assert_eq!(number(&restored, "select count(*) from t"), rows);
    judges::check_relations(&scene, &restored);
}
