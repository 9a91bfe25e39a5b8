//! Logical backups of tables in which rows change here and there: each generation stores about what changed, comes back exactly, and
//! is verified, pruned, copied and exported like the first.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;
mod zoo;

use std::path::{Path, PathBuf};

use scene::{Scene, said};
use serde_json::Value;
use server::throwaway::Throwaway;
use zoo::{ask, backup, create, restore, run};

/// Rows that hardly compress, in more than one span of 16 MiB; and such as are longer than a piece.
const BIG: &str = "create table big (id int primary key, x text); \
    insert into big select g, (select string_agg(md5((g * 16 + i)::text), '') from generate_series(1, 16) i) \
        from generate_series(1, 40000) g; \
    create table long (id int primary key, x text); \
    insert into long select g, (select string_agg(md5((g * 20000 + i)::text), '') from generate_series(1, 20000) i) \
        from generate_series(1, 3) g; \
    create table empty (id int)";
const SUM: &str = "select (select count(*) || md5(string_agg(md5(b::text), '' order by id)) from big b) \
    || (select md5(string_agg(md5(l::text), '' order by id)) from long l) || (select count(*) from empty)";

fn big() -> Option<(Scene, Throwaway)> {
    let scene = zoo::scene(15)?;
    let server = zoo::server(&scene);
    create(&server, "app");
    run(&server, "app", BIG);
    Some((scene, server))
}

/// A hundredth of the rows, wherever they are; what they leave is used by the next.
fn change(server: &Throwaway, generation: u32) {
    let sql = format!("update big set x = reverse(x) where hashint4(id * 31 + {generation}) % 100 = 0");
    run(server, "app", &sql);
    run(server, "app", "vacuum big");
}

fn stored(backup: &Value) -> u64 {
    backup["bytes_stored"].as_u64().unwrap()
}

fn id(backup: &Value) -> String {
    backup["id"].as_str().unwrap().to_owned()
}

fn assert_restores(scene: &Scene, server: &Throwaway, id: &str, sum: &str, more: &[&str]) {
    create(server, "back");
    restore(scene, server, "back", &[&[id], more].concat());
    assert!(ask(server, "back", SUM) == sum, "{id}");
    run(server, "postgres", "drop database back");
}

fn packs(folder: &Path) -> Vec<PathBuf> {
    let inner = |folder: std::fs::DirEntry| std::fs::read_dir(folder.path()).unwrap();
    let folders = std::fs::read_dir(folder.join("repository/packs")).unwrap();
    folders.flat_map(|folder| inner(folder.unwrap())).map(|file| file.unwrap().path()).collect()
}

