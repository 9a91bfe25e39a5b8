//! Logical backups that something goes wrong with: each failure is caused for real, told with a way out, and leaves the backup
//! before as it was.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;
mod zoo;

use std::sync::atomic::{AtomicBool, Ordering};

use scene::Scene;
use server::throwaway::Throwaway;
use zoo::{ask, assert_same, backup, connect, create, dump, restore, run, try_backup};

const SOME: &str = "create table a_table (id int primary key, x text); \
    insert into a_table select g, repeat(md5(g::text), 20) from generate_series(1, 30000) g; \
    create table b_table as select g as b from generate_series(1, 100) g";
const SUM: &str = "select count(*) || md5(string_agg(md5(b::text), '' order by id)) from a_table b";

/// A database of which a backup exists.
fn backed_up() -> Option<(Scene, Throwaway, Vec<Vec<u8>>)> {
    let scene = zoo::scene(15)?;
    let server = zoo::server(&scene);
    create(&server, "app");
    run(&server, "app", SOME);
    backup(&scene, &server, "app", &[]);
    let source = dump(&server, "app", &[]);
    Some((scene, server, source))
}

/// What was there before the failure is there after it, and `status` tells of the failure, or of none.
fn assert_unharmed(
    scene: &Scene,
    server: &Throwaway,
    source: &[Vec<u8>],
    backups: usize,
    failed: Option<&str>,
) {
    let status = scene.json(&["status"]);
    let why = status["failed_backup"]["why"].as_str();
    assert_eq!(why.is_some(), failed.is_some(), "{status}");
    assert!(why.unwrap_or_default().contains(failed.unwrap_or_default()), "{status}");
    assert_eq!(scene.ok(&["status"]).out.contains("the backup failed at"), failed.is_some());
    assert_eq!(scene::points::backups(scene), backups);
    create(server, "back");
    restore(scene, server, "back", &[]);
    assert_same(source, &dump(server, "back", &[]), "the one before");
    run(server, "postgres", "drop database back");
}

/// Ends each session of that name and state that it sees, until told to stop; how many there were.
fn end_sessions(server: &Throwaway, condition: &str, most: u32, stop: &AtomicBool) -> u32 {
    let session = connect(server, "postgres");
    let sql = format!(
        "select count(*) from (select pg_terminate_backend(pid) from pg_stat_activity where datname = 'app' and {condition} limit 1) x"
    );
    let mut ended = 0;
    while !stop.load(Ordering::Acquire) && ended < most {
        let rows = session.query_one(&sql, &[]).unwrap();
        ended += rows.first().unwrap().parse::<u32>(0).unwrap();
    }
    ended
}

#[test]
fn a_pg_dump_that_is_killed_or_missing_fails_the_backup() {
    let Some((mut scene, server, source)) = backed_up() else { return };
    let folder = zoo::dump_that(&scene, "kill -9 $$");
    let variables = scene.variables.clone();
    scene.variables = vec![("PGKEEP_PG_BIN".to_owned(), folder.to_str().unwrap().to_owned())];
    try_backup(&scene, &server, "app", &[]).refused(1, &["pg_dump failed (signal: 9"]);
    zoo::dump_that(&scene, "\"$real\" \"$@\" | head -c 900; exit 0");
    try_backup(&scene, &server, "app", &[]).refused(1, &["pg_restore failed"]);
    scene.variables = variables;
    assert_unharmed(&scene, &server, &source, 1, Some("pg_restore failed"));
    let nobody = ["backup", "--mode", "logical", "--database-url", "postgres://postgres@%2Fnowhere/app"];
    scene.run(&nobody).refused(4, &["/nowhere"]);
    assert_unharmed(&scene, &server, &source, 1, Some("/nowhere"));
    backup(&scene, &server, "app", &[]);
    assert_unharmed(&scene, &server, &source, 2, None);

    let Some(mut newer) = zoo::scene(18) else { return };
    let of_18 = zoo::server(&newer);
    newer.variables.clear();
    let words = ["pg_dump of PostgreSQL 18 or later is not on this machine", "postgresql-client-18"];
    try_backup(&newer, &of_18, "postgres", &[]).refused(2, &words);
    newer.run(&["status"]).refused(3, &["the backup failed at", words[0]]);
}

