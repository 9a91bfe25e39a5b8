//! `pgkeep verify`: whether what is stored is whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use operations::catalogue;
use operations::owner::host_name;
use operations::verify::{self, Budget, Verified, VerifyReport, VerifyRequest};

use super::Session;
use super::check::{could_not_look, push_findings, tell_stopped};
use crate::failure::{Class, Outcome};
use crate::output::{bytes, facts, moment};
use crate::secret_files::Use;
use crate::settings::duration;
use crate::{opening, progress};

/// What to read.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// Backups to verify, as `pgkeep list` names them, or `latest`
    /// [default: all, and all WAL]
    #[arg(value_name = "ID")]
    backups: Vec<String>,
    /// How much to read, of all (5%) or in bytes (10GB): what was proved longest
    /// ago comes first
    #[arg(long, value_name = "SIZE", value_parser = budget)]
    budget: Option<Budget>,
    /// Leave out what was proved within this time, such as 30d
    #[arg(long, value_name = "TIME", value_parser = age)]
    older_than: Option<Duration>,
}

fn budget(text: &str) -> Result<Budget, String> {
    let wrong = || "expected a share such as 5% or a size such as 10GB".to_owned();
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
        return if percent > 0.0 && percent <= 100.0 { Ok(Budget::Percent(percent)) } else { Err(wrong()) };
    }
    text.parse::<ByteSize>().map(|size| Budget::Bytes(size.as_u64())).map_err(|_| wrong())
}

fn age(text: &str) -> Result<Duration, String> {
    const DAY_S: u64 = 86_400;
    let days = text.strip_suffix('d').and_then(|days| days.trim().parse::<u64>().ok());
    let days = days.and_then(|days| days.checked_mul(DAY_S)).map(Duration::from_secs);
    days.or_else(|| duration(text)).ok_or_else(|| "expected a span of time such as 30d or 12h".to_owned())
}

/// Verifies. The exit code is that of damaged data if damage was found, and that of "try again" if not everything could be
/// looked at.
pub async fn run(session: &Session, arguments: &VerifyArguments) -> Outcome<u8> {
    let settings = &session.settings;
    let repository = opening::open(settings, Use::Read).await?;
    let mut backups = Vec::new();
    for text in &arguments.backups {
        backups.push(catalogue::resolve(&repository, &settings.cluster, text).await?);
    }
    let request = VerifyRequest {
        cluster: settings.cluster.clone(),
        backups,
        budget: arguments.budget,
        older_than: arguments.older_than,
        workers: settings.workers(),
        host: host_name(),
        stop: stop_on_interrupt(),
    };
    let what = format!("verify cluster {}", settings.cluster);
    let verified = {
        let monitor = progress::monitor(session.quiet);
        verify::verify(&repository, &request, monitor).await
    };
    let Verified { report, stopped } = verified.map_err(|error| could_not_look(what.clone(), &error))?;
    session.output.show(&report, || text(&report))?;
    let code = if report.is_damaged() { Class::Damaged } else { Class::TryAgain };
    match stopped {
        Some(error) => {
            let hint = "what was seen until then is written down; the same command goes on from there";
            tell_stopped(&could_not_look(what, &error).hint(hint));
            Ok(code as u8)
        }
        None if report.is_damaged() => Ok(code as u8),
        None => Ok(0),
    }
}

/// The first Ctrl-C ends the run in good order; the next one ends the process as ever.
fn stop_on_interrupt() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let raised = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            raised.store(true, Ordering::Release);
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        }
    });
    stop
}

fn text(report: &VerifyReport) -> String {
    let mut text = String::new();
    push_findings(&mut text, &report.findings);
    let rest = match (report.never_proved, report.oldest_proof) {
        (0, Some(oldest)) => format!("everything was proved since {}", moment(oldest)),
        (0, None) => "nothing is stored".to_owned(),
        (never, _) => format!("{never} packs and segments were not proved yet"),
    };
    let lines = [
        ("Backups", format!("{} (manifests and file lists)", report.backups)),
        ("Packs", format!("{} of {} proved whole", report.packs_proved, report.packs)),
        ("WAL", format!("{} of {} segments proved whole", report.segments_proved, report.segments)),
        ("Pages", format!("{} with a right checksum", report.pages_verified)),
        ("Read", format!("{} of {}", bytes(report.bytes_read), bytes(report.bytes))),
        ("Proved", rest),
    ];
    text.push_str(&facts(&lines));
    let verdict = match (report.is_damaged(), report.complete) {
        (true, _) => "There is damage.",
        (false, true) => "No damage was found.",
        (false, false) => "No damage was found in what was read.",
    };
    text.push_str(verdict);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_or_a_size() {
        assert_eq!(budget("5%"), Ok(Budget::Percent(5.0)));
        assert_eq!(budget("10GB"), Ok(Budget::Bytes(10_000_000_000)));
        for text in ["", "%", "0%", "101%", "-3%", "much"] {
            assert!(budget(text).is_err(), "{text}");
        }
        assert_eq!(
            (age("30d"), age("12h")),
            (Ok(Duration::from_secs(2_592_000)), Ok(Duration::from_secs(43_200)))
        );
        assert!(age("soon").is_err());
    }
}
