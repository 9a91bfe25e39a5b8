//! The folder for what this host keeps for itself, where nobody names one.

use std::env;
use std::fs;
use std::path::PathBuf;

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
