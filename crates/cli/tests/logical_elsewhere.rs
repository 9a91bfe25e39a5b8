//! Logical backups on other servers than those that they were taken of, as roles that may do no more than they must: what a
//! provider gives, an older or newer major, rights that are not there; and definitions that somebody has forged.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;
mod zoo;

use scene::{Said, Scene, said};
use server::connection::{Connection, ConnectionSettings};
use server::throwaway::Throwaway;
use zoo::{ask, assert_same, backup, create, dump, restore, run};

/// The address of a database, for a role.
fn url_as(server: &Throwaway, role: &str, database: &str) -> String {
    zoo::url(server, database).replace("postgres@", &format!("{role}@"))
}

fn run_as(server: &Throwaway, role: &str, database: &str, script: &str) {
    let session = Connection::connect(&ConnectionSettings::new(url_as(server, role, database))).unwrap();
    session.run_script(script).unwrap();
}

fn restore_as(scene: &Scene, server: &Throwaway, role: &str, database: &str, more: &[&str]) -> Said {
    let into = url_as(server, role, database);
    scene.run(&[&["restore", "--yes", "--into", &into], more].concat())
}

/// As with a provider that gives a database and its owner, and nothing else.
#[test]
fn the_owner_of_a_database_and_of_nothing_else_backs_up_and_restores() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    run(&server, "postgres", "create role tenant login; create role other login password 'not-for-tenants'");
    run(&server, "postgres", "create database app owner tenant");
    let url = |database: &str| url_as(&server, "tenant", database);
    let script = "create table a (id int generated always as identity primary key, x text); insert into a (x) values ('b'), ('c'); \
        create table child (a int references a deferrable); insert into child values (1), (2); create view v as select * from a; \
        create materialized view mv as select * from v; select lo_from_bytea(7001, 'object')";
    run_as(&server, "tenant", "app", script);
    let shown = scene.json(&["init", "--database-url", &url("app")])["server"].clone();
    assert_eq!((shown["mode"].as_str(), shown["ready"].as_bool()), (Some("logical"), Some(true)), "{shown}");
    assert!(!shown["against"]["sql"].as_array().unwrap().is_empty(), "why no physical one: {shown}");
    let said = scene.json(&["backup", "--database-url", &url("app")]);
    let info = scene.json(&["info", said["backup"]["id"].as_str().unwrap()]).to_string();
    assert!(!info.contains("not-for-tenants"));
    // Into a database of another owner, who is no more than that.
    run(&server, "postgres", "create role second login");
    run(&server, "postgres", "create database back owner second");
    let restore = |more: &[&str]| restore_as(&scene, &server, "second", "back", more);
    for way in [&[][..], &["--clean"], &["--data-only", "--clean"]] {
        let said = restore(&[&["--no-owner"], way].concat());
        assert_eq!(said.code(), 0, "{way:?}: {}", said.all());
        let owners = "select string_agg(distinct pg_get_userbyid(relowner), ',') from pg_class where relnamespace = 'public'::regnamespace";
        assert_eq!(ask(&server, "back", owners), "second");
    }
    assert_same(
        &dump(&server, "app", &["--no-owner"]),
        &dump(&server, "back", &["--no-owner"]),
        "another owner",
    );
    restore(&["--swap", "--no-owner"]).refused(2, &["may not create databases"]);
    run(&server, "postgres", "alter role second createdb");
    assert_eq!(restore(&["--swap", "--no-owner"]).code(), 0);
    assert_same(&dump(&server, "app", &["--no-owner"]), &dump(&server, "back", &["--no-owner"]), "swapped");
}

/// What a role makes that owns a database and nothing else.
const OF_TENANT: &str = "create table a (id int generated always as identity primary key, x text not null, twice int generated always as (id * 2) stored); \
    insert into a (x) select md5(g::text) from generate_series(1, 5000) g; \
    create table part (k int, v text) partition by list (k); create table part_1 partition of part for values in (1); \
    create table part_rest partition of part default; insert into part select g % 3, 'v' || g from generate_series(1, 100) g; \
    create type mood as enum ('sad', 'ok'); create table moods (m mood default 'ok', unique (m)); insert into moods values ('sad'); \
    create function add_one(n int) returns int language sql immutable as 'select n + 1'; create index on a (add_one(id)); \
    create sequence alone start 7; select nextval('alone'); alter table a enable row level security; create policy all_of_it on a using (true); \
    create view v as select id, x from a where id % 2 = 0; create materialized view mv as select * from v; \
    create materialized view of_mv as select count(*) n from mv; select lo_from_bytea(7001, 'object')";
