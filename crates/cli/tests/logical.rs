//! Logical backups: whatever a database can hold comes back equal, into an empty database, over what is there, by exchanging
//! names, and table by table.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;
mod zoo;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use scene::{Scene, number};
use server::throwaway::Throwaway;
use zoo::{ask, assert_same, backup, create, databases, dump, fill, restore, run, try_restore};

/// What an unchanged database may cost.
const NEXT_TO_NOTHING: u64 = 32 << 10;

fn everything_comes_back(major: u16) {
    let Some(scene) = zoo::scene(major) else { return };
    let server = zoo::server(&scene);
    fill(&server, "zoo", major);
    backup(&scene, &server, "zoo", &[]);
    let again = backup(&scene, &server, "zoo", &[]);
    assert_eq!(again["kind"], "incremental");
    assert!(again["bytes_stored"].as_u64().unwrap() < NEXT_TO_NOTHING, "nothing changed: {again}");
    let source = dump(&server, "zoo", &[]);

    create(&server, "back");
    restore(&scene, &server, "back", &[]);
    assert_same(&source, &dump(&server, "back", &[]), "an empty database");
    try_restore(&scene, &server, "back", &[])
        .refused(6, &["tables, views and sequences", "--swap", "--clean"]);
    assert_same(&source, &dump(&server, "back", &[]), "what was refused changed nothing");

    let spoil = "drop table zoo.quick; delete from zoo.huge; insert into zoo.value (id) values (99); \
                 alter table zoo.lost rename to found; select lo_put(4003, 0, 'THREE'), lo_unlink(4002)";
    run(&server, "back", spoil);
    run(&server, "back", "drop table zoo.found");
    for times in ["once", "twice"] {
        restore(&scene, &server, "back", &["--clean"]);
        assert_same(&source, &dump(&server, "back", &[]), &format!("clean, {times}"));
    }
    run(&server, "back", "delete from zoo.huge; create table zoo.mine (a int)");
    restore(&scene, &server, "back", &["--swap"]);
    assert_same(&source, &dump(&server, "back", &[]), "swap");
    let old = databases(&server).into_iter().find(|name| name.starts_with("back_old_")).unwrap();
    assert_eq!(ask(&server, &old, "select count(*) from zoo.huge"), "0", "the old one is as it was");
    scene.ok(&["verify"]);
}

#[test]
fn everything_comes_back_on_15() {
    everything_comes_back(15);
}

#[test]
fn everything_comes_back_on_16() {
    everything_comes_back(16);
}

#[test]
fn everything_comes_back_on_17() {
    everything_comes_back(17);
}

#[test]
fn everything_comes_back_on_18() {
    everything_comes_back(18);
}

/// Rows and sequences are the same; definitions are written by each major in its own way.
#[test]
fn a_backup_goes_into_a_newer_server() {
    let (from, to) = (15, 18);
    let Some(scene) = zoo::scene(from) else { return };
    let other = Scene::of(to).unwrap();
    let source = zoo::server(&scene);
    let target = zoo::server(&other);
    // Without what only the newer one knows.
    fill(&source, "zoo", 15);
    backup(&scene, &source, "zoo", &[]);
    create(&target, "back");
    restore(&scene, &target, "back", &[]);
    let rows = ["--data-only", "--no-blobs"];
    let data = |server: &Throwaway, name: &str| -> Vec<Vec<u8>> {
        let lines = dump(server, name, &rows).into_iter();
        lines.filter(|line| !line.starts_with(b"--") && !line.starts_with(b"SET ")).collect()
    };
    assert_same(&data(&source, "zoo"), &data(&target, "back"), &format!("{from} into {to}"));
    let large = "select string_agg(oid || md5(lo_get(oid)), ' ' order by oid) from pg_largeobject_metadata";
    assert_eq!(ask(&source, "zoo", large), ask(&target, "back", large));
    let objects = "select string_agg(relkind::text || n::text, ' ' order by relkind) from (select relkind, count(*) n from pg_class \
                   where relnamespace in (select oid from pg_namespace where nspname in ('zoo', 'odd / names.%')) \
                   group by relkind)";
    assert_eq!(ask(&source, "zoo", &format!("{objects} x")), ask(&target, "back", &format!("{objects} x")));
}

