use server::pooler::Pooler;
use server::throwaway::{Binaries, Throwaway};

use super::*;

fn facts_of(server: &Throwaway) -> ServerFacts {
    ServerFacts::read(&server.connect().unwrap()).unwrap()
}

fn started() -> Throwaway {
    Throwaway::builder(&Binaries::require(None).unwrap()).start().unwrap()
}

#[test]
fn the_way_follows_from_what_is_possible_and_the_reasons_from_what_is_not() {
    let server = started();
    let facts = facts_of(&server);
    let probe = Probe::of(&facts);
    assert_eq!((probe.choose(Mode::Auto), probe.choose(Mode::Sql)), (Ok(Way::LocalFiles), Ok(Way::SqlFiles)));
    assert_eq!(probe.choose(Mode::Logical), Ok(Way::Logical));

    let elsewhere = || Some(Reason::new("it is elsewhere", "go there"));
    let remote = Probe::judge(&facts, elsewhere());
    assert_eq!(remote.choose(Mode::Auto), Ok(Way::SqlFiles));
    assert_eq!(remote.choose(Mode::Local).unwrap_err().what, "it is elsewhere");

    let mut poor = facts.clone();
    poor.missing_file_functions = vec!["pg_ls_dir(text, boolean, boolean)"];
    poor.can_backup = false;
    let probe = Probe::judge(&poor, elsewhere());
    assert_eq!(probe.choose(Mode::Auto), Ok(Way::Logical));
    let reason = probe.choose_files(Mode::Auto).unwrap_err();
    for word in ["may not take backups", "may not call pg_ls_dir", "it is elsewhere"] {
        assert_eq!(reason.what.matches(word).count(), 1, "{word}: {reason:?}");
    }

    let mut pooled = facts.clone();
    pooled.pooler = Some(Pooler::at("db.example.com", "6432"));
    let probe = Probe::judge(&pooled, None);
    for mode in [Mode::Auto, Mode::Local, Mode::Sql, Mode::Logical] {
        let reason = probe.choose(mode).unwrap_err();
        assert!(reason.what.contains("PgBouncer stands between"), "{reason:?}");
        assert!(reason.hint.contains("host db.example.com, port 5432"), "{reason:?}");
    }
}

#[test]
fn the_directory_of_another_server_of_the_cluster_is_not_taken_for_the_servers_own() {
    let primary = started();
    let standby = Throwaway::builder(primary.binaries()).start_standby_of(&primary).unwrap();
    for (server, other) in [(&primary, &standby), (&standby, &primary)] {
        let mut facts = facts_of(server);
        assert!(find_locally(&facts).is_ok());
        facts.data_directory = Some(other.data_directory().to_owned());
        let reason = find_locally(&facts).unwrap_err();
        assert!(reason.what.contains("another server of the cluster"), "{reason:?}");
    }
    let mut facts = facts_of(&primary);
    // As on a copy of it that was started at another time.
    facts.started -= std::time::Duration::from_secs(3600);
    assert!(find_locally(&facts).unwrap_err().what.contains("another server of the cluster"));
    facts.system_identifier = Some(1);
    assert!(find_locally(&facts).unwrap_err().what.contains("another cluster"));
}
