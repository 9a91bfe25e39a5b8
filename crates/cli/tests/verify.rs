//! `pgkeep check` and `pgkeep verify` as scripts see them: exit codes, JSON, refusals, Ctrl-C.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::path::{Path, PathBuf};

use scene::{Scene, flush_wal, sql};

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn scene_with_backup() -> Scene {
    let scene = Scene::any();
    scene.init();
    let server = scene.start_server(|builder| builder.wal_segment_size_mib(1));
    sql(&server, "create table t as select g, md5(g::text) x from generate_series(1, 20000) g");
    scene.backup(&server, &[]);
    flush_wal(&server);
    scene
}

#[test]
fn exit_codes_tell_damage_from_what_could_not_be_looked_at() {
    let scene = scene_with_backup();
    let check = scene.json(&["check"]);
    assert_eq!((&check["findings"], &check["backups"]), (&serde_json::json!([]), &serde_json::json!(1)));
    let verified = scene.json(&["verify", "latest"]);
    assert_eq!((&verified["complete"], &verified["never_proved"]), (&true.into(), &0.into()));

    // What does not belong is a warning.
    std::fs::write(scene.path("repository/README"), "mine").unwrap();
    let said = scene.ok(&["check", "--verbose"]);
    assert!(said.out.contains("README"), "{}", said.out);
    assert!(said.out.lines().all(|line| line.chars().count() <= 80), "{}", said.out);

    // The largest holds files, the smallest their list.
    let packs = files_below(&scene.path("repository/packs"));
    let pack = packs.into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let good = std::fs::read(&pack).unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
    let mut bad = good.clone();
    bad[20] ^= 1;
    std::fs::write(&pack, &bad).unwrap();
    scene.ok(&["check"]);
    let said = scene.run(&["verify"]);
    said.refused(5, &["damage:", &name, "blocks", "There is damage."]);
    assert!(
        said.out.lines().all(|line| line.chars().count() <= 80 || line.contains("packs/")),
        "{}",
        said.out
    );
    std::fs::remove_file(&pack).unwrap();
    scene.run(&["check"]).refused(5, &["the pack is missing", &name]);
    std::fs::write(&pack, &good).unwrap();
    scene.ok(&["verify"]);

    // A place that is gone says nothing about what it held.
    std::fs::rename(scene.path("repository"), scene.path("away")).unwrap();
    for command in ["check", "verify"] {
        let said = scene.run(&[command]);
        assert!(![0, 5].contains(&said.code()), "{command}: {}", said.all());
    }
}

#[test]
fn a_writer_credential_is_told_what_it_cannot_do() {
    let scene = scene_with_backup();
    let file = scene.text_path("writer");
    scene.ok(&["key", "writer", &file]);
    let config = std::fs::read_to_string(scene.config()).unwrap();
    let config = config.replace("key_file = \"key\"\n", &format!("writer_file = \"{file}\"\n"));
    std::fs::write(scene.config(), config).unwrap();
    scene.run(&["check"]).refused(4, &["not looked at:", "writer credential"]);
    scene.run(&["verify"]).refused(2, &["a writer credential only adds", "key file or a passphrase"]);
}

#[test]
fn an_interrupted_verification_says_so_and_writes_down_what_it_saw() {
    let scene = scene_with_backup();
    let mut command = scene.command(&["verify", "--json"]);
    // Stopped before it begins, it hears of the interruption while it works.
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    let mut sent = false;
    for _ in 0..400 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        // Once the handler stands: `SigCgt` names SIGINT.
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        if caught & 2 != 0 {
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
            sent = true;
            break;
        }
    }
    let output = child.wait_with_output().unwrap();
    let code = output.status.code();
    // It may have been done already when it heard.
    assert!(code == Some(4) || code == Some(0) || !sent, "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["complete"], code == Some(0));
    assert_eq!(scene.json(&["verify"])["complete"], true);
}