/// What belongs to a database itself.
const OF_DATABASE: &str = "select concat_ws('|', (select string_agg(acl::text, ' ' order by acl::text) from unnest(datacl) acl), datconnlimit, pg_get_userbyid(datdba), shobj_description(oid, 'pg_database'), \
    (select string_agg(setrole::regrole::text || setconfig::text, ',' order by setrole) from pg_db_role_setting where setdatabase = d.oid)) \
    from pg_database d where datname = 'app'";

#[test]
fn a_swap_ends_sessions_that_come_back_at_once_and_keeps_what_belongs_to_the_database() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    fill(&server, "app", 15);
    // With one in it the server would not drop the old database.
    run(&server, "app", "drop subscription reading");
    run(
        &server,
        "postgres",
        "alter database app owner to zoo_owner; alter database app set work_mem = '7MB'; \
         alter database app set search_path = zoo, \"odd / names.%\"; alter role zoo_reader in database app set datestyle = 'German, DMY'; \
         revoke connect on database app from public; grant create on database app to zoo_reader with grant option; \
         comment on database app is 'it''s ours'; alter database app connection limit 77",
    );
    backup(&scene, &server, "app", &[]);
    let (source, kept) = (dump(&server, "app", &[]), ask(&server, "postgres", OF_DATABASE));
    run(&server, "app", "drop table zoo.huge");
    let (stop, ended) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let Ok(session) = server.connect_to("app") else { continue };
                    while session.query("select 1", &[]).is_ok() && !stop.load(Ordering::Acquire) {}
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        restore(&scene, &server, "app", &["--swap", "--drop-old"]);
        stop.store(true, Ordering::Release);
    });
    assert!(ended.load(Ordering::Relaxed) >= 4, "sessions were there, and ended");
    assert_same(&source, &dump(&server, "app", &[]), "swapped");
    assert_eq!(ask(&server, "postgres", OF_DATABASE), kept);
    assert_eq!(databases(&server), ["app", "postgres", "template0", "template1"], "no old one, no other");
}

#[test]
fn what_fails_inside_leaves_the_database_as_it_was() {
    let Some(scene) = zoo::scene(15) else { return };
    let source = zoo::server(&scene);
    fill(&source, "app", 15);
    backup(&scene, &source, "app", &[]);
    // A server that lacks a role.
    let target = zoo::server(&scene);
    run(&target, "postgres", "drop role zoo_reader");
    create(&target, "app");
    run(
        &target,
        "app",
        "create schema zoo; create table zoo.huge as select 1 as one; create table mine (a int)",
    );
    let before = (dump(&target, "app", &[]), databases(&target));
    for way in ["--swap", "--clean"] {
        try_restore(&scene, &target, "app", &[way]).refused(1, &["role \"zoo_reader\" does not exist"]);
        assert_same(&before.0, &dump(&target, "app", &[]), way);
        assert_eq!(before.1, databases(&target), "{way}: no new one");
    }
    // A table's rows that are damaged on their way.
    let packs = scene.path("repository/packs");
    std::fs::write(largest_below(&packs), b"not a pack").unwrap();
    run(&target, "postgres", "create role zoo_reader");
    assert_ne!(try_restore(&scene, &target, "app", &["--swap"]).code(), 0);
    assert_eq!(before.1, databases(&target));
    assert_same(&before.0, &dump(&target, "app", &[]), "damage");
}

fn largest_below(packs: &std::path::Path) -> std::path::PathBuf {
    let folders = std::fs::read_dir(packs).unwrap().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten());
    files.max_by_key(|file| file.metadata().unwrap().len()).unwrap().path()
}

