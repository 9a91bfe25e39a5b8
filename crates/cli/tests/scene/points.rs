//! The named points of what keeps a repository in order, and a scene in which the program is killed at them.

use server::throwaway::Throwaway;

use super::{Scene, ledger};

pub const COPY: [&str; 3] = ["copy.wal", "copy.packed", "copy.published"];
/// `crates/cli/tests/several.rs` has their scenario.
pub const CARRY: [&str; 2] = ["carry.begun", "carry.carried"];
/// `crates/cli/tests/passphrase_and_keys.rs` has their scenario.
pub const ROTATION: [&str; 3] = ["rotation.added", "rotation.tried", "rotation.removed"];
pub const VERIFY: [&str; 4] = ["verify.seen", "verify.recorded", "verify.merged", "verify.removed"];
pub const EXPIRE: [&str; 5] =
    ["expire.leased", "expire.noted", "expire.manifest-deleted", "expire.wal-noted", "expire.wal-deleted"];

/// `crates/cli/tests/logical_incremental.rs` has their scenarios.
pub const LOGICAL: [&str; 6] = [
    "logical.claimed",
    "logical.snapshot",
    "logical.range",
    "logical.captured",
    "logical.list-stored",
    "logical.published",
];
/// `crates/cli/tests/export_failures.rs` has their scenario.
pub const EXPORT: [&str; 3] = ["export.table", "export.durable", "export.named"];
pub const LOGICAL_SWAP: [&str; 3] = ["logical.swap-created", "logical.swap-restored", "logical.swapped"];

/// In the order in which one run reaches them.
pub const PRUNE: [&str; 5] = ["prune.packed", "prune.moved", "prune.marked", "prune.deleted", "prune.swept"];
pub const CARE: [&[&str]; 9] =
    [&VERIFY, &EXPIRE, &PRUNE, &COPY, &CARRY, &ROTATION, &LOGICAL, &LOGICAL_SWAP, &EXPORT];

/// A scene with a server whose ledger has so many rows.
pub fn scene_with_ledger(rows: i64) -> (Scene, Throwaway) {
    let scene = Scene::any();
    scene.init();
    let server = scene.start_server(|builder| builder.wal_segment_size_mib(1).setting("wal_keep_size", "64"));
    ledger::make(&server);
    ledger::add(&server, 1, rows);
    (scene, server)
}

/// How many backups there are.
pub fn backups(scene: &Scene) -> usize {
    scene.json(&["list"])["backups"].as_array().unwrap().len()
}
