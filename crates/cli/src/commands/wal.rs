//! `pgkeep wal`: what `archive_command` and `restore_command` call, and what the archive holds.

mod list;
pub mod push;
mod receive;

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Subcommand;
use jiff::Timestamp;
use operations::archive::push::drain;
use operations::archive::{Background, Context, Limits, get};
use pg::wal::SegmentName;

use super::Session;
use crate::failure::{Class, Failure, Outcome};
use crate::opening;
use crate::secret_files::Use;
use crate::settings::Settings;

/// Files that may be stored ahead in one of several repositories: while another holds PostgreSQL up, it is to have all that
/// waits. They are the server's own and wait there anyway, so that only the number of notes is bounded.
const AHEAD_OF_OTHERS: usize = 4096;

/// What to do with WAL.
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Store one file; for archive_command = 'pgkeep wal push %p'
    #[command(
        after_help = "Exit codes: 0 only when the file is durable in the repository; 1 to 125 otherwise, as \
        PostgreSQL expects."
    )]
    Push {
        /// The file, %p
        file: PathBuf,
    },
    /// Fetch one file; for restore_command = 'pgkeep wal get %f %p'
    #[command(
        after_help = "Exit codes: 0 fetched, 1 the repository proves that it has no such file; above 200 anything \
        else (202 wrong request, 203 not found, 204 try again, 205 damaged data), which stops recovery \
        instead of ending it early."
    )]
    Get {
        /// The file's name, %f
        name: String,
        /// Where to put it, %p
        target: PathBuf,
        /// Bring the beginning of this segment though later WAL is stored, or let WAL end at it, for a target before that gap
        #[arg(long, value_name = "SEGMENT")]
        up_to_gap: Option<SegmentName>,
    },
    /// Receive WAL as the server writes it, and be about a second behind
    Receive(receive::ReceiveArguments),
    /// Show what the archive holds, what is missing, and how far it is behind
    List(list::WalListArguments),
    /// Store ahead what waits in archive_status
    #[command(hide = true)]
    Drain {
        /// The server's pg_wal
        directory: PathBuf,
        /// So many files at most
        #[arg(long, value_name = "N")]
        ahead: Option<usize>,
    },
    /// Fetch ahead what recovery will ask for
    #[command(hide = true)]
    Prefetch {
        /// The recovering server's pg_wal
        directory: PathBuf,
        /// The segment before the first one wanted
        after: SegmentName,
    },
}

/// Does it; returns the exit code.
pub async fn run(session: &Session, command: &WalCommand) -> Outcome<u8> {
    let settings = &session.settings;
    match command {
        WalCommand::Push { file } => push::run(settings, file).await,
        WalCommand::Get { name, target, up_to_gap } => {
            let context = Context { up_to_gap: *up_to_gap, ..context(settings, Use::Read).await? };
            match get::run(&context, name, target, &|background| start(settings, background)).await {
                Ok(_) => Ok(0),
                Err(error @ get::GetError::Absent { .. }) => {
                    // Recovery asks for files that need not exist, and learns the end of WAL in this way.
                    tracing::info!("{error}");
                    Ok(error.exit_status())
                }
                Err(error) => {
                    let what = format!("bring {name} from the archive");
                    Err(Failure::caused(what, &error).with_status(error.exit_status()))
                }
            }
        }
        WalCommand::Receive(arguments) => receive::run(session, arguments).await,
        WalCommand::List(arguments) => list::run(session, arguments).await,
        WalCommand::Drain { directory, ahead } => {
            leave_the_caller();
            let mut context = context(settings, Use::Add).await?;
            context.limits.ahead = ahead.unwrap_or(context.limits.ahead);
            let drained = drain(&context, directory).await;
            drained.map(|_| 0).map_err(|error| Failure::caused("store WAL ahead", &error))
        }
        WalCommand::Prefetch { directory, after } => {
            leave_the_caller();
            let context = context(settings, Use::Read).await?;
            let fetched = get::prefetch(&context, directory, *after).await;
            fetched.map(|_| 0).map_err(|error| Failure::caused("fetch WAL ahead", &error))
        }
    }
}

async fn context(settings: &Settings, wanted: Use) -> Outcome<Context> {
    let deadline = settings.duration("push_timeout");
    let opened = tokio::time::timeout(deadline, opening::open_quickly(settings, wanted)).await;
    let late = |_| {
        Failure::new(Class::TryAgain, "open the repository")
            .because(format!("the storage did not answer within {} s", deadline.as_secs()))
    };
    Ok(Context {
        repository: opened.map_err(late)??,
        cluster: settings.cluster.clone(),
        spool: settings.spool_dir(),
        up_to_gap: None,
        limits: limits(settings),
        now: Timestamp::now,
    })
}

fn limits(settings: &Settings) -> Limits {
    let deadline = settings.duration("push_timeout");
    let usual = Limits { deadline, workers: settings.workers(), ..Limits::default() };
    if settings.is_alone() { usual } else { Limits { ahead: AHEAD_OF_OTHERS, ..usual } }
}

/// Starts this program again for work that outlives this call, with nothing of ours that PostgreSQL could wait for.
fn start(settings: &Settings, background: &Background) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(settings.options_for_commands()).arg("wal");
    match background {
        Background::Drain { wal_directory } => {
            let ahead = limits(settings).ahead.to_string();
            command.arg("drain").arg(wal_directory).args(["--ahead", &ahead])
        }
        Background::Prefetch { wal_directory, after } => {
            command.arg("prefetch").arg(wal_directory).arg(after.to_string())
        }
    };
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop)
}

/// A session of our own: a signal to the server's process group, or the end of its terminal, is not meant for us.
fn leave_the_caller() {
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "cannot begin a session");
    }
}
