//! Where to connect, and how to speak of it without giving the password away.

use std::ffi::CString;
use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::error::ServerError;
use super::raw::{self, ConnectFailure};

/// A keyword of libpq with its value, ready to be handed over.
pub(super) type Keyword = (CString, CString);

/// What applies when neither the connection string nor a caller says otherwise.
///
/// The keepalives notice a dead peer after about a minute: a backup's session may be idle for hours, and a network
/// that silently forgot it must not be found out at `pg_backup_stop`.
const DEFAULTS: [(&str, &str); 7] = [
    ("fallback_application_name", "pgkeep"),
    ("connect_timeout", "10"),
    ("keepalives", "1"),
    ("keepalives_idle", "30"),
    ("keepalives_interval", "10"),
    ("keepalives_count", "3"),
    ("tcp_user_timeout", "60000"),
];

/// A connection string and what is laid over it. `Debug` shows neither.
#[derive(Clone)]
pub struct ConnectionSettings {
    conninfo: SecretString,
    overrides: Vec<(String, SecretString)>,
    /// Server parameters of the session, beside those that the connection string sets.
    options: Vec<(&'static str, &'static str)>,
}

impl ConnectionSettings {
    /// Takes a URL (`postgres://…`), a keyword string (`host=… dbname=…`) or the bare name of a database.
    ///
    /// What it leaves out comes from the service file, the `PG*` environment variables and the password file, as for
    /// every libpq program. Nothing is checked before [`Connection::connect`](super::Connection::connect).
    pub fn new(conninfo: impl Into<String>) -> Self {
        Self { conninfo: SecretString::from(conninfo.into()), overrides: Vec::new(), options: Vec::new() }
    }

    /// Sets a libpq keyword, over what the connection string says.
    pub fn with(mut self, keyword: &str, value: &str) -> Self {
        self.overrides.push((keyword.to_owned(), SecretString::from(value)));
        self
    }

    /// Sets a server parameter for the session, from its beginning; neither may hold a space or a backslash.
    pub(super) fn with_option(mut self, name: &'static str, value: &'static str) -> Self {
        self.options.push((name, value));
        self
    }

    /// Names the session in `pg_stat_activity`, over what the connection string says; `pgkeep` when neither does.
    pub fn application_name(self, name: &str) -> Self {
        self.with("application_name", name)
    }

