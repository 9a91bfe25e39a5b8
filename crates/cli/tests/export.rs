//! Exports of logical backups: what PostgreSQL's own programs make of them is what was backed up.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::path::Path;
use std::process::{Command, Stdio};

use pg::Major;
use scene::{Said, Scene, said, sql};
use server::throwaway::{Binaries, Throwaway};

/// Of everything that has a way of its own into an archive.
const CONTENT: &str = r#"
create schema "Other one";
create type mood as enum ('sad', 'ok');
create function twice(n int) returns int language sql immutable as 'select n * 2';
create sequence alone start 7;
create table customer (id serial primary key, name text not null, m mood default 'ok', twice int generated always as (2 * 21) stored);
create table "Other one"."Order ""x""" (
  id bigint generated always as identity, customer int references customer (id) on delete cascade,
  "what is it" text, raw bytea, at int default nextval('alone'), check (at > 0));
create table nothing ();
create table parted (id int, part text) partition by list (part);
create table parted_a partition of parted for values in ('a');
create table parted_b partition of parted for values in ('b');
create index on customer (lower(name));
create view evens as select id, name from customer where id % 2 = 0;
create materialized view first as select * from evens;
create view between_them as select * from first;
create materialized view "Second" as select count(*) as n from between_them;
create unique index on first (id);
insert into customer (name, m) select 'c' || n || repeat(md5(n::text), 20), 'sad' from generate_series(1, 2000) n;
insert into customer (name) values (E'tab\t backslash \\ newline\n quote '' \\. end'), ('größe'), (''), ('\.');
insert into "Other one"."Order ""x""" (customer, "what is it", raw)
  select id, nullif(name, ''), decode(md5(name), 'hex') from customer;
insert into nothing default values;
insert into parted select n, case when n % 3 = 0 then 'b' else 'a' end from generate_series(1, 100) n;
select setval('alone', 5000, false), lo_from_bytea(4711, 'large'), lo_from_bytea(4712, decode(repeat('00ff', 20000), 'hex'));
comment on large object 4711 is 'a comment';
comment on table customer is 'people';
create function note() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger noted before update on customer for each row execute function note();
alter table customer enable row level security;
create policy all_of_them on customer using (true);
grant select on customer to public;
refresh materialized view first;
refresh materialized view "Second";
"#;

fn scene(major: u16) -> Option<(Scene, Throwaway)> {
    let mut scene = Scene::of(major)?;
    // Where PostgreSQL's programs are: nothing else of our environment reaches the program.
    scene.variables.extend(std::env::vars().filter(|(name, _)| name.starts_with("PGKEEP_PG_BIN")));
    scene.init();
    let server = Throwaway::builder(&scene.binaries).setting("fsync", "off").start().unwrap();
    sql(&server, "create database app");
    server.connect_to("app").unwrap().run_script(CONTENT).unwrap();
    backup(&scene, &server, "app");
    Some((scene, server))
}

fn backup(scene: &Scene, server: &Throwaway, database: &str) {
    scene.ok(&["backup", "--mode", "logical", "--database-url", &server.conninfo_for(database)]);
}

