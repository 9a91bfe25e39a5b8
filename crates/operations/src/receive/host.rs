//! The server that is received from: one of the hosts that the settings name. The stream chooses it, and every session with it,
//! the watch over the slot among them, is one with that very host.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use server::connection::{Connection, ConnectionSettings, ServerError};

/// How long one host may take to let us in. Together with the pauses between attempts it keeps receiving within ten seconds of
/// whatever had stopped it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What every session of a receiver is opened with. A network that was cut is noticed within ten seconds, not within the
/// minute that is enough for a backup's session.
pub(super) fn prompt(settings: ConnectionSettings, slot: &str) -> ConnectionSettings {
    let prompt = [
        ("keepalives_idle", "4"),
        ("keepalives_interval", "2"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "10000"),
    ];
    let named = settings.application_name(slot).connect_timeout(CONNECT_TIMEOUT);
    prompt.into_iter().fold(named, |settings, (keyword, value)| settings.with(keyword, value))
}

/// See the module.
pub(super) struct Host {
    given: ConnectionSettings,
    /// Each host alone.
    each: Vec<ConnectionSettings>,
    choice: Mutex<Choice>,
}

#[derive(Default)]
struct Choice {
    settings: Option<ConnectionSettings>,
    /// The host and port that the settings lead to.
    place: (String, String),
    /// Grows when what was seen of the slot before says nothing of it any more.
    number: u64,
    /// The slot holds more than it may.
    over_limit: bool,
    /// Hosts that do not have the WAL that comes next.
    passed_over: Vec<(String, String)>,
}

impl Host {
    /// Nothing is chosen yet; `each` leads to every host alone.
    pub(super) fn new(given: ConnectionSettings, each: Vec<ConnectionSettings>) -> Self {
        Self { given, each, choice: Mutex::default() }
    }

    /// Chooses a host as the settings say, but none that was passed over as long as another answers.
    pub(super) fn choose(&self) -> Result<Connection, ServerError> {
        let passed_over = self.lock().passed_over.clone();
        let other = || {
            let mut answering = self.each.iter().filter_map(|one| Connection::connect(one).ok());
            answering.find(|one| !passed_over.contains(&place(one)))
        };
        let chosen = if passed_over.is_empty() { None } else { other() };
        let chosen = chosen.map_or_else(|| Connection::connect(&self.given), Ok)?;
        let mut choice = self.lock();
        choice.settings = Some(chosen.settings_beside());
        choice.place = place(&chosen);
        choice.number += 1;
        choice.over_limit = false;
        Ok(chosen)
    }

    /// A session for a moment, with the chosen host.
    pub(super) fn session(&self) -> Result<Connection, ServerError> {
        let chosen = self.lock().settings.clone();
        Connection::connect(chosen.as_ref().unwrap_or(&self.given))
    }

    /// The chosen host, with the number of the choice; `None` before the first one.
    pub(super) fn chosen(&self) -> Option<(u64, ConnectionSettings)> {
        let choice = self.lock();
        Some((choice.number, choice.settings.clone()?))
    }

    /// Says of the slot of a choice that it holds too much. If the choice is another one by now, that says nothing.
    pub(super) fn set_over_limit(&self, number: u64) {
        let mut choice = self.lock();
        choice.over_limit |= choice.number == number;
    }

    /// Whether the slot holds too much, once: whoever asks sees to it, and if he cannot, the next look says it again.
    pub(super) fn take_over_limit(&self) -> bool {
        std::mem::take(&mut self.lock().over_limit)
    }

    /// The slot is gone: what was seen of it no longer counts.
    pub(super) fn slot_dropped(&self) {
        let mut choice = self.lock();
        choice.number += 1;
        choice.over_limit = false;
    }

    /// The chosen host does not have the WAL that comes next; true if another one may, which was not asked yet.
    pub(super) fn pass_over(&self) -> bool {
        let mut choice = self.lock();
        if choice.passed_over.contains(&choice.place) {
            // None of the others answered.
            return false;
        }
        let place = choice.place.clone();
        choice.passed_over.push(place);
        choice.passed_over.len() < self.each.len()
    }

    /// WAL comes, or its loss is written down: each host may be asked again.
    pub(super) fn forgive(&self) {
        self.lock().passed_over.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(session: &Connection) -> (String, String) {
    (session.host(), session.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(hosts: usize) -> Host {
        let settings = ConnectionSettings::new("");
        Host::new(settings.clone(), vec![settings; hosts])
    }

    fn at(host: &Host, place: &str) {
        let mut choice = host.lock();
        choice.place = (place.to_owned(), "5432".to_owned());
        choice.number += 1;
    }

    #[test]
    fn a_host_is_passed_over_only_while_another_was_not_asked() {
        assert!(!host(1).pass_over());
        let three = host(3);
        at(&three, "a");
        assert!(three.pass_over());
        at(&three, "b");
        assert!(three.pass_over());
        at(&three, "c");
        assert!(!three.pass_over());
        three.forgive();
        at(&three, "a");
        assert!(three.pass_over());
        // The others do not answer, so it was chosen again.
        assert!(!three.pass_over());
    }

    #[test]
    fn what_was_seen_of_another_choice_or_of_a_dropped_slot_says_nothing() {
        let host = host(1);
        at(&host, "a");
        host.set_over_limit(0);
        assert!(!host.take_over_limit());
        host.set_over_limit(1);
        assert!(host.take_over_limit() && !host.take_over_limit());
        host.slot_dropped();
        host.set_over_limit(1);
        assert!(!host.take_over_limit());
    }
}
