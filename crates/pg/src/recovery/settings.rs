//! The lines of `postgresql.auto.conf` that carry out a restore.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use super::RecoveryTarget;
use crate::{Major, TimelineId, conf};

/// Every setting that steers recovery and must not be left over from the cluster's past: drop these from
/// `postgresql.auto.conf` ([`conf::without_settings`]) before adding [`RecoverySettings::auto_conf_lines`].
pub const RECOVERY_SETTINGS: [&str; 14] = [
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// The five ways to name a target. PostgreSQL refuses to start when more than one has a value.
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// Which timeline replay follows where the log branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetTimeline {
    /// The newest that descends from the backup's, found in the archive. PostgreSQL's own default.
    #[default]
    Latest,
    /// The one the backup was taken on.
    Current,
    /// This one.
    Id(TimelineId),
}

/// What the server does once it has reached its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetAction {
    /// Opens for writing on a new timeline.
    #[default]
    Promote,
    /// Waits, open for reading; `pg_wal_replay_resume()` then promotes. Without `hot_standby` it shuts down
    /// instead.
    Pause,
    /// Stops, ready to be started again.
    Shutdown,
}

/// Everything a restored cluster is told about its recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySettings {
    /// Where replay stops.
    pub target: RecoveryTarget,
    /// Whether what lies exactly at the target is replayed. Means something for a time, an LSN and a
    /// transaction.
    pub inclusive: bool,
    /// Which timeline is followed.
    pub timeline: TargetTimeline,
    /// What happens then. Without a target the server always promotes.
    pub action: TargetAction,
    /// The command that brings one archived file, with `%f` and `%p`.
    pub restore_command: String,
}

impl RecoverySettings {
    /// Replay to `target`, inclusive, along the latest timeline, then promote.
    pub fn new(target: RecoveryTarget, restore_command: String) -> RecoverySettings {
        let (timeline, action) = (TargetTimeline::default(), TargetAction::default());
        RecoverySettings { target, inclusive: true, timeline, action, restore_command }
    }

    /// Lines for the end of `postgresql.auto.conf`, each ended by a line feed.
    ///
    /// All five targets are written, the empty ones first: `postgresql.conf` may still hold a target of an
    /// earlier restore, this file wins over it, and the server checks that no two targets have a value as it
    /// goes through the lines in order. Source: `assign_recovery_target*`, `access/transam/xlogrecovery.c`.
    /// Of a major we do not know only what every known one has is written.
    pub fn auto_conf_lines(&self, major: Major) -> String {
        let mut lines = String::new();
        let mut set = |name: &str, value: &str| {
            writeln!(lines, "{name} = {}", conf::quote(value)).expect("a String takes every write");
        };
        set("restore_command", &self.restore_command);
        set("recovery_end_command", "");
        set("archive_cleanup_command", "");
        if major.facts().is_some_and(|facts| facts.promote_trigger_file) {
            set("promote_trigger_file", "");
        }
        set("recovery_target_timeline", &self.timeline.to_string());
        set("recovery_target_inclusive", if self.inclusive { "on" } else { "off" });
        set("recovery_target_action", &self.action.to_string());
        let target = self.target_setting();
        for name in TARGETS.iter().filter(|&&name| target.as_ref().is_none_or(|(used, _)| *used != name)) {
            set(name, "");
        }
        if let Some((name, value)) = target {
            set(name, &value);
        }
        lines
    }

    fn target_setting(&self) -> Option<(&'static str, String)> {
        Some(match &self.target {
            RecoveryTarget::Latest => return None,
            RecoveryTarget::Immediate => ("recovery_target", "immediate".to_owned()),
            RecoveryTarget::Time(moment) => {
                ("recovery_target_time", moment.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string())
            }
            RecoveryTarget::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            RecoveryTarget::Xid(xid) => ("recovery_target_xid", xid.to_string()),
            RecoveryTarget::Name(name) => ("recovery_target_name", name.clone()),
        })
    }
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetTimeline::Latest => f.write_str("latest"),
            TargetTimeline::Current => f.write_str("current"),
            TargetTimeline::Id(id) => write!(f, "{id}"),
        }
    }
}

