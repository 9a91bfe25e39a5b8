//! `pgkeep check`: whether everything is there, from names, sizes and manifests.

use clap::Args;
use operations::check::{self, CheckReport};
use operations::findings::{Finding, Severity};

use super::Session;
use crate::failure::{Class, Failure, Outcome, push_wrapped};
use crate::opening;
use crate::output::{print_error, width};
use crate::secret_files::Use;

/// What to show.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// List the objects that are of no name that pgkeep gives
    #[arg(long, short)]
    verbose: bool,
}

/// Checks the cluster. The exit code is that of damaged data if damage was found, and that of "try again" if something could
/// not be looked at.
pub async fn run(session: &Session, arguments: &CheckArguments) -> Outcome<u8> {
    let repository = opening::open(&session.settings, Use::Read).await?;
    let cluster = &session.settings.cluster;
    let report = check::check(&repository, cluster).await;
    let report = report.map_err(|error| could_not_look(format!("check cluster {cluster}"), &error))?;
    session.output.show(&report, || text(&report, arguments.verbose))?;
    if report.is_damaged() {
        return Ok(Class::Damaged as u8);
    }
    if report.not_looked_at.is_empty() { Ok(0) } else { Ok(Class::TryAgain as u8) }
}

/// A failure that says nothing about what is stored: whatever its class, a script must not take it for damage.
pub(super) fn could_not_look(what: String, error: &(dyn std::error::Error + 'static)) -> Failure {
    let failure = Failure::caused(what, error);
    if failure.class == Class::WrongRequest { failure } else { failure.class(Class::TryAgain) }
}

fn text(report: &CheckReport, verbose: bool) -> String {
    let mut text = String::new();
    push_findings(&mut text, &report.findings);
    if verbose {
        report.strays.iter().for_each(|stray| push_wrapped(&mut text, "unknown: ", stray, width()));
    }
    for what in &report.not_looked_at {
        push_wrapped(&mut text, "not looked at: ", what, width());
    }
    let CheckReport { backups, packs, segments, .. } = report;
    let seen = format!("{backups} backups, {packs} packs, {segments} WAL segments");
    let verdict = if report.is_damaged() {
        "There is damage."
    } else if report.not_looked_at.is_empty() {
        "Everything that they name is there; `pgkeep verify` reads it."
    } else {
        "What could be looked at is there."
    };
    push_wrapped(&mut text, "", &format!("{seen}. {verdict}"), width());
    text
}

/// The findings, each with its object, its files and what follows from it.
pub(super) fn push_findings(text: &mut String, findings: &[Finding]) {
    /// So many files of one finding are shown; JSON has more.
    const FILES: usize = 10;
    for finding in findings {
        let head = if finding.severity == Severity::Damage { "damage:  " } else { "warning: " };
        push_wrapped(text, head, &finding.what, width());
        if let Some(object) = &finding.object {
            push_wrapped(text, "  object:   ", object, width());
        }
        for file in finding.files.iter().take(FILES) {
            let (first, last) = file.blocks;
            let place = format!(
                "{} of {}, bytes {} to {} (blocks {first} to {last})",
                file.path, file.backup, file.from, file.to
            );
            push_wrapped(text, "  file:     ", &place, width());
        }
        let more = finding.more_files + finding.files.len().saturating_sub(FILES) as u64;
        if more > 0 {
            push_wrapped(text, "  file:     ", &format!("and {more} more"), width());
        }
        push_wrapped(text, "  so:       ", &finding.consequence, width());
    }
}

/// Says on standard error why a report is not whole.
pub(super) fn tell_stopped(failure: &Failure) {
    print_error(&failure.render(width()));
}
