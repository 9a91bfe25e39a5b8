//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    backup, check, config, copy, demo, expire, export, history, info, init, key, list, pin, prune, restore,
    round, serve, status, verify, wal,
};
use crate::settings::Flag;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "pgkeep",
    version,
    max_term_width = 80,
    about = "Keeps a PostgreSQL database recoverable to any moment",
    after_help = "Every setting is also a variable (PGKEEP_REPOSITORY, PGKEEP_KEY_FILE…) and a line of \
        pgkeep.toml; `pgkeep config` shows what applies and where it comes from.\n\n\
        Exit codes: 0 done, 2 wrong request, 3 not found, 4 try again, 5 damaged data, 6 conflict, \
        70 a mistake in pgkeep, 1 anything else."
)]
pub struct Arguments {
    #[command(flatten)]
    pub shared: Shared,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the repository and its keys, check the server, say what to set
    Init(init::InitArguments),
    /// Take a backup now
    Backup(backup::BackupArguments),
    /// Bring a past moment back into a new data directory
    Restore(restore::RestoreArguments),
    /// Write a logical backup as a file for psql or pg_restore
    Export(export::ExportArguments),
    /// Carry WAL into the repository and back
    #[command(subcommand)]
    Wal(wal::WalCommand),
    /// List the backups
    List(list::ListArguments),
    /// Say from when to when can be restored, and what is missing
    Status(status::StatusArguments),
    /// Look whether everything is there that the backups need, in seconds
    Check(check::CheckArguments),
    /// Read what is stored and prove that it is whole
    Verify(verify::VerifyArguments),
    /// Show everything about one backup
    Info(info::InfoArguments),
    /// Remove the backups and the WAL that the policy keeps no longer
    Expire(expire::ExpireArguments),
    /// Free the space of what no backup names any more
    Prune(prune::PruneArguments),
    /// Keep a backup whatever the policy says
    Pin(pin::PinArguments),
    /// Do one scheduled round now: backup, expire, prune, verify
    Run(round::RunArguments),
    /// Protect the database until stopped: every round at its time
    Serve(serve::ServeArguments),
    /// Show what ran, when, how long, and why it failed
    History(history::HistoryArguments),
    /// Copy backups and WAL into another repository
    Copy(copy::CopyArguments),
    /// Show the settings that apply and where each comes from
    Config(config::ConfigArguments),
    /// Manage the keys that open the repository
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Show the whole story on a throwaway server
    Demo(demo::DemoArguments),
    /// Show the version
    Version,
}

/// What every command takes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct Shared {
    /// The configuration file [default: ./pgkeep.toml or /etc/pgkeep/pgkeep.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the repository is: /path, s3://bucket/prefix, gs://…, az://…; or
    /// the name of one of several that are configured
    #[arg(long, short, global = true, value_name = "LOCATION")]
    repository: Option<String>,
    /// Which of the repository's clusters [default: main]
    #[arg(long, global = true, value_name = "NAME")]
    cluster: Option<String>,
    /// How to reach the server: a URL or keywords, as for psql
    #[arg(long, short, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// A file with a key of the repository
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<String>,
    /// A file with a passphrase of the repository
    #[arg(long, global = true, value_name = "FILE")]
    passphrase_file: Option<String>,
    /// A command that prints the passphrase
    #[arg(long, global = true, value_name = "COMMAND", hide_short_help = true)]
    passphrase_command: Option<String>,
    /// A file with a writer credential, which adds and cannot read
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    writer_file: Option<String>,
    /// The folder for what this host keeps for itself
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    state_dir: Option<String>,
    /// The folder for WAL on its way
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    spool_dir: Option<String>,
    /// How much to do at the same time [default: the number of cores]
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    workers: Option<String>,
    /// Any other setting, as in `--set s3.region=auto`
    #[arg(long, global = true, value_name = "NAME=VALUE", hide_short_help = true, value_parser = assignment)]
    set: Vec<(String, String)>,
    /// What to log on standard error: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", hide_short_help = true)]
    log: Option<String>,
    /// Results and errors as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Shared {
    /// Whether a setting has an option of its own.
    pub fn has_option(name: &str) -> bool {
        Self::augment_args(clap::Command::new("")).get_arguments().any(|argument| argument.get_id() == name)
    }

    /// The settings that were given as options.
    pub fn flags(&self) -> Vec<Flag> {
        let options: [(&str, &Option<String>); 11] = [
            ("repository", &self.repository),
            ("cluster", &self.cluster),
            ("database_url", &self.database_url),
            ("key_file", &self.key_file),
            ("passphrase_file", &self.passphrase_file),
            ("passphrase_command", &self.passphrase_command),
            ("writer_file", &self.writer_file),
            ("state_dir", &self.state_dir),
            ("spool_dir", &self.spool_dir),
            ("workers", &self.workers),
            ("log", &self.log),
        ];
        let flag = |name: &str, option: String, value: &str| Flag {
            name: name.to_owned(),
            option,
            value: value.to_owned(),
        };
        let named = options.iter().filter_map(|(name, value)| {
            let value = value.as_deref()?;
            Some(flag(name, format!("--{}", name.replace('_', "-")), value))
        });
        let set = self.set.iter().map(|(name, value)| flag(name, format!("--set {name}"), value));
        named.chain(set).collect()
    }

    /// The options that give another process of ours the same settings.
    pub fn again(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        if let Some(file) = &self.config {
            words.extend(["--config".into(), file.clone().into_os_string()]);
        }
        for flag in self.flags() {
            match flag.option.split_once(' ') {
                Some((option, name)) => {
                    words.extend([option.into(), format!("{name}={}", flag.value).into()])
                }
                None => words.extend([flag.option.into(), flag.value.into()]),
            }
        }
        words
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_another_process_is_told_says_the_same() {
        let line =
            ["pgkeep", "run", "--config", "/f.toml", "-r", "/r", "--set", "s3.region=auto=x", "--json"];
        let shared = Arguments::try_parse_from(line).unwrap().shared;
        let again = [&["pgkeep".into()][..], &shared.again()[..], &["list".into()][..]].concat();
        let told = Arguments::try_parse_from(again).unwrap().shared;
        assert_eq!((told.again(), told.json), (shared.again(), false));
        assert_eq!(told.again().len(), 6);
    }

    #[test]
    fn options_become_flags_with_the_settings_name() {
        let line = ["pgkeep", "list", "--key-file", "k", "--set", "s3.region=auto", "-r", "/r"];
        let flags = Arguments::try_parse_from(line).unwrap().shared.flags();
        let shown: Vec<_> =
            flags.iter().map(|flag| format!("{}={} ({})", flag.name, flag.value, flag.option)).collect();
        assert_eq!(
            shown,
            ["repository=/r (--repository)", "key_file=k (--key-file)", "s3.region=auto (--set s3.region)"]
        );
    }
}
