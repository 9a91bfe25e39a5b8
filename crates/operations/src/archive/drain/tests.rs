use std::os::unix::fs::symlink;

use super::*;
use crate::archive::Background;
use crate::archive::testing::{World, numbered, segment};

#[tokio::test]
async fn a_drainer_knows_whose_history_it_stores_though_pg_wal_is_a_link() {
    let world = World::new().await;
    world.archive(&numbered(1), 7).await;
    let global = world.folder.path().join("data/global");
    fs::create_dir_all(&global).unwrap();
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../pg/testdata/pg_control_15"), global.join("pg_control"))
        .unwrap();
    let elsewhere = world.folder.path().join("elsewhere");
    fs::rename(world.wal(), &elsewhere).unwrap();
    symlink(&elsewhere, world.wal()).unwrap();
    for timeline in 2..=4 {
        world.write(&format!("0000000{timeline}.history"), b"1\t0/3000000\treason\n");
    }
    assert_eq!(world.push("00000002.history").await.unwrap_err().exit_status(), 6);
    let asked = world.asked.lock().unwrap().pop();
    let Some(Background::Drain { wal_directory }) = asked else { panic!("{asked:?}") };
    assert_eq!(drain(&world.context, &wal_directory).await.unwrap_err().exit_status(), 6);
}

#[tokio::test]
async fn notes_that_nobody_asks_for_do_not_keep_a_drainer_away() {
    let world = World::new().await;
    for number in 1..=20 {
        world.write(&numbered(number), &segment(&numbered(number), 1));
    }
    drain(&world.context, &world.wal()).await.unwrap();
    for number in 1..=20 {
        world.done(&numbered(number));
    }
    for number in 21..=25 {
        world.write(&numbered(number), &segment(&numbered(number), 1));
    }
    world.push(&numbered(21)).await.unwrap();
    assert_eq!(world.asked.lock().unwrap().len(), 1);
}
