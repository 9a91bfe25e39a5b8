//! The hosts among which libpq chooses, and the one it chose.

use super::{Connection, ConnectionSettings};

impl Connection {
    /// The settings by which another session comes to the host, address and port of this one, whichever of several
    /// hosts or addresses that was.
    pub fn settings_beside(&self) -> ConnectionSettings {
        let mut session = self.lock();
        let beside = self.settings.clone().with("host", &session.host()).with("port", &session.port());
        let address = session.host_address();
        if address.is_empty() { beside } else { beside.with("hostaddr", &address) }
    }

    /// For each host that the settings, a service file or the environment name, the settings that lead to it alone.
    pub fn hosts(&self) -> Vec<ConnectionSettings> {
        let used = self.lock().keywords();
        // libpq takes a list of ports that has one entry for all hosts.
        let list = |keyword: &str| -> Vec<String> {
            let value = used.iter().find(|(known, _)| known == keyword).map(|(_, value)| value.as_str());
            value.filter(|value| !value.is_empty()).map(split).unwrap_or_default()
        };
        let lists = ["host", "hostaddr", "port"].map(|keyword| (keyword, list(keyword)));
        let hosts = lists[0].1.len().max(lists[1].1.len()).max(1);
        let alone = |at: usize| {
            lists.iter().fold(self.settings.clone(), |settings, (keyword, values)| {
                match values.get(at).or(values.first().filter(|_| values.len() == 1)) {
                    Some(value) => settings.with(keyword, value),
                    None => settings,
                }
            })
        };
        (0..hosts).map(alone).collect()
    }

    /// Whether libpq was told to take no host but one that can be written to, which of several is the primary.
    pub fn wants_primary(&self) -> bool {
        let used = self.lock().keywords();
        used.iter().any(|(keyword, value)| {
            keyword == "target_session_attrs" && matches!(value.as_str(), "read-write" | "primary")
        })
    }
}

fn split(list: &str) -> Vec<String> {
    list.split(',').map(|one| one.trim().to_owned()).collect()
}
