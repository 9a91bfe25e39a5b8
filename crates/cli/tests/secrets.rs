//! X07: secrets are in no command line, in no environment of a child, in no log, message or file but their own.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use scene::{Said, Scene, flush_wal, ledger};
use server::throwaway::{Binaries, StopMode};

/// The secrets of one scenario. Others run beside it, and each looks at all processes.
struct Secrets {
    passphrase: String,
    cloud: String,
    password: String,
}

impl Secrets {
    fn of(scenario: &str) -> Self {
        let secret = |word: &str| format!("canary{word}Of{scenario}5f1c9e");
        Self { passphrase: secret("Passphrase"), cloud: secret("Cloud"), password: secret("Password") }
    }

    fn canaries(&self) -> Canaries {
        Canaries([&self.passphrase, &self.cloud, &self.password].map(String::clone).to_vec())
    }
}

/// Everything that must not be seen; more is added as keys are made.
struct Canaries(Vec<String>);

impl Canaries {
    /// The secret in a file: its text, and its middle, in case that is shown in parts.
    fn add_file(&mut self, path: &Path) {
        let text = std::fs::read_to_string(path).unwrap().trim().to_owned();
        assert!(text.len() > 30, "{} holds no key", path.display());
        self.0.push(text[text.len() - 20..].to_owned());
        self.0.push(text);
    }

    fn found_in(&self, bytes: &[u8]) -> Option<&str> {
        self.0.iter().map(String::as_str).find(|canary| contains(bytes, canary.as_bytes()))
    }

    fn assert_not_in(&self, bytes: &[u8], place: &str) {
        assert_eq!(self.found_in(bytes), None, "in {place}");
    }

    fn assert_silent(&self, said: &Said, what: &str) {
        self.assert_not_in(said.all().as_bytes(), what);
    }

    /// Every file below, but those of these names.
    fn assert_not_below(&self, folder: &Path, but: &[&str]) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if but.contains(&name.to_str().unwrap_or_default()) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                self.assert_not_below(&path, but);
            } else if let Ok(bytes) = std::fs::read(&path) {
                self.assert_not_in(&bytes, &path.display().to_string());
            }
        }
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Looks at the command line and, if asked to, the environment of every process, again and again.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(BTreeSet<String>, BTreeSet<String>)>,
}

impl Watch {
    fn start(canaries: Vec<String>, files: &'static [&'static str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let canaries = Canaries(canaries);
            let (mut seen, mut leaks) = (BTreeSet::new(), BTreeSet::new());
            while !told.load(Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    for file in files {
                        let Ok(bytes) = std::fs::read(entry.path().join(file)) else { continue };
                        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
                        if let Some(canary) = canaries.found_in(&bytes) {
                            leaks.insert(format!("{canary} in {file}: {text}"));
                        }
                        if *file == "cmdline" && text.contains("pgkeep") {
                            seen.insert(text);
                        }
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            (seen, leaks)
        });
        Self { stop, thread }
    }

    /// Fails if anything was seen, or if nothing was looked at.
    fn finish(self, must_have_seen: &[&str]) {
        self.stop.store(true, Ordering::SeqCst);
        let (seen, leaks) = self.thread.join().unwrap();
        assert!(leaks.is_empty(), "{leaks:#?}");
        for words in must_have_seen {
            assert!(seen.iter().any(|line| line.contains(words)), "{words:?} was never seen: {seen:#?}");
        }
    }
}

/// A configuration that is full of secrets; the repository is in a folder.
fn scene_full_of(secrets: &Secrets) -> Scene {
    let (cloud, passphrase) = (&secrets.cloud, &secrets.passphrase);
    let config = format!(
        "repository = \"./repository\"\npassphrase_file = \"passphrase\"\nlog = \"trace\"\n\n\
         [s3]\naccess_key_id = \"test\"\nsecret_access_key = \"{cloud}\"\n"
    );
    let scene = Scene::with(Binaries::require(None).unwrap(), &config);
    scene.write("passphrase", &format!("{passphrase}\n"));
    scene
}

