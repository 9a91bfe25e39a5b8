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
    /// Given to every call, beside what each needs.
    variables: Vec<(&'static str, String)>,
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
        Self { scene, server, variables: Vec::new() }
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
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
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
    // A file runs nothing on this machine.
    let marker = scripts.scene.text_path("marker");
    let hostile = format!("\\! touch {marker}\n\\o |touch {marker}\n{ending}");
    let hostile = scripts.scene.write("hostile.sql", &hostile);
    let wrong = scripts.scene.write("wrong.sql", &format!("{wrong}{ending}"));
    let cut = scripts.scene.write("cut.sql", "create table public.u (id int);\n");
    for (file, words) in
        [(&wrong, "division by zero"), (&cut, "not the whole of a dump"), (&hostile, "restricted")]
    {
        let failed = scripts.run("restore-db.sh", &[file], "yes\n");
        failed.refused(1, &[words]);
        assert!(!Path::new(&marker).exists(), "{}", failed.all());
        assert_eq!(scripts.count("select count(*) from t"), 1);
    }
    scripts.run("restore-db.sh", &["20200101T000000Z-logical"], "yes\n").refused(3, &["20200101T000000Z"]);
    let usage = scripts.run("restore-db.sh", &[], "");
    assert_eq!(usage.code(), 2);
    assert!(usage.err.contains("usage:"), "{}", usage.err);
    assert_ne!(scripts.run("restore-db.sh", &["nowhere.sql"], "yes\n").code(), 0);
    assert_eq!(number(&scripts.server, "select 1"), 1);
}

/// Runs boto3 on the test's S3 server; what it prints.
fn on_s3(endpoint: &str, script: &str) -> String {
    let python = std::env::var("PGKEEP_TEST_PYTHON").unwrap();
    let head = format!(
        "import boto3; s3 = boto3.client('s3', endpoint_url='{endpoint}', region_name='us-east-1', \
         aws_access_key_id='test', aws_secret_access_key='test')"
    );
    let said = scene::said(Command::new(python).args(["-c", &format!("{head}\n{script}")]));
    assert_eq!(said.code(), 0, "{}", said.err);
    said.out
}

#[test]
fn with_a_bucket_the_repository_is_the_upload() {
    let Ok(endpoint) = std::env::var("PGKEEP_TEST_S3_ENDPOINT") else {
        assert!(std::env::var("PGKEEP_TEST_SKIP_REMOTE").is_ok(), "no S3 server: ./test starts one");
        eprintln!("NOT TESTED: S3, because PGKEEP_TEST_SKIP_REMOTE says so");
        return;
    };
    let mut scripts = Scripts::new();
    scripts.in_app("create table t (id serial primary key, b text); insert into t (b) values ('one')");
    let unique = tempfile::Builder::new().prefix("scripts").rand_bytes(12).tempdir().unwrap();
    let bucket = unique.path().file_name().unwrap().to_str().unwrap().to_lowercase();
    on_s3(&endpoint, &format!("s3.create_bucket(Bucket='{bucket}')"));
    scripts.variables = vec![
        ("AWS_S3_BUCKET", bucket.clone()),
        ("AWS_ENDPOINT_URL", endpoint.clone()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        // Days cannot be waited for: so many backups instead of 30 days of them.
        ("PGKEEP_RETENTION_KEEP", "1".to_owned()),
        ("PGKEEP_RETENTION_KEEP_AT_LEAST", "1".to_owned()),
    ];
    let list = || {
        let listing =
            format!("print('\\n'.join(o['Key'] for o in s3.list_objects_v2(Bucket='{bucket}')['Contents']))");
        on_s3(&endpoint, &listing).lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let manifests = || list().into_iter().filter(|key| key.starts_with("backups/clusters/my_app/backups/"));
    let first = scripts.run("backup-db.sh", &[], "");
    assert_eq!(first.code(), 0, "{}", first.all());
    assert!(list().iter().all(|key| key.starts_with("backups/")), "{:?}", list());
    let uploaded: Vec<String> = manifests().collect();
    assert_eq!(uploaded.len(), 1);
    assert_eq!(scripts.dated().len(), 1);
    assert!(!scripts.scene.path("backups/pgkeep").exists(), "no second repository here");

    scripts.in_app("insert into t (b) values ('two')");
    std::thread::sleep(Duration::from_millis(1100)); // files are named by the second
    let second = scripts.run("backup-db.sh", &[], "");
    assert_eq!(second.code(), 0, "{}", second.all());
    assert!(manifests().count() == 1 && manifests().all(|key| key != uploaded[0]), "the first was expired");
    assert_eq!(scripts.dated().len(), 2, "files go by their age");
    scripts.in_app("delete from t");
    assert_eq!(scripts.run("restore-db.sh", &["latest"], "yes\n").code(), 0);
    assert_eq!(scripts.count("select count(*) from t"), 2);

    // What cannot be uploaded is an error, makes no dated file, and removes none.
    scripts.variables[0].1 = "no-such-bucket-of-ours".to_owned();
    let failed = scripts.run("backup-db.sh", &[], "");
    assert_ne!(failed.code(), 0, "{}", failed.all());
    assert_eq!((scripts.dated().len(), manifests().count()), (2, 1));
}

#[test]
fn a_database_with_nothing_in_it_is_an_error() {
    let scripts = Scripts::new();
    let empty = scripts.run("backup-db.sh", &[], "");
    assert_ne!(empty.code(), 0, "{}", empty.all());
    assert!(empty.err.contains("has nothing in it"), "{}", empty.all());
    assert_eq!(scripts.dated(), Vec::<PathBuf>::new());
}
