//! The real program, run as a user or PostgreSQL would run it.

// Whatever cannot be set up fails the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with a repository to be, and nothing of the environment.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A place with a repository in it.
    fn with_repository() -> Self {
        let place = Self::new();
        assert_eq!(place.run("init --no-server --recovery-key-file recovery --write-config pgkeep.toml -r ./repository --key-file key --set state_dir=state").0, 0);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgkeep"));
        command.env_clear().env("HOME", self.folder.path()).current_dir(self.folder.path());
        command.args(line.split_whitespace());
        command
    }

    /// Exit code, standard output, standard error.
    fn run(&self, line: &str) -> (i32, String, String) {
        told(&self.command(line).output().unwrap())
    }

    fn json(&self, line: &str) -> serde_json::Value {
        let (code, out, err) = self.run(&format!("{line} --json"));
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {code} {error}: {out}{err}"))
    }

    fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut waiting = vec![self.path("repository")];
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { waiting.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn help_of_every_command_is_as_it_was_read() {
    let place = Place::new();
    let commands = [
        "",
        "init",
        "backup",
        "restore",
        "wal",
        "wal push",
        "wal get",
        "wal list",
        "wal receive",
        "list",
        "status",
        "info",
        "copy",
        "config",
        "key",
        "key add",
        "key list",
        "key remove",
        "key rotate",
        "key writer",
        "demo",
        "version",
    ];
    let mut text = String::new();
    for command in commands {
        let (code, out, _) = place.run(&format!("{command} --help"));
        assert_eq!(code, 0);
        // The settings are the same everywhere: they are shown once.
        let (own, rest) = out.split_once("\nSettings:\n").unwrap_or((&out, ""));
        let after =
            rest.split("\n\n").skip_while(|part| part.starts_with("  ")).collect::<Vec<_>>().join("\n\n");
        let shown = if command.is_empty() { out.clone() } else { format!("{own}\n{after}") };
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{command}: {shown}");
        let line = format!("pgkeep {command}");
        text.push_str(&format!("$ {} --help\n{}\n\n", line.trim_end(), shown.trim_end()));
    }
    insta::assert_snapshot!("help", text);
}

#[test]
fn init_makes_a_repository_once_and_its_keys_open_it() {
    let place = Place::with_repository();
    let before = place.objects();
    assert_eq!(before.len(), 3, "a description, a key slot and the recovery key's slot");
    let again = place.json("init --no-server");
    assert_eq!(again["made"], false);
    assert_eq!(place.objects(), before);
    assert_eq!(place.run("list").0, 0);
    assert_eq!(place.run("list --key-file recovery").0, 0);
    let (code, _, err) = place.run("init --no-server -r ./other --recovery-key-file recovery2");
    assert_eq!(code, 6, "the key file is another repository's: {err}");
    assert!(!place.path("other").exists() || fs::read_dir(place.path("other")).unwrap().next().is_none());
}

#[test]
fn init_refuses_what_would_lose_the_keys_or_mix_with_other_files() {
    let place = Place::new();
    let (code, _, err) = place.run("init --no-server -r ./repository --key-file key");
    assert_eq!(code, 2);
    assert!(err.contains("--recovery-key-file"), "{err}");
    let (code, _, err) = place.run("init --no-server -r ./repository --recovery-key-file recovery");
    assert_eq!(code, 2);
    assert!(err.contains("--key-file"), "{err}");
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/something"), "else").unwrap();
    let (code, _, _) = place.run("init --no-server -r ./full --key-file key --recovery-key-file recovery");
    assert_eq!(code, 6);
    assert!(!place.path("key").exists() && !place.path("recovery").exists());
}

#[test]
fn keys_are_added_used_and_removed() {
    let place = Place::with_repository();
    let added = place.json("key add --file second --label laptop");
    let slot = added["slot"].as_str().unwrap();
    assert_eq!(place.run("list --key-file second").0, 0);
    fs::write(place.path("words"), "correct horse battery staple\n").unwrap();
    assert_eq!(place.run("key add --new-passphrase-file words").0, 0);
    let passphrase = "list --set key_file= --passphrase-file words";
    assert_eq!(place.run(passphrase).0, 0, "{:?}", place.run(passphrase));
    assert_eq!(place.json("key list")["keys"].as_array().unwrap().len(), 4);
    assert_eq!(place.run(&format!("key remove {slot}")).0, 2, "nobody is there to say yes");
    assert_eq!(place.run(&format!("key remove {slot} --yes")).0, 0);
    let (code, _, err) = place.run("list --key-file second");
    assert!(code == 2 && err.contains("was removed"), "{err}");
    assert_eq!(place.run("key add --file second").0, 6, "a secret is never overwritten");
}

#[test]
fn a_writer_credential_adds_and_does_not_read() {
    let place = Place::with_repository();
    assert_eq!(place.run("key writer writer").0, 0);
    let (code, _, err) = place.run("key add --file second --set key_file= --writer-file writer");
    assert!(code == 2 && err.contains("writer credential"), "{err}");
    let (code, _, err) =
        place.run("wal push nosuch/000000010000000000000001 --set key_file= --writer-file writer");
    assert!(code == 4 && err.contains("nosuch"), "it was opened, and only the file is missing: {err}");
}

#[test]
fn an_empty_repository_is_described_and_nothing_is_found_in_it() {
    let place = Place::with_repository();
    let status = place.json("status");
    assert_eq!((status["backups"].as_u64(), status["newest_moment"].is_null()), (Some(0), true));
    let codes = ["list", "status", "info", "wal list", "restore --into new"].map(|line| place.run(line).0);
    assert_eq!(codes, [0, 3, 3, 0, 3]);
    assert!(!place.path("new").exists());
}

#[test]
fn archive_and_restore_commands_speak_postgresqls_language() {
    let place = Place::with_repository();
    let code = |line: &str| place.run(line).0;
    for line in [
        "wal get",
        "wal get 000000010000000000000001 x --nosuch",
        "wal get nonsense x",
        "wal get 000000010000000000000001 x --key-file nosuch",
        "wal get 000000010000000000000001 x --config nosuch",
        "wal get 000000010000000000000001 x --set nosuch=1",
        "wal get 000000010000000000000001 x -r ./nosuch",
        "wal get 000000010000000000000001 x",
        "--cluster get wal get 000000010000000000000001 x",
    ] {
        let code = code(line);
        assert!((201..=255).contains(&code), "{line}: {code} would end recovery early");
    }
    for line in [
        "wal push",
        "wal push nosuch",
        "wal push nosuch/000000010000000000000001",
        "wal push x -r ./nosuch",
        "wal push --cluster get x",
    ] {
        let code = code(line);
        assert!((1..=125).contains(&code), "{line}: {code} would look like a crash");
    }
    assert!(!place.path("x").exists());
}

#[test]
fn settings_are_shown_with_their_origin_and_without_secrets() {
    let place = Place::with_repository();
    let output = place
        .command("config --json --set s3.region=auto")
        .env("AWS_SECRET_ACCESS_KEY", "hunter2")
        .env("DATABASE_URL", "postgres://me:hunter2@host/db")
        .env("PGKEEP_PASSPHRASE", "hunter2")
        .output()
        .unwrap();
    let (_, out, err) = told(&output);
    assert!(!out.contains("hunter2") && !err.contains("hunter2"), "{out}{err}");
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    let settings = shown["settings"].as_array().unwrap();
    let of = |name: &str| settings.iter().find(|one| one["name"] == name).unwrap();
    assert_eq!(of("database_url")["value"], "postgres://me:***@host/db");
    assert_eq!(of("database_url")["from"], "DATABASE_URL");
    assert_eq!(of("s3.region")["from"], "--set s3.region");
    assert_eq!(of("key_file")["from"], "pgkeep.toml");
    assert_eq!(of("passphrase")["value"], "(set)");
    assert_eq!(of("cluster")["from"], "default");
}

#[test]
fn a_mistyped_setting_is_refused_wherever_it_stands() {
    let place = Place::with_repository();
    let (code, _, err) = place.run("list --set repostory=/x");
    assert!(code == 2 && err.contains("`repository`?"), "{err}");
    let output = place.command("list").env("PGKEEP_CLUSTR", "x").output().unwrap();
    let (code, _, err) = told(&output);
    assert!(code == 0 && err.contains("PGKEEP_CLUSTR"), "{err}");
    let mut text = fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    text.push_str("bandwith = 5\n");
    fs::write(place.path("pgkeep.toml"), text).unwrap();
    let (code, _, err) = place.run("list");
    assert!(code == 2 && err.contains("`bandwith`"), "{err}");
}

#[test]
fn errors_are_for_people_and_for_programs() {
    let place = Place::new();
    let (code, out, err) = place.run("list -r /nonexistent/place --key-file nosuch");
    assert_eq!((code, out.as_str()), (3, ""));
    insta::assert_snapshot!(err, @r"
    error: open the repository /nonexistent/place
      because: /nonexistent/place is missing: not mounted, misspelt or not yet made
      hint: if it should exist, check that it is mounted; `pgkeep init` makes one
    ");
    let (code, _, err) = place.run("list -r ./nosuch --key-file nosuch --json");
    let error: serde_json::Value = serde_json::from_str(&err).unwrap();
    assert_eq!(
        (code, error["error"]["class"].as_str(), error["error"]["exit_code"].as_u64()),
        (3, Some("not_found"), Some(3))
    );
}

/// B01 in small: everything from `init` to a restored server, by the program itself. Needs an installed PostgreSQL.
#[test]
fn the_demo_brings_every_row_back_and_leaves_nothing() {
    let folder = tempfile::Builder::new().prefix("demo").tempdir_in("/tmp").unwrap();
    open_to_others(folder.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgkeep"));
    command.args(["demo", "--json", "--folder"]).arg(folder.path());
    let (code, out, err) = told(&command.output().unwrap());
    assert_eq!(code, 0, "{err}");
    let story: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(story["rows_restored"], story["rows_before_the_disaster"]);
    assert_eq!(story["sum_matches"], true);
    assert!(story["seconds"].as_f64().unwrap() < 60.0, "{story}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "everything is removed");
}

fn open_to_others(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_directory_that_was_unmounted_is_not_written_into() {
    let place = Place::with_repository();
    let name = "00000002.history";
    fs::write(place.path(name), "1\t0/3000000\treason\n").unwrap();
    assert_eq!(place.run(&format!("wal push {name}")).0, 0);
    // What is left of a mount is an empty folder.
    fs::rename(place.path("repository"), place.path("away")).unwrap();
    fs::create_dir(place.path("repository")).unwrap();
    let (code, _, err) = place.run(&format!("wal push {name}"));
    assert_eq!((code, place.objects().len()), (3, 0), "{err}");
}

#[test]
fn a_storage_that_never_answers_is_given_up_when_the_push_timeout_says_so() {
    let place = Place::with_repository();
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", deaf.local_addr().unwrap());
    let settings = format!("-r s3://bucket --set s3.endpoint={address} --set push_timeout=1s");
    fs::write(place.path("00000002.history"), "1\t0/3000000\treason\n").unwrap();
    for (line, code) in [("wal push 00000002.history", 4), ("wal get 00000002.history there", 204)] {
        let begun = std::time::Instant::now();
        let mut command = place.command(&format!("{settings} {line}"));
        command.env("PGKEEP_S3_ACCESS_KEY_ID", "a").env("PGKEEP_S3_SECRET_ACCESS_KEY", "b");
        let (found, _, err) = told(&command.output().unwrap());
        assert_eq!(found, code, "{err}");
        assert!(begun.elapsed().as_secs() < 15, "{line} took {:?}", begun.elapsed());
    }
}
