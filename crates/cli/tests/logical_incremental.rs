//! Logical backups one after the other: what is stored is about what changed, each one restores, and what verifies, expires,
//! prunes and copies backups knows nothing of how they were made. Killed anywhere, the plain command goes on.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;
mod zoo;

use scene::Scene;
use scene::points::{LOGICAL, LOGICAL_SWAP, backups};
use serde_json::Value;
use server::throwaway::Throwaway;
use zoo::{ask, assert_same, backup, create, databases, dump, fill, restore, run};

/// Two ranges of pages, several spans of 16 MiB. Pages are filled half, so that it needs fewer rows.
const BIG: &str = "create table big (id int primary key, x text) with (fillfactor = 50); \
    insert into big select g, repeat(md5(g::text), 20) from generate_series(1, 55000) g; \
    create table small as select g a from generate_series(1, 1000) g; vacuum";
const SUM: &str = "select count(*) || md5(string_agg(md5(b::text), '' order by id)) from big b";

fn new(backup: &Value) -> u64 {
    backup["bytes_new"].as_u64().unwrap()
}

fn run_each(server: &Throwaway, statements: &str) {
    let connection = zoo::connect(server, "app");
    statements.split("; ").for_each(|statement| connection.run_script(statement).unwrap());
}

fn big() -> Option<(Scene, Throwaway)> {
    let scene = zoo::scene(15)?;
    let server = zoo::server(&scene);
    create(&server, "app");
    run_each(&server, BIG);
    Some((scene, server))
}

fn assert_restores(scene: &Scene, server: &Throwaway, id: &str, sum: &str, more: &[&str]) {
    create(server, "back");
    restore(scene, server, "back", &[&[id], more].concat());
    assert_eq!(ask(server, "back", SUM), sum, "{id}");
    run(server, "postgres", "drop database back");
}

#[test]
fn what_is_stored_is_about_what_changed_and_every_backup_restores() {
    let Some((scene, server)) = big() else { return };
    let mut taken = Vec::new();
    let mut take = |change: &str, limit_percent: u64| {
        run_each(&server, change);
        let one = backup(&scene, &server, "app", &[]);
        let (new, all) = (new(&one), one["bytes"].as_u64().unwrap());
        assert!(new * 100 <= all * limit_percent, "{change}: {new} of {all} are new");
        taken.push((one["id"].as_str().unwrap().to_owned(), ask(&server, "app", SUM)));
        one
    };
    take("select 1", 100);
    assert_eq!(
        ask(&server, "app", "select pg_relation_size('big') / 8192 / 8192"),
        "1",
        "and more than that"
    );
    let same = take("select 1", 1);
    assert!(same["bytes_stored"].as_u64().unwrap() < 32 << 10, "nothing changed: {same}");
    // Where there is room for them, and at the end.
    take("update big set x = reverse(x) where id between 25000 and 25300", 4);
    take(
        "with gone as (delete from big where id between 35000 and 35300 returning *) insert into big select id, reverse(x) from gone",
        4,
    );
    take("delete from big where id between 10000 and 10550; vacuum big", 4);
    take(
        "insert into big select g, repeat(md5(g::text), 20) from generate_series(10000, 10450) g where g % 2 = 0",
        4,
    );
    take("insert into big select g, repeat(md5(g::text), 20) from generate_series(55001, 55550) g", 4);
    // Everything stands elsewhere, and is found again but for what went into another range.
    take("vacuum full big", 40);
    for (id, sum) in taken.iter().step_by(2) {
        assert_restores(&scene, &server, id, sum, &[]);
    }
    scene.ok(&["verify"]);
}

/// Few rows on many pages: three ranges are read by three sessions, and which of them had changes is seen in what is stored.
#[test]
fn a_table_of_many_ranges_is_read_by_several_sessions() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    create(&server, "app");
    let script = "create table big (id int primary key, x text) with (fillfactor = 10); \
        insert into big select g, repeat(md5(g::text), 24) from generate_series(1, 17000) g; vacuum big";
    run_each(&server, script);
    let ranges = "select (pg_relation_size('big') / 8192 + 8191) / 8192";
    assert_eq!(ask(&server, "app", ranges), "3");
    let first = backup(&scene, &server, "app", &["--set", "workers=3"]);
    let sum = ask(&server, "app", SUM);
    run_each(&server, "update big set x = reverse(x) where id = 16900");
    let second = backup(&scene, &server, "app", &["--set", "workers=3"]);
    assert!(new(&second) * 50 < second["bytes"].as_u64().unwrap(), "{second}");
    assert_restores(&scene, &server, first["id"].as_str().unwrap(), &sum, &["--set", "workers=3"]);
    let sum = ask(&server, "app", SUM);
    assert_restores(&scene, &server, second["id"].as_str().unwrap(), &sum, &[]);
}

