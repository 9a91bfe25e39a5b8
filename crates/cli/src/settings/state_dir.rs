//! The folder for what this host keeps for itself, where nobody names one.

use std::env;
use std::fs;
use std::path::PathBuf;

use operations::failure_note::{About, FailureNote};

use super::Settings;

impl Settings {
    /// What this host remembers of failures with this repository.
    pub fn failure_note(&self, about: About) -> FailureNote {
        let location = self.location().map(|location| location.to_string()).unwrap_or_default();
        FailureNote::new(self.state_dir().as_deref(), about, &self.cluster, &self.name, location)
    }
}

/// By the rules of the XDG base directories; a service without a home gets the one that its account has.
pub(super) fn usual_state_dir() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").or_else(home_of_account).filter(|home| home.is_absolute() && home.is_dir());
    set("XDG_STATE_HOME")
        .filter(|path| path.is_absolute())
        .map(|path| path.join("pgkeep"))
        .or_else(|| home().map(|home| home.join(".local/state/pgkeep")))
        .or_else(|| Some(PathBuf::from("/var/lib/pgkeep")))
}

fn home_of_account() -> Option<PathBuf> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let account = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&&*uid));
    account?.get(5).map(PathBuf::from)
}