    /// Bounds the wait for each host; whole seconds, at least 2 (libpq's own floor). 10 s when nothing is said.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.with("connect_timeout", &timeout.as_secs().max(2).to_string())
    }

    /// Connects to this database, whatever the connection string says.
    pub fn database(self, name: &str) -> Self {
        self.with("dbname", name)
    }

    /// The keywords to hand to libpq, defaults and overrides applied.
    pub(super) fn resolve(&self) -> Result<Vec<Keyword>, ServerError> {
        let mut keywords = self.parse()?;
        for (keyword, value) in &self.overrides {
            keywords.retain(|(known, _)| known != keyword);
            keywords.push((keyword.clone(), value.expose_secret().to_owned()));
        }
        for (keyword, value) in DEFAULTS {
            if !keywords.iter().any(|(known, _)| known == keyword) {
                keywords.push((keyword.to_owned(), value.to_owned()));
            }
        }
        for (name, value) in &self.options {
            let option = format!("-c {name}={value}");
            match keywords.iter_mut().find(|(known, _)| known == "options") {
                Some((_, options)) => *options = format!("{options} {option}"),
                None => keywords.push(("options".to_owned(), option)),
            }
        }
        // Text of whatever the database's encoding is arrives as UTF-8; a caller that wants the raw bytes says so by SQL.
        keywords.retain(|(known, _)| known != "client_encoding");
        keywords.push(("client_encoding".to_owned(), "UTF8".to_owned()));
        keywords
            .into_iter()
            .map(|(keyword, value)| Ok((super::c_string(&keyword)?, super::c_string(&value)?)))
            .collect()
    }

    /// The variables by which another libpq program comes to the same place with the same rights, beside those of our own
    /// environment, which it inherits. Secrets may be among the values: they belong into an environment, never into
    /// arguments.
    pub fn environment(&self) -> Result<Vec<(String, SecretString)>, ServerError> {
        let names = raw::environment_names();
        let mut variables = Vec::new();
        for (keyword, value) in self.resolve()? {
            let (keyword, value) = (text(keyword)?, text(value)?);
            match names.iter().find(|(known, _)| *known == keyword) {
                Some((_, Some(variable))) => variables.push((variable.clone(), SecretString::from(value))),
                _ if keyword == "sslpassword" => {
                    let reason =
                        "other programs take no sslpassword; use a key without a passphrase".to_owned();
                    return Err(ServerError::InvalidSettings { reason });
                }
                // Keepalives and the like, which have no variable.
                _ => {}
            }
        }
        variables.retain(|(variable, _)| variable != "PGCLIENTENCODING");
        Ok(variables)
    }

    fn parse(&self) -> Result<Vec<(String, String)>, ServerError> {
        let conninfo = self.conninfo.expose_secret().trim();
        check_url(conninfo)?;
        if !conninfo.is_empty() && !is_url(conninfo) && !conninfo.contains('=') {
            return Ok(vec![("dbname".to_owned(), conninfo.to_owned())]);
        }
        // libpq quotes parts of the string it cannot read, which may be parts of a password.
        raw::parse_conninfo(&super::c_string(conninfo)?)
            .map_err(|message| ServerError::InvalidSettings { reason: without_quoted(&message) })
    }

    /// Turns libpq's account of a failed connection into our error, with every password in it blotted out.
    pub(super) fn scrub_failure(&self, failure: ConnectFailure) -> ServerError {
        if failure.password_needed {
            return ServerError::PasswordNeeded;
        }
        let mut message = failure.message;
        let parsed = self.parse().unwrap_or_default();
        let overrides =
            self.overrides.iter().map(|(keyword, value)| (keyword.as_str(), value.expose_secret()));
        for (keyword, value) in parsed.iter().map(|(k, v)| (k.as_str(), v.as_str())).chain(overrides) {
            if matches!(keyword, "password" | "sslpassword" | "oauth_client_secret") && !value.is_empty() {
                message = message.replace(value, "***");
            }
        }
        let clauses: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        ServerError::Connect { message: clauses.join("; ") }
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionSettings").finish_non_exhaustive()
    }
}

fn text(value: CString) -> Result<String, ServerError> {
    let odd = |_| ServerError::InvalidSettings { reason: "a setting is not UTF-8".to_owned() };
    value.into_string().map_err(odd)
}

fn is_url(conninfo: &str) -> bool {
    conninfo.starts_with("postgres://") || conninfo.starts_with("postgresql://")
}

/// Refuses a URL whose password holds a bare `@` or `/`: libpq would take the rest of the password for a host, a port
/// or a database, connect to nowhere, and name that "host" in its message.
///
/// libpq takes everything before the first `@` for the user and password unless a `/` comes earlier; `?` and `#` in a
/// password do no harm. Source: `conninfo_uri_parse_options`, `fe-connect.c`.
fn check_url(conninfo: &str) -> Result<(), ServerError> {
    let Some((_, rest)) = conninfo.split_once("://").filter(|_| is_url(conninfo)) else { return Ok(()) };
    let (head, tail) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let hosts = |text: &str| text.split('?').next().unwrap_or_default().to_owned();
    let readable = match head.split_once('@') {
        Some((_, after)) => !hosts(after).contains('@') && !hosts(tail).contains('@'),
        None => hosts(head).split(',').all(port_is_number) && !hosts(tail).contains('@'),
    };
    if readable {
        return Ok(());
    }
    let reason =
        "the URL cannot be read; characters such as @ / ? # : % in a password must be percent-encoded";
    Err(ServerError::InvalidSettings { reason: reason.to_owned() })
}

fn port_is_number(host: &str) -> bool {
    let after_address = host.rsplit_once(']').map_or(host, |(_, after)| after);
    after_address.split_once(':').is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The message with everything from its first double quote to its last blotted out; quoted text may hold quotes.
fn without_quoted(message: &str) -> String {
    let message = message.trim();
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) => format!("{}\"…\"{}", &message[..first], &message[last + 1..]),
        _ => message.to_owned(),
    }
}