impl FromStr for TargetTimeline {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<TargetTimeline, ChoiceError> {
        let expected = "latest, current or a decimal number";
        match text {
            "latest" => Ok(TargetTimeline::Latest),
            "current" => Ok(TargetTimeline::Current),
            id => id
                .parse()
                .map(TargetTimeline::Id)
                .map_err(|_| ChoiceError { text: text.to_owned(), expected }),
        }
    }
}

impl fmt::Display for TargetAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetAction::Promote => "promote",
            TargetAction::Pause => "pause",
            TargetAction::Shutdown => "shutdown",
        })
    }
}

impl FromStr for TargetAction {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<TargetAction, ChoiceError> {
        match text {
            "promote" => Ok(TargetAction::Promote),
            "pause" => Ok(TargetAction::Pause),
            "shutdown" => Ok(TargetAction::Shutdown),
            _ => Err(ChoiceError { text: text.to_owned(), expected: "promote, pause or shutdown" }),
        }
    }
}

/// Text that is none of a few words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {text:?}: expected {expected}")]
pub struct ChoiceError {
    /// What was read.
    pub text: String,
    /// What could have been.
    pub expected: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(target: &str) -> String {
        let restore_command = "pgkeep wal get %f '%p'".to_owned();
        RecoverySettings::new(target.parse().unwrap(), restore_command).auto_conf_lines(Major::new(17))
    }

    #[test]
    fn the_one_target_comes_after_the_empty_ones() {
        let expected = "restore_command = 'pgkeep wal get %f ''%p'''\n\
            recovery_end_command = ''\n\
            archive_cleanup_command = ''\n\
            recovery_target_timeline = 'latest'\n\
            recovery_target_inclusive = 'on'\n\
            recovery_target_action = 'promote'\n\
            recovery_target = ''\n\
            recovery_target_lsn = ''\n\
            recovery_target_name = ''\n\
            recovery_target_xid = ''\n\
            recovery_target_time = '2026-11-20 03:00:00.123456+00'\n";
        assert_eq!(lines("2026-11-20T03:00:00.1234567Z"), expected);
    }

    #[test]
    fn each_target_has_its_setting() {
        assert!(lines("immediate").ends_with("recovery_target = 'immediate'\n"));
        assert!(lines("1/2").ends_with("recovery_target_lsn = '1/2'\n"));
        assert!(lines("77").ends_with("recovery_target_xid = '77'\n"));
        assert!(lines("name:it's").ends_with("recovery_target_name = 'it''s'\n"));
        assert!(lines("latest").ends_with("recovery_target_xid = ''\n"));
    }

    #[test]
    fn a_leftover_trigger_file_is_forgotten_where_the_setting_exists() {
        let settings = RecoverySettings::new(RecoveryTarget::Latest, "false".to_owned());
        assert!(settings.auto_conf_lines(Major::new(15)).contains("promote_trigger_file = ''\n"));
        assert!(!settings.auto_conf_lines(Major::new(16)).contains("promote_trigger_file"));
    }

    #[test]
    fn every_line_is_one_of_the_settings_to_drop() {
        for setting in conf::parse(lines("immediate").as_bytes()) {
            assert!(RECOVERY_SETTINGS.contains(&setting.name.as_str()), "{}", setting.name);
        }
    }

    #[test]
    fn choices_round_trip() {
        for text in ["latest", "current", "12"] {
            assert_eq!(text.parse::<TargetTimeline>().unwrap().to_string(), text);
        }
        for text in ["promote", "pause", "shutdown"] {
            assert_eq!(text.parse::<TargetAction>().unwrap().to_string(), text);
        }
        assert!("0".parse::<TargetTimeline>().is_err());
        assert!("stop".parse::<TargetAction>().is_err());
    }
}