const CONTENT: &str = "select concat_ws('|', (select md5(string_agg(a::text, ',' order by id)) from a), (select md5(string_agg(part::text, ',' order by part)) from part), \
    (select string_agg(m::text, ',') from moods), (select last_value from alone), (select count(*) from mv), (select n from of_mv), encode(lo_get(7001), 'hex'), \
    (select string_agg(relkind::text || relname, ' ' order by relname) from pg_class where relnamespace = 'public'::regnamespace))";

/// Both ways between the oldest and the newest server at hand.
fn a_tenant_moves(from: u16, to: u16, right: &str) {
    let Some(scene) = zoo::scene(from) else { return };
    let (source, target) = (zoo::server(&scene), zoo::server(&Scene::of(to).unwrap()));
    run(&source, "postgres", "create role tenant login");
    run(&source, "postgres", "create database app owner tenant");
    run_as(&source, "tenant", "app", OF_TENANT);
    run_as(&source, "tenant", "app", &format!("grant {right} on a to zoo_reader"));
    scene.ok(&["backup", "--mode", "logical", "--database-url", &url_as(&source, "tenant", "app")]);

    run(&target, "postgres", "create role second login");
    run(&target, "postgres", "create database back owner second");
    if to < 17 && right == "maintain" {
        let said = restore_as(&scene, &target, "second", "back", &["--no-owner"]);
        said.refused(1, &["maintain"]);
        run(&target, "postgres", "drop database back");
        run(&target, "postgres", "create database back owner second");
    }
    for way in [&[][..], &["--clean"], &["--schema", "public", "--clean"]] {
        let said = restore_as(
            &scene,
            &target,
            "second",
            "back",
            &[&["--no-owner", "--no-privileges"], way].concat(),
        );
        assert_eq!(said.code(), 0, "{way:?}: {}", said.all());
        assert_eq!(ask(&target, "back", CONTENT), ask(&source, "app", CONTENT), "{way:?}");
        assert_eq!(ask(&target, "back", "select nextval(pg_get_serial_sequence('a', 'id'))"), "5001");
    }
    let table = ["--no-owner", "--no-privileges", "--table", "a", "--as", "before"];
    let said = restore_as(&scene, &target, "second", "back", &table);
    assert_eq!(said.code(), 0, "{}", said.all());
    assert_eq!(ask(&target, "back", "select count(*) from before natural join a"), "5000");
}

#[test]
fn a_tenant_moves_to_an_older_server() {
    a_tenant_moves(18, 15, "maintain");
}

#[test]
fn a_tenant_moves_to_a_newer_server() {
    a_tenant_moves(15, 18, "select");
}

/// The server makes a materialized view anew as its owner.
#[test]
fn a_view_whose_owner_lost_its_rights_is_told_and_the_rest_comes_back() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    create(&server, "app");
    run(
        &server,
        "app",
        "create table a as select generate_series(1, 9) id; create materialized view mv as select * from a; \
         create materialized view of_mv as select * from mv; create materialized view own as select * from a; \
         grant select on a to zoo_reader; alter materialized view mv owner to zoo_reader",
    );
    backup(&scene, &server, "app", &[]);
    create(&server, "back");
    for way in [&[][..], &["--clean"]] {
        let said = restore(&scene, &server, "back", &[&["--no-privileges"], way].concat());
        said.refused(0, &["\"public\".\"mv\" has no rows until it is refreshed", "permission denied"]);
        said.refused(0, &["\"public\".\"of_mv\" has no rows until it is refreshed"]);
        let there = "select string_agg(relname || relispopulated, ' ' order by relname) from pg_class where relkind = 'm'";
        assert_eq!(ask(&server, "back", there), "mvfalse of_mvfalse owntrue");
        assert_eq!(ask(&server, "back", "select count(*) from a"), "9");
    }
    run(
        &server,
        "back",
        "grant select on a to zoo_reader; refresh materialized view mv; refresh materialized view of_mv",
    );
    assert_eq!(ask(&server, "back", "select count(*) from of_mv"), "9");
}

