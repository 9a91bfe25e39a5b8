//! Exports that something goes wrong with: whatever stands under the name that was asked for is whole.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;
mod zoo;

use std::process::Command;

use scene::points::EXPORT;
use scene::{Scene, said, wait_for};
use server::throwaway::Throwaway;
use zoo::{backup, create, run};

/// More than a limit on files below, and several tables.
const SOME: &str = "create table a as select g, gen_random_uuid() u, gen_random_uuid() v from generate_series(1, 60000) g; \
    create table b as select g from generate_series(1, 100) g";

fn backed_up() -> Option<(Scene, Throwaway)> {
    let scene = zoo::scene(15)?;
    let server = zoo::server(&scene);
    create(&server, "app");
    run(&server, "app", SOME);
    backup(&scene, &server, "app", &[]);
    Some((scene, server))
}

/// The names in the scene's folder that begin like this.
fn named(scene: &Scene, beginning: &str) -> Vec<String> {
    let entries = std::fs::read_dir(scene.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(beginning)).collect();
    names.sort();
    names
}

#[test]
fn c01_an_export_that_was_killed_anywhere_leaves_no_half_of_a_file_and_the_next_is_whole() {
    let Some((scene, _server)) = backed_up() else { return };
    let custom = |file: &'static str| ["export", "--format", "custom", "--output", file];
    scene.ok(&custom("whole"));
    let whole = std::fs::read(scene.path("whole")).unwrap();
    for point in EXPORT {
        scene.killed_at(point, &custom("app.dump"));
        if point == "export.named" {
            assert_eq!(named(&scene, "app"), ["app.dump"]);
            assert!(std::fs::read(scene.path("app.dump")).unwrap() == whole, "{point}");
            std::fs::remove_file(scene.path("app.dump")).unwrap();
            continue;
        }
        assert_eq!(named(&scene, "app"), ["app.dump.part"], "{point}");
        scene.ok(&custom("app.dump"));
        assert_eq!(named(&scene, "app"), ["app.dump"], "{point}: what was left was taken over");
        assert!(std::fs::read(scene.path("app.dump")).unwrap() == whole, "{point}");
        // One that takes the place of another leaves that until it is whole.
        std::fs::write(scene.path("app.dump"), "old").unwrap();
        scene.killed_at(point, &[&custom("app.dump")[..], &["--force"]].concat());
        assert_eq!(std::fs::read(scene.path("app.dump")).unwrap(), b"old", "{point}");
        std::fs::remove_file(scene.path("app.dump")).unwrap();
        std::fs::remove_file(scene.path("app.dump.part")).unwrap();
    }
    scene.killed_at("export.table", &["export", "--output", "app.sql.gz"]);
    assert_eq!(named(&scene, "app"), ["app.sql.gz.part"]);
}

#[test]
fn two_exports_into_one_file_are_one_export() {
    let Some((scene, _server)) = backed_up() else { return };
    let folder = zoo::program_that(&scene, "pg_restore", "sleep 3; exec \"$real\" \"$@\"");
    let mut slow = scene.command(&["export", "--output", "app.sql"]);
    slow.env("PGKEEP_PG_BIN", folder);
    std::thread::scope(|threads| {
        let first = threads.spawn(move || said(&mut slow));
        wait_for("the first", || scene.path("app.sql.part").exists().then_some(()));
        let second = scene.run(&["export", "--format", "custom", "--output", "app.sql"]);
        assert_ne!(second.code(), 0, "{}", second.all());
        second.refused(second.code(), &["another export that writes the same file"]);
        assert!(scene.path("app.sql.part").exists(), "the first goes on");
        let first = first.join().unwrap();
        assert_eq!(first.code(), 0, "{}", first.all());
    });
    assert_eq!(named(&scene, "app"), ["app.sql"]);
    let text = std::fs::read_to_string(scene.path("app.sql")).unwrap();
    assert!(text.contains("PostgreSQL database dump complete"), "it is the first's, and whole");
}

/// A limit on files stands for a disk without room, which every machine has.
#[test]
fn an_export_for_which_there_is_no_room_leaves_nothing_behind() {
    let Some((scene, _server)) = backed_up() else { return };
    for arguments in ["--format plain --output x.sql", "--output x.sql.gz", "--format custom --output x.dump"]
    {
        let (program, config) = (scene.text_path("pgkeep"), scene.config().display().to_string());
        let script =
            format!("trap '' XFSZ; ulimit -f 1024; exec '{program}' --config '{config}' export {arguments}");
        let mut limited = Command::new("/bin/sh");
        limited.args(["-c", &script]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        limited.envs(scene.variables.iter().cloned()).current_dir(scene.path(""));
        let failed = said(scene.as_user(&mut limited));
        failed.refused(1, &["write the", "File too large"]);
        assert_eq!(named(&scene, "x."), Vec::<String>::new(), "{arguments}");
    }
    scene.ok(&["export", "--output", "x.sql"]);
}
