//! Databases with one of everything in them, and how they are backed up, restored and compared.
#![allow(dead_code)] // each file of scenarios uses a part of it

use std::path::PathBuf;

use serde_json::Value;
use server::connection::Connection;
use server::throwaway::Throwaway;

use super::scene::{Said, Scene, said};

/// For every major.
pub const ZOO: &str = include_str!("zoo.sql");
/// For 18 and later.
pub const SINCE_18: &str = include_str!("since_18.sql");

/// A scene whose program finds the client programs of that major.
pub fn scene(major: u16) -> Option<Scene> {
    let mut scene = Scene::of(major)?;
    let variable = format!("PGKEEP_PG_BIN_{major}");
    if let Some(folder) = std::env::var_os(&variable) {
        scene.variables.push((variable, folder.into_string().unwrap()));
    }
    scene.init();
    Some(scene)
}

/// A server of the scene, without WAL that anybody keeps.
pub fn server(scene: &Scene) -> Throwaway {
    let server = Throwaway::builder(&scene.binaries)
        .setting("fsync", "off")
        .setting("autovacuum", "off")
        .setting("max_locks_per_transaction", "256")
        .start()
        .unwrap();
    run(&server, "postgres", "create role zoo_reader; create role zoo_owner");
    server
}

/// Makes another repository; where it and its key are.
pub fn other_repository(scene: &Scene) -> [String; 2] {
    let [other, key, paper] = ["other", "other-key", "paper"].map(|name| scene.text_path(name));
    let own = ["--repository", &other, "--key-file", &key];
    scene.ok(&[&["init", "--no-server", "--recovery-key-file", &paper][..], &own].concat());
    [other, key]
}

/// Runs SQL in a database.
pub fn run(server: &Throwaway, database: &str, sql: &str) {
    connect(server, database).run_script(sql).unwrap_or_else(|error| panic!("{error}: {sql:.400}"));
}

pub fn connect(server: &Throwaway, database: &str) -> Connection {
    server.connect_to(database).unwrap()
}

/// The one text that a query gives.
pub fn ask(server: &Throwaway, database: &str, sql: &str) -> String {
    let rows = connect(server, database).query_one(sql, &[]).unwrap();
    rows.first().unwrap().text(0).unwrap().unwrap_or_default().to_owned()
}

/// A new database with all that there is.
pub fn fill(server: &Throwaway, database: &str, major: u16) {
    create(server, database);
    run(server, database, ZOO);
    if major >= 18 {
        run(server, database, SINCE_18);
    }
}

pub fn create(server: &Throwaway, database: &str) {
    run(server, "postgres", &format!("create database {database}"));
}

/// The address of a database, as `--into` takes it.
pub fn url(server: &Throwaway, database: &str) -> String {
    let host = server.socket_directory().display().to_string().replace('/', "%2F");
    format!("postgres://postgres@{host}:{}/{database}", server.port())
}

/// Takes a logical backup.
pub fn backup(scene: &Scene, server: &Throwaway, database: &str, more: &[&str]) -> Value {
    let url = url(server, database);
    let said = scene.json(&[&["backup", "--mode", "logical", "--database-url", &url], more].concat());
    said["backup"].clone()
}

/// What may fail.
pub fn try_backup(scene: &Scene, server: &Throwaway, database: &str, more: &[&str]) -> Said {
    let url = url(server, database);
    scene.run(&[&["backup", "--mode", "logical", "--database-url", &url], more].concat())
}

pub fn restore(scene: &Scene, server: &Throwaway, database: &str, more: &[&str]) -> Said {
    scene.ok(&[&["restore", "--yes", "--into", &url(server, database)], more].concat())
}

pub fn try_restore(scene: &Scene, server: &Throwaway, database: &str, more: &[&str]) -> Said {
    scene.run(&[&["restore", "--yes", "--into", &url(server, database)], more].concat())
}

/// What `pg_dump` says of a database, with the rows of each table in one order; bytes that are no text stand for themselves.
pub fn dump(server: &Throwaway, database: &str, arguments: &[&str]) -> Vec<Vec<u8>> {
    let mut command = server.command("pg_dump");
    command.args(["--dbname", database]).args(arguments).current_dir("/");
    server.run_as().apply(&mut command);
    let said = said(&mut command);
    assert!(said.output.status.success(), "{}", said.err);
    let (mut lines, mut rows): (Vec<Vec<u8>>, Option<Vec<Vec<u8>>>) = (Vec::new(), None);
    for line in said.output.stdout.split(|byte| *byte == b'\n') {
        if line.starts_with(b"\\restrict") || line.starts_with(b"\\unrestrict") {
            continue;
        }
        if line == b"\\." {
            let mut block = rows.take().unwrap();
            block.sort();
            lines.append(&mut block);
        }
        rows.as_mut().unwrap_or(&mut lines).push(line.to_vec());
        if line.starts_with(b"COPY ") {
            rows = Some(Vec::new());
        }
    }
    lines
}

/// Fails with the first lines that differ.
pub fn assert_same(source: &[Vec<u8>], restored: &[Vec<u8>], what: &str) {
    let differs = source.iter().zip(restored).position(|(a, b)| a != b);
    if let Some(at) = differs {
        let around = |lines: &[Vec<u8>]| {
            let near = &lines[at.saturating_sub(4)..(at + 4).min(lines.len())];
            let text = String::from_utf8_lossy(&near.join(&b'\n')).into_owned();
            text.chars().take(3000).collect::<String>()
        };
        panic!("{what}: line {at} differs:\n{}\n-- restored --\n{}", around(source), around(restored));
    }
    assert_eq!(source.len(), restored.len(), "{what}: one dump is longer");
}

/// Names of the server's databases.
pub fn databases(server: &Throwaway) -> Vec<String> {
    let rows = server.connect().unwrap().query("select datname from pg_database order by datname", &[]);
    rows.unwrap().iter().map(|row| row.required(0).unwrap().to_owned()).collect()
}

/// A folder whose `pg_dump` does this, in a shell; `$real` is the true one.
pub fn dump_that(scene: &Scene, script: &str) -> PathBuf {
    program_that(scene, "pg_dump", script)
}

/// The same of another program.
pub fn program_that(scene: &Scene, program: &str, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = PathBuf::from(scene.make_folder("programs"));
    let real = scene.binaries.program(program);
    let text = format!(
        "#!/bin/sh\nreal='{}'\n[ \"$1\" = --version ] && exec \"$real\" --version\n{script}\n",
        real.display()
    );
    scene.write(&format!("programs/{program}"), &text);
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.join(program), mode).unwrap();
    folder
}