#[test]
fn x07_no_secret_leaves_its_file_during_a_whole_round() {
    let secrets = Secrets::of("WholeRound");
    let scene = scene_full_of(&secrets);
    let (mut canaries, password) = (secrets.canaries(), &secrets.password);
    canaries.assert_silent(&scene.init(), "init");
    scene.ok(&["key", "writer", "writer"]);
    for file in ["key", "recovery-key", "writer"] {
        canaries.add_file(&scene.path(file));
    }
    let server = scene.start_server(|builder| builder);
    // The password is in the configuration: in a command line it would be the caller's own leak.
    let host = server.socket_directory().display().to_string().replace('/', "%2F");
    let url = format!("database_url = \"postgresql://postgres:{password}@{host}/postgres\"\n");
    let config = std::fs::read_to_string(scene.config()).unwrap();
    scene.write("pgkeep.toml", &format!("{url}{config}"));

    let watch = Watch::start(canaries.0.clone(), &["cmdline", "environ"]);
    ledger::make(&server);
    for (number, arguments) in
        [&["backup"][..], &["backup", "--full"], &["backup", "--json"]].iter().enumerate()
    {
        ledger::add(&server, number as i64 * 10 + 1, number as i64 * 10 + 10);
        canaries.assert_silent(&scene.ok(arguments), "backup");
    }
    flush_wal(&server);
    let into = scene.text_path("restored");
    let asks: [&[&str]; 9] = [
        &["restore", "--into", &into, "--dry-run"],
        &["restore", "--into", &into],
        &["status"],
        &["list", "--json"],
        &["config", "--all"],
        &["config", "--all", "--json"],
        &["key", "list"],
        &["wal", "list"],
        &["init", "--recovery-key-file", "another"],
    ];
    for ask in asks {
        canaries.assert_silent(&scene.ok(ask), ask[0]);
    }
    let mut restored = scene.start_restored(&scene.path("restored"));
    ledger::assert_prefix(&restored, 30, "restored");
    watch.finish(&["pgkeep --config", "wal push", "wal get"]);

    canaries.assert_not_in(server.log().as_bytes(), "the server's log");
    canaries.assert_not_in(restored.log().as_bytes(), "the restored server's log");
    restored.stop(StopMode::Fast).unwrap();
    canaries.assert_not_below(
        &scene.path(""),
        &["key", "recovery-key", "writer", "passphrase", "pgkeep.toml", "pgkeep"],
    );
}

#[test]
fn x07_secrets_in_variables_are_in_no_command_line_and_no_message() {
    let mut scene = Scene::any();
    let secrets = Secrets::of("Variables");
    for (name, value) in [
        ("PGKEEP_PASSPHRASE", &secrets.passphrase[..]),
        ("AWS_SECRET_ACCESS_KEY", &secrets.cloud),
        ("PGPASSWORD", &secrets.password),
        ("PGKEEP_LOG", "trace"),
    ] {
        scene.variables.push((name.to_owned(), value.to_owned()));
    }
    let canaries = secrets.canaries();
    let watch = Watch::start(canaries.0.clone(), &["cmdline"]);
    canaries.assert_silent(&scene.init(), "init");
    let server = scene.start_server(|builder| builder);
    ledger::make(&server);
    canaries.assert_silent(&scene.ok(&["backup", "--database-url", &server.conninfo()]), "backup");
    canaries.assert_silent(&scene.ok(&["config", "--all"]), "config");
    let repository: &[&str] =
        &["list", "--repository", "s3://bucket/x", "--set", "s3.endpoint=http://127.0.0.1:1"];
    let said = scene.run(repository);
    assert_ne!(said.code(), 0);
    canaries.assert_silent(&said, "a store that is away");
    watch.finish(&["pgkeep"]);
}

