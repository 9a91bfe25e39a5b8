use proptest::prelude::*;

use super::*;
use crate::throwaway::testing;

#[test]
fn a_statement_gives_rows_and_its_errors_carry_their_code() {
    let server = testing::shared();
    let connection = server.connect().unwrap();
    assert!(connection.server_version_num() >= 130_000);

    let rows = connection.query("SELECT $1::int + 1 AS n, NULL, $2::text, true", &["41", "é"]).unwrap();
    let row = rows.first().unwrap();
    assert_eq!(row.parse::<i32>(0).unwrap(), 42);
    assert_eq!(row.text(1).unwrap(), None);
    assert_eq!(row.required(2).unwrap(), "é");
    assert!(row.boolean(3).unwrap());
    assert_eq!(row.bytes(4), None);
    assert_eq!(rows.columns()[0], "n");
    assert!(row.parse::<i32>(2).is_err() && row.required(1).is_err() && row.boolean(0).is_err());

    let error = connection.query("SELECT no_such_function()", &[]).unwrap_err();
    assert_eq!(error.sqlstate(), Some(SqlState::UNDEFINED_FUNCTION));
    assert!(!error.is_transient());
    assert!(connection.is_alive());
    assert_eq!(connection.query("SELECT '\0'", &[]).unwrap_err(), ServerError::NulByte);
    assert!(connection.query_one("SELECT 1 WHERE false", &[]).is_err());
}

#[test]
fn what_the_server_says_on_the_side_is_kept() {
    let server = testing::shared();
    let connection = server.connect().unwrap();
    connection.run_script("DO $$ BEGIN RAISE WARNING 'mind the gap'; END $$; SELECT 1").unwrap();
    let notice = Notice { severity: "WARNING".into(), message: "mind the gap".into() };
    assert_eq!(connection.take_notices(), [notice]);
    assert_eq!(connection.take_notices(), []);
}

#[test]
fn a_closed_session_is_noticed_and_is_not_a_refused_statement() {
    let server = testing::shared();
    let (victim, other) = (server.connect().unwrap(), server.connect().unwrap());
    let pid = victim.query_one("SELECT pg_backend_pid()", &[]).unwrap();
    other
        .query_one(
            "SELECT pg_terminate_backend($1::int, 10000)",
            &[pid.first().unwrap().required(0).unwrap()],
        )
        .unwrap();
    assert!(!victim.is_alive());
    let error = victim.check_alive().unwrap_err();
    assert!(matches!(error, ServerError::ConnectionLost { .. }), "{error:?}");
    assert!(error.is_transient());
}

#[test]
fn copy_out_streams_and_survives_a_refusal() {
    let server = testing::shared();
    let connection = server.connect().unwrap();
    let mut text = Vec::new();
    let sql = "COPY (SELECT i FROM generate_series(1, 3) i) TO STDOUT";
    connection
        .copy_out::<ServerError>(sql, &mut |message| {
            text.extend_from_slice(message);
            Ok(())
        })
        .unwrap();
    assert_eq!(text, b"1\n2\n3\n");

    let endless = "COPY (SELECT repeat('x', 1000), generate_series(1, 100000000)) TO STDOUT";
    let refused = connection.copy_out(endless, &mut |_| Err(ServerError::NulByte)).unwrap_err();
    assert_eq!(refused, ServerError::NulByte);
    connection.check_alive().unwrap();

    let division = "COPY (SELECT 1 / (5 - i) FROM generate_series(1, 9) i) TO STDOUT";
    let error = connection.copy_out::<ServerError>(division, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.sqlstate().map(|state| state.to_string()), Some("22012".to_owned()));
    let error = connection.copy_out::<ServerError>("SELECT 1", &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, ServerError::UnexpectedAnswer { .. }), "{error:?}");
    connection.check_alive().unwrap();
}

#[test]
fn timeouts_of_the_role_do_not_reach_a_long_session() {
    let server = testing::shared();
    let settings = ConnectionSettings::new(server.conninfo())
        .application_name("long")
        .with("options", "-c statement_timeout=5s -c lock_timeout=5s");
    let connection = Connection::connect(&settings).unwrap();
    connection.remove_timeouts().unwrap();
    for name in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
        let rows = connection.query_one("SELECT current_setting($1)", &[name]).unwrap();
        assert_eq!(rows.first().unwrap().required(0).unwrap(), "0", "{name}");
    }
    let rows = connection.query_one("SELECT current_setting('application_name')", &[]).unwrap();
    assert_eq!(rows.first().unwrap().required(0).unwrap(), "long");
    assert_eq!((connection.user().as_str(), connection.database().as_str()), ("postgres", "postgres"));
    assert_eq!(connection.parameter("client_encoding").as_deref(), Some("UTF8"));
    assert!(!connection.host().is_empty() && !connection.port().is_empty());
}

