//! The folder in which the demo happens, and this program run in it as the user that owns the servers.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use server::settings_check::archive_command;
use server::throwaway::{Binaries, RunAs, Throwaway};

use crate::failure::{Class, Failure, Outcome};

/// A folder of its own with a copy of this program, a configuration and a repository.
pub struct Stage {
    folder: tempfile::TempDir,
    program: PathBuf,
    run_as: RunAs,
    binaries: Binaries,
}

/// How long removing may take while something still writes.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);

/// Ends the processes that were started with this configuration, which is ours alone; returns how many there were.
fn end_processes_of(config: &Path) -> usize {
    let config = config.to_string_lossy();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|word| word == config.as_bytes())
    });
    let ended = ours.filter_map(Pid::from_raw).filter(|&pid| kill_process(pid, Signal::KILL).is_ok());
    ended.count()
}

/// A failure of a step.
pub fn failed<E: std::error::Error + 'static>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::caused(format!("{what} in the demo"), &error)
}

impl Stage {
    /// Makes the folder below `parent`, or below the usual place for what is temporary.
    pub fn new(parent: Option<&Path>, binaries: &Binaries) -> Outcome<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let folder = tempfile::Builder::new().prefix("pgkeep-demo-").tempdir_in(&parent);
        let folder = folder.map_err(failed("make a folder"))?;
        let run_as = RunAs::unprivileged().map_err(failed("find a user for the servers"))?;
        let program = std::env::current_exe().map_err(failed("find this program"))?;
        let program = if run_as.ids().is_some() {
            // The build folder may be closed to the user that the servers run as.
            let copy = folder.path().join("pgkeep");
            fs::copy(&program, &copy).map_err(failed("copy this program"))?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))
                .map_err(failed("copy this program"))?;
            copy
        } else {
            program
        };
        let config = "repository = \"./repository\"\nkey_file = \"key\"\nstate_dir = \"state\"\n";
        fs::write(folder.path().join("pgkeep.toml"), config).map_err(failed("write the configuration"))?;
        run_as.give(folder.path()).map_err(failed("give the folder away"))?;
        Ok(Self { folder, program, run_as, binaries: binaries.clone() })
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends what still runs here and removes everything.
    ///
    /// A server that was killed leaves the `wal push` that it had started, which goes on writing for a moment.
    pub fn remove(self) -> std::io::Result<()> {
        let folder = self.folder.keep();
        let until = Instant::now() + REMOVED_WITHIN;
        loop {
            let ended = end_processes_of(&folder.join("pgkeep.toml"));
            match fs::remove_dir_all(&folder) {
                // Gone, and nobody was there to make it again.
                Err(error) if error.kind() == ErrorKind::NotFound && ended == 0 => return Ok(()),
                Err(error) if error.kind() != ErrorKind::NotFound && Instant::now() > until => {
                    return Err(error);
                }
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("pgkeep.toml")
    }

    /// A server that archives into the repository.
    pub fn start_server(&self) -> Outcome<Throwaway> {
        let config = self.config();
        let command = archive_command(&self.program, &["--config", &config.to_string_lossy()]);
        Throwaway::builder(&self.binaries)
            .setting("wal_level", "replica")
            .setting("archive_mode", "on")
            .setting("archive_command", &command)
            .setting("archive_timeout", "60")
            .start()
            .map_err(failed("start a server"))
    }

    /// A server on the restored files.
    pub fn start_restored(&self, data_directory: &Path) -> Outcome<Throwaway> {
        Throwaway::builder(&self.binaries)
            .start_existing(data_directory)
            .map_err(failed("start the restored server"))
    }

    /// Runs this program with the demo's configuration and nobody's environment.
    pub fn pgkeep(&self, arguments: &[&str]) -> Outcome<Output> {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.current_dir(self.folder.path()).arg("--config").arg(self.config()).args(arguments);
        self.run_as.apply(&mut command);
        let output = command.output().map_err(failed("run pgkeep"))?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(Class::Bug, format!("run `pgkeep {}` in the demo", arguments[0]))
            .because(format!("it ended with {}", output.status))
            .because(said.trim().to_owned()))
    }

    /// The same, and reads what it says.
    pub fn pgkeep_json(&self, arguments: &[&str]) -> Outcome<serde_json::Value> {
        let output = self.pgkeep(&[arguments, &["--json"]].concat())?;
        serde_json::from_slice(&output.stdout).map_err(failed("read what pgkeep says"))
    }

    /// What the repository takes on disk.
    pub fn repository_bytes(&self) -> u64 {
        let mut waiting = vec![self.folder.path().join("repository")];
        let mut bytes = 0;
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => waiting.push(entry.path()),
                    Ok(metadata) => bytes += metadata.len(),
                    Err(_) => {}
                }
            }
        }
        bytes
    }
}
