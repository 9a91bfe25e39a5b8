//! What a throwaway server is to be like.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pg::Major;

use super::run_as::file;
use super::{Binaries, RunAs, Throwaway, ThrowawayError};

/// Socket paths longer than 107 bytes cannot be bound on Linux (`sockaddr_un`); past this the socket moves to `/tmp`.
const LONGEST_TEMP_PATH: usize = 60;

/// The description of a server yet to be started.
#[derive(Clone, Debug)]
pub struct ThrowawayBuilder {
    binaries: Binaries,
    wal_segment_size_mib: u32,
    checksums: bool,
    group_access: bool,
    user: String,
    settings: Vec<(String, String)>,
    ready_within: Duration,
}

impl ThrowawayBuilder {
    pub(super) fn new(binaries: Binaries) -> Self {
        Self {
            binaries,
            wal_segment_size_mib: 16,
            checksums: true,
            group_access: false,
            user: "postgres".to_owned(),
            settings: Vec::new(),
            ready_within: Duration::from_secs(60),
        }
    }

    /// The size of WAL segments of a new cluster: a power of two from 1 to 1024 MiB; 16 when not said.
    pub fn wal_segment_size_mib(mut self, size: u32) -> Self {
        self.wal_segment_size_mib = size;
        self
    }

    /// Whether pages of a new cluster carry checksums; they do when not said.
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Whether a new cluster's files may be read by the group (`initdb --allow-group-access`).
    pub fn group_access(mut self, on: bool) -> Self {
        self.group_access = on;
        self
    }

    /// The database superuser to connect as: made in a new cluster, expected in an existing one; `postgres` when not said.
    pub fn user(mut self, name: &str) -> Self {
        self.user = name.to_owned();
        self
    }

    /// Sets a server parameter: in `postgresql.conf` of a new cluster, on the command line for an existing one.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// How long a start may take until connections are accepted, recovery included; 60 s when not said.
    pub fn ready_within(mut self, limit: Duration) -> Self {
        self.ready_within = limit;
        self
    }

    /// Makes a new cluster and starts a server on it. Its files are not synced: a crash of the machine may lose them.
    pub fn start(self) -> Result<Throwaway, ThrowawayError> {
        let run_as = RunAs::unprivileged()?;
        let directory = self.directory(&run_as)?;
        let data_directory = directory.path().join("data");
        self.initdb(&run_as, directory.path(), &data_directory)?;
        self.write_configuration(&data_directory.join("postgresql.conf"))?;
        self.run(run_as, directory, data_directory, Vec::new())
    }

    /// Starts a server on a cluster that exists, such as a restored one, without changing its configuration files.
    ///
    /// It runs as the owner of the directory. Whatever the cluster's own configuration says, it listens on no network
    /// address, trusts its socket and does not archive (a setting given here wins over the last).
    pub fn start_existing(self, data_directory: &Path) -> Result<Throwaway, ThrowawayError> {
        let run_as = RunAs::owner_of(data_directory)?;
        let directory = self.directory(&run_as)?;
        let hba = directory.path().join("pg_hba.conf");
        write_file(&hba, "local all all trust\nlocal replication all trust\n")?;
        let mut settings = vec![("hba_file", hba)];
        if !data_directory.join("postgresql.conf").exists() {
            // Debian keeps it in /etc; a restored directory then comes without one.
            let configuration = directory.path().join("postgresql.conf");
            write_file(&configuration, "")?;
            settings.push(("config_file", configuration));
        }
        let mut settings: Vec<(String, String)> = settings
            .into_iter()
            .map(|(name, path)| (name.to_owned(), path.to_string_lossy().into_owned()))
            .collect();
        settings.push(("archive_mode".to_owned(), "off".to_owned()));
        settings.extend(self.settings.iter().cloned());
        self.run(run_as, directory, data_directory.to_owned(), settings)
    }

    /// Starts a standby that streams from `primary`, on a copy that `pg_basebackup` makes. Settings given here win over
    /// those of the primary.
    pub fn start_standby_of(self, primary: &Throwaway) -> Result<Throwaway, ThrowawayError> {
        let run_as = primary.run_as().clone();
        let directory = self.directory(&run_as)?;
        let data_directory = directory.path().join("data");
        let mut command = primary.command("pg_basebackup");
        command.current_dir(directory.path()).env("LC_ALL", "C").arg("-D").arg(&data_directory);
        command.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--wal-method=stream"]);
        run_as.apply(&mut command);
        let failed = |output: String| ThrowawayError::Program { program: "pg_basebackup".to_owned(), output };
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let settings = self.settings.clone();
        self.run(run_as, directory, data_directory, settings)
    }

    fn run(
        self,
        run_as: RunAs,
        directory: tempfile::TempDir,
        data_directory: PathBuf,
        settings: Vec<(String, String)>,
    ) -> Result<Throwaway, ThrowawayError> {
        let mut server = Throwaway {
            postmaster: None,
            binaries: self.binaries,
            run_as,
            data_directory,
            user: self.user,
            settings,
            ready_within: self.ready_within,
            directory,
        };
        server.start()?;
        Ok(server)
    }

    fn directory(&self, run_as: &RunAs) -> Result<tempfile::TempDir, ThrowawayError> {
        let mut parent = std::env::temp_dir();
        if parent.as_os_str().len() > LONGEST_TEMP_PATH {
            parent = PathBuf::from("/tmp");
        }
        let directory = tempfile::Builder::new()
            .prefix("pgkeep-")
            .tempdir_in(&parent)
            .map_err(|source| file("make a directory in", &parent, source))?;
        let socket = directory.path().join("socket");
        fs::create_dir(&socket).map_err(|source| file("make", &socket, source))?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o700))
            .map_err(|source| file("protect", &socket, source))?;
        run_as.give(directory.path())?;
        Ok(directory)
    }

    fn initdb(&self, run_as: &RunAs, home: &Path, data_directory: &Path) -> Result<(), ThrowawayError> {
        let mut command = self.binaries.command("initdb");
        command.current_dir(home).env("LC_ALL", "C").arg("-D").arg(data_directory);
        command
            .args(["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--username"])
            .arg(&self.user);
        command.arg(format!("--wal-segsize={}", self.wal_segment_size_mib));
        if self.checksums {
            command.arg("--data-checksums");
        } else if self.binaries.major >= Major::new(18) {
            command.arg("--no-data-checksums");
        }
        if self.group_access {
            command.arg("--allow-group-access");
        }
        run_as.apply(&mut command);
        let failed = |output: String| ThrowawayError::Program { program: "initdb".to_owned(), output };
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(())
    }

    fn write_configuration(&self, path: &Path) -> Result<(), ThrowawayError> {
        let mut lines = String::from("\n# What a throwaway server wants: quick to start, small, quiet.\n");
        let own = [("fsync", "off"), ("shared_buffers", "32MB"), ("max_wal_size", "256MB")];
        let asked = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.into_iter().chain(asked) {
            lines.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        let open = fs::OpenOptions::new().append(true).open(path);
        open.and_then(|mut conf| conf.write_all(lines.as_bytes()))
            .map_err(|source| file("write", path, source))
    }
}

fn write_file(path: &Path, text: &str) -> Result<(), ThrowawayError> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .map_err(|source| file("write", path, source))
}
