//! The log, on standard error: for what is not worth an answer but worth knowing.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use crate::settings::Settings;

/// Begins to log at the configured level. Libraries log warnings and worse only, whatever the level: their traces show
/// headers of requests.
pub fn begin(settings: &Settings) {
    let level = settings.word("log");
    let rooms = ["pgkeep", "operations", "repository", "server", "storage", "pg"];
    let directives: Vec<String> = rooms.iter().map(|room| format!("{room}={level}")).collect();
    let libraries = if level == "error" { "error" } else { "warn" };
    let filter = EnvFilter::new(format!("{libraries},{}", directives.join(",")));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would panic where standard error is full or closed, and a panic ends a recovery.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    let begun = if settings.word("log_format") == "json" {
        builder.json().try_init()
    } else {
        builder.with_target(false).try_init()
    };
    if let Err(error) = begun {
        crate::output::print_error(&format!("warning: no log: {error}\n"));
    }
}
