//! Who decides whether a restore is right: PostgreSQL's own programs, and the comparison with the source.

use std::path::Path;
use std::process::Command;

use server::throwaway::Throwaway;

use super::Scene;

/// Runs a program of PostgreSQL that must succeed, as the user of the servers, where `pg_checksums` may read.
fn must(scene: &Scene, mut command: Command) -> String {
    scene.run_as.apply(&mut command);
    let said = super::said(command.current_dir("/"));
    assert!(said.output.status.success(), "{command:?}: {}", said.all());
    said.out
}

/// The files are those of the backup, by the manifest that the restore wrote. Before the first start.
pub fn verify_backup(scene: &Scene, into: &Path) {
    let mut command = scene.binaries.command("pg_verifybackup");
    command.arg("-n").arg(into);
    must(scene, command);
}

/// Every page of a stopped cluster has a right checksum.
pub fn check_checksums(scene: &Scene, into: &Path) {
    let mut command = scene.binaries.command("pg_checksums");
    command.args(["--check", "-D"]).arg(into);
    must(scene, command);
}

/// Every table and index is sound, and every row is in its indexes; where this PostgreSQL comes with `amcheck`.
pub fn check_relations(scene: &Scene, server: &Throwaway) -> bool {
    let there = "select count(*) from pg_available_extensions where name = 'amcheck'";
    if super::number(server, there) == 0 {
        return false;
    }
    let mut command = server.command("pg_amcheck");
    command.args(["--all", "--install-missing", "--heapallindexed", "--parent-check"]);
    must(scene, command);
    true
}

/// Everything that `pg_dumpall` says about a server, without what differs between two runs or places: the random word of
/// `\restrict`, where tablespaces are, and how far a sequence was logged ahead of its use.
pub fn dump(scene: &Scene, server: &Throwaway) -> Vec<String> {
    let mut command = server.command("pg_dumpall");
    command.arg("--no-unlogged-table-data");
    let varies = |line: &&str| {
        let heads = ["\\restrict", "\\unrestrict", "CREATE TABLESPACE", "SELECT pg_catalog.setval"];
        !heads.iter().any(|head| line.starts_with(head))
    };
    must(scene, command).lines().filter(varies).map(str::to_owned).collect()
}

/// Fails with the first lines that differ.
pub fn assert_same_dump(source: &[String], restored: &[String]) {
    let differs = source.iter().zip(restored).position(|(a, b)| a != b);
    if let Some(at) = differs {
        let around = |lines: &[String]| lines[at.saturating_sub(3)..(at + 3).min(lines.len())].join("\n");
        panic!("line {at} of the dumps differs:\n{}\n-- restored --\n{}", around(source), around(restored));
    }
    assert_eq!(source.len(), restored.len(), "one dump is longer");
}