/// What pg_dump says of a database, its rows in an order that does not depend on where they lie.
fn dumped(server: &Throwaway, database: &str, more: &[&str]) -> String {
    let dump = said(server.command("pg_dump").args(more).arg(database));
    assert_eq!(dump.code(), 0, "{}", dump.err);
    let (mut text, mut rows, mut in_rows) = (String::new(), Vec::new(), false);
    for line in dump.out.lines() {
        if in_rows && line == "\\." {
            rows.sort_unstable();
            rows.drain(..).for_each(|row: &str| text.extend([row, "\n"]));
        }
        in_rows = (in_rows || line.starts_with("COPY ")) && line != "\\.";
        let is_random = line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
        match line {
            _ if is_random || line.starts_with("-- Dumped") => {}
            row if in_rows && !row.starts_with("COPY ") => rows.push(row),
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

fn new_database(server: &Throwaway, name: &str) {
    sql(server, &format!("create database {name}"));
}

/// Runs a client program, which must succeed.
fn ok(command: &mut Command) -> Said {
    let said = said(command);
    assert_eq!(said.code(), 0, "{command:?}: {}{}", said.out, said.err);
    said
}

fn psql(server: &Throwaway, database: &str, file: &Path) {
    ok(server.command("psql").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"]).arg(file));
}

fn unpacked(program: &str, from: &Path, to: &Path) {
    let out = std::fs::File::create(to).unwrap();
    ok(Command::new(program).arg("-dc").arg(from).stdout(out));
}

/// The kinds and names in the list of an archive, sorted.
fn kinds(list: &str) -> Vec<String> {
    let lines = list.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
    // `215; 1259 16385 TABLE public name owner`: the number and the catalogue are of no interest.
    let kinds = lines.map(|line| line.split_once("; ").unwrap().1.split_once(' ').unwrap().1.to_owned());
    let mut kinds: Vec<String> = kinds.collect();
    kinds.sort();
    kinds
}

fn come_back(major: u16) {
    let Some((scene, server)) = scene(major) else { return };
    let expected = dumped(&server, "app", &[]);
    assert!(expected.contains("größe") && expected.contains("4711"), "{expected}");

    scene.ok(&["export", "--format", "custom", "--output", "app.dump"]);
    let archive = scene.path("app.dump");
    let list = ok(server.command("pg_restore").arg("-l").arg(&archive)).out;
    // As many as pg_dump itself has, of each kind.
    let theirs = scene.path("theirs.dump");
    ok(server.command("pg_dump").args(["-Fc", "-d", "app", "-f"]).arg(&theirs));
    assert_eq!(kinds(&list), kinds(&ok(server.command("pg_restore").arg("-l").arg(&theirs)).out));

    new_database(&server, "jobs");
    ok(server.command("pg_restore").args(["-e", "-j2", "-d", "jobs"]).arg(&archive));
    assert_eq!(dumped(&server, "jobs", &[]), expected);

    new_database(&server, "piped");
    let stdin = || Stdio::from(std::fs::File::open(&archive).unwrap());
    let mut cat = Command::new("cat").stdin(stdin()).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = cat.stdout.take().unwrap();
    ok(server.command("pg_restore").args(["-e", "-d", "piped"]).stdin(pipe));
    cat.wait().unwrap();
    assert_eq!(dumped(&server, "piped", &[]), expected);

    new_database(&server, "one");
    sql_in(&server, "one", "create type mood as enum ('sad', 'ok')");
    ok(server.command("pg_restore").args(["-e", "-t", "customer", "-d", "one"]).arg(&archive));
    // Its sequence is for `-t` another thing.
    let rows = |database: &str| {
        let dump = dumped(&server, database, &["-a", "-t", "customer"]);
        let is_row = |line: &&str| !line.is_empty() && !line.starts_with("--") && !line.contains("setval");
        dump.lines().filter(is_row).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(rows("one"), rows("app"));

    plain_comes_back(&scene, &server, &expected);
}

fn plain_comes_back(scene: &Scene, server: &Throwaway, expected: &str) {
    for (name, unpack) in [("app.sql", None), ("app.sql.gz", Some("gzip")), ("app.sql.zst", Some("zstd"))] {
        scene.ok(&["export", "--output", name]);
        let mut file = scene.path(name);
        if let Some(program) = unpack {
            unpacked(program, &file, &scene.path("unpacked.sql"));
            file = scene.path("unpacked.sql");
        }
        sql(server, "drop database if exists plain");
        new_database(server, "plain");
        psql(server, "plain", &file);
        assert_eq!(dumped(server, "plain", &[]), expected, "{name}");
    }
    let streamed = scene.ok(&["export", "--output", "-"]);
    let without =
        |text: &str| text.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n");
    assert_eq!(without(&streamed.out), without(&std::fs::read_to_string(scene.path("app.sql")).unwrap()));
    assert!(streamed.err.contains("compared with the backup"), "{}", streamed.err);
}

fn sql_in(server: &Throwaway, database: &str, script: &str) {
    server.connect_to(database).unwrap().run_script(script).unwrap();
}

#[test]
fn exports_come_back_on_15() {
    come_back(15);
}

#[test]
fn exports_come_back_on_16() {
    come_back(16);
}

#[test]
fn exports_come_back_on_17() {
    come_back(17);
}

#[test]
fn exports_come_back_on_18() {
    come_back(18);
}

#[test]
fn an_export_of_15_goes_into_every_later_major() {
    let Some((scene, source)) = scene(15) else { return };
    scene.ok(&["export", "--format", "custom", "--output", "app.dump"]);
    scene.ok(&["export", "--output", "app.sql"]);
    for major in [16, 17, 18] {
        let Some(binaries) = Binaries::find(Some(Major::new(major))) else { panic!("PostgreSQL {major}") };
        let server = Throwaway::builder(&binaries).setting("fsync", "off").start().unwrap();
        let rows = |at: &Throwaway, database: &str| {
            let at = at.conninfo_for(database);
            let dump =
                ok(server.command("pg_dump").args(["-a", "--inserts", "--rows-per-insert=1", "-d", &at]));
            let mut lines: Vec<String> = dump.out.lines().map(str::to_owned).collect();
            lines.retain(|line| line.starts_with("INSERT") || line.contains("setval"));
            lines.sort();
            lines
        };
        let expected = rows(&source, "app");
        assert!(expected.len() > 4000, "{}", expected.len());
        new_database(&server, "archive");
        ok(server.command("pg_restore").args(["-e", "-j2", "-d", "archive"]).arg(scene.path("app.dump")));
        assert_eq!(rows(&server, "archive"), expected, "{major}");
        new_database(&server, "plain");
        psql(&server, "plain", &scene.path("app.sql"));
        assert_eq!(rows(&server, "plain"), expected, "{major}");
    }
}

#[test]
fn a_part_is_exported_with_what_belongs_to_it() {
    let Some((scene, server)) = scene(17) else { return };
    let warned = scene.ok(&["export", "--output", "one.sql", "--table", "Other one.*"]);
    assert!(warned.err.contains("FK CONSTRAINT") && warned.err.contains("left out"), "{}", warned.err);
    new_database(&server, "one");
    sql_in(&server, "one", "create schema \"Other one\"");
    psql(&server, "one", &scene.path("one.sql"));
    let rows = |database: &str| dumped(&server, database, &["-a", "-n", "\"Other one\""]);
    assert_eq!(rows("one"), rows("app"));

    scene.ok(&["export", "--output", "customer.dump", "--format", "custom", "--table", "customer"]);
    let list = ok(server.command("pg_restore").arg("-l").arg(scene.path("customer.dump"))).out;
    for part in
        ["TABLE DATA public customer", "SEQUENCE SET public customer_id_seq", "POLICY", "TRIGGER", "ACL"]
    {
        assert!(list.contains(part), "{part}: {list}");
    }
    assert!(!list.contains("BLOB") && !list.contains("VIEW") && !list.contains("Order"), "{list}");

    let before = dumped(&server, "app", &["-n", "public"]);
    scene.ok(&["export", "--output", "public.sql", "--schema", "public", "--single-transaction"]);
    new_database(&server, "only_public");
    psql(&server, "only_public", &scene.path("public.sql"));
    assert_eq!(dumped(&server, "only_public", &["-n", "public"]), before);

    // Over what is there, by itself.
    let whole = dumped(&server, "app", &[]);
    let drops = ["--clean", "--no-owner", "--no-privileges", "--globals", "--single-transaction"];
    scene.ok(&[&["export", "--output", "clean.sql"][..], &drops].concat());
    let text = std::fs::read_to_string(scene.path("clean.sql")).unwrap();
    assert!(text.contains("CREATE ROLE") && !text.contains("GRANT SELECT") && !text.contains("OWNER TO"));
    let without_globals = text.split_once("-- PostgreSQL database dump\n").unwrap().1;
    scene.write("rest.sql", &format!("-- {without_globals}"));
    psql(&server, "app", &scene.path("rest.sql"));
    assert_eq!(dumped(&server, "app", &["-x"]), dumped_without_acl(&whole, &server));
}

/// The dump of a database that was made anew from the whole export, without privileges.
fn dumped_without_acl(whole: &str, server: &Throwaway) -> String {
    new_database(server, "again");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("whole.sql");
    std::fs::write(&file, whole).unwrap();
    psql(server, "again", &file);
    dumped(server, "again", &["-x"])
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let Some((scene, _server)) = scene(16) else { return };
    scene.ok(&["export", "--output", "app.sql"]);
    let first = std::fs::read(scene.path("app.sql")).unwrap();
    scene.run(&["export", "--output", "app.sql"]).refused(6, &["is there already", "--force"]);
    scene.ok(&["export", "--output", "app.sql", "--force", "--schema", "Other one"]);
    assert_ne!(std::fs::read(scene.path("app.sql")).unwrap(), first);

    let custom = ["export", "--format", "custom", "--output"];
    scene.run(&[&custom[..], &["app.gz"]].concat()).refused(2, &["pg_restore takes no archive"]);
    scene.run(&[&custom[..], &["app.dump", "--clean"]].concat()).refused(2, &["for pg_restore to decide"]);
    scene.run(&["export", "--output", "x.sql", "--table", "nowhere"]).refused(2, &["nowhere"]);
    scene.run(&["export", "20200101", "--output", "x.sql"]).refused(3, &["20200101"]);

    // Every byte that is stored is turned: what is read is not what was written.
    let packs =
        std::process::Command::new("find").arg(scene.path("repository/packs")).args(["-type", "f"]).output();
    for pack in String::from_utf8(packs.unwrap().stdout).unwrap().lines() {
        let mut bytes = std::fs::read(pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::remove_file(pack).unwrap();
        std::fs::write(pack, bytes).unwrap();
        scene.run_as.give(Path::new(pack)).unwrap();
    }
    for format in ["plain", "custom"] {
        let failed = scene.run(&["export", "--format", format, "--output", "broken"]);
        assert_ne!(failed.code(), 0, "{}", failed.all());
        assert!(!scene.path("broken").exists() && !scene.path("broken.part").exists(), "{format}");
    }
}
