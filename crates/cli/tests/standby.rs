//! B10: backups from a standby, whose primary is idle and archives for it.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod scene;

use scene::{Reading, Scene, judges, ledger, number, sql, text, wait_for};
use server::throwaway::{StopMode, Throwaway};

#[test]
fn b10_backups_of_a_standby_restore_equal_on_15() {
    standby_restores_equal(15);
}

#[test]
fn b10_backups_of_a_standby_restore_equal_on_17() {
    standby_restores_equal(17);
}

fn standby_restores_equal(major: u16) {
    let Some(mut scene) = Scene::of(major) else { return };
    scene.init();
    let primary = scene.start_server(|builder| builder);
    ledger::make(&primary);
    ledger::add(&primary, 1, 200);
    let standby = Throwaway::builder(&scene.binaries).start_standby_of(&primary).unwrap();
    for (number, reading) in [Reading::Locally, Reading::OverSql].into_iter().enumerate() {
        scene.reading = reading;
        // The role is made on the primary; there is nothing else that it could be made on.
        scene.backup_url(&primary);
        let last = 200 + 10 * (number as i64 + 1);
        ledger::add(&primary, last - 9, last);
        catch_up(&primary, &standby);
        // From here on the primary is idle, and by itself ends no segment.
        scene.variables = vec![("PGKEEP_PRIMARY_URL".into(), primary.conninfo())];
        let backup = scene.backup(&standby, &["--full"]);
        assert_eq!(backup["damaged_pages"], 0);

        scene::flush_wal(&primary);
        let into = scene.restore("restored", &["--to", "latest"]);
        judges::verify_backup(&scene, &into);
        let mut restored = scene.start_restored(&into);
        ledger::assert_prefix(&restored, last, "from a standby");
        restored.stop(StopMode::Fast).unwrap();
        judges::check_checksums(&scene, &into);
        std::fs::remove_dir_all(into).unwrap();
    }

    scene.variables.clear();
    ledger::add(&primary, 1000, 1000);
    catch_up(&primary, &standby);
    let url = scene.backup_url(&standby);
    let alone = scene.run(&["backup", "--mode", "sql", "--database-url", &url, "--set", "wal_timeout=2s"]);
    alone.refused(4, &["from the primary", "primary_url", "pgkeep wal receive"]);
    let wrong = scene.run(&["backup", "--set", "primary_url=host=/nowhere"]);
    wrong.refused(2, &["primary_url"]);
}

/// Waits until the standby has replayed what the primary wrote, and makes that a restart point.
fn catch_up(primary: &Throwaway, standby: &Throwaway) {
    sql(primary, "checkpoint");
    let end = text(primary, "select pg_current_wal_lsn()");
    let reached = format!("select (pg_last_wal_replay_lsn() >= '{end}')::int");
    wait_for("the standby", || (number(standby, &reached) == 1).then_some(()));
    sql(standby, "checkpoint");
}