#[test]
fn rows_changed_at_random_cost_about_themselves_in_each_generation() {
    let Some((scene, server)) = big() else { return };
    let first = stored(&backup(&scene, &server, "app", &[]));
    let mut taken = Vec::new();
    let more = [
        "update long set x = 'y' || x where id = 2",
        "insert into empty values (1)",
        "update big set x = 'first' where id = 1",
        "delete from big where id = 40000",
        "truncate empty",
        "update big set x = x || 'last' where id = 39999",
    ];
    for (generation, more) in more.iter().enumerate() {
        change(&server, generation as u32);
        let one = backup(&scene, &server, "app", &[]);
        // The long row is new from its first byte on, and its pieces are.
        let limit = if generation == 1 { 9 } else { 5 };
        assert!(stored(&one) * 100 <= first * limit, "{generation}: {} of {first}", stored(&one));
        taken.push((id(&one), ask(&server, "app", SUM)));
        run(&server, "app", more);
    }
    for (id, sum) in taken.iter().step_by(2) {
        assert_restores(&scene, &server, id, sum, &[]);
    }
    scene.ok(&["verify"]);

    let [other, key] = zoo::other_repository(&scene);
    let own = ["--repository", &other, "--key-file", &key];
    let copy = ["copy", "--to", &other, "--to-key-file", &key];
    let copied = scene.json(&copy)["report"]["stored_bytes"].as_u64().unwrap();
    assert!(copied < first * 3 / 2, "{copied} of {first}: each page once");
    let (last, sum) = taken.last().unwrap();
    assert_restores(&scene, &server, last, sum, &own);
    scene.ok(&[&["verify"][..], &own].concat());
    // What both have is found again.
    run(&server, "app", "update big set x = 'one' where id = 77");
    let next = backup(&scene, &server, "app", &[]);
    assert!(scene.json(&copy)["report"]["stored_bytes"].as_u64().unwrap() * 50 < first);
    assert_restores(&scene, &server, &id(&next), &ask(&server, "app", SUM), &own);

    scene.ok(&["expire", "--set", "retention.keep=2", "--set", "retention.keep_at_least=2"]);
    for _ in 0..3 {
        scene.ok(&["prune", "--grace", "0s"]);
    }
    scene.ok(&["check"]);
    scene.ok(&["verify"]);
    assert_restores(&scene, &server, last, sum, &[]);
    change(&server, 99);
    let after = backup(&scene, &server, "app", &[]);
    assert!(stored(&after) * 100 <= first * 5, "after prune: {} of {first}", stored(&after));
    let sum = ask(&server, "app", SUM);
    assert_restores(&scene, &server, &id(&after), &sum, &[]);

    scene.ok(&["export", &id(&after), "--format", "plain", "--output", &scene.text_path("rows.sql")]);
    create(&server, "exported");
    let file = scene.text_path("rows.sql");
    let mut psql = server.command("psql");
    let taken = said(
        psql.args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", "exported"])
            .stdin(std::fs::File::open(&file).unwrap()),
    );
    assert_eq!(taken.code(), 0, "{}", taken.err);
    assert!(ask(&server, "exported", SUM) == sum, "the export");
}

#[test]
fn a_table_that_was_rewritten_is_hardly_read_back() {
    let Some((scene, server)) = big() else { return };
    let first = backup(&scene, &server, "app", &[]);
    run(
        &server,
        "app",
        "create table other as select * from big order by md5(id::text); drop table big; \
        alter table other rename to big",
    );
    let url = zoo::url(&server, "app");
    let said = scene.json(&["backup", "--mode", "logical", "--database-url", &url]);
    let read = said["bytes_read_back"].as_u64().unwrap();
    assert!(read * 2 < stored(&first), "{read} of {} are read back", stored(&first));
    assert_restores(&scene, &server, &id(&said["backup"]), &ask(&server, "app", SUM), &[]);
}

#[test]
fn without_a_key_or_with_lost_packs_whole_pieces_are_stored() {
    let Some((scene, server)) = big() else { return };
    let first = stored(&backup(&scene, &server, "app", &[]));
    change(&server, 1);
    let there = packs(scene.path("").as_path());
    backup(&scene, &server, "app", &[]);

    // A writer on another host, which has no caches.
    scene.ok(&["key", "writer", "writer"]);
    let config = std::fs::read_to_string(scene.config()).unwrap();
    let writer = "repository = \"./repository\"\nwriter_file = \"writer\"\nstate_dir = \"elsewhere\"\n";
    scene.write("pgkeep.toml", writer);
    change(&server, 2);
    let written = backup(&scene, &server, "app", &[]);
    scene.write("pgkeep.toml", &config);
    assert_restores(&scene, &server, &id(&written), &ask(&server, "app", SUM), &[]);

    // What came with the second backup is lost, and named no more.
    for pack in packs(scene.path("").as_path()).iter().filter(|pack| !there.contains(pack)) {
        std::fs::remove_file(pack).unwrap();
    }
    change(&server, 3);
    let url = zoo::url(&server, "app");
    let said = scene.json(&["backup", "--mode", "logical", "--database-url", &url]);
    assert!(said["warnings"].to_string().contains("stored again"), "{said}");
    let after = &said["backup"];
    assert_restores(&scene, &server, &id(after), &ask(&server, "app", SUM), &[]);

    // Bytes that do not open.
    for pack in packs(scene.path("").as_path()) {
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[10] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
    }
    change(&server, 4);
    let damaged = backup(&scene, &server, "app", &[]);
    assert!(stored(&damaged) < first * 2, "{damaged}");
}
