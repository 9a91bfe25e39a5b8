//! What to change on a server before it can be kept: findings, and the exact lines for its configuration.
//!
//! Nothing here asks or changes the server; it judges [`ServerFacts`]. Findings are values: a server that is not ready
//! is no error.

use std::path::Path;
use std::time::Duration;

use pg::control::WalLevel;
use pg::page::PAGE_SIZE;
use pg::version::BackupFunctions;
use pg::wal::SegmentName;
use pg::{Major, conf};

use crate::facts::{ArchiveMode, ServerFacts};

/// The timeout we propose: at most this much is lost with the machine when the server writes too little to fill segments.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// The start of the names of the replication slots that pgkeep receives from.
pub const OUR_SLOTS: &str = "pgkeep_";

/// From here on a timeout deserves a word.
const LONG_ARCHIVE_TIMEOUT: Duration = Duration::from_secs(600);

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing depends on it.
    Advice,
    /// Works, but loses more, or shows less, than it needs to.
    Warning,
    /// Cannot be backed up by its files and WAL like this.
    Problem,
}

/// One thing to know about a server's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is the case.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// What was found, and what to set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The gravest first, otherwise in the order in which to mend them.
    pub findings: Vec<Finding>,
    /// Lines for `postgresql.conf` that mend what settings can mend.
    pub lines: Vec<String>,
    /// Whether those lines take effect only after a restart of the server, not at a reload.
    pub needs_restart: bool,
}

impl Report {
    /// True when nothing stands in the way of backing the server up by its files and WAL.
    pub fn is_ready(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Problem)
    }

    fn find(&mut self, severity: Severity, what: impl Into<String>, hint: impl Into<String>) {
        self.findings.push(Finding { severity, what: what.into(), hint: hint.into() });
    }

    fn set(&mut self, name: &str, value: &str) {
        self.lines.push(format!("{name} = {value}"));
    }
}

/// How a server's WAL is to come to the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archiving<'a> {
    /// The server calls pgkeep; see [`archive_command`] for how to spell it.
    Command(&'a str),
    /// The server's machine has no pgkeep: somebody receives the WAL from the server. Its data directory need not be seen.
    Receiving,
}

/// Judges a server that is to be backed up by its files and WAL.
pub fn check(facts: &ServerFacts, archiving: Archiving<'_>) -> Report {
    let mut report = Report::default();
    check_server(facts, &mut report);
    check_role(facts, archiving, &mut report);
    check_wal_level(facts, &mut report);
    match archiving {
        // A standby's WAL is archived by its primary.
        _ if facts.in_recovery => {}
        Archiving::Command(wanted) => {
            check_archive_mode(facts, &mut report);
            check_archive_command(facts, wanted, &mut report);
            check_archive_timeout(facts, &mut report);
        }
        Archiving::Receiving => check_receiving(facts, &mut report),
    }
    check_pages(facts, &mut report);
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    report
}

/// The command that hands a finished segment to pgkeep: `/usr/bin/pgkeep wal push %p`.
///
/// The server passes it to a shell after replacing `%p`, so the program's path and the arguments that come before
/// `wal push` are quoted for both. Source: `shell_archive_file`, `shell_archive.c`.
pub fn archive_command(program: &Path, arguments: &[&str]) -> String {
    command_line(program, arguments, "wal push %p")
}

/// The command that brings a segment back: `/usr/bin/pgkeep wal get %f %p`, quoted as [`archive_command`] is. Source:
/// `BuildRestoreCommand`, `shell_restore.c`.
pub fn restore_command(program: &Path, arguments: &[&str]) -> String {
    command_line(program, arguments, "wal get %f %p")
}

/// As [`restore_command`], for a recovery whose target lies in the beginning of a segment, before a gap in the WAL.
pub fn up_to_gap_command(program: &Path, arguments: &[&str], segment: &SegmentName) -> String {
    command_line(program, arguments, &format!("wal get --up-to-gap {segment} %f %p"))
}