/// Who has stolen the key of a repository can put definitions of his own into it. They run on the server, as the role that
/// restores, and on no other machine.
#[test]
fn forged_definitions_can_do_no_more_than_the_role_that_restores() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    let place = format!("COMMENT ON TABLE public.a IS '{}';", "P".repeat(400));
    create(&server, "app");
    run(&server, "app", &format!("create table a (x text); {place} insert into a values ('b')"));
    run(&server, "postgres", "create role second login");
    let marker = scene.text_path("marker");
    let program = format!("COPY public.a FROM PROGRAM 'touch {marker}';");
    for (cluster, attack) in [
        ("shell", format!("\\! touch {marker}")),
        ("program", program.clone()),
        ("other", format!("SET SESSION AUTHORIZATION postgres; RESET ROLE; {program}")),
        (
            "output",
            format!("\\o |touch {marker}\n\\g |touch {marker}\n\\copy a from program 'touch {marker}'"),
        ),
    ] {
        // Of the same length, so that the archive is whole.
        let forged = format!("{:-<1$}", format!("{attack}\n--"), place.len());
        let (from, to) = (place.clone(), forged.replace('\\', "\\\\").replace('\n', "\\n"));
        let sed = scene.write("forge.sed", &format!("s#{from}#{to}#\n"));
        let folder = zoo::dump_that(&scene, &format!("\"$real\" \"$@\" | LC_ALL=C sed -f '{sed}'"));
        let url = zoo::url(&server, "app");
        let mut taking =
            scene.command(&["backup", "--mode", "logical", "--cluster", cluster, "--database-url", &url]);
        let taken = said(taking.env("PGKEEP_PG_BIN", folder));
        assert_eq!(taken.code(), 0, "{cluster}: {}", taken.all());
        for (number, way) in [&[][..], &["--clean"], &["--table", "a"]].into_iter().enumerate() {
            let back = format!("back_{cluster}_{number}");
            run(&server, "postgres", &format!("create database {back} owner second"));
            let more = [&["--no-owner", "--cluster", cluster], way].concat();
            let said = restore_as(&scene, &server, "second", &back, &more);
            assert_ne!(said.code(), 0, "{cluster} {way:?}: {}", said.all());
            assert!(!scene.path("marker").exists(), "{cluster} {way:?}");
        }
        // And psql, which does have commands that run programs.
        let file = format!("{cluster}.sql");
        scene.ok(&["export", "--no-owner", "--output", &file, "--cluster", cluster]);
        let text = std::fs::read_to_string(scene.path(&file)).unwrap();
        assert!(text.contains(&attack), "it is forged");
        run(&server, "postgres", &format!("create database exported_{cluster} owner second"));
        let into = url_as(&server, "second", &format!("exported_{cluster}"));
        let mut psql = server.command("psql");
        psql.args(["-X", "-q", "-d", &into, "-f"]).arg(scene.path(&file));
        said(scene.as_user(&mut psql));
        assert!(!scene.path("marker").exists(), "{cluster} by psql");
    }
    // The marker would tell: a superuser may.
    create(&server, "of_superuser");
    zoo::try_restore(&scene, &server, "of_superuser", &["--cluster", "program"]);
    assert!(scene.path("marker").exists());
}

/// Only Debian's build of those at hand has ICU.
#[test]
fn collations_of_icu_come_back() {
    let Some(scene) = zoo::scene(15) else { return };
    let server = zoo::server(&scene);
    let making =
        "encoding UTF8 locale 'C' locale_provider icu icu_locale 'de-u-co-phonebk' template template0";
    run(&server, "postgres", &format!("create database app {making}"));
    run(
        &server,
        "app",
        "create collation no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         create collation upper_first (provider = icu, locale = 'en-u-kf-upper'); \
         create table t (a text collate no_case primary key, b text collate upper_first, c text); create index on t (b, c); \
         insert into t values ('größe', 'a', 'Ärger'), ('Zebra', 'A', 'Azur'), ('apfel', 'b', 'Aerger')",
    );
    backup(&scene, &server, "app", &[]);
    let source = dump(&server, "app", &[]);
    run(&server, "postgres", &format!("create database back {making}"));
    create(&server, "swapped");
    restore(&scene, &server, "back", &[]);
    restore(&scene, &server, "back", &["--clean"]);
    restore(&scene, &server, "swapped", &["--swap", "--drop-old"]);
    let order = "select string_agg(c, ',' order by c) || (select count(*) from t where a = 'GRÖSSE' or a = 'GRÖßE') from t";
    let of_database =
        "select datlocprovider::text || daticulocale from pg_database where datname = current_database()";
    for back in ["back", "swapped"] {
        assert_same(&source, &dump(&server, back, &[]), back);
        assert_eq!(ask(&server, back, order), ask(&server, "app", order), "{back}");
        assert_eq!(ask(&server, back, of_database), "ide-u-co-phonebk", "{back}");
    }
}