#[test]
fn sessions_that_end_are_replaced_and_the_one_of_the_moment_is_not() {
    let Some((mut scene, server, _)) = backed_up() else { return };
    run(
        &server,
        "app",
        "insert into a_table select g, md5(g::text) || g from generate_series(30001, 200000) g",
    );
    let changed = dump(&server, "app", &[]);
    let (stop, rows) = (AtomicBool::new(false), "application_name = 'pgkeep rows' and state = 'active'");
    let ended = std::thread::scope(|threads| {
        let ending = threads.spawn(|| end_sessions(&server, rows, 2, &stop));
        backup(&scene, &server, "app", &["--full"]);
        stop.store(true, Ordering::Release);
        ending.join().unwrap()
    });
    assert!(ended >= 1, "no session was ended");
    assert_unharmed(&scene, &server, &changed, 2, None);

    run(&server, "app", "update a_table set x = reverse(x)");
    let holder = "application_name = 'pgkeep' and exists (select from pg_stat_activity where application_name = 'pgkeep rows' \
                  and state = 'active')";
    let stop = AtomicBool::new(false);
    let said = std::thread::scope(|threads| {
        threads.spawn(|| end_sessions(&server, holder, u32::MAX, &stop));
        let said = try_backup(&scene, &server, "app", &[]);
        stop.store(true, Ordering::Release);
        said
    });
    assert_ne!(said.code(), 0, "{}", said.all());
    assert_unharmed(&scene, &server, &changed, 2, Some(""));

    // The next attempt takes up what one stored that failed at its end.
    let folder = zoo::dump_that(&scene, "sleep 1; kill -9 $$");
    let variables = scene.variables.clone();
    scene.variables = vec![("PGKEEP_PG_BIN".to_owned(), folder.to_str().unwrap().to_owned())];
    try_backup(&scene, &server, "app", &[]).refused(1, &["pg_dump failed (signal: 9"]);
    scene.variables = variables;
    let next = backup(&scene, &server, "app", &[]);
    let (new, all) = (next["bytes_new"].as_u64().unwrap(), next["bytes"].as_u64().unwrap());
    assert!(new < all / 2, "{new} of {all} were stored again");
    assert_unharmed(&scene, &server, &dump(&server, "app", &[]), 3, None);
}

/// The lock is asked for while somebody has it, who then changes the table.
#[test]
fn tables_that_change_between_the_moment_and_the_lock_are_seen_anew() {
    let Some((scene, server, _)) = backed_up() else { return };
    for (number, change) in [
        "truncate a_table",
        "drop table b_table",
        "alter table a_table drop column x",
        "alter table a_table alter column id type bigint",
        "alter table a_table rename to c_table",
    ]
    .into_iter()
    .enumerate()
    {
        let session = connect(&server, "app");
        session.run_script(&format!("begin; {change}")).unwrap();
        std::thread::scope(|threads| {
            let taking = threads.spawn(|| backup(&scene, &server, "app", &[]));
            let waiting = "select count(*) from pg_locks where not granted";
            scene::wait_for("the backup", || (ask(&server, "app", waiting) == "1").then_some(()));
            session.run_script("commit").unwrap();
            taking.join().unwrap();
        });
        assert_unharmed(&scene, &server, &dump(&server, "app", &[]), 2 + number, None);
    }
}

#[test]
fn a_lock_against_readers_is_waited_for_and_told() {
    let Some((scene, server, source)) = backed_up() else { return };
    let session = connect(&server, "app");
    session.run_script("begin; lock table b_table in access exclusive mode").unwrap();
    let said = try_backup(&scene, &server, "app", &["--set", "logical.lock_timeout=1s"]);
    said.refused(4, &["locked against readers for longer than 1 s", "logical.lock_timeout"]);
    drop(session);
    assert_unharmed(&scene, &server, &source, 1, Some("locked against readers"));
    // While it is read, nobody empties it: the backup holds a lock.
    let folder = zoo::dump_that(&scene, "sleep 2; exec \"$real\" \"$@\"");
    let mut slow =
        scene.command(&["backup", "--mode", "logical", "--database-url", &zoo::url(&server, "app")]);
    slow.env("PGKEEP_PG_BIN", folder);
    std::thread::scope(|threads| {
        let taking = threads.spawn(move || scene::said(&mut slow));
        let rows = "select count(*) from pg_stat_activity where application_name = 'pgkeep rows'";
        scene::wait_for("rows", || (ask(&server, "app", rows) != "0").then_some(()));
        run(&server, "app", "insert into b_table values (7777); create table later (a int)");
        let emptied = connect(&server, "app").run_script("set lock_timeout = 100; truncate b_table");
        assert!(emptied.unwrap_err().to_string().contains("lock timeout"));
        let said = taking.join().unwrap();
        assert_eq!(said.code(), 0, "{}", said.all());
    });
    assert_unharmed(&scene, &server, &source, 2, None);
}