#[test]
fn urls_whose_password_needs_encoding_are_refused_by_that_name() {
    for url in
        ["postgres://u:p@ss@h/d", "postgres://u:p/ss@h/d", "postgresql://u:p@s/s@h", "postgres://u:12/3@h"]
    {
        let error = Connection::connect(&ConnectionSettings::new(url)).unwrap_err();
        assert!(error.to_string().contains("percent-encoded"), "{url}: {error}");
    }
    for url in [
        "postgres://a:1,b:2,c/d",
        "postgres://[::1]:54/d?user=a@b",
        "postgres://u:p%40@h,i:5/d",
        "postgres:///d",
    ] {
        ConnectionSettings::new(url).resolve().unwrap_or_else(|error| panic!("{url}: {error}"));
    }
}

#[test]
fn defaults_yield_to_the_string_and_the_string_to_overrides() {
    let settings =
        ConnectionSettings::new("host=a connect_timeout=3 client_encoding=LATIN1").with("host", "b");
    let resolved = settings.resolve().unwrap();
    let value = |name: &str| {
        let found: Vec<_> = resolved.iter().filter(|(keyword, _)| keyword.to_str() == Ok(name)).collect();
        assert_eq!(found.len(), 1, "{name}");
        found[0].1.to_str().unwrap().to_owned()
    };
    assert_eq!(value("host"), "b");
    assert_eq!(value("connect_timeout"), "3");
    assert_eq!(value("client_encoding"), "UTF8");
    assert_eq!(value("fallback_application_name"), "pgkeep");
    let bare = ConnectionSettings::new("shop").resolve().unwrap();
    assert!(
        bare.iter().any(|(keyword, value)| keyword.as_bytes() == b"dbname" && value.as_bytes() == b"shop")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Nobody listens on port 1, so each of these fails, in the string or at the host.
    #[test]
    fn no_error_ever_shows_the_password(secret in "[a-zA-Z0-9@/?#:%&='\" \\\\.,_-]{1,12}") {
        let password = format!("Zq7{secret}7qZ");
        let keyword = format!("host=127.0.0.1 port=1 password='{}'", password.replace('\\', "\\\\").replace('\'', "\\'"));
        for text in [
            format!("postgres://user:{password}@127.0.0.1:1/shop"),
            format!("host=127.0.0.1 port=1 password={password}"),
            keyword,
        ] {
            let settings = ConnectionSettings::new(text);
            let error = Connection::connect(&settings).unwrap_err();
            let shown = format!("{error} {error:?} {settings:?}");
            prop_assert!(!shown.contains("Zq7") && !shown.contains("7qZ"), "{}", shown);
        }
    }
}

#[test]
fn each_of_several_hosts_can_be_reached_alone() {
    let server = testing::shared();
    let folder = server.socket_directory().display().to_string();
    let text = format!("host=/nowhere,{folder} port={} user=postgres dbname=postgres", server.port());
    let connection = Connection::connect(&ConnectionSettings::new(text.clone())).unwrap();
    let hosts = connection.hosts();
    assert_eq!(hosts.len(), 2);
    assert!(Connection::connect(&hosts[0]).is_err());
    assert_eq!(Connection::connect(&hosts[1]).unwrap().host(), folder);
    assert_eq!(Connection::connect(&connection.settings_beside()).unwrap().hosts().len(), 1);
    assert!(!connection.wants_primary());
    let writes = ConnectionSettings::new(text).with("target_session_attrs", "read-write");
    assert!(Connection::connect(&writes).unwrap().wants_primary());
}

#[test]
fn a_server_that_refuses_is_told_from_one_that_is_not_there() {
    let server = testing::shared();
    let explained =
        |settings: ConnectionSettings| Connection::connect(&settings).unwrap_err().explained(&settings);
    let given = ConnectionSettings::new(server.conninfo());
    let unknown = explained(given.clone().with("user", "nobody_at_all"));
    assert!(
        matches!(unknown, ServerError::Refused { sqlstate, .. } if sqlstate.class() == "28"),
        "{unknown}"
    );
    assert!(!unknown.is_transient());
    let absent = explained(given.clone().database("nothing_at_all"));
    assert!(
        matches!(absent, ServerError::Refused { sqlstate, .. } if sqlstate.as_str() == "3D000"),
        "{absent}"
    );
    let away = explained(given.with("host", "/nowhere"));
    assert!(matches!(away, ServerError::Connect { .. }) && away.is_transient(), "{away}");
}