fn command_line(program: &Path, arguments: &[&str], rest: &str) -> String {
    let mut words = vec![shell_word(&program.to_string_lossy())];
    words.extend(arguments.iter().map(|argument| shell_word(argument)));
    words.push(rest.to_owned());
    words.join(" ")
}

/// The statements that give a role what a backup by files needs, short of reading the files themselves.
pub fn grants(facts: &ServerFacts) -> Vec<String> {
    let functions = facts.major.facts().map_or(BackupFunctions::Renamed, |known| known.backup_functions);
    let role = format!("\"{}\"", facts.role.replace('"', "\"\""));
    vec![
        format!("GRANT EXECUTE ON FUNCTION {} TO {role};", functions.start_signature()),
        format!("GRANT EXECUTE ON FUNCTION {} TO {role};", functions.stop_signature()),
        format!("GRANT pg_read_all_settings TO {role};"),
    ]
}

fn check_server(facts: &ServerFacts, report: &mut Report) {
    if !facts.major.is_supported() {
        let supported: Vec<String> = Major::supported().map(|major| major.to_string()).collect();
        let what = format!("PostgreSQL {} is not supported", facts.major);
        report.find(Severity::Problem, what, format!("supported are {}", supported.join(", ")));
    }
    if facts.in_recovery {
        let hint = "its primary must archive, or `pgkeep wal receive` run; set primary_url, so that a backup can end the \
                    segment that an idle primary is writing";
        report.find(Severity::Advice, "this server is a standby: its WAL comes from its primary", hint);
    }
    if facts.block_size as usize != PAGE_SIZE {
        let what = format!("the server's pages have {} bytes", facts.block_size);
        report.find(Severity::Problem, what, format!("only builds with {PAGE_SIZE} bytes are supported"));
    }
}

fn check_role(facts: &ServerFacts, archiving: Archiving<'_>, report: &mut Report) {
    let grants = grants(facts);
    if !facts.can_backup {
        let what = format!("role {} may not start and stop a backup", facts.role);
        report.find(Severity::Problem, what, format!("as a superuser: {}", grants[..2].join(" ")));
    }
    if facts.data_directory.is_none() {
        let what = format!("role {} may not see where the data directory is", facts.role);
        // Through the server it is found without its name; only configuration outside it is not.
        let severity = match archiving {
            Archiving::Command(_) => Severity::Problem,
            Archiving::Receiving => Severity::Advice,
        };
        report.find(severity, what, format!("as a superuser: {}", grants[2]));
    }
    if facts.system_identifier.is_none() || facts.catalog_version.is_none() {
        let what = format!("role {} may not read the cluster's system identifier", facts.role);
        let hint =
            format!("as a superuser: GRANT EXECUTE ON FUNCTION pg_control_system() TO \"{}\";", facts.role);
        report.find(Severity::Problem, what, hint);
    }
}

fn check_wal_level(facts: &ServerFacts, report: &mut Report) {
    if facts.wal_level == WalLevel::Minimal {
        let what = "wal_level is minimal: the WAL lacks what a restore needs";
        report.find(Severity::Problem, what, "set wal_level = replica and restart the server");
        report.set("wal_level", "replica");
        report.needs_restart = true;
    }
}

/// The server has no pgkeep to call, so nothing needs to be set; but somebody must receive.
fn check_receiving(facts: &ServerFacts, report: &mut Report) {
    let receive = "WAL comes by `pgkeep wal receive`: run it all the time, anywhere";
    if !facts.may_replicate {
        let what = format!("role {} may not receive WAL", facts.role);
        let hint = format!("as a superuser: ALTER ROLE {} REPLICATION;", crate::grants::quote(&facts.role));
        report.find(Severity::Problem, what, hint);
    }
    if facts.archive_mode == ArchiveMode::Off {
        // A backup without either would wait for WAL that never comes.
        if facts.slots.iter().any(|slot| slot.name.starts_with(OUR_SLOTS)) {
            report.find(Severity::Advice, "archive_mode is off, and may stay so", receive);
        } else {
            let what = "archive_mode is off, and nobody receives: no WAL is handed over";
            report.find(Severity::Problem, what, receive);
        }
        return;
    }
    match facts.archive_command.as_deref() {
        Some(command) if command.contains("pgkeep") => {}
        Some("") if facts.archive_library.as_deref().unwrap_or_default().is_empty() => {
            let hint = format!("set archive_mode = off and restart the server; {receive}");
            report.find(Severity::Problem, "archive_command is empty: WAL piles up on the server", hint);
        }
        _ => report.find(Severity::Advice, "the server archives by other means, and may go on", receive),
    }
}

