use super::*;
use crate::throwaway::{Throwaway, testing};

const COMMAND: Archiving<'static> = Archiving::Command("/usr/bin/pgkeep wal push %p");

fn facts_of(server: &Throwaway) -> ServerFacts {
    ServerFacts::read(&server.connect().unwrap()).unwrap()
}

#[test]
fn the_proposed_lines_make_a_fresh_server_ready() {
    let mut server = Throwaway::builder(&testing::binaries())
        .checksums(false)
        .setting("wal_level", "minimal")
        .setting("max_wal_senders", "0")
        .start()
        .unwrap();
    let before = check(&facts_of(&server), COMMAND);
    assert!(!before.is_ready() && before.needs_restart);
    assert_eq!(
        before.lines,
        [
            "wal_level = replica",
            "archive_mode = on",
            "archive_command = '/usr/bin/pgkeep wal push %p'",
            "archive_timeout = 60"
        ]
    );
    let severities: Vec<_> = before.findings.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Problem, Severity::Problem, Severity::Warning, Severity::Advice]);

    let conf = server.data_directory().join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap() + &before.lines.join("\n");
    std::fs::write(&conf, text).unwrap();
    server.restart().unwrap();
    let after = check(&facts_of(&server), COMMAND);
    assert!(after.is_ready() && !after.needs_restart && after.lines.is_empty(), "{after:?}");
    assert_eq!(after.findings.len(), 1, "{after:?}");
}

#[test]
fn each_obstacle_is_named() {
    let server = Throwaway::builder(&testing::binaries())
        .setting("archive_mode", "on")
        .setting("archive_command", "cp %p /elsewhere/%f")
        .setting("archive_timeout", "1h")
        .start()
        .unwrap();
    let good = facts_of(&server);
    let named = |change: &dyn Fn(&mut ServerFacts), expected: &str| {
        let mut facts = good.clone();
        change(&mut facts);
        let report = check(&facts, COMMAND);
        assert!(
            report.findings.iter().any(|finding| finding.what.contains(expected)),
            "{expected}: {report:?}"
        );
        assert!(!report.is_ready());
        report
    };
    assert!(!named(&|_| {}, "another one: cp %p").needs_restart);
    named(&|_| {}, "archive_timeout is 3600s");
    named(&|facts| facts.archive_command = Some(String::new()), "is empty");
    named(&|facts| facts.archive_library = Some("x".into()), "archive_library is x");
    named(&|facts| facts.major = Major::new(99), "99 is not supported");
    named(&|facts| facts.block_size = 4096, "4096 bytes");
    named(&|facts| facts.full_page_writes = false, "full_page_writes is off");
    let report = named(&|facts| facts.can_backup = false, "may not start and stop");
    assert!(report.findings.iter().any(|finding| finding.hint.contains("TO \"postgres\"")));
    named(&|facts| facts.data_directory = None, "where the data directory is");
    named(&|facts| facts.system_identifier = None, "system identifier");

    let mut standby = good.clone();
    standby.in_recovery = true;
    let report = check(&standby, COMMAND);
    assert!(report.is_ready() && report.findings[0].hint.contains("primary_url"), "{report:?}");

    let mut ours = good.clone();
    ours.archive_command = Some("/opt/pgkeep --config /etc/x.toml wal push %p".into());
    assert!(check(&ours, COMMAND).is_ready());
}

#[test]
fn the_grants_are_such_as_the_server_takes() {
    let server = testing::started();
    let connection = server.connect().unwrap();
    connection.run_script("CREATE ROLE \"some \"\"body\" LOGIN").unwrap();
    let settings = crate::connection::ConnectionSettings::new(server.conninfo()).with("user", "some \"body");
    let read = || ServerFacts::read(&crate::connection::Connection::connect(&settings).unwrap()).unwrap();
    let before = read();
    assert!(!check(&before, COMMAND).is_ready());
    connection.run_script(&grants(&before).join(" ")).unwrap();
    let after = read();
    assert!(after.can_backup && after.data_directory.is_some() && after.hba_file.is_some());
}

#[test]
fn odd_paths_reach_the_shell_as_they_are() {
    let plain = archive_command(Path::new("/usr/bin/pgkeep"), &["--config", "/etc/pgkeep.toml"]);
    assert_eq!(plain, "/usr/bin/pgkeep --config /etc/pgkeep.toml wal push %p");
    let odd = archive_command(Path::new("/my apps/100% pg'keep"), &[]);
    assert_eq!(odd, r"'/my apps/100%% pg'\''keep' wal push %p");
}

#[test]
fn a_server_without_pgkeep_needs_a_receiver_and_nothing_set() {
    let server = testing::shared();
    let mut fresh = facts_of(&server);
    let report = check(&fresh, Archiving::Receiving);
    assert!(!report.is_ready() && report.lines.is_empty(), "{report:?}");
    assert!(report.findings[0].what.contains("nobody receives"), "{report:?}");
    let name = "pgkeep_main".to_owned();
    let slot = crate::facts::Slot {
        name,
        active: true,
        wal_status: None,
        restart_lsn: None,
        retained_bytes: 0,
        safe_wal_size: None,
    };
    fresh.slots.push(slot);
    let report = check(&fresh, Archiving::Receiving);
    assert!(report.is_ready() && report.lines.is_empty(), "{report:?}");
    assert!(report.findings.iter().any(|finding| finding.hint.contains("pgkeep wal receive")), "{report:?}");
    let mut facts = fresh.clone();
    (facts.may_replicate, facts.data_directory) = (false, None);
    let report = check(&facts, Archiving::Receiving);
    let problems: Vec<_> = report.findings.iter().filter(|one| one.severity == Severity::Problem).collect();
    assert!(matches!(&problems[..], [only] if only.what.contains("may not receive WAL")), "{problems:?}");
}