#[test]
fn parts_of_a_database_come_back_by_themselves() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    fill(&server, "zoo", 15);
    run(
        &server,
        "zoo",
        "create table zoo.lone (id int generated always as identity, s serial, t text default 'a;b', primary key (id)); \
         insert into zoo.lone (t) select g::text from generate_series(1, 9) g; comment on column zoo.lone.t is 'c'; \
         grant insert (t) on zoo.lone to zoo_reader",
    );
    backup(&scene, &server, "zoo", &[]);
    let source = dump(&server, "zoo", &[]);
    // Gone, emptied, and changed.
    run(
        &server,
        "zoo",
        "drop table zoo.lone; truncate zoo.bucket_0; drop table \"odd / names.%\".\"new\nline\"; drop policy mine on zoo.secret",
    );
    for (table, more) in [
        ("zoo.lone", &[][..]),
        ("zoo.bucket_0", &["--clean"]),
        ("odd / names.%.new\nline", &[]),
        ("zoo.secret", &["--clean"]),
    ] {
        restore(&scene, &server, "zoo", &[&["--table", table], more].concat());
    }
    // What publishes a table does not belong to it.
    assert_same(&source, &dump(&server, "zoo", &[]), "table by table");

    let aside = ["--table", "lone", "--as", "zoo.before"];
    restore(&scene, &server, "zoo", &aside);
    assert_eq!(ask(&server, "zoo", "select count(*) from zoo.before natural join zoo.lone"), "9");
    try_restore(&scene, &server, "zoo", &aside).refused(2, &["is in the target already"]);
    let clean = ["--table", "zoo.parent", "--clean"];
    try_restore(&scene, &server, "zoo", &clean).refused(1, &["other objects depend on it"]);
    try_restore(&scene, &server, "zoo", &["--table", "nowhere"]).refused(2, &["no rows of a table nowhere"]);
    run(&server, "zoo", "drop table zoo.before");

    create(&server, "part");
    restore(&scene, &server, "part", &["--schema", "odd / names.%"]);
    let only = ["--schema", "\"odd / names.%\""];
    assert_same(&dump(&server, "zoo", &only), &dump(&server, "part", &only), "one schema");
    backup(&scene, &server, "zoo", &["--cluster", "odd", "--schema", "odd *.%"]);
    create(&server, "odd");
    restore(&scene, &server, "odd", &["--cluster", "odd"]);
    assert_same(&dump(&server, "zoo", &only), &dump(&server, "odd", &only), "a backup of one schema");
    let more = "select count(*)::text || (select count(*) from pg_largeobject_metadata) from pg_namespace where nspname = 'zoo'";
    assert_eq!(ask(&server, "odd", more), "00");
    try_restore(&scene, &server, "part", &["--schema", "nowhere"]).refused(2, &["no schema nowhere"]);
}

#[test]
fn definitions_and_rows_come_back_one_after_the_other() {
    let Some(scene) = zoo::scene(18) else { return };
    let server = zoo::server(&scene);
    // Without constraints that hold for new rows only: those do not let old ones in, whoever brings them.
    fill(&server, "zoo", 17);
    backup(&scene, &server, "zoo", &[]);
    let source = dump(&server, "zoo", &[]);
    create(&server, "back");
    restore(&scene, &server, "back", &["--schema-only"]);
    assert_eq!(ask(&server, "back", "select count(*) from zoo.parent"), "0");
    restore(&scene, &server, "back", &["--data-only"]);
    assert_same(&source, &dump(&server, "back", &[]), "definitions, then rows");
    try_restore(&scene, &server, "back", &["--data-only"]).refused(6, &["there are rows already", "--clean"]);
    run(&server, "back", "delete from zoo.huge");
    restore(&scene, &server, "back", &["--data-only", "--clean"]);
    assert_same(&source, &dump(&server, "back", &[]), "rows over rows");
}