fn check_archive_mode(facts: &ServerFacts, report: &mut Report) {
    if facts.archive_mode == ArchiveMode::Off {
        let what = "archive_mode is off: no WAL is handed over";
        let hint = "set archive_mode = on and restart the server; or run `pgkeep wal receive`, which needs none of this";
        report.find(Severity::Problem, what, hint);
        report.set("archive_mode", "on");
        report.needs_restart = true;
    }
}

fn check_archive_command(facts: &ServerFacts, wanted: &str, report: &mut Report) {
    if let Some(library) = facts.archive_library.as_deref().filter(|library| !library.is_empty()) {
        let what = format!("archive_library is {library}: it archives in the command's place");
        report.find(Severity::Problem, what, "set archive_library = '' and reload the server");
        report.set("archive_library", "''");
    }
    let hint = format!("set archive_command = {} and reload the server", conf::quote(wanted));
    match facts.archive_command.as_deref() {
        Some(command) if is_ours(command, wanted) => return,
        Some("") => {
            report.find(Severity::Problem, "archive_command is empty: WAL piles up on the server", hint)
        }
        Some(other) => {
            let what = format!("archive_command is another one: {other}");
            report.find(Severity::Problem, what, format!("{hint}; the old archive ends there"));
        }
        // Also what a server shows while archive_mode is off, which has been said already.
        None if facts.archive_mode == ArchiveMode::Off => {}
        None => {
            let what = format!("role {} may not see archive_command", facts.role);
            report.find(Severity::Warning, what, format!("as a superuser: {}", grants(facts)[2]));
        }
    }
    report.set("archive_command", &conf::quote(wanted));
}

fn check_archive_timeout(facts: &ServerFacts, report: &mut Report) {
    let proposed = ARCHIVE_TIMEOUT.as_secs();
    if facts.archive_timeout.is_zero() {
        let what = "archive_timeout is 0: what a quiet server writes may stay unarchived for hours";
        report.find(
            Severity::Warning,
            what,
            format!("set archive_timeout = {proposed} and reload the server"),
        );
        report.set("archive_timeout", &proposed.to_string());
    } else if facts.archive_timeout > LONG_ARCHIVE_TIMEOUT {
        let what = format!("archive_timeout is {}s: that much may be lost", facts.archive_timeout.as_secs());
        report.find(Severity::Advice, what, format!("consider archive_timeout = {proposed}"));
    }
}

fn check_pages(facts: &ServerFacts, report: &mut Report) {
    if !facts.full_page_writes {
        let what = "full_page_writes is off: a crash of the machine may tear pages for good";
        report.find(Severity::Warning, what, "set full_page_writes = on and reload the server");
        report.set("full_page_writes", "on");
    }
    if !facts.data_checksums {
        let what = "pages carry no checksums: damage on the disk goes unseen into backups";
        let hint = "while the server is stopped: pg_checksums --enable";
        report.find(Severity::Advice, what, hint);
    }
}

/// Whether a command is the wanted one, or another way to call pgkeep's.
fn is_ours(command: &str, wanted: &str) -> bool {
    command == wanted || command.contains("pgkeep") && command.contains("wal push") && command.contains("%p")
}

/// A word that a shell takes as it is, with the percent signs doubled that the server would replace.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:@+,%".contains(c);
    let doubled = text.replace('%', "%%");
    if !text.is_empty() && text.chars().all(plain) {
        return doubled;
    }
    format!("'{}'", doubled.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests;
