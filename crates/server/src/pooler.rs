//! Connection poolers: something that stands between us and the server, and may give each statement another session.
//!
//! A backup belongs to one session and a reader to one server, so a pooler is refused. It is known by its behaviour; its
//! name and the way around it are guessed from the address.

use std::fmt;

/// A pooler, and how to come to the server past it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooler {
    /// Its name, where the address tells.
    pub name: Option<&'static str>,
    /// Where the server itself is likely to be.
    pub direct: Option<String>,
}

impl Pooler {
    /// Guesses from the address of a session that turned out to be a pooler's.
    pub fn at(host: &str, port: &str) -> Self {
        let known = |name, direct: String| Self { name: Some(name), direct: Some(direct) };
        if let Some(rest) = host.strip_prefix("pgbouncer.").filter(|rest| rest.ends_with(".flycast")) {
            return known("Fly's PgBouncer", format!("host direct.{rest}, port 5432"));
        }
        if host.ends_with(".neon.tech") && host.contains("-pooler.") {
            return known("Neon's pooler", format!("host {}", host.replacen("-pooler.", ".", 1)));
        }
        if host.ends_with("pooler.supabase.com") {
            return known("Supabase's pooler", "host db.<project>.supabase.co, port 5432".to_owned());
        }
        if port == "6432" {
            return known("PgBouncer", format!("host {host}, port 5432"));
        }
        Self { name: None, direct: None }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match &self.direct {
            Some(direct) => format!("connect to the server itself: try {direct}"),
            None => "connect to the server itself, not to its pooler".to_owned(),
        }
    }
}

impl fmt::Display for Pooler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.unwrap_or("a connection pooler"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_tells_which_pooler_it_is_and_the_way_past_it() {
        for (host, port, name, direct) in [
            ("db.example.com", "6432", "PgBouncer", "host db.example.com, port 5432"),
            (
                "ep-cool-1-pooler.eu-central-1.aws.neon.tech",
                "5432",
                "Neon's pooler",
                "host ep-cool-1.eu-central-1.aws.neon.tech",
            ),
            (
                "aws-0-eu-west-1.pooler.supabase.com",
                "6543",
                "Supabase's pooler",
                "host db.<project>.supabase.co, port 5432",
            ),
            ("pgbouncer.abc123.flycast", "5432", "Fly's PgBouncer", "host direct.abc123.flycast, port 5432"),
        ] {
            let pooler = Pooler::at(host, port);
            assert_eq!((pooler.to_string().as_str(), pooler.direct.as_deref()), (name, Some(direct)));
        }
        let unknown = Pooler::at("db.example.com", "5432");
        assert_eq!((unknown.name, unknown.direct.clone()), (None, None));
        assert_eq!(unknown.to_string(), "a connection pooler");
    }
}