#[test]
fn databases_of_every_encoding_come_back() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    let some = "create table \"größe\" (\"übel\" text default 'Ä', n int); insert into \"größe\" values ('é', 1), ('ÿ', 2); \
                comment on table \"größe\" is 'Straße'; create index \"ß\" on \"größe\" (n)";
    let kanji = "create table \"表\" (\"列\" text default '能'); insert into \"表\" values ('漢字'), ('ソ能表'), ('\\'); comment on table \"表\" is '予'";
    // Bytes that are no text in any encoding that we could guess.
    let odd = "create table odd (t text default E'\\xfe'); insert into odd values (E'\\xff\\xfe'), (E'a\\x80'); \
               comment on table odd is E'\\xc3'";
    for (encoding, script) in [("LATIN1", some), ("EUC_JP", kanji), ("SQL_ASCII", odd)] {
        let name = encoding.to_lowercase();
        let making = |name: &str| {
            format!("create database {name} encoding '{encoding}' locale 'C' template template0")
        };
        run(&server, "postgres", &making(&name));
        run(&server, &name, script);
        backup(&scene, &server, &name, &["--cluster", &name]);
        let source = dump(&server, &name, &[]);
        run(&server, "postgres", &making("back"));
        for way in [&[][..], &["--clean"], &["--swap", "--drop-old"]] {
            restore(&scene, &server, "back", &[&["--cluster", &name], way].concat());
            assert_same(&source, &dump(&server, "back", &[]), &format!("{encoding} {way:?}"));
        }
        let same =
            "select count(*) from pg_database where datname = 'back' and pg_encoding_to_char(encoding) = ";
        assert_eq!(number(&server, &format!("{same}'{encoding}'")), 1);
        run(&server, "postgres", "drop database back");
        if encoding != "SQL_ASCII" {
            create(&server, "wide");
            restore(&scene, &server, "wide", &["--cluster", &name]);
            let text = ["--encoding=UTF8"];
            assert_same(&dump(&server, &name, &text), &dump(&server, "wide", &text), encoding);
            run(&server, "postgres", "drop database wide");
        }
    }
}

/// The rows of an extension's table that are its user's come back, and those that the extension makes are its own.
#[test]
fn an_extensions_configuration_comes_back() {
    let Some(scene) = zoo::scene(18) else { return };
    let folder = scene.make_folder("share/extension");
    scene.write(
        "share/extension/keeps.control",
        "default_version = '1'\nrelocatable = false\nschema = keeps\n",
    );
    scene.write(
        "share/extension/keeps--1.sql",
        "create table setting (name text primary key, own boolean default true, id serial); \
         insert into setting (name, own) values ('made by it', false); create table other (a int); \
         select pg_catalog.pg_extension_config_dump('setting', 'WHERE own'); \
         create table whole (a int); select pg_catalog.pg_extension_config_dump('whole', '');",
    );
    let path = format!("$system:{}", folder.trim_end_matches("/extension"));
    let server =
        Throwaway::builder(&scene.binaries).setting("extension_control_path", &path).start().unwrap();
    let words = "create schema keeps; create extension keeps; insert into keeps.setting (name) values ('mine'); \
                 insert into keeps.whole values (1), (2); insert into keeps.other values (3)";
    run(&server, "postgres", words);
    backup(&scene, &server, "postgres", &[]);
    create(&server, "back");
    restore(&scene, &server, "back", &[]);
    let found = "select string_agg(name || own, ',' order by name) || (select count(*) from keeps.whole) \
                 || (select count(*) from keeps.other) from keeps.setting";
    assert_eq!(ask(&server, "back", found), "made by itfalse,minetrue20");
    run(&server, "back", "insert into keeps.setting (name) values ('later')");
    restore(&scene, &server, "back", &["--data-only", "--clean"]);
    assert_eq!(ask(&server, "back", found), "made by itfalse,minetrue20");
}
