//! X01: what a cluster holds is in no stored byte, and in this host's cache only where a name must be.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::path::Path;

use scene::Scene;

/// Three words that stand in rows, in the configuration and in a file's name; each is looked for as it is and turned.
const ROW: &str = "canary-of-the-rows-4711";
const SETTING: &str = "canary-of-the-settings-4712";
const FILE: &str = "canary-of-the-files-4713";
const LABEL: &str = "canary-of-the-label-4714";

fn holds(bytes: &[u8], word: &str) -> bool {
    let plain = word.as_bytes();
    let wide: Vec<u8> = plain.iter().flat_map(|byte| [*byte, 0]).collect();
    [plain, &wide].iter().any(|word| bytes.windows(word.len()).any(|window| window == *word))
}

/// The files below a folder that hold the word.
fn files_with(folder: &Path, word: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for path in scene::tree(folder).into_keys() {
        let full = folder.join(&path);
        if full.is_file() && holds(&std::fs::read(&full).unwrap(), word) {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_no_stored_byte_tells_what_the_cluster_holds() {
    let scene = Scene::with(|builder| builder.setting("cluster_name", SETTING)).await;
    // Among noise, so that a chunk is stored as it is and only encryption can hide the word.
    scene.sql(&format!(
        "create table t as select g id, '{ROW}'::text as word, \
         (select string_agg(decode(md5(g::text || n), 'hex'), '') from generate_series(1, 90) n) noise \
         from generate_series(1, 3000) g"
    ));
    scene.sql("alter table t alter noise set storage external");
    let name = scene.server.data_directory().join(FILE);
    std::fs::write(&name, b"a file of somebody else").unwrap();
    scene.server.run_as().give(&name).unwrap();
    scene.sql("checkpoint");
    for full in [true, false] {
        let mut request = scene.backup_request(full);
        request.label = LABEL.to_owned();
        let connection = scene.server.connect().unwrap();
        let silent = std::sync::Arc::new(operations::monitor::Silent);
        let taking = operations::backup::backup(connection, scene.repository.clone(), &request, silent);
        let manifest = tokio::select! {
            report = taking => report.unwrap().manifest,
            () = scene.carry_for_ever() => unreachable!("it carries for ever"),
        };
        scene.repository.publish_partial(&scene.cluster, &manifest, 1).await.unwrap();
        scene.sql(&format!("insert into t values (0, '{ROW}', '')"));
    }
    scene.flush_wal().await;

    // The words are where they come from, in the WAL too, and come back: what follows looks for the right thing.
    let into = scene.folder.path().join("restored");
    scene.restore(scene.restore_request(&into)).await;
    for root in [scene.server.data_directory(), &into] {
        assert!(!files_with(root, ROW).is_empty() && !files_with(root, SETTING).is_empty());
        assert!(root.join(FILE).exists());
    }
    assert!(!files_with(&scene.folder.path().join("wal"), ROW).is_empty());

    let names = scene.memory.names();
    assert!(names.len() > 10);
    for name in names {
        let bytes = scene.memory.bytes(&name).unwrap();
        for word in [ROW, SETTING, FILE, LABEL] {
            assert!(!holds(&bytes, word) && !name.as_str().contains(word), "{word} is in {name}");
        }
    }
    // The cache may name files, and what the user calls a backup; it holds no content of the cluster.
    let local = scene.local();
    assert!(!files_with(&local, FILE).is_empty(), "the cache is where it is looked for");
    for word in [ROW, SETTING] {
        assert_eq!(files_with(&local, word), [] as [std::path::PathBuf; 0]);
    }
}
