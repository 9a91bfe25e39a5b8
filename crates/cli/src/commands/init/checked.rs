//! What `init` found about the server.

use std::path::{Path, PathBuf};

use operations::probe::{Mode, Probe, Reason, Way};
use serde_json::{Value, json};
use server::facts::{ArchiveMode, ServerFacts};
use server::settings_check::{self, Archiving, OUR_SLOTS, Severity};

use crate::failure::push_wrapped;
use crate::output::width;

/// A server that answered.
pub struct Checked {
    facts: ServerFacts,
    probe: Probe,
    way: Result<Way, Reason>,
    report: settings_check::Report,
}

impl Checked {
    /// Looks for ways to back it up, and judges its settings by the way that is gone.
    pub fn new(facts: ServerFacts, mode: Mode, command: &str) -> Self {
        let probe = Probe::of(&facts);
        let way = probe.choose(mode);
        // Where the files are not here, neither is the server's shell; and a server that is received from need not archive.
        let elsewhere = way == Ok(Way::SqlFiles);
        let received = facts.archive_mode == ArchiveMode::Off
            && facts.slots.iter().any(|slot| slot.name.starts_with(OUR_SLOTS));
        let archiving =
            if elsewhere || received { Archiving::Receiving } else { Archiving::Command(command) };
        let mut report = settings_check::check(&facts, archiving);
        if way == Ok(Way::Logical) {
            // Nothing is archived, so that no setting matters.
            report = settings_check::Report::default();
        }
        Self { facts, probe, way, report }
    }

    fn is_ready(&self) -> bool {
        self.way.is_ok() && self.report.is_ready()
    }
}

impl Checked {
    /// For programs.
    pub fn to_json(&self) -> Value {
        let Self { facts, probe, way, report } = self;
        let reasons = |reasons: &[Reason]| -> Vec<Value> {
            reasons.iter().map(|one| json!({"what": one.what, "hint": one.hint})).collect()
        };
        let way = match way {
            Ok(Way::LocalFiles) => Some("local"),
            Ok(Way::SqlFiles) => Some("sql"),
            Ok(Way::Logical) => Some("logical"),
            Err(_) => None,
        };
        json!({
            "reachable": true, "version": facts.version, "ready": self.is_ready(),
            "system_identifier": facts.system_identifier.map(|id| id.to_string()),
            "mode": way, "standby": facts.in_recovery,
            "against": {
                "local": reasons(&probe.local), "sql": reasons(&probe.sql), "logical": reasons(&probe.logical),
            },
            "findings": report.findings.iter().map(|one| json!({
                "severity": severity(one.severity), "what": one.what, "hint": one.hint,
            })).collect::<Vec<_>>(),
            "postgresql_conf": report.lines, "needs_restart": report.needs_restart,
        })
    }

    /// For people.
    pub fn push_text(&self, text: &mut String) {
        let Self { facts, report, .. } = self;
        text.push('\n');
        let ready = if self.is_ready() { "ready" } else { "not ready yet" };
        let what = format!("PostgreSQL {} at {} port {}: {ready}", facts.version, facts.host, facts.port);
        push_wrapped(text, "Server  ", &what, width());
        self.push_way(text);
        for finding in &report.findings {
            push_wrapped(text, &format!("  {}: ", severity(finding.severity)), &finding.what, width());
            push_wrapped(text, "    ", &finding.hint, width());
        }
        if let (false, Some(file)) = (report.lines.is_empty(), config_file(facts)) {
            let then = if report.needs_restart { "restart" } else { "reload" };
            text.push_str(&format!("\nFor {}, then {then} the server:\n\n", file.display()));
            for line in &report.lines {
                text.push_str(&format!("{line}\n"));
            }
        }
    }

    /// How backups will be taken, and what stands against the better ways.
    fn push_way(&self, text: &mut String) {
        match &self.way {
            Ok(Way::LocalFiles) => push_wrapped(text, "Backups ", &Way::LocalFiles.to_string(), width()),
            Ok(Way::SqlFiles) => {
                push_wrapped(text, "Backups ", &Way::SqlFiles.to_string(), width());
                for reason in &self.probe.local {
                    push_wrapped(text, "  not local: ", &reason.what, width());
                }
            }
            Ok(Way::Logical) => {
                push_wrapped(text, "Backups ", &Way::Logical.to_string(), width());
                for reason in &self.probe.sql {
                    push_wrapped(text, "  not physical: ", &reason.what, width());
                }
            }
            Err(reason) => {
                push_wrapped(text, "  problem: ", &reason.what, width());
                push_wrapped(text, "    ", &reason.hint, width());
            }
        }
    }
}

fn config_file(facts: &ServerFacts) -> Option<PathBuf> {
    facts.config_file.clone().or_else(|| Some(Path::new("postgresql.conf").to_owned()))
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Advice => "advice",
        Severity::Warning => "warning",
        Severity::Problem => "problem",
    }
}
