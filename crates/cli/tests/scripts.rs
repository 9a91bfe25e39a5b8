//! The two scripts for whoever has a `DATABASE_URL`: what they back up they bring back, and what they cannot they say.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use scene::{Said, Scene, number, sql, text};
use server::throwaway::Throwaway;

struct Scripts {
    scene: Scene,
    server: Throwaway,
}

impl Scripts {
    fn new() -> Self {
        let scene = Scene::any();
        let server = Throwaway::builder(&scene.binaries).setting("fsync", "off").start().unwrap();
        sql(&server, "create database my_app");
        for name in ["backup-db.sh", "restore-db.sh"] {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name);
            fs::copy(script, scene.path(name)).unwrap();
            scene.run_as.give(&scene.path(name)).unwrap();
        }
        scene.make_folder("backups");
        Self { scene, server }
    }

    fn in_app(&self, script: &str) {
        self.server.connect_to("my_app").unwrap().run_script(script).unwrap();
    }

    fn count(&self, query: &str) -> i64 {
        let rows = self.server.connect_to("my_app").unwrap().query_one(query, &[]).unwrap();
        rows.first().unwrap().parse(0).unwrap()
    }

    fn run(&self, script: &str, arguments: &[&str], answer: &str) -> Said {
        let host = self.server.socket_directory().display().to_string();
        let port = self.server.port();
        let user = text(&self.server, "select current_user::text");
        let mut command = Command::new(self.scene.path(script));
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("PGKEEP", self.scene.program()).env("PGKEEP_STATE_DIR", self.scene.path("state"));
        command.envs(std::env::vars().filter(|(name, _)| name.starts_with("PGKEEP_PG_BIN")));
        command.env("PSQL", self.server.binaries().program("psql"));
        command.env("BACKUP_DIR", self.scene.path("backups"));
        // A password that nobody asks for, with what has to be escaped in it.
        let url = format!("postgres://{user}:s%40cret%2F@/my_app?host={host}&port={port}");
        command.env("DATABASE_URL", url).current_dir(self.scene.path("backups"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.scene.as_user(&mut command);
        let mut child = command.spawn().unwrap();
        // Whoever asks nothing may have ended before.
        let _ = child.stdin.take().unwrap().write_all(answer.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { out: text(&output.stdout), err: text(&output.stderr), output }
    }

    fn dated(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.scene.path("backups")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> =
            files.filter(|path| path.to_string_lossy().ends_with(".sql.gz")).collect();
        files.sort();
        files
    }
}

#[test]
fn a_backup_comes_back_from_its_file_and_from_the_repository() {
    let scripts = Scripts::new();
    scripts.in_app("create table t (id serial primary key, b text); insert into t (b) values ('one'), ('two'); select lo_from_bytea(77, 'x')");
    let old = scripts.scene.path("backups/my_app_20200101_000000.sql.gz");
    fs::write(&old, "old").unwrap();
    let before = SystemTime::now() - Duration::from_secs(40 * 86_400);
    fs::File::options().write(true).open(&old).unwrap().set_modified(before).unwrap();
    scripts.scene.run_as.give(&old).unwrap();

    let first = scripts.run("backup-db.sh", &[], "");
    assert_eq!(first.code(), 0, "{}", first.all());
    assert!(first.out.contains("recovery key is in") && first.out.contains("my_app_"), "{}", first.all());
    assert!(scripts.scene.path("backups/pgkeep.recovery-key").exists());
    assert!(!old.exists(), "what is older than 30 days is gone");
    let dated = scripts.dated();
    assert_eq!(dated.len(), 1, "{dated:?}");
    let file = dated[0].to_str().unwrap().to_owned();
    let name = dated[0].file_name().unwrap().to_str().unwrap();
    let digits: String = name.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_eq!(digits, "my_app_99999999_999999.sql.gz");

    scripts.in_app("delete from t; insert into t (b) values ('three'); create table later (id int)");
    // Only `yes` goes on.
    let cancelled = scripts.run("restore-db.sh", &[&file], "y\n");
    assert!(
        cancelled.out.contains("Restore cancelled") && cancelled.err.contains("OVERWRITES"),
        "{cancelled:?}"
    );
    assert!(cancelled.err.contains("my_app") && !cancelled.err.contains("cret"), "{}", cancelled.err);
    assert_ne!(cancelled.code(), 0);
    assert_eq!(scripts.count("select count(*) from t where b = 'three'"), 1);

    for backup in [file.as_str(), "latest"] {
        scripts.in_app(
            "drop table if exists later; create table later (id int); insert into t (b) values ('lost')",
        );
        let restored = scripts.run("restore-db.sh", &[backup], "yes\n");
        assert_eq!(restored.code(), 0, "{backup}: {}", restored.all());
        assert!(restored.out.contains("migrations"), "{}", restored.out);
        assert_eq!(scripts.count("select count(*) from t where b in ('one', 'two')"), 2, "{backup}");
        assert_eq!(scripts.count("select count(*) from t"), 2, "{backup}");
        assert_eq!(scripts.count("select nextval('t_id_seq')"), 3, "{backup}");
        if backup != "latest" {
            assert_eq!(scripts.count("select (to_regclass('later') is null)::int"), 1, "public is made anew");
        }
        assert_eq!(scripts.count("select count(*) from pg_largeobject_metadata where oid = 77"), 1);
    }

    std::thread::sleep(Duration::from_millis(1100)); // files are named by the second
    let second = scripts.run("backup-db.sh", &[], "");
    assert_eq!(second.code(), 0, "{}", second.all());
    assert!(!second.out.contains("made the repository"), "{}", second.out);
    assert_eq!(scripts.dated().len(), 2);
}

#[test]
fn a_restore_that_fails_changes_nothing() {
    let scripts = Scripts::new();
    scripts.in_app("create table t (id int); insert into t values (1)");
    assert_eq!(scripts.run("backup-db.sh", &[], "").code(), 0);
    let ending = "--\n-- PostgreSQL database dump complete\n--\n";
    let wrong = "create table public.u (id int);\nselect 1/0;\n";
    let wrong = scripts.scene.write("wrong.sql", &format!("{wrong}{ending}"));
    let cut = scripts.scene.write("cut.sql", "create table public.u (id int);\n");
    for (file, words) in [(&wrong, "division by zero"), (&cut, "not the whole of a dump")] {
        let failed = scripts.run("restore-db.sh", &[file], "yes\n");
        assert_ne!(failed.code(), 0);
        assert!(failed.err.contains(words), "{}", failed.all());
        assert_eq!(scripts.count("select count(*) from t"), 1);
    }
    scripts.run("restore-db.sh", &["20200101T000000Z-logical"], "yes\n").refused(3, &["20200101T000000Z"]);
    let usage = scripts.run("restore-db.sh", &[], "");
    assert_eq!(usage.code(), 2);
    assert!(usage.err.contains("usage:"), "{}", usage.err);
    assert_ne!(scripts.run("restore-db.sh", &["nowhere.sql"], "yes\n").code(), 0);
    assert_eq!(number(&scripts.server, "select 1"), 1);
}

#[test]
fn a_database_with_nothing_in_it_is_an_error() {
    let scripts = Scripts::new();
    let empty = scripts.run("backup-db.sh", &[], "");
    assert_ne!(empty.code(), 0, "{}", empty.all());
    assert!(empty.err.contains("has nothing in it"), "{}", empty.all());
    assert_eq!(scripts.dated(), Vec::<PathBuf>::new());
}
