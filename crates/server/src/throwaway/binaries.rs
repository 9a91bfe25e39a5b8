//! Where PostgreSQL's programs are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use pg::Major;

use super::ThrowawayError;

/// The programs of one PostgreSQL installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The directory that holds `postgres`, `initdb` and the client programs.
    pub bin_dir: PathBuf,
    /// The major version that `postgres --version` told.
    pub major: Major,
}

impl Binaries {
    /// Finds the programs of this major version, or the newest supported there are when `None`.
    ///
    /// Looks into the directory that the environment names (`PGKEEP_PG_BIN_15`), then where Debian and Red Hat put
    /// them, then in `PATH`; believes only what `postgres --version` says.
    pub fn find(major: Option<Major>) -> Option<Self> {
        let majors: Vec<Major> =
            major.map_or_else(|| Major::supported().rev().collect(), |major| vec![major]);
        let overridden = majors.iter().filter_map(|major| std::env::var_os(format!("PGKEEP_PG_BIN_{major}")));
        let usual = majors.iter().flat_map(|major| {
            [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")]
                .map(OsString::from)
        });
        let path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&path).map(PathBuf::into_os_string);
        overridden
            .chain(usual)
            .chain(in_path)
            .filter_map(|directory| Self::at(Path::new(&directory)))
            .find(|found| majors.contains(&found.major))
    }

    /// As [`Self::find`], with an error that says where was looked.
    pub fn require(major: Option<Major>) -> Result<Self, ThrowawayError> {
        Self::find(major).ok_or(ThrowawayError::NotInstalled { major })
    }

    /// The installation whose programs are in `bin_dir`; `None` when there is no working `postgres` and `initdb`.
    pub fn at(bin_dir: &Path) -> Option<Self> {
        if !bin_dir.join("postgres").is_file() || !bin_dir.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(bin_dir.join("postgres")).arg("--version").output().ok()?;
        let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { bin_dir: bin_dir.to_owned(), major })
    }

    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// A command that runs one of the programs, without the `PG*` variables of our own environment.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        command
    }
}

/// The major version in a line such as `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)` or `… 18beta1`.
fn parse_major(version: &str) -> Option<Major> {
    let (_, number) = version.split_once("(PostgreSQL) ")?;
    let digits: &str = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().map(Major::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        assert_eq!(
            parse_major("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n"),
            Some(Major::new(15))
        );
        assert_eq!(parse_major("postgres (PostgreSQL) 19beta1"), Some(Major::new(19)));
        assert_eq!(parse_major("postgres 15"), None);
        assert_eq!(Binaries::at(Path::new("/nonexistent")), None);
        assert!(Binaries::require(Some(Major::new(7))).unwrap_err().to_string().contains("PostgreSQL 7"));
    }
}