#[test]
fn what_the_role_cannot_read_is_named_and_what_cannot_be_covered_is_told() {
    let Some((scene, server, _)) = backed_up() else { return };
    let script = "create role half login; create table hidden (a int); create table cut (who text); grant select on a_table, b_table, cut to half; \
        alter table cut enable row level security; create foreign data wrapper w; create server s foreign data wrapper w; \
        create foreign table far (a int) server s";
    run(&server, "app", script);
    let as_half = zoo::url(&server, "app").replace("postgres@", "half@");
    let take = |more: &[&str]| {
        scene.run(&[&["backup", "--mode", "logical", "--database-url", &as_half], more].concat())
    };
    let words =
        ["public.hidden: the role may not read it", "public.cut: row security hides rows", "BYPASSRLS"];
    take(&[]).refused(2, &words);
    scene.ok(&["status"]).refused(0, &["the backup failed at", words[0]]);
    let told = take(&["--exclude-table", "hidden", "--exclude-table", "cut"]);
    told.refused(0, &["public.far: a foreign table"]);
    run(&server, "app", "grant select on hidden to half; alter role half bypassrls");
    let whole = take(&[]);
    assert_eq!(whole.code(), 0, "{}", whole.all());
    assert_unharmed(&scene, &server, &dump(&server, "app", &[]), 3, None);
}

#[test]
fn a_standby_gives_a_logical_backup_without_what_it_does_not_have() {
    let Some((scene, server, _)) = backed_up() else { return };
    run(&server, "app", "create unlogged table quick as select 1 as one");
    let standby = Throwaway::builder(&scene.binaries).start_standby_of(&server).unwrap();
    scene::wait_for("replay", || {
        (ask(&standby, "app", "select to_regclass('quick') is not null") == "t").then_some(())
    });
    let said = try_backup(&scene, &standby, "app", &[]);
    said.refused(0, &["public.quick: unlogged"]);
    create(&server, "back");
    restore(&scene, &server, "back", &[]);
    assert_eq!(ask(&server, "back", SUM), ask(&server, "app", SUM));
    zoo::try_restore(&scene, &standby, "app", &["--clean"]).refused(2, &["the target is a standby"]);
}

/// No room for what is new; a limit on files stands for it, which every machine has.
#[test]
fn a_repository_that_is_full_fails_the_backup_and_harms_nothing() {
    let Some((scene, server, source)) = backed_up() else { return };
    run(
        &server,
        "app",
        "create table noise as select g, gen_random_uuid() u, gen_random_uuid() v from generate_series(1, 200000) g",
    );
    // No file of the program's may become larger than a pack that has those in it.
    let program = scene.program().display().to_string();
    let config = scene.config().display().to_string();
    let mut limited = std::process::Command::new("/bin/sh");
    let script = format!(
        "trap '' XFSZ; ulimit -f 2048; exec '{program}' --config '{config}' backup --mode logical --database-url '{}'",
        zoo::url(&server, "app")
    );
    limited
        .args(["-c", &script])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .current_dir(scene.path(""));
    scene.run_as.apply(&mut limited);
    let said = scene::said(&mut limited);
    assert_ne!(said.code(), 0, "{}", said.all());
    assert!(said.all().contains("File too large"), "{}", said.all());
    assert_unharmed(&scene, &server, &source, 1, Some("File too large"));
    backup(&scene, &server, "app", &[]);
    assert_unharmed(&scene, &server, &dump(&server, "app", &[]), 2, None);
}

#[test]
fn a_pause_of_the_reader_is_not_the_end() {
    // The server's own limits do not end the sessions of a backup.
    let Some((scene, server, source)) = backed_up() else { return };
    run(
        &server,
        "app",
        "alter database app set statement_timeout = '500ms'; alter database app set idle_in_transaction_session_timeout = '50ms'",
    );
    let folder = zoo::dump_that(&scene, "sleep 1; exec \"$real\" \"$@\"");
    let mut slow =
        scene.command(&["backup", "--mode", "logical", "--database-url", &zoo::url(&server, "app")]);
    let said = scene::said(slow.env("PGKEEP_PG_BIN", folder));
    assert_eq!(said.code(), 0, "{}", said.all());
    run(&server, "postgres", "alter database app reset all");
    assert_unharmed(&scene, &server, &source, 2, None);
}