#[test]
fn x07_mistakes_around_secrets_are_told_without_them() {
    let secrets = Secrets::of("Mistakes");
    let scene = scene_full_of(&secrets);
    let Secrets { passphrase, cloud, password } = &secrets;
    let canaries = secrets.canaries();
    let told = |arguments: &[&str], config: &str| {
        let said = scene::said(
            scene.bare_command().args(arguments).arg("--config").arg(scene.write("other.toml", config)),
        );
        assert_ne!(said.code(), 0, "{}", said.all());
        canaries.assert_silent(&said, config);
        assert_ne!(said.code(), 70, "{}", said.all());
        let json =
            scene::said(scene.bare_command().args(arguments).args(["--json", "--config", "other.toml"]));
        canaries.assert_silent(&json, config);
    };
    let place = "repository = \"./repository\"\n";
    scene.init();
    told(&["list"], &format!("passphrase = \"{passphrase}\n"));
    told(&["list"], &format!("{place}passphrse = \"{passphrase}\"\n"));
    told(&["list"], &format!("{place}passphrase = {passphrase}\n"));
    told(&["list"], &format!("{place}passphrase = [\"{passphrase}\"]\n"));
    told(&["list"], &format!("{place}[s3]\nsecret_acces_key = \"{cloud}\"\n"));
    told(&["list"], &format!("{place}workers = \"{password}\"\npassphrase = \"{passphrase}\"\n"));
    // The wrong passphrase, and something that is no key.
    told(&["list"], &format!("{place}passphrase = \"{passphrase}-not\"\n"));
    told(&["list"], &format!("{place}key = \"{passphrase}\"\n"));
    told(&["list"], &format!("{place}writer = \"{passphrase}\"\n"));
    let open = format!("{place}key_file = \"key\"\n");
    for url in [
        format!("postgresql://postgres:{password}@127.0.0.1:1/postgres"),
        format!("postgresql://postgres:{password}@[bad/postgres"),
        format!("host=/nowhere user=postgres password={password}"),
        format!("host=/nowhere pasword={password}"),
        format!("host=/nowhere password='{password}"),
    ] {
        told(&["backup"], &format!("{open}database_url = \"{url}\"\n"));
    }
    let said = scene.run(&["list", "--set", &format!("s3.secret_access_key={cloud}")]);
    canaries.assert_silent(said.refused(2, &["variable"]), "a secret in a command line");
    let said = scene.run(&["list", "--repository", &format!("s3://key:{cloud}@bucket/x")]);
    assert_ne!(said.code(), 0);
    canaries.assert_silent(&said, "a secret in a location");
}

/// pg_dump and pg_restore get the password in their environment, which only their user sees, and never as an argument.
#[test]
fn x07_logical_backups_and_restores_hand_no_secret_to_a_command_line() {
    let secrets = Secrets::of("Logical");
    let mut scene = scene_full_of(&secrets);
    scene.variables.push(("PGKEEP_PG_BIN".to_owned(), scene.binaries.bin_dir.display().to_string()));
    let canaries = secrets.canaries();
    canaries.assert_silent(&scene.init(), "init");
    let server = scene.start_server(|builder| builder);
    scene::sql(
        &server,
        "create table t as select g, md5(g::text) from generate_series(1, 1000) g; create index on t (g)",
    );
    server.connect().unwrap().run_script("create database back").unwrap();
    let host = server.socket_directory().display().to_string().replace('/', "%2F");
    let url = |database: &str| format!("postgresql://postgres:{}@{host}/{database}", secrets.password);
    let config = std::fs::read_to_string(scene.config()).unwrap();
    scene.write("pgkeep.toml", &format!("database_url = \"{}\"\n{config}", url("postgres")));
    let watch = Watch::start(canaries.0.clone(), &["cmdline"]);
    for _ in 0..3 {
        canaries.assert_silent(&scene.ok(&["backup", "--mode", "logical"]), "backup");
    }
    let into = |way: &[&str], database: &str| {
        let mut command = scene.command(&[&["restore", "--yes", "--into", "env:TARGET"], way].concat());
        scene::said(command.env("TARGET", url(database)))
    };
    for way in [&[][..], &["--clean"], &["--swap"]] {
        let said = into(way, "back");
        assert_eq!(said.code(), 0, "{}", said.all());
        canaries.assert_silent(&said, "restore");
    }
    let said = into(&[], "nowhere");
    assert_ne!(said.code(), 0);
    canaries.assert_silent(&said, "a database that is not there");
    watch.finish(&["restore --yes"]);
    canaries.assert_not_in(server.log().as_bytes(), "the server's log");
    canaries
        .assert_not_below(&scene.path(""), &["key", "recovery-key", "passphrase", "pgkeep.toml", "pgkeep"]);
}
