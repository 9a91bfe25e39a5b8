//! Which way a backup goes: what is chosen, what is refused and why, the role of `init --grants`, poolers.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use std::process::{Child, Command, Stdio};

use scene::{ROLE, Reading, Scene, sql, wait_for};
use server::connection::{Connection, ConnectionSettings};
use server::throwaway::Throwaway;

/// Takes away and gives back each right of the role in turn.
#[test]
fn each_right_that_a_role_lacks_is_named() {
    let Some(mut scene) = Scene::of(15) else { return };
    scene.init();
    let server = scene.start_server(|builder| builder);
    scene.reading = Reading::OverSql;
    let url = scene.backup_url(&server);
    let refused = |words: &[&str]| {
        scene.run(&["backup", "--mode", "sql", "--database-url", &url]).refused(2, words);
    };
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
        "pg_backup_start(text, boolean)",
        "pg_backup_stop(boolean)",
    ] {
        sql(&server, &format!("revoke execute on function {function} from {ROLE}"));
        let name = function.split('(').next().unwrap();
        refused(&[if name == "pg_backup_stop" { "pg_backup_start" } else { name }, ROLE]);
        sql(&server, &format!("grant execute on function {function} to {ROLE}"));
    }
    sql(&server, "revoke execute on function pg_control_system() from public");
    sql(&server, &format!("revoke execute on function pg_control_system() from {ROLE}"));
    refused(&["system identifier", "pg_control_system"]);
    sql(&server, &format!("grant execute on function pg_control_system() to {ROLE}"));
    // Without it the data directory is not known, and not needed.
    sql(&server, &format!("revoke pg_read_all_settings from {ROLE}"));
    scene.backup(&server, &[]);
    scene
        .run(&["backup", "--mode", "local", "--database-url", &url])
        .refused(2, &["where the data directory is"]);
}

#[test]
fn without_a_mode_the_best_possible_way_is_taken_and_shown() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = scene.start_server(|builder| builder);
    let shown = |url: &str| scene.json(&["init", "--database-url", url])["server"].clone();
    let local = shown(&server.conninfo());
    assert_eq!((local["mode"].as_str(), local["ready"].as_bool()), (Some("local"), Some(true)));

    sql(&server, "create role nobody_much login");
    let url = format!("{} user=nobody_much", server.conninfo());
    let none = shown(&url);
    assert_eq!((none["mode"].as_str(), none["ready"].as_bool()), (Some("logical"), Some(true)), "{none}");
    assert_eq!(none["against"]["sql"].as_array().unwrap().len(), 4, "{none}");
    let rows = scene.json(&["backup", "--cluster", "rows", "--database-url", &url]);
    assert_eq!(rows["backup"]["logical"], true, "{rows}");
    // A stream of files stays one.
    let words = ["pg_read_binary_file", "GRANT EXECUTE"];
    scene.run(&["backup", "--mode", "sql", "--database-url", &url]).refused(2, &words);
    scene
        .run(&["backup", "--cluster", "rows", "--mode", "local", "--database-url", &server.conninfo()])
        .refused(6, &[]);

    sql(&server, &scene.ok(&["init", "--grants", "aside", "--database-url", &server.conninfo()]).out);
    let url = format!("{} user=aside", server.conninfo());
    // Over SQL once the directory is not to be seen here.
    sql(&server, "revoke pg_read_all_settings from aside");
    let over_sql = shown(&url);
    assert_eq!(over_sql["mode"].as_str(), Some("sql"), "{over_sql}");
    assert_eq!(over_sql["ready"], true, "{over_sql}");
    let backup = scene.json(&["backup", "--database-url", &url]);
    assert_eq!(backup["backup"]["kind"], "full");
}

#[test]
fn configuration_outside_the_data_directory_comes_along_if_the_role_may_read_it() {
    let Some(mut scene) = Scene::of(15) else { return };
    scene.init();
    scene.reading = Reading::OverSql;
    let hba = scene.write("outside.conf", "local all all trust\nlocal replication all trust\n");
    let server = scene.start_server(|builder| builder.setting("hba_file", &hba));
    let info = |backup: &serde_json::Value| scene.json(&["info", backup["id"].as_str().unwrap()]).to_string();
    let without = info(&scene.backup(&server, &[]));
    assert!(
        without
            .contains("outside.conf is not in the backup: the role is not a member of pg_read_server_files"),
        "{without}"
    );
    sql(&server, &format!("grant pg_read_server_files to {ROLE}"));
    let with = info(&scene.backup(&server, &[]));
    assert!(!with.contains("is not in the backup"), "{with}");
    scene::flush_wal(&server);
    let into = scene.restore("restored", &["--to", "latest"]);
    let kept = std::fs::read_to_string(into.join("pgkeep-config/outside.conf")).unwrap();
    assert_eq!(kept, std::fs::read_to_string(&hba).unwrap());
}

/// `archive_mode` is off, and a slot says that somebody receives.
#[test]
fn a_slot_of_ours_stands_for_an_archive_command() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = Throwaway::builder(&scene.binaries).start().unwrap();
    let url = server.conninfo();
    let backup = ["backup", "--database-url", &url, "--set", "wal_timeout=1s"];
    scene.run(&backup).refused(2, &["archive_mode is off", "pgkeep wal receive"]);
    sql(&server, "select pg_create_physical_replication_slot('pgkeep_main', true)");
    scene.run(&backup).refused(4, &["nobody receives from slot pgkeep_main", "did not arrive"]);
}

struct PgBouncer(Child);

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In front of a server, in a folder of the scene.
fn start_pgbouncer(scene: &Scene, server: &Throwaway) -> (PgBouncer, String) {
    let folder = scene.make_folder("pooler");
    let config = format!(
        "[databases]\npostgres = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n\
         unix_socket_dir = {folder}\nauth_type = any\npool_mode = transaction\nlogfile = {folder}/log\n",
        server.socket_directory().display(),
        server.port(),
    );
    let config = scene.write("pooler/pgbouncer.ini", &config);
    let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    let program = program.expect("PgBouncer is missing: ./test installs it");
    let mut command = Command::new(program);
    command.arg("-q").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let pooler = PgBouncer(scene.as_user(&mut command).spawn().unwrap());
    let url = format!("host={folder} port=6432 user=postgres dbname=postgres");
    wait_for("PgBouncer", || Connection::connect(&ConnectionSettings::new(url.clone())).ok());
    (pooler, url)
}

#[test]
fn a_pooler_is_refused_by_name_with_the_way_around_it() {
    let Some(scene) = Scene::of(15) else { return };
    scene.init();
    let server = scene.start_server(|builder| builder);
    let (_pooler, url) = start_pgbouncer(&scene, &server);
    for mode in ["auto", "local", "sql"] {
        let said = scene.run(&["backup", "--mode", mode, "--database-url", &url]);
        said.refused(2, &["PgBouncer stands between", "port 5432"]);
    }
    let said = scene.run(&["backup", "--mode", "logical", "--cluster", "rows", "--database-url", &url]);
    said.refused(2, &["PgBouncer stands before", "port 5432"]);
    let shown = scene.json(&["init", "--database-url", &url]);
    assert_eq!(shown["server"]["ready"], false);
}
