//! The program `pgkeep`: the command line, the settings, and how results and failures are shown.
//!
//! In reading order: [`arguments`], [`settings`], [`opening`] (from settings to an open repository), [`commands`] (one
//! module each), [`failure`] (from an error to text, hint and exit code). This is the only room that reads the
//! environment, prints and exits; what a command *does* is in `operations`.

mod arguments;
mod commands;
mod failure;
mod logging;
mod opening;
mod output;
mod progress;
mod secret_files;
mod settings;
mod terminal;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser as _;
use operations::archive::get::failed_before;
use tokio::runtime::{Builder, Runtime};

use arguments::{Arguments, Command};
use commands::Session;
use commands::wal::WalCommand;
use failure::{Class, Failure, Outcome};
use output::Output;
use settings::Settings;

fn main() -> ExitCode {
    panic::set_hook(Box::new(tell_panic));
    arm_failpoint();
    // What fails before the command line is understood must not look like "no such segment" to a recovering server.
    let recovering = AtomicBool::new(looks_like_wal_get());
    let code = match panic::catch_unwind(AssertUnwindSafe(|| run(&recovering))) {
        Ok(Ok(code)) => code,
        Ok(Err(class)) if recovering.load(Ordering::Relaxed) => failed_before(class as u8),
        Ok(Err(class)) => class as u8,
        Err(_) if recovering.load(Ordering::Relaxed) => failed_before(Class::Bug as u8),
        Err(_) => Class::Bug as u8,
    };
    ExitCode::from(code)
}

/// A guess by the words alone, which holds until the command line is understood.
fn looks_like_wal_get() -> bool {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    words.iter().any(|word| word == "wal") && words.iter().any(|word| word == "get")
}

/// Lets a test have this process killed at a named point, or plant a bug in it. A release build knows neither.
fn arm_failpoint() {
    if !cfg!(debug_assertions) {
        return;
    }
    if let Ok(point) = std::env::var("PGKEEP_FAILPOINT") {
        operations::failpoint::arm(&point);
    }
    if let Ok(bug) = std::env::var("PGKEEP_TEST_BUG") {
        storage::planted::plant(&bug);
    }
}

/// Runs the command line; returns the exit code of a command that ended well, or the class of its failure, which was
/// shown. Says in `recovering` whether the command is `wal get`, as soon as that is known.
fn run(recovering: &AtomicBool) -> Result<u8, Class> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => {
            let usage = told.use_stderr();
            // Where nobody reads the help, there is nobody to tell.
            let _ = told.print();
            return if usage { Err(Class::WrongRequest) } else { Ok(0) };
        }
    };
    let is_get = matches!(arguments.command, Command::Wal(WalCommand::Get { .. }));
    recovering.store(is_get, Ordering::Relaxed);
    let json = arguments.shared.json;
    execute(arguments).map_err(|failure| {
        show(&failure, json);
        failure.class
    })
}

fn show(failure: &Failure, json: bool) {
    if json {
        output::print_error(&format!("{}\n", failure.to_json()));
    } else {
        output::print_error(&failure.render(output::width()));
    }
}

fn execute(arguments: Arguments) -> Outcome<u8> {
    let output = Output { json: arguments.shared.json };
    let quiet = arguments.shared.quiet || output.json;
    match &arguments.command {
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            output.show(&serde_json::json!({"version": version}), || format!("pgkeep {version}\n"))?;
            return Ok(0);
        }
        Command::Demo(demo) => return commands::demo::run(demo, output).map(|()| 0),
        _ => {}
    }
    let settings = Settings::read(&arguments.shared)?;
    logging::begin(&settings);
    settings::warn_of_unknown_variables();
    let options = arguments.shared.again();
    let session = Session { settings, output, quiet, options };
    let runtime = runtime(&arguments.command)?;
    let outcome = runtime.block_on(dispatch(&session, &arguments.command));
    // A call into a filesystem that hangs cannot be taken back: its thread is left behind, or PostgreSQL would wait for it.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(session: &Session, command: &Command) -> Outcome<u8> {
    match command {
        Command::Init(arguments) => commands::init::run(session, arguments).await.map(|()| 0),
        Command::Backup(arguments) => commands::backup::run(session, arguments).await,
        Command::Restore(arguments) => commands::restore::run(session, arguments).await.map(|()| 0),
        Command::Export(arguments) => commands::export::run(session, arguments).await.map(|()| 0),
        Command::Wal(command) => commands::wal::run(session, command).await,
        Command::List(_) => commands::list::run(session).await,
        Command::Status(_) => commands::status::run(session).await,
        Command::Check(arguments) => commands::check::run(session, arguments).await,
        Command::Verify(arguments) => commands::verify::run(session, arguments).await,
        Command::Info(arguments) => commands::info::run(session, arguments).await,
        Command::Expire(arguments) => commands::expire::run(session, arguments).await,
        Command::Run(arguments) => commands::round::run(session, arguments).await,
        Command::Serve(_) => commands::serve::run(session).await,
        Command::History(arguments) => commands::history::run(session, arguments).await,
        Command::Pin(arguments) => commands::pin::run(session, arguments).await,
        Command::Copy(arguments) => commands::copy::run(session, arguments).await,
        Command::Config(arguments) => commands::config::run(session, arguments).map(|()| 0),
        Command::Key(command) => commands::key::run(session, command).await.map(|()| 0),
        Command::Prune(arguments) => commands::prune::run(session, arguments).await.map(|()| 0),
        Command::Demo(_) | Command::Version => Ok(0),
    }
}

/// PostgreSQL waits for `wal push` and `wal get`, which do one thing at a time: they start no threads.
fn runtime(command: &Command) -> Outcome<Runtime> {
    let single = matches!(command, Command::Wal(WalCommand::Push { .. } | WalCommand::Get { .. }));
    let mut builder = if single { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.enable_all().build().map_err(|error| Failure::caused("start the runtime", &error))
}

/// Says in two lines that pgkeep is wrong, instead of Rust's own words.
fn tell_panic(info: &panic::PanicHookInfo<'_>) {
    let what = info.payload().downcast_ref::<&str>().map(|text| (*text).to_owned());
    let what = what.or_else(|| info.payload().downcast_ref::<String>().cloned()).unwrap_or_default();
    let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
    let failure = Failure::new(Class::Bug, "pgkeep made a mistake and stopped")
        .because(format!("{what} ({place})"))
        .hint("nothing that was stored is harmed; please report this");
    output::print_error(&failure.render(80));
}