#[test]
fn a_backup_that_has_much_less_is_told_and_takes_no_others_place() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    create(&server, "app");
    let script = "create table t (x text); insert into t select repeat(md5(g::text), 9) from generate_series(1, 4000) g";
    run_each(&server, script);
    let take = || scene.json(&["backup", "--mode", "logical", "--database-url", &zoo::url(&server, "app")]);
    assert_eq!(take()["warnings"], serde_json::json!([]));
    run_each(&server, "truncate t");
    assert!(take()["warnings"][0].as_str().unwrap().contains("does not take the place"));
    run_each(&server, "drop table t");
    assert!(take()["warnings"].to_string().contains("no tables with rows"));
    scene.ok(&["expire", "--set", "retention.keep=1", "--set", "retention.keep_at_least=1"]);
    let kept = scene.json(&["list"])["backups"].as_array().unwrap().len();
    assert_eq!(kept, 3, "the whole one stays, and those after it");
}

#[test]
fn logical_backups_are_kept_in_order_and_copied_like_others() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    fill(&server, "app", 15);
    backup(&scene, &server, "app", &[]);
    let [other, key] = zoo::other_repository(&scene);
    let own = ["--repository", &other, "--key-file", &key];
    let copy = ["copy", "--to", &other, "--to-key-file", &key];
    let first = scene.json(&copy)["report"]["stored_bytes"].as_u64().unwrap();
    // Most of what is stored is replaced; after the expiry, dead.
    run(&server, "app", "update zoo.huge set t = reverse(t)");
    backup(&scene, &server, "app", &[]);
    run(&server, "app", "insert into zoo.no_rows values (1, 'b')");
    let last = backup(&scene, &server, "app", &[]);
    // The piece of the definitions with the time in it, and lists.
    assert!(last["bytes_stored"].as_u64().unwrap() < 64 << 10, "{last}");
    let source = dump(&server, "app", &[]);
    let second = scene.json(&copy)["report"]["stored_bytes"].as_u64().unwrap();
    assert!(second < first * 2, "{first}, then {second}");
    run(&server, "app", "insert into zoo.no_rows values (2, 'c')");
    backup(&scene, &server, "app", &[]);
    let third = scene.json(&copy)["report"]["stored_bytes"].as_u64().unwrap();
    assert!(third * 10 < first, "{first}, then {third} for one row");
    create(&server, "back");
    let id = last["id"].as_str().unwrap();
    restore(&scene, &server, "back", &[&[id][..], &own].concat());
    assert_same(&source, &dump(&server, "back", &[]), "from the copy");

    scene.ok(&["expire", "--set", "retention.keep=2", "--set", "retention.keep_at_least=2"]);
    assert_eq!(backups(&scene), 2);
    for _ in 0..3 {
        scene.ok(&["prune", "--grace", "0s"]);
    }
    scene.ok(&["check"]);
    scene.ok(&["verify"]);
    scene.ok(&["status"]);
    restore(&scene, &server, "back", &["--clean", id]);
    assert_same(&source, &dump(&server, "back", &[]), "after the others were pruned");
    run(&server, "app", "insert into zoo.no_rows values (3, 'd')");
    let next = backup(&scene, &server, "app", &[]);
    assert!(next["bytes_stored"].as_u64().unwrap() < 64 << 10, "{next}");
}

#[test]
fn c01_a_logical_backup_that_was_killed_anywhere_is_followed_by_a_whole_one() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    fill(&server, "app", 15);
    let address = zoo::url(&server, "app");
    let mut there = 0;
    for (number, point) in LOGICAL.into_iter().enumerate() {
        run(&server, "app", &format!("insert into zoo.no_rows values ({number}, 'b')"));
        scene.killed_at(point, &["backup", "--mode", "logical", "--database-url", &address]);
        there += usize::from(point == "logical.published");
        let told = scene.run(&["status"]);
        assert_eq!(told.all().contains("is at work, or failed"), point != "logical.published", "{point}");
        backup(&scene, &server, "app", &[]);
        there += 1;
        assert_eq!(backups(&scene), there, "{point}: a killed backup counts only when published");
    }
    scene.ok(&["verify"]);
    create(&server, "back");
    restore(&scene, &server, "back", &[]);
    let source = dump(&server, "app", &[]);
    assert_same(&source, &dump(&server, "back", &[]), "after all kills");

    let into = zoo::url(&server, "back");
    for point in LOGICAL_SWAP {
        run(&server, "back", "truncate zoo.no_rows");
        let marked = dump(&server, "back", &[]);
        scene.killed_at(point, &["restore", "--swap", "--yes", "--into", &into]);
        let now = if point == "logical.swapped" { &source } else { &marked };
        assert_same(now, &dump(&server, "back", &[]), point);
        restore(&scene, &server, "back", &["--swap"]);
        assert_same(&source, &dump(&server, "back", &[]), point);
    }
    let left = databases(&server).into_iter().filter(|name| name.starts_with("back_new_")).count();
    assert_eq!(left, 2, "those that were killed before the names were exchanged");
}
